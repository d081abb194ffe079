//! One turn: the model is asked, its tools are run, until it has said all it has to say.
//!
//! ```text
//! prompt ─► trim ─► ask (streamed) ─► tools, side by side ─► trim ─► ask … ─► TurnEnd
//! ```
//!
//! Invariants:
//! 1. Whatever happens, the conversation ends valid: every call answered, a reply behind it.
//! 2. A prompt the model never saw is taken back, so that asking again does not double it.
//! 3. Cancelling ends a turn within moments, wherever it is.

use crate::acp::{FailureKind, ModelFailure, StopReason, Usage};
use crate::cancel::Cancel;
use crate::config::Config;
use crate::context::{self, Budget};
use crate::conversation::Conversation;
use crate::mcp::HostTools;
use crate::prompt;
use crate::tools::{self, Jobs, Outcome, Scene, specs, specs_bytes};
use crate::wire::{self, Answer, AskError, Block, Message, Request, Role, Stop, ToolSpec};
use serde_json::Value;
use std::path::Path;
use std::thread;

/// Model requests in one turn. Long jobs need some dozens; a model that goes in circles is ended.
const MAX_ROUNDS: usize = 50;
/// Tool calls run at the same time.
const PARALLEL_TOOLS: usize = 8;
/// Times one request is trimmed and asked again because the server found it too long.
const MAX_TOO_LONG: usize = 2;
/// What stands in the conversation where the person stopped the answer.
const STOPPED: &str = "[stopped by the person]";

/// Hears what happens in a turn, while it happens, from several threads.
pub(crate) trait Observer: Sync {
    fn text(&self, piece: &str);
    fn tool_started(&self, id: &str, name: &str, input: &Value);
    fn tool_finished(&self, id: &str, outcome: &Outcome);
}

/// Why a turn has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    #[error("{0}")]
    Model(ModelFailure),
    #[error("the conversation cannot be kept: {0}; is the session's disk full?")]
    Storage(#[from] std::io::Error),
}

/// What a turn works with.
pub(crate) struct Turn<'a> {
    pub(crate) config: &'a Config,
    pub(crate) cwd: &'a Path,
    pub(crate) logs: &'a Path,
    pub(crate) jobs: &'a Jobs,
    pub(crate) host: &'a HostTools,
    pub(crate) cancel: &'a Cancel,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) conversation: &'a mut Conversation,
    pub(crate) usage: Usage,
}

impl<'a> Turn<'a> {
    /// Runs the turn to its end.
    pub(crate) fn run(&mut self, prompt: String) -> Result<StopReason, TurnError> {
        let system = prompt::system(self.config, self.cwd);
        let fixed = system.len() + specs_bytes() + self.host_bytes();
        let budget = Budget::new(self.config.context_tokens, self.config.max_tokens, fixed);
        self.conversation.mend(); // the last turn may have failed between a call and its result
        self.conversation.push(Message::text(Role::User, prompt))?;
        for _ in 0..MAX_ROUNDS {
            let mut said = String::new();
            match self.round(&system, budget, &mut said) {
                Ok(Some(stop)) => return Ok(stop),
                Ok(None) => {}
                Err(RoundError::Cancelled) => return self.stopped(said),
                Err(RoundError::Turn(error)) => {
                    let last = self.conversation.messages().last();
                    if last.is_some_and(|m| m.role == Role::User && !m.has_results()) {
                        self.conversation.undo()?;
                    }
                    return Err(error);
                }
            }
        }
        self.reply("[stopped: too many steps in one turn]")?;
        Ok(StopReason::MaxTurnRequests)
    }

