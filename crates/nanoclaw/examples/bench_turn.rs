//! From a committed message to the first model request, cold and warm, and what idling costs.
//!
//! Starts the real binary (`NANOCLAW_BIN`, else the one beside this example) against a model
//! server on loopback, and prints each figure beside its budget and the disk's own sync time,
//! measured in the same run.

// A measuring program: what it cannot have, ends it.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use testkit::{FakeModel, Options, TempDir};

const COLD_RUNS: usize = 15;
const WARM_RUNS: usize = 60;
const WARM_UP: usize = 5;
const SYNCS: usize = 200;
const IDLE: Duration = Duration::from_secs(5);

fn main() {
    let temp = TempDir::new("bt").expect("folder");
    let home = temp.path().join("h");
    let server = FakeModel::start(Options::default()).expect("server");
    write_config(&home, &server.base_url());
    let sync = sync_ms(temp.path());
    println!("floor  fdatasync after a 512-byte append, p50   {sync:.2} ms");
    let mut cold: Vec<f64> = (0..COLD_RUNS + WARM_UP).map(|_| cold_once(&home, &server)).collect();
    cold.drain(..WARM_UP);
    report("cold", &mut cold, 20.0 + 2.0 * sync, "20 ms + two syncs");
    let mut chat = Chat::start(&home);
    let mut warm: Vec<f64> =
        (0..WARM_RUNS + WARM_UP).map(|_| chat.turn("NOTOOL hello", &server)).collect();
    warm.drain(..WARM_UP);
    report("warm", &mut warm, 3.0 + sync, "3 ms + one sync");
    idle(&chat);
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NANOCLAW_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("own path");
    own.parent().and_then(Path::parent).expect("target folder").join("nanoclaw")
}

fn write_config(home: &Path, base_url: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(home).expect("home");
    fs::set_permissions(home, fs::Permissions::from_mode(0o700)).expect("mode");
    let text = format!(
        "schema = 1\n[models.m]\napi = \"openai\"\nmodel = \"m\"\nbase_url = \"{base_url}\"\n"
    );
    fs::write(home.join("nanoclaw.toml"), text).expect("config");
}

fn sync_ms(dir: &Path) -> f64 {
    let mut file = File::create(dir.join("sync")).expect("file");
    let once = |file: &mut File| {
        let begun = Instant::now();
        file.write_all(&[7; 512]).expect("write");
        file.sync_data().expect("sync");
        millis(begun)
    };
    let mut all: Vec<f64> = (0..SYNCS).map(|_| once(&mut file)).collect();
    median(&mut all)
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1_000.0
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn report(name: &str, all: &mut [f64], budget: f64, words: &str) {
    let p50 = median(all);
    let p95 = all[all.len() * 95 / 100];
    let verdict = if p50 <= budget { "within" } else { "OVER" };
    println!(
        "{name}   committed → model request, p50 {p50:6.2} ms  p95 {p95:6.2} ms   \
         budget {budget:.2} ms ({words}): {verdict}"
    );
}

/// When the line with `word` came.
struct Lines(Receiver<(Instant, String)>);

impl Lines {
    fn of(child: &mut Child) -> Self {
        let out = child.stdout.take().expect("piped");
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if tell.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self(told)
    }

    fn until(&self, word: &str) -> Instant {
        loop {
            let (at, line) = self.0.recv_timeout(Duration::from_secs(20)).expect("an event");
            if line.contains(word) {
                return at;
            }
        }
    }
}

/// When the server has its `n`-th request.
fn arrival(server: &FakeModel, n: usize) -> Instant {
    assert!(server.wait_for(n, Duration::from_secs(20)), "request {n} came");
    Instant::now()
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("--home").arg(home).arg("chat").arg("--json");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn cold_once(home: &Path, server: &FakeModel) -> f64 {
    let before = server.requests().len();
    let mut child = command(home).args(["--new", "-m", "NOTOOL hello"]).spawn().expect("start");
    let lines = Lines::of(&mut child);
    let committed = lines.until("\"received\"");
    let arrived = arrival(server, before + 1);
    child.wait().expect("end");
    arrived.saturating_duration_since(committed).as_secs_f64() * 1_000.0
}

struct Chat {
    child: Child,
    input: ChildStdin,
    lines: Lines,
}

impl Chat {
    fn start(home: &Path) -> Self {
        let mut child = command(home).arg("--new").spawn().expect("start");
        let lines = Lines::of(&mut child);
        let input = child.stdin.take().expect("piped");
        Self { child, input, lines }
    }

    fn turn(&mut self, text: &str, server: &FakeModel) -> f64 {
        let before = server.requests().len();
        writeln!(self.input, "{text}").expect("line");
        let committed = self.lines.until("\"received\"");
        let arrived = arrival(server, before + 1);
        self.lines.until("turn_finished");
        arrived.saturating_duration_since(committed).as_secs_f64() * 1_000.0
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Resident memory and wake-ups of the host process, its spawner and the sandbox's init.
fn idle(chat: &Chat) {
    let host = chat.child.id();
    std::thread::sleep(Duration::from_secs(1));
    let family = descendants(host);
    let before = wakeups(&family);
    std::thread::sleep(IDLE);
    let woken = wakeups(&family) - before;
    println!("idle   wake-ups in {} s of all processes: {woken}   budget 0", IDLE.as_secs());
    let resident = memory(host, "VmRSS:");
    println!("idle   host process resident {:.1} MiB   budget 25 MiB", resident / 1_024.0);
    for pid in family.iter().filter(|p| **p != host) {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let role = words.split(|b| *b == 0).nth(1).unwrap_or_default();
        let pss = rollup(*pid, "Pss:");
        let own = rollup(*pid, "Private_Dirty:");
        let role = String::from_utf8_lossy(role);
        println!("idle   {role:16} Pss {:.2} MiB, private {:.2} MiB", pss / 1024.0, own / 1024.0);
    }
}

fn descendants(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let mut parents: Vec<(u32, u32)> = pids
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    parents.sort_unstable();
    for _ in 0..8 {
        for (pid, parent) in &parents {
            if all.contains(parent) && !all.contains(pid) {
                all.push(*pid);
            }
        }
    }
    all
}

fn wakeups(pids: &[u32]) -> u64 {
    pids.iter()
        .flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten())
        .map(|task| field(&task.path().join("status"), "voluntary_ctxt_switches:"))
        .map(|n| n as u64)
        .sum()
}

fn memory(pid: u32, name: &str) -> f64 {
    field(Path::new(&format!("/proc/{pid}/status")), name)
}

fn rollup(pid: u32, name: &str) -> f64 {
    field(Path::new(&format!("/proc/{pid}/smaps_rollup")), name)
}

fn field(path: &Path, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}
