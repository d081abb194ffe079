//! What the tests of TLS and vault share: folders, a client that trusts exactly one authority, a
//! server that sniffs and then answers, and other people's programs.
#![allow(dead_code, unreachable_pub)] // each test file uses its own part

use bytes::BytesMut;
use model::HostName;
use nanoclaw_gateway::tls::{Authority, sniff};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::io::{Cursor, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A folder that is removed when dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ncgw-place-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

/// A client that trusts the certificates of `bundle` and nothing else.
pub fn client(
    bundle: &str,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

pub fn name(host: &str) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap()
}

/// What a connection brought.
#[derive(Debug)]
pub struct Seen {
    pub first: Result<sniff::First, sniff::SniffError>,
    /// Whether a TLS session was taken up again.
    pub resumed: Option<bool>,
}

/// Accepts one connection, sniffs, poses as whom the client calls, answers one request.
pub async fn serve_one(listener: &TcpListener, authority: &Authority) -> Seen {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut already = BytesMut::new();
    let first = sniff::first(&mut stream, &mut already).await;
    let Ok(sniff::First::Tls(sniff::Hello { server_name: Some(host), .. })) = &first else {
        return Seen { first, resumed: None };
    };
    let config = authority.server_config(host).unwrap();
    let (read, write) = stream.split();
    let whole = tokio::io::join(Cursor::new(already).chain(read), write);
    let Ok(mut tls) = TlsAcceptor::from(config).accept(whole).await else {
        return Seen { first, resumed: None };
    };
    let kind = tls.get_ref().1.handshake_kind();
    let mut request = vec![0; 4096];
    let _ = tls.read(&mut request).await;
    let _ = tls
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nworks\n")
        .await;
    let _ = tls.shutdown().await;
    Seen { first, resumed: kind.map(|kind| kind == rustls::HandshakeKind::Resumed) }
}

pub async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

pub async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

/// Whether a program is installed. In CI it must be; elsewhere the test says that it is skipped.
pub fn have(program: &str) -> bool {
    let flag = if program == "openssl" { "version" } else { "--version" };
    let quiet =
        Command::new(program).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = quiet.is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("CI").is_none(), "{program} is missing, and this is CI");
    if !found {
        let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed");
    }
    found
}

/// Starts a program with nothing on its input and collects what it says.
pub async fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("SSL_CERT_FILE").env_remove("https_proxy").env_remove("http_proxy");
    command.env_remove("HTTPS_PROXY").env_remove("HTTP_PROXY").env_remove("ALL_PROXY");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub fn text(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}\n{err}")
}
