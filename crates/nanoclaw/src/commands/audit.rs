//! `audit verify | show | tail`: reading the record. Needs no daemon and no database.

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::ui::{self, Paint};
use audit::read::{Filter, Follow, Reader, Stored};
use audit::verify::Sort;
use model::SessionId;
use serde_json::json;
use std::collections::VecDeque;
use std::path::Path;

/// Verifies the whole log. Exit code 5 and the first bad byte when it is not what was signed, 2 when
/// the given key is none, 3 when there is no log, 7 when it cannot be read.
pub(crate) fn verify(dir: &Path, vkey: Option<&str>, as_json: bool) -> Result<u8> {
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
    match audit::verify::verify_dir(dir, vkey) {
        Ok(report) => {
            ui::out(&if as_json { report_json(&report) } else { report_text(&report) });
            Ok(0)
        }
        Err(finding) if as_json => {
            let (kind, sort) = judged(&finding);
            let found = json!({"verified": false, "file": finding.file.display().to_string(),
                "offset": finding.offset, "what": finding.what, "sort": sort});
            ui::line(found.to_string());
            Ok(kind.exit_code())
        }
        Err(finding) => Err(match judged(&finding).0 {
            Kind::Usage => Failure::usage(format!("--vkey is no verifier key: {}", finding.what))
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

/// What a person should know about a log that was not read.
const CANNOT_TELL: &str = "nothing is said about the log; verify it as a user who may read it";

fn judged(finding: &audit::verify::Finding) -> (Kind, &'static str) {
    match finding.sort {
        Sort::Tampered => (Kind::Audit, "tampered"),
        Sort::Unreadable => (Kind::Unreadable, "unreadable"),
        Sort::BadKey => (Kind::Usage, "bad_key"),
    }
}

pub(crate) fn root_hex(report: &audit::verify::Report) -> String {
    report.checkpoint.root.iter().map(|b| format!("{b:02x}")).collect()
}

fn report_json(report: &audit::verify::Report) -> String {
    let value = json!({"verified": true, "records": report.records, "root": root_hex(report),
        "origin": report.checkpoint.origin, "vkey": report.vkey,
        "key_was_given": report.key_was_given,
        "unsigned_records": report.unsigned_records, "unsigned_bytes": report.unsigned_bytes,
        "seconds": format!("{:.3}", report.seconds)});
    format!("{value}\n")
}

fn report_text(report: &audit::verify::Report) -> String {
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
            "  note  the key came from the log's own folder; give the one you know with --vkey\n",
        );
    }
    if report.unsigned_records > 0 || report.unsigned_bytes > 0 {
        text.push_str(&format!(
            "  note  {} records and {} bytes beyond the signed head (being written, or left by a crash)\n",
            report.unsigned_records, report.unsigned_bytes
        ));
    }
    text
}

fn print(entry: &Stored, as_json: bool) {
    if as_json {
        ui::json_line(&String::from_utf8_lossy(&entry.bytes));
        return;
    }
    match &entry.record {
        Ok(record) => ui::line(ui::harmless(&audit::story::line(entry.index, record))),
        Err(e) => ui::line(format!("#{}  (not understood by this version: {e})", entry.index)),
    }
}

fn entries(dir: &Path, filter: Filter) -> Reader {
    Reader::new(dir, filter)
}

/// Tells a session, the newest one unless named; with `all` every record in full, and without a
/// named session those of every session.
pub(crate) fn show(home: &Home, session: Option<&str>, all: bool, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let session = match (session, all) {
        (Some(id), _) => Some(SessionId::parse(id).map_err(Failure::usage)?),
        (None, true) => None,
        (None, false) => newest(&dir)?,
    };
    if session.is_none() && !all {
        ui::note(
            "No session is on record in this home yet; a demo's are in its own: \
                  nanoclaw --home HOME/demo audit show",
        );
        return Ok(0);
    }
    let filter = Filter { session: session.clone(), from: 0 };
    let shown = match &session {
        Some(id) if !all && !as_json => tell(&dir, filter, id)?,
        _ => print_all(&dir, filter, as_json)?,
    };
    if shown == 0
        && let Some(id) = session
    {
        let cause = format!("session {id} is not in the log");
        return Err(
            Failure::new(Kind::Missing, cause).remedy("`audit show --all` lists everything")
        );
    }
    Ok(0)
}

fn print_all(dir: &Path, filter: Filter, as_json: bool) -> Result<u64> {
    let mut shown = 0;
    for entry in entries(dir, filter) {
        print(&entry.context("the log")?, as_json);
        shown += 1;
        if ui::closed() {
            break;
        }
    }
    Ok(shown)
}

/// What a person wants to know of a session: what was asked, done, refused and said.
fn tell(dir: &Path, filter: Filter, id: &SessionId) -> Result<u64> {
    let mut told = Telling::default();
    for entry in entries(dir, filter) {
        let entry = entry.context("the log")?;
        let Ok(record) = &entry.record else { continue };
        told.record(entry.index, record, id);
        if ui::closed() {
            break;
        }
    }
    told.flush();
    if told.left_out > 0 {
        ui::note(format!(
            "{} more records (walls, sizes, digests): nanoclaw audit show {id} --all",
            told.left_out
        ));
    }
    Ok(told.records)
}

/// A story under way: what repeats itself is said once, with its number.
#[derive(Default)]
struct Telling {
    records: u64,
    left_out: u64,
    /// The last line, what it says, and how often it came.
    last: Option<(String, String, u64)>,
}

impl Telling {
    fn record(&mut self, index: u64, record: &model::Record, id: &SessionId) {
        if self.records == 0 {
            let agent = record.agent.as_ref().map_or("?", model::AgentName::as_str);
            let day = audit::story::utc(record.time_ms);
            let day = day.split(' ').next().unwrap_or_default();
            ui::line(format!("Session {id} of agent {agent}, {day} (times are UTC)"));
        }
        self.records += 1;
        let Some(sentence) = audit::story::brief(&record.body) else {
            self.left_out += 1;
            return;
        };
        if let Some((_, said, times)) = &mut self.last
            && *said == sentence
        {
            *times += 1;
            return;
        }
        self.flush();
        let time = audit::story::utc(record.time_ms);
        let time = time.split([' ', '.']).nth(1).unwrap_or_default();
        self.last = Some((format!("{time}  #{index}  {sentence}"), sentence, 1));
    }

    fn flush(&mut self) {
        if let Some((line, _, times)) = self.last.take() {
            let often = if times > 1 { format!("  ({times} times)") } else { String::new() };
            ui::line(ui::harmless(&format!("{line}{often}")));
        }
    }
}

fn newest(dir: &Path) -> Result<Option<SessionId>> {
    let mut found = None;
    for entry in entries(dir, Filter::default()) {
        if let Ok(record) = entry.context("the log")?.record
            && record.session.is_some()
        {
            found = record.session;
        }
    }
    Ok(found)
}

/// The newest records, and what comes.
pub(crate) fn tail(home: &Home, count: u64, follow: bool, as_json: bool) -> Result<u8> {
    let dir = home.audit();
    let keep = usize::try_from(count).unwrap_or(usize::MAX);
    let mut last: VecDeque<Stored> = VecDeque::new();
    let mut next = 0;
    for entry in entries(&dir, Filter::default()) {
        let entry = entry.context("the log")?;
        next = entry.index + 1;
        last.push_back(entry);
        if last.len() > keep {
            last.pop_front();
        }
    }
    for entry in &last {
        print(entry, as_json);
    }
    if follow {
        let filter = Filter { session: None, from: next };
        let mut more = Follow::new(&dir, filter).context("the log")?;
        loop {
            print(&more.wait().context("the log")?, as_json);
            ui::flush();
            if ui::closed() {
                return Ok(0);
            }
        }
    }
    Ok(0)
}
