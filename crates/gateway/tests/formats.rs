//! Every wire format, from a door to a model server on a real socket and back: whole and streamed,
//! with tool calls, refused, down, replaced by another model, and never with a key in the answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, ModelApi, Price};

/// One format as its servers speak it.
struct Format {
    api: ModelApi,
    /// Where the whole answer is asked for, and where the streamed one.
    paths: [&'static str; 2],
    upstream: [&'static str; 2],
    ask: [&'static str; 2],
    /// A whole answer with a tool call; 13 tokens of the prompt, 4 of them cached, 5 of output.
    whole: &'static str,
    events: &'static [&'static str],
    /// How the key is sent.
    key: &'static str,
    /// How the kind of an error is told for 401 and 402.
    kinds: [&'static str; 2],
}

const TOOLS_ASK: [&str; 2] = [
    r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hello"}],"tools":[{"name":"bash"}]}"#,
    r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hello"}],"stream":true}"#,
];
const RESPONSES_ASK: [&str; 2] = [
    r#"{"model":"m","input":"hello","prompt_cache_key":"k","tools":[{"type":"function","name":"bash"}]}"#,
    r#"{"model":"m","input":"hello","stream":true}"#,
];
const GEMINI_ASK: &str = r#"{"contents":[{"role":"user","parts":[{"text":"hello"}]}]}"#;

const FORMATS: [Format; 4] = [
    Format {
        api: ModelApi::Anthropic,
        paths: ["/v1/messages?beta=true", "/v1/messages"],
        upstream: ["POST /v1/messages?beta=true HTTP", "POST /v1/messages HTTP"],
        ask: TOOLS_ASK,
        whole: r#"{"type":"message","content":[{"type":"tool_use","id":"t","name":"bash","input":{"command":"ls"}}],"usage":{"input_tokens":9,"cache_read_input_tokens":4,"output_tokens":5}}"#,
        events: &[
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"cache_read_input_tokens\":4,\"output_tokens\":1}}}\n\n",
            "event: content_block_start\ndata: {\"index\":0,\"content_block\":{\"type\":\"tool_use\"}}\n\n",
            "event: message_delta\ndata: {\"usage\":{\"output_tokens\":5}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ],
        key: "x-api-key: ",
        kinds: ["authentication_error", "billing_error"],
    },
    Format {
        api: ModelApi::OpenAi,
        paths: ["/v1/chat/completions", "/v1/chat/completions"],
        upstream: ["POST /v1/chat/completions HTTP", "POST /v1/chat/completions HTTP"],
        ask: TOOLS_ASK,
        whole: r#"{"choices":[{"message":{"tool_calls":[{"id":"t","function":{"name":"bash","arguments":"{}"}}]}}],"usage":{"prompt_tokens":13,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens":5}}"#,
        events: &[
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":13,\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens\":5}}\n\ndata: [DONE]\n\n",
        ],
        key: "authorization: Bearer ",
        kinds: ["authentication_error", "insufficient_quota"],
    },
    Format {
        api: ModelApi::Responses,
        paths: ["/v1/responses", "/v1/responses"],
        upstream: ["POST /v1/responses HTTP", "POST /v1/responses HTTP"],
        ask: RESPONSES_ASK,
        whole: r#"{"object":"response","output":[{"type":"function_call","call_id":"c","name":"bash","arguments":"{}"}],"usage":{"input_tokens":13,"input_tokens_details":{"cached_tokens":4},"output_tokens":5}}"#,
        events: &[
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n",
            "event: response.output_item.done\ndata: {\"item\":{\"type\":\"function_call\"}}\n\n",
            "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"text\":\"a \\\"usage\\\":{\\\"output_tokens\\\":99}\"}],\"usage\":{\"input_tokens\":13,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":5}}}\n\n",
        ],
        key: "authorization: Bearer ",
        kinds: ["authentication_error", "insufficient_quota"],
    },
    Format {
        api: ModelApi::Gemini,
        paths: [
            "/v1beta/models/m:generateContent?key=placeholder-not-a-key",
            "/v1beta/models/m:streamGenerateContent?alt=sse",
        ],
        upstream: [
            "POST /v1beta/models/provider-model-1:generateContent HTTP",
            "POST /v1beta/models/provider-model-1:streamGenerateContent?alt=sse HTTP",
        ],
        ask: [GEMINI_ASK, GEMINI_ASK],
        whole: r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"bash","args":{}}}]}}],"usageMetadata":{"promptTokenCount":13,"cachedContentTokenCount":4,"candidatesTokenCount":3,"thoughtsTokenCount":2}}"#,
        events: &[
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"functionCall\":{}}]}}],\"usageMetadata\":{\"promptTokenCount\":13}}\r\n\r\n",
            "data: {\"candidates\":[],\"usageMetadata\":{\"promptTokenCount\":13,\"cachedContentTokenCount\":4,\"candidatesTokenCount\":3,\"thoughtsTokenCount\":2}}\r\n\r\n",
        ],
        key: "x-goog-api-key: ",
        kinds: ["UNAUTHENTICATED", "FAILED_PRECONDITION"],
    },
];

