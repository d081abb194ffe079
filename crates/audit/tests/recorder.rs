//! The recorder as a real process: many clients, a full disk, hostile bytes, floods, new keys.
//! Kills at random moments are the affair of `crash/`.
//!
//! This file is its own runner, for the program under test is this very file, started again as
//! `__recorder HOME` (or as `__writer HOME`, a client that is killed).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use common::{Seed, Temp, every_kind, record};
use model::{Body, Durability, Record, RecordError, RecordSink, RecordSinkExt};
use nanoclaw_audit::{
    Client, Filter, Reader, log_dir, recorder_main, socket_path, start_recorder, verify_dir,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Set for a recorder that may write only so many bytes to one file.
const FILE_LIMIT: &str = "TEST_FILE_LIMIT";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__recorder") => {
            if let Ok(limit) = std::env::var(FILE_LIMIT) {
                let limit = limit.parse().ok();
                setrlimit(Resource::Fsize, Rlimit { current: limit, maximum: limit }).unwrap();
            }
            return recorder_main(Path::new(&args[2]), rustix::io::dup(std::io::stdout()).unwrap());
        }
        Some("__writer") => return writer(Path::new(&args[2])),
        _ => {}
    }
    let tests: [(&str, fn()); 9] = [
        ("many_clients_share_one_recorder_that_ends_with_them", many_clients),
        ("starters_at_once_end_well", starters_at_once),
        ("a_lost_client_is_on_record", lost_client),
        ("a_dead_recorder_is_gone_for_everyone", dead_recorder),
        ("hostile_bytes_end_only_their_own_connection", hostile),
        ("a_full_disk_refuses", full_disk),
        ("a_flood_of_one_session_is_refused_and_counted_and_others_go_on", flood),
        ("a_new_key_signs_on_and_every_key_of_the_chain_verifies", new_key),
        ("a_clock_set_back_is_on_record", clock),
    ];
    let wanted = args.iter().skip(1).find(|a| !a.starts_with('-'));
    for (name, test) in tests {
        if wanted.is_none_or(|w| name.contains(w.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn me() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn connect(home: &Path, role: &str) -> Client {
    Client::connect(home, role, || {
        start_recorder(&me(), &[OsStr::new("__recorder"), home.as_os_str()])
    })
    .unwrap()
}

/// Waits until the recorder has gone, as it must when nobody needs it.
fn wait_for_end(home: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    let lock = std::fs::File::open(log_dir(home).join("work/lock")).unwrap();
    while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(Instant::now() < until, "the recorder stays");
        thread::sleep(Duration::from_millis(10));
    }
}

fn entries(home: &Path) -> Vec<Record> {
    Reader::new(&log_dir(home), Filter::default()).map(|e| e.unwrap().record.unwrap()).collect()
}

fn tool(call: &str) -> Record {
    record(Body::ToolFinished {
        call: call.to_owned(),
        tool: "t".into(),
        ok: true,
        bytes: 0,
        summary: "x".repeat(100),
    })
}

fn many_clients() {
    // A folder so deep that its socket's path is longer than an address may be.
    let temp = Temp::new("clients");
    let home = temp.0.join("d".repeat(60)).join("e".repeat(60));
    const EACH: usize = 2_000;
    let threads: Vec<_> = (0..4)
        .map(|c| {
            let home = home.clone();
            thread::spawn(move || {
                let client = connect(&home, &format!("client-{c}"));
                let (tell, told) = mpsc::channel();
                for i in 0..EACH {
                    let tell = tell.clone();
                    let how = if i % 3 == 0 { Durability::Durable } else { Durability::Ordered };
                    client.submit(
                        tool(&format!("{c}-{i}")),
                        how,
                        Box::new(move |r| tell.send((i, r.unwrap())).unwrap()),
                    );
                }
                drop(client); // Waits for the answers.
                drop(tell);
                let mut got: Vec<(usize, u64)> = told.iter().collect();
                got.sort_unstable();
                assert_eq!(got.len(), EACH);
                assert!(got.windows(2).all(|w| w[0].1 < w[1].1), "order of submission is kept");
                got
            })
        })
        .collect();
    let got: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    wait_for_end(&home);
    assert!(!socket_path(&home).exists());
    let entries = entries(&home);
    for (c, indices) in got.iter().enumerate() {
        for (i, index) in indices {
            let want = format!("{c}-{i}");
            let body = &entries[*index as usize].body;
            assert!(matches!(body, Body::ToolFinished { call, .. } if *call == want));
        }
    }
    assert_eq!(entries[0].body.kind(), "recorder_started");
    let last = entries.last().unwrap();
    assert_eq!(last.body, Body::RecorderStopped { records: entries.len() as u64 - 1 });
    assert!(entries.iter().all(|e| e.body.kind() != "client_lost"));
    assert_eq!(verify_dir(&log_dir(&home), None).unwrap().records, entries.len() as u64);
    // Every kind that a client may write goes through, and what only the recorder may say does not.
    let client = connect(&home, "kinds");
    for body in every_kind() {
        let own = matches!(
            body.kind(),
            "recorder_started"
                | "recorder_stopped"
                | "client_lost"
                | "key_announced"
                | "record_gap"
                | "clock_set_back"
                | "records_pruned"
        );
        let result = client.append(record(body), Durability::Durable);
        assert_eq!(matches!(result, Err(RecordError::Invalid { .. })), own, "{result:?}");
        assert_eq!(result.is_ok(), !own);
    }
    for size in [70_000, 200_000] {
        let large = record(Body::TurnFinished { outcome: "x".repeat(size), duration_ms: 1 });
        let result = client.append(large, Durability::Durable);
        assert!(matches!(result, Err(RecordError::TooLarge { .. })), "{result:?}");
    }
    client.append(tool("still there"), Durability::Ordered).unwrap();
}

fn starters_at_once() {
    let temp = Temp::new("starters");
    for round in 0..5 {
        let home = temp.0.clone();
        let threads: Vec<_> = (0..6)
            .map(|i| {
                let home = home.clone();
                thread::spawn(move || {
                    connect(&home, "racer")
                        .append(tool(&format!("{round}-{i}")), Durability::Durable)
                        .unwrap()
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        // Sometimes while the last one is just stopping.
        thread::sleep(Duration::from_millis(round * 80));
    }
    wait_for_end(&temp.0);
    let calls = entries(&temp.0).iter().filter(|e| e.body.kind() == "tool_finished").count();
    assert_eq!(calls, 30);
    verify_dir(&log_dir(&temp.0), None).unwrap();
}

fn lost_client() {
    let temp = Temp::new("lost");
    let keep = connect(&temp.0, "keeper");
    let mut child = Command::new(me())
        .args([OsStr::new("__writer"), temp.0.as_os_str()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = child.id();
    child.kill().unwrap();
    child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let lost = Body::ClientLost { pid, role: "writer".into() };
    while !entries(&temp.0).iter().any(|e| e.body == lost) {
        assert!(Instant::now() < until, "no client_lost");
        thread::sleep(Duration::from_millis(10));
    }
    keep.append(tool("x"), Durability::Durable).unwrap();
}

/// The recorder's process, by whom the socket's other end belongs to.
fn recorder_pid(home: &Path) -> Pid {
    let stream = UnixStream::connect(socket_path(home)).unwrap();
    rustix::net::sockopt::socket_peercred(&stream).unwrap().pid
}

fn dead_recorder() {
    let temp = Temp::new("dead");
    let client = connect(&temp.0, "orphan");
    client.append(tool("x"), Durability::Durable).unwrap();
    let (tell, told) = mpsc::channel();
    let pid = recorder_pid(&temp.0);
    kill_process(pid, Signal::STOP).unwrap();
    for _ in 0..50 {
        let tell = tell.clone();
        client.submit(tool("y"), Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
    }
    kill_process(pid, Signal::KILL).unwrap();
    for _ in 0..50 {
        let result = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(result, Err(RecordError::Gone { .. })), "{result:?}");
    }
    let later = client.append(tool("z"), Durability::Ordered);
    assert!(matches!(later, Err(RecordError::Gone { .. })), "{later:?}");
    // A new connection brings a new recorder, which goes on where the dead one was.
    connect(&temp.0, "next").append(tool("again"), Durability::Durable).unwrap();
    wait_for_end(&temp.0);
    verify_dir(&log_dir(&temp.0), None).unwrap();
    let started = entries(&temp.0).iter().filter(|e| e.body.kind() == "recorder_started").count();
    assert_eq!(started, 2);
}

fn hostile() {
    let temp = Temp::new("hostile");
    let keep = connect(&temp.0, "keeper");
    let hello = br#"H{"protocol":3,"pid":1,"role":"evil"}"#;
    let mut hello_frame = (hello.len() as u32).to_le_bytes().to_vec();
    hello_frame.extend(hello);
    let mut seed = Seed(5);
    for round in 0..200 {
        let mut stream = UnixStream::connect(socket_path(&temp.0)).unwrap();
        let mut bytes = if round % 2 == 0 { hello_frame.clone() } else { Vec::new() };
        match round % 5 {
            0 => bytes.extend(u32::MAX.to_le_bytes()),
            1 => bytes.extend([0, 0, 0, 0]),
            2 => bytes.extend(b"\x01\0\0\0S"),
            3 => bytes.extend((0..seed.below(300)).map(|_| seed.next() as u8).collect::<Vec<_>>()),
            _ => bytes.extend(b"\x0c\0\0\0S\x01\0\0\0\0\0\0\0\x01{}"),
        }
        // The other end may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 400, "{answer:?}");
    }
    // A client that floods and takes no answers: its memory at the recorder stays bounded.
    let mut flood = UnixStream::connect(socket_path(&temp.0)).unwrap();
    flood.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    flood.write_all(&hello_frame).unwrap();
    let mut welcome = [0; 5];
    flood.read_exact(&mut welcome).unwrap();
    assert_eq!(&welcome, b"\x01\0\0\0W", "the flood must get beyond the hello");
    let junk = b"\x0c\0\0\0S\x01\0\0\0\0\0\0\0\x01{}".repeat(1000);
    let mut sent = 0;
    while sent < 64 << 20 && flood.write_all(&junk).is_ok() {
        sent += junk.len();
    }
    assert!(sent < 64 << 20, "the flood was read to its end");
    keep.append(tool("unharmed"), Durability::Durable).unwrap();
    drop(flood);
    drop(keep);
    wait_for_end(&temp.0);
    verify_dir(&log_dir(&temp.0), None).unwrap();
}

fn full_disk() {
    let temp = Temp::new("full");
    let home = &temp.0;
    let start = || {
        let child = Command::new(me())
            .args([OsStr::new("__recorder"), home.as_os_str()])
            .env(FILE_LIMIT, "100000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.unwrap()).read_line(&mut line)?;
        Ok(())
    };
    let client = Client::connect(home, "filler", start).unwrap();
    let mut written = 0;
    let error = loop {
        match client.append(tool(&format!("{written}")), Durability::Durable) {
            Ok(_) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 10_000, "the disk never filled");
    };
    assert!(matches!(error, RecordError::Disk { .. } | RecordError::Gone { .. }), "{error}");
    let is_told = !matches!(error, RecordError::Disk { .. });
    assert!(is_told || error.to_string().contains("make room"), "no remedy: {error}");
    assert!(client.append(tool("after"), Durability::Ordered).is_err(), "taken after a failure");
    drop(client);
    wait_for_end(home);
    // With room again it goes on, and all that was acknowledged is there.
    connect(home, "next").append(tool("room again"), Durability::Durable).unwrap();
    wait_for_end(home);
    let calls = entries(home).iter().filter(|e| e.body.kind() == "tool_finished").count();
    assert!(calls > written, "{calls} of {written}");
    verify_dir(&log_dir(home), None).unwrap();
}

/// Submits without end and says on its output which were acknowledged: `<index> <call>` a line.
fn writer(home: &Path) -> ExitCode {
    let client = connect(home, "writer");
    let out = Arc::new(Mutex::new(std::io::stdout()));
    let me = std::process::id();
    let (tell, told) = mpsc::sync_channel(64);
    for i in 0u64.. {
        let (call, out, tell) = (format!("{me}-{i}"), Arc::clone(&out), tell.clone());
        let line = call.clone();
        let done = Box::new(move |result: Result<u64, RecordError>| {
            match result {
                Ok(index) => {
                    let line = format!("{index} {line}\n");
                    if out.lock().unwrap().write_all(line.as_bytes()).is_err() {
                        std::process::exit(1);
                    }
                }
                Err(_) => std::process::exit(1),
            }
            let _ = tell.send(());
        });
        client.submit(tool(&call), Durability::Durable, done);
        if i >= 60 {
            told.recv().unwrap();
        }
    }
    ExitCode::SUCCESS
}

fn flood() {
    const FLOOD: u64 = 200_000;
    let temp = Temp::new("flood");
    let client = Arc::new(connect(&temp.0, "flooder"));
    let of = |session, call: &str| Record {
        session: Some(model::SessionId::mint(7, session)),
        turn: None,
        ..tool(call)
    };
    // Another session of the same client, at the same time: none of its records may be refused.
    let (other, quiet) = (Arc::clone(&client), of(2, "quiet"));
    let others = thread::spawn(move || {
        for _ in 0..200 {
            other.append(quiet.clone(), Durability::Durable).unwrap();
        }
    });
    let (tell, told) = mpsc::channel();
    for n in 0..FLOOD {
        let tell = tell.clone();
        let how = if n % 2 == 0 { Durability::Durable } else { Durability::Ordered };
        client.submit(of(1, "x"), how, Box::new(move |r| tell.send(r).unwrap()));
    }
    drop(tell);
    let (mut taken, mut refused) = (0, 0);
    for answer in told {
        match answer {
            Ok(_) => taken += 1,
            Err(RecordError::Flood { .. }) => refused += 1,
            Err(e) => panic!("{e}"),
        }
    }
    others.join().unwrap();
    assert_eq!(taken + refused, FLOOD);
    assert!(refused > 0, "everything was taken");
    drop(client);
    wait_for_end(&temp.0);
    let entries = entries(&temp.0);
    let count = |session| {
        let session = Some(model::SessionId::mint(7, session));
        let of = |e: &&Record| e.session == session && e.body.kind() == "tool_finished";
        entries.iter().filter(of).count() as u64
    };
    assert_eq!((count(1), count(2)), (taken, 200));
    let gaps: Vec<(u64, bool)> = entries
        .iter()
        .filter(|e| e.session == Some(model::SessionId::mint(7, 1)))
        .filter_map(|e| match e.body {
            Body::RecordGap { lost, open, .. } => Some((lost, open)),
            _ => None,
        })
        .collect();
    assert_eq!(gaps.first(), Some(&(1, true)), "the first refusal is on record at once");
    let told: u64 = gaps.iter().skip(1).filter(|gap| **gap != (1, true)).map(|gap| gap.0).sum();
    assert_eq!(told, refused, "{gaps:?}");
    let last = entries.last().unwrap();
    assert_eq!(last.body, Body::RecorderStopped { records: entries.len() as u64 - 1 });
}

fn new_key() {
    let temp = Temp::new("rotate");
    let vkey = || std::fs::read_to_string(log_dir(&temp.0).join("vkey")).unwrap();
    let client = connect(&temp.0, "owner");
    let mut keys = vec![vkey()];
    for round in 0..3u64 {
        client.append(tool("before"), Durability::Durable).unwrap();
        let index = client.rotate_key().unwrap();
        keys.push(vkey());
        let announced = &entries(&temp.0)[index as usize];
        let Body::KeyAnnounced { old_vkey, new_vkey } = &announced.body else {
            panic!("round {round}: {announced:?}");
        };
        assert_eq!([old_vkey, new_vkey].map(|k| format!("{k}\n")), keys[keys.len() - 2..]);
    }
    drop(client);
    wait_for_end(&temp.0);
    for key in &keys {
        verify_dir(&log_dir(&temp.0), Some(key)).unwrap();
    }
    // Another recorder goes on with the newest one.
    connect(&temp.0, "next").append(tool("after"), Durability::Durable).unwrap();
    wait_for_end(&temp.0);
    assert_eq!(verify_dir(&log_dir(&temp.0), Some(&keys[0])).unwrap().vkey, keys[3].trim_end());
}

fn clock() {
    let temp = Temp::new("clock");
    let client = connect(&temp.0, "clock");
    let at = |time_ms| Record { time_ms, ..tool("t") };
    // A correction is no news, nor is the second record after the clock went back.
    for time_ms in [4_000_000_000_000, 3_999_999_990_000, 3_000_000_000_000, 3_000_000_000_000] {
        client.append(at(time_ms), Durability::Durable).unwrap();
    }
    let set_back = || {
        entries(&temp.0)
            .into_iter()
            .filter_map(|e| match e.body {
                Body::ClockSetBack { before_ms, now_ms } => Some((before_ms, now_ms)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(set_back(), [(4_000_000_000_000, 3_000_000_000_000)]);
    client.append(at(4_000_000_000_000), Durability::Durable).unwrap();
    drop(client);
    wait_for_end(&temp.0);
    // The recorder's own clock is that of today: seen at its end, and by the next at its start.
    assert_eq!(set_back().len(), 2);
    connect(&temp.0, "next").append(tool("x"), Durability::Durable).unwrap();
    wait_for_end(&temp.0);
    let body = |e: &Record| e.body.kind().to_owned();
    verify_dir(&log_dir(&temp.0), None).unwrap();
    assert_eq!(entries(&temp.0).iter().map(body).filter(|k| k == "recorder_stopped").count(), 2);
}
