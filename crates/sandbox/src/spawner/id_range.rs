//! Which uids sessions may have in root mode: those that `/etc/subuid` and `/etc/subgid` set aside
//! for the user `nanoclaw`, else a range of our own. Pure but for [`IdRange::of_host`].
//!
//! The files are those of subuid(5) and subgid(5), lines of `name:first:count`. What they say wrong
//! is an error and never a reason to take the other range: whoever wrote a line wants it kept.

use crate::plan::DISK_OWNER;
use std::io;
use std::path::Path;

/// The name whose ranges are ours. It need not be an account.
const NAME: &str = "nanoclaw";
/// First session uid where nothing is set aside: above all that distributions, directory services
/// and container engines hand out by default, below 2^31, which some file systems cannot hold.
const FIRST: u32 = 1_879_048_192;
/// Sessions at a time on one machine, at most. More than a machine can hold, and few enough to try
/// one after the other.
const COUNT_MAX: u32 = 65_536;
/// Below are people and services: 0 to 65,535 are what a system without ranges hands out.
const LOWEST: u32 = 65_536;
/// Some file systems hold no higher one.
const HIGHEST: u32 = i32::MAX as u32;
/// Longer files are nobody's that are written by hand or by useradd(8), bytes.
const FILE_MAX: u64 = 1 << 20;

/// Consecutive uids, with the gids of the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdRange {
    /// The first one.
    pub(crate) first: u32,
    /// How many, at least one.
    pub(crate) count: u32,
}

impl IdRange {
    const OWN: Self = Self { first: FIRST, count: COUNT_MAX };

    /// What this host sets aside.
    ///
    /// # Errors
    /// When the files cannot be read or say nothing that can be kept to, with file and line.
    pub(crate) fn of_host() -> io::Result<Self> {
        let (uids, gids) = (Path::new("/etc/subuid"), Path::new("/etc/subgid"));
        let read = |path| text(path).map_err(|e| io::Error::other(format!("{path:?}: {e}")));
        Self::of(&read(uids)?, &read(gids)?).map_err(io::Error::other)
    }

    fn of(uids: &str, gids: &str) -> Result<Self, String> {
        let (uid, gid) = (set_aside(uids, "/etc/subuid")?, set_aside(gids, "/etc/subgid")?);
        match (uid, gid) {
            (None, None) => Ok(Self::OWN),
            (Some(uid), Some(gid)) if uid == gid => {
                Ok(Self { count: uid.count.min(COUNT_MAX), ..uid })
            }
            _ => Err(format!("/etc/subuid and /etc/subgid set different ids aside for {NAME}")),
        }
    }

    fn last(self) -> u32 {
        self.first + (self.count - 1)
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }
}

/// A file that is not there says nothing.
fn text(path: &Path) -> io::Result<String> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(e),
        Ok(file) if file.len() > FILE_MAX => Err(io::Error::other("it is longer than 1 MiB")),
        Ok(_) => std::fs::read_to_string(path),
    }
}

/// The range of our name in one file. Nobody else's may touch it: engines of containers would
/// otherwise run strangers as our sessions' users.
fn set_aside(text: &str, file: &str) -> Result<Option<IdRange>, String> {
    let mut ours: Option<(usize, IdRange)> = None;
    let mut others = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut fields = line.trim().split(':');
        let mine = fields.next() == Some(NAME);
        let (number, range) = (index + 1, parsed(fields));
        match (mine, range) {
            // What others wrote wrong is theirs.
            (false, range) => others.extend(range.map(|r| (number, r))),
            (true, None) => {
                let want = format!("{NAME}:FIRST:COUNT with ids from {LOWEST} to {HIGHEST}");
                return Err(format!("{file}:{number}: this is no range for sessions: {want}"));
            }
            (true, Some(_)) if ours.is_some() => {
                return Err(format!("{file}:{number}: a second range for {NAME}; one is used"));
            }
            (true, Some(range)) => ours = Some((number, range)),
        }
    }
    let Some((number, range)) = ours else { return Ok(None) };
    if range.first < LOWEST || range.last() > HIGHEST {
        return Err(format!("{file}:{number}: ids from {LOWEST} to {HIGHEST} only"));
    }
    let disk = IdRange { first: DISK_OWNER.uid, count: 1 };
    if range.overlaps(disk) {
        let why = format!("{} owns what sessions keep on disk", disk.first);
        return Err(format!("{file}:{number}: {why}, and no process may have it"));
    }
    match others.iter().find(|(_, other)| range.overlaps(*other)) {
        None => Ok(Some(range)),
        Some((other, _)) => Err(format!("{file}:{number}: line {other} has some of these ids")),
    }
}

fn parsed<'a>(mut fields: impl Iterator<Item = &'a str>) -> Option<IdRange> {
    let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let range = IdRange { first, count };
    let whole = count > 0 && first.checked_add(count - 1).is_some() && fields.next().is_none();
    whole.then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_used_and_nothing_else_is() {
        let own = Ok(IdRange::OWN);
        assert_eq!(IdRange::of("", ""), own);
        assert_eq!(IdRange::of("anna:100000:65536\n", "anna:100000:65536\n"), own);
        let text = "anna:100000:65536\nnanoclaw:300000:1000\n";
        assert_eq!(IdRange::of(text, text), Ok(IdRange { first: 300_000, count: 1_000 }));
        // More than is ever used.
        let wide = "nanoclaw:1000000:1000000";
        assert_eq!(IdRange::of(wide, wide), Ok(IdRange { first: 1_000_000, count: COUNT_MAX }));
        // A name that only begins like ours.
        assert_eq!(IdRange::of("nanoclaw2:300000:5", "nanoclaw2:300000:5"), own);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_its_place() {
        let of = |text: &str| IdRange::of(text, text).unwrap_err();
        for line in
            ["", ":", ":7", ":x:1", ":300000:0", ":300000:-1", ":300000:1:2", ":4294967295:2"]
        {
            let said = of(&format!("anna:100000:65536\nnanoclaw{line}\n"));
            assert!(said.starts_with("/etc/subuid:2: this is no range"), "{line}: {said}");
        }
        for line in ["0:65536", "1000:10", "65535:1", "2147483647:2"] {
            let said = of(&format!("nanoclaw:{line}\n"));
            assert!(said.contains(":1: ids from 65536"), "{line}: {said}");
        }
        let said = of("nanoclaw:300000:10\nnanoclaw:400000:10\n");
        assert!(said.starts_with("/etc/subuid:2: a second range"), "{said}");
        for other in ["300009:1", "299999:2", "100000:1000000", "300003:2"] {
            let said = of(&format!("anna:{other}\nnanoclaw:300000:10\n"));
            assert_eq!(said, "/etc/subuid:2: line 1 has some of these ids");
        }
        assert!(of("nanoclaw:1879048190:2").contains("no process may have it"));
        let ours = "nanoclaw:300000:10\n";
        for gids in ["", "nanoclaw:300000:11\n", "nanoclaw:300001:10\n"] {
            assert!(IdRange::of(ours, gids).is_err(), "{gids:?}");
            assert!(IdRange::of(gids, ours).is_err(), "{gids:?}");
        }
    }
}
