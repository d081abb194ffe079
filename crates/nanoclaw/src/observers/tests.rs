//! Honest sessions of every shape have no finding; each lie and each gap has its own.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::{Compared, Known, Line, NAMED_MAX, compare, read_within};
use model::{
    Body, FileAct, FileChange, LimitState, MountSeen, RecordSinkExt, SessionId, Sha256Hex,
    ToolGrant, TurnId, WallState,
};
use sandbox::OperationCounts;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use testkit::{Rng, TempDir};

/// A session as it is put on record.
#[derive(Clone, Default)]
struct Session {
    lines: Vec<Line>,
    next: u64,
    executed: u64,
    turn: Option<TurnId>,
    changed: Vec<FileChange>,
}

fn digest() -> Sha256Hex {
    Sha256Hex("ab".repeat(32))
}

impl Session {
    fn begin() -> Self {
        let mut session = Self::default();
        session.exec(&["nanoclaw", "__agent"]);
        session
    }

    fn say(&mut self, body: Body) -> u64 {
        self.next += 1;
        self.lines.push(Line { index: self.next, turn: self.turn.clone(), body });
        self.next
    }

    fn exec(&mut self, argv: &[&str]) {
        self.executed += 1;
        let (exec, pid) = (self.executed, 7);
        self.say(Body::ProcessExec {
            exec,
            pid,
            path: format!("/bin/{}", argv[0]),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            cwd: None,
            whole: true,
            racy: true,
            server: None,
            unread: None,
        });
        self.say(Body::ProcessImage { exec, pid, image: Some("x".into()), unseen: None });
    }

    fn called(&mut self, call: &str, tool: &str, arguments: &serde_json::Value) {
        self.say(Body::ToolCalled {
            call: call.into(),
            tool: tool.into(),
            arguments: arguments.to_string(),
            arguments_sha256: digest(),
        });
    }

    fn finished(&mut self, call: &str, ok: bool) {
        self.say(Body::ToolFinished {
            call: call.into(),
            tool: "any".into(),
            ok,
            bytes: 1,
            summary: String::new(),
        });
    }

    fn egress(&mut self, received: u64) {
        self.say(Body::EgressIntent {
            host: "h".into(),
            port: 443,
            rule: "r".into(),
            address: None,
            request: None,
            secret: None,
        });
        self.say(Body::EgressResult {
            host: "h".into(),
            port: 443,
            status: Some(200),
            sent: 5,
            sent_head: 1,
            received,
            sent_sha256: None,
            received_sha256: None,
            duration_ms: 1,
            error: None,
        });
    }

    fn host_tool(&mut self, tool: &str) {
        self.say(Body::HostToolCalled {
            call: "host-1".into(),
            server: ToolGrant::OWN.into(),
            tool: tool.into(),
            arguments: "{}".into(),
            arguments_sha256: digest(),
        });
        self.egress(40);
        self.say(Body::HostToolFinished {
            call: "host-1".into(),
            server: ToolGrant::OWN.into(),
            tool: tool.into(),
            ok: true,
            bytes: 30,
            sha256: digest(),
            duration_ms: 1,
            error: None,
        });
    }

    fn begin_turn(&mut self, number: usize) {
        self.turn = Some(TurnId::parse(&format!("t{number}")).unwrap());
    }

    fn end_turn(&mut self) {
        let changes = std::mem::take(&mut self.changed);
        let created = changes.len() as u64;
        if created > 0 {
            let mount = "/workspace".to_owned();
            self.say(Body::FilesChanged { mount, changes, server: None });
        }
        let seen = MountSeen { mount: "/workspace".into(), created, ..MountSeen::default() };
        self.say(Body::FilesManifest {
            after: "turn".into(),
            mounts: vec![seen],
            read_bytes: 0,
            duration_ms: 0,
            running: true,
            server: None,
        });
        self.turn = None;
    }

