//! A scripted answer as OpenAI Chat Completions. Pure.

use super::parse::Call;
use super::wire::Line;
use serde_json::{Value, json};

fn usage(line: &Line<'_>) -> Value {
    let (input, output) = (line.usage.prompt(), line.usage.output);
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn tool_call(line: &Line<'_>, n: usize, call: &Call) -> Value {
    json!({
        "id": line.tool_id("call", n), "type": "function",
        "function": {"name": call.tool, "arguments": call.arguments.to_string()},
    })
}

pub(super) fn whole(line: &Line<'_>) -> Value {
    let content = if line.text.is_empty() && !line.calls.is_empty() {
        Value::Null
    } else {
        Value::from(line.text.as_str())
    };
    let mut message = json!({"role": "assistant", "content": content});
    if !line.calls.is_empty() {
        let calls = line.calls.iter().enumerate().map(|(n, call)| tool_call(line, n, call));
        message["tool_calls"] = Value::Array(calls.collect());
    }
    json!({
        "id": format!("chatcmpl-script-{}", line.serial), "object": "chat.completion", "created": 0,
        "model": line.name, "usage": usage(line),
        "choices": [{"index": 0, "message": message, "logprobs": null,
                     "finish_reason": line.finish_reason()}],
    })
}

pub(super) fn events(line: &Line<'_>, with_usage: bool) -> Vec<String> {
    let chunk = |choices: Value, usage: Value| {
        let data = json!({
            "id": format!("chatcmpl-script-{}", line.serial), "object": "chat.completion.chunk",
            "created": 0, "model": line.name, "choices": choices, "usage": usage,
        });
        format!("data: {data}\n\n")
    };
    let delta = |delta: Value, finish: Option<&str>| {
        chunk(json!([{"index": 0, "delta": delta, "finish_reason": finish}]), Value::Null)
    };
    let mut out = vec![delta(json!({"role": "assistant", "content": ""}), None)];
    out.extend(line.chunks().into_iter().map(|text| delta(json!({"content": text}), None)));
    for (n, call) in line.calls.iter().enumerate() {
        let mut call = tool_call(line, n, call);
        call["index"] = json!(n);
        out.push(delta(json!({"tool_calls": [call]}), None));
    }
    out.push(delta(json!({}), Some(line.finish_reason())));
    if with_usage {
        out.push(chunk(json!([]), usage(line)));
    }
    out.push("data: [DONE]\n\n".to_owned());
    out
}
