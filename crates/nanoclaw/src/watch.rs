//! What the gateway has to say to the person: that it was started again, that it is gone, that a
//! request waits for a yes or no.
//!
//! 1. Only somebody at a terminal is asked; where there is none, the answer is no at once.
//! 2. One question at a time; what was typed before it is not its answer, and what is neither yes
//!    nor no is asked again a few times, then it is no.
//! 3. A question for whose answer nobody waits any more ends, and makes room for the next.
//! 4. What a request is about is foreign text: it is shown escaped, on one line, and whole. What is
//!    shown is what is on record, to the byte; otherwise nothing is, and the answer is no.
//! 5. After a question that ended unanswered nothing is asked for a moment, and what is typed
//!    meanwhile is thrown away: it was meant for that question.

use crate::ui::{self, Paint, brief};
use gateway::control::{Event, Watcher, Withdrawn};
use gateway::{Answer, Question};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{QueueSelector, tcflush};
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Characters of a question's subject that are shown: all.
const SUBJECT: usize = gateway::SUMMARY_CHARS_MAX;
/// How long nothing is asked after a question that ended unanswered: time to see that it did.
const QUIET: Duration = Duration::from_secs(2);
/// How often a waiting question looks whether it is still worth waiting for.
const LOOK: Duration = Duration::from_millis(200);
/// Longest line a terminal hands over (`N_TTY_BUF_SIZE`), bytes: what is left of a longer read
/// would answer the next question.
const LINE_BYTES_MAX: usize = 4_096;
/// How often a question is put in all, while the answers are neither yes nor no.
const TRIES: usize = 3;
/// Who answers at the terminal of an installation: whoever may start it owns it.
const OWNER: &str = "owner";

/// Where answers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    /// From nowhere: there is no terminal, or it belongs to the command.
    Nobody,
    /// Typed lines, read here.
    Terminal,
    /// Typed lines, read by whoever copies the terminal to the command, see [`Watch::typed`].
    Copied,
}

type Say = Box<dyn Fn(&str) + Send + Sync>;
type Hook = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct End {
    cause: Option<String>,
    hooks: Vec<Hook>,
}

/// Hears the gateway.
pub(crate) struct Watch {
    asking: Asking,
    /// Whether somebody waits for what the agent does, so that a question is seen.
    attended: AtomicBool,
    one: Mutex<()>,
    diversion: Mutex<Option<SyncSender<Vec<u8>>>>,
    /// Whoever copied the terminal reads it no more: answers are read here from then on.
    input_over: AtomicBool,
    /// Until then nothing is asked.
    quiet: Mutex<Option<Instant>>,
    say: Mutex<Say>,
    end: Mutex<End>,
}

/// Gives typed bytes to a question that waits for them; `false` when they are the command's.
fn divert(to: Option<&SyncSender<Vec<u8>>>, typed: &[u8]) -> bool {
    to.is_some_and(|to| to.try_send(typed.to_vec()).is_ok())
}

