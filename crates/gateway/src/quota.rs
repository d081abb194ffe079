//! How much may go through a rule: bytes a day (kept over restarts) and requests a minute.
//!
//! 1. Bytes are taken before they are sent; what cannot be written down is not sent.
//! 2. One account for an agent, a rule and a UTC day, whichever session sends.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The file is written anew when it has this many lines; about 1 MiB.
const LINES_MAX: usize = 10_000;
/// Longest line that is read back; rule ids and agent names are far shorter.
const LINE_BYTES_MAX: usize = 4_096;
/// Rules one door counts requests for; more than any file has.
const WINDOWS_MAX: usize = 1_024;

/// One movement: bytes taken, or given back when negative.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    day: u64,
    agent: String,
    rule: String,
    bytes: i64,
}

/// Why bytes may not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuotaError {
    #[error("the rule lets {max} bytes out in a day (UTC), and {used} are used up")]
    UsedUp { used: u64, max: u64 },
    #[error("how much was sent today cannot be written down: {cause}")]
    Unwritten { cause: String },
}

struct Book {
    path: Option<PathBuf>,
    file: Option<File>,
    lines: usize,
    day: u64,
    used: BTreeMap<(String, String), u64>,
}

/// The accounts of all agents.
pub(crate) struct Quota(Mutex<Book>);

impl Quota {
    /// Reads `quota.jsonl` in `dir`; without a folder the accounts live as long as the process.
    pub(crate) fn open(dir: Option<&Path>, now_ms: u64) -> io::Result<Self> {
        let path = dir.map(|dir| dir.join("quota.jsonl"));
        let (day, used) = (now_ms / DAY_MS, BTreeMap::new());
        let mut book = Book { path, file: None, lines: 0, day, used };
        if let Some(path) = &book.path {
            book.used = read(path, day)?;
        }
        book.write_anew()?;
        Ok(Self(Mutex::new(book)))
    }

    /// Takes `bytes` from the account, all or none.
    pub(crate) fn take(
        &self,
        now_ms: u64,
        (agent, rule): (&str, &str),
        bytes: u64,
        max: u64,
    ) -> Result<(), QuotaError> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.turn_to(now_ms / DAY_MS)?;
        let key = (agent.to_owned(), rule.to_owned());
        let used = book.used.get(&key).copied().unwrap_or(0);
        if bytes > max.saturating_sub(used) {
            return Err(QuotaError::UsedUp { used, max });
        }
        book.add(key, i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// Gives back what was taken and not sent. What cannot be written stays taken.
    pub(crate) fn give_back(&self, now_ms: u64, (agent, rule): (&str, &str), bytes: u64) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > 0 && book.day == now_ms / DAY_MS {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let _ = book.add((agent.to_owned(), rule.to_owned()), -bytes);
        }
    }
}

fn unwritten(e: &io::Error) -> QuotaError {
    QuotaError::Unwritten { cause: e.to_string() }
}

impl Book {
    fn turn_to(&mut self, day: u64) -> Result<(), QuotaError> {
        // A clock that goes back opens no new account.
        if day > self.day {
            self.day = day;
            self.used.clear();
            self.write_anew().map_err(|e| unwritten(&e))?;
        }
        Ok(())
    }

    fn add(&mut self, key: (String, String), bytes: i64) -> Result<(), QuotaError> {
        let line = Line { day: self.day, agent: key.0.clone(), rule: key.1.clone(), bytes };
        if let Some(file) = &mut self.file {
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            file.write_all(&text).map_err(|e| unwritten(&e))?;
            self.lines += 1;
        }
        let account = self.used.entry(key).or_default();
        *account = account.saturating_add_signed(bytes);
        if self.lines > LINES_MAX {
            self.write_anew().map_err(|e| unwritten(&e))?;
        }
        Ok(())
    }

    /// One line an account, of this day only.
    fn write_anew(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let temporary = path.with_extension("jsonl.new");
        let mut text = Vec::new();
        for ((agent, rule), &bytes) in &self.used {
            let (agent, rule) = (agent.clone(), rule.clone());
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let line = Line { day: self.day, agent, rule, bytes };
            text.extend(serde_json::to_vec(&line).unwrap_or_default());
            text.push(b'\n');
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        self.file = Some(OpenOptions::new().append(true).open(path)?);
        self.lines = self.used.len();
        Ok(())
    }
}

fn read(path: &Path, day: u64) -> io::Result<BTreeMap<(String, String), u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e),
    };
    let mut used: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        if line.len() > LINE_BYTES_MAX {
            continue;
        }
        // A torn last line was never acted upon: the write came before the sending.
        let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
        // A day ahead of the clock still counts: the clock was set back.
        if line.day >= day {
            let account = used.entry((line.agent, line.rule)).or_default();
            *account = account.saturating_add_signed(line.bytes);
        }
    }
    Ok(used)
}

