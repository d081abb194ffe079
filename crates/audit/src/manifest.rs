//! The list of sealed segments, signed: what an open need not read again.
//!
//! ```text
//! nanoclaw-manifest/v1 <origin>
//! <first record> <first record of the next> <bytes>      one line a segment, without a gap
//! ```
//!
//! 1. It is a signed note of the log's key, and no checkpoint: its second line is no number.
//! 2. It lists a segment only when its records are signed and everything derived from them is
//!    durable. A list that is missing or older costs time, never a record.
//! 3. It vouches for name and length. What stands in a segment is the tree's affair
//!    ([`crate::verify`]).

use crate::disk::{Disk, PUBLIC, replace};
use crate::note::Signer;
use crate::wal::Sealed;
use std::fmt::Write;
use std::io;
use std::path::Path;

/// What a manifest's first line begins with.
const FORMAT: &str = "nanoclaw-manifest/v1 ";

/// Largest manifest read: half a million segments, 30 TiB of log.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// Its file, below the log's folder.
pub(crate) const MANIFEST: &str = "manifest";

/// Sealed segments, from the first record on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) sealed: Vec<Sealed>,
}

impl Manifest {
    /// Number of the first record that it does not list.
    pub(crate) fn next(&self) -> u64 {
        self.sealed.last().map_or(0, |s| s.next)
    }

    pub(crate) fn text(&self, origin: &str) -> String {
        let mut text = format!("{FORMAT}{origin}\n");
        for Sealed { first, next, bytes } in &self.sealed {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{first} {next} {bytes}");
        }
        text
    }

    /// Reads what [`Manifest::text`] writes; `None` for anything else.
    pub(crate) fn parse(text: &str, origin: &str) -> Option<Self> {
        let mut made = Self::default();
        for line in text.lines().skip(1) {
            let mut numbers = line.split(' ').map(str::parse);
            let mut number = || numbers.next()?.ok();
            let sealed = Sealed { first: number()?, next: number()?, bytes: number()? };
            // The first one may begin anywhere: what was before it was pruned.
            let gap = made.sealed.last().is_some_and(|last| last.next != sealed.first);
            if gap || sealed.next <= sealed.first {
                return None;
            }
            made.sealed.push(sealed);
        }
        // One spelling: numbers with zeros before them, or more to a line, are not it.
        (made.text(origin) == text).then_some(made)
    }

    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path, signer: &Signer) -> io::Result<()> {
        let note = signer.sign_text(&self.text(signer.verifier().name()));
        let new = dir.join("work/manifest.new");
        replace(disk, &new, &dir.join(MANIFEST), note.as_bytes(), PUBLIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Checkpoint;

    #[test]
    fn one_spelling_dense_and_never_a_checkpoint() {
        let sealed = |first, next, bytes| Sealed { first, next, bytes };
        let made = Manifest { sealed: vec![sealed(0, 5, 100), sealed(5, 9, 80)] };
        let text = made.text("o");
        assert_eq!(text, "nanoclaw-manifest/v1 o\n0 5 100\n5 9 80\n");
        assert_eq!(Manifest::parse(&text, "o"), Some(made));
        let head = "nanoclaw-manifest/v1 o\n";
        assert_eq!(Manifest::parse(head, "o"), Some(Manifest::default()));
        assert!(Manifest::parse(&format!("{head}5 9 80\n"), "o").is_some(), "pruned before 5");
        for bad in ["0 5 100\n6 9 80\n", "0 0 1\n", "0 05 100\n", "0 5\n", "0 5 1 2\n"] {
            assert_eq!(Manifest::parse(&format!("{head}{bad}"), "o"), None, "{bad}");
        }
        assert_eq!(Manifest::parse(&text, "p"), None);
        assert!(Checkpoint::parse(&text).is_err() && Checkpoint::parse(head).is_err());
    }
}
