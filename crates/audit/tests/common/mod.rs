//! What several of these tests need.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use model::{
    AgentName, Body, Direction, Durability, FileAct, FileChange, LimitState, MessageId, MountSeen,
    Record, RequestLine, SaltedDigest, SessionId, Sha256Hex, TurnId, WallState,
};
use nanoclaw_audit::Log;
use nanoclaw_audit::entry::Entry;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// A small generator of numbers (xorshift64), so that a failing run can be repeated.
pub struct Seed(pub u64);

impl Seed {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 8) % n.max(1)
    }
}

/// A folder that goes when the test is done.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("audit-{name}-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn record(body: Body) -> Record {
    Record {
        time_ms: 1_769_903_999_123,
        session: Some(SessionId::mint(5, 6)),
        agent: Some(AgentName::parse("triage").unwrap()),
        turn: Some(TurnId::mint(5, 6)),
        body,
    }
}

pub fn append(log: &Log, bytes: Vec<u8>) -> u64 {
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |r| tell.send(r).unwrap());
    log.submit(&Entry::from_bytes(bytes).unwrap(), Durability::Durable, done);
    told.recv().unwrap().unwrap()
}

/// Makes a log of `n` entries and closes it.
pub fn make_log(dir: &Path, n: usize) {
    let log = Log::open(dir).unwrap();
    let (tell, told) = mpsc::channel();
    for i in 0..n {
        let tell = tell.clone();
        let entry = Entry::from_bytes(entry(i)).unwrap();
        log.submit(&entry, Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
    }
    for i in 0..n as u64 {
        assert_eq!(told.recv().unwrap(), Ok(i));
    }
    log.close().unwrap();
}

pub fn entry(i: usize) -> Vec<u8> {
    format!("{{\"entry\":{i}}}").into_bytes()
}

pub fn every_kind() -> Vec<Body> {
    let s = |t: &str| t.to_owned();
    let digest = || Sha256Hex("ab".repeat(32));
    let message = MessageId::mint(1, 2);
    vec![
        Body::RecorderStarted { version: s("0"), recovered_records: 1, torn_bytes: 2 },
        Body::RecorderStopped { records: 3 },
        Body::ClientLost { pid: 4, role: s("gateway") },
        Body::KeyAnnounced { old_vkey: s("n/1+a+b"), new_vkey: s("n/1+c+d") },
        Body::RecordGap { lost: 5, open: true, reason: s("too many") },
        Body::ClockSetBack { before_ms: 9, now_ms: 8 },
        Body::SessionOpened {
            resumed: true,
            backend: s("native"),
            policy_sha256: digest(),
            grants: vec![s("read ~/notes"), s("é\u{202e}\u{1f600}")],
        },
        Body::SessionClosed {
            reason: s("done"),
            counts: [(s("turn"), 2), (s("\u{fb33}"), 1), (s("\u{1f600}"), 3)].into(),
        },
        Body::SandboxStarted {
            plan_sha256: digest(),
            program: s("sh"),
            walls: vec![WallState { wall: s("landlock"), state: s("ABI 7") }],
            limits: vec![LimitState {
                limit: s("pids"),
                value: s("256"),
                enforced_by: s("cgroup v2"),
            }],
        },
        Body::TotalsDisagree { total: s("bytes up"), relation: s("equal"), gateway: 1, kernel: 2 },
        Body::SandboxStopped {
            outcome: s("exit 0"),
            cpu_ms: 1,
            peak_memory_bytes: 2,
            peak_pids: Some(3),
            disk_bytes: Some(4),
        },
        Body::ProcessExec {
            exec: 1,
            pid: 7,
            path: s("/bin/sh"),
            argv: vec![s("sh"), s("-c"), s("\u{1b}[31m\u{fffd}")],
            cwd: Some(s("/workspace")),
            whole: false,
            racy: true,
            server: Some(s("lab")),
            unread: Some(s("its memory: EPERM")),
        },
        Body::ProcessImage { exec: 1, pid: 7, image: Some(s("/usr/bin/dash")), unseen: None },
        Body::ConnectRefused {
            pid: 7,
            call: s("connect"),
            target: s("192.0.2.1:443"),
            errno: s("ENETUNREACH"),
            racy: true,
            server: None,
        },
        Body::WitnessGap { lost: 3, reason: s("the queue was full") },
        Body::Message {
            direction: Direction::In,
            message: message.clone(),
            channel: s("terminal"),
            chat: s("me"),
            digest: SaltedDigest { sha256: digest(), bytes: 12 },
        },
    ]
    .into_iter()
    .chain(every_kind_of_a_turn(message))
    .chain(every_kind_of_files())
    .collect()
}

fn every_kind_of_files() -> Vec<Body> {
    let s = |t: &str| t.to_owned();
    let change = |path: &str, act, unread: Option<&str>| FileChange {
        path: s(path),
        act,
        sort: s(if unread.is_some() { "file" } else { "link" }),
        bytes: 4,
        mode: s("0644"),
        sha256: unread.is_none().then(|| Sha256Hex("ab".repeat(32))),
        unread: unread.map(s),
        racy: unread.is_none(),
    };
    vec![
        Body::FilesChanged {
            mount: s("/mnt/x"),
            changes: vec![
                change("a\u{202e}\u{1f600}", FileAct::Created, None),
                change("", FileAct::Deleted, Some("EACCES")),
            ],
            server: Some(s("lab")),
        },
        Body::FilesManifest {
            after: s("turn"),
            mounts: vec![MountSeen {
                mount: s("/mnt/x"),
                looked_at: 9,
                created: 1,
                changed: 2,
                deleted: 3,
                unlisted: 4,
                unread: 5,
                missed: 6,
                missed_first: vec![s("deep: too deep")],
            }],
            read_bytes: 7,
            duration_ms: 8,
            running: true,
            server: None,
        },
        Body::ObserversDisagree {
            finding: s("execution_without_call"),
            told_by: s("kernel"),
            not_by: s("agent"),
            what: s("/bin/x was executed while no tool call was open"),
            count: 2,
            records: vec![3, 4],
        },
    ]
}

/// Of `POST https://h/x`, by sha256sum(1).
const SHOWN_SHA256: &str = "e82ef6ed665efaaaee7cbb89570e515637a9d01cfc4cfb356417ebbcc2d58371";

fn every_kind_of_a_turn(message: MessageId) -> Vec<Body> {
    let s = |t: &str| t.to_owned();
    let shown = || Sha256Hex(SHOWN_SHA256.to_owned());
    let digest = || Sha256Hex("ab".repeat(32));
    vec![
        Body::MessageWithdrawn { message: message.clone(), reason: s("SIGTERM") },
        Body::TurnStarted { message },
        Body::TurnFinished { outcome: s("ok"), duration_ms: 10 },
        Body::ModelRequest {
            model: s("m"),
            api: s("script"),
            host: s("h"),
            bytes: 1,
            sha256: digest(),
            provider_tools: vec![s("web_search")],
        },
        Body::ModelResponse {
            model: s("m"),
            status: 200,
            bytes: 1,
            sha256: digest(),
            input_tokens: 2,
            output_tokens: 3,
            duration_ms: 4,
            cost_micro_usd: Some(5),
            error: None,
        },
        Body::SecretUsed { secret: s("github"), host: s("api.github.com") },
        Body::LoginRequest { login: s("claude"), host: s("h"), purpose: s("renewal") },
        Body::LoginResponse {
            login: s("claude"),
            purpose: s("renewal"),
            status: 200,
            rotated: true,
            expires_ms: Some(9),
            duration_ms: 4,
            error: None,
        },
        Body::LoginChanged { login: s("claude"), change: s("removed"), hosts: vec![s("h")] },
        Body::ToolCalled {
            call: s("1"),
            tool: s("bash"),
            arguments: s("{\"a\": \"\\\"\n\u{1b}[31m\"}"),
            arguments_sha256: digest(),
        },
        Body::ToolFinished { call: s("1"), tool: s("bash"), ok: false, bytes: 3, summary: s("no") },
        Body::EgressIntent {
            host: s("h"),
            port: 443,
            rule: s("r"),
            address: Some(s("192.0.2.1")),
            request: Some(RequestLine {
                method: s("GET"),
                path: s("/x"),
                query_keys: vec![s("a"), s("b")],
                websocket: true,
            }),
            secret: Some(s("github")),
        },
        Body::EgressPinned { host: s("h"), port: 443, address: s("192.0.2.1") },
        Body::EgressResult {
            host: s("h"),
            port: 443,
            status: Some(200),
            sent: 1,
            sent_head: 120,
            received: 2,
            sent_sha256: Some(digest()),
            received_sha256: None,
            duration_ms: 3,
            error: Some(s("reset")),
        },
        Body::EgressRefused {
            target: s("10.0.0.1:22"),
            rule: s("default"),
            reason: s("private range"),
            request: None,
        },
        Body::ApprovalAsked {
            approval: s("a1"),
            rule: s("r"),
            by: s("owner"),
            summary: s("POST https://h/x"),
            // That of the text: the recorder takes no other.
            shown_sha256: Some(shown()),
        },
        Body::ApprovalDecided {
            approval: s("a1"),
            decision: s("deny"),
            by: s("owner"),
            shown_sha256: Some(shown()),
        },
        Body::HostToolCalled {
            call: s("2"),
            server: s("host"),
            tool: s("web_fetch"),
            arguments: s("{}"),
            arguments_sha256: digest(),
        },
        Body::HostToolFinished {
            call: s("2"),
            server: s("host"),
            tool: s("web_fetch"),
            ok: true,
            bytes: 3,
            sha256: digest(),
            duration_ms: 4,
            error: None,
        },
        Body::PolicyLearned {
            session: SessionId::mint(5, 6),
            proposal_sha256: digest(),
            rules: 1,
            unused: 2,
        },
        Body::PolicyAccepted { file: s("f"), before_sha256: digest(), after_sha256: digest() },
        Body::PolicyChanged {
            before_sha256: Some(digest()),
            after_sha256: digest(),
            gained: vec![s("egress a.org:443: a new host"), s("tool \u{202e}x")],
            lost: vec![s("tool y")],
            left_out: 3,
            unknown: Some(s("the copy is damaged")),
        },
        Body::ProbeObserved {
            probe: s("ptrace"),
            expected: s("EPERM"),
            observed: s("EPERM"),
            held: true,
        },
        Body::Cosigning {
            reached: false,
            size: 9,
            needed: 2,
            cosigned: vec![s("w.example/1")],
            failed: vec![s("w.example/2: not reached")],
            contradicted: true,
        },
        Body::PayloadsErased { scope: s("session s1"), records: vec![3], texts: 2, bytes: 9 },
        Body::RecordsPruned { before_ms: 5, first: 7, texts: 1 },
    ]
}

/// Serves on a port of this machine for as long as the test runs; the address.
pub fn served(service: impl nanoclaw_audit::http::Service + 'static) -> String {
    served_with(service, nanoclaw_audit::http::Limits::default())
}

pub fn served_with(
    service: impl nanoclaw_audit::http::Service + 'static,
    limits: nanoclaw_audit::http::Limits,
) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service: std::sync::Arc<dyn nanoclaw_audit::http::Service> = std::sync::Arc::new(service);
    std::thread::spawn(move || nanoclaw_audit::http::run(&listener, &service, limits));
    address
}

/// The address of a server that reads each request's head and then does with the connection what
/// it is told.
pub fn behaves<F>(what: F) -> String
where
    F: Fn(std::net::TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
{
    use std::io::Read;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let what = std::sync::Arc::new(what);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, what) = (stream.unwrap(), std::sync::Arc::clone(&what));
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let _ = what(stream);
            });
        }
    });
    format!("http://{address}")
}

/// Dials without encryption, and waits only so long.
#[derive(Debug, Clone, Copy)]
pub struct Hasty(pub nanoclaw_audit::http::Patience);

impl nanoclaw_audit::http::Dial for Hasty {
    fn dial(
        &self,
        url: &nanoclaw_audit::http::Url,
        pace: &nanoclaw_audit::http::Pace,
    ) -> std::io::Result<Box<dyn nanoclaw_audit::http::Stream>> {
        nanoclaw_audit::http::Plain.dial(url, pace)
    }

    fn patience(&self) -> nanoclaw_audit::http::Patience {
        self.0
    }
}
