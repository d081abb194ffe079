//! What `/proc` and `/sys` tell of this machine, and how two looks differ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What was seen: `family: detail` to what it showed.
pub(crate) type Seen = BTreeMap<String, String>;

/// Longest piece of a difference that is shown, characters.
const SHOWN_MAX: usize = 160;
/// How long the kernel may take to end what was ended.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| format!("unreadable: {:?}", e.kind()))
}

/// The part before the colon: what every look has, whatever the details are.
pub(crate) fn family(name: &str) -> &str {
    name.split_once(": ").map_or(name, |(family, _)| family)
}

/// Every name whose value is another one, is new, or is gone, with what it was and is.
pub(crate) fn differences(before: &Seen, after: &Seen) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| {
            let (was, is) = (before.get(name), after.get(name));
            let (was, is) = first_other_line(was.map_or("", |s| s), is.map_or("", |s| s));
            format!("{name}: was {was:?}, is {is:?}")
        })
        .collect()
}

/// The first lines that are not the same.
fn first_other_line(was: &str, is: &str) -> (String, String) {
    let (mut old, mut new) = (was.lines(), is.lines());
    loop {
        match (old.next(), new.next()) {
            (a, b) if a == b && a.is_some() => {}
            (a, b) => return (short(a.unwrap_or("nothing")), short(b.unwrap_or("nothing"))),
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// Waits until it is true; whether it was.
pub(crate) fn soon(true_now: impl FnMut() -> bool) -> bool {
    within(SETTLES_WITHIN, true_now)
}

fn within(limit: Duration, mut true_now: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if true_now() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a spawner has so many children, and no other number soon after: its spare is made
/// a moment after the start that took the last one.
pub(crate) fn has_children(spawner: u32, count: usize, limit: Duration) -> bool {
    const SOON_AFTER: Duration = Duration::from_millis(100);
    let has = || children(spawner).len() == count;
    within(limit, || {
        has() && {
            std::thread::sleep(SOON_AFTER);
            has()
        }
    })
}

pub(crate) fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:")).expect("a parent");
    line.trim().parse().expect("a number")
}

/// Of a spawner all but the process that reads memory for it, of which it keeps one.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    let mut all: Vec<u32> = text.split_whitespace().map(|c| c.parse().expect("a number")).collect();
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let reader = all.iter().position(|pid| name(pid).is_ok_and(|n| n.trim() == "memory-reader"));
    reader.map(|at| all.swap_remove(at));
    all
}

/// Processes of this machine that have `mark` as one of their arguments.
pub(crate) fn marked(mark: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").expect("it is mounted").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|argument| argument == mark.as_bytes())
    };
    pids.filter(has).collect()
}

/// Every directory of control groups, as deep as the host has them.
pub(crate) fn groups() -> Vec<PathBuf> {
    /// Deeper than any layout of a distribution or a container engine.
    const DEPTH_MAX: usize = 12;
    let mut found = Vec::new();
    let mut pending = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((folder, depth)) = pending.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        if depth < DEPTH_MAX {
            pending.extend(folders.map(|e| (e.path(), depth + 1)));
        }
        found.push(folder);
    }
    found.sort();
    found
}

/// The control groups of one spawner, of whatever kind.
pub(crate) fn groups_of(spawner: u32) -> Vec<PathBuf> {
    let prefix = format!("nanoclaw-{spawner}-");
    let own = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    groups().into_iter().filter(own).collect()
}
