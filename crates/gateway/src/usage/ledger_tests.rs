//! Budgets on a real disk: synced before they are used, kills, torn ends.

use super::*;
use std::io::BufRead as _;
use std::process::{Command, Stdio};
use testkit::TempDir;

const TURN: &str = "t1";

fn who() -> Spender {
    Spender {
        agent: AgentName::parse("a").expect("a name"),
        session: SessionId::parse("s").expect("an id"),
        turn: Some(TurnId::parse(TURN).expect("an id")),
        model: "m".into(),
        time_ms: 86_400_000,
    }
}

fn budget(tokens_per_day: u64) -> Budget {
    Budget { tokens_per_day: Some(tokens_per_day), ..Budget::default() }
}

fn usage(input: u64) -> Usage {
    Usage { input, ..Usage::default() }
}

fn syncs(ledger: &Ledger) -> u64 {
    ledger.synced.syncs()
}

#[test]
fn a_reservation_is_on_the_disk_before_it_is_used_and_one_sync_serves_many() {
    let dir = TempDir::new("ledger-sync").expect("a folder");
    let ledger = Ledger::open(dir.path()).expect("opened");
    let first = ledger.reserve(&who(), usage(5), None, &budget(100)).expect("within");
    let second = ledger.reserve(&who(), usage(5), None, &budget(100)).expect("within");
    first.syncing().expect("must be synced").wait().expect("synced");
    assert_eq!(syncs(&ledger), 1);
    second.syncing().expect("must be synced").wait().expect("synced");
    assert_eq!(syncs(&ledger), 1, "the first one's sync came after the second one's line");
    let free = ledger.reserve(&who(), usage(5), None, &Budget::default()).expect("no limit");
    assert!(free.syncing().is_none(), "nothing is limited, so nothing is to be kept");
}

#[test]
fn after_a_failed_sync_nothing_is_spent_any_more() {
    let dir = TempDir::new("ledger-fail").expect("a folder");
    let ledger = Ledger::open(dir.path()).expect("opened");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    // A pipe cannot be synced (EINVAL).
    let broken = File::from(std::os::fd::OwnedFd::from(reader));
    ledger.synced.replace(Some((dir.join(FILE), broken)));
    let wait = || {
        let reserved = ledger.reserve(&who(), usage(1), None, &budget(100)).expect("within");
        reserved.syncing().expect("must be synced").wait()
    };
    let error = wait().expect_err("refused");
    ledger.synced.replace(None);
    assert_eq!(wait(), Err(error), "it is not tried again");
}

#[test]
fn wherever_a_crash_tears_the_file_what_was_synced_is_spent() {
    let dir = TempDir::new("ledger-torn").expect("a folder");
    let ledger = Ledger::open(dir.path()).expect("opened");
    let path = dir.join(FILE);
    for _ in 0..2 {
        let reserved = ledger.reserve(&who(), usage(10), None, &budget(100)).expect("within");
        reserved.syncing().expect("must be synced").wait().expect("synced");
        reserved.settle(usage(4), false);
    }
    let reserved = ledger.reserve(&who(), usage(10), None, &budget(100)).expect("within");
    reserved.syncing().expect("must be synced").wait().expect("synced");
    let synced = std::fs::read(&path).expect("read");
    reserved.settle(usage(1), false);
    let all = std::fs::read(&path).expect("read");
    drop(ledger);
    for end in synced.len()..=all.len() {
        std::fs::write(&path, &all[..end]).expect("written");
        let ledger = Ledger::open(dir.path()).expect("a torn end is no damage");
        let spent = if end == all.len() { 9 } else { 18 };
        assert!(ledger.reserve(&who(), usage(101 - spent), None, &budget(100)).is_err());
        assert!(ledger.reserve(&who(), usage(100 - spent), None, &budget(100)).is_ok());
    }
}

/// The child of the test below: reserves, syncs and says so, until it is killed.
#[test]
fn reserves_until_it_is_killed() {
    let Some(dir) = std::env::var_os("LEDGER_TEST_DIR") else { return };
    let ledger = Ledger::open(Path::new(&dir)).expect("opened");
    loop {
        let reserved = ledger.reserve(&who(), usage(1), None, &budget(1 << 40)).expect("within");
        reserved.syncing().expect("must be synced").wait().expect("synced");
        writeln!(std::io::stdout(), "\nreserved").expect("said");
    }
}

#[test]
fn what_was_spent_before_a_kill_is_spent_after_it() {
    let dir = TempDir::new("ledger-kill").expect("a folder");
    let mut total = 0;
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "usage::ledger::tests::reserves_until_it_is_killed", "--nocapture"])
            .env("LEDGER_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        let said = lines.map_while(Result::ok).filter(|line| line == "reserved");
        total += said.take(20 + 30 * round).count() as u64;
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    assert!(total >= 200, "{total}");
    let ledger = Ledger::open(dir.path()).expect("opened");
    assert!(ledger.reserve(&who(), usage(1), None, &budget(total)).is_err());
}
