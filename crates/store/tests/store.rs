//! The store at its boundary: real files, real processes, real kills.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use model::{AgentName, MessageId, SessionId, TurnId};
use nanoclaw_store::{
    Finish, MessageState, NewMessage, NewReply, NewSession, Owner, Received, Retry, SCHEMA_VERSION,
    Store, StoreError,
};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use testkit::{Rng, TempDir};

fn open(path: &Path) -> Store {
    Store::open(path, Owner::this_process().expect("/proc")).expect("the store opens")
}

fn refusal(path: &Path) -> String {
    let owner = Owner::this_process().expect("/proc");
    Store::open(path, owner).expect_err("it must not open").to_string()
}

fn message(n: u32, session: Option<&SessionId>) -> NewMessage {
    NewMessage {
        id: MessageId::mint(1_000 + u64::from(n), std::process::id()),
        channel: "terminal".into(),
        platform_id: format!("p{n}"),
        chat: "main".into(),
        user: "me".into(),
        text: format!("text {n} with a 'quote'; and é"),
        salt: vec![7; 16],
        received_ms: 1_000 + u64::from(n),
        session: session.cloned(),
    }
}

fn new_session(n: u32) -> NewSession {
    let id = SessionId::mint(u64::from(n), std::process::id());
    NewSession {
        workspace: id.to_string(),
        id,
        agent: AgentName::parse("helper").expect("name"),
        channel: "terminal".into(),
        chat: "main".into(),
        now_ms: 1_000,
    }
}

fn finish(turn: &TurnId, reply: Option<u32>) -> Finish {
    Finish {
        turn: turn.clone(),
        outcome: "answered".into(),
        input_tokens: 11,
        output_tokens: 7,
        reply: reply.map(|n| NewReply {
            id: MessageId::mint(9_000 + u64::from(n), n),
            text: format!("reply {n}"),
            salt: vec![9; 16],
        }),
        now_ms: 3_000,
    }
}

#[test]
fn a_message_goes_through_every_state() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("state/store.db");
    let mut store = open(&path);
    let (session, made) = store.open_session(&new_session(1)).expect("opens");
    assert!(made);
    let (again, made) = store.open_session(&new_session(2)).expect("found");
    assert_eq!((&again, made), (&session, false));

    let (first, second) = (message(1, Some(&session.id)), message(2, None));
    assert_eq!(store.receive(&first).expect("new"), Received::New);
    assert_eq!(store.receive(&second).expect("new"), Received::New);
    let repeated = NewMessage { id: MessageId::mint(5, 5), ..first.clone() };
    assert_eq!(store.receive(&repeated).expect("known"), Received::Duplicate(first.id.clone()));
    assert_eq!(store.unrouted().expect("read")[0].id, second.id);
    store.assign(&second.id, &session.id).expect("queued");
    assert!(store.unrouted().expect("read").is_empty());

    let queued = store.next_queued(&session.id, 0).expect("read").expect("one");
    assert_eq!((queued.id.clone(), queued.text.clone()), (first.id.clone(), first.text.clone()));
    let turn = TurnId::mint(2_000, 1);
    store.start_turn(&turn, &first.id, 2_000).expect("starts");
    assert_eq!(store.message(&first.id).expect("read").state, MessageState::Running);

    // Nothing else may begin, end or archive meanwhile.
    let other = TurnId::mint(2_000, 2);
    for refused in [
        store.start_turn(&other, &second.id, 2_001).expect_err("busy"),
        store.start_turn(&other, &first.id, 2_001).expect_err("running"),
        store.archive_session(&session.id, 2_001).expect_err("busy"),
        store.assign(&first.id, &session.id).expect_err("running"),
    ] {
        assert!(matches!(refused, StoreError::WrongState { .. }), "{refused}");
    }

    store.finish_turn_with_reply(&finish(&turn, Some(1))).expect("ends");
    assert_eq!(store.message(&first.id).expect("read").state, MessageState::Done);
    let twice = store.finish_turn_with_reply(&finish(&turn, Some(2))).expect_err("ended");
    assert_eq!(
        twice.to_string(),
        format!("turn {turn} is done, so it cannot end; reload its state first")
    );

    let pending = store.pending_replies("terminal").expect("read");
    assert_eq!(pending.len(), 1);
    let reply = &pending[0];
    assert_eq!((reply.text.as_str(), reply.chat.as_str()), ("reply 1", "main"));
    assert_eq!((reply.attempts, reply.idempotency_key.as_str()), (0, reply.id.as_str()));
    assert!(store.pending_replies("elsewhere").expect("read").is_empty());
    store.mark_attempt(&reply.id).expect("pending");
    assert_eq!(store.pending_replies("terminal").expect("read")[0].attempts, 1);
    store.mark_sent(&reply.id).expect("pending");
    assert!(store.pending_replies("terminal").expect("read").is_empty());
    assert!(matches!(store.mark_sent(&reply.id), Err(StoreError::WrongState { .. })));

    let history = store.history(&session.id).expect("read");
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].reply.as_deref(), Some("reply 1"));
    assert_eq!((history[0].state.as_str(), history[0].started_ms), ("done", 2_000));

    store.archive_session(&session.id, 4_000).expect("idle");
    assert!(!store.session(&session.id).expect("read").open);
    assert_eq!(store.unrouted().expect("read")[0].id, second.id, "kept for the next session");
    let (fresh, made) = store.open_session(&new_session(3)).expect("opens");
    assert!(made && fresh.id != session.id);
    assert_eq!(store.sessions().expect("read").len(), 2);
}