/// Requests in the last minute by second; whole seconds on the safe side.
struct Window {
    counts: [u32; Self::SECONDS],
    newest: u64,
}

impl Window {
    /// A minute and the second it began in.
    const SECONDS: usize = 61;

    fn admit(&mut self, second: u64, max: u32) -> bool {
        let stale = second.saturating_sub(self.newest).min(Self::SECONDS as u64);
        for back in 0..stale {
            self.counts[((second - back) % Self::SECONDS as u64) as usize] = 0;
        }
        self.newest = self.newest.max(second);
        let sum = self.counts.iter().fold(0_u32, |sum, n| sum.saturating_add(*n));
        if sum >= max {
            return false;
        }
        self.counts[(second % Self::SECONDS as u64) as usize] += 1;
        true
    }
}

/// One session's requests per rule and minute.
pub(crate) struct Rates {
    start: Instant,
    windows: Mutex<BTreeMap<String, Window>>,
}

impl Rates {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), windows: Mutex::new(BTreeMap::new()) }
    }

    /// Whether one more request by `rule` is within `max` a minute; counts it if so.
    pub(crate) fn admit(&self, rule: &str, max: u32) -> bool {
        let second = self.start.elapsed().as_secs() + Window::SECONDS as u64;
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if !windows.contains_key(rule) && windows.len() >= WINDOWS_MAX {
            return false;
        }
        let window = windows.entry(rule.to_owned());
        let window = window.or_insert(Window { counts: [0; Window::SECONDS], newest: second });
        window.admit(second, max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ncgw-quota-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("made");
        dir
    }

    #[test]
    fn a_day_s_account_survives_a_restart_and_ends_with_the_day() {
        let dir = folder("restart");
        let quota = Quota::open(Some(&dir), DAY_MS).expect("opened");
        assert_eq!(quota.take(DAY_MS, ("a", "r"), 60, 100), Ok(()));
        assert!(quota.take(DAY_MS, ("a", "r"), 41, 100).is_err());
        assert_eq!(quota.take(DAY_MS, ("a", "other"), 100, 100), Ok(()));
        quota.give_back(DAY_MS, ("a", "r"), 10);
        drop(quota);
        // A write that was cut off by a crash.
        let mut file = OpenOptions::new().append(true).open(dir.join("quota.jsonl")).expect("open");
        file.write_all(b"{\"day\":1,\"agent\":\"a\",\"ru").expect("written");
        let quota = Quota::open(Some(&dir), DAY_MS + 5).expect("opened");
        let used_up = QuotaError::UsedUp { used: 50, max: 100 };
        assert_eq!(quota.take(DAY_MS + 5, ("a", "r"), 51, 100), Err(used_up));
        assert_eq!(quota.take(DAY_MS + 5, ("a", "r"), 50, 100), Ok(()));
        // Setting the clock back opens nothing; the next day does.
        assert!(quota.take(0, ("a", "r"), 1, 100).is_err());
        assert_eq!(quota.take(2 * DAY_MS, ("a", "r"), 100, 100), Ok(()));
        std::fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn the_file_stays_small_however_much_is_moved() {
        let dir = folder("small");
        let quota = Quota::open(Some(&dir), 0).expect("opened");
        for _ in 0..LINES_MAX + 10 {
            quota.take(0, ("a", "r"), 1, u64::MAX).expect("within the day's bytes");
        }
        let text = std::fs::read_to_string(dir.join("quota.jsonl")).expect("read");
        assert!(text.lines().count() < 20);
        std::fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn a_minute_admits_no_more_than_its_rate() {
        let mut window = Window { counts: [0; Window::SECONDS], newest: 100 };
        assert!(window.admit(100, 2) && window.admit(130, 2) && !window.admit(159, 2));
        assert!(!window.admit(160, 2), "the first second may have been its end");
        assert!(window.admit(161, 2) && !window.admit(162, 2));
        assert!(window.admit(500, 1) && !window.admit(500, 1) && !window.admit(560, 1));
    }
}
