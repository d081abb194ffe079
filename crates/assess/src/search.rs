//! Looking for known bytes wherever a process may look: environment, files, `/proc`, memory.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Largest file looked into: keys are in small files, and the search must stay short.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most directory entries visited, so that a search without walls ends too.
const ENTRIES_MAX: usize = 20_000;
/// Most memory read from one process.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Memory is read in pieces of this.
const PIECE_BYTES: usize = 256 << 10;
/// The smallest unit of mappings; larger pages are passed over in several steps.
const PAGE_BYTES: u64 = 4_096;

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|w| w == needle)
}

/// First file below one of `roots` that holds `needle`.
pub(crate) fn in_files(roots: &[PathBuf], needle: &[u8]) -> Option<PathBuf> {
    let mut pending: Vec<PathBuf> = roots.to_vec();
    let mut visited = 0;
    while let Some(path) = pending.pop() {
        visited += 1;
        if visited > ENTRIES_MAX {
            return None;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|e| e.path()));
        } else if meta.is_file()
            && meta.len() <= FILE_BYTES_MAX
            && fs::read(&path).is_ok_and(|b| contains(&b, needle))
        {
            return Some(path);
        }
    }
    None
}

/// Every numeric entry of `/proc`.
pub(crate) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// First process whose environment or arguments hold `needle`, other than this one's arguments.
pub(crate) fn in_proc(needle: &[u8]) -> Option<String> {
    for pid in pids() {
        let path = format!("/proc/{pid}/environ");
        if fs::read(&path).is_ok_and(|b| contains(&b, needle)) {
            return Some(path);
        }
        let path = format!("/proc/{pid}/cmdline");
        if pid != std::process::id() && fs::read(&path).is_ok_and(|b| contains(&b, needle)) {
            return Some(path);
        }
    }
    None
}

/// Whether the writable memory of process `pid` holds `needle`; an error when it can't be read.
pub(crate) fn in_memory(pid: u32, needle: &[u8]) -> std::io::Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut mem = File::open(Path::new(&format!("/proc/{pid}/mem")))?;
    let mut budget = MEMORY_BYTES_MAX;
    for line in maps.lines().filter(|l| l.contains(" rw")) {
        let Some((start, end)) = range(line) else { continue };
        let length = (end - start).min(budget);
        budget -= length;
        if region_holds(&mut mem, start, start + length, needle) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Searches one region, passing over pages that cannot be read: neighbouring mappings share a line
/// of `maps`, and one of them (the stack of a thread that ends) may go while the rest stays.
fn region_holds(mem: &mut File, start: u64, end: u64, needle: &[u8]) -> bool {
    let (mut at, mut seen) = (start, Vec::new());
    let mut piece = vec![0_u8; PIECE_BYTES];
    while at < end {
        let want = usize::try_from(end - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let read = mem.seek(SeekFrom::Start(at)).and_then(|_| mem.read(&mut piece[..want]));
        let Some(got) = read.ok().filter(|n| *n > 0) else {
            seen.clear();
            at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
            continue;
        };
        seen.extend_from_slice(&piece[..got]);
        if contains(&seen, needle) {
            return true;
        }
        // What may be the beginning of it stays for the next piece.
        let kept = seen.len().min(needle.len().saturating_sub(1));
        seen.drain(..seen.len() - kept);
        at += got as u64;
    }
    false
}

fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (end > start).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_bytes_in_own_memory_and_not_what_is_absent() {
        let marker = format!("needle-{}-in-memory", std::process::id());
        assert!(in_memory(std::process::id(), marker.as_bytes()).is_ok_and(|found| found));
        let absent: Vec<u8> = (0..24_u8).map(|i| i.wrapping_mul(37) ^ 0xA5).rev().collect();
        let flipped: Vec<u8> = absent.iter().map(|b| !b).collect();
        drop(absent);
        assert!(!contains(b"haystack", &flipped));
    }

    #[test]
    fn an_empty_needle_is_found_nowhere() {
        assert!(!contains(b"abc", b""));
    }
}
