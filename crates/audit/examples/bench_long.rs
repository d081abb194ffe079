//! Measures a long log on this machine's disk: `bench_long [--json] [--records N] [FOLDER]`, ten
//! million unless told otherwise, which takes 8 GB while it runs.
//!
//! Floor of appending: a bare loop of one `write` and one `fdatasync` a batch, in the same folder,
//! with batches as large as the log's own were. Opening is measured in a process of its own, with
//! the memory that it took at most; the files are in the page cache.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use model::{Body, Done, Durability, Record};
use nanoclaw_audit as audit;
use nanoclaw_audit::entry::{Uids, encode_in};
use nanoclaw_audit::merkle::{inclusion_proof, leaf_hash, verify_inclusion};
use nanoclaw_audit::tiles::TileNodes;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// Records unless told otherwise.
const RECORDS: u64 = 10_000_000;
/// Submits without an answer: as many writers that wait each for theirs.
const WRITERS: usize = 1_024;
/// Opens, and records proved; medians count.
const OPENS: usize = 5;
const PROOFS: u64 = 500;
/// Appends of a single writer, each waited for.
const SINGLE: usize = 200;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "__open") {
        return open(Path::new(&args[1]));
    }
    let json = args.iter().any(|a| a == "--json");
    let records = args.iter().position(|a| a == "--records").map(|at| args[at + 1].parse());
    let records = records.map_or(RECORDS, |n| n.expect("a number"));
    let base = args.iter().rfind(|a| a.starts_with(['/', '.']));
    let base = base.map_or_else(std::env::temp_dir, Into::into);
    let dir = base.join(format!("bench-long-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let figures = measure(&dir, records);
    fs::remove_dir_all(&dir).unwrap();
    for figure in &figures {
        if json { figure.print_json() } else { figure.print() }
    }
    std::process::ExitCode::SUCCESS
}

struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    floor: Option<f64>,
    target: String,
    ok: bool,
}

impl Figure {
    fn print(&self) {
        let Self { name, value, unit, target, .. } = self;
        let floor = self
            .floor
            .map_or(String::new(), |floor| format!("floor {floor:.1}, ratio {:.2}", value / floor));
        let met = if self.ok { "yes" } else { "NO" };
        println!("{name:<34} {value:>12.1} {unit:<10} {floor:<34} {target:<34} {met}");
    }

    fn print_json(&self) {
        let Self { name, value, unit, floor, target, ok } = self;
        let ratio = floor.map(|floor| value / floor);
        println!(
            "{}",
            serde_json::json!({"name": name, "value": value, "unit": unit, "floor": floor,
                "ratio": ratio, "target": target, "ok": ok})
        );
    }
}

fn most(name: &'static str, value: f64, unit: &'static str, limit: f64) -> Figure {
    let target = format!("under {limit}");
    Figure { name, value, unit, floor: None, target, ok: value < limit }
}

fn rate(name: &'static str, value: f64, least: Option<f64>) -> Figure {
    let target = least.map_or("-".to_owned(), |least| format!("at least {least}"));
    let ok = least.is_none_or(|least| value >= least);
    Figure { name, value, unit: "records/s", floor: None, target, ok }
}

