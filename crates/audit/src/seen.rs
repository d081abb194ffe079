//! What witnesses have seen of a log, together with its verification.
//!
//! ```text
//! witness/cosigned ─► then the log ─► its head must continue what they signed
//! ```
//!
//! In this order: a log that is being written and cosigned meanwhile has, when it is read, all that
//! its witnesses had signed before. The other way round it would seem cut off.

use crate::chain::Chain;
use crate::cosign::{Cosigner, Quorum};
use crate::finding::{Finding, finding};
use crate::note::{NOTE_BYTES_MAX, NoteError};
use crate::scan::{Relation, relate};
use crate::source::{Folder, Source};
use crate::verify::Report;
use crate::witness::COSIGNED;
use std::path::Path;

/// What trusted witnesses have seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who.
    pub by: Vec<Cosigner>,
    /// Records under the head that they signed.
    pub records: u64,
}

/// Has `verify` verify the log in `dir`, and holds the newest head that enough witnesses have
/// signed against it, which its own must continue. Any key of the log may have signed that head.
///
/// # Errors
/// As `verify`; when the kept head is none of this log's, or of another history.
pub fn verified(
    dir: &Path,
    quorum: &Quorum,
    verify: impl FnOnce() -> Result<Report, Finding>,
) -> Result<(Report, Seen), Finding> {
    let source = Folder(dir.to_owned());
    let kept = source.read(COSIGNED, NOTE_BYTES_MAX)?;
    let report = verify()?;
    let Some(kept) = kept else { return Ok((report, Seen::default())) };
    let place = dir.join(COSIGNED);
    let bad = |what: &str| finding(&place, 0, what);
    let note = |e: NoteError| finding(&place, e.offset(), e.to_string());
    let (head, _) = Chain::own(dir)?.open(&kept).map_err(note)?;
    let by = quorum.cosigners(&kept).map_err(note)?;
    match relate(&head, &report.checkpoint, &source)? {
        Relation::Same | Relation::Continues(_) => Ok((report, Seen { by, records: head.size })),
        Relation::RolledBack => Err(bad("witnesses have seen more records than there are")),
        Relation::Forked(why) => Err(bad(&format!("witnesses have seen another history: {why}"))),
    }
}
