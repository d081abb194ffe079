//! Keeping the conversation inside the model's context window.
//!
//! ```text
//! too large? ─► where to cut ─► summary by the model ─► [summary] + recent messages
//!                                    └─ failed ─► [note]    + recent messages
//! ```
//!
//! Invariants:
//! 1. A cut never parts a tool call from its result.
//! 2. The question being worked on survives every cut, word for word up to a limit.
//! 3. Trimming always makes the conversation smaller, so it ends.

use crate::rpc::clip;
use crate::wire::{Block, Message, Role};

/// Bytes a token has at least, nearly always; so estimates err on the large side.
const BYTES_PER_TOKEN: u64 = 3;
/// Share of the window, after the answer's part, that may be filled before trimming: percent.
const FULL_PERCENT: u64 = 75;
/// Share of the window that recent messages keep word for word: percent.
const KEEP_PERCENT: u64 = 30;
/// Longest tool result shown to the model when it summarises.
const MAX_RESULT_IN_TRANSCRIPT: usize = 1_500;
/// Longest part of the current question kept word for word.
const MAX_QUESTION_BYTES: usize = 8 << 10;
/// Shortest a tool result is cut to when nothing else helps.
const MIN_RESULT_BYTES: usize = 400;

/// What the model is asked when it summarises.
pub(crate) const SUMMARY_SYSTEM: &str = "\
You write the summary by which an assistant goes on with a conversation whose beginning it will no \
longer see. Keep: what the person wants and decided, names, paths, commands and figures that matter, \
what was done and with which result, what is still open. Leave out chatter. Write plain text, at \
most 600 words, without addressing anybody.";

/// How much fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Trim when the conversation is estimated above this, bytes.
    full: u64,
    /// Recent messages to keep, bytes.
    keep: u64,
}

impl Budget {
    /// For a window of `context_tokens`, of which `max_tokens` are for the answer and `fixed`
    /// bytes for system prompt and tools.
    pub(crate) fn new(context_tokens: u64, max_tokens: u64, fixed: usize) -> Self {
        let answer = max_tokens.min(context_tokens / 2);
        let room = (context_tokens - answer) * BYTES_PER_TOKEN;
        let fixed = fixed as u64;
        // However small the window: something must be left, or no turn would ever be possible.
        let full = (room * FULL_PERCENT / 100).saturating_sub(fixed).max(2_000);
        let keep = (room * KEEP_PERCENT / 100).saturating_sub(fixed).max(1_000).min(full / 2);
        Self { full, keep }
    }

    /// Whether the conversation must be trimmed.
    pub(crate) fn is_exceeded_by(self, messages: &[Message]) -> bool {
        messages.iter().map(size).sum::<u64>() > self.full
    }

    /// The same after the server said "too long" though the estimate did not.
    pub(crate) fn halved(self) -> Self {
        Self { full: self.full / 2, keep: self.keep / 2 }
    }
}

/// Estimated bytes of a message on the wire.
fn size(message: &Message) -> u64 {
    let blocks = message.blocks.iter().map(|block| match block {
        Block::Text { text } => text.len(),
        Block::ToolUse { name, input, .. } => name.len() + input.to_string().len() + 40,
        Block::ToolResult { text, .. } => text.len() + 40,
    });
    blocks.sum::<usize>() as u64 + 20
}

/// How many messages at the end to keep, or `None` if there is nothing before them to cut.
pub(crate) fn keep_count(messages: &[Message], budget: Budget) -> Option<usize> {
    let mut kept = 0;
    let mut best = None;
    for (at, message) in messages.iter().enumerate().rev() {
        kept += size(message);
        // The summary takes a user's place, so what follows may begin with either role, but
        // never with the results of calls that are gone.
        if !message.has_results() && at > 0 {
            if kept > budget.keep && best.is_some() {
                break;
            }
            best = Some(messages.len() - at);
        }
    }
    best
}

/// The part to be summarised as text, at most `max` bytes: its beginning and its end.
pub(crate) fn transcript(messages: &[Message], max: usize) -> String {
    let mut text = String::new();
    for message in messages {
        for block in &message.blocks {
            match (block, message.role) {
                (Block::Text { text: said }, Role::User) => {
                    text.push_str(&format!("PERSON: {said}\n\n"))
                }
                (Block::Text { text: said }, Role::Assistant) => {
                    text.push_str(&format!("ASSISTANT: {said}\n\n"))
                }
                (Block::ToolUse { name, input, .. }, _) => {
                    let input = input.to_string();
                    text.push_str(&format!(
                        "CALLED {name}: {}\n\n",
                        clip(&input, MAX_RESULT_IN_TRANSCRIPT)
                    ));
                }
                (Block::ToolResult { text: result, .. }, _) => {
                    text.push_str(&format!(
                        "RESULT: {}\n\n",
                        clip(result, MAX_RESULT_IN_TRANSCRIPT)
                    ));
                }
            }
        }
    }
    if text.len() <= max {
        return text;
    }
    let tail = text.ceil_char_boundary(text.len() - max / 2);
    format!("{}\n[…]\n{}", clip(&text, max / 2), &text[tail..])
}