fn measure(dir: &Path, records: u64) -> Vec<Figure> {
    let log = dir.join("log");
    let made = make(&log, records);
    let floor = floor(dir, made.batch, made.bytes);
    let share = made.rate / floor;
    let (single, sync) = single(dir);
    let mut opens: Vec<[f64; 3]> = (0..OPENS).map(|_| open_elsewhere(&log)).collect();
    opens.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let memory = opens.iter().map(|o| o[1]).fold(0.0, f64::max);
    let busy = opens.iter().map(|o| o[2]).fold(0.0, f64::max);
    let (proof, worst) = proofs(&log, records);
    let plain = audit::verify::verify_dir(&log, None).unwrap();
    let strict = audit::verify::verify_dir_as(&log, None, true).unwrap();
    assert!(plain.records > records && strict.records > records);
    vec![
        Figure {
            name: "append, durable, 1024 writers",
            value: made.rate,
            unit: "records/s",
            floor: Some(floor),
            target: "at least 100000, or 0.6 of floor".to_owned(),
            ok: made.rate >= 100_000.0 || share >= 0.6,
        },
        Figure {
            name: "append, one writer, p50",
            value: single,
            unit: "ms",
            floor: Some(sync),
            target: "at most 2 of floor (a sync)".to_owned(),
            ok: single <= 2.0 * sync,
        },
        most("open", opens[OPENS / 2][0], "s", 2.0),
        most("open, processor time at most", busy, "s", 2.0),
        most("open, memory at most", memory, "MB", 200.0),
        most("proof of one record, p50", proof, "ms", 5.0),
        most("proof of one record, worst", worst, "ms", 5.0),
        rate("verify", plain.records as f64 / plain.seconds, Some(1_000_000.0)),
        rate("verify --strict", strict.records as f64 / strict.seconds, None),
    ]
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
        if *open >= WRITERS {
            // In bulk, so that the bench measures the log and not its own hand-over, one by one.
            while *open > WRITERS / 2 {
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
            if *open == WRITERS / 2 || *open == 0 {
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
    let body = Body::TurnFinished { outcome: "done".into(), duration_ms: 1_234 };
    let session = Some(model::SessionId::mint(1_700_000_000_000, 7));
    let agent = Some(model::AgentName::parse("bench").unwrap());
    Record { time_ms: 1_700_000_000_000, session, agent, turn: None, body }
}

struct Made {
    rate: f64,
    batch: usize,
    bytes: usize,
}

/// A log of so many records, the last one waited for.
fn make(dir: &Path, records: u64) -> Made {
    let log = audit::Log::open(dir).unwrap();
    let (record, uids, gate) = (record(), Uids::new(1), Arc::new(Gate::default()));
    let (mut spare, mut bytes, begun) = (Vec::new(), 0, Instant::now());
    for _ in 0..records {
        let entry = encode_in(spare, &record, &uids.next(record.time_ms)).unwrap();
        bytes = entry.bytes().len();
        gate.enter();
        log.submit(&entry, Durability::Durable, gate.done());
        spare = entry.into_bytes();
    }
    gate.empty();
    let rate = records as f64 / begun.elapsed().as_secs_f64();
    let batch = records / log.syncs().max(1);
    log.close().unwrap();
    Made { rate, batch: usize::try_from(batch).unwrap().max(1), bytes }
}

fn floor(dir: &Path, batch: usize, entry: usize) -> f64 {
    let mut file = File::create(dir.join("floor")).unwrap();
    let bytes = vec![b'x'; batch * (entry + audit::wal::HEADER_BYTES)];
    let batches = (1_000_000 / batch).clamp(200, 2_000);
    let begun = Instant::now();
    for _ in 0..batches {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
    }
    (batches * batch) as f64 / begun.elapsed().as_secs_f64()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// One append at a time by the log, and one bare write and sync; ms, medians, taken in turns.
fn single(dir: &Path) -> (f64, f64) {
    let log = audit::Log::open(&dir.join("single")).unwrap();
    let mut file = File::create(dir.join("single-floor")).unwrap();
    let (record, uids, gate) = (record(), Uids::new(2), Arc::new(Gate::default()));
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..SINGLE {
        let entry = encode_in(Vec::new(), &record, &uids.next(record.time_ms)).unwrap();
        let begun = Instant::now();
        gate.enter();
        log.submit(&entry, Durability::Durable, gate.done());
        gate.empty();
        ours.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        file.write_all(entry.bytes()).unwrap();
        file.sync_data().unwrap();
        bare.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    (median(ours), median(bare))
}

/// Opens a log, says how long it took (s), what memory at most (MB) and what processor time (s),
/// and closes it.
fn open(dir: &Path) -> std::process::ExitCode {
    let begun = Instant::now();
    let log = audit::Log::open(dir).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{seconds} {} {}", kib * 1_024.0 / 1e6, busy_seconds());
    // So that the next one finds the newest record unsigned, as after any work.
    let (gate, uids) = (Arc::new(Gate::default()), Uids::new(3));
    let entry = encode_in(Vec::new(), &record(), &uids.next(1)).unwrap();
    gate.enter();
    log.submit(&entry, Durability::Durable, gate.done());
    gate.empty();
    log.close().unwrap();
    std::process::ExitCode::SUCCESS
}

/// Processor time of this process so far, to a hundredth.
fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit_once(") ").unwrap().1;
    let ticks = after.split(' ').skip(11).take(2).map(|n| n.parse::<f64>().unwrap());
    // `USER_HZ` is 100 on every architecture that Linux runs this on.
    ticks.sum::<f64>() / 100.0
}

fn open_elsewhere(dir: &Path) -> [f64; 3] {
    let me = std::env::current_exe().unwrap();
    let output = Command::new(me).arg("__open").arg(dir).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let all: Vec<f64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    all.try_into().expect("three numbers")
}

/// Proves records all over the log from its tiles, and checks each proof; ms: median and worst.
fn proofs(dir: &Path, records: u64) -> (f64, f64) {
    let vkey = fs::read_to_string(dir.join("vkey")).unwrap();
    let verifier = audit::note::Verifier::parse(vkey.trim_end()).unwrap();
    let head = verifier.open(&fs::read(dir.join("checkpoint")).unwrap()).unwrap();
    let nodes = TileNodes::new(dir, head.size);
    let mut all = Vec::new();
    for n in 0..PROOFS {
        let index = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % records;
        let filter = audit::Filter { from: index, ..audit::Filter::default() };
        // Its entry is looked up outside: what is measured is the proof.
        let stored = (n < 20).then(|| audit::Reader::new(dir, filter).next().unwrap().unwrap());
        let begun = Instant::now();
        let proof = inclusion_proof(&nodes, index, head.size).unwrap().unwrap();
        all.push(begun.elapsed().as_secs_f64() * 1e3);
        if let Some(stored) = stored {
            let leaf = leaf_hash(&stored.bytes);
            assert!(verify_inclusion(&leaf, index, head.size, &proof, &head.root));
        }
    }
    let worst = all.iter().copied().fold(0.0, f64::max);
    (median(all), worst)
}
