//! Who spent what, and whether more may be spent: reserve before a call, settle after it.
//!
//! What is reserved under a budget is synced before the call goes out ([`Syncing`]), at the same
//! time as its record; a crash of the machine then finds it spent. What settles it is not synced:
//! lost, the reservation counts in full. So a crash can only take budget away.

use super::lines::{self, LedgerError, Line, Sums, Total, day_of};
use super::sync::{Synced, Syncing};
use super::{Usage, usd};
use model::{AgentName, Budget, Price, SessionId, TurnId};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The ledger's file within its folder.
pub(super) const FILE: &str = "usage.jsonl";
/// Held shared by every gateway that has the ledger open; whoever gets it alone may rewrite.
const LOCK: &str = "usage.lock";
/// More lines than this beyond what they add up to, and the file is rewritten when opened.
const COMPACT_LINES: usize = 256;
/// Turns are kept apart for so long; no turn lasts longer.
const TURNS_KEPT_MS: u64 = 8 * 24 * 3600 * 1000;

/// Who is about to spend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spender {
    /// The agent; budgets of days are its.
    pub agent: AgentName,
    /// The session.
    pub session: SessionId,
    /// The turn, if one runs; budgets of turns need one.
    pub turn: Option<TurnId>,
    /// NAME of `[models.NAME]`.
    pub model: String,
    /// Now, Unix milliseconds.
    pub time_ms: u64,
}

/// A limit that leaves too little.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the budget of agent {agent} is used up: of {limit} = {allowed} {used} are spent or reserved, \
     and this request may take up to {wanted}; {until}, or raise {limit} in [budget] of \
     agents/{agent}.toml"
)]
pub struct UsedUp {
    /// Whose.
    pub agent: AgentName,
    /// The key in `[budget]`.
    pub limit: &'static str,
    /// Its value, with unit.
    pub allowed: String,
    /// What is gone.
    pub used: String,
    /// What the request was reserved at.
    pub wanted: String,
    /// When it ends by itself.
    pub until: &'static str,
    /// Whether nobody was told of this limit on this day or in this turn.
    pub first: bool,
}

/// Why a call is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// It could cost more than is left.
    #[error("{0}")]
    Limit(Box<UsedUp>),
    /// A budget in USD, and a model whose price nobody wrote.
    #[error(
        "agent {agent} has a budget in USD, and the model {model:?} has no price; write \
         [models.{model}.price] in nanoclaw.toml (zeros for a model that costs nothing)"
    )]
    NoPrice {
        /// Whose budget.
        agent: AgentName,
        /// The model.
        model: String,
    },
    /// What cannot be written down is not spent.
    #[error("nothing was sent, for {0}")]
    Ledger(#[from] LedgerError),
}

/// One limit, what is gone of it, and what is wanted.
struct Check {
    limit: &'static str,
    allowed: Option<u64>,
    used: u64,
    wanted: u64,
    shown: fn(u64) -> String,
}

#[derive(Default, Clone, Copy)]
struct Spent {
    tokens: u64,
    micro_usd: u64,
}

/// What the limits are judged by.
#[derive(Default)]
struct Book {
    days: HashMap<(String, AgentName), Spent>,
    turns: HashMap<(SessionId, TurnId), (String, u64)>,
    open: HashMap<String, Total>,
    told: HashSet<(String, String)>,
    today: String,
}

impl Book {
    fn take(&mut self, line: Line) {
        match line.id {
            Some(id) if line.reserved => {
                self.add(&line.total, true);
                self.open.insert(id, line.total);
            }
            Some(id) => {
                if let Some(reserved) = self.open.remove(&id) {
                    self.add(&reserved, false);
                }
                self.add(&line.total, true);
            }
            None => self.add(&line.total, true),
        }
    }

