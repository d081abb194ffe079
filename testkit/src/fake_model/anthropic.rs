//! Anthropic Messages: `POST /v1/messages`.

use super::decide::{Decision, Item, Tool, decide, halves, pieces, text_of, tokens};
use super::http::Answer;
use serde_json::{Value, json};

pub(super) fn answer(body: &Value) -> Result<Answer, String> {
    let messages = body["messages"].as_array().ok_or("messages is missing")?;
    if messages.is_empty() || !body["max_tokens"].is_u64() || !body["model"].is_string() {
        return Err("messages, max_tokens and model are required".into());
    }
    let tools = body["tools"].as_array().into_iter().flatten().map(|tool| Tool {
        name: tool["name"].as_str().unwrap_or("").to_owned(),
        schema: tool["input_schema"].clone(),
    });
    let decision = decide(&items(messages)?, &tools.collect::<Vec<_>>());
    let input = tokens(&body.to_string());
    if body["stream"] == true {
        return Ok(Answer::events(events(body, &decision, input)));
    }
    let (content, stop, output) = match &decision {
        Decision::Text(text) => {
            (json!([{ "type": "text", "text": text }]), "end_turn", tokens(text))
        }
        Decision::Calls(calls) => {
            let block = |c: &super::decide::Call| {
                let (id, name) = (&c.id, &c.name);
                json!({"type": "tool_use", "id": id, "name": name, "input": c.arguments.clone()})
            };
            (calls.iter().map(block).collect(), "tool_use", 10 * calls.len())
        }
    };
    let mut message = head(body, input, output);
    message["content"] = content;
    message["stop_reason"] = json!(stop);
    Ok(Answer::json(200, message.to_string()))
}

fn head(body: &Value, input: usize, output: usize) -> Value {
    json!({
        "id": "msg_fake", "type": "message", "role": "assistant", "model": body["model"],
        "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": { "input_tokens": input, "output_tokens": output },
    })
}

/// Flattens the messages; refuses what the real server refuses: a tool's result without its call.
fn items(messages: &[Value]) -> Result<Vec<Item>, String> {
    let mut all = Vec::new();
    let mut called: Vec<&str> = Vec::new();
    for message in messages {
        let blocks = message["content"].as_array().map_or(&[][..], Vec::as_slice);
        if message["role"] == "assistant" {
            called = blocks.iter().filter_map(|b| b["id"].as_str()).collect();
            continue;
        }
        for block in blocks.iter().filter(|b| b["type"] == "tool_result") {
            let id = block["tool_use_id"].as_str().unwrap_or("");
            if !called.contains(&id) {
                return Err(format!("tool_result for {id:?} without its tool_use just before"));
            }
            all.push(Item::ToolResult(text_of(&block["content"])));
        }
        let text = text_of(&message["content"]);
        if !text.is_empty() {
            all.push(Item::User(text));
        }
    }
    Ok(all)
}

fn event(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or(""))
}

fn events(body: &Value, decision: &Decision, input: usize) -> Vec<String> {
    let message = head(body, input, 1);
    let mut all = vec![
        event(&json!({ "type": "message_start", "message": message })),
        event(&json!({ "type": "ping" })),
    ];
    let mut block = |index: usize, start: Value, deltas: Vec<Value>| {
        let kind = "content_block_start";
        all.push(event(&json!({ "type": kind, "index": index, "content_block": start })));
        for delta in deltas {
            let kind = "content_block_delta";
            all.push(event(&json!({ "type": kind, "index": index, "delta": delta })));
        }
        all.push(event(&json!({ "type": "content_block_stop", "index": index })));
    };
    let (stop, output) = match decision {
        Decision::Text(text) => {
            let delta = |piece: &str| json!({ "type": "text_delta", "text": piece });
            let deltas = pieces(text).into_iter().map(delta).collect();
            block(0, json!({ "type": "text", "text": "" }), deltas);
            ("end_turn", tokens(text))
        }
        Decision::Calls(calls) => {
            for (index, call) in calls.iter().enumerate() {
                let start =
                    json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
                let delta = |half| json!({ "type": "input_json_delta", "partial_json": half });
                block(index, start, halves(&call.arguments).map(delta).into());
            }
            ("tool_use", 10 * calls.len())
        }
    };
    all.push(event(&json!({
        "type": "message_delta",
        "delta": { "stop_reason": stop, "stop_sequence": null },
        "usage": { "output_tokens": output },
    })));
    all.push(event(&json!({ "type": "message_stop" })));
    all
}
