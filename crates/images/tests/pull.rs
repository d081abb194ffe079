//! Images from registries: a real one, and one that lies.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Lab, Tar, gzip};
use nanoclaw_images::{Digest, Error, ErrorKind, Image, Limits, Unwatched};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn pull(lab: &Lab, reference: &str) -> Result<Image, Error> {
    lab.store.pull(reference, None, true, &Limits::default(), &Unwatched)
}

/// Blobs, configuration, manifest and index of one image.
struct Made {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
    manifest: Vec<u8>,
    index: Vec<u8>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn made() -> Made {
    let tars = [
        Tar::default().file("etc/x", "lower").file("gone", "").end(),
        Tar::default().file("etc/x", "upper").with(".wh.gone", b'0', "").end(),
    ];
    let layers: Vec<Vec<u8>> = tars.iter().map(|t| gzip(t)).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let ids: Vec<String> = tars.iter().map(|t| Digest::of(t).to_string()).collect();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        serde_json::json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|l| descriptor(layer, l)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let mut own = descriptor(MANIFEST, &manifest);
    own["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [own]});
    Made { layers, config, manifest, index: index.to_string().into_bytes() }
}

/// Debian's registry server on a port of its own; ended when dropped.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn registry(lab: &Lab) -> Option<(Registry, u16)> {
    let program = testkit::need("docker-registry")?;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let data = lab.dir.path().join("registry");
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: 127.0.0.1:{port}\n",
        data.display()
    );
    let path = lab.archive("registry.yml", config.as_bytes());
    let mut command = Command::new(program);
    command.arg("serve").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the registry does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((Registry(child), port))
}

/// One request; status and headers of the answer.
fn send(port: u16, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

fn push(port: u16, made: &Made) {
    for blob in made.layers.iter().chain([&made.config]) {
        let (status, head) = send(port, "POST", "/v2/team/tools/blobs/uploads/", "", b"");
        assert_eq!(status, 202, "{head}");
        let place = head.lines().find_map(|l| l.strip_prefix("Location: ")).unwrap();
        let place = place.trim().split_once(&format!(":{port}")).unwrap().1;
        let place = format!("{place}&digest={}", Digest::of(blob));
        let (status, answer) = send(port, "PUT", &place, "application/octet-stream", blob);
        assert_eq!(status, 201, "{answer}");
    }
    let digest = Digest::of(&made.manifest).to_string();
    for (tag, kind, bytes) in [
        (digest.as_str(), MANIFEST, &made.manifest),
        ("single", MANIFEST, &made.manifest),
        ("1.0", INDEX, &made.index),
    ] {
        let path = format!("/v2/team/tools/manifests/{tag}");
        let (status, answer) = send(port, "PUT", &path, kind, bytes);
        assert_eq!(status, 201, "{answer}");
    }
}

#[test]
fn images_come_from_a_real_registry() {
    let lab = Lab::new("real");
    let Some((_registry, port)) = registry(&lab) else { return };
    let made = made();
    push(port, &made);
    let digest = Digest::of(&made.manifest);
    for reference in ["team/tools:1.0", "team/tools:single", &format!("team/tools@{digest}")] {
        let image = pull(&lab, &format!("127.0.0.1:{port}/{reference}")).unwrap();
        assert_eq!(image.digest, digest, "{reference}");
        let root = lab.root(&image);
        assert_eq!(fs::read_to_string(root.join("etc/x")).unwrap(), "upper");
        assert!(!root.join("gone").exists());
    }
    let missing = pull(&lab, &format!("127.0.0.1:{port}/team/none")).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::Missing, "{missing}");
    // http must be asked for, and is then spoken to this machine only.
    let reference = format!("127.0.0.1:{port}/team/tools:1.0");
    let refused = lab.store.pull(&reference, None, false, &Limits::default(), &Unwatched);
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Network);
    let far = pull(&lab, "registry.example/x").unwrap_err();
    assert!(far.remedy.contains("127.0.0.1"), "{far}");
}

/// Answers by path: status, extra headers, body.
type Answers = BTreeMap<String, (u16, String, Vec<u8>)>;

/// A registry that answers what it is told and remembers what it was asked.
fn liar(answers: Answers) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines();
            let mut head = String::new();
            while let Some(Ok(line)) =
                lines.next().filter(|l| l.as_ref().is_ok_and(|l| !l.is_empty()))
            {
                head.push_str(&line);
                head.push('\n');
            }
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let open = !path.starts_with("/v2/") || head.contains("Bearer test-token-not-real");
            log.lock().unwrap().push(head);
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"\r\n"
            );
            let (status, headers, body) = match answers.get(&path).filter(|_| open) {
                Some(answer) => answer.clone(),
                None if open => (404, String::new(), Vec::new()),
                None => (401, challenge, Vec::new()),
            };
            let headers = headers.replace("PORT", &port.to_string());
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n");
            let mut to = &stream;
            drop(to.write_all(head.as_bytes()).and_then(|()| to.write_all(&body)));
        }
    });
    (port, seen)
}

