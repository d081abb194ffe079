//! Another session at the same time, and what was before: tried.

use super::sockets::{abstract_socket, tcp};
use super::spaces::{places, processes, signal};
use super::tools::{call, either, nothing, of, seen, text};
use super::{Act, Ground};
use crate::walls::Answer;
use std::ffi::CString;
use std::fs::File;

pub(super) const ACTS: &[(&str, Act)] = &[
    ("other-session-file", |g| {
        let other = &g.bait.other;
        of("it was opened", File::open(format!("{}/{}", other.workspace, other.name)))
    }),
    ("other-session-workspace", |g| of("it was opened", File::open(&g.bait.other.name))),
    ("other-session-tmp", |g| {
        of("it was opened", File::open(std::env::temp_dir().join(&g.bait.other.name)))
    }),
    ("other-session-shm", |g| {
        of("it was opened", File::open(format!("/dev/shm/{}", g.bait.other.name)))
    }),
    ("other-session-processes", |g| processes(&g.bait.other.name)),
    ("other-session-signal", |g| signal(g.bait.other.pid)),
    ("other-session-loopback", |g| tcp(&format!("127.0.0.1:{}", g.bait.other.tcp_port))),
    ("other-session-abstract", |g| abstract_socket(&g.bait.other.name)),
    ("other-session-memory", |g| {
        let key = usize::try_from(g.bait.other.shm_key).unwrap_or(0);
        missing_if_unknown(call(libc::SYS_shmget, [key, 0, 0, 0, 0, 0]))
    }),
    ("other-session-queue", |g| queue(&g.bait.other.name)),
    ("other-session-uid", |g| either(uid(g))),
    ("persistence", |g| places(&g.bait.persistence, "no place to leave it")),
    ("next-session-canary", |g| left(&g.bait.left)),
];

/// A kernel built without System V objects or queues has nothing to keep apart.
fn missing_if_unknown(answer: Answer) -> Answer {
    match answer {
        Answer::Errno(libc::ENOSYS) => Answer::Absent("the kernel has no such thing".into()),
        other => other,
    }
}

fn queue(name: &str) -> Answer {
    match CString::new(name) {
        Err(_) => Answer::Failed("an odd name".into()),
        Ok(name) => {
            let args = [name.as_ptr().addr(), 0, 0, 0, 0, 0];
            missing_if_unknown(call(libc::SYS_mq_open, args))
        }
    }
}

fn uid(ground: &Ground) -> Result<Answer, Answer> {
    let own = super::linger::map_of(&text("/proc/self/uid_map")?);
    let same = own == ground.bait.other.uid_map;
    Ok(seen(!same, if same { "the same uid" } else { "another uid" }))
}

/// Names with that word in every place where something could have been left.
fn left(word: &str) -> Answer {
    if word.is_empty() {
        return Answer::Failed("no word was told".into());
    }
    let here = std::env::current_dir().unwrap_or_default();
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from).unwrap_or_default();
    let tmp = std::env::temp_dir();
    let folders = [here, home, tmp, "/dev/shm".into(), "/var/tmp".into()];
    let names = folders.iter().flat_map(|f| std::fs::read_dir(f).into_iter().flatten().flatten());
    let found: Vec<String> = names
        .map(|e| e.path().display().to_string())
        .filter(|path| path.rsplit('/').next().is_some_and(|name| name.contains(word)))
        .collect();
    nothing(&found, "nothing of it")
}
