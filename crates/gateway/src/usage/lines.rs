//! The ledger's file: JSON lines, appended only; read with a torn end forgiven and any other
//! damage refused.

use super::Usage;
use model::{AgentName, SessionId, TurnId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest line; ours have about 300 bytes.
const LINE_BYTES_MAX: usize = 16 * 1024;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Why the ledger cannot be used. Nothing is asked of a model without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The file system refused.
    #[error("the usage ledger {path} cannot be {action}: {cause}; check the disk and its rights")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The operating system's words.
        cause: String,
    },
    /// A line within the file is not ours.
    #[error(
        "the usage ledger {path} is damaged at byte {offset}: {why}; move it away to start a new \
         one (what agents spent today is then forgotten)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the line begins.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
}

impl LedgerError {
    pub(super) fn io(path: &Path, action: &'static str, cause: &std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, cause: cause.to_string() }
    }
}

/// What one agent spent in one session and turn on one model on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// UTC, `2026-01-31`.
    pub day: String,
    /// Who spent it.
    pub agent: AgentName,
    /// In which session.
    pub session: SessionId,
    /// In which turn; `None` outside of one, and in days long past.
    pub turn: Option<TurnId>,
    /// NAME of `[models.NAME]` that was asked.
    pub model: String,
    /// Requests.
    pub calls: u64,
    /// Tokens.
    #[serde(flatten)]
    pub usage: Usage,
    /// Cost in micro-USD, of the calls whose price is known.
    pub micro_usd: u64,
    /// Calls to a model without a price.
    #[serde(default)]
    pub unpriced: u64,
    /// Calls whose tokens are an estimate: the provider's counts did not come.
    #[serde(default)]
    pub estimated: u64,
}

impl Total {
    /// Adds another's figures; whose they are stays.
    pub fn add(&mut self, other: &Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.usage.add(&other.usage);
        self.micro_usd = self.micro_usd.saturating_add(other.micro_usd);
        self.unpriced = self.unpriced.saturating_add(other.unpriced);
        self.estimated = self.estimated.saturating_add(other.estimated);
    }
}

/// A line: a total, or, with an id, one call; `reserved` until the line that settles it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) reserved: bool,
    #[serde(flatten)]
    pub(super) total: Total,
}

/// The UTC day of a Unix time in milliseconds, as `2026-01-31`.
#[must_use]
pub fn day_of(unix_ms: u64) -> String {
    // Days → civil date by eras of 400 years that begin in March, where leap days come last.
    let days = unix_ms / DAY_MS + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Reads the complete lines from `offset` on. Returns where they end: what is behind is the torn
/// end of a write that a crash cut short.
pub(super) fn read_from(
    file: &File,
    path: &Path,
    offset: u64,
    mut take: impl FnMut(Line),
) -> Result<u64, LedgerError> {
    let io = |e: std::io::Error| LedgerError::io(path, "read", &e);
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(offset)).map_err(io)?;
    let (mut at, mut bytes) = (offset, Vec::new());
    let mut bad: Option<LedgerError> = None;
    loop {
        bytes.clear();
        let mut bounded = std::io::Read::take(&mut reader, LINE_BYTES_MAX as u64 + 1);
        let read = bounded.read_until(b'\n', &mut bytes).map_err(io)?;
        if read == 0 || (read <= LINE_BYTES_MAX && bytes.last() != Some(&b'\n')) {
            return Ok(at);
        }
        // Only the last line may be broken.
        if let Some(error) = bad {
            return Err(error);
        }
        match serde_json::from_slice::<Line>(&bytes) {
            Ok(line) => {
                take(line);
                at += read as u64;
            }
            Err(e) => {
                let (path, why) = (path.to_owned(), e.to_string());
                bad = Some(LedgerError::Damaged { path, offset: at, why });
            }
        }
    }
}

type Key = (String, AgentName, SessionId, Option<TurnId>, String);

/// Adds lines up. Turns are kept apart on days from `turns_from` on.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) lines: usize,
    rows: BTreeMap<Key, Total>,
    open: HashMap<String, Total>,
    turns_from: String,
}

impl Sums {
    pub(super) fn new(turns_from: String) -> Self {
        Self { turns_from, ..Self::default() }
    }

    pub(super) fn take(&mut self, line: Line) {
        self.lines += 1;
        match line.id {
            Some(id) if line.reserved => drop(self.open.insert(id, line.total)),
            Some(id) => {
                self.open.remove(&id);
                self.add(line.total);
            }
            None => self.add(line.total),
        }
    }

    fn add(&mut self, mut total: Total) {
        if total.calls == 0 {
            return;
        }
        if total.day < self.turns_from {
            total.turn = None;
        }
        let t = &total;
        let key =
            (t.day.clone(), t.agent.clone(), t.session.clone(), t.turn.clone(), t.model.clone());
        match self.rows.get_mut(&key) {
            Some(row) => row.add(&total),
            None => drop(self.rows.insert(key, total)),
        }
    }

    /// All totals, by day; what was reserved and never settled counts in full.
    pub(super) fn finish(mut self) -> Vec<Total> {
        let open = std::mem::take(&mut self.open);
        for (_, mut total) in open {
            total.estimated = 1;
            self.add(total);
        }
        self.rows.into_values().collect()
    }
}

/// Reads a ledger for a report; an absent one is empty. Needs no lock and changes nothing.
///
/// # Errors
/// When the file cannot be read, or is damaged elsewhere than at its end.
pub fn totals(dir: &Path) -> Result<Vec<Total>, LedgerError> {
    let path = dir.join(super::ledger::FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LedgerError::io(&path, "opened", &e)),
    };
    let mut sums = Sums::default();
    read_from(&file, &path, 0, |line| sums.take(line))?;
    Ok(sums.finish())
}

#[cfg(test)]
mod tests {
    use super::day_of;

    #[test]
    fn days_are_civil() {
        for (ms, day) in [
            (0, "1970-01-01"),
            (951_782_400_000, "2000-02-29"),
            (951_868_799_999, "2000-02-29"),
            (951_868_800_000, "2000-03-01"),
            (1_798_761_599_999, "2026-12-31"),
            (4_107_542_400_000, "2100-03-01"),
        ] {
            assert_eq!(day_of(ms), day, "{ms}");
        }
    }
}
