//! The recorder as a real process: many clients, kills at random moments, a full disk, hostile
//! bytes.
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
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
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
    let tests: [(&str, fn()); 7] = [
        ("many_clients_share_one_recorder_that_ends_with_them", many_clients),
        ("starters_at_once_end_well", starters_at_once),
        ("a_lost_client_is_on_record", lost_client),
        ("a_dead_recorder_is_gone_for_everyone", dead_recorder),
        ("hostile_bytes_end_only_their_own_connection", hostile),
        ("a_full_disk_refuses", full_disk),
        ("killed_at_any_moment_nothing_acknowledged_is_lost", crash_campaign),
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
    let lock = std::fs::File::open(log_dir(home).join("private/lock")).unwrap();
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
        let own = matches!(body.kind(), "recorder_started" | "recorder_stopped" | "client_lost");
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
    let hello = br#"H{"protocol":2,"pid":1,"role":"evil"}"#;
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

/// Kills the recorder until the writer has ended for it: one that had not connected yet rightly
/// starts another.
fn kill_recorder_of(home: &Path, writer: &mut Child) {
    let until = Instant::now() + Duration::from_secs(20);
    while writer.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the writer goes on without its recorder");
        if let Ok(stream) = UnixStream::connect(socket_path(home)) {
            let pid = rustix::net::sockopt::socket_peercred(&stream).unwrap().pid;
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn crash_campaign() {
    const KILLS: u64 = 30;
    let temp = Temp::new("crash");
    let mut seed = Seed(0x00c0_ffee);
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..KILLS {
        let mut child = Command::new(me())
            .args([OsStr::new("__writer"), temp.0.as_os_str()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let lines = thread::spawn(move || {
            let mut all = Vec::new();
            BufReader::new(stdout).read_to_end(&mut all).unwrap();
            all
        });
        let until = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(socket_path(&temp.0)).is_err() {
            assert!(Instant::now() < until, "no recorder");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(seed.below(120_000)));
        // Mostly the recorder dies, sometimes the client does.
        if round % 4 != 3 {
            kill_recorder_of(&temp.0, &mut child);
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for line in lines.join().unwrap().split_inclusive(|b| *b == b'\n') {
            let line = std::str::from_utf8(line).unwrap();
            let Some((index, call)) = line.strip_suffix('\n').and_then(|l| l.split_once(' '))
            else {
                continue;
            };
            let twice = acknowledged.insert(index.parse().unwrap(), call.to_owned());
            assert_eq!(twice, None, "index {index} was given twice");
        }
        wait_for_end(&temp.0);
        verify_dir(&log_dir(&temp.0), None).unwrap_or_else(|f| panic!("round {round}: {f}"));
    }
    connect(&temp.0, "last").append(tool("end"), Durability::Durable).unwrap();
    wait_for_end(&temp.0);
    let entries = entries(&temp.0);
    for (index, want) in &acknowledged {
        let found = &entries[*index as usize].body;
        assert!(
            matches!(found, Body::ToolFinished { call, .. } if call == want),
            "{index}: {found:?}"
        );
    }
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    assert_eq!(verify_dir(&log_dir(&temp.0), None).unwrap().records, entries.len() as u64);
    println!("  {KILLS} kills, {} acknowledged, {} in the log", acknowledged.len(), entries.len());
}
