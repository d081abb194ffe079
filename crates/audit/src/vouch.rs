//! What a verification believes before it has read a record: which keys are the log's, and which
//! segments it has sealed.

use crate::disk::{self, Real};
use crate::epoch::{EpochError, Epochs, past};
use crate::finding::{Finding, Sort, finding, io_finding};
use crate::log::read_small;
use crate::manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest};
use crate::note::{Checkpoint, Verifier};
use crate::verify::first_difference;
use crate::wal::segments;
use std::fs;
use std::path::Path;

/// The keys of the log in `dir`; `given` must be one of them.
pub(crate) fn keys(dir: &Path, given: Option<&str>) -> Result<Epochs, Finding> {
    let path = dir.join("vkey");
    let bad = |e: String| Finding { sort: Sort::BadKey, ..finding("(the key given)", 0, e) };
    let given = given
        .map(|text| Verifier::parse(text.trim_end()).map_err(|e| bad(e.to_string())))
        .transpose()?;
    let past = past(&Real, dir).map_err(|e| match e {
        EpochError::Io { path, error } => io_finding(&path)(error),
        EpochError::Bad { path, offset, why } => finding(path, offset, why),
    })?;
    let found = read_small(&path).map_err(io_finding(&path))?;
    let Some(bytes) = found else {
        let missing = || finding(&path, 0, "it is missing, and no verifier key was given");
        return Ok(Epochs { past, current: given.ok_or_else(missing)? });
    };
    let own = std::str::from_utf8(&bytes).unwrap_or_default();
    let parsed = Verifier::parse(own.trim_end_matches('\n'))
        .map_err(|e| finding(&path, 0, e.to_string()))?;
    let written = format!("{}\n", parsed.vkey());
    if let Some(at) = first_difference(&bytes, written.as_bytes()) {
        return Err(finding(&path, at, "the verifier key is not written the one right way"));
    }
    if past.first().is_some_and(|epoch| epoch.verifier.name() != parsed.name()) {
        return Err(finding(&path, 0, "it is not of the log whose keys came before it"));
    }
    let all = Epochs { past, current: parsed };
    match given {
        Some(given) if !all.knows(&given) => Err(finding(
            &path,
            0,
            "it is not the verifier key that was given, nor does it follow from that: another \
             log, or a forged one",
        )),
        _ => Ok(all),
    }
}

/// The list of sealed segments, if there is one, is signed and is of the segments that are there.
pub(crate) fn check_manifest(dir: &Path, keys: &Epochs, head: &Checkpoint) -> Result<(), Finding> {
    let path = dir.join(MANIFEST);
    let note = disk::read(&Real, &path, MANIFEST_BYTES_MAX).map_err(io_finding(&path))?;
    let Some(note) = note else { return Ok(()) };
    let opened = keys.open_text(&note);
    let (text, most) = opened.map_err(|e| finding(&path, e.offset(), e.to_string()))?;
    let manifest = Manifest::parse(text, keys.current.name())
        .filter(|manifest| manifest.next() <= most)
        .ok_or_else(|| finding(&path, 0, "it is no list of the segments of this log"))?;
    let mut all = segments(dir).map_err(io_finding(&dir.join("wal")))?;
    if let Some(sealed) = manifest.sealed.first() {
        // Older ones are being pruned. What stands in them the tree says.
        all.retain(|segment| segment.first >= sealed.first);
    }
    let mut after = all.iter().skip(1).map(|s| s.first);
    for (segment, sealed) in all.iter().zip(&manifest.sealed) {
        let bytes = fs::metadata(&segment.path).map_err(io_finding(&segment.path))?.len();
        let found = (segment.first, after.next(), bytes);
        if found != (sealed.first, Some(sealed.next), sealed.bytes) {
            let why = "it is not the segment that the manifest lists in its place";
            return Err(finding(&segment.path, bytes.min(sealed.bytes), why));
        }
    }
    if manifest.next() <= head.size {
        return Ok(());
    }
    // A log that is being written may have signed a later head meanwhile, but always before the
    // manifest.
    let path = dir.join("checkpoint");
    let note = read_small(&path).map_err(io_finding(&path))?.unwrap_or_default();
    let now = keys.open(&note).map_err(|e| finding(&path, e.offset(), e.to_string()))?;
    if now.size >= manifest.next() {
        return Ok(());
    }
    let what = format!(
        "it covers {} records, but the manifest says that {} were signed: it was put back",
        now.size,
        manifest.next()
    );
    Err(finding(&path, 0, what))
}
