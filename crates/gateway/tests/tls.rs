//! The authority on a real disk and its leaves under real clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod place;

use nanoclaw_gateway::tls::{Authority, TlsError, bundle};
use place::{TempDir, client, connect, have, host, listen, name, run, serve_one, text};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

const CHILD: &str = "NANOCLAW_TEST_OPEN_AUTHORITY";
const EVERY: &[&rustls::SupportedProtocolVersion] = &[&TLS13, &TLS12];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Not a test of its own: what the processes of the test below do.
#[test]
fn child_opens_the_authority() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let authority = Authority::open(Path::new(&dir)).unwrap();
    let out = Path::new(&dir).join(format!("child-{}", std::process::id()));
    fs::write(out, authority.certificate_pem()).unwrap();
}

#[test]
fn processes_and_threads_that_come_at_once_agree_on_one_authority() {
    for _ in 0..3 {
        let dir = TempDir::new();
        let vault = dir.0.join("vault");
        let mut children: Vec<_> = (0..6)
            .map(|_| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["--exact", "child_opens_the_authority", "--quiet"]);
                command.env(CHILD, &vault).stdout(std::process::Stdio::null()).spawn().unwrap()
            })
            .collect();
        let here: Vec<String> = std::thread::scope(|scope| {
            let open = || Authority::open(&vault).unwrap().certificate_pem().to_owned();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
        let mut there = 0;
        for entry in fs::read_dir(&vault).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            if file.starts_with("child-") {
                there += 1;
                assert_eq!(fs::read_to_string(&path).unwrap(), here[0]);
            } else {
                assert!(["ca.key", "ca.pem", "lock"].contains(&file.as_str()), "{file} is left");
                assert_eq!(mode(&path), 0o600, "{file}");
            }
        }
        assert_eq!(there, 6);
        assert!(here.iter().all(|pem| pem == &here[0]));
        assert_eq!(mode(&vault), 0o700);
    }
}

#[test]
fn a_damaged_key_and_one_that_others_may_read_are_refused_with_the_remedy() {
    let dir = TempDir::new();
    Authority::open(&dir.0).unwrap();
    let (key, certificate) = (dir.0.join("ca.key"), dir.0.join("ca.pem"));
    let (good_key, good_certificate) = (fs::read(&key).unwrap(), fs::read(&certificate).unwrap());
    let open = || Authority::open(&dir.0).map(|a| a.certificate_pem().to_owned());

    for wrong in [0o640, 0o604, 0o660, 0o700 | 0o001] {
        fs::set_permissions(&key, fs::Permissions::from_mode(wrong)).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, TlsError::Permissions { mode, .. } if mode == wrong), "{error}");
        assert!(error.to_string().contains("remove it"), "{error}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let half = good_key.len() / 2;
    let long = [b'x'; 10_000];
    for bad in [&b""[..], b"nonsense", &good_key[..half], &good_certificate, &long, b"\xff\xfe"] {
        fs::write(&key, bad).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, TlsError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("remove"), "{error}");
    }
    fs::write(&key, &good_key).unwrap();
    let half = good_certificate.len() / 2;
    for bad in [&b""[..], b"nonsense", &good_certificate[..half], &good_key, &long] {
        fs::write(&certificate, bad).unwrap();
        assert!(matches!(open(), Err(TlsError::Damaged { .. })));
    }
    // Another installation's key or certificate beside ours.
    let other = TempDir::new();
    Authority::open(&other.0).unwrap();
    fs::copy(other.0.join("ca.pem"), &certificate).unwrap();
    let error = open().unwrap_err();
    assert!(error.to_string().contains("does not belong"), "{error}");
    // Nothing of this was repaired in silence.
    fs::write(&certificate, &good_certificate).unwrap();
    assert_eq!(open().unwrap().into_bytes(), good_certificate);
    assert_eq!(fs::read(&key).unwrap(), good_key);
}

