//! Which keys a log has had, for whoever knows one of them: from its folder, a copy, an address.
//!
//! ```text
//! epochs/0000 ─► closing note, by its key ─► last record under it names the next key ─► … ─► head
//! ```
//!
//! 1. Nothing of it is taken on trust: a closing note is signed, the head continues it, and the
//!    record that names the next key is proven under the head. So any one of the keys leads to all
//!    of them, later and earlier.
//! 2. What an old key signed counts up to the end of its epoch.
//! 3. An epoch that ends beyond the head is not looked at: the head is older than it.

use crate::epoch::{EPOCHS, Epoch, Epochs, announcement, parse};
use crate::finding::{Finding, finding};
use crate::merkle::{inclusion_proof, leaf_hash, verify_inclusion};
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Verifier, split_note};
use crate::scan::{Relation, relate};
use crate::source::{Source, SourceNodes, entry};
use crate::vouch;
use std::path::Path;

/// Epochs that are followed: a key a day for a quarter of a century. A server could name more
/// without end.
const EPOCHS_MAX: usize = 9_999;

/// All keys of a log, up to one head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(pub(crate) Epochs);

impl Chain {
    /// One key that is all there is to go by.
    #[must_use]
    pub fn of(key: &Verifier) -> Self {
        Self(Epochs { past: Vec::new(), current: key.clone() })
    }

    /// The keys as a log's own folder has them; whether they are its keys [`crate::verify`] proves.
    ///
    /// # Errors
    /// When a file of them cannot be read or is none.
    pub fn own(dir: &Path) -> Result<Self, Finding> {
        vouch::keys(dir, None).map(Self)
    }

    /// The key that signs now.
    #[must_use]
    pub fn current(&self) -> &Verifier {
        &self.0.current
    }

    /// Checks a signed head of this log and returns it, with the key that signed it.
    ///
    /// # Errors
    /// When none of the keys signed it, or one that had been replaced by then.
    pub fn open(&self, note: &[u8]) -> Result<(Checkpoint, Verifier), NoteError> {
        let head = self.0.open(note)?;
        let mut keys = std::iter::once(&self.0.current)
            .chain(self.0.past.iter().rev().map(|epoch| &epoch.verifier));
        let signer = keys.find(|key| key.open_text(note).is_ok()).unwrap_or(&self.0.current);
        Ok((head, signer.clone()))
    }
}

/// The keys of the log that `source` has, of which `given` must be one, and its signed head.
///
/// # Errors
/// What is wrong with the head, or with a key that leads to it.
pub fn follow(
    source: &dyn Source,
    note: &[u8],
    given: &Verifier,
) -> Result<(Chain, Checkpoint), Finding> {
    let place = source.place("checkpoint");
    let bad = |e: NoteError| finding(&place, e.offset(), e.to_string());
    // Who signed it is known when the keys are.
    let claimed = Checkpoint::parse(split_note(note).map_err(bad)?.0).map_err(bad)?;
    let past = past(source, claimed.size)?;
    let mut keys = Epochs { past, current: given.clone() };
    let mut announced: Option<Verifier> = None;
    for epoch in &keys.past {
        if announced.is_some_and(|key| key != epoch.verifier) {
            return Err(finding(&epoch.path, 0, "its key is not the one announced before it"));
        }
        announced = Some(next_key(source, epoch, &claimed)?);
    }
    keys.current = announced.unwrap_or(keys.current);
    if !keys.knows(given) {
        let what = "its keys are others than the one that was given: another log, or a forged one";
        return Err(finding(&place, 0, what));
    }
    let head = keys.open(note).map_err(bad)?;
    Ok((Chain(keys), head))
}

/// The epochs that ended under a head of that size, in order.
fn past(source: &dyn Source, size: u64) -> Result<Vec<Epoch>, Finding> {
    let mut past: Vec<Epoch> = Vec::new();
    while past.len() < EPOCHS_MAX {
        let name = format!("{EPOCHS}/{:04}", past.len());
        let Some(bytes) = source.read(&name, NOTE_BYTES_MAX)? else { break };
        let path = source.place(&name);
        let (verifier, closing) = parse(&bytes).map_err(|(at, why)| finding(&path, at, why))?;
        if closing.size > size {
            break;
        }
        let epoch = Epoch { path, verifier, closing };
        if past.last().is_some_and(|before| !epoch.follows(before)) {
            return Err(finding(&epoch.path, 0, "it does not follow the epoch before it"));
        }
        past.push(epoch);
    }
    Ok(past)
}

/// The key that the last record of an epoch announces, proven under a head that continues it.
fn next_key(source: &dyn Source, epoch: &Epoch, head: &Checkpoint) -> Result<Verifier, Finding> {
    let bad = |why: &str| finding(&epoch.path, 0, why);
    match relate(&epoch.closing, head, source)? {
        Relation::Same | Relation::Continues(_) => {}
        _ => return Err(bad("the head does not continue what its key signed last")),
    }
    let index = epoch.closing.size.checked_sub(1).ok_or_else(|| bad("it has no record"))?;
    let bytes = entry(source, index, head.size)?;
    let path = inclusion_proof(&SourceNodes::new(source, head.size), index, head.size)?;
    let path = path.unwrap_or_default();
    if !verify_inclusion(&leaf_hash(&bytes), index, head.size, &path, &head.root) {
        return Err(bad("the record that ends it is not under the head"));
    }
    let (old, new) =
        announcement(&bytes).ok_or_else(|| bad("no record announces a key where it ends"))?;
    if old != epoch.verifier.vkey() {
        return Err(bad("its key is not the one that the record replaces"));
    }
    Verifier::parse(&new).map_err(|e| bad(&e.to_string()))
}
