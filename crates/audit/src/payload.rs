//! Payloads beside the log: texts that are long or private, which can be removed without a proof
//! being lost.
//!
//! ```text
//! record with a long text ─► salt ‖ text ─► payload/<2 hex>/<SHA-256> (synced) ─► entry: both
//! erase: record of it, durable ─► files removed ─► everything held against the log
//! ```
//!
//! 1. A file's name is the SHA-256 of its bytes: a salt of 32 random bytes, then the text. Whoever
//!    has only the log can neither read the text nor try guesses; `sha256sum` proves the file.
//! 2. The file is durable before the entry that names it is written. One that no entry names is
//!    left by a crash in between, or of a pruning; it is counted, says nothing about the log, and
//!    can be erased ([`Scope::Unnamed`]). What was not even whole goes with the next recorder.
//! 3. A payload that is gone was erased on record, or pruned with its record, or the log was
//!    tampered with: there is no fourth. What was erased and is there all the same is counted too.
//! 4. Removing a file takes its name away. What the disk below keeps of it is not known here.

mod shelf;

pub(crate) use shelf::{Aside, Shelf, sweep};

use crate::disk::{read_whole, remove_beneath};
use crate::finding::{Finding, finding, io_finding};
use crate::merkle::sha256;
use crate::raw::{self, ScanError};
use crate::read::Stored;
use model::{Body, Record, SaltedDigest};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes of the salt before the text.
pub const SALT_BYTES: usize = 32;

/// Folder below the log's.
pub(crate) const FOLDER: &str = "payload";

/// Folder below the log's for what nobody else may read, where payloads are written.
const WORK: &str = "work";

/// A file that no record names is left alone for so long: its record may be on its way. That takes
/// a sync of the disk; an hour leaves room for a disk that hangs and a clock that is corrected.
const UNNAMED_AGE: Duration = Duration::from_secs(3_600);

/// What stands in an entry for a text beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// The field it was taken from.
    pub field: &'static str,
    /// Digest of salt and text; length of the text.
    pub digest: SaltedDigest,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Where a payload lies, whether it is there or not. `digest` is 64 hex characters.
#[must_use]
pub fn place(dir: &Path, digest: &str) -> PathBuf {
    dir.join(FOLDER).join(digest.get(..2).unwrap_or_default()).join(digest)
}

/// A payload's text, held against its digest; `None` when it is not there.
///
/// # Errors
/// When it cannot be read, or is not what the record says.
pub fn read(dir: &Path, digest: &SaltedDigest) -> Result<Option<Vec<u8>>, Finding> {
    if !is_digest(&digest.sha256.0) {
        return Err(finding(dir, 0, "a record names a payload that can be none"));
    }
    let path = place(dir, &digest.sha256.0);
    let bytes = match read_whole(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_finding(&path))?,
    };
    let whole = bytes.len() as u64 == digest.bytes + SALT_BYTES as u64;
    if !whole || hex(&sha256(&bytes)) != digest.sha256.0 {
        return Err(finding(path, 0, "the payload is not the one that was recorded"));
    }
    Ok(Some(bytes[SALT_BYTES..].to_vec()))
}

/// Puts the text that stands beside an entry back into its record, for a person to read; or in its
/// place that it is not there.
pub fn fill(dir: &Path, stored: &mut Stored) {
    let named = named_by(&stored.bytes);
    let Some((field, text, _)) = stored.record.as_mut().ok().and_then(Record::beside) else {
        return;
    };
    let Some(digest) = named.get(field) else { return };
    *text = match read(dir, digest) {
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(None) => format!("[{} bytes, not there any more]", digest.bytes),
        Err(e) => format!("[{} bytes, NOT AS RECORDED: {e}]", digest.bytes),
    };
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The payloads an entry names, by field.
#[must_use]
pub fn named_by(entry: &[u8]) -> BTreeMap<String, SaltedDigest> {
    #[derive(Deserialize)]
    struct Event {
        unmapped: Unmapped,
    }
    #[derive(Deserialize)]
    struct Unmapped {
        #[serde(default)]
        payloads: BTreeMap<String, SaltedDigest>,
    }
    // A quote inside a text has a backslash before it, so no text looks like this.
    if !contains(entry, b"\"payloads\":{") {
        return BTreeMap::new();
    }
    serde_json::from_slice::<Event>(entry).map(|e| e.unmapped.payloads).unwrap_or_default()
}

pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first() else { return true };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| b == first) {
        if rest[at..].starts_with(part) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Which payloads are to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those of these records.
    Records(BTreeSet<u64>),
    /// Those of a session.
    Session(String),
    /// Those of all records before this time, Unix milliseconds.
    Before(u64),
    /// Those that no record names, and that were not just written.
    Unnamed,
}

