//! Measures the log against its floor, on this machine's disk, in one run:
//! `bench_audit [FOLDER]` (the folder's file system is the one measured).
//!
//! Floor: a bare loop of one `write` and one `fdatasync` a batch, same bytes a batch, same folder.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use model::{Body, Done, Durability, Record, RecordSink, Sha256Hex};
use nanoclaw_audit as audit;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// Bytes of an entry.
const RECORD_BYTES: usize = 512;
/// Submits without an answer.
const OUTSTANDING: usize = 1024;
/// Records a measured run.
const RECORDS: usize = 200_000;
/// Runs; the first one warms up, the median of the others counts.
const RUNS: usize = 6;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "__recorder") {
        return audit::recorder_main(
            Path::new(&args[2]),
            rustix::io::dup(std::io::stdout()).unwrap(),
        );
    }
    let base = args.get(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = base.join(format!("bench-audit-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let floor = median(|run| floor(&dir, run));
    let log = median(|run| log(&dir, run));
    let socket = median(|run| socket(&dir, run));
    let verify = verify(&dir);
    println!("records of {RECORD_BYTES} bytes, {OUTSTANDING} outstanding, medians of {}", RUNS - 1);
    println!("floor: write + fdatasync   {floor:>12.0} records/s");
    println!("log, durable               {log:>12.0} records/s   {:.2} of the floor", log / floor);
    println!(
        "socket client, durable     {socket:>12.0} records/s   {:.2} of the floor",
        socket / floor
    );
    println!("verify                     {verify:>12.0} records/s");
    fs::remove_dir_all(&dir).unwrap();
    std::process::ExitCode::SUCCESS
}

fn median(mut run: impl FnMut(usize) -> f64) -> f64 {
    let mut all: Vec<f64> = (0..RUNS).map(&mut run).skip(1).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn floor(dir: &Path, run: usize) -> f64 {
    let mut file = File::create(dir.join(format!("floor-{run}"))).unwrap();
    let batch = vec![b'x'; OUTSTANDING * (RECORD_BYTES + 16)];
    let begun = Instant::now();
    for _ in 0..RECORDS / OUTSTANDING {
        file.write_all(&batch).unwrap();
        file.sync_data().unwrap();
    }
    (RECORDS / OUTSTANDING * OUTSTANDING) as f64 / begun.elapsed().as_secs_f64()
}

/// Lets so many through at a time.
#[derive(Default)]
struct Gate {
    open: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    fn enter(&self) {
        let mut open = self.open.lock().unwrap();
        if *open >= OUTSTANDING {
            // In bulk, so that the bench measures the log and not its own hand-over, one by one.
            while *open > OUTSTANDING / 2 {
                open = self.changed.wait(open).unwrap();
            }
        }
        *open += 1;
    }

    fn done(self: &Arc<Self>) -> Done {
        let gate = Arc::clone(self);
        Box::new(move |result| {
            result.expect("written");
            let mut open = gate.open.lock().unwrap();
            *open -= 1;
            if *open == OUTSTANDING / 2 || *open == 0 {
                gate.changed.notify_one();
            }
        })
    }

    fn empty(&self) {
        let mut open = self.open.lock().unwrap();
        while *open > 0 {
            open = self.changed.wait(open).unwrap();
        }
    }
}

fn record() -> Record {
    let mut record = Record {
        time_ms: 1_700_000_000_000,
        session: Some(model::SessionId::mint(1_700_000_000_000, 7)),
        agent: Some(model::AgentName::parse("bench").unwrap()),
        turn: None,
        body: Body::ToolCalled {
            call: "c".into(),
            tool: "bash".into(),
            arguments: String::new(),
            arguments_sha256: Sha256Hex("0".repeat(64)),
        },
    };
    let missing = RECORD_BYTES - audit::entry::encode(&record, &[b'0'; 36]).unwrap().bytes().len();
    if let Body::ToolCalled { arguments, .. } = &mut record.body {
        *arguments = "x".repeat(missing);
    }
    record
}

fn log(dir: &Path, run: usize) -> f64 {
    let dir = dir.join(format!("log-{run}"));
    let log = audit::Log::open(&dir).unwrap();
    let (record, uids) = (record(), audit::entry::Uids::new(1));
    let gate = Arc::new(Gate::default());
    let begun = Instant::now();
    for _ in 0..RECORDS {
        let entry = audit::entry::encode(&record, &uids.next(record.time_ms)).unwrap();
        gate.enter();
        log.submit(entry, Durability::Durable, gate.done());
    }
    gate.empty();
    let rate = RECORDS as f64 / begun.elapsed().as_secs_f64();
    log.close().unwrap();
    rate
}

fn socket(dir: &Path, run: usize) -> f64 {
    let home = dir.join(format!("home-{run}"));
    let me = std::env::current_exe().unwrap();
    let client = audit::Client::connect(&home, "bench", || {
        audit::start_recorder(&me, &[OsStr::new("__recorder"), home.as_os_str()])
    })
    .unwrap();
    let (record, gate) = (record(), Arc::new(Gate::default()));
    let begun = Instant::now();
    for _ in 0..RECORDS {
        gate.enter();
        client.submit(record.clone(), Durability::Durable, gate.done());
    }
    gate.empty();
    RECORDS as f64 / begun.elapsed().as_secs_f64()
}

fn verify(dir: &Path) -> f64 {
    median(|_| {
        let report = audit::verify_dir(&dir.join("log-1"), None).unwrap();
        report.records as f64 / report.seconds
    })
}
