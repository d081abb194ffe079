//! A real recorder, killed by `SIGKILL` at random moments under load, and what it leaves.

use model::{Body, Durability, Record, RecordError, RecordSink, RecordSinkExt, SessionId};
use nanoclaw_audit::{Client, Filter, Reader, log_dir, socket_path, start_recorder, verify_dir};
use rustix::process::{Signal, kill_process};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use testkit::{Rng, TempDir};

/// Records without an answer that the load keeps under way.
const UNDER_WAY: u64 = 60;

/// The load has the key replaced after so many records.
const ROTATE_AFTER: u64 = 300;

/// A hang, not a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(home: &Path, role: &str) -> io::Result<Client> {
    let me = std::env::current_exe()?;
    let start = || start_recorder(&me, &[OsStr::new("__recorder"), home.as_os_str()]);
    Client::connect(home, role, start)
}

fn record(call: &str, session: u32) -> Record {
    let body = Body::ToolFinished {
        call: call.to_owned(),
        tool: "t".into(),
        ok: true,
        bytes: 0,
        summary: "x".repeat(100),
    };
    let session = Some(SessionId::mint(5, session));
    Record { time_ms: 1_769_903_999_123, session, agent: None, turn: None, body }
}

/// Submits without end, replaces the key now and then, and says on its output what was
/// acknowledged: `<index> <call>` a line.
pub(crate) fn writer(home: &Path) -> ExitCode {
    // The recorder that it starts may be killed while it starts.
    let Ok(client) = connect(home, "writer") else { return ExitCode::FAILURE };
    let out = Arc::new(Mutex::new(std::io::stdout()));
    let me = std::process::id();
    let (tell, told) = mpsc::channel();
    for i in 0u64.. {
        let (call, out, tell) = (format!("{me}-{i}"), Arc::clone(&out), tell.clone());
        let line = call.clone();
        let done = Box::new(move |result: Result<u64, RecordError>| {
            let Ok(index) = result else { std::process::exit(1) };
            let line = format!("{index} {line}\n");
            if out.lock().unwrap().write_all(line.as_bytes()).is_err() {
                std::process::exit(1);
            }
            let _ = tell.send(());
        });
        client.submit(record(&call, me), Durability::Durable, done);
        if i % ROTATE_AFTER == ROTATE_AFTER - 1 && client.rotate_key().is_err() {
            return ExitCode::FAILURE;
        }
        if i >= UNDER_WAY {
            told.recv().unwrap();
        }
    }
    ExitCode::SUCCESS
}

/// Kills the recorder until the load has ended for it: one that had not connected yet rightly
/// starts another.
fn kill_recorder_of(home: &Path, writer: &mut Child) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while writer.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            return Err("the load goes on without its recorder".to_owned());
        }
        if let Ok(stream) = UnixStream::connect(socket_path(home)) {
            let pid = rustix::net::sockopt::socket_peercred(&stream).unwrap().pid;
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[derive(Default)]
struct Killed {
    acknowledged: BTreeMap<u64, String>,
    /// How long a client waited for its first record to be durable after a kill.
    recovery: Vec<Duration>,
}

fn kill_once(home: &Path, rng: &mut Rng, all: &mut Killed) -> Result<(), String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([OsStr::new("__writer"), home.as_os_str()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let lines = thread::spawn(move || {
        let mut all = Vec::new();
        BufReader::new(stdout).read_to_end(&mut all).unwrap();
        all
    });
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(socket_path(home)).is_err() {
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err("no recorder".to_owned());
        }
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_micros(rng.below(120_000) as u64));
    let ended = kill_recorder_of(home, &mut child);
    // By itself, when its recorder went, or else now.
    let _ = child.kill();
    child.wait().unwrap();
    ended?;
    for line in lines.join().unwrap().split_inclusive(|b| *b == b'\n') {
        let line = std::str::from_utf8(line).unwrap();
        let whole = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
        let Some((index, call)) = whole else { continue };
        let index = index.parse().unwrap();
        if all.acknowledged.insert(index, call.to_owned()).is_some() {
            return Err(format!("index {index} was given twice"));
        }
    }
    let begun = Instant::now();
    let client = connect(home, "next").map_err(|e| e.to_string())?;
    let recovered = client.append(record("after", 1), Durability::Durable);
    recovered.map_err(|e| format!("it does not go on: {e}"))?;
    all.recovery.push(begun.elapsed());
    Ok(())
}

fn check(home: &Path, all: &Killed) -> Result<u64, String> {
    // The last client is gone; the recorder goes too, and signs before it does.
    let lock = std::fs::File::open(log_dir(home).join("work/lock")).unwrap();
    let until = Instant::now() + PATIENCE;
    while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > until {
            return Err("the recorder stays".to_owned());
        }
        thread::sleep(Duration::from_millis(10));
    }
    drop(lock);
    let report = verify_dir(&log_dir(home), None).map_err(|f| format!("not whole: {f}"))?;
    let mut wanted = all.acknowledged.iter().peekable();
    for entry in Reader::new(&log_dir(home), Filter::default()) {
        let entry = entry.map_err(|e| e.to_string())?;
        if let Some((_, call)) = wanted.next_if(|(index, _)| **index == entry.index) {
            match entry.record.map(|record| record.body) {
                Ok(Body::ToolFinished { call: found, .. }) if found == *call => {}
                other => return Err(format!("{} is {other:?}, not {call}", entry.index)),
            }
        }
    }
    match wanted.next() {
        Some((index, _)) => Err(format!("record {index} was acknowledged and is not there")),
        None => Ok(report.records),
    }
}

fn at(sorted: &[Duration], part: usize) -> f64 {
    let place = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(0.0, |d| (d.as_secs_f64() * 10_000.0).round() / 10.0)
}

/// Kills a recorder so many times; says what failed, and how long it took to go on.
pub(crate) fn campaign(kills: u64, rng: &mut Rng, json: bool) -> bool {
    let temp = TempDir::new("kill").unwrap();
    let mut all = Killed::default();
    let mut records = 0;
    for round in 0..kills {
        let mut result = kill_once(temp.path(), rng, &mut all);
        // Every verification reads the whole log again.
        if result.is_ok() && (round % 25 == 24 || round + 1 == kills) {
            result = check(temp.path(), &all).map(|found| records = found);
        }
        if let Err(why) = result {
            println!("FAILED at kill {round}: {why}");
            return false;
        }
    }
    all.recovery.sort();
    let (p50, p99) = (at(&all.recovery, 50), at(&all.recovery, 99));
    let epochs = std::fs::read_dir(log_dir(temp.path()).join("epochs")).map_or(0, Iterator::count);
    let acknowledged = all.acknowledged.len();
    if json {
        println!(
            "{}",
            serde_json::json!({"campaign": "kill -9", "kills": kills, "failures": 0,
                "acknowledged": acknowledged, "records": records, "epochs": epochs,
                "recovery_p50_ms": p50, "recovery_p99_ms": p99})
        );
    } else {
        println!(
            "  {kills} kills, {acknowledged} acknowledged, {records} in the log, {epochs} keys \
             replaced; recovery p50 {p50} ms, p99 {p99} ms"
        );
    }
    kills == 0 || acknowledged > 0
}
