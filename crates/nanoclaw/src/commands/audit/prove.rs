//! `audit proof` and `audit receipt`: records for strangers.

use super::failed;
use super::verify::hex;
use crate::failure::{Failure, Kind, Result};
use crate::home::Home;
use crate::ui;
use audit::Proof;
use audit::chain::Chain;
use audit::note::{Checkpoint, NOTE_BYTES_MAX, Verifier};
use audit::proof::{EXTENSION, make};
use audit::read::{Filter, Reader, Stored};
use audit::source::{Folder, Source, checkpoint};
use audit::witness::COSIGNED;
use model::{Body, Direction, MessageId};
use serde_json::{Value, json};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a head that covers a record is waited for: it is signed a second after the record at
/// the latest, and when the recorder leaves.
const HEAD_PATIENCE: Duration = Duration::from_secs(3);

/// A log of ours that proofs are made from.
struct Prover {
    source: Folder,
    /// The one to be preferred first.
    heads: Vec<Head>,
}

/// A signed head, and the key of the log that signed it, which is not always the newest.
struct Head {
    head: Checkpoint,
    note: Vec<u8>,
    key: Verifier,
}

impl Prover {
    fn new(dir: &Path) -> Result<Self> {
        let source = Folder(dir.to_owned());
        if !dir.join("checkpoint").exists() {
            let cause = format!("there is no signed log in {} yet", dir.display());
            return Err(
                Failure::new(Kind::Missing, cause).remedy("`nanoclaw run -- true` writes one")
            );
        }
        let mut heads = Vec::new();
        // A head that witnesses have signed proves more than a newer one that they have not.
        let kept = source.read(COSIGNED, NOTE_BYTES_MAX).map_err(|e| failed(&e))?;
        let newest = checkpoint(&source).map_err(|e| failed(&e))?;
        // After the heads, so that no key is missing that signed one.
        let keys = Chain::own(dir).map_err(|e| failed(&e))?;
        for note in kept.into_iter().chain([newest]) {
            let (head, key) = keys.open(&note).map_err(|e| {
                Failure::new(Kind::Audit, format!("a head in {}: {e}", dir.display()))
                    .remedy("`nanoclaw audit verify` tells more")
            })?;
            heads.push(Head { head, note, key });
        }
        Ok(Self { source, heads })
    }

    /// As [`Prover::new`], once a head covers that record, if it is there at all: one is signed
    /// moments after it.
    fn covering(dir: &Path, index: u64) -> Result<Self> {
        let begun = Instant::now();
        loop {
            let prover = Self::new(dir)?;
            let covered = prover.heads.iter().any(|head| head.head.size > index);
            let filter = Filter { session: None, from: index };
            let there =
                Reader::new(dir, filter).next_entry().map_err(|e| super::unread(&e))?.is_some();
            if covered || !there || begun.elapsed() > HEAD_PATIENCE {
                return Ok(prover);
            }
            std::thread::sleep(HEAD_PATIENCE / 30);
        }
    }

    /// The proof of a record, verified; with the head that it is under.
    fn prove(&self, index: u64) -> Result<(Proof, &Head)> {
        let Some(head) = self.heads.iter().find(|head| head.head.size > index) else {
            let signed = self.heads.iter().map(|head| head.head.size).max().unwrap_or(0);
            let cause = format!("record {index} is not under a signed head; {signed} records are");
            return Err(Failure::new(Kind::Missing, cause)
                .remedy("a head is signed within a second of a record; `audit tail` shows them"));
        };
        let made = make(&self.source, &head.key, &head.note, index);
        made.map(|p| (p, head)).map_err(|e| failed(&e))
    }

    /// Leaves the heads of one key, so that all proofs of a set, whose last record is `index`, are
    /// verified with it.
    fn under_one_key(mut self, index: u64) -> Self {
        let covering = self.heads.iter().find(|head| head.head.size > index);
        if let Some(key) = covering.map(|head| head.key.clone()) {
            self.heads.retain(|head| head.key == key);
        }
        self
    }
}

/// Names of the lines under a head besides the log's own. Whose they are is for the reader to know.
fn cosigned_by(proof: &Proof, key: &Verifier) -> Vec<String> {
    let lines = proof.checkpoint.split_once("\n\n").map_or("", |(_, lines)| lines).lines();
    let name = |line: &str| Some(line.strip_prefix("\u{2014} ")?.split(' ').next()?.to_owned());
    lines.filter_map(name).filter(|name| name != key.name()).collect()
}

/// Writes a new file; nothing is ever replaced.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| {
        Failure::other(format!("{} cannot be written: {e}", path.display()))
            .remedy("name another place with --out")
    })
}

