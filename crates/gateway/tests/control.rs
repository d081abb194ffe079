//! The control socket: a real client and a real server over real sockets, whose gateway is ended
//! at will.

// A test says what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gateway::control::{
    Approvals, ControlClient, ControlError, Doors, Event, NoPrograms, Programs, Settings, Tracked,
    Wanted, Watcher, Withdrawn, serve, socket_path, state_dir,
};
use gateway::{Answer, DoorGrant, Gateway, GatewayConfig, Question, Sealer, SecretBytes, Vault};
use model::{Body, Durability, Record, RecordSink, TurnId};
use nanoclaw_gateway as gateway;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const SCRIPT: &str = "schema = 1\n[[turn]]\n[[turn.step]]\ntext = \"scripted words\"\n";
const SECRET: &str = "test-key-not-real";

#[derive(Default)]
struct Memory(Mutex<Vec<(Record, Durability)>>);

impl RecordSink for Memory {
    fn submit(&self, record: Record, durability: Durability, done: model::Done) {
        let mut all = self.0.lock().unwrap();
        all.push((record, durability));
        let index = all.len() as u64;
        drop(all);
        done(Ok(index));
    }
}

/// A home with a gateway in it that can be ended and started again.
struct Home {
    dir: PathBuf,
    records: Arc<Memory>,
    running: Mutex<Option<Runtime>>,
    starts: AtomicUsize,
    /// Held by a test that wants no gateway to start for a while.
    gate: Mutex<()>,
}

impl Drop for Home {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Home {
    fn new() -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let dir = std::env::temp_dir().join(format!("ncctl-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        for inner in ["run", "doors"] {
            std::fs::create_dir_all(dir.join(inner)).unwrap();
        }
        std::fs::create_dir_all(state_dir(&dir)).unwrap();
        std::fs::write(dir.join("script.toml"), SCRIPT).unwrap();
        let (running, gate) = (Mutex::default(), Mutex::default());
        let starts = AtomicUsize::new(0);
        Arc::new(Self { dir, records: Arc::default(), running, starts, gate })
    }

    /// Starts one unless one runs: several clients may notice at once that it is gone.
    fn start(&self) {
        let mut running = self.running.lock().unwrap();
        if running.is_some() {
            return;
        }
        let socket = socket_path(&self.dir);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let records = Arc::new(Tracked::new(self.records.clone()));
        let approvals = Arc::new(Approvals::default());
        let vault = Vault::open(&self.dir).unwrap();
        let mut config = GatewayConfig::new(records.clone(), vault);
        config.approver = approvals.clone();
        config.resolver = Arc::new(Here);
        let gateway = Gateway::new(config);
        runtime.spawn(serve(listener, gateway, approvals, records));
        drop(_inside);
        *running = Some(runtime);
        self.starts.fetch_add(1, Ordering::SeqCst);
    }

    fn kill(&self) {
        if let Some(runtime) = self.running.lock().unwrap().take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    fn client(self: &Arc<Self>, ear: &Arc<Ear>) -> ControlClient {
        self.client_with(ear, Arc::new(NoPrograms))
    }

    fn client_with(self: &Arc<Self>, ear: &Arc<Ear>, programs: Arc<dyn Programs>) -> ControlClient {
        let starter = Arc::clone(self);
        ControlClient::connect(Settings {
            home: self.dir.clone(),
            role: "test".into(),
            start: Box::new(move || {
                drop(starter.gate.lock().unwrap());
                starter.start();
                Ok(())
            }),
            watcher: ear.clone(),
            programs,
        })
        .unwrap()
    }

    fn door(&self, name: &str) -> PathBuf {
        self.dir.join("doors").join(name)
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.records.0.lock().unwrap().iter().map(|(r, _)| r.body.kind()).collect()
    }
}

/// Every name is this machine.
struct Here;

impl gateway::Resolver for Here {
    fn resolve<'a>(&'a self, _host: &'a str) -> gateway::Resolving<'a> {
        Box::pin(async { Ok(vec![std::net::IpAddr::from([127, 0, 0, 1])]) })
    }
}

/// A server that answers everything and counts connections and bytes.
fn counting_server() -> (u16, Arc<AtomicUsize>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let n = stream.read(&mut [0; 4096]).unwrap_or(0);
            counter.fetch_add(1 + n, Ordering::SeqCst);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nyes");
        }
    });
    (port, seen)
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Hears events, and answers questions as told.
#[derive(Default)]
struct Ear {
    events: Mutex<Vec<Event>>,
    questions: Mutex<Vec<Question>>,
    allow: bool,
    /// Answers only what was taken back.
    late: bool,
    taken_back: AtomicUsize,
}

