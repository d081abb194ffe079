//! The body of `add-checkpoint`: the size that the log believes is known, a proof, a checkpoint.

use crate::cosign::root_text;
use crate::merkle::Hash;
use crate::note::NOTE_BYTES_MAX;
use crate::proof::{Lines, PATH_HASHES_MAX, hash_lines, one_spelling};

/// Largest request read, bytes: a checkpoint, a full proof, the size.
pub const REQUEST_BYTES_MAX: u64 = NOTE_BYTES_MAX + 45 * PATH_HASHES_MAX as u64 + 64;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// Size of the head that the witness is thought to have cosigned last; 0 for none.
    pub old: u64,
    /// From that head to the new one (RFC 6962 §2.1.2).
    pub proof: Vec<Hash>,
    /// The new head, signed by the log.
    pub note: String,
}

impl AddCheckpoint {
    /// The request's body.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("old {}\n", self.old);
        for hash in &self.proof {
            text.push_str(&root_text(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.note);
        text
    }

    /// Reads a request's body; of the checkpoint only that it is text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, &'static str> {
        if body.len() as u64 > REQUEST_BYTES_MAX {
            return Err("the request is too long");
        }
        let text = std::str::from_utf8(body).map_err(|_| "the request is not UTF-8")?;
        let mut lines = Lines { text, at: 0 };
        let old = lines.next_line().and_then(|line| line.strip_prefix("old "));
        let old = old.and_then(one_spelling).ok_or("the first line is not `old` and a number")?;
        let proof = hash_lines(&mut lines).map_err(|(_, why)| why)?;
        let note = text[lines.at..].to_owned();
        if note.is_empty() {
            return Err("the checkpoint is missing");
        }
        Ok(Self { old, proof, note })
    }
}
