//! A server that speaks TLS on 127.0.0.1 under two names, of which agents may use one.

use crate::lab::{Lab, Ran, finish};
use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The name that the agent file permits.
pub(crate) const PERMITTED: &str = "programs.test";
/// A name of the same server, with as good a certificate, that no rule covers.
pub(crate) const REFUSED: &str = "refused.test";
/// The agent of these tests.
pub(crate) const AGENT: &str = "programs";

/// Heads of programs are far smaller.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Longest silence of a client on a connection that it keeps.
const IDLE: Duration = Duration::from_secs(30);
/// The search for a head's end.
const BLANK_LINE: &[u8] = b"\r\n\r\n";

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) host: String,
    pub(crate) authorization: Option<String>,
}

type Log = Arc<Mutex<Vec<Asked>>>;

/// The server, what it serves, and what makes a gateway know its names and trust it.
pub(crate) struct Site {
    port: u16,
    hosts: PathBuf,
    authority: PathBuf,
    asked: Log,
}

impl Site {
    /// `None`, by name, where the product cannot be given an `/etc/hosts` of its own.
    pub(crate) fn open(lab: &Lab) -> Option<Self> {
        if !crate::lab::is_root() {
            crate::tools::missing("only root can give the product an /etc/hosts of its own");
            return None;
        }
        testkit::need("unshare")?;
        let dir = lab.home().parent().unwrap().join("site");
        let (config, pem) = certificates();
        std::fs::create_dir_all(dir.join("root")).unwrap();
        let authority = dir.join("authority.pem");
        std::fs::write(&authority, pem).unwrap();
        let hosts = dir.join("hosts");
        let names = format!("127.0.0.1 localhost {PERMITTED} {REFUSED}\n");
        std::fs::write(&hosts, names).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let site = Self { port, hosts, authority, asked: Log::default() };
        fill(&dir.join("root"), &site.origin(PERMITTED));
        let asked = Arc::clone(&site.asked);
        // It ends with the test's process; its connections end when their clients do.
        thread::spawn(move || serve(&listener, &config, &dir.join("root"), &asked));
        Some(site)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `https://NAME:PORT`.
    pub(crate) fn origin(&self, name: &str) -> String {
        format!("https://{name}:{}", self.port)
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the agent's file: one rule for the permitted name, with these further keys.
    pub(crate) fn permit(&self, lab: &Lab, keys: &str) {
        let text = format!("schema = 1\n{}{keys}", self.rule(PERMITTED));
        lab.file(&lab.home().join("agents").join(format!("{AGENT}.toml")), &text);
    }

    /// A rule for one name.
    pub(crate) fn rule(&self, name: &str) -> String {
        format!("[[egress]]\nhost = \"{name}\"\nport = {}\nprivate = true\n", self.port)
    }

    /// The same command, where the site's names mean 127.0.0.1 and its authority is trusted.
    pub(crate) fn around(&self, inner: &Command) -> Command {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        command.args(["--mount", "--", "sh", "-c", script]).arg(&self.hosts);
        command.arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("SSL_CERT_FILE", &self.authority).current_dir("/");
        command
    }

    /// `nanoclaw run --agent … FLAGS… -- sh -c SCRIPT`, not started yet.
    pub(crate) fn command(&self, lab: &Lab, flags: &[String], script: &str) -> Command {
        let mut inner = lab.nanoclaw(["run", "--agent", AGENT]);
        inner.args(flags).args(["--", "sh", "-c", script]);
        self.around(&inner)
    }

    /// Runs it to its end.
    pub(crate) fn sh(&self, lab: &Lab, flags: &[String], script: &str) -> Ran {
        finish(self.command(lab, flags, script), b"")
    }
}

/// The server's configuration and, as PEM, the authority behind it.
fn certificates() -> (Arc<ServerConfig>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "An authority of these tests");
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(authority.der());
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let issuer = Issuer::new(params, key);
    let names = vec![PERMITTED.to_owned(), REFUSED.to_owned()];
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    (Arc::new(builder.with_single_cert(chain, key).unwrap()), pem)
}

/// Puts everything that is served into `root`.
fn fill(root: &Path, origin: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/site.py");
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-IB").arg(script).arg(root).arg(origin);
    assert!(finish(python, b"").status.success());
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=t", "-c", "user.email=t@localhost", "-C"]).arg(root).args(args);
        git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        finish(git, b"").ok()
    };
    git(&["init", "-q", "work"]);
    std::fs::copy(root.join("hello"), root.join("work/hello")).unwrap();
    git(&["-C", "work", "add", "hello"]);
    git(&["-C", "work", "commit", "-q", "-m", "One"]);
    git(&["clone", "-q", "--bare", "work", "git/repo.git"]);
    git(&["-C", "git/repo.git", "update-server-info"]);
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, root: &Path, asked: &Log) {
    while let Ok((stream, _)) = listener.accept() {
        let (config, root, asked) = (Arc::clone(config), root.to_owned(), Arc::clone(asked));
        // Whatever goes wrong on a connection is its client's to report.
        thread::spawn(move || drop(converse(stream, config, &root, &asked)));
    }
}

fn converse(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    root: &Path,
    log: &Log,
) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    while let Some(head) = read_head(&mut stream)? {
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let asked = Asked {
            line: head.lines().next().unwrap_or_default().to_owned(),
            host: field("host").unwrap_or_default(),
            authorization: field("authorization"),
        };
        let (status, kind, body) = answer(root, &asked);
        log.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        stream.write_all(&body)?;
        stream.flush()?;
    }
    Ok(())
}

/// The next request's head; `None` when there is none any more.
fn read_head(stream: &mut impl Read) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(BLANK_LINE) {
        if head.len() > HEAD_BYTES_MAX || stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

/// A file, the index of a folder, or, at `/echo` and `/mirror`, what the request had in
/// `Authorization`, as it was and backwards.
fn answer(root: &Path, asked: &Asked) -> (&'static str, &'static str, Vec<u8>) {
    let path = asked.line.split([' ', '?']).nth(1).unwrap_or_default();
    let said = asked.authorization.clone().unwrap_or_default();
    let text = match path {
        "/echo" => Some(format!("you said {said}\n")),
        "/mirror" => Some(said.chars().rev().collect()),
        _ => None,
    };
    if let Some(text) = text {
        return ("200 OK", "text/plain", text.into_bytes());
    }
    let full = root.join(path.trim_matches('/'));
    for (name, kind) in [("index.html", "text/html"), ("index.json", "application/json")] {
        if let Ok(body) = std::fs::read(full.join(name)) {
            return ("200 OK", kind, body);
        }
    }
    match std::fs::read(&full) {
        Ok(body) if !path.contains("..") => ("200 OK", "application/octet-stream", body),
        _ => ("404 Not Found", "text/plain", b"not here\n".to_vec()),
    }
}
