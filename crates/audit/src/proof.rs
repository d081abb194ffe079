//! C2SP tlog-proof v1: one record, its path in the tree and the signed head, in one file.
//!
//! ```text
//! Source ─► make(index) ─► Proof ─► text ─► .tlog-proof      Proof::verify(key, quorum) ─► Proven
//! ```
//!
//! 1. Whoever has the file and the log's public key needs nothing else, and no network.
//! 2. The record stands in the `extra` line, whose content the format leaves to us. It is believed
//!    no further than the tree goes: it must hash to the leaf that is proven.
//! 3. Parsing is exact: one spelling a value.

use crate::cosign::{Cosigner, Quorum, root_text};
use crate::finding::{Finding, finding};
use crate::merkle::{Hash, inclusion_proof, leaf_hash, verify_inclusion};
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Verifier};
use crate::source::{Source, SourceNodes, entry};
use base64::{Engine, engine::general_purpose::STANDARD};

/// First line of every proof.
pub const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// Extension of a proof's file, as the format has it.
pub const EXTENSION: &str = "tlog-proof";

/// Hashes that a path may have: one a level, and no log has more than 2^63 entries.
pub const PATH_HASHES_MAX: usize = 63;

/// Largest entry that any log has (C2SP tlog-tiles), bytes.
const ENTRY_BYTES_ANY_LOG: usize = 65_535;

/// Largest proof read, bytes: an entry in base64, a full path, a checkpoint.
pub const PROOF_BYTES_MAX: u64 = (ENTRY_BYTES_ANY_LOG as u64).div_ceil(3) * 4
    + 45 * PATH_HASHES_MAX as u64
    + NOTE_BYTES_MAX
    + 128;

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It is not of the right form.
    #[error("the proof is malformed at byte {offset}: {why}; ask for it again")]
    Malformed {
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// Its checkpoint is not.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// It does not hold the record, and none was given.
    #[error("the proof does not hold the record itself; give the record's bytes with it")]
    NoEntry,
    /// The record is not in that tree at that place.
    #[error(
        "the record is not number {index} of the {size} records under the signed head: one of \
         them was changed"
    )]
    NotIncluded {
        /// The place it claims.
        index: u64,
        /// Records under the head.
        size: u64,
    },
}

/// A proof as it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What the `extra` line holds: the record, in proofs that we make.
    pub extra: Option<Vec<u8>>,
    /// The record's place in the log.
    pub index: u64,
    /// From the leaf's sibling up to below the root.
    pub path: Vec<Hash>,
    /// The signed head, verbatim.
    pub checkpoint: String,
}

/// What a proof has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The record's place.
    pub index: u64,
    /// The record.
    pub entry: Vec<u8>,
    /// The head that it is under.
    pub checkpoint: Checkpoint,
    /// The trusted witnesses that saw that head.
    pub cosigned: Vec<Cosigner>,
}

