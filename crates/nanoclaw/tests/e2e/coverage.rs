//! Fifty known operations, and exactly the records that must come of them: none missing, none
//! extra, each under its turn.
//!
//! The list says what is done and what it is to be called on record; nothing of it knows how a
//! sandbox is made. Another backend runs the same list: see [`Backend`].

use crate::lab::{Lab, finish, is_root};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use testkit::{ENGINES, EngineDaemon};

both!(fifty_operations_are_fifty_operations_on_record);

/// Engines of Debian's packages need root; where one is missing it is left out, and fails in CI.
#[test]
fn fifty_operations_in_containers_are_fifty_operations_on_record() {
    if !is_root() {
        eprintln!("SKIPPED fifty operations in containers: an engine needs root");
        return;
    }
    for backend in [DOCKER, PODMAN] {
        let (name, program) = *ENGINES.iter().find(|(name, _)| *name == backend.name).unwrap();
        let Some(program) = EngineDaemon::find(program).or_else(|| testkit::need(program)) else {
            continue;
        };
        let _engine = EngineDaemon::start(name, &program).unwrap();
        run(&Lab::mine(name), &backend);
    }
}

/// Where the list runs.
struct Backend {
    name: &'static str,
    /// What the agent file's `[sandbox]` must say for it.
    sandbox: &'static str,
    /// What this backend's records are not, by its own documents: a record that is expected, and
    /// what stands in its place, or nothing.
    differs: fn(&str) -> Option<Option<String>>,
}

const NATIVE: Backend = Backend { name: "native", sandbox: "", differs: |_| None };
const DOCKER: Backend =
    Backend { name: "docker", sandbox: "backend = \"docker\"", differs: of_containers };
const PODMAN: Backend =
    Backend { name: "podman", sandbox: "backend = \"podman\"", differs: of_containers };

/// Who the program is in containers of root's engine, which maps no ids (`docs/backends.md`).
const CONTAINER_UID: u32 = 1_879_048_191;

/// Kinds of sockets are refused by the engine's copy of the filter, which reports nothing
/// (`docs/witness.md`).
fn of_containers(record: &str) -> Option<Option<String>> {
    record.starts_with("refused AF_PACKET").then_some(None)
}

fn fifty_operations_are_fifty_operations_on_record(lab: &Lab) {
    run(lab, &NATIVE);
}

/// One operation: a call of the agent, and what must be on record of it beside the call.
struct Op {
    tool: &'static str,
    arguments: Value,
    ok: bool,
    records: Vec<String>,
}

fn op(tool: &'static str, arguments: Value, ok: bool, records: &[&str]) -> Op {
    Op { tool, arguments, ok, records: records.iter().map(|r| (*r).to_owned()).collect() }
}

/// A command, with the programs that it executes beside its shell and what becomes of files.
fn bash(command: &str, ok: bool, executed: &[&str], others: &[String]) -> Op {
    let shell = format!("/bin/bash -c {command}");
    let all = std::iter::once(shell.as_str()).chain(executed.iter().copied());
    let mut records: Vec<String> =
        all.flat_map(|argv| [format!("exec {argv}"), "image".to_owned()]).collect();
    records.extend(others.iter().cloned());
    Op { tool: "bash", arguments: json!({"command": command}), ok, records }
}

/// As the record of a file has it.
fn file(act: &str, path: &str, contents: &str) -> String {
    let digest = sha256(contents);
    format!("file {act} {path} file {} {}", contents.len(), &digest[..8])
}