impl Scope {
    /// In words, as the record of the erasure has it.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Records(all) => format!("{} named records", all.len()),
            Self::Session(id) => format!("session {id}"),
            Self::Before(ms) => format!("records before {}", crate::story::utc(*ms)),
            Self::Unnamed => "texts that no record names".to_owned(),
        }
    }

    fn takes(&self, index: u64, entry: &[u8]) -> bool {
        let terms = || crate::index::Terms::of(entry);
        match self {
            Self::Records(all) => all.contains(&index),
            Self::Session(id) => terms().session.as_deref() == Some(id.as_str()),
            Self::Before(ms) => terms().time_ms < *ms,
            Self::Unnamed => false,
        }
    }
}

/// What an erasure would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Payloads that are there, by record.
    pub there: BTreeMap<u64, Vec<SaltedDigest>>,
    /// Payloads of the scope that were erased before, and are gone.
    pub gone: u64,
    /// Records in the scope.
    pub records: u64,
    /// Files that no record names, and the bytes of their texts.
    pub unnamed: BTreeMap<PathBuf, u64>,
}

impl Plan {
    /// Payloads to be removed, and their bytes.
    #[must_use]
    pub fn sum(&self) -> (u64, u64) {
        let named = self.there.values().flatten().map(|d| d.bytes);
        let all = named.chain(self.unnamed.values().copied());
        all.fold((0, 0), |(n, bytes), more| (n + 1, bytes + more))
    }

    /// The records to be written before anything is removed.
    #[must_use]
    pub fn bodies(&self, scope: &Scope) -> Vec<Body> {
        let unnamed = (!self.unnamed.is_empty()).then(|| Body::PayloadsErased {
            scope: scope.words(),
            records: Vec::new(),
            texts: self.unnamed.len() as u64,
            bytes: self.unnamed.values().sum(),
        });
        let all: Vec<(&u64, &Vec<SaltedDigest>)> = self.there.iter().collect();
        let body = |some: &[(&u64, &Vec<SaltedDigest>)]| Body::PayloadsErased {
            scope: scope.words(),
            records: some.iter().map(|(index, _)| **index).collect(),
            texts: some.iter().map(|(_, d)| d.len() as u64).sum(),
            bytes: some.iter().flat_map(|(_, d)| d.iter()).map(|d| d.bytes).sum(),
        };
        all.chunks(ERASED_PER_RECORD).map(body).chain(unnamed).collect()
    }
}

/// Records named in one record of an erasure: 2,000 numbers of 17 digits are 36,000 bytes.
const ERASED_PER_RECORD: usize = 2_000;