impl Proof {
    /// The file's content.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        if let Some(extra) = &self.extra {
            text.push_str(&format!("extra {}\n", STANDARD.encode(extra)));
        }
        text.push_str(&format!("index {}\n", self.index));
        for hash in &self.path {
            text.push_str(&root_text(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ProofError::Malformed`]; the checkpoint is only looked at by [`Proof::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ProofError> {
        let bad = |offset: usize, why| ProofError::Malformed { offset: offset as u64, why };
        if bytes.len() as u64 > PROOF_BYTES_MAX {
            return Err(bad(0, "it is larger than any proof"));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| bad(e.valid_up_to(), "not UTF-8"))?;
        let mut lines = Lines { text, at: 0 };
        if lines.next_line() != Some(HEADER) {
            return Err(bad(0, "its first line is not c2sp.org/tlog-proof@v1"));
        }
        let mut at = lines.at;
        let mut line = lines.next_line().ok_or_else(|| bad(at, "the index line is missing"))?;
        let mut extra = None;
        if let Some(encoded) = line.strip_prefix("extra ") {
            let decoded = STANDARD.decode(encoded).map_err(|_| bad(at, "extra is not base64"))?;
            extra = Some(decoded);
            at = lines.at;
            line = lines.next_line().ok_or_else(|| bad(at, "the index line is missing"))?;
        }
        let index = line.strip_prefix("index ").and_then(one_spelling);
        let index = index.ok_or_else(|| bad(at, "the index line is not a number"))?;
        let path = hash_lines(&mut lines).map_err(|(at, why)| bad(at, why))?;
        let checkpoint = text[lines.at..].to_owned();
        Ok(Self { extra, index, path, checkpoint })
    }

    /// Proves the record, which stands in the proof or is given.
    ///
    /// # Errors
    /// See [`ProofError`].
    pub fn verify(
        &self,
        key: &Verifier,
        quorum: &Quorum,
        given: Option<&[u8]>,
    ) -> Result<Proven, ProofError> {
        let checkpoint = key.open(self.checkpoint.as_bytes())?;
        let entry = given.or(self.extra.as_deref()).ok_or(ProofError::NoEntry)?;
        let (index, size) = (self.index, checkpoint.size);
        if !verify_inclusion(&leaf_hash(entry), index, size, &self.path, &checkpoint.root) {
            return Err(ProofError::NotIncluded { index, size });
        }
        let cosigned = quorum.cosigners(self.checkpoint.as_bytes())?;
        Ok(Proven { index, entry: entry.to_vec(), checkpoint, cosigned })
    }
}

/// The lines of a text, and how far they were read, bytes.
pub(crate) struct Lines<'a> {
    pub(crate) text: &'a str,
    pub(crate) at: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its end; `None` when there is none that ends.
    pub(crate) fn next_line(&mut self) -> Option<&'a str> {
        let rest = &self.text[self.at..];
        let end = rest.find('\n')?;
        self.at += end + 1;
        Some(&rest[..end])
    }
}

/// A decimal number, written the one right way.
pub(crate) fn one_spelling(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|n| n.to_string() == text)
}

/// Lines of hashes up to an empty line; else the place and what is wrong there.
pub(crate) fn hash_lines(lines: &mut Lines<'_>) -> Result<Vec<Hash>, (usize, &'static str)> {
    let mut path = Vec::new();
    loop {
        let at = lines.at;
        let line = lines.next_line().ok_or((at, "the empty line after the hashes is missing"))?;
        if line.is_empty() {
            return Ok(path);
        }
        if path.len() == PATH_HASHES_MAX {
            return Err((at, "it has more than 63 hashes"));
        }
        let hash = STANDARD.decode(line).ok().and_then(|h| Hash::try_from(h).ok());
        path.push(hash.ok_or((at, "a hash is not the base64 of 32 bytes"))?);
    }
}

/// Makes the proof of record `index` under the signed head `note`, which may be older than what
/// the source has by now. It is verified before it is given.
///
/// # Errors
/// When the head is not signed by `key`, does not cover the record, or the source's tiles do not
/// lead to it.
pub fn make(
    source: &dyn Source,
    key: &Verifier,
    note: &[u8],
    index: u64,
) -> Result<Proof, Finding> {
    let place = source.place("checkpoint");
    let bad = |e: NoteError| finding(&place, e.offset(), e.to_string());
    let head = key.open(note).map_err(bad)?;
    let uncovered = || finding(&place, 0, format!("it covers {} records", head.size));
    let nodes = SourceNodes::new(source, head.size);
    let path = inclusion_proof(&nodes, index, head.size)?.ok_or_else(uncovered)?;
    let entry = entry(source, index, head.size)?;
    let checkpoint = String::from_utf8_lossy(note).into_owned();
    let proof = Proof { extra: Some(entry), index, path, checkpoint };
    match proof.verify(key, &Quorum::default(), None) {
        Ok(_) => Ok(proof),
        Err(e) => Err(finding(source.place("tile"), 0, e.to_string())),
    }
}
