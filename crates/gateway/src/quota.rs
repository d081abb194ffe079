//! How many bytes go through a rule in a day, kept over restarts and crashes.
//!
//! ```text
//! take ─► within what is held on disk? ─► yes: count in memory
//!                                    └──► no: hold a block more (written, fdatasync) ─► count
//! ```
//!
//! 1. Before a byte is sent, the disk says that it is gone: the file holds an upper bound of every
//!    account, made durable before it is drawn on. A crash (of the process or the machine) can only
//!    take budget away, at most one block; an orderly end writes the exact figures.
//! 2. One account for an agent, the content of a rule and a UTC day, whichever session sends and on
//!    whatever line the rule stands. The limit is not part of it: changing it opens no new account.
//! 3. A failed sync is not tried again, for the kernel may have dropped the pages: no more bytes
//!    under a daily limit until the gateway starts anew.

use model::EgressRule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The file is written anew when it has this many lines; about 1 MiB.
const LINES_MAX: usize = 10_000;
/// Longest line that is read back; rule ids and agent names are far shorter.
const LINE_BYTES_MAX: usize = 4_096;
/// A block is this part of the day's bytes: so many syncs a day at most for each account, and so
/// little is lost to a crash.
const BLOCKS: u64 = 64;
/// Smallest block: what bodies of unknown length take at a time.
const BLOCK_BYTES_MIN: u64 = 64 * 1024;

/// A line: what is held of an account, the last one counts. Lines of the first format had `rule`
/// (its place in the file) and `bytes` that were added up.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    day: u64,
    agent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<i64>,
}

/// Whose bytes, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Account {
    agent: String,
    /// Digest of what the rule says about where.
    digest: String,
    /// The rule's place, under which the first format kept its account.
    place: String,
}

impl Account {
    /// The account of an agent's rule.
    pub(crate) fn new(agent: &str, rule: &EgressRule) -> Self {
        let (mut methods, mut paths) = (rule.methods.clone(), rule.paths.clone());
        methods.sort();
        methods.dedup();
        paths.sort();
        paths.dedup();
        let text = serde_json::to_vec(&(&rule.host, rule.port, methods, paths)).unwrap_or_default();
        let digest = crate::modelapi::outcome::sha256_hex(&text).0;
        Self { agent: agent.to_owned(), digest, place: rule.id.clone() }
    }

    fn key(&self) -> Key {
        (self.agent.clone(), self.digest.clone())
    }

    fn old_key(&self) -> Key {
        (self.agent.clone(), self.place.clone())
    }
}

/// Agent, and digest (or, in the first format, place).
type Key = (String, String);

/// Why bytes may not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuotaError {
    #[error("the rule lets {max} bytes out in a day (UTC), and {used} are used up")]
    UsedUp { used: u64, max: u64 },
    #[error("how much was sent today cannot be written down: {cause}")]
    Unwritten { cause: String },
}

/// An account: what is used, and what the disk says is used at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    used: u64,
    held: u64,
}

/// The figures; locked for moments.
struct Book {
    day: u64,
    accounts: BTreeMap<Key, State>,
    /// Bytes of today in the first format, until their rule is met.
    old: BTreeMap<Key, u64>,
}

/// The file; locked while it is written and synced.
struct Keeper {
    path: Option<PathBuf>,
    file: Option<File>,
    lines: usize,
    failed: Option<String>,
}

struct Inner {
    book: Mutex<Book>,
    keeper: Mutex<Keeper>,
}

/// The accounts of all agents. The last clone writes the exact figures when it goes.
#[derive(Clone)]
pub(crate) struct Quota(Arc<Inner>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Quota {
    /// Reads `quota.jsonl` in `dir`; without a folder the accounts live as long as the process.
    pub(crate) fn open(dir: Option<&Path>, now_ms: u64) -> io::Result<Self> {
        let path = dir.map(|dir| dir.join("quota.jsonl"));
        let mut book =
            Book { day: now_ms / DAY_MS, accounts: BTreeMap::new(), old: BTreeMap::new() };
        if let Some(path) = &path {
            book.read(path)?;
        }
        let mut keeper = Keeper { path, file: None, lines: 0, failed: None };
        keeper.write_anew(&book)?;
        Ok(Self(Arc::new(Inner { book: Mutex::new(book), keeper: Mutex::new(keeper) })))
    }

    /// Takes `bytes` from the account, all or none. Waits for the disk once a block.
    pub(crate) async fn take(
        &self,
        now_ms: u64,
        account: &Account,
        bytes: u64,
        max: u64,
    ) -> Result<(), QuotaError> {
        loop {
            let day = now_ms / DAY_MS;
            let Some(hold) = locked(&self.0.book).take(day, account, bytes, max)? else {
                return Ok(());
            };
            let (inner, account) = (Arc::clone(&self.0), account.clone());
            let held = tokio::task::spawn_blocking(move || inner.hold(&account, hold)).await;
            held.map_err(|e| QuotaError::Unwritten { cause: e.to_string() })??;
        }
    }

    /// Gives back what was taken and not sent.
    pub(crate) fn give_back(&self, now_ms: u64, account: &Account, bytes: u64) {
        let mut book = locked(&self.0.book);
        // What was taken yesterday is nobody's today.
        if book.day == now_ms / DAY_MS
            && let Some(state) = book.accounts.get_mut(&account.key())
        {
            state.used = state.used.saturating_sub(bytes);
        }
    }
}

impl Book {
    /// Counts the bytes, or says how much must be held before they can be counted.
    fn take(
        &mut self,
        day: u64,
        account: &Account,
        bytes: u64,
        max: u64,
    ) -> Result<Option<u64>, QuotaError> {
        // A clock that goes back opens no new account.
        if day > self.day {
            self.day = day;
            self.accounts.clear();
            self.old.clear();
        }
        let old = self.old.get(&account.old_key()).copied();
        let mut state = self.accounts.get(&account.key()).copied().unwrap_or_default();
        state.used = state.used.saturating_add(old.unwrap_or(0));
        if bytes > max.saturating_sub(state.used) {
            return Err(QuotaError::UsedUp { used: state.used, max });
        }
        state.used += bytes;
        if old.is_some() || state.used > state.held {
            let block = (max / BLOCKS).max(BLOCK_BYTES_MIN);
            return Ok(Some(state.used.saturating_add(block).min(max).max(state.used)));
        }
        self.accounts.insert(account.key(), state);
        Ok(None)
    }

    /// Reads the file: what was held counts as used.
    fn read(&mut self, path: &Path) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            if line.len() > LINE_BYTES_MAX {
                continue;
            }
            // A torn last line was never acted upon: its sync came before the sending.
            let Ok(line) = serde_json::from_slice::<Line>(&line) else { continue };
            // A day ahead of the clock still counts: the clock was set back.
            if line.day < self.day {
                continue;
            }
            match (line.account, line.held, line.rule, line.bytes) {
                (Some(digest), Some(held), ..) => {
                    let state = State { used: held, held };
                    self.accounts.insert((line.agent, digest), state);
                }
                (_, _, Some(rule), Some(bytes)) => {
                    let sum = self.old.entry((line.agent, rule)).or_default();
                    *sum = sum.saturating_add_signed(bytes);
                }
                _ => {}
            }
        }
        self.old.retain(|_, bytes| *bytes > 0);
        Ok(())
    }
}

