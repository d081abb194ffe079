//! `audit verify`: a whole log, its public part, a server's, a proof, a folder of proofs.
//!
//! ```text
//! no name, DIR with wal/ ─► every byte          DIR without, URL ─► every record and tile
//! FILE ─► one proof                             DIR of proofs ─► each
//! ```

use super::failed;
use crate::args::Trust;
use crate::failure::{Failure, Kind, Result};
use crate::fetch::Dialer;
use crate::home::Home;
use crate::ui::{self, Paint};
use audit::Proof;
use audit::cosign::{Cosigner, Quorum};
use audit::http::{Remote, Url};
use audit::note::NOTE_BYTES_MAX;
use audit::payload::Kept;
use audit::proof::{EXTENSION, PROOF_BYTES_MAX, Proven};
use audit::scan::{Scanned, scan};
use audit::seen::Seen;
use audit::source::{Folder, Source, read_file};
use audit::verify::Sort;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Verifies the whole log. Exit code 5 and the first bad byte when it is not what was signed, 2
/// when the given key is none, 3 when there is no log, 7 when it cannot be read.
fn whole(dir: &Path, trust: &Trust, as_json: bool) -> Result<u8> {
    let vkey = trust.key.as_deref().map(super::key_text).transpose()?;
    let quorum = trust.witnesses()?;
    let there = dir.try_exists().map_err(|e| {
        Failure::new(Kind::Unreadable, format!("{} cannot be read: {e}", dir.display()))
            .remedy(CANNOT_TELL)
    })?;
    if !there {
        let cause = format!("there is no log in {}", dir.display());
        return Err(Failure::new(Kind::Missing, cause).remedy(
            "`nanoclaw run -- true` writes one; a demo's is below the home, in demo/audit",
        ));
    }
    no_log(dir)?;
    let verify = || audit::verify::verify_dir(dir, vkey.as_deref());
    let verified = audit::seen::verified(dir, &quorum, verify)
        .and_then(|(report, seen)| Ok((report, seen, audit::payload::check(dir)?)));
    match verified {
        Ok((report, seen, kept)) => {
            ui::out(&if as_json {
                report_json(&report, &kept, &seen)
            } else {
                report_text(&report, &kept, &seen)
            });
            enough(&quorum, &seen.by, as_json)
        }
        Err(finding) if as_json => {
            ui::line(found_json(&finding));
            Ok(judged(&finding).0.exit_code())
        }
        Err(finding) => Err(match judged(&finding).0 {
            Kind::Usage => Failure::usage(format!("--key is no verifier key: {}", finding.what))
                .remedy("it reads NAME+HASH+KEY, as the file `vkey` of the log's folder has it"),
            Kind::Unreadable => {
                let cause = format!("{}: {}", finding.file.display(), finding.what);
                Failure::new(Kind::Unreadable, cause).remedy(CANNOT_TELL)
            }
            kind => Failure::new(kind, format!("the log is NOT intact: {finding}"))
                .remedy("keep the folder as it is, as evidence; start afresh with another --home"),
        }),
    }
}

/// What every log has, as soon as anything is on record.
const LOG_FILES: [&str; 4] = ["vkey", "checkpoint", "wal", "tile"];

/// A folder that holds nothing of a log has none; one that lost a part is a finding.
fn no_log(dir: &Path) -> Result<()> {
    // What cannot be looked at may be there: the verification says what is wrong with it.
    let holds = |dir: &Path| LOG_FILES.iter().any(|f| dir.join(f).try_exists().unwrap_or(true));
    if !dir.is_dir() || holds(dir) {
        return Ok(());
    }
    let below = dir.join("audit");
    let cause = format!("there is no log in {}", dir.display());
    Err(Failure::new(Kind::Missing, cause).remedy(match below.is_dir() && holds(&below) {
        true => format!("did you mean {}?", below.display()),
        false => {
            "name the folder that holds `checkpoint` and `vkey`: a home's is its `audit`".into()
        }
    }))
}

