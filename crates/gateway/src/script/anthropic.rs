//! A scripted answer as Anthropic Messages. Pure.

use super::wire::{Line, event};
use serde_json::{Value, json};

fn message(line: &Line<'_>, content: Vec<Value>, stop: Option<&str>, output: u64) -> Value {
    json!({
        "id": format!("msg_script_{}", line.serial), "type": "message", "role": "assistant",
        "model": line.name, "content": content, "stop_reason": stop, "stop_sequence": null,
        "usage": {"input_tokens": line.usage.prompt(), "output_tokens": output},
    })
}

pub(super) fn whole(line: &Line<'_>) -> Value {
    let mut content = Vec::new();
    if !line.text.is_empty() || line.calls.is_empty() {
        content.push(json!({"type": "text", "text": line.text}));
    }
    for (n, call) in line.calls.iter().enumerate() {
        let id = line.tool_id("toolu", n);
        content.push(
            json!({"type": "tool_use", "id": id, "name": call.tool, "input": call.arguments}),
        );
    }
    message(line, content, Some(line.stop_reason()), line.usage.output)
}

pub(super) fn events(line: &Line<'_>) -> Vec<String> {
    let message = message(line, Vec::new(), None, 1);
    let mut out = vec![
        event(&json!({"type": "message_start", "message": message})),
        event(&json!({"type": "ping"})),
    ];
    let mut index = 0;
    let mut block = |start: Value, deltas: Vec<Value>| {
        out.push(event(
            &json!({"type": "content_block_start", "index": index, "content_block": start}),
        ));
        for delta in deltas {
            out.push(event(
                &json!({"type": "content_block_delta", "index": index, "delta": delta}),
            ));
        }
        out.push(event(&json!({"type": "content_block_stop", "index": index})));
        index += 1;
    };
    if !line.text.is_empty() || line.calls.is_empty() {
        let deltas = line.chunks().into_iter().map(|t| json!({"type": "text_delta", "text": t}));
        block(json!({"type": "text", "text": ""}), deltas.collect());
    }
    for (n, call) in line.calls.iter().enumerate() {
        let id = line.tool_id("toolu", n);
        let part = call.arguments.to_string();
        block(
            json!({"type": "tool_use", "id": id, "name": call.tool, "input": {}}),
            vec![json!({"type": "input_json_delta", "partial_json": part})],
        );
    }
    out.push(event(&json!({
        "type": "message_delta",
        "delta": {"stop_reason": line.stop_reason(), "stop_sequence": null},
        "usage": {"output_tokens": line.usage.output},
    })));
    out.push(event(&json!({"type": "message_stop"})));
    out
}