#[tokio::test]
async fn a_certificate_made_anew_from_the_key_keeps_old_leaves_and_old_trust_valid() {
    let dir = TempDir::new();
    let before = Authority::open(&dir.0).unwrap();
    fs::remove_file(dir.0.join("ca.pem")).unwrap();
    let after = Authority::open(&dir.0).unwrap();
    assert_ne!(before.certificate_pem(), after.certificate_pem());
    for (trusted, server) in [(&before, &after), (&after, &before)] {
        assert!(exchange(trusted.certificate_pem(), server, EVERY, &[]).await.is_ok());
    }
    // Without its key it is another authority, and the old trust is worth nothing.
    fs::remove_file(dir.0.join("ca.key")).unwrap();
    let other = Authority::open(&dir.0).unwrap();
    assert!(exchange(before.certificate_pem(), &other, EVERY, &[]).await.is_err());
    assert!(exchange(other.certificate_pem(), &other, EVERY, &[]).await.is_ok());
}

/// One request over TLS; the protocol agreed on.
async fn exchange(
    trusted: &str,
    authority: &Authority,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
) -> std::io::Result<Option<Vec<u8>>> {
    let (listener, port) = listen().await;
    let config = client(trusted, versions, alpn);
    let ask = async {
        let stream = connect(port).await;
        let connector = TlsConnector::from(Arc::new(config));
        let mut tls = connector.connect(name("api.example.org"), stream).await?;
        tls.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let mut answer = String::new();
        tls.read_to_string(&mut answer).await?;
        assert!(answer.ends_with("works\n"), "{answer}");
        Ok(tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
    };
    tokio::join!(serve_one(&listener, authority), ask).1
}

#[tokio::test]
async fn both_versions_are_spoken_and_http_1_1_alone() {
    let dir = TempDir::new();
    let authority = Authority::open(&dir.0).unwrap();
    let pem = authority.certificate_pem();
    for versions in [&[&TLS12][..], &[&TLS13], EVERY] {
        let agreed = exchange(pem, &authority, versions, &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
        assert_eq!(exchange(pem, &authority, versions, &[]).await.unwrap(), None);
        assert!(exchange(pem, &authority, versions, &["h2"]).await.is_err());
    }
    let strange = TempDir::new();
    let other = Authority::open(&strange.0).unwrap();
    assert!(exchange(other.certificate_pem(), &authority, EVERY, &[]).await.is_err());
}

#[test]
fn a_leaf_names_its_host_alone_and_is_minted_once_for_all_who_ask_at_once() {
    let dir = TempDir::new();
    let authority = Authority::open(&dir.0).unwrap();
    for round in 0..20 {
        let name = host(&format!("h{round}.example.org"));
        let configs: Vec<_> = std::thread::scope(|scope| {
            let ask = || authority.server_config(&name).unwrap();
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(configs.iter().all(|config| Arc::ptr_eq(config, &configs[0])), "{name}");
    }
    let one = authority.server_config(&host("a.example")).unwrap();
    assert!(!Arc::ptr_eq(&one, &authority.server_config(&host("b.example")).unwrap()));
    assert!(!one.session_storage.can_cache() && !one.ticketer.enabled());
    assert_eq!((one.send_tls13_tickets, one.max_tls13_tickets, one.max_early_data_size), (0, 0, 0));
}

#[tokio::test]
async fn a_session_is_never_taken_up_again() {
    let dir = TempDir::new();
    let authority = Authority::open(&dir.0).unwrap();
    let (listener, port) = listen().await;
    for versions in [&[&TLS12][..], &[&TLS13]] {
        // The client would resume, and remembers between its connections.
        let config = Arc::new(client(authority.certificate_pem(), versions, &[]));
        for _ in 0..3 {
            let ask = async {
                let connector = TlsConnector::from(Arc::clone(&config));
                let mut tls = connector.connect(name("a.example"), connect(port).await).await?;
                tls.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
                tls.read_to_end(&mut Vec::new()).await?;
                std::io::Result::Ok(tls.get_ref().1.handshake_kind())
            };
            let (seen, kind) = tokio::join!(serve_one(&listener, &authority), ask);
            assert_eq!(seen.resumed, Some(false), "{seen:?}");
            assert_ne!(kind.unwrap(), Some(rustls::HandshakeKind::Resumed));
        }
    }
}

#[test]
fn the_authoritys_certificate_is_limited_and_no_two_share_a_name() {
    if !have("openssl") {
        return;
    }
    let shown = || {
        let dir = TempDir::new();
        Authority::open(&dir.0).unwrap();
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout", "-text", "-in"]).arg(dir.0.join("ca.pem"));
        text(&command.output().unwrap())
    };
    let (one, two) = (shown(), shown());
    for expected in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign\n",
        "TLS Web Server Authentication",
        "Excluded:",
        "IP:0.0.0.0/0.0.0.0",
        "prime256v1",
    ] {
        assert!(one.contains(expected), "{expected} is not in {one}");
    }
    let subject = |shown: &str| {
        let line = shown.lines().find(|line| line.contains("Subject: ")).unwrap();
        line.trim().to_owned()
    };
    assert!(subject(&one).contains("NanoClaw gateway") && subject(&one) != subject(&two));
}

#[tokio::test]
async fn openssl_resumes_nothing_either() {
    if !have("openssl") {
        return;
    }
    let dir = TempDir::new();
    let authority = Authority::open(&dir.0).unwrap();
    let (listener, port) = listen().await;
    let kept = dir.0.join("session.pem");
    for version in ["-tls1_2", "-tls1_3"] {
        let command = |flag: &str| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-servername", "a.example", version, flag]).arg(&kept);
            command.args(["-connect", &format!("127.0.0.1:{port}")]);
            command
        };
        let (seen, first) =
            tokio::join!(serve_one(&listener, &authority), run(command("-sess_out")));
        assert_eq!(seen.resumed, Some(false), "{}", text(&first));
        assert!(!text(&first).contains("TLS session ticket:"), "{}", text(&first));
        if kept.exists() {
            let (seen, _) =
                tokio::join!(serve_one(&listener, &authority), run(command("-sess_in")));
            assert_eq!(seen.resumed, Some(false));
            fs::remove_file(&kept).unwrap();
        }
    }
}

#[tokio::test]
async fn the_merged_bundle_holds_the_systems_roots_and_ours_and_strict_clients_take_it() {
    let dir = TempDir::new();
    let authority = Authority::open(&dir.0).unwrap();
    let merged = bundle::merged(&authority).unwrap();
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(merged.as_bytes()).map(Result::unwrap).collect();
    let system = rustls_native_certs::load_native_certs().certs;
    let ours = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
    assert_eq!(all.iter().filter(|c| **c == ours).count(), 1);
    assert!(all.len() > 1 || system.is_empty(), "{} of {}", all.len(), system.len());
    assert!(all.iter().all(|c| *c == ours || system.contains(c)));
    assert!(exchange(&merged, &authority, EVERY, &[]).await.is_ok());

    let file = dir.0.join("merged.pem");
    fs::write(&file, &merged).unwrap();
    let (listener, port) = listen().await;
    if have("openssl") {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-verify_return_error", "-x509_strict", "-CAfile"]).arg(&file);
        command.args(["-servername", "a.example", "-verify_hostname", "a.example"]);
        command.args(["-connect", &format!("127.0.0.1:{port}")]);
        let (_, output) = tokio::join!(serve_one(&listener, &authority), run(command));
        assert!(text(&output).contains("Verify return code: 0 (ok)"), "{}", text(&output));
    }
    if have("python3") {
        let mut command = Command::new("python3");
        command.args(["-c", STRICT]).arg(&file).arg(port.to_string());
        let (_, output) = tokio::join!(serve_one(&listener, &authority), run(command));
        assert!(text(&output).contains("works"), "{}", text(&output));
    }
}

/// As strict as Python can be (its default from 3.13 on).
const STRICT: &str = "
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection(('127.0.0.1', int(sys.argv[2]))) as plain:
    with context.wrap_socket(plain, server_hostname='a.example') as tls:
        tls.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n')
        print(tls.recv(1000).decode())
";
