//! `audit consistency`: did the log only grow between two heads? Each may be under another key of
//! the log, if one of them comes with the tiles that lead from key to key.

use super::failed;
use super::verify::{cosigners, hex, needed_file, nothing_at, url};
use crate::args::Trust;
use crate::failure::{Failure, Kind, Result};
use crate::fetch::Dialer;
use crate::ui::{self, Paint};
use audit::Proof;
use audit::chain::{Chain, follow};
use audit::cosign::{Cosigner, Quorum, root_text, too_early};
use audit::http::Remote;
use audit::note::{Checkpoint, NOTE_BYTES_MAX, Verifier};
use audit::proof::{HEADER, PROOF_BYTES_MAX};
use audit::scan::{Relation, relate};
use audit::source::{Folder, Source, checkpoint, entry};
use serde_json::{Value, json};
use std::path::Path;

/// A note, where it came from, and its log's tiles if they are there.
struct Note<'a> {
    name: String,
    note: Vec<u8>,
    tiles: Option<Box<dyn Source + 'a>>,
}

/// The head that it is of.
struct Head<'a> {
    name: String,
    head: Checkpoint,
    note: Vec<u8>,
    tiles: Option<Box<dyn Source + 'a>>,
}

fn read<'a>(given: &str, dialer: &'a Dialer) -> Result<Note<'a>> {
    let name = given.to_owned();
    let (note, tiles): (Vec<u8>, Option<Box<dyn Source + 'a>>) = if given.contains("://") {
        let remote = Remote::new(url(given)?, dialer);
        let note = remote.read("checkpoint", NOTE_BYTES_MAX).map_err(|e| failed(&e))?;
        (note.ok_or_else(|| nothing_at(given))?, Some(Box::new(remote)))
    } else if Path::new(given).is_dir() {
        let folder = Folder(given.into());
        (checkpoint(&folder).map_err(|e| failed(&e))?, Some(Box::new(folder)))
    } else {
        let bytes = needed_file(Path::new(given), PROOF_BYTES_MAX)?;
        let note = match bytes.starts_with(HEADER.as_bytes()) {
            true => Proof::parse(&bytes).map_err(|e| not_intact(&name, &e))?.checkpoint.into(),
            false => bytes,
        };
        (note, None)
    };
    Ok(Note { name, note, tiles })
}

impl<'a> Note<'a> {
    /// How many records it says that it covers; nothing of it is proven yet.
    fn claims(&self) -> u64 {
        let text = String::from_utf8_lossy(&self.note);
        text.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
    }

    fn open(self, keys: &Chain) -> Result<Head<'a>> {
        let (head, _) = keys.open(&self.note).map_err(|e| not_intact(&self.name, &e))?;
        Ok(Head { name: self.name, head, note: self.note, tiles: self.tiles })
    }
}

/// The keys of the log, as the newer head's tiles have them, if it came with tiles; else the older
/// one's; else the given key alone.
fn keys(a: &Note<'_>, b: &Note<'_>, key: &Verifier) -> Result<Chain> {
    let with_tiles = |note: &&Note<'_>| note.tiles.is_some();
    let Some(note) = [b, a].into_iter().filter(with_tiles).max_by_key(|note| note.claims()) else {
        return Ok(Chain::of(key));
    };
    let Some(tiles) = note.tiles.as_deref() else { return Ok(Chain::of(key)) };
    follow(tiles, &note.note, key).map(|(keys, _)| keys).map_err(|e| failed(&e))
}

fn not_intact(name: &str, e: &dyn std::fmt::Display) -> Failure {
    Failure::new(Kind::Audit, format!("{name}: {e}")).remedy("keep it, as evidence")
}