#[test]
fn a_message_that_was_taken_back_is_never_worked_on_again() {
    let dir = TempDir::new("store").expect("folder");
    let mut store = open(&dir.join("store.db"));
    let (session, _) = store.open_session(&new_session(1)).expect("opens");
    let all: Vec<NewMessage> = (1..=4).map(|n| message(n, Some(&session.id))).collect();
    for new in &all {
        store.receive(new).expect("kept");
    }
    let waiting = |store: &Store| store.waiting("terminal", &session.agent).expect("read").len();
    assert_eq!(waiting(&store), 4);
    // Queued: it is passed over.
    assert_eq!(store.withdraw(&all[0].id).expect("taken back"), MessageState::Queued);
    let next = store.next_queued(&session.id, 0).expect("read").expect("one");
    assert_eq!(next.id, all[1].id);
    // Running: a turn that fails for a passing reason does not bring it back.
    let turn = TurnId::mint(1, 1);
    store.start_turn(&turn, &all[1].id, 1).expect("begins");
    assert_eq!(store.withdraw(&all[1].id).expect("taken back"), MessageState::Running);
    store.fail_turn(&finish(&turn, None), Retry::At(0)).expect("running");
    assert_eq!(store.message(&all[1].id).expect("read").state, MessageState::Cancelled);
    // Stopped by a person.
    let turn = TurnId::mint(2, 2);
    store.start_turn(&turn, &all[2].id, 2).expect("begins");
    store.cancel_turn(&finish(&turn, None)).expect("running");
    assert_eq!(store.message(&all[2].id).expect("read").state, MessageState::Cancelled);
    // Answered: too late to take it back.
    let turn = TurnId::mint(3, 3);
    store.start_turn(&turn, &all[3].id, 3).expect("begins");
    store.finish_turn_with_reply(&finish(&turn, Some(1))).expect("running");
    assert_eq!(store.withdraw(&all[3].id).expect("read"), MessageState::Done);
    assert_eq!(waiting(&store), 0);
    assert!(store.withdraw(&MessageId::mint(77, 77)).is_err(), "there is none");
}

