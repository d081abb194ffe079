//! Measures the log against its floors, on this machine's disk, in one run:
//! `bench_audit [--json] [FOLDER]` (the folder's file system is the one measured).
//!
//! Floor of appending: a bare loop of one `write` and one `fdatasync` a batch, in the same folder,
//! with batches as large as the log's own were on average in the run before. Floor of verifying:
//! a bare read of the same files with one SHA-256 for every 512 bytes, on one thread.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use model::{Body, Done, Durability, Record, RecordSink, Sha256Hex};
use nanoclaw_audit as audit;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// Bytes of an entry.
const RECORD_BYTES: usize = 512;
/// Submits without an answer: half of what the recorder allows one client.
const OUTSTANDING: usize = 4096;
/// Records a measured run.
const RECORDS: usize = 200_000;
/// Records of one session in the run by the socket.
const SESSION_RECORDS: usize = 10_000;
/// Runs; the first one warms up, the median of the others counts.
const RUNS: usize = 6;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "__recorder") {
        return audit::recorder_main(
            Path::new(&args[1]),
            rustix::io::dup(std::io::stdout()).unwrap(),
        );
    }
    let json = args.iter().any(|a| a == "--json");
    let base = args.iter().find(|a| !a.starts_with("--"));
    let base = base.map_or_else(std::env::temp_dir, Into::into);
    let dir = base.join(format!("bench-audit-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let all: Vec<Run> = (0..RUNS).map(|run| Run::measure(&dir, run)).skip(1).collect();
    fs::remove_dir_all(&dir).unwrap();
    let figures = figures(&all);
    if json {
        figures.iter().for_each(Figure::print_json);
    } else {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let batch = median(&all, |r| r.batch);
        println!(
            "{RECORD_BYTES}-byte records, {OUTSTANDING} outstanding, {batch:.0} a sync; \
             medians of {}; load average {}",
            RUNS - 1,
            load.split(' ').next().unwrap_or("unknown")
        );
        println!(
            "{:<24} {:>12} {:>12} {:>7}  {:<30} met",
            "records/s", "value", "floor", "ratio", "target"
        );
        figures.iter().for_each(Figure::print);
    }
    std::process::ExitCode::SUCCESS
}

/// What one run measured, records a second.
struct Run {
    floor: f64,
    log: f64,
    signed: f64,
    socket: f64,
    verify_floor: f64,
    verify: f64,
    batch: f64,
}

impl Run {
    /// One after the other, so that what else the machine does falls on all alike.
    fn measure(dir: &Path, run: usize) -> Self {
        let folder = dir.join(format!("log-{run}"));
        let (log, signed, batch) = log(&folder);
        Self {
            floor: floor(dir, run, batch),
            log,
            signed,
            socket: socket(dir, run),
            verify_floor: verify_floor(&folder),
            verify: verify(&folder),
            batch: batch as f64,
        }
    }
}

struct Figure {
    name: &'static str,
    value: f64,
    floor: f64,
    /// Smallest rate; and the smallest part of the floor that will do as well.
    target: Option<(f64, Option<f64>)>,
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.value / self.floor
    }

    fn target(&self) -> String {
        match self.target {
            None => "-".to_owned(),
            Some((rate, None)) => format!("at least {rate:.0}"),
            Some((rate, Some(part))) => format!("at least {rate:.0}, or {part} of floor"),
        }
    }

    fn ok(&self) -> bool {
        self.target.is_none_or(|(rate, part)| {
            self.value >= rate || part.is_some_and(|part| self.ratio() >= part)
        })
    }

    fn print(&self) {
        let met = if self.ok() { "yes" } else { "NO" };
        println!(
            "{:<24} {:>12.0} {:>12.0} {:>7.2}  {:<30} {met}",
            self.name,
            self.value,
            self.floor,
            self.ratio(),
            self.target()
        );
    }

    fn print_json(&self) {
        let (name, value, unit, floor) = (self.name, self.value, "records/s", self.floor);
        let round = |n: f64| (n * 1000.0).round() / 1000.0;
        println!(
            "{}",
            serde_json::json!({
                "name": name, "value": round(value), "unit": unit, "floor": round(floor),
                "ratio": round(self.ratio()), "target": self.target(), "ok": self.ok(),
            })
        );
    }
}

fn figures(all: &[Run]) -> [Figure; 4] {
    let floor = median(all, |r| r.floor);
    let f = |name, value, floor, target| Figure { name, value, floor, target };
    [
        f("append, durable", median(all, |r| r.log), floor, Some((100_000.0, Some(0.6)))),
        f("append, durable, signed", median(all, |r| r.signed), floor, None),
        f("append by the socket", median(all, |r| r.socket), floor, Some((60_000.0, Some(0.6)))),
        f(
            "verify",
            median(all, |r| r.verify),
            median(all, |r| r.verify_floor),
            Some((500_000.0, None)),
        ),
    ]
}

fn median(all: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    let mut all: Vec<f64> = all.iter().map(value).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn floor(dir: &Path, run: usize, batch: usize) -> f64 {
    let mut file = File::create(dir.join(format!("floor-{run}"))).unwrap();
    let bytes = vec![b'x'; batch * (RECORD_BYTES + audit::wal::HEADER_BYTES)];
    let batches = RECORDS.div_ceil(batch);
    let begun = Instant::now();
    for _ in 0..batches {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
    }
    (batches * batch) as f64 / begun.elapsed().as_secs_f64()
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

/// Rate until all is durable, rate until all is signed as well, and records a sync.
fn log(dir: &Path) -> (f64, f64, usize) {
    let log = audit::Log::open(dir).unwrap();
    let (record, uids) = (record(), audit::entry::Uids::new(1));
    let (gate, mut spare) = (Arc::new(Gate::default()), Vec::new());
    let begun = Instant::now();
    for _ in 0..RECORDS {
        let uid = uids.next(record.time_ms);
        let entry = audit::entry::encode_in(spare, &record, &uid).unwrap();
        gate.enter();
        log.submit(&entry, Durability::Durable, gate.done());
        spare = entry.into_bytes();
    }
    gate.empty();
    let durable = RECORDS as f64 / begun.elapsed().as_secs_f64();
    log.sign().unwrap();
    let signed = RECORDS as f64 / begun.elapsed().as_secs_f64();
    let batch = RECORDS / usize::try_from(log.syncs()).unwrap().max(1);
    log.close().unwrap();
    (durable, signed, batch)
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
    for n in 0..RECORDS {
        gate.enter();
        // Many sessions: one alone may not submit so many.
        let of = (n / SESSION_RECORDS) as u32;
        let session = Some(model::SessionId::mint(record.time_ms, of));
        client.submit(Record { session, ..record.clone() }, Durability::Durable, gate.done());
    }
    gate.empty();
    RECORDS as f64 / begun.elapsed().as_secs_f64()
}

fn verify(dir: &Path) -> f64 {
    let report = audit::verify_dir(dir, None).unwrap();
    report.records as f64 / report.seconds
}

fn verify_floor(dir: &Path) -> f64 {
    let (begun, mut records, mut block) = (Instant::now(), 0, vec![0; 1 << 20]);
    for segment in audit::wal::segments(dir).unwrap() {
        let mut file = File::open(segment.path).unwrap();
        loop {
            let n = file.read(&mut block).unwrap();
            if n == 0 {
                break;
            }
            for entry in block[..n].chunks_exact(RECORD_BYTES) {
                std::hint::black_box(audit::merkle::leaf_hash(entry));
                records += 1;
            }
        }
    }
    f64::from(records) / begun.elapsed().as_secs_f64()
}
