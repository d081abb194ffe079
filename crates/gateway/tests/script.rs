//! The scripted model through a real door, in both wire formats, whole and streamed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, ModelApi, ModelConfig};
use serde_json::{Value, json};
use std::path::Path;

const SCRIPT: &str = r#"schema = 1
chunk_chars = 4

[[turn]]
when = "Look"
[[turn.step]]
text = "I look at {{user}}."
[[turn.step.call]]
tool = "bash"
arguments = { command = "ls" }
[[turn.step.call]]
tool = "read_file"
arguments = { path = "a.txt" }
[[turn.step]]
text = "Second: {{result.2}}; all: {{result}}"

[[turn]]
when = "bye"
[[turn.step]]
text = "Goodbye"
"#;

fn scripted(dir: &Path) -> ModelConfig {
    let path = dir.join("tour.toml");
    std::fs::write(&path, SCRIPT).unwrap();
    let mut config = http_model("tour", ModelApi::Script, 1, None);
    (config.base_url, config.model, config.script) = (String::new(), "tour".into(), Some(path));
    config
}

fn rig() -> (Rig, TempDir) {
    let dir = TempDir::new();
    let models = vec![scripted(&dir.0)];
    (RigPlan { models, ..RigPlan::default() }.build(), dir)
}

async fn ask(rig: &Rig, path: &str, body: Value) -> (u16, String) {
    parts(&post(&rig.door, path, "", &body.to_string()).await)
}