/// What a person should know about a log that was not read.
pub(super) const CANNOT_TELL: &str =
    "nothing is said about the log; verify it as a user who may read it";

pub(super) fn judged(finding: &audit::verify::Finding) -> (Kind, &'static str) {
    let word = match finding.sort {
        Sort::Tampered => "tampered",
        Sort::Unreadable => "unreadable",
        Sort::BadKey => "bad_key",
    };
    (kind(finding.sort), word)
}

pub(super) fn kind(sort: Sort) -> Kind {
    match sort {
        Sort::Tampered => Kind::Audit,
        Sort::Unreadable => Kind::Unreadable,
        Sort::BadKey => Kind::Usage,
    }
}

pub(crate) fn root_hex(report: &audit::verify::Report) -> String {
    hex(&report.checkpoint.root)
}

fn report_json(report: &audit::verify::Report, kept: &Kept, seen: &Seen) -> String {
    let value = json!({"verified": true, "records": report.records, "first": report.first,
        "texts": kept.whole, "texts_erased": kept.erased, "texts_unfinished": kept.unfinished,
        "texts_unnamed": kept.unnamed, "root": root_hex(report),
        "origin": report.checkpoint.origin, "vkey": report.vkey,
        "key_was_given": report.key_was_given,
        "unsigned_records": report.unsigned_records, "unsigned_bytes": report.unsigned_bytes,
        "cosigned": cosigners(&seen.by), "cosigned_records": seen.records,
        "seconds": format!("{:.3}", report.seconds)});
    format!("{value}\n")
}

/// What there is to say of records before the first that is there.
fn pruned(first: u64) -> String {
    if first == 0 {
        return String::new();
    }
    format!(
        "  note  the records before #{first} were pruned, on record; their hashes were checked\n"
    )
}

/// What there is to say of texts beside the log and of records that were pruned.
fn beside(report: &audit::verify::Report, kept: &Kept) -> String {
    let mut text = pruned(report.first);
    let mut note = |words: String| text.push_str(&format!("  note  {words}\n"));
    if kept.whole + kept.erased > 0 {
        note(format!(
            "{} texts beside the log are as recorded; {} were erased, on record",
            kept.whole, kept.erased
        ));
    }
    if kept.unfinished > 0 {
        let n = kept.unfinished;
        note(format!("{n} texts on record as erased are still there: run the erasure again"));
    }
    if kept.unnamed > 0 {
        note(format!("{} texts are named by no record: a crash left them", kept.unnamed));
    }
    text
}

fn report_text(report: &audit::verify::Report, kept: &Kept, seen: &Seen) -> String {
    let paint = Paint::auto();
    let mut text = format!(
        "{} {} records, every byte checked in {:.2} s\n  root  {}\n  key   {}\n",
        paint.green("intact:"),
        report.records,
        report.seconds,
        root_hex(report),
        report.vkey,
    );
    if !report.key_was_given {
        text.push_str(
            "  note  the key came from the log's own folder; give the one you know with --key\n",
        );
    }
    text.push_str(&beside(report, kept));
    text.push_str(&witnessed(&seen.by, seen.records, report.records));
    if report.unsigned_records > 0 || report.unsigned_bytes > 0 {
        text.push_str(&format!(
            "  note  {} records and {} bytes beyond the signed head (being written, or left by a crash)\n",
            report.unsigned_records, report.unsigned_bytes
        ));
    }
    text
}

/// Whether enough of the trusted witnesses have signed.
fn enough(quorum: &Quorum, by: &[Cosigner], as_json: bool) -> Result<u8> {
    if by.len() >= quorum.needed() {
        return Ok(0);
    }
    if as_json {
        return Ok(Kind::Audit.exit_code());
    }
    let cause = format!(
        "{} of the witnesses that you named have signed this head; {} are needed",
        by.len(),
        quorum.needed()
    );
    Err(Failure::new(Kind::Audit, cause)
        .remedy("ask for it again later, and ask them what they know of this log"))
}

pub(super) fn cosigners(by: &[Cosigner]) -> Value {
    by.iter().map(|c| json!({"name": c.name, "time": c.time})).collect()
}