#[test]
fn a_failed_turn_is_retried_in_order_or_given_up() {
    let dir = TempDir::new("store").expect("folder");
    let mut store = open(&dir.join("store.db"));
    let (session, _) = store.open_session(&new_session(1)).expect("opens");
    for n in 1..=2 {
        store.receive(&message(n, Some(&session.id))).expect("new");
    }
    let first = store.next_queued(&session.id, 0).expect("read").expect("one");
    let turn = TurnId::mint(1, 1);
    store.start_turn(&turn, &first.id, 1).expect("starts");
    store.fail_turn(&finish(&turn, None), Retry::At(5_000)).expect("running");
    assert_eq!(store.next_queued(&session.id, 4_999).expect("read"), None, "no overtaking");
    assert_eq!(store.sessions_with_queued().expect("read"), [(session.id.clone(), 5_000)]);
    let again = store.next_queued(&session.id, 5_000).expect("read").expect("due");
    assert_eq!((again.id.clone(), again.attempts), (first.id.clone(), 1));

    let turn = TurnId::mint(2, 2);
    store.start_turn(&turn, &first.id, 5_000).expect("starts");
    store.fail_turn(&finish(&turn, Some(1)), Retry::No).expect("running");
    assert_eq!(store.message(&first.id).expect("read").state, MessageState::Failed);
    let reply = store.pending_replies("terminal").expect("read").remove(0);
    store.mark_failed(&reply.id, "the chat is gone").expect("pending");
    assert!(store.pending_replies("terminal").expect("read").is_empty());
    let next = store.next_queued(&session.id, 5_000).expect("read").expect("the second");
    assert_ne!(next.id, first.id);
    assert!(matches!(store.message(&MessageId::mint(0, 0)), Err(StoreError::Missing { .. })));
}

/// What the children of the tests below do; with no environment it is nothing.
#[test]
fn child() {
    let Some(path) = std::env::var_os("STORE_CHILD") else { return };
    let mut store = open(Path::new(&path));
    let role = std::env::var("STORE_ROLE").expect("role");
    if role == "turn" {
        let (session, _) = store.open_session(&new_session(1)).expect("opens");
        let message = message(1, Some(&session.id));
        store.receive(&message).expect("new");
        store.start_turn(&TurnId::mint(1, std::process::id()), &message.id, 1).expect("starts");
        println!("\nrunning");
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
    let (session, _) = store.open_session(&new_session(1)).expect("opens");
    let from: u32 = std::env::var("STORE_FROM").expect("from").parse().expect("number");
    let count: u32 = std::env::var("STORE_COUNT").expect("count").parse().expect("number");
    for n in from..from + count {
        let received = store.receive(&message(n, Some(&session.id))).expect("stored");
        println!("\nack {n} {}", matches!(received, Received::New));
    }
}

fn spawn(path: &Path, role: &str, from: u32, count: u32) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("STORE_CHILD", path)
        .env("STORE_ROLE", role)
        .env("STORE_FROM", from.to_string())
        .env("STORE_COUNT", count.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts")
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let out = child.stdout.take().expect("piped");
    BufReader::new(out).lines().map_while(Result::ok)
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    let mut rng = Rng::from_env();
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut child = spawn(&path, "receive", round * 10_000, 10_000);
        let after = 20 + rng.below(60);
        let mut seen = 0;
        for line in lines(&mut child) {
            let Some(rest) = line.strip_prefix("ack ") else { continue };
            // A line cut by the kill is no acknowledgement.
            if let Some((n, "true")) = rest.split_once(' ') {
                acknowledged.push(format!("p{n}"));
                seen += 1;
            }
            if seen == after {
                child.kill().expect("kill -9");
            }
        }
        child.wait().expect("gone");
        assert!(seen >= after, "round {round}: only {seen}");
        let mut store = open(&path);
        let (session, made) = store.open_session(&new_session(1)).expect("opens");
        assert!(!made);
        assert!(store.next_queued(&session.id, 0).expect("read").is_some());
        for platform_id in &acknowledged {
            let again = NewMessage { platform_id: platform_id.clone(), ..message(99_999, None) };
            let received = store.receive(&again).expect("read");
            assert!(matches!(received, Received::Duplicate(_)), "{platform_id} was lost");
        }
    }
}

