//! A tar archive whose bytes depend on names, contents and one moment, and on nothing else.
//!
//! ```text
//! entries (name, mode, bytes) ─► sorted ustar blocks ─► gzip -n ─► .tar.gz
//! ```
//!
//! Invariants:
//! 1. Sorted names, owner and group 0, one modification time, no field of this machine.
//! 2. A name or size that ustar cannot hold is refused, never cut.
//!
//! Format: POSIX.1-2017, pax, "ustar Interchange Format".

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::repo::{Failure, Outcome, Repo, at, run};

/// Everything in tar comes in blocks of this size.
const BLOCK: usize = 512;
/// The name field's size; longer names would need the prefix field, which nothing here does.
const MAX_NAME: usize = 100;

/// Mode of a program.
pub(crate) const PROGRAM: u32 = 0o755;
/// Mode of anything else.
pub(crate) const DOCUMENT: u32 = 0o644;

/// Files by name, to be packed.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    pub(crate) fn add(&mut self, name: impl Into<String>, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.entries.insert(name.into(), (mode, bytes.into()));
    }

    /// Adds every file directly in `folder` as `prefix/<name>`; says how many there were.
    pub(crate) fn add_folder(&mut self, prefix: &str, folder: &Path) -> Outcome<usize> {
        let mut count = 0;
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            if path.is_file() {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.add(format!("{prefix}/{name}"), DOCUMENT, fs::read(&path).map_err(at(&path))?);
                count += 1;
            }
        }
        Ok(count)
    }

    /// The archive's bytes; `mtime` in seconds since 1970.
    pub(crate) fn to_tar(&self, mtime: u64) -> Outcome<Vec<u8>> {
        let mut tar = Vec::new();
        for (name, (mode, bytes)) in &self.entries {
            tar.extend(header(name, *mode, bytes.len(), mtime)?);
            tar.extend(bytes);
            tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        }
        // Two empty blocks end an archive.
        tar.resize(tar.len() + 2 * BLOCK, 0);
        Ok(tar)
    }

    /// Writes `path`, which must end in `.tar.gz`.
    pub(crate) fn write_gz(&self, repo: &Repo, path: &Path, mtime: u64) -> Outcome {
        let tar = path.with_extension("");
        fs::write(&tar, self.to_tar(mtime)?).map_err(at(&tar))?;
        // -n leaves out the file's name and time.
        run(repo.command("gzip").args(["-n", "-9", "-f"]).arg(&tar))
    }
}

fn header(name: &str, mode: u32, size: usize, mtime: u64) -> Outcome<[u8; BLOCK]> {
    let mut block = [0_u8; BLOCK];
    let mut put = |offset: usize, text: &str| {
        block[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    if name.len() > MAX_NAME {
        return Err(Failure::new(format!("{name}: longer than {MAX_NAME} bytes: shorten it")));
    }
    let size = octal(size as u64, 11, name)?;
    let mtime = octal(mtime, 11, name)?;
    put(0, name);
    put(100, &octal(u64::from(mode), 7, name)?);
    put(108, &octal(0, 7, name)?); // owner
    put(116, &octal(0, 7, name)?); // group
    put(124, &size);
    put(136, &mtime);
    put(148, "        "); // the checksum counts its own field as spaces
    put(156, "0"); // an ordinary file
    put(257, "ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..154].copy_from_slice(octal(sum, 6, name)?.as_bytes());
    block[154] = 0;
    Ok(block)
}

fn octal(value: u64, digits: usize, name: &str) -> Outcome<String> {
    let text = format!("{value:0digits$o}");
    if text.len() > digits {
        return Err(Failure::new(format!("{name}: {value} does not fit a tar header")));
    }
    Ok(text)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn sample(order: &[&str]) -> Archive {
        let mut archive = Archive::default();
        for name in order {
            archive.add(format!("n-1/{name}"), PROGRAM, format!("content of {name}"));
        }
        archive
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let one = sample(&["b", "a", "c"]).to_tar(1_700_000_000).unwrap();
        let two = sample(&["c", "b", "a"]).to_tar(1_700_000_000).unwrap();
        assert_eq!(one, two);
        assert_ne!(one, sample(&["c", "b", "a"]).to_tar(1_700_000_001).unwrap());
    }

    #[test]
    fn the_systems_tar_reads_it_back() {
        let folder = std::env::temp_dir().join(format!("xtask-tar-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let repo = Repo { root: folder.clone(), target_dir: folder.clone() };
        let path = folder.join("n.tar.gz");
        sample(&["b", "a"]).write_gz(&repo, &path, 1_700_000_000).unwrap();
        let mut tar = repo.command("tar");
        tar.env("TZ", "UTC").args(["--numeric-owner", "--full-time", "-tvzf"]).arg(&path);
        let listing = crate::repo::capture(&mut tar).unwrap();
        let line = "-rwxr-xr-x 0/0              12 2023-11-14 22:13:20 n-1/a";
        assert_eq!(listing.lines().next(), Some(line), "{listing}");
        assert_eq!(listing.lines().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut archive = Archive::default();
        archive.add("n".repeat(MAX_NAME), DOCUMENT, "");
        assert!(archive.to_tar(0).is_ok());
        assert!(archive.to_tar(u64::MAX).is_err());
        archive.add("n".repeat(MAX_NAME + 1), DOCUMENT, "");
        assert!(archive.to_tar(0).is_err());
    }
}