    /// Every tool the model is told of.
    fn offered(&self) -> Vec<&'a ToolSpec> {
        specs().iter().chain(self.host.specs()).collect()
    }

    /// What the host's tools take of the context, beside our own.
    fn host_bytes(&self) -> usize {
        let host = self.host.specs().iter();
        host.map(|s| s.schema.to_string().len() + s.description.len()).sum()
    }

    /// One request and the tools it called; `Some` when the turn is over.
    fn round(
        &mut self,
        system: &str,
        budget: Budget,
        said: &mut String,
    ) -> Result<Option<StopReason>, RoundError> {
        let Answer { blocks, stop, .. } = self.ask(system, budget, said)?;
        let calls: Vec<(String, String, Value)> = blocks
            .iter()
            .filter_map(|block| match block {
                Block::ToolUse { id, name, input } => {
                    Some((id.clone(), name.clone(), input.clone()))
                }
                _ => None,
            })
            .collect();
        if blocks.is_empty() {
            // After its tools a model may have nothing to add; to a question that is no answer.
            let asked = self.conversation.messages().last().is_some_and(|m| !m.has_results());
            if asked && stop == Stop::Done {
                return Err(RoundError::Turn(TurnError::Model(empty_answer())));
            }
            self.reply("[no answer]")?;
        } else {
            self.conversation.push(Message { role: Role::Assistant, blocks })?;
        }
        if calls.is_empty() {
            return Ok(Some(match stop {
                Stop::Done => StopReason::EndTurn,
                Stop::MaxTokens => StopReason::MaxTokens,
                Stop::Refusal => StopReason::Refusal,
            }));
        }
        said.clear(); // it is in the conversation now
        let blocks = self.run_tools(&calls);
        self.conversation.push(Message { role: Role::User, blocks })?;
        if self.cancel.is_cancelled() { Err(RoundError::Cancelled) } else { Ok(None) }
    }

    /// Asks the model, trimming first where needed and again where the server says so.
    fn ask(
        &mut self,
        system: &str,
        budget: Budget,
        said: &mut String,
    ) -> Result<Answer, RoundError> {
        let mut budget = budget;
        let tools = self.offered();
        for attempt in 0.. {
            if budget.is_exceeded_by(self.conversation.messages()) {
                self.trim(budget)?;
            }
            let request = Request {
                system,
                messages: self.conversation.messages(),
                tools: &tools,
                max_tokens: self.config.max_tokens,
            };
            let observer = self.observer;
            let result = wire::ask(self.config, &request, self.cancel, &mut |piece| {
                said.push_str(piece);
                observer.text(piece);
            });
            match result {
                Ok(answer) => {
                    self.usage.add(answer.usage);
                    return Ok(answer);
                }
                Err(AskError::Failed(failure))
                    if failure.kind == FailureKind::TooLong && attempt < MAX_TOO_LONG =>
                {
                    budget = budget.halved();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(RoundError::Cancelled)
    }

    /// Makes the conversation smaller: a summary by the model, or a note where it gives none.
    fn trim(&mut self, budget: Budget) -> Result<(), RoundError> {
        let messages = self.conversation.messages();
        if let Some(keep) = context::keep_count(messages, budget) {
            let (cut, kept) = messages.split_at(messages.len() - keep);
            let summary = summarise(self.config, self.cancel, cut, budget, &mut self.usage)?;
            let with = context::replacement(cut, kept, summary.as_deref());
            self.conversation.compact(with, keep)?;
        }
        if budget.is_exceeded_by(self.conversation.messages()) {
            context::shorten_results(self.conversation.messages_mut(), budget);
        }
        Ok(())
    }

    /// Runs the calls side by side; the results are in the order of the calls.
    fn run_tools(&self, calls: &[(String, String, Value)]) -> Vec<Block> {
        let scene = Scene {
            cwd: self.cwd,
            logs: self.logs,
            cancel: self.cancel,
            jobs: self.jobs,
            host: self.host,
        };
        let (scene, observer) = (&scene, self.observer);
        let one = |(id, name, input): &(String, String, Value)| {
            observer.tool_started(id, name, input);
            let outcome = if scene.cancel.is_cancelled() {
                Outcome::error("cancelled before it began")
            } else {
                tools::run(scene, name, input)
            };
            observer.tool_finished(id, &outcome);
            outcome
        };
        let mut blocks = Vec::with_capacity(calls.len());
        for group in calls.chunks(PARALLEL_TOOLS) {
            let outcomes = match group {
                [only] => vec![one(only)],
                many => side_by_side(many, &one),
            };
            let results = group.iter().zip(outcomes);
            blocks.extend(results.map(|((id, ..), outcome)| Block::ToolResult {
                id: id.clone(),
                ok: outcome.ok,
                text: outcome.text,
            }));
        }
        blocks
    }

    /// Closes a cancelled turn with what had been said so far.
    fn stopped(&mut self, said: String) -> Result<StopReason, TurnError> {
        let text =
            if said.trim().is_empty() { STOPPED.to_owned() } else { format!("{said}\n{STOPPED}") };
        self.reply(&text)?;
        Ok(StopReason::Cancelled)
    }

    fn reply(&mut self, text: &str) -> Result<(), std::io::Error> {
        self.conversation.push(Message::text(Role::Assistant, text))
    }
}

/// Runs each call on a thread; where the system gives none (the session's process limit), here.
fn side_by_side<T: Sync>(calls: &[T], one: &(impl Fn(&T) -> Outcome + Sync)) -> Vec<Outcome> {
    let lost = |_| Outcome::error("the tool failed inside; nothing is known of its result");
    thread::scope(|scope| {
        let started: Vec<_> = calls
            .iter()
            .map(|call| {
                thread::Builder::new().spawn_scoped(scope, move || one(call)).map_err(|_| one(call))
            })
            .collect();
        let ended = started.into_iter().map(|started| match started {
            Ok(thread) => thread.join().unwrap_or_else(lost),
            Err(outcome) => outcome,
        });
        ended.collect()
    })
}

enum RoundError {
    Cancelled,
    Turn(TurnError),
}

impl From<AskError> for RoundError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Cancelled => Self::Cancelled,
            AskError::Failed(failure) => Self::Turn(TurnError::Model(failure)),
        }
    }
}

impl From<std::io::Error> for RoundError {
    fn from(error: std::io::Error) -> Self {
        Self::Turn(error.into())
    }
}

/// One extra request; `None` where the model fails at it.
fn summarise(
    config: &Config,
    cancel: &Cancel,
    cut: &[Message],
    budget: Budget,
    usage: &mut Usage,
) -> Result<Option<String>, RoundError> {
    let transcript = context::transcript(cut, context::transcript_limit(budget));
    let ask = format!("Summarise this conversation:\n\n{transcript}");
    let request = Request {
        system: context::SUMMARY_SYSTEM,
        messages: &[Message::text(Role::User, ask)],
        tools: &[],
        max_tokens: config.max_tokens.min(2_048),
    };
    let answer = match wire::ask(config, &request, cancel, &mut |_| {}) {
        Ok(answer) => answer,
        Err(AskError::Cancelled) => return Err(RoundError::Cancelled),
        Err(AskError::Failed(_)) => return Ok(None),
    };
    usage.add(answer.usage);
    // A summary longer than what it stands for would undo the trimming.
    let limit = context::transcript_limit(budget) / 4;
    Ok(answer.blocks.into_iter().find_map(|block| match block {
        Block::Text { text } => Some(crate::rpc::clip(&text, limit).to_owned()),
        _ => None,
    }))
}

fn empty_answer() -> ModelFailure {
    ModelFailure {
        kind: FailureKind::BadAnswer,
        message: "The model gave an empty answer. Please try again.".to_owned(),
        retryable: true,
        retry_after_s: None,
    }
}