/// Proves that B continues A.
pub(crate) fn consistency(a: &str, b: &str, trust: &Trust, as_json: bool) -> Result<u8> {
    let (key, quorum) = (trust.needed("a head")?, trust.witnesses()?);
    let dialer = Dialer::default();
    let (a, b) = (read(a, &dialer)?, read(b, &dialer)?);
    let keys = keys(&a, &b, &key)?;
    let (a, b) = (a.open(&keys)?, b.open(&keys)?);
    let tiles = b.tiles.as_deref().or(a.tiles.as_deref().filter(|_| a.head.size >= b.head.size));
    let nothing = Folder("/nonexistent".into());
    if tiles.is_none() && a.head.size < b.head.size {
        let cause = "the newer head came without its tiles, so nothing leads from one to the other";
        return Err(Failure::usage(cause).remedy("name B's folder or address"));
    }
    let tiles = tiles.unwrap_or(&nothing);
    let relation = relate(&a.head, &b.head, tiles).map_err(|e| failed(&e))?;
    let seen = quorum.cosigners(&a.note).map_err(|e| not_intact(&a.name, &e))?;
    let early = match &relation {
        Relation::Continues(_) => early(&a, &b, tiles, &seen)?,
        _ => None,
    };
    if as_json {
        ui::line(said(&a, &b, &relation, &seen, early).to_string());
    }
    let (code, verdict) = told(&a, &b, &relation);
    if !as_json && code == 0 {
        ui::line(verdict);
    } else if !as_json {
        return Err(Failure::new(Kind::Audit, verdict)
            .remedy("keep both heads: each is signed, and they contradict each other"));
    }
    if let Some(seconds) = early {
        ui::note(format!(
            "note: record {} came after the witness' signature and says that it is {seconds} s \
             older: the log's clock was set back, or is wrong",
            a.head.size
        ));
    }
    lacking(&quorum, &seen, code)
}

/// Whether the first record after A's head claims to be older than A's cosignatures.
fn early(a: &Head<'_>, b: &Head<'_>, tiles: &dyn Source, seen: &[Cosigner]) -> Result<Option<u64>> {
    if seen.is_empty() || a.head.size >= b.head.size {
        return Ok(None);
    }
    let entry = entry(tiles, a.head.size, b.head.size).map_err(|e| failed(&e))?;
    let record = audit::entry::decode(&entry).ok();
    Ok(record.and_then(|record| too_early(record.time_ms, seen)))
}

fn told(a: &Head<'_>, b: &Head<'_>, relation: &Relation) -> (u8, String) {
    let (old, new) = (a.head.size, b.head.size);
    let good = |word: &str| Paint::auto().green(word);
    match relation {
        Relation::Same => (0, format!("{} the same head, {old} records", good("consistent:"))),
        Relation::Continues(proof) => (
            0,
            format!(
                "{} {new} records, of which the first {old} are A's ({} hashes prove it)",
                good("consistent:"),
                proof.len()
            ),
        ),
        Relation::RolledBack => {
            let cause = format!(
                "B has {new} records and A {old}: the log was rolled back, or A and B are the \
                 wrong way round"
            );
            (Kind::Audit.exit_code(), cause)
        }
        Relation::Forked(why) => {
            (Kind::Audit.exit_code(), format!("the log was forked or rewritten: {why}"))
        }
    }
}

fn said(
    a: &Head<'_>,
    b: &Head<'_>,
    relation: &Relation,
    seen: &[Cosigner],
    early: Option<u64>,
) -> Value {
    let head = |h: &Head<'_>| {
        let root = hex(&h.head.root);
        json!({"from": h.name, "records": h.head.size, "root": root})
    };
    let (word, proof): (&str, &[audit::merkle::Hash]) = match relation {
        Relation::Same => ("same", &[]),
        Relation::Continues(proof) => ("continues", proof),
        Relation::RolledBack => ("rolled_back", &[]),
        Relation::Forked(_) => ("forked", &[]),
    };
    let proof: Vec<String> = proof.iter().map(root_text).collect();
    json!({"relation": word, "a": head(a), "b": head(b), "proof": proof,
        "cosigned": cosigners(seen), "seconds_too_early": early})
}

fn lacking(quorum: &Quorum, seen: &[Cosigner], code: u8) -> Result<u8> {
    if seen.len() >= quorum.needed() {
        return Ok(code);
    }
    let cause = format!("{} of {} needed witnesses have signed A", seen.len(), quorum.needed());
    Err(Failure::new(Kind::Audit, cause).remedy("take a head that they have signed"))
}
