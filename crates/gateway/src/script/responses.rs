//! A scripted answer as OpenAI Responses. Pure.

use super::wire::{Line, event};
use serde_json::{Value, json};

fn response(line: &Line<'_>, status: &str, output: Vec<Value>) -> Value {
    let (input, spoken) = (line.usage.prompt(), line.usage.output);
    let usage = if status == "completed" {
        json!({
            "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": spoken, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input + spoken,
        })
    } else {
        Value::Null
    };
    json!({
        "id": format!("resp_script_{}", line.serial), "object": "response", "created_at": 0,
        "status": status, "error": null, "incomplete_details": null, "instructions": null,
        "max_output_tokens": null, "metadata": {}, "model": line.name, "output": output,
        "parallel_tool_calls": true, "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null}, "store": false, "temperature": 1.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "truncation": "disabled", "usage": usage, "user": null,
    })
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": []})
}

fn message(line: &Line<'_>, status: &str, content: Vec<Value>) -> Value {
    json!({
        "type": "message", "id": format!("msg_script_{}", line.serial), "status": status,
        "role": "assistant", "content": content,
    })
}

fn call(line: &Line<'_>, n: usize, status: &str, arguments: &str) -> Value {
    let (id, call_id) = (line.tool_id("fc", n), line.tool_id("call", n));
    json!({
        "type": "function_call", "id": id, "call_id": call_id, "status": status,
        "name": line.calls.get(n).map(|c| c.tool.as_str()), "arguments": arguments,
    })
}

/// Whether there is a message, beside or instead of calls.
fn speaks(line: &Line<'_>) -> bool {
    !line.text.is_empty() || line.calls.is_empty()
}

fn output(line: &Line<'_>) -> Vec<Value> {
    let mut output = Vec::new();
    if speaks(line) {
        output.push(message(line, "completed", vec![text_part(&line.text)]));
    }
    for (n, c) in line.calls.iter().enumerate() {
        output.push(call(line, n, "completed", &c.arguments.to_string()));
    }
    output
}

pub(super) fn whole(line: &Line<'_>) -> Value {
    response(line, "completed", output(line))
}

pub(super) fn events(line: &Line<'_>) -> Vec<String> {
    let mut all = vec![
        json!({"type": "response.created", "response": response(line, "in_progress", vec![])}),
        json!({"type": "response.in_progress", "response": response(line, "in_progress", vec![])}),
    ];
    let mut index = 0;
    if speaks(line) {
        message_events(line, &mut all);
        index += 1;
    }
    for (n, c) in line.calls.iter().enumerate() {
        let (id, arguments) = (line.tool_id("fc", n), c.arguments.to_string());
        all.push(json!({"type": "response.output_item.added", "output_index": index,
            "item": call(line, n, "in_progress", "")}));
        all.push(json!({"type": "response.function_call_arguments.delta", "item_id": id,
            "output_index": index, "delta": arguments}));
        all.push(json!({"type": "response.function_call_arguments.done", "item_id": id,
            "output_index": index, "arguments": arguments}));
        all.push(json!({"type": "response.output_item.done", "output_index": index,
            "item": call(line, n, "completed", &arguments)}));
        index += 1;
    }
    all.push(json!({"type": "response.completed", "response": whole(line)}));
    for (n, data) in all.iter_mut().enumerate() {
        data["sequence_number"] = json!(n);
    }
    all.iter().map(event).collect()
}

fn message_events(line: &Line<'_>, all: &mut Vec<Value>) {
    let id = format!("msg_script_{}", line.serial);
    all.push(json!({"type": "response.output_item.added", "output_index": 0,
        "item": message(line, "in_progress", vec![])}));
    all.push(json!({"type": "response.content_part.added", "item_id": id, "output_index": 0,
        "content_index": 0, "part": text_part("")}));
    for text in line.chunks() {
        all.push(json!({"type": "response.output_text.delta", "item_id": id, "output_index": 0,
            "content_index": 0, "delta": text, "logprobs": []}));
    }
    all.push(json!({"type": "response.output_text.done", "item_id": id, "output_index": 0,
        "content_index": 0, "text": line.text, "logprobs": []}));
    all.push(json!({"type": "response.content_part.done", "item_id": id, "output_index": 0,
        "content_index": 0, "part": text_part(&line.text)}));
    all.push(json!({"type": "response.output_item.done", "output_index": 0,
        "item": message(line, "completed", vec![text_part(&line.text)])}));
}