    /// One thing that an agent does, truly told.
    fn act(&mut self, rng: &mut Rng, number: usize) {
        let call = format!("c{number}");
        match rng.below(5) {
            0 | 1 => {
                let command = format!("make {number}");
                let arguments = serde_json::json!({"command": command});
                // The kernel's word can be there first.
                let first = rng.below(3) == 0;
                if first {
                    self.exec(&["bash", "-c", &command]);
                }
                self.called(&call, "bash", &arguments);
                if !first {
                    self.exec(&["bash", "-c", &command]);
                }
                for _ in 0..rng.below(4) {
                    self.exec(&["cc", "x.c"]);
                }
                if rng.below(3) == 0 {
                    self.egress(rng.below(1_000) as u64);
                }
                self.finished(&call, rng.below(3) > 0);
            }
            2 => {
                let path = format!("d/{number}");
                self.called(&call, "write_file", &serde_json::json!({"path": &path}));
                self.changed.push(change(&path));
                self.finished(&call, true);
            }
            3 => {
                self.called(&call, "read_file", &serde_json::json!({"path": "x"}));
                self.finished(&call, rng.below(2) == 0);
            }
            _ => {
                self.called(&call, "web_fetch", &serde_json::json!({"url": "x"}));
                self.host_tool("web_fetch");
                self.finished(&call, true);
            }
        }
    }

    fn honest(rng: &mut Rng) -> Self {
        let mut session = Self::begin();
        for turn in 0..1 + rng.below(4) {
            session.begin_turn(turn);
            for number in 0..rng.below(8) {
                session.act(rng, turn * 100 + number);
            }
            session.end_turn();
        }
        session
    }

    /// The gateway's counts and the kernel's, as they are when nobody lies.
    fn counts(&self) -> (BTreeMap<String, u64>, OperationCounts) {
        let (mut down, mut up, mut operations) = (0, 0, OperationCounts::default());
        for line in &self.lines {
            match &line.body {
                Body::EgressResult { received, sent, .. } => {
                    (down, up) = (down + received, up + sent)
                }
                Body::HostToolFinished { bytes, .. } => down += bytes,
                Body::ProcessExec { .. } => operations.executions += 1,
                _ => {}
            }
        }
        let all = [("bytes_down", down), ("bytes_up", up), ("tokens_in", 0), ("tokens_out", 0)];
        (all.map(|(name, n)| (name.to_owned(), n)).into(), operations)
    }

    fn compared(&self, counts: &BTreeMap<String, u64>, operations: OperationCounts) -> Compared {
        let operations = Some(operations);
        compare(&self.lines, &Known { counts: Some(counts), operations, told: true, late: false })
    }

    /// Compared with what was counted of it as it now is.
    fn settled(&self) -> Compared {
        let (counts, operations) = self.counts();
        self.compared(&counts, operations)
    }

    fn drop_lines(&mut self, which: impl Fn(&Line) -> bool) -> usize {
        let before = self.lines.len();
        self.lines.retain(|line| !which(line));
        before - self.lines.len()
    }
}

fn change(path: &str) -> FileChange {
    FileChange {
        path: path.into(),
        act: FileAct::Created,
        sort: "file".into(),
        bytes: 1,
        mode: "0644".into(),
        sha256: None,
        unread: None,
        racy: false,
    }
}

fn kinds(compared: &Compared) -> BTreeSet<&str> {
    let kind = |body: &'_ Body| match body {
        Body::ObserversDisagree { finding, .. } => match &**finding {
            "records_missing" => "records_missing",
            "bytes_disagree" => "bytes_disagree",
            "execution_without_call" => "execution_without_call",
            "call_without_effect" => "call_without_effect",
            "host_tool_without_call" => "host_tool_without_call",
            "egress_without_call" => "egress_without_call",
            "not_compared" => "not_compared",
            other => panic!("unknown: {other}"),
        },
        other => panic!("no finding: {other:?}"),
    };
    compared.findings.iter().map(kind).collect()
}

const ROUNDS: usize = 300;

#[test]
fn an_honest_session_of_any_shape_has_no_finding() {
    let mut rng = Rng::from_env();
    for _ in 0..ROUNDS {
        let session = Session::honest(&mut rng);
        let compared = session.settled();
        assert_eq!(compared.findings, Vec::new(), "{:#?}", session.lines);
        assert!((10..=11).contains(&compared.relations), "{compared:?}");
    }
}

#[test]
fn a_record_that_is_missing_is_a_finding_whichever_it_is() {
    let mut rng = Rng::from_env();
    let mut tried = 0;
    for _ in 0..ROUNDS {
        let honest = Session::honest(&mut rng);
        let (counts, operations) = honest.counts();
        let mut less = honest.clone();
        let gone = less.lines.remove(rng.below(less.lines.len()));
        let counted = match gone.body {
            Body::ProcessExec { .. } | Body::ProcessImage { .. } => "records_missing",
            // Of the others none is counted by anybody else.
            _ => continue,
        };
        tried += 1;
        let compared = less.compared(&counts, operations);
        assert!(kinds(&compared).contains(counted), "{gone:?}");
    }
    assert!(tried > 20, "{tried}");
}

