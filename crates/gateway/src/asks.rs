//! A human's answer before a request goes out: question ─► approver ─► allow, deny, or nobody.
//!
//! 1. No answer is a refusal, whatever the reason: too late, nobody there, approver gone.
//! 2. Question and decision are on record, in this order, before anything goes out.
//! 3. A session cannot flood people: few questions wait at a time, and few a minute are taken back.
//! 4. What a person is shown is made in one place, [`shown`], and its digest is on record with the
//!    question and with a person's answer. Whoever shows it holds the one against the other first.
//! 5. Once nobody waits for an answer any more, the question is taken back.

use crate::door::DoorState;
use crate::egress::Refusal;
use crate::modelapi::outcome::sha256_hex;
use model::{AgentName, Body, Durability, EgressRule, SessionId, Sha256Hex, TurnId};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Questions of one session that may wait at a time; nobody answers more at once.
const WAITING_MAX: usize = 8;
/// Questions of one session whose program may hang up within [`LEFT_TIME`]. Programs give up on
/// slow answers and try again; one that goes on like this changes what a human is about to allow.
const LEFT_MAX: usize = 6;
/// A minute.
const LEFT_TIME: Duration = Duration::from_secs(60);
/// Longest [`Question::summary`], in characters: a dozen lines of a terminal, which shows it whole.
pub const SUMMARY_CHARS_MAX: usize = 1_000;
/// A rule without terms waits so long.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What a human is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Names question and answer in the log; unique.
    pub id: String,
    /// Whose request waits.
    pub session: SessionId,
    /// The agent behind it.
    pub agent: AgentName,
    /// The rule that wants an answer.
    pub rule: String,
    /// The role that may answer: `owner`, `admin` or `member`.
    pub by: String,
    /// After so long the answer is no.
    pub timeout: Duration,
    /// What it is about, e.g. `POST https://api.example.org/items`: to be shown as it stands, for
    /// it is escaped, and whole; one line of at most [`SUMMARY_CHARS_MAX`] characters.
    pub summary: String,
    /// SHA-256 of the bytes of `summary`. Whoever would show something else shows nothing, and the
    /// answer is no ([`Question::is_shown_by`]).
    pub shown_sha256: Sha256Hex,
}

impl Question {
    /// Whether this text is, to the byte, the one that is on record as shown.
    #[must_use]
    pub fn is_shown_by(&self, text: &str) -> bool {
        sha256_hex(text.as_bytes()) == self.shown_sha256
    }
}

/// A text as a person is shown it: one line in which nothing acts on a terminal or reorders text
/// (Unicode TR 9), such characters being written as `\u{1b}`.
fn shown(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders = matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            line.extend(c.escape_unicode());
        } else {
            line.push(c);
        }
    }
    line
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It may go out, once.
    Allow {
        /// Who said so.
        by: String,
    },
    /// It may not.
    Deny {
        /// Who said so.
        by: String,
    },
    /// Nobody answered, or nobody can be asked.
    None,
}

/// Asks people. `answer` is called once, or dropped, which counts as [`Answer::None`].
pub trait Approver: Send + Sync {
    /// Puts the question; returns at once.
    fn ask(&self, question: Question, answer: Box<dyn FnOnce(Answer) + Send>);

    /// Takes a question back: nobody waits for its answer any more. Returns at once. `id` is that
    /// of a [`Question`] put before; an answer that comes nevertheless decides nothing.
    fn withdraw(&self, _id: &str) {}
}

/// Where nobody can be asked: every question is answered with [`Answer::None`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NobodyApproves;

impl Approver for NobodyApproves {
    fn ask(&self, _question: Question, answer: Box<dyn FnOnce(Answer) + Send>) {
        answer(Answer::None);
    }
}

/// One door's questions.
pub(crate) struct Asks {
    approver: Arc<dyn Approver>,
    waiting: Semaphore,
    next: AtomicU64,
    /// When programs hung up on a question, within [`LEFT_TIME`].
    left: Mutex<VecDeque<Instant>>,
}

impl Asks {
    pub(crate) fn new(approver: Arc<dyn Approver>) -> Self {
        let waiting = Semaphore::new(WAITING_MAX);
        Self { approver, waiting, next: AtomicU64::new(0), left: Mutex::default() }
    }

    /// Whether so many questions were taken back within a minute that no more are put.
    fn fickle(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|at| at.elapsed() < LEFT_TIME);
        left.len() >= LEFT_MAX
    }

    fn leave(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.push_back(Instant::now());
    }
}