const PRICE: Price =
    Price { input: 3_000_000, cached_input: 300_000, cache_write: 3_750_000, output: 15_000_000 };
/// 9 at 3, 4 at 0.3 and 5 at 15 micro-USD, rounded up.
const COST: u64 = 27 + 2 + 75;

async fn rig_with(answers: Vec<Canned>, api: ModelApi) -> (Rig, FakeServer) {
    let server = FakeServer::start(answers).await;
    let mut model = http_model("m", api, server.port, Some("key1"));
    model.price = Some(PRICE);
    (RigPlan { models: vec![model], ..RigPlan::default() }.build(), server)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_goes_through_with_its_key_its_usage_and_its_cost() {
    for format in &FORMATS {
        for streamed in [0, 1] {
            let answer = match streamed {
                0 => json_answer(200, "", format.whole),
                _ => sse_answer(format.events),
            };
            let want = if streamed == 0 { format.whole.into() } else { format.events.concat() };
            let (rig, server) = rig_with(vec![answer], format.api).await;
            let fields = format!(
                "authorization: Bearer {PLACEHOLDER}\r\nx-api-key: {PLACEHOLDER}\r\nx-goog-api-key: {PLACEHOLDER}\r\napi-key: {PLACEHOLDER}\r\nx-goog-api-client: c1\r\nopenai-beta: b2\r\nopenai-organization: org\r\n"
            );
            let answer =
                post(&rig.door, format.paths[streamed], &fields, format.ask[streamed]).await;
            let name = format.api.name();
            assert_eq!(parts(&answer), (200, want), "{name}");
            let sent = &server.requests()[0];
            assert!(sent.starts_with(format.upstream[streamed]), "{sent}");
            assert!(sent.contains(&format!("{}{KEY}\r\n", format.key)), "{sent}");
            assert!(!sent.contains(PLACEHOLDER) && !sent.contains("openai-organization"), "{sent}");
            assert!(sent.contains("x-goog-api-client: c1") && sent.contains("openai-beta: b2"));
            if format.api == ModelApi::Responses && streamed == 0 {
                assert!(sent.contains(r#""prompt_cache_key":"k""#), "{sent}");
            }
            if format.api == ModelApi::OpenAi {
                assert_eq!(sent.contains(r#""include_usage":true"#), streamed == 1, "{sent}");
            }
            match rig.sink.wait_for("model_response").await {
                Body::ModelResponse {
                    input_tokens, output_tokens, cost_micro_usd, error, ..
                } => {
                    let found = (input_tokens, output_tokens, cost_micro_usd, error);
                    assert_eq!(found, (13, 5, Some(COST), None), "{name} {streamed}");
                }
                other => panic!("{other:?}"),
            }
            match rig.sink.wait_for("model_request").await {
                Body::ModelRequest { api, .. } => assert_eq!(api, name),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_in_the_shape_of_the_format_and_never_with_the_key() {
    for format in &FORMATS {
        let name = format.api.name();
        let said = format!(r#"{{"error":{{"message":"bad key {KEY}"}}}}"#);
        for (status, times) in [(401, 1), (429, 3), (500, 3), (503, 3)] {
            let (rig, server) = rig_with(vec![json_answer(status, "", &said)], format.api).await;
            let answer = post(&rig.door, format.paths[0], "", format.ask[0]).await;
            let (told, body) = parts(&answer);
            assert_eq!((told, server.requests().len()), (status, times), "{name}: {body}");
            assert!(!answer.contains(KEY), "{answer}");
            let error: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(error["error"]["message"].as_str().unwrap().len() > 20, "{body}");
            if status == 401 {
                assert!(body.contains(format.kinds[0]), "{name}: {body}");
            }
            assert_eq!(format.api == ModelApi::Gemini, error["error"]["code"].is_u64(), "{body}");
            assert_eq!(format.api == ModelApi::Anthropic, error["type"] == "error", "{body}");
        }
        let own = json_answer(400, "", r#"{"error":{"message":"odd tool"}}"#);
        let (rig, _server) = rig_with(vec![own], format.api).await;
        let (told, body) = parts(&post(&rig.door, format.paths[0], "", format.ask[0]).await);
        assert_eq!((told, body.contains("odd tool")), (400, true), "{name}");
        if format.api == ModelApi::Gemini {
            let bad =
                r#"{"error":{"code":400,"message":"no","details":[{"reason":"API_KEY_INVALID"}]}}"#;
            let (rig, _server) = rig_with(vec![json_answer(400, "", bad)], format.api).await;
            let (told, body) = parts(&post(&rig.door, format.paths[0], "", format.ask[0]).await);
            assert!(told == 401 && body.contains("nanoclaw secret set key1"), "{body}");
        }
        let nonsense = json_answer(200, "", r#"{"hello":"world"}"#);
        let (rig, _server) = rig_with(vec![nonsense], format.api).await;
        let (told, body) = parts(&post(&rig.door, format.paths[0], "", format.ask[0]).await);
        assert!(told == 502 && body.contains(&format!("not of the {name} format")), "{body}");
        let mut broken = sse_answer(&format.events[..1]);
        *broken.0.last_mut().unwrap() = vec![]; // the connection just ends
        let (rig, _server) = rig_with(vec![broken], format.api).await;
        let (_, body) = parts(&post(&rig.door, format.paths[1], "", format.ask[1]).await);
        assert!(body.contains("is incomplete"), "{name}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_key_is_never_in_any_answer() {
    let [a, b] = KEY.split_at(8).into();
    for format in &FORMATS {
        // Echoed in the body, in a header, and cut in two by a stream.
        let echoed = format.whole.replace("bash", KEY);
        let whole = json_answer(200, &format!("x-request-id: {KEY}\r\n"), &echoed);
        let first = format!("{}: {a}", format.events[0].trim_end().replace("data: {", ": x {"));
        let stream = sse_answer(&[&first, &format!("{b}\n\n"), format.events[1]]);
        for (n, answer) in [whole, stream].into_iter().enumerate() {
            let (rig, _server) = rig_with(vec![answer], format.api).await;
            let answer = post(&rig.door, format.paths[n], "", format.ask[n]).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(!answer.contains(KEY) && answer.contains("[secret masked]"), "{answer}");
            assert!(!rig.sink.as_json().contains(KEY));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_agent_s_own_is_refused_before_anything_is_sent() {
    for format in &FORMATS {
        let (rig, server) = rig_with(vec![json_answer(200, "", format.whole)], format.api).await;
        let path = format.paths[1].split('?').next().unwrap();
        for (more, field) in [
            ("", "x-api-key: agents-own"),
            ("", "authorization: Bearer agents-own"),
            ("", "x-goog-api-key: agents-own"),
            ("", "api-key: agents-own"),
            ("?key=agents-own", "a: b"),
        ] {
            let path = format!("{path}{more}");
            let answer = post(&rig.door, &path, &format!("{field}\r\n"), format.ask[0]).await;
            let (status, body) = parts(&answer);
            assert_eq!(status, 401, "{body}");
            assert!(body.contains("a key of the agent's own"), "{body}");
            assert!(body.contains(format.kinds[0]) && answer.contains("x-should-retry: false"));
        }
        assert_eq!(rig.sink.kinds(), ["egress_refused"; 5]);
        let records = rig.sink.as_json();
        assert!(records.contains("placeholder") && !records.contains("agents-own"), "{records}");
        assert!(server.requests().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_provider_may_speak_several_formats_and_others_are_told_where_to_ask() {
    let server = FakeServer::start(vec![json_answer(200, "", FORMATS[2].whole)]).await;
    let mut both = http_model("both", ModelApi::OpenAi, server.port, None);
    both.also = vec![ModelApi::Responses];
    let models = vec![both, http_model("g", ModelApi::Gemini, server.port, None)];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let ask = RESPONSES_ASK[0].replace("\"m\"", "\"both\"");
    assert_eq!(parts(&post(&rig.door, "/v1/responses", "", &ask).await).0, 200);
    let ask = r#"{"model":"both","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
    let (status, body) = parts(&post(&rig.door, "/v1/messages", "", ask).await);
    assert_eq!(status, 400);
    assert!(body.contains("/v1/chat/completions or /v1/responses"), "{body}");
    let path = "/v1beta/models/both:generateContent";
    let (status, body) = parts(&post(&rig.door, path, "", GEMINI_ASK).await);
    assert!(status == 400 && body.contains("INVALID_ARGUMENT"), "{body}");
    // An unknown name means the default model, where that speaks the format.
    let (status, body) =
        parts(&post(&rig.door, "/v1beta/models/x:generateContent", "", GEMINI_ASK).await);
    assert!(status == 400 && body.contains("default model \\\"both\\\""), "{body}");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (status, body) = parts(&raw(&rig.door, get("/v1beta/models?pageSize=9").as_bytes()).await);
    assert!(status == 200 && body.contains("\"models/g\""), "{body}");
    assert_eq!(parts(&raw(&rig.door, get("/v1beta/models/g").as_bytes()).await).0, 200);
    let upgrade = "GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n";
    let answer = raw_until_close(&rig.door, upgrade).await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
    let hello = "HEAD /api/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(raw(&rig.door, hello.as_bytes()).await.starts_with("HTTP/1.1 404"));
}

async fn raw_until_close(door: &nanoclaw_gateway::Door, request: &str) -> String {
    raw(door, request.replace("Upgrade\r\n", "Upgrade, close\r\n").as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_embeddings_are_passed_to_whoever_has_them() {
    for (api, path, ask, answer) in [
        (ModelApi::Anthropic, "/v1/messages/count_tokens", TOOLS_ASK[0], r#"{"input_tokens":3}"#),
        (
            ModelApi::OpenAi,
            "/v1/embeddings",
            r#"{"model":"m","input":"a"}"#,
            r#"{"object":"list","data":[{"embedding":[1]}],"usage":{"prompt_tokens":1}}"#,
        ),
        (ModelApi::Gemini, "/v1beta/models/m:countTokens", GEMINI_ASK, r#"{"totalTokens":3}"#),
    ] {
        let (rig, server) = rig_with(vec![json_answer(200, "", answer)], api).await;
        assert_eq!(parts(&post(&rig.door, path, "", ask).await), (200, answer.into()));
        let asked = path.replace("models/m", "models/provider-model-1");
        assert!(server.requests()[0].starts_with(&format!("POST {asked} HTTP")));
        // Numbers of another model would mean nothing.
        if api == ModelApi::OpenAi {
            let (status, body) =
                parts(&post(&rig.door, path, "", r#"{"model":"x","input":"a"}"#).await);
            assert!(status == 404 && body.contains("no model named"), "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_answers_while_the_first_cannot() {
    for format in &FORMATS {
        for down in [None, Some(429), Some(503)] {
            let first = FakeServer::start(vec![json_answer(down.unwrap_or(500), "", "{}")]).await;
            let second = FakeServer::start(vec![json_answer(200, "", format.whole)]).await;
            let port = if down.is_none() { 1 } else { first.port };
            let other = ModelApi::Anthropic;
            let other = if other == format.api { ModelApi::OpenAi } else { other };
            let mut main = http_model("main", format.api, port, Some("key1"));
            main.fallbacks = vec!["deaf".into(), "spare".into()];
            let deaf = http_model("deaf", other, 1, None);
            let mut spare = http_model("spare", format.api, second.port, None);
            spare.model = "spare-model".into();
            let rig = RigPlan { models: vec![main, deaf, spare], ..RigPlan::default() }.build();
            let path = format.paths[0].replace("models/m:", "models/main:");
            let ask = format.ask[0].replace("\"m\"", "\"main\"");
            let (status, body) = parts(&post(&rig.door, &path, "", &ask).await);
            assert_eq!((status, body.as_str()), (200, format.whole), "{}", format.api.name());
            assert!(second.requests()[0].contains("spare-model"));
            assert!(!second.requests()[0].contains(KEY), "the first model's key went elsewhere");
            let answers: Vec<(String, bool)> = rig
                .sink
                .bodies()
                .into_iter()
                .filter_map(|body| match body {
                    Body::ModelResponse { model, error, .. } => Some((model, error.is_some())),
                    _ => None,
                })
                .collect();
            assert_eq!(answers, [("main".to_owned(), true), ("spare".to_owned(), false)]);
        }
        // What is wrong with the request itself is nobody else's to answer.
        let first = FakeServer::start(vec![json_answer(401, "", "{}")]).await;
        let mut main = http_model("m", format.api, first.port, Some("key1"));
        main.fallbacks = vec!["spare".into()];
        let second = FakeServer::start(vec![json_answer(200, "", format.whole)]).await;
        let spare = http_model("spare", format.api, second.port, None);
        let rig = RigPlan { models: vec![main, spare], ..RigPlan::default() }.build();
        assert_eq!(parts(&post(&rig.door, format.paths[0], "", format.ask[0]).await).0, 401);
        assert!(second.requests().is_empty());
    }
}
