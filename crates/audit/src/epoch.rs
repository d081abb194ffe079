//! Key epochs: which key's signatures count, and up to which record.
//!
//! ```text
//! records ─ key_announced ─┬─ records ─ key_announced ─┬─ records ─► checkpoint, by the last key
//!    first key signs up to ┘     the second up to      ┘             (`vkey`)
//! epochs/0000: its vkey, its closing note    epochs/0001: the second's
//! ```
//!
//! 1. A key's last act is a note over everything up to the record that announces the next one. What
//!    it signs beyond does not count, so a stolen old key rewrites nothing after its epoch.
//! 2. A key that no record announces, or one announced without a closing note of the key before it,
//!    is a finding: whoever trusts any key of the chain follows it to the last.
//! 3. The record is written by the recorder alone, and begins as no other record does.

use crate::disk::{self, Disk};
use crate::entry::{KEY_ANNOUNCED, decode};
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Verifier};
use model::Body;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of the past epochs, below the log's.
pub(crate) const EPOCHS: &str = "epochs";

/// An epoch that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) path: PathBuf,
    pub(crate) verifier: Verifier,
    /// What its key signed last; its last record announces the next key.
    pub(crate) closing: Checkpoint,
}

impl Epoch {
    /// Whether it can be the one after `before`: of the same log, and ending later.
    pub(crate) fn follows(&self, before: &Self) -> bool {
        before.verifier.name() == self.verifier.name() && before.closing.size < self.closing.size
    }
}

/// All keys of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Epochs {
    pub(crate) past: Vec<Epoch>,
    /// The one in `vkey`.
    pub(crate) current: Verifier,
}

/// Why the past epochs cannot be read.
#[derive(Debug)]
pub(crate) enum EpochError {
    Io { path: PathBuf, error: io::Error },
    Bad { path: PathBuf, offset: u64, why: String },
}

/// The key that an entry announces, if it is such a record: the old one and the new one, as vkeys.
pub(crate) fn announcement(bytes: &[u8]) -> Option<(String, String)> {
    if !bytes.starts_with(KEY_ANNOUNCED) {
        return None;
    }
    match decode(bytes).ok()?.body {
        Body::KeyAnnounced { old_vkey, new_vkey } => Some((old_vkey, new_vkey)),
        _ => None,
    }
}

/// As [`announcement`], the new one alone.
pub(crate) fn announced(bytes: &[u8]) -> Option<String> {
    announcement(bytes).map(|(_, new)| new)
}

pub(crate) fn epoch_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(EPOCHS).join(format!("{number:04}"))
}

/// The bytes of an epoch's file.
pub(crate) fn epoch_text(verifier: &Verifier, note: &str) -> String {
    format!("{}\n{note}", verifier.vkey())
}

pub(crate) fn parse(bytes: &[u8]) -> Result<(Verifier, Checkpoint), (u64, String)> {
    let text = std::str::from_utf8(bytes).map_err(|_| (0, "it is not UTF-8".to_owned()))?;
    let (vkey, note) = text.split_once('\n').unwrap_or((text, ""));
    let verifier = Verifier::parse(vkey).map_err(|e| (0, e.to_string()))?;
    if verifier.vkey() != vkey {
        return Err((0, "its key is not written the one right way".to_owned()));
    }
    let at = vkey.len() as u64 + 1;
    let closing = verifier.open(note.as_bytes());
    let closing = closing.map_err(|e: NoteError| (at + e.offset(), e.to_string()))?;
    Ok((verifier, closing))
}