fn data(events: &str) -> Vec<Value> {
    events
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .filter_map(|d| serde_json::from_str(d).ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropic_conversations_are_played_step_by_step() {
    let (rig, _dir) = rig();
    let mut messages = vec![json!({"role": "user", "content": "look here"})];
    let body = json!({"model": "script:tour", "messages": messages});
    let (status, first) = ask(&rig, "/v1/messages?beta=true", body).await;
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((status, &first["stop_reason"]), (200, &json!("tool_use")));
    assert_eq!(first["model"], "script:tour");
    assert_eq!(first["content"][0]["text"], "I look at look here.");
    assert_eq!(first["content"][1]["input"], json!({"command": "ls"}));
    let (id1, id2) = (&first["content"][1]["id"], &first["content"][2]["id"]);
    assert_ne!(id1, id2);
    messages.push(json!({"role": "assistant", "content": first["content"]}));
    // Results in another order than the calls, one as blocks.
    messages.push(json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": id2, "content": [{"type": "text", "text": "two"}]},
        {"type": "tool_result", "tool_use_id": id1, "content": "one"},
        {"type": "text", "text": "<system-reminder>bye</system-reminder>"},
    ]}));
    let body = json!({"model": "tour", "stream": true, "messages": messages});
    let (_, events) = ask(&rig, "/v1/messages", body).await;
    let events = data(&events);
    let text: String =
        events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect::<Vec<_>>().concat();
    assert_eq!(text, "Second: two; all: one\ntwo");
    assert!(events.iter().filter(|e| e["delta"]["text"].is_string()).count() > 3);
    assert_eq!(events[0]["message"]["model"], "script:tour");
    let kinds: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"message_start"), Some(&"message_stop")));
    match rig.sink.wait_for("model_request").await {
        Body::ModelRequest { api, host, .. } => {
            assert_eq!((api.as_str(), host.as_str()), ("script", "script:tour"));
        }
        other => panic!("{other:?}"),
    }
    let kinds = rig.sink.kinds();
    assert_eq!(kinds, ["model_request", "model_response", "model_request", "model_response"]);
    let (_, counted) =
        ask(&rig, "/v1/messages/count_tokens", json!({"model": "tour", "messages": []})).await;
    assert!(counted.contains("input_tokens"), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_conversations_are_played_step_by_step() {
    let (rig, _dir) = rig();
    let mut messages = vec![
        json!({"role": "system", "content": "bye"}),
        json!({"role": "user", "content": [{"type": "text", "text": "LOOK"}]}),
    ];
    let body = json!({"model": "any", "stream": true, "messages": messages,
                      "stream_options": {"include_usage": true}});
    let (status, events) = ask(&rig, "/v1/chat/completions", body).await;
    assert!(status == 200 && events.ends_with("data: [DONE]\n\n"), "{events}");
    let events = data(&events);
    let calls: Vec<&Value> = events
        .iter()
        .map(|e| &e["choices"][0]["delta"]["tool_calls"][0])
        .filter(|c| c.is_object())
        .collect();
    assert_eq!((calls.len(), &calls[1]["index"]), (2, &json!(1)));
    assert_eq!(calls[0]["function"]["arguments"], "{\"command\":\"ls\"}");
    assert!(events.last().unwrap()["usage"]["completion_tokens"].as_u64() > Some(0));
    messages.push(json!({"role": "assistant", "content": null, "tool_calls": calls}));
    for (call, text) in calls.iter().zip(["one", "two"]) {
        messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": text}));
    }
    let body = json!({"model": "any", "messages": messages});
    let (_, answer) = ask(&rig, "/v1/chat/completions", body).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "Second: two; all: one\ntwo");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    match rig.sink.wait_for("model_response").await {
        Body::ModelResponse { output_tokens, error, .. } => {
            assert!(output_tokens > 0 && error.is_none());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_line_it_says_so_and_a_later_turn_starts_anew() {
    let (rig, _dir) = rig();
    let body = json!({"model": "tour", "messages": [{"role": "user", "content": "what?"}]});
    let (status, answer) = ask(&rig, "/v1/messages", body).await;
    assert!(status == 200 && answer.contains("(scripted model) I have no line for"), "{answer}");
    let messages = json!([
        {"role": "user", "content": "look"}, {"role": "assistant", "content": "x"},
        {"role": "user", "content": "bye now"},
    ]);
    let (_, answer) =
        ask(&rig, "/v1/messages", json!({"model": "tour", "messages": messages})).await;
    assert!(answer.contains("Goodbye"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_result_or_request_stays_bounded() {
    let (rig, _dir) = rig();
    let messages = |size: usize| {
        json!([
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a"}, {"type": "tool_use", "id": "b"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "b", "content": "x".repeat(size)}]},
        ])
    };
    let body = json!({"model": "tour", "messages": messages(1_000_000)});
    let (status, answer) = ask(&rig, "/v1/messages", body).await;
    assert!(status == 200 && answer.len() < 50_000 && answer.contains('…'), "{}", answer.len());
    let body = json!({"model": "tour", "messages": messages(5_000_000)});
    let (status, answer) = ask(&rig, "/v1/messages", body).await;
    assert!(status == 400 && answer.contains("up to"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_conversations_are_played_step_by_step() {
    let (rig, _dir) = rig();
    let mut input = vec![
        json!({"type": "message", "role": "developer", "content": "bye"}),
        json!({"role": "user", "content": [{"type": "input_text", "text": "LOOK"}]}),
    ];
    let body = json!({"model": "any", "stream": true, "input": input});
    let (status, events) = ask(&rig, "/v1/responses", body).await;
    assert!(status == 200 && events.starts_with("event: response.created\n"), "{events}");
    let events = data(&events);
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], n, "{event}");
    }
    let text: String = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .filter_map(|e| e["delta"].as_str())
        .collect();
    assert_eq!(text, "I look at LOOK.");
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert!(last["response"]["usage"]["output_tokens"].as_u64() > Some(0));
    let output = last["response"]["output"].as_array().unwrap().clone();
    let done: Vec<&Value> = events
        .iter()
        .filter(|e| e["type"] == "response.output_item.done")
        .map(|e| &e["item"])
        .collect();
    assert_eq!(done, output.iter().collect::<Vec<_>>());
    assert_eq!((output.len(), &output[1]["arguments"]), (3, &json!("{\"command\":\"ls\"}")));
    let calls: Vec<Value> = output[1..].iter().map(|c| c["call_id"].clone()).collect();
    input.extend(output);
    for (call, text) in calls.iter().zip(["one", "two"]) {
        input.push(json!({"type": "function_call_output", "call_id": call, "output": text}));
    }
    let (_, answer) = ask(&rig, "/v1/responses", json!({"model": "any", "input": input})).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["output"][0]["content"][0]["text"], "Second: two; all: one\ntwo");
    assert_eq!((&answer["status"], &answer["model"]), (&json!("completed"), &json!("script:tour")));
    let (_, plain) = ask(&rig, "/v1/responses", json!({"model": "any", "input": "bye"})).await;
    assert!(plain.contains("Goodbye"), "{plain}");
    let body = json!({"model": "any", "input": "bye", "previous_response_id": "r"});
    let (status, why) = ask(&rig, "/v1/responses", body).await;
    assert!(status == 400 && why.contains("send the whole input"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gemini_conversations_are_played_step_by_step() {
    let (rig, _dir) = rig();
    let base = "/v1beta/models/script:tour";
    let user = json!({"role": "user", "parts": [{"text": "look"}]});
    let body = json!({"contents": [user], "systemInstruction": {"parts": [{"text": "bye"}]}});
    let path = format!("{base}:streamGenerateContent?alt=sse");
    let (status, events) = ask(&rig, &path, body.clone()).await;
    assert!(status == 200 && events.ends_with("\r\n\r\n"), "{events}");
    let events = data(&events);
    let parts: Vec<Value> = events
        .iter()
        .flat_map(|e| e["candidates"][0]["content"]["parts"].as_array().unwrap().clone())
        .collect();
    let text: String = parts.iter().filter_map(|p| p["text"].as_str()).collect();
    assert_eq!(text, "I look at look.");
    let last = events.last().unwrap();
    assert_eq!(last["candidates"][0]["finishReason"], "STOP");
    assert!(last["usageMetadata"]["candidatesTokenCount"].as_u64() > Some(0));
    let calls: Vec<&Value> =
        parts.iter().map(|p| &p["functionCall"]).filter(|c| c.is_object()).collect();
    assert_eq!((calls.len(), &calls[0]["args"]), (2, &json!({"command": "ls"})));
    // The same as one array, for clients that do not ask for events.
    let (_, array) = ask(&rig, &format!("{base}:streamGenerateContent"), body).await;
    let array: Vec<Value> = serde_json::from_str(&array).unwrap();
    assert_eq!(array.len(), events.len());
    // Results with ids and without.
    for with_id in [true, false] {
        let result = |n: usize, text: &str| {
            let mut response = json!({"name": calls[n]["name"], "response": {"output": text}});
            let mut call = calls[n].clone();
            if with_id {
                response["id"] = call["id"].clone();
            } else {
                call.as_object_mut().unwrap().remove("id");
            }
            (json!({"functionCall": call}), json!({"functionResponse": response}))
        };
        let ((c1, r1), (c2, r2)) = (result(0, "one"), result(1, "two"));
        let contents = json!([
            user,
            {"role": "model", "parts": [{"text": text}, c1, c2]},
            {"role": "user", "parts": [r2, r1]},
        ]);
        let body = json!({"contents": contents});
        let (_, answer) = ask(&rig, &format!("{base}:generateContent"), body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let said = &answer["candidates"][0]["content"]["parts"][0]["text"];
        assert_eq!(said, "Second: two; all: one\ntwo", "{answer}");
    }
    let (_, counted) = ask(&rig, &format!("{base}:countTokens"), json!({"contents": []})).await;
    assert!(counted.contains("totalTokens"), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gemini_s_schemas_are_filled() {
    let (rig, _dir) = rig();
    let schema = json!({"type": "object", "properties": {
        "reasoning": {"type": "string"},
        "model_choice": {"type": "string", "enum": ["flash", "pro"]},
        "score": {"type": "integer", "minimum": 1},
        "steps": {"type": "array", "items": {"type": "string"}},
    }});
    let body = json!({
        "contents": [{"role": "user", "parts": [{"text": "look"}]}],
        "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": schema},
    });
    let (_, answer) = ask(&rig, "/v1beta/models/tour:generateContent", body).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let text = answer["candidates"][0]["content"]["parts"][0]["text"].as_str().unwrap();
    let made: Value = serde_json::from_str(text).unwrap();
    assert_eq!(made["model_choice"], "flash");
    assert_eq!(made["score"], 1);
    assert!(made["reasoning"].is_string() && made["steps"].is_array(), "{made}");
}