    fn add(&mut self, total: &Total, more: bool) {
        let change = |n: u64, by: u64| if more { n.saturating_add(by) } else { n - by.min(n) };
        let day = self.days.entry((total.day.clone(), total.agent.clone())).or_default();
        day.tokens = change(day.tokens, total.usage.tokens());
        day.micro_usd = change(day.micro_usd, total.micro_usd);
        if let Some(turn) = &total.turn {
            let key = (total.session.clone(), turn.clone());
            let turn = self.turns.entry(key).or_insert_with(|| (total.day.clone(), 0));
            turn.1 = change(turn.1, total.micro_usd);
        }
    }

    /// Forgets what no limit asks for any more.
    fn begin_day(&mut self, time_ms: u64) {
        let today = day_of(time_ms);
        if self.today != today {
            let oldest = day_of(time_ms.saturating_sub(TURNS_KEPT_MS));
            // A reservation made before midnight is still settled on its own day.
            self.days.retain(|(day, _), _| *day >= oldest);
            self.turns.retain(|_, (day, _)| *day >= oldest);
            self.told.clear();
            self.today = today;
        }
    }

    fn judge(
        &mut self,
        who: &Spender,
        tokens: u64,
        cost: u64,
        budget: &Budget,
    ) -> Result<(), OverBudget> {
        let key = (self.today.clone(), who.agent.clone());
        let day = self.days.get(&key).copied().unwrap_or_default();
        let turn = who.turn.as_ref().map(|turn| (who.session.clone(), turn.clone()));
        let in_turn = turn.and_then(|key| self.turns.get(&key)).map_or(0, |(_, n)| *n);
        let scope = who.turn.as_ref().map_or("", |turn| turn.as_str());
        let plain: fn(u64) -> String = |n| format!("{n} tokens");
        let check =
            |limit, allowed, used, wanted, shown| Check { limit, allowed, used, wanted, shown };
        let checks = [
            check("usd_per_turn", budget.micro_usd_per_turn, in_turn, cost, usd),
            check("usd_per_day", budget.micro_usd_per_day, day.micro_usd, cost, usd),
            check("tokens_per_day", budget.tokens_per_day, day.tokens, tokens, plain),
        ];
        for Check { limit, allowed, used, wanted, shown } in checks {
            let Some(allowed) = allowed else { continue };
            if used.saturating_add(wanted) <= allowed {
                continue;
            }
            let (scope, until) = match limit {
                "usd_per_turn" => (scope, "end the turn"),
                _ => ("", "wait until 00:00 UTC"),
            };
            let first = self.told.insert((format!("{} {limit}", who.agent), scope.to_owned()));
            return Err(OverBudget::Limit(Box::new(UsedUp {
                agent: who.agent.clone(),
                limit,
                allowed: shown(allowed),
                used: shown(used),
                wanted: shown(wanted),
                until,
                first,
            })));
        }
        Ok(())
    }
}

/// The file, and how much of it was read.
struct Store {
    path: PathBuf,
    file: File,
    read: u64,
    _shared: File,
}

struct Inner {
    book: Book,
    store: Option<Store>,
}

impl Inner {
    /// Runs `work` while no other gateway writes, with all lines of others read.
    fn alone<T>(
        &mut self,
        work: impl FnOnce(&mut Book) -> Result<(Line, T), OverBudget>,
    ) -> Result<T, OverBudget> {
        let Some(store) = &mut self.store else {
            let (line, value) = work(&mut self.book)?;
            self.book.take(line);
            return Ok(value);
        };
        let io = |path: &Path, action, e: &std::io::Error| LedgerError::io(path, action, e);
        store.file.lock().map_err(|e| io(&store.path, "locked", &e))?;
        let done = store.catch_up(&mut self.book).map_err(OverBudget::from).and_then(|()| {
            let (line, value) = work(&mut self.book)?;
            store.append(&line)?;
            self.book.take(line);
            Ok(value)
        });
        // Closing would unlock too; an error here leaves nothing undone.
        let _ = store.file.unlock();
        done
    }
}