fn sha256(text: &str) -> String {
    audit::merkle::sha256(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

const TURNS: usize = 5;

/// Turn by turn, step by step; the calls of a step run side by side.
fn operations(port: u16) -> [Vec<Vec<Op>>; TURNS] {
    [own_tools(), commands_on_files(), executions(), egress(port), mistakes()]
}

fn own_tools() -> Vec<Vec<Op>> {
    let write = |path: &str, content: &str, records: &[&str]| {
        op("write_file", json!({"path": path, "content": content}), true, records)
    };
    let one = file("created", "/workspace/a.txt", "alpha\n");
    let two = file("created", "/workspace/d/b.txt", "beta\n");
    let mount = file("created", "/mnt/rw/c.txt", "gamma\n");
    let edited = file("changed", "/mnt/rw/given.txt", "taken\n");
    let hostile = file("created", "/workspace/\\x5cx\\x0a\\x1b[31m", "!\n");
    let side = ["p", "q"].map(|n| file("created", &format!("/workspace/{n}"), n));
    vec![
        vec![write("a.txt", "alpha\n", &[&one])],
        vec![write("d/b.txt", "beta\n", &["file created /workspace/d folder 0 -", &two])],
        vec![op("read_file", json!({"path": "a.txt"}), true, &[])],
        vec![op("glob", json!({"pattern": "**/*.txt"}), true, &[])],
        vec![op("grep", json!({"pattern": "alpha"}), true, &[])],
        vec![write("/mnt/rw/c.txt", "gamma\n", &[&mount])],
        vec![op(
            "edit_file",
            json!({"path": "/mnt/rw/given.txt", "old_string": "given", "new_string": "taken"}),
            true,
            &[&edited],
        )],
        vec![op("read_file", json!({"path": "/mnt/ro/x"}), true, &[])],
        vec![op("write_file", json!({"path": "/mnt/ro/x", "content": "no"}), false, &[])],
        vec![write("\\x\n\u{1b}[31m", "!\n", &[&hostile])],
        vec![write("p", "p", &[&side[0]]), write("q", "q", &[&side[1]])],
        vec![write("/tmp/unseen", "not on a mount", &[])],
    ]
}

fn commands_on_files() -> Vec<Vec<Op>> {
    let gone = |path: &str, bytes: u64| format!("file deleted {path} file {bytes} -");
    let simple = |command: &str, records: &[String]| vec![bash(command, true, &[command], records)];
    let link = &sha256("a.txt")[..8];
    vec![
        simple(
            "mv d/b.txt d/e.txt",
            &[gone("/workspace/d/b.txt", 5), file("created", "/workspace/d/e.txt", "beta\n")],
        ),
        simple("rm p", &[gone("/workspace/p", 1)]),
        simple("ln -s a.txt l", &[format!("file created /workspace/l link 5 {link}")]),
        simple("chmod 600 q", &[file("changed", "/workspace/q", "q")]),
        simple("mkdir m", &["file created /workspace/m folder 0 -".into()]),
        simple("cp a.txt /mnt/rw/copy", &[file("created", "/mnt/rw/copy", "alpha\n")]),
        simple("rm /mnt/rw/old", &[gone("/mnt/rw/old", 4)]),
        simple("mkfifo /mnt/rw/pipe", &["file created /mnt/rw/pipe pipe 0 -".into()]),
        vec![bash("echo x > e", true, &[], &[file("created", "/workspace/e", "x\n")])],
        vec![bash(
            "echo y >> a.txt",
            true,
            &[],
            &[file("changed", "/workspace/a.txt", "alpha\ny\n")],
        )],
        vec![bash("echo no > /mnt/ro/x", false, &[], &[])],
        vec![bash(
            "printf '#!/bin/sh\\nexit 0\\n' > s.sh; chmod 755 s.sh",
            true,
            &["chmod 755 s.sh"],
            &[file("created", "/workspace/s.sh", "#!/bin/sh\nexit 0\n")],
        )],
    ]
}

fn executions() -> Vec<Vec<Op>> {
    vec![
        vec![bash("/bin/true", true, &["/bin/true"], &[])],
        vec![bash("/bin/echo two words", true, &["/bin/echo two words"], &[])],
        vec![bash("/bin/echo a | /bin/cat", true, &["/bin/echo a", "/bin/cat"], &[])],
        vec![bash("env -i /bin/true", true, &["env -i /bin/true", "/bin/true"], &[])],
        vec![bash("sh -c 'exec /bin/false'", false, &["sh -c exec /bin/false", "/bin/false"], &[])],
        vec![bash("./s.sh", true, &["./s.sh"], &[])],
        vec![bash("no-such-program", false, &[], &[])],
        vec![
            bash("/bin/true", true, &["/bin/true"], &[]),
            bash("/bin/false", false, &["/bin/false"], &[]),
        ],
        vec![bash("cd /tmp && /bin/touch here", true, &["/bin/touch here"], &[])],
    ]
}

fn egress(port: u16) -> Vec<Vec<Op>> {
    let ask = |words: &str, ok: bool, others: &[&str]| {
        let command = format!("python3 /mnt/ro/get.py {words}");
        let others: Vec<String> = others.iter().map(|r| (*r).to_owned()).collect();
        vec![bash(&command, ok, &[&command], &others)]
    };
    let at = |path: &str| format!("http://localhost:{port}{path}");
    let let_out = |method: &str, path: &str, status: u16, sent: u64| {
        [
            format!("egress {method} localhost {path}"),
            "egress pinned localhost".to_owned(),
            format!("egress ended {status}, {sent} sent"),
        ]
    };
    let (get, post, missing) = (
        let_out("GET", "/ok", 200, 0),
        let_out("POST", "/ok", 200, 100),
        let_out("GET", "/ok/missing", 404, 0),
    );
    let all_of = |words: String, all: &[String]| {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        ask(&words, true, &all)
    };
    let page = ["host tool web_fetch".to_owned(), "host tool ended true".to_owned()];
    let page: Vec<&str> = page.iter().chain(&get).map(String::as_str).collect();
    let secret = format!("egress refused http://localhost:{port} /secret");
    vec![
        all_of(format!("GET {}", at("/ok")), &get),
        all_of(format!("POST {}", at("/ok")), &post),
        all_of(format!("GET {}", at("/ok/missing")), &missing),
        all_of(format!("GET {}", at("/secret")), std::slice::from_ref(&secret)),
        ask("GET http://example.com/x", true, &["egress refused http://example.com /x"]),
        ask("dial 192.0.2.1", false, &["refused 192.0.2.1:443 ENETUNREACH"]),
        ask("raw", false, &["refused AF_PACKET, raw EPERM"]),
        ask("name unknown.example", false, &["egress refused unknown.example"]),
        vec![op("web_fetch", json!({"url": at("/ok")}), true, &page)],
        vec![op(
            "web_fetch",
            json!({"url": at("/secret")}),
            false,
            &["host tool web_fetch", "host tool ended false", &secret],
        )],
    ]
}

fn mistakes() -> Vec<Vec<Op>> {
    vec![
        vec![op("read_file", json!({"path": "not-there"}), false, &[])],
        vec![op("read_file", json!({"path": "d"}), false, &[])],
        vec![op(
            "edit_file",
            json!({"path": "a.txt", "old_string": "nowhere", "new_string": "x"}),
            false,
            &[],
        )],
        vec![op("no_such_tool", json!({"a": 1}), false, &[])],
        vec![op("bash", json!({"command": 1}), false, &[])],
    ]
}

/// What an operation leaves beside what is particular to it.
fn expected(op: &Op) -> Vec<String> {
    let mut all = vec![
        format!("call {} {}", op.tool, op.arguments),
        format!("call ended {} {}", op.tool, op.ok),
    ];
    all.extend(op.records.iter().cloned());
    all
}

/// What must stand under a turn.
fn of_turn(number: usize, steps: &[Vec<Op>]) -> Vec<String> {
    let mut all: Vec<String> = steps.iter().flatten().flat_map(expected).collect();
    for _ in 0..=steps.len() {
        all.extend(["model asked".to_owned(), "model answered 200".to_owned()]);
    }
    let count = |act: &str, mount: &str| {
        let begins = format!("file {act} {mount}/");
        all.iter().filter(|r| r.starts_with(&begins)).count()
    };
    let mut manifest = String::from("manifest turn");
    for mount in ["/workspace", "/home/agent", "/mnt/rw"] {
        let [created, changed, deleted] =
            ["created", "changed", "deleted"].map(|act| count(act, mount));
        manifest.push_str(&format!(", {mount} +{created} ~{changed} -{deleted}"));
    }
    // The agent keeps its conversation there.
    let (own, own_count): (&[&str], _) = match number {
        0 => (&["created {}", "created {}/conversation.jsonl"], "+2 ~0"),
        _ => (&["changed {}/conversation.jsonl"], "+0 ~1"),
    };
    all.extend(own.iter().map(|o| format!("file {}", o.replace("{}", "/home/agent/.nanoclaw"))));
    let manifest = manifest.replace("/home/agent +0 ~0", &format!("/home/agent {own_count}"));
    all.extend([manifest, "turn began".into(), "turn ended done".into(), "message out".into()]);
    all
}

/// What a record is in the words of the list; a record of changes is one for each file.
fn told(record: &Value) -> Vec<String> {
    let text = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
    let number = |name: &str| record[name].as_u64().unwrap_or_default();
    let request = |record: &Value| {
        let line = &record["request"];
        let of = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        (of("method"), of("path"))
    };
    let one = match record["kind"].as_str().unwrap() {
        "files_changed" => {
            return record["changes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| change(record, c))
                .collect();
        }
        "files_manifest" => manifest(record),
        "process_exec" => format!("exec {}", words(&record["argv"])),
        "process_image" => "image".into(),
        "connect_refused" => format!("refused {} {}", text("target"), text("errno")),
        "message" => format!("message {}", text("direction")),
        "turn_started" => "turn began".into(),
        "turn_finished" => format!("turn ended {}", text("outcome")),
        "model_request" => "model asked".into(),
        "model_response" => format!("model answered {}", number("status")),
        "tool_called" => {
            let arguments: Value = serde_json::from_str(&text("arguments")).unwrap();
            format!("call {} {arguments}", text("tool"))
        }
        "tool_finished" => format!("call ended {} {}", text("tool"), record["ok"]),
        "egress_intent" => {
            let (method, path) = request(record);
            format!("egress {method} {} {path}", text("host"))
        }
        "egress_pinned" => format!("egress pinned {}", text("host")),
        "egress_result" => format!("egress ended {}, {} sent", number("status"), number("sent")),
        "egress_refused" => {
            let (_, path) = request(record);
            format!("egress refused {} {path}", text("target")).trim_end().to_owned()
        }
        "host_tool_called" => format!("host tool {}", text("tool")),
        "host_tool_finished" => format!("host tool ended {}", record["ok"]),
        other => other.into(),
    };
    vec![one]
}

fn words(argv: &Value) -> String {
    let all = argv.as_array().unwrap().iter().map(|a| a.as_str().unwrap());
    all.collect::<Vec<_>>().join(" ")
}

fn change(record: &Value, c: &Value) -> String {
    let of = |name: &str| c[name].as_str().unwrap_or("-").to_owned();
    let (act, mount) = (of("act"), record["mount"].as_str().unwrap());
    let place = format!("file {act} {mount}/{}", of("path"));
    if mount == "/home/agent" {
        return place;
    }
    // Of what is gone the digest is known if it changed in this session.
    let digest = if act == "deleted" { "-".into() } else { of("sha256") };
    let digest: String = digest.chars().take(8).collect();
    assert_eq!(c["unread"], Value::Null, "{c}");
    format!("{place} {} {} {digest}", of("sort"), c["bytes"])
}

fn manifest(record: &Value) -> String {
    let mut all = format!("manifest {}", record["after"].as_str().unwrap());
    for m in record["mounts"].as_array().unwrap() {
        assert_eq!((&m["missed"], &m["unlisted"], &m["unread"]), (&0.into(), &0.into(), &0.into()));
        all.push_str(&format!(
            ", {} +{} ~{} -{}",
            m["mount"].as_str().unwrap(),
            m["created"],
            m["changed"],
            m["deleted"]
        ));
    }
    all
}

/// Speaks to the door, or past it.
const GET: &str = "
import socket, sys
what, where = sys.argv[1], sys.argv[-1]
if what == 'dial': socket.create_connection((where, 443), 5)
elif what == 'raw': socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
elif what == 'name': socket.getaddrinfo(where, 443)
else:
    body = b'x' * 100 if what == 'POST' else b''
    host = where.split('/')[2]
    s = socket.create_connection(('127.0.0.1', 3128), 5)
    head = [f'{what} {where} HTTP/1.1', f'Host: {host}', 'Connection: close',
            f'Content-Length: {len(body)}', '', '']
    s.sendall('\\r\\n'.join(head).encode() + body)
    while s.recv(65536): pass
";

/// A server whose path `/ok` is there, for as long as the tests run.
fn site() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One that hangs up is the gateway's affair.
            drop(answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().to_ascii_lowercase().strip_prefix("content-length:") {
            Some(n) => length = n.trim().parse().unwrap_or(0),
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let status = if first.contains("/ok ") { "200 OK" } else { "404 Not Found" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\
         Connection: close\r\n\r\nhello"
    )
}

/// The script that makes the agent do it all.
fn script(turns: &[Vec<Vec<Op>>]) -> String {
    let mut text = String::from("schema = 1\n");
    for (number, steps) in turns.iter().enumerate() {
        text.push_str(&format!("[[turn]]\nwhen = \"job {number}\"\n"));
        for step in steps {
            text.push_str("[[turn.step]]\n");
            for op in step {
                let table: Vec<String> = op
                    .arguments
                    .as_object()
                    .unwrap()
                    .iter()
                    // What JSON writes for texts and numbers TOML reads.
                    .map(|(name, value)| format!("{name} = {value}"))
                    .collect();
                let table = table.join(", ");
                text.push_str(&format!(
                    "[[turn.step.call]]\ntool = \"{}\"\narguments = {{ {table} }}\n",
                    op.tool
                ));
            }
        }
        text.push_str("[[turn.step]]\ntext = \"done\"\n");
    }
    text
}

fn prepare(lab: &Lab, backend: &Backend, turns: &[Vec<Vec<Op>>], port: u16) {
    let (rw, ro) = (lab.person().join("rw"), lab.person().join("ro"));
    for (path, text) in [
        (rw.join("given.txt"), "given\n"),
        (rw.join("old"), "old\n"),
        (ro.join("x"), "x\n"),
        (ro.join("get.py"), GET),
    ] {
        lab.file(&path, text);
    }
    let home = lab.home();
    lab.file(
        &home.join("nanoclaw.toml"),
        "schema = 1\n[models.m]\napi = \"script\"\nscript = \"s.toml\"\n",
    );
    lab.file(&home.join("s.toml"), &script(turns));
    let mount = |name: &str, access: &str| {
        format!(
            "[[mounts]]\nsource = \"~/{name}\"\ntarget = \"/mnt/{name}\"\naccess = \"{access}\"\n"
        )
    };
    let agent = format!(
        "schema = 1\n[tools]\nallow = [\"bash\", \"read_file\", \"write_file\", \"edit_file\", \
         \"glob\", \"grep\", \"web_fetch\"]\n[sandbox]\n{}\n{}{}[[egress]]\nhost = \"localhost\"\n\
         port = {port}\nprivate = true\nmethods = [\"GET\", \"POST\"]\n\
         paths = [\"/ok\", \"/ok/*\"]\n",
        backend.sandbox,
        mount("rw", "write"),
        mount("ro", "read")
    );
    lab.file(&home.join("agents/assistant.toml"), &agent);
    if backend.name != NATIVE.name {
        for path in [rw.join("given.txt"), rw.join("old"), rw] {
            std::os::unix::fs::chown(path, Some(CONTAINER_UID), Some(CONTAINER_UID)).unwrap();
        }
    }
}

/// The session's records by turn; those outside of any under the empty name.
fn on_record(lab: &Lab) -> (Vec<String>, BTreeMap<String, Vec<Value>>) {
    let text = lab.run(["audit", "show", "--json"]).ok();
    let (mut order, mut all) = (Vec::new(), BTreeMap::<String, Vec<Value>>::new());
    for line in text.lines() {
        let body = serde_json::from_str::<Value>(line).unwrap()["unmapped"].take();
        let turn = body["turn"].as_str().unwrap_or_default().to_owned();
        if !turn.is_empty() && !order.contains(&turn) {
            order.push(turn.clone());
        }
        all.entry(turn).or_default().push(body);
    }
    (order, all)
}

/// What is only in one of both.
fn differences(
    what: &str,
    backend: &Backend,
    wanted: Vec<String>,
    found: &[Value],
) -> Option<String> {
    let mut wanted: Vec<String> = wanted
        .into_iter()
        .filter_map(|record| (backend.differs)(&record).unwrap_or(Some(record)))
        .collect();
    let mut found: Vec<String> = found.iter().flat_map(told).collect();
    wanted.sort();
    found.sort();
    let (mut missing, mut extra) = (wanted.clone(), found.clone());
    for one in &found {
        missing.iter().position(|m| m == one).map(|at| missing.remove(at));
    }
    for one in &wanted {
        extra.iter().position(|m| m == one).map(|at| extra.remove(at));
    }
    let same = missing.is_empty() && extra.is_empty();
    let text = format!("{}, {what}: missing {missing:#?}, extra {extra:#?}", backend.name);
    (!same).then_some(text)
}

fn run(lab: &Lab, backend: &Backend) {
    if testkit::need("python3").is_none() {
        return;
    }
    let port = site();
    let turns = operations(port);
    let count: usize = turns.iter().flatten().map(Vec::len).sum();
    assert_eq!(count, 50);
    prepare(lab, backend, &turns, port);
    let input: String = (0..TURNS).map(|n| format!("job {n}\n")).collect();
    let mut chat = lab.nanoclaw(["chat"]);
    if backend.name != NATIVE.name {
        let socket = format!("unix://{}", EngineDaemon::socket(backend.name).display());
        chat.env("DOCKER_HOST", &socket).env("CONTAINER_HOST", &socket);
    }
    let ran = finish(chat, format!("{input}/quit\n").as_bytes());
    assert!(ran.status.success(), "{ran}");
    let (order, all) = on_record(lab);
    assert_eq!(order.len(), TURNS, "{ran}");
    let mut found: Vec<String> = turns
        .iter()
        .enumerate()
        .zip(&order)
        .filter_map(|((number, steps), turn)| {
            let what = format!("turn {number}");
            differences(&what, backend, of_turn(number, steps), &all[turn])
        })
        .collect();
    let mut outside: Vec<String> = (0..TURNS).map(|_| "message in".to_owned()).collect();
    outside.extend(
        [
            // Its first session: all that it is granted is new.
            "policy_changed",
            "session_opened",
            "sandbox_started",
            "exec nanoclaw __agent",
            "image",
            "manifest start, /workspace +0 ~0 -0, /home/agent +0 ~0 -0, /mnt/rw +0 ~0 -0",
            "manifest end, /workspace +0 ~0 -0, /home/agent +0 ~0 -0, /mnt/rw +0 ~0 -0",
            "sandbox_stopped",
            "session_closed",
        ]
        .map(str::to_owned),
    );
    found.extend(differences("outside of turns", backend, outside, &all[""]));
    assert!(found.is_empty(), "{}\n{ran}", found.join("\n"));
    let closed = all[""].iter().find(|r| r["kind"] == "session_closed").unwrap();
    let of = |name: &str| closed["counts"][name].as_u64();
    assert_eq!(
        (of("observers_compared"), of("observers_disagree")),
        (Some(11), Some(0)),
        "{closed}"
    );
    assert!(Path::new(&lab.person().join("rw/pipe")).exists());
    lab.run(["audit", "verify"]).ok();
}