pub(super) fn witnessed(by: &[Cosigner], records: u64, all: u64) -> String {
    let utc = |c: &Cosigner| audit::story::utc(c.time.saturating_mul(1_000));
    let line = |c: &Cosigner| {
        let time = utc(c);
        let time = time.split('.').next().unwrap_or_default();
        let part =
            if records < all { format!(", the first {records} of them") } else { String::new() };
        format!("  seen  by {}, {time} UTC{part}\n", c.name)
    };
    by.iter().map(line).collect()
}

/// Verifies what was named; see the module.
pub(crate) fn verify(
    home: impl FnOnce() -> Result<Home>,
    target: Option<&str>,
    trust: &Trust,
    entry: Option<&Path>,
    as_json: bool,
) -> Result<u8> {
    let Some(target) = target else { return whole(&home()?.audit(), trust, as_json) };
    if target.contains("://") {
        let url = url(target)?;
        let dialer = Dialer::default();
        return public(&Remote::new(url, &dialer), Some(target), trust, as_json);
    }
    let path = Path::new(target);
    if path.is_file() {
        return proofs(&[path.to_owned()], trust, entry, as_json);
    }
    if path.is_dir() && !path.join("checkpoint").exists() {
        let found = proofs_in(path)?;
        if !found.is_empty() {
            return proofs(&found, trust, entry, as_json);
        }
    }
    // Without its write-ahead log a folder is a copy of the public part, if somebody brings a key
    // or it has none; with its own key alone it is a log that has lost its records.
    let copied = trust.key.is_some() || !path.join("vkey").exists();
    if path.is_dir() && !path.join("wal").exists() && copied {
        no_log(path)?;
        return public(&Folder(path.to_owned()), None, trust, as_json);
    }
    whole(path, trust, as_json)
}

/// A log's address; its head's, which `audit serve` prints, is taken for it.
pub(super) fn url(text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|e| {
        Failure::usage(format!("{}: {e}", ui::brief(text, 200)))
            .remedy("name a file, a folder, or http://HOST[:PORT][/PATH]")
    })?;
    Ok(url.without("checkpoint"))
}

/// An address below which no head is: a wrong one, more likely than a log that is gone.
pub(super) fn nothing_at(address: &str) -> Failure {
    let cause = format!("there is no log at {}", ui::brief(address, 200));
    Failure::new(Kind::Missing, cause)
        .remedy("name the address below which `checkpoint` and `tile/` are")
}

fn proofs_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |e: std::io::Error| {
        Failure::new(Kind::Unreadable, format!("{}: {e}", dir.display())).remedy(CANNOT_TELL)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|e| e == EXTENSION) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The public part of a log, here or at an address.
fn public(source: &dyn Source, address: Option<&str>, trust: &Trust, as_json: bool) -> Result<u8> {
    let what = if address.is_some() { "this log" } else { "this copy" };
    let (key, quorum) = (trust.needed(what)?, trust.witnesses()?);
    let head = source.read("checkpoint", NOTE_BYTES_MAX);
    if let (Some(address), Ok(None)) = (address, &head) {
        return Err(nothing_at(address));
    }
    let scanned = match head.and_then(|_| scan(source, &key, &quorum)) {
        Ok(scanned) => scanned,
        Err(finding) if as_json => {
            ui::line(found_json(&finding));
            return Ok(judged(&finding).0.exit_code());
        }
        Err(finding) if finding.sort == Sort::Tampered => {
            let cause = format!("the log is NOT intact: {finding}");
            return Err(Failure::new(Kind::Audit, cause).remedy("keep what you have, as evidence"));
        }
        Err(finding) => return Err(failed(&finding)),
    };
    ui::out(&if as_json { scanned_json(&scanned) } else { scanned_text(&scanned) });
    enough(&quorum, &scanned.cosigned, as_json)
}

fn found_json(finding: &audit::Finding) -> String {
    json!({"verified": false, "file": finding.file.display().to_string(),
        "offset": finding.offset, "what": finding.what, "sort": judged(finding).1})
    .to_string()
}

