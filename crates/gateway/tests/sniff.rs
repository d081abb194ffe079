//! The greetings of real programs, as they stand on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod place;

use nanoclaw_gateway::tls::{Authority, sniff};
use place::{TempDir, client, have, host, listen, name, run, serve_one, text};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};
use sniff::{First, Hello};
use std::process::Command;
use std::sync::Arc;

/// What a client of this configuration says first, as `sniff` reads it.
fn greeting(config: ClientConfig, host: &str) -> Hello {
    let mut client = ClientConnection::new(Arc::new(config), name(host)).unwrap();
    let mut said = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut said).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut already = bytes::BytesMut::new();
    match runtime.block_on(sniff::first(&mut &said[..], &mut already)) {
        Ok(First::Tls(hello)) => {
            assert_eq!(already, said);
            hello
        }
        other => panic!("{other:?}"),
    }
}

fn authority() -> (TempDir, Authority) {
    let dir = TempDir::new();
    let authority = Authority::open(&dir.0).unwrap();
    (dir, authority)
}

#[test]
fn rustls_clients_are_read() {
    let (_dir, authority) = authority();
    let pem = authority.certificate_pem();
    for versions in [&[&TLS13][..], &[&TLS12], &[&TLS13, &TLS12]] {
        let hello = greeting(client(pem, versions, &["h2", "http/1.1"]), "API.example.org");
        assert_eq!(hello.server_name, Some(host("api.example.org")));
        assert_eq!((hello.ech, hello.alpn.len()), (false, 2));
    }
    let mut silent = client(pem, &[&TLS13], &[]);
    silent.enable_sni = false;
    let hello = greeting(silent, "api.example.org");
    assert_eq!(hello, Hello { server_name: None, ech: false, alpn: vec![] });
    // An address is no server name, and clients do not send it as one.
    assert_eq!(greeting(client(pem, &[&TLS13], &[]), "127.0.0.1").server_name, None);
    let mut small = client(pem, &[&TLS13], &["http/1.1"]);
    small.max_fragment_size = Some(64);
    assert_eq!(greeting(small, "a.example").server_name, Some(host("a.example")));
}

#[test]
fn grease_in_place_of_an_encrypted_hello_is_told() {
    use rustls::client::{EchGreaseConfig, EchMode};
    let (_dir, authority) = authority();
    let suite = rustls::crypto::aws_lc_rs::hpke::ALL_SUPPORTED_SUITES[0];
    let (public, _) = suite.generate_key_pair().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = client(authority.certificate_pem(), &[&TLS13], &[]);
    drop(roots);
    let config = ClientConfig::builder_with_provider(provider)
        .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, public)))
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let hello = greeting(config, "a.example");
    assert!(hello.ech && hello.server_name == Some(host("a.example")), "{hello:?}");
}

#[tokio::test]
async fn openssls_client_is_read() {
    if !have("openssl") {
        return;
    }
    let (_dir, authority) = authority();
    let (listener, port) = listen().await;
    for (flags, server_name, alpn) in [
        (&["-servername", "Open.Example", "-alpn", "h2,http/1.1"][..], Some("open.example"), 2),
        (&["-servername", "open.example", "-tls1_2"], Some("open.example"), 0),
        (&["-noservername"], None, 0),
    ] {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]).args(flags);
        let (seen, _) = tokio::join!(serve_one(&listener, &authority), run(command));
        let Ok(First::Tls(hello)) = seen.first else { panic!("{seen:?}") };
        assert_eq!(hello.server_name, server_name.map(host));
        assert_eq!((hello.ech, hello.alpn.len()), (false, alpn));
    }
}

#[tokio::test]
async fn curl_is_read_and_served() {
    if !have("curl") {
        return;
    }
    let (dir, authority) = authority();
    let file = dir.0.join("trusted.pem");
    std::fs::write(&file, authority.certificate_pem()).unwrap();
    let (listener, port) = listen().await;
    let curl = |url: String| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]);
        command.arg("--resolve").arg(format!("curl.example:{port}:127.0.0.1"));
        command.arg("--cacert").arg(&file).arg(url);
        command
    };
    let asked = curl(format!("https://curl.example:{port}/"));
    let (seen, output) = tokio::join!(serve_one(&listener, &authority), run(asked));
    let Ok(First::Tls(hello)) = seen.first else { panic!("{seen:?}") };
    assert_eq!(hello.server_name, Some(host("curl.example")));
    assert!(hello.alpn.contains(&b"http/1.1".to_vec()));
    assert_eq!(output.stdout, b"works\n", "{}", text(&output));
    let plain = curl(format!("http://curl.example:{port}/"));
    let (seen, _) = tokio::join!(serve_one(&listener, &authority), run(plain));
    assert_eq!(seen.first, Ok(First::Http));
}
