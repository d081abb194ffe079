//! OpenAI Chat Completions: `POST /v1/chat/completions`.

use super::decide::{Call, Decision, Item, Tool, decide, halves, pieces, text_of, tokens};
use super::http::Answer;
use serde_json::{Value, json};

pub(super) fn answer(body: &Value) -> Result<Answer, String> {
    let messages = body["messages"].as_array().ok_or("messages is missing")?;
    if messages.is_empty() || !body["model"].is_string() {
        return Err("messages and model are required".into());
    }
    let tools = body["tools"].as_array().into_iter().flatten().map(|tool| Tool {
        name: tool["function"]["name"].as_str().unwrap_or("").to_owned(),
        schema: tool["function"]["parameters"].clone(),
    });
    let decision = decide(&items(messages)?, &tools.collect::<Vec<_>>());
    let input = tokens(&body.to_string());
    if body["stream"] == true {
        return Ok(Answer::events(events(body, &decision, input)));
    }
    let (message, finish, output) = match &decision {
        Decision::Text(text) => {
            (json!({ "role": "assistant", "content": text }), "stop", tokens(text))
        }
        Decision::Calls(calls) => {
            let all: Vec<Value> = calls.iter().map(|c| call(c, &c.arguments.to_string())).collect();
            let message = json!({ "role": "assistant", "content": null, "tool_calls": all });
            (message, "tool_calls", 10 * calls.len())
        }
    };
    let mut whole = head(body, "chat.completion");
    whole["choices"] = json!([{ "index": 0, "message": message, "finish_reason": finish }]);
    whole["usage"] = usage(input, output);
    Ok(Answer::json(200, whole.to_string()))
}

fn head(body: &Value, object: &str) -> Value {
    json!({ "id": "chatcmpl-fake", "object": object, "created": 0, "model": body["model"] })
}

fn usage(input: usize, output: usize) -> Value {
    let total = input + output;
    json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": total })
}

fn call(call: &Call, arguments: &str) -> Value {
    let function = json!({ "name": call.name, "arguments": arguments });
    json!({ "id": call.id, "type": "function", "function": function })
}

/// Flattens the messages; refuses what the real server refuses: a tool's result without its call.
fn items(messages: &[Value]) -> Result<Vec<Item>, String> {
    let mut all = Vec::new();
    let mut called: Vec<&str> = Vec::new();
    for message in messages {
        let text = text_of(&message["content"]);
        match message["role"].as_str() {
            Some("assistant") => {
                let calls = message["tool_calls"].as_array().into_iter().flatten();
                called = calls.filter_map(|c| c["id"].as_str()).collect();
            }
            Some("tool") => {
                let id = message["tool_call_id"].as_str().unwrap_or("");
                if !called.contains(&id) {
                    return Err(format!("role tool for {id:?} without its tool_calls before"));
                }
                all.push(Item::ToolResult(text));
            }
            Some("user") => all.push(Item::User(text)),
            _ => {}
        }
    }
    Ok(all)
}

fn events(body: &Value, decision: &Decision, input: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut delta = |delta: Value, finish: Value| {
        let mut chunk = head(body, "chat.completion.chunk");
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
        all.push(format!("data: {chunk}\n\n"));
    };
    delta(json!({ "role": "assistant", "content": "" }), Value::Null);
    let (finish, output) = match decision {
        Decision::Text(text) => {
            for piece in pieces(text) {
                delta(json!({ "content": piece }), Value::Null);
            }
            ("stop", tokens(text))
        }
        Decision::Calls(calls) => {
            for (index, one) in calls.iter().enumerate() {
                let mut first = call(one, "");
                first["index"] = json!(index);
                delta(json!({ "tool_calls": [first] }), Value::Null);
                for half in halves(&one.arguments) {
                    let part = json!({ "index": index, "function": { "arguments": half } });
                    delta(json!({ "tool_calls": [part] }), Value::Null);
                }
            }
            ("tool_calls", 10 * calls.len())
        }
    };
    delta(json!({}), json!(finish));
    if body["stream_options"]["include_usage"] == true {
        let mut last = head(body, "chat.completion.chunk");
        last["choices"] = json!([]);
        last["usage"] = usage(input, output);
        all.push(format!("data: {last}\n\n"));
    }
    all.push("data: [DONE]\n\n".to_owned());
    all
}