/// How much transcript one summary request may hold, bytes.
pub(crate) fn transcript_limit(budget: Budget) -> usize {
    usize::try_from(budget.full).unwrap_or(usize::MAX)
}

/// The message that takes the place of `cut`. `summary` is `None` where the model gave none.
pub(crate) fn replacement(cut: &[Message], kept: &[Message], summary: Option<&str>) -> Message {
    let mut text = match summary {
        Some(summary) => format!("[Summary of the earlier conversation]\n{summary}"),
        None => {
            "[Earlier messages were left out because the conversation became too long.]".to_owned()
        }
    };
    if !kept.iter().any(is_question)
        && let Some(question) = cut.iter().rev().find(|m| is_question(m))
    {
        let asked = question.blocks.iter().find_map(|block| match block {
            Block::Text { text } => Some(text.as_str()),
            _ => None,
        });
        let asked = clip(asked.unwrap_or(""), MAX_QUESTION_BYTES);
        text.push_str(&format!("\n\n[The person's message that is being worked on now]\n{asked}"));
    }
    Message::text(Role::User, text)
}

fn is_question(message: &Message) -> bool {
    message.role == Role::User && !message.has_results()
}

/// Last resort: shortens tool results, the largest ones to an equal share of the budget.
pub(crate) fn shorten_results(messages: &mut [Message], budget: Budget) {
    let count = messages
        .iter()
        .flat_map(|m| &m.blocks)
        .filter(|b| matches!(b, Block::ToolResult { .. }))
        .count();
    let share = usize::try_from(budget.full / 2).unwrap_or(usize::MAX) / count.max(1);
    let max = share.max(MIN_RESULT_BYTES);
    for block in messages.iter_mut().flat_map(|m| &mut m.blocks) {
        if let Block::ToolResult { text, .. } = block
            && text.len() > max
        {
            *text = format!("{}\n[… shortened]", clip(text, max));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn exchange(number: usize) -> Vec<Message> {
        let id = format!("c{number}");
        let call = Block::ToolUse { id: id.clone(), name: "bash".into(), input: json!({}) };
        let result = Block::ToolResult { id, ok: true, text: "r".repeat(3_000) };
        vec![
            Message::text(Role::User, format!("question {number}")),
            Message { role: Role::Assistant, blocks: vec![call] },
            Message { role: Role::User, blocks: vec![result] },
            Message::text(Role::Assistant, "answer"),
        ]
    }

    #[test]
    fn no_cut_parts_a_call_from_its_result_and_every_cut_makes_it_smaller() {
        let all: Vec<Message> = (0..12).flat_map(exchange).collect();
        for end in 1..=all.len() {
            let messages = &all[..end];
            for tokens in [100, 3_000, 8_000, 30_000] {
                let budget = Budget::new(tokens, tokens / 4, 100);
                let Some(keep) = keep_count(messages, budget) else {
                    assert!(end == 1, "nothing to cut in {end}");
                    continue;
                };
                assert!(keep < end && !messages[end - keep].has_results());
            }
        }
    }

    #[test]
    fn the_current_question_survives_a_cut_in_the_middle_of_a_turn() {
        let mut messages = vec![Message::text(Role::User, "please count the sheep")];
        messages.extend((0..9).flat_map(|n| exchange(n).into_iter().skip(1).take(2)));
        let budget = Budget::new(4_000, 500, 0);
        assert!(budget.is_exceeded_by(&messages));
        let cut = messages.len() - keep_count(&messages, budget).unwrap();
        let with = replacement(&messages[..cut], &messages[cut..], Some("so far"));
        let Block::Text { text } = &with.blocks[0] else { panic!() };
        assert!(text.contains("so far") && text.contains("please count the sheep"));
    }

    #[test]
    fn shortened_results_fit() {
        let mut messages: Vec<Message> = (0..5).flat_map(exchange).collect();
        let budget = Budget::new(3_000, 500, 0);
        shorten_results(&mut messages, budget);
        assert!(!budget.is_exceeded_by(&messages));
    }

    #[test]
    fn transcripts_are_bounded() {
        let messages: Vec<Message> = (0..50).flat_map(exchange).collect();
        assert!(transcript(&messages, 5_000).len() < 5_100);
    }
}