#[test]
fn an_execution_that_no_call_explains_is_a_finding() {
    let mut rng = Rng::from_env();
    for round in 0..ROUNDS {
        let mut session = Session::honest(&mut rng);
        if rng.below(2) == 0 {
            // In a turn, behind a call that is over.
            session.begin_turn(90);
            session.act(&mut rng, 9_000);
        }
        session.exec(&["curl", "evil"]);
        session.turn = None;
        let compared = session.settled();
        assert_eq!(kinds(&compared), ["execution_without_call"].into(), "{round}");
        assert_eq!(compared.disagreements, 1);
        let Body::ObserversDisagree { what, records, told_by, not_by, .. } = &compared.findings[0]
        else {
            panic!("{compared:?}")
        };
        assert_eq!((&**told_by, &**not_by, records.len()), ("kernel", "agent", 1));
        assert!(what.starts_with("/bin/curl was executed"), "{what}");
    }
}

#[test]
fn a_call_that_is_kept_back_leaves_its_executions_unexplained() {
    let mut rng = Rng::from_env();
    let mut tried = 0;
    for _ in 0..ROUNDS {
        let mut session = Session::honest(&mut rng);
        let bash =
            |line: &&Line| matches!(&line.body, Body::ToolCalled { tool, .. } if tool == "bash");
        let Some(line) = session.lines.iter().find(bash) else { continue };
        let Body::ToolCalled { call: id, .. } = line.body.clone() else { continue };
        session.drop_lines(|line| match &line.body {
            Body::ToolCalled { call, .. } | Body::ToolFinished { call, .. } => *call == id,
            _ => false,
        });
        tried += 1;
        assert!(kinds(&session.settled()).contains("execution_without_call"));
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn a_call_that_caused_nothing_is_a_finding() {
    let cases: [(&str, serde_json::Value); 3] = [
        ("bash", serde_json::json!({"command": "make it so"})),
        ("write_file", serde_json::json!({"path": "/workspace/./d/../claimed"})),
        ("web_fetch", serde_json::json!({"url": "x"})),
    ];
    let mut rng = Rng::from_env();
    for (tool, arguments) in cases {
        for ok in [true, false] {
            let mut session = Session::honest(&mut rng);
            session.begin_turn(90);
            // Something of another name does not do.
            session.called("c1", "bash", &serde_json::json!({"command": "other"}));
            session.exec(&["bash", "-c", "other"]);
            session.finished("c1", true);
            session.called("c2", tool, &arguments);
            session.changed.push(change("d/claimed-not"));
            session.finished("c2", ok);
            session.end_turn();
            let wanted: BTreeSet<&str> = ok.then_some("call_without_effect").into_iter().collect();
            assert_eq!(kinds(&session.settled()), wanted, "{tool} {ok}");
        }
    }
}

#[test]
fn what_went_out_or_was_called_without_a_word_is_a_finding() {
    let mut rng = Rng::from_env();
    let mut session = Session::honest(&mut rng);
    session.begin_turn(90);
    session.host_tool("web_fetch");
    let wanted = ["egress_without_call", "host_tool_without_call"];
    assert_eq!(kinds(&session.settled()), wanted.into());
    let mut session = Session::honest(&mut rng);
    session.begin_turn(90);
    session.called("c1", "read_file", &serde_json::json!({"path": "x"}));
    session.egress(1);
    session.finished("c1", true);
    session.end_turn();
    session.egress(1);
    let compared = session.settled();
    assert_eq!((kinds(&compared), compared.disagreements), (["egress_without_call"].into(), 2));
}

#[test]
fn one_byte_that_does_not_add_up_is_a_finding() {
    let mut rng = Rng::from_env();
    let mut session = Session::honest(&mut rng);
    session.begin_turn(90);
    session.called("c1", "bash", &serde_json::json!({"command": "get"}));
    session.exec(&["bash", "-c", "get"]);
    session.egress(100);
    session.finished("c1", true);
    session.end_turn();
    let (counts, operations) = session.counts();
    for (name, less) in
        [("bytes_down", true), ("bytes_down", false), ("bytes_up", true), ("tokens_in", false)]
    {
        let mut counts = counts.clone();
        let count = counts.get_mut(name).unwrap();
        *count = if less { *count - 1 } else { *count + 1 };
        let compared = session.compared(&counts, operations);
        assert_eq!(kinds(&compared), ["bytes_disagree"].into(), "{name} {less}");
    }
}

#[test]
fn what_cannot_be_judged_is_not_compared_and_no_finding() {
    let mut rng = Rng::from_env();
    for _ in 0..50 {
        let mut session = Session::honest(&mut rng);
        session.exec(&["curl", "evil"]);
        session.egress(1);
        let (mut counts, operations) = session.counts();
        counts.insert("gateway_restarts".into(), 1);
        counts.insert("bytes_down".into(), 0);
        let known = Known { counts: Some(&counts), operations: None, told: false, late: false };
        let compared = compare(&session.lines, &known);
        assert_eq!(compared, Compared::default(), "no witness, no transcript, a new gateway");
        for known in [
            Known { late: true, operations: Some(operations), told: true, counts: None },
            Known {
                operations: Some(OperationCounts { lost: 1, ..operations }),
                told: true,
                ..Known::default()
            },
        ] {
            let found = compare(&session.lines, &known);
            assert!(!kinds(&found).contains("execution_without_call"), "{known:?}");
            assert_eq!(found.left_out, 2, "executions and commands: {found:?}");
        }
        // A program that serves tools has records among the session's, and counts of its own.
        session.say(Body::SandboxStarted {
            plan_sha256: digest(),
            program: "server of tools lab: x".into(),
            walls: Vec::<WallState>::new(),
            limits: Vec::<LimitState>::new(),
        });
        counts.remove("gateway_restarts");
        let compared = session.compared(&counts, operations);
        assert!(!kinds(&compared).contains("bytes_disagree"));
        assert!(!kinds(&compared).contains("egress_without_call"));
    }
}

/// Whoever makes himself hard to compare is told of.
#[test]
fn what_a_session_keeps_from_being_compared_is_a_finding() {
    let mut rng = Rng::from_env();
    let honest = Session::honest(&mut rng);
    let (counts, operations) = honest.counts();
    let lost = OperationCounts { lost: 1, ..operations };
    let (counts, all) = (Some(&counts), Some(operations));
    let known = Known { counts, operations: all, told: true, late: false };
    assert_eq!(compare(&honest.lines, &known).left_out, 0);
    // Executed without arguments, as anybody can.
    let mut unread = honest.clone();
    let Some(Body::ProcessExec { argv, .. }) = unread.lines.first_mut().map(|l| &mut l.body) else {
        panic!("it begins with its execution")
    };
    argv.clear();
    let mut endless = honest.clone();
    endless.begin_turn(90);
    endless.called("c1", "web_fetch", &serde_json::json!({"url": "x"}));
    endless.host_tool("web_fetch");
    endless.finished("c1", true);
    endless.end_turn();
    assert_eq!(endless.drop_lines(|l| matches!(l.body, Body::HostToolFinished { .. })), {
        honest.lines.iter().filter(|l| l.body.kind() == "host_tool_finished").count() + 1
    });
    for (session, known, left_out, why) in [
        (&unread, known.clone(), 2, "the arguments of 1 executions were not seen"),
        (&honest, Known { late: true, ..known.clone() }, 2, "too late"),
        (&honest, Known { operations: Some(lost), ..known.clone() }, 2, "1 operations"),
        (&endless, known, 3, "exchanges begin on record"),
    ] {
        let compared = compare(&session.lines, &known);
        assert_eq!(compared.left_out, left_out, "{why}: {compared:?}");
        let missing = compared.findings.iter().find_map(|body| match body {
            Body::ObserversDisagree { finding, what, .. } if finding == "not_compared" => {
                Some(what)
            }
            _ => None,
        });
        assert!(missing.is_some_and(|what| what.contains(why)), "{why}: {compared:?}");
    }
}

/// A log with one record of the session after every so many of another one.
fn log_of(dir: &Path, session: &SessionId, own: u64, others: u64) {
    let log = audit::Log::open(dir).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let mut total = 0;
    for n in 0..own * (others + 1) {
        let owner = if n % (others + 1) == 0 { session.clone() } else { SessionId::mint(9, 9) };
        let record = model::Record {
            time_ms: 1_767_225_600_000 + n,
            session: Some(owner),
            agent: None,
            turn: None,
            // A text can name a session, which does not make it its record.
            body: Body::RecordGap { lost: n, open: false, reason: session.as_str().to_owned() },
        };
        let uid = b"019b76da-a800-7000-8000-000000000007";
        let entry = audit::entry::encode(&record, uid).unwrap();
        let tell = tell.clone();
        let done = Box::new(move |r| tell.send(r).unwrap());
        log.submit(&entry, model::Durability::Ordered, done);
        total += 1;
    }
    for _ in 0..total {
        told.recv().unwrap().unwrap();
    }
    log.close().unwrap();
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn only_a_session_s_own_records_count_towards_the_bound() {
    let temp = TempDir::new("observed").unwrap();
    let session = SessionId::mint(5, 6);
    log_of(temp.path(), &session, 200, 30);
    for indexed in [false, true] {
        if indexed {
            assert!(audit::index::update(temp.path(), false).unwrap().0 > 4_000);
        }
        for first in [0, 31 * 7] {
            let read = |most| read_within(temp.path(), &session, first, most, LONG);
            let own = 200 - first as usize / 31;
            let lines = read(own).unwrap();
            assert_eq!(lines.len(), own, "{indexed}");
            assert!(lines.iter().zip(first / 31..).all(|(line, n)| line.index == 31 * n));
            let why = read(own - 1).unwrap_err();
            assert!(why.contains(&format!("more than {} records", own - 1)), "{why}");
        }
        let why = read_within(temp.path(), &session, 0, 200, Duration::ZERO).unwrap_err();
        assert!(why.contains("took longer"), "{why}");
    }
}

#[test]
fn a_comparison_that_is_left_out_is_on_record_with_its_reason() {
    let temp = TempDir::new("observed").unwrap();
    let session = SessionId::mint(5, 6);
    log_of(temp.path(), &session, 3, 2);
    let usage = sandbox::Usage::default();
    let outcome = sandbox::Outcome::Exited(0);
    let ended = sandbox::Ended { outcome, usage, traffic: None, operations: None };
    let observed = |first, told| {
        let mut checked = crate::crosscheck::check(BTreeMap::new(), None);
        let how = crate::crosscheck::Lived { first, told, late: false };
        checked.observe(temp.path(), &session, &ended, &how);
        (checked.counts.get("observers_not_compared").copied(), checked.findings)
    };
    assert_eq!(observed(0, false), (None, Vec::new()));
    // A byte of the log that was changed.
    let wal = std::fs::read_dir(temp.path().join("wal")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&wal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&wal, bytes).unwrap();
    for (told, count) in [(false, 6), (true, 11)] {
        let (counted, findings) = observed(0, told);
        assert_eq!((counted, findings.len()), (Some(count), 1));
        let Body::ObserversDisagree { finding, what, .. } = &findings[0] else { panic!("none") };
        assert_eq!(finding, "not_compared");
        assert!(what.contains("is damaged") && what.contains("any account of it"), "{what}");
    }
}

#[test]
fn a_command_left_in_the_background_explains_what_comes_later() {
    let mut session = Session::begin();
    session.begin_turn(1);
    let arguments = serde_json::json!({"command": "serve", "background": true});
    session.called("c1", "bash", &arguments);
    session.exec(&["bash", "-c", "serve"]);
    session.finished("c1", true);
    session.end_turn();
    session.exec(&["worker"]);
    session.egress(1);
    assert_eq!(session.settled().findings, Vec::new());
}

/// A session with one command of which the kernel saw only the beginning.
fn of_long_command(command: &str, arguments: &str) -> Session {
    let mut session = Session::begin();
    session.begin_turn(1);
    session.say(Body::ToolCalled {
        call: "c1".into(),
        tool: "bash".into(),
        arguments: crate::scribe::whole(arguments).to_owned(),
        arguments_sha256: digest(),
    });
    session.exec(&["bash", "-c", &command[..4_000]]);
    if let Some(Body::ProcessExec { whole, .. }) =
        session.lines.iter_mut().rev().map(|l| &mut l.body).find(|b| b.kind() == "process_exec")
    {
        *whole = false;
    }
    session.finished("c1", true);
    session.end_turn();
    session
}

#[test]
fn commands_that_were_cut_are_compared_by_how_they_begin() {
    let long = "x".repeat(5_000);
    let arguments = serde_json::json!({"command": long}).to_string();
    let mut session = of_long_command(&long, &arguments);
    assert_eq!(session.settled().findings, Vec::new());
    session.exec(&["curl", "evil"]);
    assert_eq!(kinds(&session.settled()), ["execution_without_call"].into());
}

#[test]
fn a_call_whose_arguments_cannot_be_read_explains_nothing_in_silence() {
    let long = "x".repeat(50_000);
    let cut = serde_json::json!({"command": long}).to_string();
    for arguments in [&*cut, "", "no object", "[1]", "[9 bytes, not there any more]"] {
        let mut session = of_long_command(&long, arguments);
        session.exec(&["curl", "evil"]);
        let compared = session.settled();
        assert_eq!(kinds(&compared), ["not_compared"].into(), "{arguments:.20}");
        assert_eq!(compared.left_out, 3, "executions, commands, what was let out");
    }
}

/// The session as a recorder writes it and as it is read again.
fn recorded(session: &Session, private: bool) -> Session {
    let home = TempDir::new("observed").unwrap();
    let path = home.path().to_owned();
    let client = audit::Client::connect(home.path(), "test", || {
        let place = audit::recorder::prepare(&path).unwrap().with_private_texts(private);
        let (home, (told, tell)) = (path.clone(), std::io::pipe()?);
        std::thread::spawn(move || audit::recorder::recorder_run(&home, place, tell.into()));
        let mut ready = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(told), &mut ready)?;
        Ok(())
    })
    .unwrap();
    let id = SessionId::mint(5, 6);
    for line in &session.lines {
        let record = model::Record {
            time_ms: 1_767_225_600_000,
            session: Some(id.clone()),
            agent: None,
            turn: line.turn.clone(),
            body: line.body.clone(),
        };
        client.append(record, model::Durability::Durable).unwrap();
    }
    let lines = super::read(&audit::log_dir(home.path()), &id, 0).unwrap();
    client.close();
    Session { lines, ..session.clone() }
}

#[test]
fn what_follows_a_call_whose_arguments_stand_beside_the_log_is_compared() {
    let long = "x".repeat(5_000);
    let short = "x".repeat(4_000);
    for (private, command) in [(true, &short), (false, &long), (true, &long)] {
        let arguments = serde_json::json!({"command": command}).to_string();
        let mut session = of_long_command(command, &arguments);
        assert_eq!(recorded(&session, private).settled().findings, Vec::new());
        session.exec(&["curl", "evil"]);
        let compared = recorded(&session, private).settled();
        assert_eq!(kinds(&compared), ["execution_without_call"].into(), "{private}");
    }
}

#[test]
fn findings_are_bounded_and_counted_and_any_order_is_taken() {
    let mut session = Session::begin();
    for _ in 0..500 {
        session.exec(&["curl", "evil"]);
    }
    let compared = session.settled();
    assert_eq!((compared.findings.len(), compared.disagreements), (NAMED_MAX, 500));
    let Body::ObserversDisagree { count, .. } = &compared.findings[0] else { panic!("none") };
    assert_eq!(*count, 500);
    let mut rng = Rng::from_env();
    for _ in 0..ROUNDS {
        let mut session = Session::honest(&mut rng);
        for _ in 0..session.lines.len() {
            let (a, b) = (rng.below(session.lines.len()), rng.below(session.lines.len()));
            session.lines.swap(a, b);
        }
        let (counts, operations) = session.counts();
        assert!(session.compared(&counts, operations).findings.len() <= 6 * NAMED_MAX);
    }
}

/// Somebody who wants the comparison to take long gets no more than a straight walk.
#[test]
fn a_hundred_thousand_calls_and_executions_are_compared_in_one_walk() {
    let mut session = Session::begin();
    session.begin_turn(1);
    for n in 0..50_000 {
        session.called("same", "bash", &serde_json::json!({"command": "same"}));
        session.exec(&["bash", "-c", "same"]);
        session.called(&n.to_string(), "write_file", &serde_json::json!({"path": "f"}));
    }
    session.end_turn();
    assert_eq!(kinds(&session.settled()), BTreeSet::new());
}