/// Writes the proof of one record.
pub(crate) fn proof(home: &Home, record: &str, out: Option<&Path>, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let index = match record.trim_start_matches('#').parse() {
        Ok(index) => index,
        Err(_) => with_uid(&dir, record)?,
    };
    let prover = Prover::covering(&dir, index)?;
    let (proof, head) = prover.prove(index)?;
    let text = proof.text();
    if out.is_some_and(|out| out == Path::new("-")) {
        ui::out(&text);
        return Ok(0);
    }
    let usual = || PathBuf::from(format!("record-{index}.{EXTENSION}"));
    let path = out.map_or_else(usual, Path::to_owned);
    write_new(&path, &text)?;
    let (key, head) = (&head.key, &head.head);
    let by = cosigned_by(&proof, key);
    if as_json {
        let said = json!({"file": path.display().to_string(), "index": index,
            "records": head.size, "root": hex(&head.root), "vkey": key.vkey(),
            "cosigned_by": by});
        ui::line(said.to_string());
        return Ok(0);
    }
    ui::line(format!("{}: record {index} of {}", path.display(), head.size));
    if !by.is_empty() {
        ui::line(format!("  signed by the witnesses {}", ui::harmless(&by.join(", "))));
    }
    ui::line(format!("  nanoclaw audit verify {} --key '{}'", path.display(), key.vkey()));
    Ok(0)
}

/// The record with that `metadata.uid`.
fn with_uid(dir: &Path, uid: &str) -> Result<u64> {
    for stored in Reader::new(dir, Filter::default()) {
        let stored = stored.map_err(|e| super::unread(&e))?;
        let event: Value = serde_json::from_slice(&stored.bytes).unwrap_or(Value::Null);
        if event["metadata"]["uid"] == uid {
            return Ok(stored.index);
        }
    }
    let cause = format!("no record has the number or uid {}", ui::brief(uid, 80));
    Err(Failure::new(Kind::Missing, cause).remedy("`nanoclaw audit show --all` lists them"))
}

/// Traces a message, the newest reply unless named, to the records behind it.
pub(crate) fn receipt(
    home: &Home,
    message: Option<&str>,
    out: Option<&Path>,
    as_json: bool,
) -> Result<u8> {
    let dir = home.audit();
    let message = match message {
        Some(id) => MessageId::parse(id).map_err(Failure::usage)?,
        None => newest_reply(&dir)?,
    };
    let records = audit::receipt::behind(&dir, &message).map_err(|e| super::unread(&e))?;
    if records.is_empty() {
        let cause = format!("the log does not know the message {message}");
        return Err(Failure::new(Kind::Missing, cause)
            .remedy("`nanoclaw audit show --all` prints the ids of messages"));
    }
    let last = records.last().map_or(0, |stored| stored.index);
    let prover = Prover::covering(&dir, last)?.under_one_key(last);
    // All are proven before anything is told or written.
    let proven = records
        .iter()
        .map(|stored| {
            let (proof, head) = prover.prove(stored.index)?;
            let same = proof.extra.as_deref() == Some(&stored.bytes[..]);
            same.then_some((stored, proof, head)).ok_or_else(|| {
                let cause = format!("record {} is not the one that was signed", stored.index);
                Failure::new(Kind::Audit, cause).remedy("`nanoclaw audit verify` tells more")
            })
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(out) = out {
        write_all(out, &proven)?;
    }
    let vkey = proven.last().map(|(.., head)| head.key.vkey()).unwrap_or_default();
    if as_json {
        let record = |(stored, proof, head): &(&Stored, Proof, &Head)| {
            let entry = serde_json::from_slice::<Value>(&stored.bytes).unwrap_or(Value::Null);
            json!({"index": stored.index, "entry": entry, "records": head.head.size,
                "proof": proof.text(), "cosigned_by": cosigned_by(proof, &head.key)})
        };
        let all: Vec<Value> = proven.iter().map(record).collect();
        let message = message.as_str();
        ui::json_line(&json!({"message": message, "vkey": vkey, "behind": all}).to_string());
        return Ok(0);
    }
    ui::line(format!("Behind message {message}, each proven under the log's signed head:"));
    for (stored, ..) in &proven {
        if let Ok(record) = &stored.record {
            ui::line(ui::harmless(&audit::story::line(stored.index, record)));
        }
    }
    if let Some((_, proof, head)) = proven.last() {
        let by = cosigned_by(proof, &head.key);
        if !by.is_empty() {
            ui::line(format!("  signed by the witnesses {}", ui::harmless(&by.join(", "))));
        }
    }
    match out {
        Some(out) => ui::line(format!(
            "{} proofs in {}: nanoclaw audit verify {} --key '{}'",
            proven.len(),
            out.display(),
            out.display(),
            vkey
        )),
        None => ui::note("with --out DIR the proofs are written, to hand on"),
    }
    Ok(0)
}

/// Writes a folder of proofs, one a record.
fn write_all(out: &Path, proven: &[(&Stored, Proof, &Head)]) -> Result<()> {
    DirBuilder::new().mode(0o700).create(out).map_err(|e| {
        Failure::other(format!("{} cannot be made: {e}", out.display()))
            .remedy("name a folder that is not there yet")
    })?;
    for (stored, proof, _) in proven {
        let name = format!("record-{:010}.{EXTENSION}", stored.index);
        write_new(&out.join(name), &proof.text())?;
    }
    Ok(())
}

fn newest_reply(dir: &Path) -> Result<MessageId> {
    let mut found = None;
    for stored in Reader::new(dir, Filter::default()) {
        if let Ok(record) = stored.map_err(|e| super::unread(&e))?.record
            && let Body::Message { direction: Direction::Out, message, .. } = record.body
        {
            found = Some(message);
        }
    }
    found.ok_or_else(|| {
        Failure::new(Kind::Missing, "no reply is on record in this home yet")
            .remedy("`nanoclaw chat` writes to an agent")
    })
}
