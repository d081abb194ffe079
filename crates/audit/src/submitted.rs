//! A submitted record on its way to being an entry: may its writer say that, what of it stands
//! beside the log, and which digest of a question its answer may repeat.
//!
//! ```text
//! question: text, bare digest ─► set aside? ─┬─ no ──► the bare digest ──┐ remembered
//!                                            └─ yes ─► the salted one ───┴─► put into the answer
//! ```
//!
//! 1. A question's digest is that of its text, or there is no record, so nobody is asked.
//! 2. Where the text stands beside the log its bare digest stands nowhere in it: whoever reads the
//!    log could try guesses. An answer to a question that is not remembered names no digest.

use crate::merkle::sha256;
use crate::payload::{Aside, Shelf, hex};
use model::{Body, Record, RecordError, Sha256Hex};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Questions without an answer that are remembered: 500 sessions with as many as the gateway lets
/// wait. Of more, the oldest are forgotten.
const OPEN_MAX: usize = 4_096;

/// A question that waits for its answer.
struct Open {
    approval: String,
    bare: Sha256Hex,
    /// As it stands in the question's record.
    written: Option<Sha256Hex>,
}

/// The questions that wait for their answers.
#[derive(Default)]
pub(crate) struct Questions(Mutex<VecDeque<Open>>);

impl Questions {
    fn asked(&self, open: Open) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= OPEN_MAX {
            all.pop_front();
        }
        all.push_back(open);
    }

    /// The digest that the answer may name.
    fn decided(&self, approval: &str, named: &Sha256Hex) -> Option<Sha256Hex> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|open| open.approval == approval)?;
        all.remove(at).filter(|open| open.bare == *named)?.written
    }

    /// What is to be written of a record, and what of it was set aside, to be kept before it.
    pub(crate) fn settle(
        &self,
        shelf: &Shelf,
        record: Record,
    ) -> Result<(Record, Option<Aside>), RecordError> {
        let mut record = not_ours(record)?;
        let bare = digest_of_question(&record.body)?;
        let aside = shelf.set_aside(&mut record)?;
        match &mut record.body {
            Body::ApprovalAsked { approval, shown_sha256, .. } => {
                if let Some(bare) = bare {
                    let (approval, written) = (approval.clone(), shown_sha256.clone());
                    self.asked(Open { approval, bare, written });
                }
            }
            Body::ApprovalDecided { approval, shown_sha256, .. } => {
                *shown_sha256 =
                    shown_sha256.take().and_then(|named| self.decided(approval, &named));
            }
            _ => {}
        }
        Ok((record, aside))
    }
}

/// A question's digest, if it has one and it is that of its text.
fn digest_of_question(body: &Body) -> Result<Option<Sha256Hex>, RecordError> {
    let Body::ApprovalAsked { summary, shown_sha256: Some(digest), .. } = body else {
        return Ok(None);
    };
    if digest.0 == hex(&sha256(summary.as_bytes())) {
        return Ok(Some(digest.clone()));
    }
    let why = "the digest of what a person is shown is not that of the text".to_owned();
    Err(RecordError::Invalid { why })
}

/// Only the recorder speaks for itself.
fn not_ours(record: Record) -> Result<Record, RecordError> {
    match record.body {
        Body::RecorderStarted { .. }
        | Body::RecorderStopped { .. }
        | Body::ClientLost { .. }
        | Body::KeyAnnounced { .. }
        | Body::RecordGap { .. }
        | Body::RecordsPruned { .. }
        | Body::ClockSetBack { .. } => {
            let why = "only the recorder writes this kind of record".to_owned();
            Err(RecordError::Invalid { why })
        }
        _ => Ok(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Sha256Hex {
        Sha256Hex(hex(&sha256(text.as_bytes())))
    }

    fn open(n: usize) -> Open {
        let bare = digest(&n.to_string());
        Open { approval: format!("a{n}"), written: Some(bare.clone()), bare }
    }

    #[test]
    fn an_answer_names_the_digest_of_its_own_question_once() {
        let questions = Questions::default();
        for n in [1, 2] {
            questions.asked(open(n));
        }
        assert_eq!(questions.decided("a3", &digest("1")), None, "nobody asked");
        assert_eq!(questions.decided("a1", &digest("2")), None, "another text");
        assert_eq!(questions.decided("a1", &digest("1")), None, "it is answered");
        assert_eq!(questions.decided("a2", &digest("2")), Some(digest("2")));
        assert_eq!(questions.decided("a2", &digest("2")), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let questions = Questions::default();
        for n in 0..=OPEN_MAX {
            questions.asked(open(n));
        }
        assert_eq!(questions.decided("a0", &digest("0")), None);
        assert_eq!(questions.decided("a1", &digest("1")), Some(digest("1")));
    }
}
