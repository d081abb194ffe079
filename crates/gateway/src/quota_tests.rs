//! Accounts on a real disk: restarts, kills, torn ends, rules that move, files of the first format.

use super::*;
use std::io::BufRead;
use std::process::{Command, Stdio};
use testkit::TempDir;

/// A rule at a place of its file.
fn rule(place: &str, host: &str) -> EgressRule {
    EgressRule::allow(place, model::HostName::parse(host).expect("a name"), 443)
}

fn account(place: &str, host: &str) -> Account {
    Account::new("a", &rule(place, host))
}

fn open(dir: &TempDir, now_ms: u64) -> Quota {
    Quota::open(Some(dir.path()), now_ms).expect("opened")
}

/// What can still be taken in steps of `step`.
async fn left(quota: &Quota, now_ms: u64, account: &Account, step: u64, max: u64) -> u64 {
    let mut taken = 0;
    while quota.take(now_ms, account, step, max).await.is_ok() {
        taken += step;
    }
    taken
}

#[tokio::test]
async fn a_day_s_account_survives_a_restart_and_ends_with_the_day() {
    let dir = TempDir::new("quota-restart").expect("a folder");
    let (mine, other) = (account("f:1", "a.org"), account("f:9", "b.org"));
    let quota = open(&dir, DAY_MS);
    assert_eq!(quota.take(DAY_MS, &mine, 60, 100).await, Ok(()));
    assert!(quota.take(DAY_MS, &mine, 41, 100).await.is_err());
    assert_eq!(quota.take(DAY_MS, &other, 100, 100).await, Ok(()));
    quota.give_back(DAY_MS, &mine, 10);
    drop(quota);
    // A write that was cut off by a crash.
    let mut file = OpenOptions::new().append(true).open(dir.join("quota.jsonl")).expect("open");
    file.write_all(b"{\"day\":1,\"agent\":\"a\",\"acc").expect("written");
    let quota = open(&dir, DAY_MS + 5);
    let used_up = QuotaError::UsedUp { used: 50, max: 100 };
    assert_eq!(quota.take(DAY_MS + 5, &mine, 51, 100).await, Err(used_up));
    assert_eq!(quota.take(DAY_MS + 5, &mine, 50, 100).await, Ok(()));
    // Setting the clock back opens nothing; the next day does.
    assert!(quota.take(0, &mine, 1, 100).await.is_err());
    assert_eq!(quota.take(2 * DAY_MS, &mine, 100, 100).await, Ok(()));
}

#[tokio::test]
async fn a_rule_that_moves_keeps_its_account_and_another_in_its_place_has_its_own() {
    let dir = TempDir::new("quota-move").expect("a folder");
    let quota = open(&dir, 0);
    quota.take(0, &account("f:10", "a.org"), 70, 100).await.expect("within the day's bytes");
    drop(quota);
    let quota = open(&dir, 0);
    assert!(quota.take(0, &account("f:14", "a.org"), 31, 100).await.is_err(), "moved");
    assert!(quota.take(0, &account("f:14", "a.org"), 31, 101).await.is_ok(), "a larger limit");
    assert!(quota.take(0, &account("f:10", "b.org"), 100, 100).await.is_ok(), "in its place");
    // The order in which methods and paths are written says nothing.
    let mut one = rule("f:1", "c.org");
    one.methods = vec!["GET".into(), "PUT".into()];
    let mut two = rule("f:2", "c.org");
    two.methods = vec!["PUT".into(), "GET".into()];
    assert_eq!(Account::new("a", &one).key(), Account::new("a", &two).key());
    assert_ne!(Account::new("b", &one).key(), Account::new("a", &two).key());
}