impl Inner {
    /// Makes it durable that so much of the account may be gone.
    fn hold(&self, account: &Account, hold: u64) -> Result<(), QuotaError> {
        let mut keeper = locked(&self.keeper);
        let (day, old) = {
            let book = locked(&self.book);
            let held = book.accounts.get(&account.key()).map_or(0, |state| state.held);
            let old = book.old.get(&account.old_key()).copied();
            if held >= hold && old.is_none() {
                return Ok(()); // another request held it meanwhile
            }
            (book.day, old)
        };
        let mut lines = vec![Line::held(day, &account.key(), hold)];
        if let Some(bytes) = old {
            // Takes back what the first format counted, now that it stands under the content.
            let bytes = 0_i64.saturating_sub_unsigned(bytes);
            let (agent, rule) = (account.agent.clone(), Some(account.place.clone()));
            lines.push(Line { day, agent, account: None, held: None, rule, bytes: Some(bytes) });
        }
        keeper.write(&lines)?;
        let mut book = locked(&self.book);
        if book.day == day {
            let old = book.old.remove(&account.old_key()).unwrap_or(0);
            let state = book.accounts.entry(account.key()).or_default();
            state.held = state.held.max(hold);
            state.used = state.used.saturating_add(old);
        }
        if keeper.lines > LINES_MAX {
            keeper.write_anew(&book).map_err(|e| keeper.fail(&e))?;
        }
        Ok(())
    }
}

impl Drop for Inner {
    /// Only now nothing can be drawn any more, so what was held and not used is free again.
    fn drop(&mut self) {
        let (mut keeper, mut book) = (locked(&self.keeper), locked(&self.book));
        if keeper.failed.is_none() {
            book.accounts.values_mut().for_each(|state| state.held = state.used);
            // If it cannot be written, what is held counts.
            let _ = keeper.write_anew(&book);
        }
    }
}

impl Line {
    fn held(day: u64, key: &Key, held: u64) -> Self {
        let (agent, account) = (key.0.clone(), Some(key.1.clone()));
        Self { day, agent, account, held: Some(held), rule: None, bytes: None }
    }

    fn push_to(&self, text: &mut Vec<u8>) {
        // Strings and numbers only: this cannot fail.
        text.extend(serde_json::to_vec(self).unwrap_or_default());
        text.push(b'\n');
    }
}

impl Keeper {
    /// Appends and syncs.
    fn write(&mut self, lines: &[Line]) -> Result<(), QuotaError> {
        if let Some(cause) = &self.failed {
            return Err(QuotaError::Unwritten { cause: cause.clone() });
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = Vec::new();
        lines.iter().for_each(|line| line.push_to(&mut text));
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        written.map_err(|e| self.fail(&e))?;
        self.lines += lines.len();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) -> QuotaError {
        let cause = format!("{error}; it is tried again when the gateway starts anew");
        self.failed = Some(cause.clone());
        QuotaError::Unwritten { cause }
    }

    /// One line an account, of this day only; whole or not at all.
    fn write_anew(&mut self, book: &Book) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let temporary = path.with_extension("jsonl.new");
        let mut text = Vec::new();
        for (key, state) in &book.accounts {
            Line::held(book.day, key, state.held).push_to(&mut text);
        }
        for ((agent, rule), &bytes) in &book.old {
            let (agent, rule) = (agent.clone(), Some(rule.clone()));
            let bytes = i64::try_from(bytes).ok();
            Line { day: book.day, agent, account: None, held: None, rule, bytes }
                .push_to(&mut text);
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.file = Some(OpenOptions::new().append(true).open(path)?);
        self.lines = book.accounts.len() + book.old.len();
        Ok(())
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
