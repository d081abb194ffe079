//! A root file system for containers without any registry: folders and links in an archive that
//! the engine imports once; everything else is mounted.
//!
//! Pipeline: skeleton ─► `archive` (POSIX ustar) ─► imported, labelled with `name` ─► found again
//! by that label.
//!
//! Invariants:
//! 1. Pure: the same skeleton gives the same bytes, owned by root, dated at the epoch.
//! 2. The label names what is in the archive; another skeleton is another image.

/// Size of a record (IEEE Std 1003.1, `pax`, ustar interchange format).
const RECORD: usize = 512;
/// Longest name and link in the form written here; a skeleton's are a fraction of it.
const NAME_MAX: usize = 100;
/// The format of the archive, in the label: a change makes new images.
const VERSION: u32 = 1;

/// What is wrong with a skeleton.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) String);

/// An archive of these folders and links (path and target).
pub(super) fn archive(skeleton: &[(String, Option<String>)]) -> Result<Vec<u8>, TooLong> {
    let mut out = Vec::with_capacity((skeleton.len() + 2) * RECORD);
    let mut seen = std::collections::BTreeSet::new();
    for (path, to) in skeleton.iter().filter(|(path, _)| seen.insert(path.clone())) {
        out.extend(header(path.trim_start_matches('/'), to.as_deref())?);
    }
    out.resize(out.len() + 2 * RECORD, 0);
    Ok(out)
}

fn header(path: &str, to: Option<&str>) -> Result<[u8; RECORD], TooLong> {
    let long = |text: &str| TooLong(text.to_owned());
    let name = if to.is_some() { path.to_owned() } else { format!("{path}/") };
    if name.len() >= NAME_MAX {
        return Err(long(path));
    }
    let to = to.unwrap_or_default();
    if to.len() >= NAME_MAX {
        return Err(long(to));
    }
    let (kind, mode): (&[u8], &[u8]) =
        if to.is_empty() { (b"5", b"0000755\0") } else { (b"2", b"0000777\0") };
    let mut record = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(room) = record.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    // Offsets of `struct posix_header`; owner, group and size 0, time 0.
    put(0, name.as_bytes());
    put(100, mode);
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, b"00000000000\0");
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, kind);
    put(157, to.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = record.iter().map(|b| u32::from(*b)).sum();
    if let Some(room) = record.get_mut(148..156) {
        room.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(record)
}

/// A name for these bytes: FNV-1a of 128 bits. It finds an image that this program made again; who
/// could plant another under it commands the engine already, and with it the machine.
pub(super) fn name(archive: &[u8]) -> String {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let hash = archive.iter().fold(BASIS, |h, b| (h ^ u128::from(*b)).wrapping_mul(PRIME));
    format!("{VERSION}-{hash:032x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn skeleton() -> Vec<(String, Option<String>)> {
        let dir = |p: &str| (p.to_owned(), None);
        vec![dir("/usr"), dir("/var"), dir("/usr"), ("/bin".into(), Some("usr/bin".into()))]
    }

    #[test]
    fn tar_reads_the_archive() {
        let bytes = archive(&skeleton()).unwrap();
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc", "--file=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let out = tar.wait_with_output().unwrap();
        assert!(out.status.success());
        let text = String::from_utf8(out.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        let date = ["1970-01-01", "00:00"];
        assert_eq!(lines[0], ["drwxr-xr-x", "0/0", "0", date[0], date[1], "usr/"]);
        assert_eq!(lines[2][5..], ["bin", "->", "usr/bin"]);
        assert_eq!(lines.len(), 3, "{text}");
    }

    #[test]
    fn the_name_follows_the_contents() {
        let one = archive(&skeleton()).unwrap();
        assert_eq!(one, archive(&skeleton()).unwrap());
        let mut other = skeleton();
        other.pop();
        assert_ne!(name(&one), name(&archive(&other).unwrap()));
        // The published value for no bytes at all.
        assert!(name(b"").ends_with("6c62272e07bb014262b821756295c58d"));
        assert_eq!(archive(&[("/x".repeat(60), None)]), Err(TooLong("x/".repeat(59) + "x")));
    }
}