impl Store {
    /// Reads what was written since, and cuts off what a crash left unfinished.
    fn catch_up(&mut self, book: &mut Book) -> Result<(), LedgerError> {
        let io = |action, e: &std::io::Error| LedgerError::io(&self.path, action, e);
        let length = self.file.metadata().map_err(|e| io("looked at", &e))?.len();
        if length == self.read {
            return Ok(());
        }
        if length < self.read {
            let why = "it became shorter while it was in use".to_owned();
            return Err(LedgerError::Damaged { path: self.path.clone(), offset: length, why });
        }
        let end = lines::read_from(&self.file, &self.path, self.read, |line| book.take(line))?;
        if end < length {
            self.file.set_len(end).map_err(|e| io("mended", &e))?;
        }
        self.read = end;
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), LedgerError> {
        let bytes = to_line(line);
        match self.file.write_all(&bytes) {
            Ok(()) => {
                self.read += bytes.len() as u64;
                Ok(())
            }
            Err(e) => {
                // Half a line would make the next one unreadable.
                let _ = self.file.set_len(self.read);
                Err(LedgerError::io(&self.path, "written", &e))
            }
        }
    }
}

fn to_line(line: &Line) -> Vec<u8> {
    // Strings and numbers only: this cannot fail; an empty line would be refused when read.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The ledger of one installation. Cheap to share; calls take microseconds and may wait for
/// another process's, so they are fine on an async thread.
pub struct Ledger {
    inner: Mutex<Inner>,
    synced: Synced,
    prefix: String,
    next: AtomicU64,
}

impl Ledger {
    /// Opens `usage.jsonl` in a folder that belongs to us, making it when it is not there, and
    /// rewrites it shorter when that is worth while and no other gateway has it open.
    ///
    /// # Errors
    /// When it cannot be read or written, or is damaged elsewhere than at its end.
    pub fn open(dir: &Path) -> Result<Arc<Self>, LedgerError> {
        let path = dir.join(FILE);
        let io = |action, e: &std::io::Error| LedgerError::io(&path, action, e);
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600).open(path)
        };
        let shared = open(&dir.join(LOCK)).map_err(|e| io("locked", &e))?;
        if shared.try_lock().is_ok() {
            compact(dir, &path)?;
            shared.unlock().map_err(|e| io("locked", &e))?;
        }
        shared.lock_shared().map_err(|e| io("locked", &e))?;
        let file = open(&path).map_err(|e| io("opened", &e))?;
        // What was found may stand only in memory, and so may the file's name.
        let on_disk = file.sync_all().and_then(|()| File::open(dir)?.sync_all());
        on_disk.map_err(|e| io("synced", &e))?;
        let twin = file.try_clone().map_err(|e| io("opened", &e))?;
        let mut store = Store { path: path.clone(), file, read: 0, _shared: shared };
        let mut book = Book::default();
        store.file.lock().map_err(|e| io("locked", &e))?;
        let read = store.catch_up(&mut book);
        store.file.unlock().map_err(|e| io("locked", &e))?;
        read?;
        Ok(Self::with(Inner { book, store: Some(store) }, Some((path, twin))))
    }

    /// One that forgets everything when dropped: for tests and measurements.
    #[must_use]
    pub fn in_memory() -> Arc<Self> {
        Self::with(Inner { book: Book::default(), store: None }, None)
    }

    fn with(inner: Inner, store: Option<(PathBuf, File)>) -> Arc<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = format!("{:x}.{:x}", std::process::id(), now.as_nanos());
        let synced = Synced::of(store);
        Arc::new(Self { inner: Mutex::new(inner), synced, prefix, next: AtomicU64::new(0) })
    }

    /// Waits until the file is on the disk up to `end`.
    pub(super) fn sync_to(&self, end: u64) -> Result<(), LedgerError> {
        self.synced.up_to(end, || self.lock().store.as_ref().map_or(end, |store| store.read))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside what a call may cost. `estimate` is the most it is expected to take.
    ///
    /// # Errors
    /// When the budget does not have it, cannot be judged, or the file cannot be written.
    pub fn reserve(
        self: &Arc<Self>,
        who: &Spender,
        estimate: Usage,
        price: Option<Price>,
        budget: &Budget,
    ) -> Result<Reservation, OverBudget> {
        let in_usd = budget.micro_usd_per_day.or(budget.micro_usd_per_turn).is_some();
        if price.is_none() && in_usd {
            let (agent, model) = (who.agent.clone(), who.model.clone());
            return Err(OverBudget::NoPrice { agent, model });
        }
        let id = format!("{}.{:x}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed));
        let cost = price.map_or(0, |price| estimate.cost(&price));
        let limited = in_usd || budget.tokens_per_day.is_some();
        let mut inner = self.lock();
        inner.book.begin_day(who.time_ms);
        let mut reservation = inner.alone(|book| {
            book.judge(who, estimate.tokens(), cost, budget)?;
            let total = Total {
                day: book.today.clone(),
                agent: who.agent.clone(),
                session: who.session.clone(),
                turn: who.turn.clone(),
                model: who.model.clone(),
                calls: 1,
                usage: estimate,
                micro_usd: cost,
                unpriced: u64::from(price.is_none()),
                estimated: 0,
            };
            let line = Line { id: Some(id.clone()), reserved: true, total: total.clone() };
            Ok((line, Reservation { ledger: Arc::clone(self), id, total, price, end: None }))
        })?;
        reservation.end = inner.store.as_ref().filter(|_| limited).map(|store| store.read);
        Ok(reservation)
    }

    fn settle(&self, id: &str, total: Total) {
        let line = Line { id: Some(id.to_owned()), reserved: false, total };
        // If it cannot be written the reservation stands, and counts in full.
        let _ = self.lock().alone(|_| Ok((line, ())));
    }
}

/// Rewrites the file with its lines added up, if that makes it much shorter.
fn compact(dir: &Path, path: &Path) -> Result<(), LedgerError> {
    let io = |action, e: &std::io::Error| LedgerError::io(path, action, e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io("opened", &e)),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    let mut sums = Sums::new(day_of(now.saturating_sub(TURNS_KEPT_MS)));
    lines::read_from(&file, path, 0, |line| sums.take(line))?;
    let before = sums.lines;
    let rows = sums.finish();
    if before < rows.len() + COMPACT_LINES {
        return Ok(());
    }
    let short = dir.join("usage.jsonl.new");
    let write = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&short)?;
        let mut text = Vec::new();
        for total in rows {
            text.extend(to_line(&Line { id: None, reserved: false, total }));
        }
        out.write_all(&text)?;
        out.sync_all()?;
        std::fs::rename(&short, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| io("rewritten", &e))
}