/// Waits for the human whom `rule` names.
pub(crate) async fn ask(
    door: &DoorState,
    rule: &EgressRule,
    summary: String,
) -> Result<(), Refusal> {
    let refused = |why: String| Refusal::new(403, &rule.id, why);
    let Ok(_place) = door.asks.waiting.try_acquire() else {
        let why = format!("{WAITING_MAX} questions of this session wait for a human already");
        return Err(Refusal::new(429, &rule.id, why));
    };
    if door.asks.fickle() {
        let why = format!(
            "{LEFT_MAX} questions of this session were taken back within a minute, for the program \
             hung up before a human could answer; let it wait longer, and try again in a minute"
        );
        return Err(Refusal::new(429, &rule.id, why));
    }
    let summary = shown(&summary);
    let length = summary.chars().count();
    if length > SUMMARY_CHARS_MAX {
        let why = format!(
            "a human must allow this and could not be shown all of it: path and names of \
             parameters make {length} characters, and {SUMMARY_CHARS_MAX} can be shown"
        );
        return Err(refused(why));
    }
    let question = question(door, rule, summary);
    let unwritten = |e| Refusal::new(503, &rule.id, format!("nobody was asked, for {e}"));
    door.scribe.write(asked(&question), Durability::Durable).await.map_err(unwritten)?;
    let mut pending = Pending { door, turn: door.scribe.turn.get(), id: Some(question.id.clone()) };
    let (id, role, timeout) = (question.id.clone(), question.by.clone(), question.timeout);
    let digest = question.shown_sha256.clone();
    let (tx, rx) = tokio::sync::oneshot::channel();
    door.asks.approver.ask(question, Box::new(move |answer| drop(tx.send(answer))));
    let answer = tokio::time::timeout(timeout, rx).await;
    pending.id = None;
    if answer.is_err() {
        door.asks.approver.withdraw(&id);
    }
    let (decision, by, why) = match answer {
        Ok(Ok(Answer::Allow { by })) => ("allow", by, None),
        Ok(Ok(Answer::Deny { by })) => {
            let why = format!("{by} was asked and said no");
            ("deny", by, Some(why))
        }
        Ok(Ok(Answer::None) | Err(_)) => (
            "none",
            String::new(),
            Some("a human must allow this, and nobody can be asked here".into()),
        ),
        Err(_) => {
            let seconds = timeout.as_secs();
            let why = format!("a human ({role}) was asked and did not answer within {seconds} s");
            ("timeout", String::new(), Some(why))
        }
    };
    // Whether it was shown at all is known where a person answered.
    let shown_sha256 = matches!(decision, "allow" | "deny").then_some(digest);
    let decided =
        Body::ApprovalDecided { approval: id, decision: decision.into(), by, shown_sha256 };
    let written = door.scribe.write(decided, Durability::Ordered).await;
    match why {
        Some(why) => Err(refused(why)),
        None => written.map_err(unwritten),
    }
}

/// A question without an answer. When whoever waits for one hangs up, it is taken back, and that
/// is on record: what a human says afterwards decides nothing.
struct Pending<'a> {
    door: &'a DoorState,
    turn: Option<TurnId>,
    id: Option<String>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(approval) = self.id.take() {
            self.door.asks.leave();
            self.door.asks.approver.withdraw(&approval);
            let (decision, by) = ("withdrawn".to_owned(), String::new());
            let body = Body::ApprovalDecided { approval, decision, by, shown_sha256: None };
            self.door.scribe.note(self.turn.take(), body);
        }
    }
}

/// A question as it is on record.
fn asked(question: &Question) -> Body {
    Body::ApprovalAsked {
        approval: question.id.clone(),
        rule: question.rule.clone(),
        by: question.by.clone(),
        summary: question.summary.clone(),
        shown_sha256: Some(question.shown_sha256.clone()),
    }
}

fn question(door: &DoorState, rule: &EgressRule, summary: String) -> Question {
    let n = door.asks.next.fetch_add(1, Ordering::Relaxed);
    let terms = rule.ask.as_ref();
    Question {
        id: format!("{}-{:x}-{n}", door.scribe.session, (door.scribe.clock)()),
        session: door.scribe.session.clone(),
        agent: door.scribe.agent.clone(),
        rule: rule.id.clone(),
        by: terms.map_or_else(|| "owner".to_owned(), |t| t.by.clone()),
        timeout: terms.map_or(TIMEOUT, |t| Duration::from_millis(t.timeout_ms)),
        shown_sha256: sha256_hex(summary.as_bytes()),
        summary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_acts_on_nothing_and_is_the_same_shown_again() {
        let told = shown("POST http://x/\u{1b}[2J\r\n\t\u{202e}é\u{2028}");
        let wanted = "POST http://x/\\u{1b}[2J\\u{d}\\u{a}\\u{9}\\u{202e}é\\u{2028}";
        assert_eq!(told, wanted);
        assert_eq!(shown(&told), told);
    }
}
