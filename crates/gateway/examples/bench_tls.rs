//! Measures intercepted TLS against raw rustls on this machine, in one run:
//! `bench_tls [--json]`.
//!
//! Floor: full handshakes a second over loopback with one rustls server of one fixed certificate,
//! ECDSA P-256, as anyone would set it up (tickets off, for nobody resumes in either case). Value:
//! the same client, the same loop, through `sniff` and the authority's cached leaf for its host.
//! Beside it, without a target: the same with a host that is asked for the first time.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use bytes::BytesMut;
use model::HostName;
use nanoclaw_gateway::tls::{Authority, sniff};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Handshakes of one measurement.
const HANDSHAKES: usize = 300;
/// Measurements of each kind, taken in turns; the first one warms up, the median of the others
/// counts.
const RUNS: usize = 8;

/// What stands behind the listener.
enum Server {
    Raw(TlsAcceptor),
    Ours(Arc<Authority>),
}

impl Server {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        match self {
            Self::Raw(acceptor) => {
                let mut tls = acceptor.accept(stream).await?;
                tls.write_all(b"x").await?;
                tls.shutdown().await
            }
            Self::Ours(authority) => {
                let mut already = BytesMut::new();
                let found = sniff::first(&mut stream, &mut already).await;
                let Ok(sniff::First::Tls(sniff::Hello { server_name: Some(host), .. })) = found
                else {
                    return Err(std::io::Error::other("no server name"));
                };
                let config = authority.server_config(&host).map_err(std::io::Error::other)?;
                let (read, write) = stream.split();
                let whole = tokio::io::join(Cursor::new(already).chain(read), write);
                let mut tls = TlsAcceptor::from(config).accept(whole).await?;
                tls.write_all(b"x").await?;
                tls.shutdown().await
            }
        }
    }
}

async fn start(server: Server) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            server.serve(stream).await.unwrap();
        }
    });
    port
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn client(trusted: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn raw() -> (TlsAcceptor, TlsConnector) {
    let key = KeyPair::generate().unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let root_certificate = root.self_signed(&authority_key).unwrap();
    let params = CertificateParams::new(vec!["bench.example".into()]).unwrap();
    let leaf = params.signed_by(&key, &rcgen::Issuer::new(root, authority_key)).unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], der)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    (TlsAcceptor::from(Arc::new(config)), client(root_certificate.der()))
}

/// Handshakes a second, one after the other: connect, shake hands, read one byte to the end.
async fn rate(port: u16, connector: &TlsConnector, host: impl Fn(usize) -> String) -> f64 {
    let begun = Instant::now();
    for n in 0..HANDSHAKES {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from(host(n)).unwrap();
        let mut tls = connector.connect(name, stream).await.unwrap();
        let mut said = Vec::new();
        tls.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"x");
    }
    HANDSHAKES as f64 / begun.elapsed().as_secs_f64()
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// One line: for people, or for machines.
fn print(json: bool, name: &str, value: f64, floor: f64, target: Option<f64>) {
    let ratio = value / floor;
    let met = target.is_none_or(|least| ratio >= least);
    let target =
        target.map_or_else(|| "-".to_owned(), |least| format!("at least {least} of floor"));
    if json {
        let round = |n: f64| (n * 1000.0).round() / 1000.0;
        let figure = serde_json::json!({
            "name": name, "value": round(value), "unit": "handshakes/s", "floor": round(floor),
            "ratio": round(ratio), "target": target, "ok": met,
        });
        println!("{figure}");
    } else {
        let met = if met { "yes" } else { "NO" };
        println!("{name:<28} {value:>10.0} {floor:>10.0} {ratio:>7.2}  {target:<22} {met}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let dir = std::env::temp_dir().join(format!("nanoclaw-bench-tls-{}", std::process::id()));
    let authority = Arc::new(Authority::open(&dir).unwrap());
    let trusted = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
    let _ = authority.server_config(&HostName::parse("bench.example").unwrap()).unwrap();
    let (acceptor, raw_client) = raw();
    let raw_port = start(Server::Raw(acceptor)).await;
    let our_port = start(Server::Ours(authority)).await;
    let our_client = client(&trusted);
    let (mut floor, mut kept, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let one = |_| "bench.example".to_owned();
        floor.push(rate(raw_port, &raw_client, one).await);
        kept.push(rate(our_port, &our_client, one).await);
        fresh.push(rate(our_port, &our_client, |n| format!("h{run}-{n}.example")).await);
    }
    std::fs::remove_dir_all(&dir).unwrap();
    let floor = median(&mut floor[1..]);
    if !json {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("unknown").to_owned();
        println!(
            "full TLS 1.3 handshakes on one thread, client included; medians of {}; load average \
             {load}",
            RUNS - 1
        );
        let heads = ["handshakes/s", "value", "floor", "ratio", "target"];
        println!(
            "{:<28} {:>10} {:>10} {:>7}  {:<22} met",
            heads[0], heads[1], heads[2], heads[3], heads[4]
        );
    }
    print(json, "intercepted, leaf kept", median(&mut kept[1..]), floor, Some(0.5));
    print(json, "intercepted, leaf minted", median(&mut fresh[1..]), floor, None);
}