impl Ear {
    fn wait_for(&self, wanted: impl Fn(&Event) -> bool) {
        wait_until("an event", || self.events.lock().unwrap().iter().any(&wanted));
    }

    fn asked(&self) -> usize {
        self.questions.lock().unwrap().len()
    }

    fn taken_back(&self) -> usize {
        self.taken_back.load(Ordering::SeqCst)
    }
}

impl Watcher for Ear {
    fn happened(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    fn ask(&self, question: Question, withdrawn: &Withdrawn) -> Answer {
        self.questions.lock().unwrap().push(question);
        while self.late && !withdrawn.is_set() {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.taken_back.fetch_add(usize::from(self.late), Ordering::SeqCst);
        let by = "owner".to_owned();
        if self.allow { Answer::Allow { by } } else { Answer::Deny { by } }
    }
}

fn grant(home: &Home, session: &str, more: serde_json::Value) -> DoorGrant {
    let mut value = json!({
        "session": session, "agent": "tester", "egress": [], "placeholder": "worth-nothing",
        "default_model": "scripted",
        "models": [{"name": "scripted", "api": "script", "base_url": "", "model": "script",
            "secret": null, "script": home.dir.join("script.toml"), "max_tokens": 100,
            "context_tokens": 1000, "also": [], "fallbacks": [], "price": null}],
    });
    for (key, part) in more.as_object().unwrap() {
        value[key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}

/// One exchange through a door; the answer's bytes, empty when the connection broke.
fn exchange(door: &Path, request: &str) -> String {
    let Ok(mut stream) = UnixStream::connect(door) else { return String::new() };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = Vec::new();
    if stream.write_all(request.as_bytes()).is_ok() {
        let _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn model_request(door: &Path) -> String {
    let body = r#"{"model":"scripted","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
    let len = body.len();
    exchange(
        door,
        &format!(
            "POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {len}\r\n\r\n{body}"
        ),
    )
}

fn rule(port: u16, effect: model::Effect) -> serde_json::Value {
    let host = model::HostName::parse("local.test").unwrap();
    let rule = model::EgressRule {
        effect,
        private: true,
        ask: Some(model::AskTerms { by: "owner".into(), timeout_ms: 20_000 }),
        ..model::EgressRule::allow("agents/tester.toml:7", host, port)
    };
    json!({"egress": [rule]})
}

#[test]
fn a_door_opened_by_order_serves_its_session_until_it_is_dropped() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let socket = home.door("s1.sock");
    let door = client.open_door(grant(&home, "s1", json!({})), &socket).unwrap();
    let turn = TurnId::parse("t1").unwrap();
    door.set_turn(Some(turn.clone())).unwrap();
    let answer = model_request(&socket);
    assert!(answer.contains("scripted words"), "{answer}");
    assert_eq!(door.counts().unwrap()["requests"], 1);
    assert_eq!(client.ping(), Ok(1));
    let asked = |(r, d): &(Record, Durability)| match &r.body {
        Body::ModelRequest { .. } => Some((r.turn.clone(), *d)),
        _ => None,
    };
    let first = home.records.0.lock().unwrap().iter().find_map(asked);
    assert_eq!(first, Some((Some(turn), Durability::Durable)), "{:?}", home.kinds());
    drop(door);
    assert!(!socket.exists());
    assert_eq!(client.ping(), Ok(0), "the gateway has closed it");
    assert!(UnixStream::connect(&socket).is_err());
}

#[test]
fn a_door_that_is_settled_tells_its_final_counts_and_takes_its_relay_along_to_the_next_gateway() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let socket = home.door("s1.sock");
    let door = client.open_door(grant(&home, "s1", json!({})), &socket).unwrap();
    door.only_from(std::process::id()).unwrap();
    let asked = model_request(&socket);
    assert!(asked.contains("scripted words"), "{asked}");
    let counts = door.settle().unwrap();
    assert_eq!((counts["door_connections"], counts["door_unread"]), (1, 0));
    assert_eq!(counts["door_down"], asked.len() as u64);
    drop(door);
    assert!(!socket.exists() && client.ping() == Ok(0));
    // The next gateway knows who alone may connect.
    let door = client.open_door(grant(&home, "s2", json!({})), &socket).unwrap();
    door.only_from(1).unwrap();
    home.kill();
    assert!(model_request(&socket).contains("HTTP/1.1 403 "));
    ear.wait_for(|e| *e == Event::Restarted);
    assert_eq!(door.settle().unwrap()["gateway_restarts"], 1);
}

#[test]
fn a_mistake_in_a_grant_is_told_in_the_words_of_the_gateway() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let mut bad = grant(&home, "s1", json!({}));
    bad.default_model = Some("nobody".into());
    let refused = client.open_door(bad, &home.door("s1.sock")).err().unwrap();
    assert!(refused.to_string().contains("nobody"), "{refused}");
    std::fs::write(home.dir.join("script.toml"), "schema = 1\nwrong = true\n").unwrap();
    let refused = client.open_door(grant(&home, "s1", json!({})), &home.door("s1.sock"));
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("script.toml") && refused.contains('2'), "{refused}");
    assert!(!home.door("s1.sock").exists(), "no socket stays behind");
}

#[test]
fn a_gateway_that_stops_is_started_again_and_finds_its_doors() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let socket = home.door("s1.sock");
    let door = client.open_door(grant(&home, "s1", json!({})), &socket).unwrap();
    let turn = TurnId::parse("t1").unwrap();
    door.set_turn(Some(turn.clone())).unwrap();
    home.kill();
    // It waits in the socket that we kept, and the next gateway answers it.
    assert!(model_request(&socket).contains("scripted words"));
    ear.wait_for(|e| *e == Event::Restarted);
    assert_eq!(home.starts.load(Ordering::SeqCst), 2);
    assert_eq!(door.counts().unwrap()["gateway_restarts"], 1);
    let records = home.records.0.lock().unwrap();
    let turns: Vec<_> = records.iter().map(|(r, _)| r.turn.clone()).collect();
    assert!(turns.iter().all(|t| t.as_ref() == Some(&turn)), "{turns:?}");
}

fn page_request(port: u16) -> String {
    format!(
        "GET http://local.test:{port}/page HTTP/1.1\r\nhost: local.test:{port}\r\n\
         connection: close\r\n\r\n"
    )
}

#[test]
fn while_there_is_no_gateway_no_byte_leaves_and_afterwards_the_same_door_serves() {
    let (port, seen) = counting_server();
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let allowed = grant(&home, "s1", rule(port, model::Effect::Allow));
    let door = client.open_door(allowed, &home.door("1")).unwrap();
    assert!(exchange(door.socket(), &page_request(port)).ends_with("yes"), "the open reference");
    let before = seen.load(Ordering::SeqCst);
    assert!(before > 0);
    let closed = home.gate.lock().unwrap();
    home.kill();
    let (socket, request) = (door.socket().to_owned(), page_request(port));
    let waiting = std::thread::spawn(move || exchange(&socket, &request));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(seen.load(Ordering::SeqCst), before, "a byte left without a gateway");
    assert!(!waiting.is_finished());
    drop(closed);
    assert!(waiting.join().unwrap().ends_with("yes"));
    ear.wait_for(|e| *e == Event::Restarted);
}

#[test]
fn a_gateway_that_keeps_stopping_is_given_up_and_everyone_is_told() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let socket = home.door("s1.sock");
    let door = client.open_door(grant(&home, "s1", json!({})), &socket).unwrap();
    for _ in 0..2 {
        home.kill();
        assert!(client.ping().is_ok(), "started again");
    }
    home.kill();
    let gone = door.set_turn(None).unwrap_err();
    assert!(matches!(&gone, ControlError::Gone { cause } if cause.contains("3 times")), "{gone}");
    ear.wait_for(|e| matches!(e, Event::Failed { cause } if cause.contains("3 times")));
    assert_eq!(home.starts.load(Ordering::SeqCst), 3);
    assert!(client.open_door(grant(&home, "s2", json!({})), &home.door("s2.sock")).is_err());
}