#[tokio::test]
async fn what_the_first_format_counted_is_taken_over_once() {
    let dir = TempDir::new("quota-old").expect("a folder");
    let old = "{\"day\":0,\"agent\":\"a\",\"rule\":\"f:1\",\"bytes\":80}\n\
               {\"day\":0,\"agent\":\"a\",\"rule\":\"f:1\",\"bytes\":-20}\n\
               {\"day\":0,\"agent\":\"b\",\"rule\":\"f:1\",\"bytes\":100}\n";
    std::fs::write(dir.join("quota.jsonl"), old).expect("written");
    // Twice opened before it is used, and once after.
    drop(open(&dir, 0));
    let quota = open(&dir, 0);
    let mine = account("f:1", "a.org");
    assert!(quota.take(0, &mine, 41, 100).await.is_err());
    assert_eq!(quota.take(0, &mine, 10, 100).await, Ok(()));
    drop(quota);
    let quota = open(&dir, 0);
    assert_eq!(left(&quota, 0, &mine, 1, 100).await, 30);
    assert!(quota.take(0, &Account::new("b", &rule("f:1", "a.org")), 1, 100).await.is_err());
}

#[tokio::test]
async fn wherever_a_crash_tears_the_file_no_byte_comes_back() {
    let dir = TempDir::new("quota-torn").expect("a folder");
    let (mine, max) = (account("f:1", "a.org"), 8 << 20);
    let quota = open(&dir, 0);
    let path = dir.join("quota.jsonl");
    let mut sent = 0;
    // What stands in the file whenever bytes go out, and how many went.
    let mut moments = Vec::new();
    while sent < max / 4 {
        quota.take(0, &mine, 50_000, max).await.expect("within the day's bytes");
        sent += 50_000;
        moments.push((std::fs::read(&path).expect("read"), sent));
    }
    let syncs = locked(&quota.0.keeper).lines;
    assert!((2..=2 + 64 / 4).contains(&syncs), "{syncs} syncs for a quarter of the day's bytes");
    std::mem::forget(quota); // killed: nothing is written at the end
    for pair in moments.windows(2) {
        let [(before, sent), (after, _)] = pair else { continue };
        // Between two sendings: all that was synced, and any part of what was not.
        for end in before.len()..=after.len() {
            std::fs::write(&path, &after[..end]).expect("written");
            let quota = open(&dir, 0);
            // Nothing came back, and little was lost: what was held, and one more block.
            assert!(quota.take(0, &mine, max - sent + 1, max).await.is_err());
            let lost = 2 * (max / BLOCKS).max(BLOCK_BYTES_MIN) + 50_000;
            assert_eq!(quota.take(0, &mine, max - sent - lost, max).await, Ok(()));
            std::mem::forget(quota);
        }
    }
}

#[tokio::test]
async fn the_file_stays_small_however_much_is_moved() {
    let dir = TempDir::new("quota-small").expect("a folder");
    let quota = open(&dir, 0);
    locked(&quota.0.keeper).lines = LINES_MAX;
    for n in 1..=10 {
        quota.take(0, &account("f:1", "a.org"), n << 20, 1 << 30).await.expect("within");
    }
    let text = std::fs::read_to_string(dir.join("quota.jsonl")).expect("read");
    assert!(text.lines().count() < 10, "{text}");
}

/// The child of the test below: takes and says so, until it is killed.
#[tokio::test]
async fn takes_until_it_is_killed() {
    let Some(dir) = std::env::var_os("QUOTA_TEST_DIR") else { return };
    let quota = Quota::open(Some(Path::new(&dir)), 0).expect("opened");
    let mut out = std::io::stdout();
    while quota.take(0, &account("f:1", "a.org"), 1_000, 1 << 30).await.is_ok() {
        writeln!(out, "\ntaken").expect("said");
    }
}

#[tokio::test]
async fn bytes_sent_before_a_kill_are_gone_after_it() {
    let dir = TempDir::new("quota-kill").expect("a folder");
    let mut total = 0_u64;
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "quota::tests::takes_until_it_is_killed", "--nocapture"])
            .env("QUOTA_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        let said = lines.map_while(Result::ok).filter(|line| line == "taken");
        total += 1_000 * said.take(100 + 7_000 * round).count() as u64;
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    let quota = open(&dir, 0);
    let all = quota.take(0, &account("f:1", "a.org"), 1 << 30, 1 << 30).await;
    let Err(QuotaError::UsedUp { used, .. }) = all else { panic!("{all:?}") };
    assert!(used >= total, "{total} bytes were sent, {used} are counted");
    assert!(used < total + 4 * 2 * ((1 << 30) / BLOCKS), "{used} for {total}");
}
