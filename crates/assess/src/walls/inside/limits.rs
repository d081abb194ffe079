//! Limits, reached. Every act has a goal a little beyond its limit and gives up there.

use super::tools::{error, seen, text, with_file};
use super::{Act, linger};
use crate::walls::Answer;
use std::fs::File;
use std::io::{self, Write};
use std::process::Child;
use std::time::{Duration, Instant};

pub(super) const ACTS: &[(&str, Act)] = &[
    ("fork-bomb", |g| fork_bomb(goal(g.bait.tight.pids))),
    ("thread-bomb", |g| thread_bomb(goal(g.bait.tight.pids))),
    ("memory-bomb", |g| memory_bomb(g.bait.tight.memory_bytes)),
    ("tmpfs-bomb", |g| tmpfs_bomb(g.bait.tight.tmp_bytes)),
    ("tmpfs-inodes", |_| inodes()),
    ("open-files", |g| open_files(goal(g.bait.tight.open_files))),
    ("file-size", |g| file_size(g.bait.tight.file_bytes)),
    ("cpu-share", |g| cpu_share(g.bait.tight.cpu_milli)),
];

/// More of anything is no better proof, and would hurt a machine without limits.
const GOAL_MAX: u64 = 2_048;
/// So much above a limit must not be reached.
const ABOVE: u64 = 24;
/// Memory and files are filled in pieces of this, bytes.
const PIECE: usize = 1 << 20;
/// Most memory or disk that is filled, bytes.
const FILL_MAX: u64 = 256 << 20;
/// Stacks of threads that only wait.
const STACK: usize = 64 << 10;
/// Several periods of a CPU limit, which are 100 ms each.
const BURN: Duration = Duration::from_millis(500);
/// Most inodes that count as bounded: twice what a sandbox's tmpfs has.
const INODES_MAX: u64 = 262_144;

fn goal(limit: u64) -> usize {
    usize::try_from((limit + ABOVE).min(GOAL_MAX)).unwrap_or(0)
}

fn fork_bomb(goal: usize) -> Answer {
    let mut children: Vec<Child> = Vec::new();
    let mut refusal = None;
    while children.len() < goal && refusal.is_none() {
        match linger::start(&["wait"]) {
            Ok(child) => children.push(child),
            Err(e) => refusal = Some(e),
        }
    }
    for child in &mut children {
        // Already gone is as good as killed.
        drop(child.kill());
        drop(child.wait());
    }
    match refusal {
        Some(e) => error(&e),
        None => Answer::Done(format!("{} processes were started", children.len())),
    }
}

fn thread_bomb(goal: usize) -> Answer {
    for _ in 0..goal {
        let thread = std::thread::Builder::new().stack_size(STACK);
        if let Err(e) = thread.spawn(std::thread::park) {
            return error(&e);
        }
    }
    Answer::Done(format!("{goal} threads were started"))
}

fn memory_bomb(limit: u64) -> Answer {
    let goal = usize::try_from((limit + limit / 2).min(FILL_MAX)).unwrap_or(0);
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() * PIECE < goal {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(PIECE).is_err() {
            return Answer::Errno(libc::ENOMEM);
        }
        piece.resize(PIECE, 0xA5);
        held.push(std::hint::black_box(piece));
    }
    Answer::Done(format!("{} MiB were filled", goal >> 20))
}

fn tmpfs_bomb(limit: u64) -> Answer {
    let goal = usize::try_from((limit + limit / 2).min(FILL_MAX)).unwrap_or(0);
    with_file("fill", |path| {
        let fill = || -> io::Result<()> {
            let mut file = File::create(path)?;
            let piece = vec![0xA5; PIECE];
            (0..goal.div_ceil(PIECE)).try_for_each(|_| file.write_all(&piece))
        };
        match fill() {
            Ok(()) => Answer::Done(format!("{} MiB were written", goal >> 20)),
            Err(e) => error(&e),
        }
    })
}

fn inodes() -> Answer {
    match rustix::fs::statvfs(std::env::temp_dir()) {
        Err(e) => Answer::Failed(e.to_string()),
        // Some file systems count none and have no bound.
        Ok(stat) => {
            let bounded = (1..=INODES_MAX).contains(&stat.f_files);
            seen(bounded, format!("{} inodes", stat.f_files))
        }
    }
}

fn open_files(goal: usize) -> Answer {
    let mut held = Vec::new();
    while held.len() < goal {
        match File::open("/dev/null") {
            Ok(file) => held.push(file),
            Err(e) => return error(&e),
        }
    }
    Answer::Done(format!("{goal} files were opened"))
}

/// A file without a name and without contents, but of that length.
fn file_size(limit: u64) -> Answer {
    const NAME: &str = ".nanoclaw-probe-large";
    let grow = || -> io::Result<()> {
        let file = File::create(NAME)?;
        std::fs::remove_file(NAME)?;
        file.set_len(limit.saturating_add(1))
    };
    match grow() {
        Ok(()) => Answer::Done(format!("a file of {limit} bytes and one more")),
        Err(e) => error(&e),
    }
}

/// CPU time of this process in hundredths of a second (proc_pid_stat(5): utime, stime).
fn ticks() -> Result<u64, Answer> {
    let stat = text("/proc/self/stat")?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok());
    let sum = field(11).zip(field(12)).map(|(user, system)| user + system);
    sum.ok_or_else(|| Answer::Failed("odd /proc/self/stat".into()))
}

/// Burns, and compares what was got with what may be got. A busy machine gives less than the limit,
/// never more, so a limit that is missing shows on a machine with a CPU to spare.
fn cpu_share(milli: u64) -> Answer {
    const MILLIS_PER_TICK: u64 = 10;
    let measure = || -> Result<u64, Answer> {
        let (before, begun) = (ticks()?, Instant::now());
        let mut number = 1_u64;
        while begun.elapsed() < BURN {
            for _ in 0..10_000 {
                number = std::hint::black_box(number.wrapping_mul(3).wrapping_add(1));
            }
        }
        let wall = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok((ticks()? - before) * MILLIS_PER_TICK * 1_000 / wall.max(1))
    };
    match measure() {
        Err(failed) => failed,
        Ok(got) => {
            // One period's burst more, and a tick of rounding.
            let most = milli + milli / 2 + 100;
            seen(got <= most, format!("{got} thousandths of a CPU"))
        }
    }
}