#[test]
fn a_client_that_is_gone_leaves_no_door_and_the_gateway_leaves_with_the_last() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let (first, second) = (home.client(&ear), home.client(&ear));
    assert_eq!(home.starts.load(Ordering::SeqCst), 1, "they share one");
    let door = first.open_door(grant(&home, "s1", json!({})), &home.door("s1.sock")).unwrap();
    let other = second.open_door(grant(&home, "s2", json!({})), &home.door("s2.sock")).unwrap();
    assert_eq!(second.ping(), Ok(2));
    drop(first);
    let until = Instant::now() + Duration::from_secs(10);
    while second.ping() != Ok(1) {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(model_request(other.socket()).contains("scripted words"));
    drop((door, other, second));
    let socket = socket_path(&home.dir);
    let until = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(&socket).is_ok() {
        assert!(Instant::now() < until, "nobody is left, and it stays");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_question_reaches_the_session_s_own_client_and_its_answer_decides() {
    let (port, seen) = counting_server();
    let home = Home::new();
    let (yes, no) = (Arc::new(Ear { allow: true, ..Ear::default() }), Arc::new(Ear::default()));
    let (allows, denies) = (home.client(&yes), home.client(&no));
    let rule = rule(port, model::Effect::Ask);
    let yes_door = allows.open_door(grant(&home, "s1", rule.clone()), &home.door("1")).unwrap();
    let no_door = denies.open_door(grant(&home, "s2", rule), &home.door("2")).unwrap();
    let request = page_request(port);
    let refused = exchange(no_door.socket(), &request);
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert_eq!(seen.load(Ordering::SeqCst), 0, "nothing goes out before a yes");
    assert_eq!(no.questions.lock().unwrap().len(), 1);
    assert_eq!(yes.questions.lock().unwrap().len(), 0, "not its session");
    assert!(exchange(yes_door.socket(), &request).ends_with("yes"));
    let asked = yes.questions.lock().unwrap()[0].clone();
    assert_eq!((asked.session.as_str(), asked.rule.as_str()), ("s1", "agents/tester.toml:7"));
    assert!(asked.summary.contains("/page"), "{asked:?}");
    assert_eq!(decisions(&home), ["deny by owner", "allow by owner"]);
}

fn decisions(home: &Home) -> Vec<String> {
    home.records.0.lock().unwrap().iter().fold(vec![], |mut v, r| {
        if let Body::ApprovalDecided { decision, by, .. } = &r.0.body {
            v.push(format!("{decision} by {by}"));
        }
        v
    })
}

#[test]
fn a_question_nobody_waits_for_is_taken_back_and_answered_for_nothing() {
    let (port, seen) = counting_server();
    let home = Home::new();
    let ear = Arc::new(Ear { allow: true, late: true, ..Ear::default() });
    let client = home.client(&ear);
    let open = |name: &str, terms: serde_json::Value| {
        client.open_door(grant(&home, name, terms), &home.door(name)).unwrap()
    };
    let ask = |socket: &Path| {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(page_request(port).as_bytes()).unwrap();
        stream
    };
    let patient = || rule(port, model::Effect::Ask);
    // Who asked hangs up.
    let door = open("s1", patient());
    let stream = ask(door.socket());
    wait_until("the question", || ear.asked() == 1);
    assert_eq!(ear.taken_back(), 0, "it is waited for");
    drop(stream);
    wait_until("its end", || ear.taken_back() == 1);
    // The session ends.
    let waiting = ask(door.socket());
    wait_until("the question", || ear.asked() == 2);
    drop(door);
    wait_until("its end", || ear.taken_back() == 2);
    drop(waiting);
    // Its time is over.
    let mut hasty = patient();
    hasty["egress"][0]["ask"]["timeout_ms"] = json!(50);
    let door = open("s2", hasty);
    let refused = exchange(door.socket(), &page_request(port));
    assert!(refused.contains("did not answer within"), "{refused}");
    wait_until("its end", || ear.taken_back() == 3);
    // The gateway is gone.
    let door = open("s3", patient());
    let waiting = ask(door.socket());
    wait_until("the question", || ear.asked() == 4);
    home.kill();
    wait_until("its end", || ear.taken_back() == 4);
    ear.wait_for(|e| *e == Event::Restarted);
    drop(waiting);
    // Every one of them was answered yes, too late; the connection stands, and nothing went out.
    client.ping().unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    let decided = decisions(&home);
    assert_eq!(decided[..3], ["withdrawn by ", "withdrawn by ", "timeout by "], "{decided:?}");
    assert!(decided[3..].iter().all(|d| d == "withdrawn by "), "{decided:?}");
}

#[test]
fn a_secret_goes_into_the_pipe_it_is_named_for_on_record_and_only_if_granted() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let sealer = Sealer::open_or_create(&home.dir).unwrap();
    sealer.set("key1", SecretBytes::new(SECRET.into()), &["example.org".into()], 1).unwrap();
    let client = home.client(&ear);
    let granted = grant(&home, "s1", json!({"stdin_secrets": ["key1", "missing"]}));
    let door = client.open_door(granted, &home.door("1")).unwrap();
    let (mut reads, writes) = std::io::pipe().unwrap();
    let bytes = door.deliver("key1", OwnedFd::from(writes)).unwrap();
    let mut got = String::new();
    reads.read_to_string(&mut got).unwrap();
    assert_eq!((got, bytes), (format!("{SECRET}\n"), SECRET.len() as u64 + 1));
    let used = |(r, d): &(Record, Durability)| {
        matches!(&r.body, Body::SecretUsed { secret, .. } if secret == "key1")
            && *d == Durability::Durable
    };
    assert!(home.records.0.lock().unwrap().iter().any(used), "{:?}", home.kinds());
    for (secret, why) in [("missing", "no secret"), ("other", "does not hand over")] {
        let (_reads, writes) = std::io::pipe().unwrap();
        let refused = door.deliver(secret, OwnedFd::from(writes)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let (a_socket, _other) = UnixStream::pair().unwrap();
    let refused = door.deliver("key1", OwnedFd::from(a_socket)).unwrap_err().to_string();
    assert!(refused.contains("pipe only"), "{refused}");
    let everything = serde_json::to_string(
        &home.records.0.lock().unwrap().iter().map(|r| r.0.clone()).collect::<Vec<_>>(),
    );
    assert!(!everything.unwrap().contains(SECRET));
}

/// A server of tools: answers what it is asked, in order, until its input ends.
const SERVER: &str = r#"
say() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
while IFS= read -r line; do
  id=${line#*\"id\":}; id=${id%%[,\}]*}
  case $line in
    *\"initialize\"*) say '{"protocolVersion":"2025-11-25","capabilities":{}}' ;;
    *tools/list*) say '{"tools":[{"name":"add","inputSchema":{"type":"object"}}]}' ;;
    *tools/call*) say '{"content":[{"type":"text","text":"pid '$$'"}]}' ;;
  esac
done
"#;

/// Starts programs as plain children. Only for tests: the product starts them in sandboxes.
#[derive(Default)]
struct Children {
    wanted: Mutex<Vec<String>>,
    alive: Arc<AtomicUsize>,
}

impl Programs for Children {
    fn start(&self, wanted: Wanted, _: &Doors) -> Result<OwnedFd, String> {
        let Wanted { session, agent, server, program, stopped, .. } = wanted;
        self.wanted.lock().unwrap().push(format!("{session} {agent} {server}"));
        if program.command == ["refused"] {
            return Err("it may not run here".into());
        }
        let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
        let (input, output) = (OwnedFd::from(theirs.try_clone().unwrap()), OwnedFd::from(theirs));
        let mut command = Command::new(&program.command[0]);
        command.args(&program.command[1..]).stdin(input).stdout(output);
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let alive = Arc::clone(&self.alive);
        alive.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            alive.fetch_sub(1, Ordering::SeqCst);
            stopped(format!("ended with {:?}", status.code()));
        });
        drop(command);
        Ok(ours.into())
    }
}