/// Looks what an erasure would remove; changes nothing.
///
/// # Errors
/// When the log or a payload cannot be read.
pub fn plan(dir: &Path, scope: &Scope) -> Result<Plan, ScanError> {
    let mut plan = Plan::default();
    if *scope == Scope::Unnamed {
        plan.unnamed = unnamed(dir)?;
        return Ok(plan);
    }
    raw::scan(dir, 0, |index, entry| {
        if scope.takes(index, entry) {
            plan.records += 1;
            for digest in named_by(entry).into_values() {
                if place(dir, &digest.sha256.0).exists() {
                    plan.there.entry(index).or_default().push(digest);
                } else {
                    plan.gone += 1;
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(plan)
}

/// The files that no record names, with the bytes of their texts.
fn unnamed(dir: &Path) -> Result<BTreeMap<PathBuf, u64>, ScanError> {
    let now = SystemTime::now();
    let mut found = BTreeMap::new();
    // Looked for before the records are: one that comes meanwhile can only name what is kept.
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| ScanError::Io { path, error }
    };
    let whole = list(dir).map_err(at(&dir.join(FOLDER)))?;
    let half = shelf::half_written(dir).map_err(at(&dir.join(WORK)))?;
    for path in whole.iter().map(|digest| place(dir, digest)).chain(half) {
        let file = match fs::metadata(&path) {
            // It has just got its name, or is gone.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(at(&path))?,
        };
        let age = file.modified().ok().and_then(|time| now.duration_since(time).ok());
        if age.is_some_and(|age| age >= UNNAMED_AGE) {
            found.insert(path, file.len().saturating_sub(SALT_BYTES as u64));
        }
    }
    raw::scan(dir, 0, |_, entry| {
        for digest in named_by(entry).into_values() {
            found.remove(&place(dir, &digest.sha256.0));
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Removes the payloads of a plan whose records ([`Plan::bodies`]) are durable. Once more is as
/// good as once.
///
/// # Errors
/// As the system has it; then run it again.
pub fn remove(dir: &Path, plan: &Plan) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    let named = plan.there.values().flatten().map(|digest| place(dir, &digest.sha256.0));
    for path in named.chain(plan.unnamed.keys().cloned()) {
        match remove_beneath(dir, &path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => folders.extend(path.parent().map(Path::to_owned)),
        }
    }
    folders.iter().filter(|f| f.is_dir()).try_for_each(|folder| File::open(folder)?.sync_all())
}

/// What became of all payloads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// There, and as they were recorded.
    pub whole: u64,
    /// Their bytes, without salts.
    pub bytes: u64,
    /// Gone, with an erasure on record.
    pub erased: u64,
    /// Erased on record, but still there: an erasure that did not come to its end.
    pub unfinished: u64,
    /// Files that no record names, whole or not: left by a crash, or just being written.
    pub unnamed: u64,
}

/// Holds every payload against the log.
///
/// # Errors
/// The first that is changed, or missing without an erasure on record.
pub fn check(dir: &Path) -> Result<Kept, Finding> {
    let (mut kept, mut absent, mut erased, mut named) =
        (Kept::default(), Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut broken = None;
    let scanned = raw::scan(dir, 0, |index, entry| {
        if contains(entry, b"\"kind\":\"payloads_erased\"")
            && let Ok(Record { body: Body::PayloadsErased { records, .. }, .. }) =
                crate::entry::decode(entry)
        {
            // A later record cannot be erased by an earlier one.
            erased.extend(records.into_iter().filter(|r| *r < index));
        }
        for (field, digest) in named_by(entry) {
            match read(dir, &digest) {
                Ok(Some(_)) => {
                    (kept.whole, kept.bytes) = (kept.whole + 1, kept.bytes + digest.bytes);
                    named.insert((digest.sha256.0, index));
                }
                Ok(None) => absent.push((index, field, digest)),
                Err(e) => {
                    broken = Some(e);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    });
    scanned.map_err(|e| e.finding(dir))?;
    if let Some(broken) = broken {
        return Err(broken);
    }
    for (index, field, digest) in absent {
        if !erased.contains(&index) {
            let what = format!(
                "it is missing: record {index} names it as its {field}, and no erasure is on record"
            );
            return Err(finding(place(dir, &digest.sha256.0), 0, what));
        }
        kept.erased += 1;
    }
    kept.unfinished = named.iter().filter(|(_, index)| erased.contains(index)).count() as u64;
    let files: BTreeSet<&String> = named.iter().map(|(digest, _)| digest).collect();
    for file in list(dir).map_err(io_finding(&dir.join(FOLDER)))? {
        kept.unnamed += u64::from(!files.contains(&file));
    }
    kept.unnamed += shelf::half_written(dir).map_err(io_finding(&dir.join(WORK)))?.len() as u64;
    Ok(kept)
}

/// Names of all payload files.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<String>> {
    let folder = dir.join(FOLDER);
    let mut all = Vec::new();
    let stray = |path: &Path| {
        let path = path.display().to_string();
        io::Error::new(io::ErrorKind::InvalidData, path)
    };
    let kind = match fs::symlink_metadata(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
        other => other?.file_type(),
    };
    if !kind.is_dir() {
        return Err(stray(&folder));
    }
    for inner in fs::read_dir(&folder)? {
        let inner = inner?;
        if !inner.file_type()?.is_dir() {
            return Err(stray(&inner.path()));
        }
        for file in fs::read_dir(inner.path())? {
            let file = file?;
            let path = file.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if !is_digest(&name) || place(dir, &name) != path || !file.file_type()?.is_file() {
                return Err(stray(&path));
            }
            all.push(name);
        }
    }
    Ok(all)
}