/// Whether something can be read, within this time or, without one, at some time.
fn ready(stdin: &io::Stdin, within: Option<&Timespec>) -> io::Result<bool> {
    let mut fds = [PollFd::new(stdin, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, within))? > 0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a person can be asked here at all.
pub(crate) fn at_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

impl Watch {
    pub(crate) fn new(asking: Asking) -> Self {
        Self {
            asking,
            attended: AtomicBool::new(true),
            one: Mutex::default(),
            diversion: Mutex::default(),
            input_over: AtomicBool::new(false),
            quiet: Mutex::default(),
            say: Mutex::new(Box::new(|text| ui::note(format!("nanoclaw: {text}")))),
            end: Mutex::default(),
        }
    }

    /// How notices are shown from now on.
    pub(crate) fn say_by(&self, say: impl Fn(&str) + Send + Sync + 'static) {
        *lock(&self.say) = Box::new(say);
    }

    /// Says whether somebody waits from now on.
    pub(crate) fn attend(&self, attended: bool) {
        self.attended.store(attended, Ordering::SeqCst);
    }

    /// Calls `hook` when the gateway is gone for good; at once, when it is already.
    pub(crate) fn when_gone(&self, hook: impl Fn() + Send + Sync + 'static) {
        let mut end = lock(&self.end);
        if end.cause.is_some() {
            drop(end);
            return hook();
        }
        end.hooks.push(Box::new(hook));
    }

    /// Why the gateway is gone for good, if it is.
    pub(crate) fn gone(&self) -> Option<String> {
        lock(&self.end).cause.clone()
    }

    /// Waits for what is typed at standard input, and gives it to the question that waits for it.
    /// The command's is returned: so many bytes of `piece`, 0 at the end. An end that is typed at a
    /// question is an answer that is neither yes nor no.
    pub(crate) fn typed(&self, piece: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        loop {
            ready(&stdin, None)?;
            // With this a question begins, so nothing typed before it is on its way to it.
            let diversion = lock(&self.diversion);
            if !ready(&stdin, Some(&Timespec::default()))? {
                continue;
            }
            let n = rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut *piece))?;
            if !self.takes(diversion.as_ref(), &piece[..n]) {
                return Ok(n);
            }
        }
    }

    /// The command takes no more of what is typed; a terminal goes on nevertheless.
    pub(crate) fn input_over(&self) {
        self.input_over.store(true, Ordering::SeqCst);
    }

    /// Whether typed bytes are not the command's. An end is, where no question is shown.
    fn takes(&self, diversion: Option<&SyncSender<Vec<u8>>>, typed: &[u8]) -> bool {
        divert(diversion, typed) || (!typed.is_empty() && self.is_quiet())
    }

    fn is_quiet(&self) -> bool {
        lock(&self.quiet).is_some_and(|until| Instant::now() < until)
    }

    fn say(&self, text: &str) {
        lock(&self.say)(text);
    }

    fn put(&self, question: &Question, withdrawn: &Withdrawn) -> Answer {
        let until = Instant::now() + question.timeout;
        let waits = || {
            let attended = self.attended.load(Ordering::SeqCst);
            attended && Instant::now() < until && !withdrawn.is_set()
        };
        let Some(subject) = subject(question) else {
            self.say("refused, for what would be shown of the question is not what is on record");
            return Answer::None;
        };
        // What ends before its turn is not shown.
        let Some(_one) = self.turn(&waits) else { return Answer::None };
        let typed = self.begin(question, &subject, until);
        let answer = self.hear(&typed, &waits);
        if answer.is_none() || withdrawn.is_set() {
            *lock(&self.quiet) = Some(Instant::now() + QUIET);
        }
        *lock(&self.diversion) = None;
        let by = OWNER.to_owned();
        match answer {
            _ if withdrawn.is_set() => {
                ui::note("  (the question was withdrawn: nobody waits for it any more)");
                Answer::None
            }
            Some(true) => Answer::Allow { by },
            Some(false) => {
                ui::note("  refused");
                Answer::Deny { by }
            }
            None => {
                ui::note("  no answer; refused");
                Answer::None
            }
        }
    }

    /// Yes or no; `None` when there is no answer in time.
    fn hear(&self, typed: &Receiver<Vec<u8>>, waits: &dyn Fn() -> bool) -> Option<bool> {
        for left in (0..TRIES).rev() {
            let line = self.line(typed, waits)?;
            match line.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Some(true),
                "n" | "no" => return Some(false),
                _ if left > 0 => ui::note("  That is neither y nor n. Allow once? [y/n]"),
                _ => {}
            }
        }
        Some(false)
    }

    /// A typed line, from whoever copies the terminal or, where nobody does, from the terminal.
    fn line(&self, typed: &Receiver<Vec<u8>>, waits: &dyn Fn() -> bool) -> Option<String> {
        while waits() {
            let copied = self.asking == Asking::Copied && !self.input_over.load(Ordering::SeqCst);
            let bytes = if copied { diverted(typed) } else { read() };
            if let Some(bytes) = bytes.ok()? {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        None
    }

    /// Waits until no other question is shown.
    fn turn(&self, waits: &dyn Fn() -> bool) -> Option<MutexGuard<'_, ()>> {
        while waits() {
            let one = match self.one.try_lock() {
                Ok(one) => Some(one),
                Err(TryLockError::Poisoned(one)) => Some(one.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            // Whoever had the turn said before it ended whether it is quiet now.
            if let Some(one) = one.filter(|_| !self.is_quiet()) {
                return Some(one);
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Shows a question. What was typed so far is thrown away; what is typed from now on comes here
    /// where somebody copies the terminal.
    fn begin(&self, question: &Question, subject: &str, until: Instant) -> Receiver<Vec<u8>> {
        let mut diversion = lock(&self.diversion);
        // What cannot be thrown away was not typed on a terminal; then there is no question either.
        let _ = tcflush(io::stdin(), QueueSelector::IFlush);
        let paint = Paint(io::stderr().is_terminal() && ui::colours());
        let left = until.saturating_duration_since(Instant::now()).as_secs();
        ui::note(format!(
            "\n{}  {subject}\n  rule {}; answer within {left} s. Allow once? [y/n]",
            paint.bold(&format!("Agent {} asks:", question.agent)),
            brief(&question.rule, SUBJECT),
        ));
        let (to, from) = sync_channel(1);
        *diversion = Some(to);
        from
    }
}

/// What is shown of a question: safe for a terminal, and on record as this. `None` if it is not.
fn subject(question: &Question) -> Option<String> {
    let text = brief(&question.summary, SUBJECT);
    question.is_shown_by(&text).then_some(text)
}

/// A line that the copier of the terminal hands over, if one comes within [`LOOK`].
fn diverted(from: &Receiver<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match from.recv_timeout(LOOK) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// A line from the terminal itself, if one comes within [`LOOK`].
fn read() -> io::Result<Option<Vec<u8>>> {
    let look = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    typed_line(&look)
}

/// A line typed at the terminal, if one comes within this time; empty at an end of input.
pub(crate) fn typed_line(within: &Timespec) -> io::Result<Option<Vec<u8>>> {
    let stdin = io::stdin();
    if !ready(&stdin, Some(within))? {
        return Ok(None);
    }
    let mut bytes = vec![0; LINE_BYTES_MAX];
    let n = rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut *bytes))?;
    bytes.truncate(n);
    Ok(Some(bytes))
}

impl Watcher for Watch {
    fn happened(&self, event: Event) {
        match event {
            Event::Restarted => {
                self.say("the gateway stopped; it was started again (what was under way is lost)");
            }
            Event::Notice(notice) => self.say(&notice.text),
            Event::Failed { cause } => {
                self.say(&format!("the gateway is gone, and nothing goes out any more: {cause}"));
                let mut end = lock(&self.end);
                end.cause = Some(cause);
                let hooks = std::mem::take(&mut end.hooks);
                drop(end);
                hooks.iter().for_each(|hook| hook());
            }
        }
    }

    fn ask(&self, question: Question, withdrawn: &Withdrawn) -> Answer {
        let unseen = !self.attended.load(Ordering::SeqCst);
        if self.asking == Asking::Nobody || unseen {
            let subject = brief(&question.summary, SUBJECT);
            let why = if unseen { "nobody waits for the agent now" } else { "nobody can be asked" };
            self.say(&format!("refused, for a human must allow it and {why} here: {subject}"));
            return Answer::None;
        }
        self.put(&question, withdrawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scribe::sha256_hex;

    fn question(millis: u64) -> Question {
        Question {
            id: "q".into(),
            session: model::SessionId::mint(1, 1),
            agent: model::AgentName::parse("a").expect("a name"),
            rule: "r".into(),
            by: "owner".into(),
            timeout: Duration::from_millis(millis),
            shown_sha256: sha256_hex(SHOWN.as_bytes()),
            summary: SHOWN.into(),
        }
    }

    const SHOWN: &str = "GET http://x/\\u{1b}[2J";

    #[test]
    fn what_is_not_on_record_as_shown_is_not_shown_and_the_answer_is_no() {
        let good = question(60_000);
        assert_eq!(subject(&good).as_deref(), Some(SHOWN));
        let tail = |text: &str| Question { summary: text.into(), ..question(60_000) };
        let (raw, long) = ("GET http://x/\u{1b}[2J", "a".repeat(SUBJECT + 1));
        let of_itself =
            |text: &str| Question { shown_sha256: sha256_hex(text.as_bytes()), ..tail(text) };
        // What counts is what would be shown.
        assert_eq!(subject(&tail(raw)).as_deref(), Some(SHOWN));
        for bad in [tail("GET http://y/"), of_itself(raw), of_itself(&long)] {
            assert_eq!(subject(&bad), None);
            let (watch, (to, said)) = (Watch::new(Asking::Copied), std::sync::mpsc::channel());
            watch.say_by(move |text| to.send(text.to_owned()).unwrap());
            assert_eq!(watch.ask(bad, &Withdrawn::default()), Answer::None);
            assert!(said.try_recv().is_ok_and(|text| text.contains("not what is on record")));
        }
    }

    fn ask(watch: &Watch, millis: u64) -> Answer {
        watch.ask(question(millis), &Withdrawn::default())
    }

    fn type_in(watch: &Watch, line: &[u8]) -> bool {
        watch.takes(lock(&watch.diversion).as_ref(), line)
    }

    #[test]
    fn a_typed_line_answers_the_question_that_waits_and_no_other() {
        let watch = Watch::new(Asking::Copied);
        assert!(!type_in(&watch, b"y\n"), "nobody asks, so it is the command's");
        for (typed, allowed) in [(b"y\n", true), (b"n\n", false)] {
            let answer = std::thread::scope(|s| {
                let asked = s.spawn(|| ask(&watch, 10_000));
                while !type_in(&watch, typed) {
                    std::thread::yield_now();
                }
                asked.join().expect("answered")
            });
            assert_eq!(matches!(answer, Answer::Allow { .. }), allowed);
        }
        assert!(!type_in(&watch, b"y\n"), "the question is over");
    }

    #[test]
    fn neither_yes_nor_no_is_asked_again_and_then_no() {
        let (maybe, yes): (&[u8], &[u8]) = (b"maybe\n", b"YES\n");
        for (lines, allowed) in [([maybe, maybe, yes], true), ([maybe, b"", maybe], false)] {
            let watch = Watch::new(Asking::Copied);
            let answer = std::thread::scope(|s| {
                let asked = s.spawn(|| ask(&watch, 10_000));
                for line in lines {
                    while !type_in(&watch, line) {
                        std::thread::yield_now();
                    }
                }
                asked.join().expect("answered")
            });
            assert_eq!(matches!(answer, Answer::Allow { .. }), allowed, "{answer:?}");
            assert_ne!(answer, Answer::None);
        }
    }

    #[test]
    fn a_question_taken_back_ends_and_the_next_one_is_put() {
        let (watch, first) = (Watch::new(Asking::Copied), Withdrawn::default());
        let shown = || lock(&watch.diversion).is_some();
        std::thread::scope(|s| {
            let asked = s.spawn(|| watch.ask(question(60_000), &first));
            while !shown() {
                std::thread::yield_now();
            }
            let next = s.spawn(|| ask(&watch, 60_000));
            let never = Withdrawn::default();
            never.set();
            assert_eq!(watch.ask(question(60_000), &never), Answer::None, "before its turn");
            let taken_back = Instant::now();
            first.set();
            assert_eq!(asked.join().expect("over"), Answer::None);
            // Meant for the first: neither the command's nor the next one's.
            assert!(type_in(&watch, b"y\n") && !shown() && !next.is_finished());
            while !shown() {
                std::thread::sleep(LOOK / 20);
            }
            assert!(taken_back.elapsed() >= QUIET && !next.is_finished());
            assert!(type_in(&watch, b"y\n"));
            assert!(matches!(next.join().expect("answered"), Answer::Allow { .. }));
        });
    }

    #[test]
    fn a_yes_to_a_question_taken_back_allows_nothing() {
        let (watch, withdrawn) = (Watch::new(Asking::Copied), Withdrawn::default());
        std::thread::scope(|s| {
            let asked = s.spawn(|| watch.ask(question(60_000), &withdrawn));
            while lock(&watch.diversion).is_none() {
                std::thread::yield_now();
            }
            withdrawn.set();
            type_in(&watch, b"y\n");
            assert_eq!(asked.join().expect("over"), Answer::None);
        });
    }

    #[test]
    fn no_answer_in_time_nobody_there_and_nobody_waiting_are_no() {
        assert_eq!(ask(&Watch::new(Asking::Copied), 1), Answer::None);
        assert_eq!(ask(&Watch::new(Asking::Nobody), 10_000), Answer::None);
        let watch = Watch::new(Asking::Copied);
        watch.attend(false);
        assert_eq!(ask(&watch, 10_000), Answer::None);
    }

    #[test]
    fn whoever_asks_to_be_told_of_the_end_is_told_once_also_afterwards() {
        let watch = Watch::new(Asking::Nobody);
        let (to, told) = std::sync::mpsc::channel();
        let first = to.clone();
        watch.when_gone(move || first.send(1).unwrap());
        watch.happened(Event::Failed { cause: "x".into() });
        watch.when_gone(move || to.send(2).unwrap());
        assert_eq!((told.recv(), told.recv()), (Ok(1), Ok(2)));
        assert_eq!(watch.gone().as_deref(), Some("x"));
    }
}
