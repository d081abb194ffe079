//! `session/prompt`: reads its content; runs its turn on the thread of turns.

use super::updates::Updates;
use super::{Answer, Refusal, Shared, lock};
use crate::acp::Usage;
use crate::cancel::Cancel;
use crate::rpc;
use crate::turn::{Turn, TurnError};
use serde_json::{Value, json};

/// Longest message of a person, all its parts together. Longer ones belong in a file.
pub(super) const MAX_PROMPT_BYTES: usize = 1 << 20;

/// The text of a prompt: text blocks as they are, embedded text and links marked as such.
pub(super) fn text(params: &Value) -> Result<String, Refusal> {
    let bad = |why: &str| Refusal::new(rpc::INVALID_PARAMS, why);
    let blocks = params
        .get("prompt")
        .and_then(Value::as_array)
        .ok_or_else(|| bad("prompt must be a list"))?;
    let mut parts = Vec::new();
    for block in blocks {
        let field = |path: &str| block.pointer(path).and_then(Value::as_str);
        let part = match field("/type") {
            Some("text") => field("/text").map(str::to_owned),
            Some("resource_link") => field("/uri").map(|uri| format!("[link: {uri}]")),
            Some("resource") => field("/resource/text").map(|text| {
                format!("[file: {}]\n{text}", field("/resource/uri").unwrap_or("unnamed"))
            }),
            _ => None,
        };
        parts.push(
            part.ok_or_else(|| bad("a part of the prompt is not text, a link or a text resource"))?,
        );
    }
    let text = parts.join("\n\n");
    if text.len() > MAX_PROMPT_BYTES {
        return Err(bad("the message is longer than 1 MiB; put it into a file in the workspace"));
    }
    if text.trim().is_empty() {
        return Err(bad("the message is empty"));
    }
    Ok(text)
}

/// Runs the turn and sends its answer.
pub(super) fn run(shared: &Shared, id: &Value, text: String, cancel: &Cancel) {
    // A panic would otherwise leave the request unanswered and the session busy for ever.
    let work = std::panic::AssertUnwindSafe(|| turn(shared, text, cancel));
    let answer = std::panic::catch_unwind(work).unwrap_or_else(|_| {
        Err(Refusal::new(rpc::INTERNAL_ERROR, "the agent failed inside; this is a bug"))
    });
    let frame = match answer {
        Ok(result) => rpc::answer(id, &result),
        Err(no) => rpc::error(id, no.code, &no.message, no.data),
    };
    // Free before the answer: the next prompt may follow it at once.
    *lock(&shared.running) = None;
    let _ = shared.out.send(&frame);
}

fn turn(shared: &Shared, text: String, cancel: &Cancel) -> Answer {
    let mut session = lock(&shared.session);
    let Some(session) = session.as_mut() else {
        return Err(Refusal::new(rpc::INVALID_REQUEST, "start a session first"));
    };
    let updates = Updates::new(shared.out.clone(), session.conversation.id()).cancelling(cancel);
    session.host.ensure(cancel);
    let logs = shared.config.home.join(".nanoclaw/logs");
    let mut turn = Turn {
        config: &shared.config,
        cwd: &session.cwd,
        logs: &logs,
        jobs: &shared.jobs,
        host: &session.host,
        cancel,
        observer: &updates,
        conversation: &mut session.conversation,
        usage: Usage::default(),
    };
    let result = turn.run(text);
    let usage = turn.usage.to_json();
    match result {
        Ok(stop) => {
            Ok(json!({"stopReason": stop.as_str(), "_meta": {"nanoclaw": {"usage": usage}}}))
        }
        Err(TurnError::Model(failure)) => {
            let mut data = failure.data();
            data["usage"] = usage;
            Err(Refusal { code: rpc::MODEL_FAILED, message: failure.message, data: Some(data) })
        }
        Err(error @ TurnError::Storage(_)) => {
            Err(Refusal::new(rpc::INTERNAL_ERROR, error.to_string()))
        }
    }
}