fn program(home: &Home, session: &str, command: &[&str]) -> DoorGrant {
    let command: Vec<String> = command.iter().map(ToString::to_string).collect();
    let program = Box::new(model::McpProgram::new(command));
    let reach = model::McpReach::Stdio(program);
    let server = model::McpServer { name: "local".into(), reach, call_ms: None };
    // The pin is not the one of its description, so that a list must be asked for and is enough.
    let tool = json!({"server": "local", "tool": "add", "pin": "00"});
    grant(home, session, json!({"tools": {"grants": [tool], "servers": [server]}}))
}

/// What calling the program's tool gives.
fn tool_call(door: &Path) -> String {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"local__add"}}"#;
    let length = body.len();
    let head = format!("content-type: application/json\r\ncontent-length: {length}");
    let head = format!("host: d\r\nconnection: close\r\n{head}");
    exchange(door, &format!("POST /mcp HTTP/1.1\r\n{head}\r\n\r\n{body}"))
}

#[test]
fn a_program_is_started_by_the_client_of_its_session_and_ends_with_door_and_gateway() {
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let children = Arc::new(Children::default());
    let stranger = home.client(&ear);
    let client = home.client_with(&ear, children.clone());
    let alive = |n: usize| {
        let started = Instant::now();
        while children.alive.load(Ordering::SeqCst) != n {
            assert!(started.elapsed() < Duration::from_secs(10), "{n} are to be alive");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let socket = home.door("1");
    let door = client.open_door(program(&home, "s1", &["sh", "-c", SERVER]), &socket).unwrap();
    for _ in 0..2 {
        let answer = tool_call(&socket);
        assert!(answer.contains("its description changed"), "it was listed: {answer}");
    }
    assert_eq!(*children.wanted.lock().unwrap(), ["s1 tester local"], "one for both calls");
    alive(1);
    home.kill();
    alive(0);
    ear.wait_for(|event| *event == Event::Restarted);
    assert!(tool_call(&socket).contains("its description changed"));
    alive(1);
    drop(door);
    alive(0);

    let refused = client.open_door(program(&home, "s2", &["refused"]), &home.door("2")).unwrap();
    assert!(tool_call(refused.socket()).contains("it may not run here"));
    let dead = client.open_door(program(&home, "s3", &["false"]), &home.door("3")).unwrap();
    let answer = tool_call(dead.socket());
    assert!(answer.contains("ended with Some(1)"), "{answer}");
    let none = stranger.open_door(program(&home, "s4", &["true"]), &home.door("4")).unwrap();
    assert!(tool_call(none.socket()).contains("none can be started here"));

    let server = program(&home, "s5", &["sh", "-c", SERVER]).tools.servers.remove(0);
    let session = model::SessionId::parse("s5").unwrap();
    let agent = model::AgentName::parse("me").unwrap();
    let described = client.describe_mcp(&server, &session, &agent).unwrap();
    assert_eq!((described.len(), described[0].name.as_str()), (1, "add"));
    alive(0);
}

/// Sends raw bytes (and a descriptor) as a client would, and says whether the server hung up.
fn hangs_up(home: &Home, frames: &[&str], fd: Option<OwnedFd>) -> bool {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let mut stream = UnixStream::connect(socket_path(&home.dir)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let bytes: Vec<u8> = frames
        .iter()
        .flat_map(|f| (f.len() as u32).to_le_bytes().into_iter().chain(f.bytes()))
        .collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let parts = [std::io::IoSlice::new(&bytes)];
    rustix::net::sendmsg(&stream, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return true,
            Err(_) => return false,
        }
    }
}

#[test]
fn what_is_no_order_ends_its_connection_and_touches_no_other() {
    const HELLO: &str = r#"{"hello":{"protocol":3,"role":"x"}}"#;
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let client = home.client(&ear);
    let door = client.open_door(grant(&home, "s1", json!({})), &home.door("1")).unwrap();
    let pipe = || Some(OwnedFd::from(std::io::pipe().unwrap().0));
    let ping = r#"{"ping":{"id":1}}"#;
    assert!(!hangs_up(&home, &[HELLO, ping], None), "an order in order is heard");
    // Another client's door has no name here, so it cannot be closed or asked about.
    assert!(!hangs_up(&home, &[HELLO, r#"{"close_door":{"id":1,"door":1}}"#], None));
    let bad: [(&[&str], Option<OwnedFd>); 9] = [
        (&[HELLO, r#"{"started":{"order":1}}"#], pipe()),
        (&["{}"], None),
        (&[ping], None),
        (&[r#"{"hello":{"protocol":9,"role":"x"}}"#], None),
        (&[HELLO, HELLO], None),
        (&[HELLO, "not json"], None),
        (&[HELLO, r#"{"ping":{"id":1,"more":2}}"#], None),
        (&[HELLO, r#"{"deliver":{"id":1,"door":1,"secret":"key1"}}"#], None),
        (&[HELLO, ping], pipe()),
    ];
    for (frames, fd) in bad {
        assert!(hangs_up(&home, frames, fd), "{frames:?}");
    }
    assert!(model_request(door.socket()).contains("scripted words"), "the other one goes on");
    assert_eq!(client.ping(), Ok(1));
}

/// The half of the next test that runs as somebody else.
#[test]
fn foreign_half() {
    let Some(socket) = std::env::var_os("CONTROL_TEST_SOCKET") else { return };
    let mut stream =
        UnixStream::connect(socket).expect("the folder lets anybody in, for this test");
    let hello = br#"{"hello":{"protocol":3,"role":"x"}}"#;
    let mut bytes = (hello.len() as u32).to_le_bytes().to_vec();
    bytes.extend(hello);
    let _ = stream.write_all(&bytes);
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let answered = stream.read(&mut [0; 64]);
    assert!(!matches!(answered, Ok(1..)), "a stranger was answered");
}

#[test]
fn another_user_is_not_heard_and_not_trusted() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root to be somebody else");
        eprintln!("SKIPPED another_user_is_not_heard_and_not_trusted: not root");
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (home, ear) = (Home::new(), Arc::new(Ear::default()));
    let _client = home.client(&ear);
    for folder in [&home.dir, &home.dir.join("run")] {
        open(folder, 0o755);
    }
    open(&socket_path(&home.dir), 0o666);
    let half = |uid: u32| {
        // A copy: the build folder may be closed to others.
        let program = home.dir.join("half");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        open(&program, 0o755);
        Command::new(program)
            .args(["--exact", "foreign_half", "--nocapture"])
            .env("CONTROL_TEST_SOCKET", socket_path(&home.dir))
            .uid(uid)
            .gid(uid)
            .output()
            .unwrap()
    };
    let foreign = half(60_606);
    assert!(foreign.status.success(), "{}", String::from_utf8_lossy(&foreign.stdout));
    assert!(!half(0).status.success(), "the same bytes from its own user are answered");
}