#[test]
fn only_the_turns_of_dead_processes_are_taken_back() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    let mut child = spawn(&path, "turn", 0, 0);
    assert!(lines(&mut child).any(|line| line == "running"), "the child did not get there");
    let mut store = open(&path);
    assert!(store.recover(5_000).expect("read").is_empty(), "a living process was robbed");
    child.kill().expect("kill -9");
    child.wait().expect("gone");
    let recovered = store.recover(5_000).expect("written");
    assert_eq!(recovered.len(), 1);
    assert_eq!(recovered[0].attempts, 1);
    let message = store.message(&recovered[0].message).expect("read");
    assert_eq!((message.state, message.attempts), (MessageState::Queued, 1));
    assert_eq!(store.history(&recovered[0].session).expect("read")[0].state, "lost");
    assert!(store.recover(5_000).expect("read").is_empty(), "taken back once");
    let turn = TurnId::mint(9, 9);
    store.start_turn(&turn, &message.id, 6_000).expect("it is queued again");
    assert!(store.recover(6_000).expect("read").is_empty(), "our own turn is alive");
}

#[test]
fn a_lost_turn_does_not_bring_back_what_was_taken_back() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    let mut child = spawn(&path, "turn", 0, 0);
    assert!(lines(&mut child).any(|line| line == "running"), "the child did not get there");
    let mut store = open(&path);
    let agent = AgentName::parse("helper").expect("name");
    let running = store.waiting("terminal", &agent).expect("read").remove(0);
    assert_eq!(store.withdraw(&running.id).expect("taken back"), MessageState::Running);
    child.kill().expect("kill -9");
    child.wait().expect("gone");
    assert!(store.recover(5_000).expect("written").is_empty());
    assert_eq!(store.message(&running.id).expect("read").state, MessageState::Cancelled);
}

/// What the disk may hold after a power cut: the write-ahead log as far as it was synced.
#[test]
fn a_turn_that_a_power_cut_undid_leaves_its_message_queued() {
    let dir = TempDir::new("store").expect("folder");
    let (path, after) = (dir.join("store.db"), dir.join("after/store.db"));
    let log = |path: &Path| path.with_extension("db-wal");
    let mut store = open(&path);
    let (session, _) = store.open_session(&new_session(1)).expect("opens");
    store.receive(&message(1, Some(&session.id))).expect("on disk");
    let synced = std::fs::metadata(log(&path)).expect("the log").len();
    let (turn, id) = (TurnId::mint(2_000, 1), message(1, None).id);
    store.start_turn(&turn, &id, 2_000).expect("starts");

    drop(open(&after));
    std::fs::copy(&path, &after).expect("copied");
    let mut bytes = bytes(&log(&path));
    assert!(bytes.len() as u64 > synced, "the turn is in the log's last part");
    // Torn in the middle of the commit, which is the worst that can be.
    bytes.truncate(usize::try_from(synced).expect("small") + 5_000);
    std::fs::write(log(&after), bytes).expect("written");
    let mut later = open(&after);
    assert!(later.recover(3_000).expect("reads").is_empty());
    let queued = later.next_queued(&session.id, 3_000).expect("reads").expect("still there");
    assert_eq!((&queued.id, queued.state, queued.attempts), (&id, MessageState::Queued, 0));
    drop(later);
    // After a power cut the machine has booted again, and the message may have been begun.
    let owner = Owner { boot: "another".into(), ..Owner::this_process().expect("/proc") };
    let mut later = Store::open(&after, owner).expect("the store opens");
    later.receive(&message(2, Some(&session.id))).expect("on disk");
    assert!(later.recover(3_000).expect("reads").is_empty());
    assert_eq!(later.message(&id).expect("reads").attempts, 1);
    assert_eq!(later.message(&message(2, None).id).expect("reads").attempts, 0, "never begun");
    later.start_turn(&turn, &id, 3_000).expect("starts again");
    later.finish_turn_with_reply(&finish(&turn, Some(1))).expect("ends");
    assert_eq!(later.pending_replies("terminal").expect("read").len(), 1);
}