/// Reads the epochs that have ended, in order.
pub(crate) fn past(disk: &dyn Disk, dir: &Path) -> Result<Vec<Epoch>, EpochError> {
    let folder = dir.join(EPOCHS);
    let mut paths: Vec<PathBuf> = match disk.list(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(EpochError::Io { path: folder, error }),
        Ok(listed) => listed.into_iter().map(|(path, _)| path).collect(),
    };
    paths.sort();
    let mut past: Vec<Epoch> = Vec::new();
    for (number, path) in paths.into_iter().enumerate() {
        let bad = |offset, why| EpochError::Bad { path: path.clone(), offset, why };
        if path != epoch_path(dir, number) {
            return Err(bad(0, format!("epoch {number} is missing, or this is none")));
        }
        let bytes = disk::read(disk, &path, NOTE_BYTES_MAX);
        let bytes = bytes.map_err(|error| EpochError::Io { path: path.clone(), error })?;
        let (verifier, closing) =
            parse(&bytes.unwrap_or_default()).map_err(|(offset, why)| bad(offset, why))?;
        let epoch = Epoch { path: path.clone(), verifier, closing };
        if past.last().is_some_and(|before| !epoch.follows(before)) {
            return Err(bad(0, "it does not follow the epoch before it".to_owned()));
        }
        past.push(epoch);
    }
    Ok(past)
}

impl Epochs {
    /// Whether a key is one of this log's.
    pub(crate) fn knows(&self, key: &Verifier) -> bool {
        self.current == *key || self.past.iter().any(|epoch| epoch.verifier == *key)
    }

    /// Checks a note of this log; returns its text, and how many records it may be about at most.
    pub(crate) fn open_text<'n>(&self, note: &'n [u8]) -> Result<(&'n str, u64), NoteError> {
        let by_current = match self.current.open_text(note) {
            Ok(text) => {
                let last = self.past.last().filter(|epoch| epoch.verifier == self.current);
                return Ok((text, last.map_or(u64::MAX, |epoch| epoch.closing.size)));
            }
            Err(e) => e,
        };
        let by_past = self.past.iter().rev().find_map(|epoch| {
            let text = epoch.verifier.open_text(note).ok()?;
            Some((text, epoch.closing.size))
        });
        by_past.ok_or(by_current)
    }

    /// Checks a signed head of this log and returns it.
    pub(crate) fn open(&self, note: &[u8]) -> Result<Checkpoint, NoteError> {
        let (text, most) = self.open_text(note)?;
        let head = Checkpoint::parse(text)?;
        if head.origin != self.current.name() {
            let why = "its origin is not the name of the key";
            return Err(NoteError::Malformed { offset: 0, why });
        }
        if head.size > most {
            let why = "it is signed by a key that had been replaced by then";
            return Err(NoteError::Malformed { offset: text.len() as u64 + 1, why });
        }
        Ok(head)
    }

    /// Holds the keys announced by the records up to `size` (index, old key, new key) against the
    /// epochs; returns the file that does not fit, and why.
    pub(crate) fn check(
        &self,
        announced: &[(u64, (String, String))],
        size: u64,
    ) -> Result<(), (Option<PathBuf>, String)> {
        for (number, (index, (old, new))) in announced.iter().enumerate() {
            let Some(epoch) = self.past.get(number) else {
                let why = format!(
                    "record {index} announces another key, but the one before it goes on signing"
                );
                return Err((None, why));
            };
            let bad = |why: &str| Err((Some(epoch.path.clone()), why.to_owned()));
            if epoch.closing.size != index + 1 {
                return bad("no record announces a key where this epoch ends");
            }
            if epoch.verifier.vkey() != *old {
                return bad("its key is not the one that the record replaces");
            }
            let next = self.past.get(number + 1).map_or(&self.current, |e| &e.verifier);
            // While a key is being replaced `vkey` still has the old one.
            let switching = number + 1 == self.past.len() && *next == epoch.verifier;
            if next.vkey() != *new && !switching {
                return bad("the key after it was not announced by any record");
            }
        }
        match self.past.get(announced.len()) {
            Some(epoch) if epoch.closing.size <= size => {
                Err((Some(epoch.path.clone()), "no record announces the end of its key".to_owned()))
            }
            _ => Ok(()),
        }
    }
}