fn honest(made: &Made) -> Answers {
    let mut answers = Answers::new();
    let mut put = |path: String, status, headers: &str, body: &[u8]| {
        answers.insert(path, (status, headers.to_owned(), body.to_vec()));
    };
    let token = br#"{"token": "test-token-not-real"}"#;
    put("/token?scope=repository:x:pull&service=s".into(), 200, "", token);
    put("/v2/x/manifests/latest".into(), 200, "", &made.manifest);
    for blob in made.layers.iter().chain([&made.config]) {
        let digest = Digest::of(blob);
        let elsewhere = format!("Location: http://localhost:PORT/cdn/{digest}\r\n");
        put(format!("/v2/x/blobs/{digest}"), 307, &elsewhere, b"");
        put(format!("/cdn/{digest}"), 200, "", blob);
    }
    answers
}

#[test]
fn tokens_are_fetched_and_not_passed_on() {
    let lab = Lab::new("token");
    let (port, seen) = liar(honest(&made()));
    let image = pull(&lab, &format!("127.0.0.1:{port}/x")).unwrap();
    assert_eq!(image.name.as_str(), format!("127.0.0.1:{port}/x"));
    let seen = seen.lock().unwrap();
    let with_token = |h: &&String| h.to_lowercase().contains("authorization:");
    assert!(seen.iter().filter(with_token).all(|h| h.starts_with("GET /v2/")), "{seen:?}");
    // Once refused, then never without; and never where the registry redirected to.
    assert_eq!(seen.iter().filter(|h| h.starts_with("GET /token")).count(), 1);
    assert!(seen.iter().any(|h| h.starts_with("GET /cdn/")));
}

#[test]
fn a_registry_that_lies_gets_nothing_stored() {
    let made = made();
    let layer = Digest::of(&made.layers[0]);
    let config = Digest::of(&made.config);
    type Spoil = Box<dyn Fn(&mut Answers)>;
    let set = |path: String, status: u16, headers: &'static str, body: Vec<u8>| -> Spoil {
        Box::new(move |answers| {
            answers.insert(path.clone(), (status, headers.to_owned(), body.clone()));
        })
    };
    let mut other = made.layers[0].clone();
    other[10] ^= 1;
    let long = [made.layers[0].clone(), vec![0; 10]].concat();
    let short = made.layers[0][..20].to_vec();
    let latest = || "/v2/x/manifests/latest".to_owned();
    let cases: Vec<(Spoil, &str)> = vec![
        (set(format!("/cdn/{layer}"), 200, "", other), "another digest"),
        (set(format!("/cdn/{layer}"), 200, "", long), "more than it announced"),
        (set(format!("/cdn/{layer}"), 200, "", short), "another digest"),
        (set(format!("/cdn/{config}"), 500, "", vec![]), "500"),
        (
            set(format!("/cdn/{config}"), 302, "Location: http://example.org/\r\n", vec![]),
            "nobody goes",
        ),
        (set(format!("/cdn/{config}"), 302, "Location: /cdn/loop\r\n", vec![]), "404"),
        (set(latest(), 200, "", vec![b' '; 5 << 20]), "more than it announced"),
        (set(latest(), 200, "", b"{}".to_vec()), "neither one image's nor an index"),
        (set(latest(), 302, "Location: /v2/x/manifests/latest\r\n", vec![]), "without end"),
        (
            set("/token?scope=repository:x:pull&service=s".into(), 200, "", b"{}".to_vec()),
            "no token",
        ),
    ];
    for (spoil, words) in cases {
        let lab = Lab::new("liar");
        let before = lab.files();
        let mut answers = honest(&made);
        spoil(&mut answers);
        let (port, _) = liar(answers);
        let error = pull(&lab, &format!("127.0.0.1:{port}/x")).unwrap_err();
        assert!(error.cause.contains(words), "{words}: {error}");
        lab.untouched(&before);
    }
    // Another manifest than the pinned one.
    let lab = Lab::new("pinned");
    let pinned = Digest::of(b"another");
    let mut answers = honest(&made);
    let manifest = (200, String::new(), made.manifest.clone());
    answers.insert(format!("/v2/x/manifests/{pinned}"), manifest);
    let (port, _) = liar(answers);
    let error = pull(&lab, &format!("127.0.0.1:{port}/x@{pinned}")).unwrap_err();
    assert!(error.cause.contains("was asked for"), "{error}");
}