#[test]
fn two_processes_share_one_file() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    // Both create, migrate and fill the same new file; the ranges overlap by half.
    let mut children = [spawn(&path, "receive", 0, 100), spawn(&path, "receive", 50, 100)];
    let mut new = 0;
    for child in &mut children {
        new +=
            lines(child).filter(|line| line.starts_with("ack ") && line.ends_with("true")).count();
    }
    for mut child in children {
        assert!(child.wait().expect("gone").success());
    }
    assert_eq!(new, 150, "each message is new exactly once");
    assert_eq!(open(&path).sessions().expect("read").len(), 1, "one open session for both");
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("readable")
}

#[test]
fn damage_is_named_and_nothing_is_overwritten() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    let mut store = open(&path);
    let (session, _) = store.open_session(&new_session(1)).expect("opens");
    for n in 0..200 {
        store.receive(&message(n, Some(&session.id))).expect("new");
    }
    drop(store);
    let good = bytes(&path);
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut data = good.clone();
        change(&mut data);
        std::fs::write(&path, &data).expect("write");
        let error = refusal(&path);
        assert!(bytes(&path) == data, "the damaged file was changed");
        error
    };
    for change in [
        &(|data: &mut Vec<u8>| data[..16].fill(b'x')) as &dyn Fn(&mut Vec<u8>),
        &|data| data[4_096..16_384].fill(0xA5),
        &|data| data.truncate(good.len() / 2),
    ] {
        let error = damaged(change);
        assert!(error.contains("is damaged"), "{error}");
        assert!(error.contains("nothing was overwritten") && error.contains("copy"), "{error}");
    }
    std::fs::write(&path, &good).expect("write");
    assert!(open(&path).next_queued(&session.id, 0).expect("read").is_some());
}

/// Changes the header of a database file: big-endian numbers at fixed offsets (SQLite file
/// format §1.3): 60 user version, 68 application id.
fn with_header(path: &Path, offset: usize, value: u32) {
    let mut data = bytes(path);
    data[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    std::fs::write(path, data).expect("write");
}

#[test]
fn newer_and_foreign_files_are_refused_by_name() {
    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    drop(open(&path));
    with_header(&path, 60, 7);
    let error = refusal(&path);
    let known = format!("has version 7, this program knows up to {SCHEMA_VERSION}");
    assert!(error.contains(&known), "{error}");
    with_header(&path, 60, u32::try_from(SCHEMA_VERSION).expect("small"));
    drop(open(&path));
    with_header(&path, 68, 42);
    assert!(refusal(&path).contains("another program's database"));
}

#[test]
fn folder_and_file_are_private_or_refused() {
    let dir = TempDir::new("store").expect("folder");
    let path: PathBuf = dir.join("state/store.db");
    drop(open(&path));
    let mode = |p: &Path| p.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&dir.join("state")), mode(&path)), (0o700, 0o600));
    let set = |p: &Path, mode| {
        std::fs::set_permissions(p, PermissionsExt::from_mode(mode)).expect("chmod");
    };
    set(&path, 0o644);
    assert!(refusal(&path).contains("chmod 600"));
    set(&path, 0o600);
    set(&dir.join("state"), 0o755);
    assert!(refusal(&path).contains("chmod 700"));
    set(&dir.join("state"), 0o700);
    std::fs::rename(&path, dir.join("moved")).expect("rename");
    std::os::unix::fs::symlink(dir.join("moved"), &path).expect("link");
    assert!(refusal(&path).contains("not a regular file"));
}

#[test]
fn a_read_only_place_is_a_clear_error() {
    // Root ignores permission bits, so the place is one that is read-only for root too.
    let error = refusal(Path::new("/proc/nanoclaw/store.db"));
    assert!(error.contains("cannot make the folder"), "{error}");

    let dir = TempDir::new("store").expect("folder");
    let path = dir.join("store.db");
    drop(open(&path));
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o500)).expect("chmod");
    let is_root = std::fs::write(dir.join("probe"), "").is_ok();
    let opened = Store::open(&path, Owner::this_process().expect("/proc"));
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).expect("chmod");
    if is_root {
        eprintln!("a_read_only_place_is_a_clear_error: permission bits do not bind root");
    } else {
        let error = opened.expect_err("no -wal can be made there").to_string();
        assert!(error.contains("cannot be written"), "{error}");
    }
}