fn scanned_json(scanned: &Scanned) -> String {
    let head = &scanned.checkpoint;
    let value = json!({"verified": true, "records": head.size, "first": scanned.first,
        "root": hex(&head.root), "origin": head.origin, "vkey": scanned.vkey, "key_was_given": true,
        "cosigned": cosigners(&scanned.cosigned), "seconds": format!("{:.3}", scanned.seconds)});
    format!("{value}\n")
}

fn scanned_text(scanned: &Scanned) -> String {
    let head = &scanned.checkpoint;
    format!(
        "{} {} records and their tree, checked in {:.2} s\n  root  {}\n  key   {}\n{}{}",
        Paint::auto().green("intact:"),
        head.size,
        scanned.seconds,
        hex(&head.root),
        scanned.vkey,
        pruned(scanned.first),
        witnessed(&scanned.cosigned, head.size, head.size)
    )
}

pub(super) fn hex(hash: &audit::merkle::Hash) -> String {
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// Each of these files must be a proof, and prove.
fn proofs(files: &[PathBuf], trust: &Trust, entry: Option<&Path>, as_json: bool) -> Result<u8> {
    let (key, quorum) = (trust.needed("a proof")?, trust.witnesses()?);
    let given = entry.map(|path| needed_file(path, PROOF_BYTES_MAX)).transpose()?;
    let mut worst = 0;
    for file in files {
        let bytes = needed_file(file, PROOF_BYTES_MAX)?;
        let proven =
            Proof::parse(&bytes).and_then(|proof| proof.verify(&key, &quorum, given.as_deref()));
        let proven = match proven {
            Ok(proven) => proven,
            Err(audit::proof::ProofError::NoEntry) => {
                let cause = format!("{}: {}", file.display(), audit::proof::ProofError::NoEntry);
                return Err(Failure::usage(cause).remedy("--entry FILE"));
            }
            Err(e) if as_json => {
                let found = json!({"verified": false, "file": file.display().to_string(),
                    "what": e.to_string(), "sort": "tampered"});
                ui::line(found.to_string());
                worst = Kind::Audit.exit_code();
                continue;
            }
            Err(e) => {
                let cause = format!("{} proves NOTHING: {e}", file.display());
                return Err(Failure::new(Kind::Audit, cause).remedy("keep it, as evidence"));
            }
        };
        ui::out(&if as_json { proven_json(&proven, file) } else { proven_text(&proven) });
        worst = worst.max(enough(&quorum, &proven.cosigned, as_json)?);
    }
    if files.len() > 1 && !as_json {
        ui::line(format!("{} proofs, each under the key that was given", files.len()));
    }
    Ok(worst)
}

pub(super) fn needed_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    let found = read_file(path, most).map_err(|e| failed(&e))?;
    found.ok_or_else(|| {
        Failure::new(Kind::Missing, format!("there is no file {}", path.display()))
            .remedy("name a file that is there")
    })
}

fn proven_json(proven: &Proven, file: &Path) -> String {
    let head = &proven.checkpoint;
    let entry = serde_json::from_slice::<Value>(&proven.entry).unwrap_or(Value::Null);
    let value = json!({"verified": true, "file": file.display().to_string(),
        "index": proven.index, "records": head.size, "root": hex(&head.root),
        "origin": head.origin, "entry": entry, "cosigned": cosigners(&proven.cosigned)});
    format!("{value}\n")
}

fn proven_text(proven: &Proven) -> String {
    let head = &proven.checkpoint;
    let said = match audit::entry::decode(&proven.entry) {
        Ok(record) => audit::story::line(proven.index, &record),
        Err(_) => format!("#{}  {}", proven.index, String::from_utf8_lossy(&proven.entry)),
    };
    format!(
        "{} {}\n  under {} records of {}, root {}\n{}",
        Paint::auto().green("proven:"),
        ui::harmless(&said),
        head.size,
        head.origin,
        hex(&head.root),
        witnessed(&proven.cosigned, head.size, head.size)
    )
}