/// Money set aside for one call. If it is never settled it counts in full.
pub struct Reservation {
    ledger: Arc<Ledger>,
    id: String,
    total: Total,
    price: Option<Price>,
    /// Where its line ends, if it must be on the disk before the call is made.
    end: Option<u64>,
}

impl Reservation {
    /// What to wait for before the call is made; nothing where no budget is counted.
    #[must_use]
    pub fn syncing(&self) -> Option<Syncing> {
        self.end.map(|end| Syncing::new(Arc::clone(&self.ledger), end))
    }

    /// What was set aside.
    #[must_use]
    pub fn estimate(&self) -> Usage {
        self.total.usage
    }

    /// Replaces the estimate by what was used; says the cost in micro-USD, if the price is known.
    /// `estimated` marks counts that are not the provider's.
    pub fn settle(mut self, usage: Usage, estimated: bool) -> Option<u64> {
        let cost = self.price.map(|price| usage.cost(&price));
        self.total.usage = usage;
        self.total.micro_usd = cost.unwrap_or(0);
        self.total.estimated = u64::from(estimated);
        self.ledger.settle(&self.id, self.total);
        cost
    }

    /// Gives everything back: the call was not made.
    pub fn release(mut self) {
        (self.total.calls, self.total.micro_usd, self.total.usage) = (0, 0, Usage::default());
        self.total.unpriced = 0;
        self.ledger.settle(&self.id, self.total);
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
