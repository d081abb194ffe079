//! A scripted answer as Gemini's `GenerateContentResponse`. Pure.

use super::wire::Line;
use crate::modelapi::wire::Wire;
use serde_json::{Map, Value, json};

/// Deepest schema that is followed.
const SCHEMA_DEPTH_MAX: usize = 16;
/// Most values made for a schema, so that a small one cannot ask for a huge answer.
const VALUES_MAX: usize = 1_000;

fn piece(line: &Line<'_>, parts: Vec<Value>, last: bool) -> Value {
    let (input, output) = (line.usage.prompt(), line.usage.output);
    let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
    if last {
        candidate["finishReason"] = json!("STOP");
    }
    json!({
        "candidates": [candidate], "modelVersion": line.name,
        "responseId": format!("script-{}", line.serial),
        "usageMetadata": {"promptTokenCount": input,
            "candidatesTokenCount": if last { output } else { 1.min(output) },
            "totalTokenCount": input + output},
    })
}

fn calls(line: &Line<'_>) -> Vec<Value> {
    let calls = line.calls.iter().enumerate();
    calls
        .map(|(n, call)| {
            let id = line.tool_id("call", n);
            json!({"functionCall": {"id": id, "name": call.tool, "args": call.arguments}})
        })
        .collect()
}

pub(super) fn whole(line: &Line<'_>) -> Value {
    let mut parts = Vec::new();
    if !line.text.is_empty() || line.calls.is_empty() {
        parts.push(json!({"text": line.text}));
    }
    parts.extend(calls(line));
    piece(line, parts, true)
}

/// A stream's pieces.
pub(super) fn pieces(line: &Line<'_>) -> Vec<Value> {
    let mut all: Vec<Value> =
        line.chunks().into_iter().map(|t| piece(line, vec![json!({"text": t})], false)).collect();
    let mut last = calls(line);
    if last.is_empty() {
        last.push(json!({"text": ""}));
    }
    all.push(piece(line, last, true));
    all
}

pub(super) fn events(line: &Line<'_>) -> Vec<String> {
    pieces(line).iter().map(|data| format!("data: {data}\r\n\r\n")).collect()
}

/// JSON of the shape a request insists on: Gemini CLI asks which model to use that way, and asks
/// again for ever when the answer has another shape.
pub(super) fn shaped(request: &Value, wire: Wire) -> Option<String> {
    if wire != Wire::Gemini {
        return None;
    }
    let config = request.get("generationConfig")?;
    let schema = config.get("responseJsonSchema").or_else(|| config.get("responseSchema"))?;
    Some(fitting(schema, 0, &mut VALUES_MAX.clone()).to_string())
}

fn fitting(schema: &Value, depth: usize, left: &mut usize) -> Value {
    let Some(rest) = left.checked_sub(1).filter(|_| depth < SCHEMA_DEPTH_MAX) else {
        return Value::Null;
    };
    *left = rest;
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|e| e.first()) {
        return first.clone();
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or("object").to_ascii_lowercase();
    match kind.as_str() {
        "string" => json!("(scripted model)"),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(0)),
        "boolean" => json!(false),
        "null" => Value::Null,
        "array" => json!([]),
        _ => {
            let empty = Map::new();
            let fields = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
            let made = fields.iter().map(|(k, s)| (k.clone(), fitting(s, depth + 1, left)));
            Value::Object(made.collect())
        }
    }
}
