//! Tools of a model's provider: refused unless granted by name, on record either way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, ModelApi};

const PATHS: [(ModelApi, &str); 4] = [
    (ModelApi::Anthropic, "/v1/messages?beta=true"),
    (ModelApi::OpenAi, "/v1/chat/completions"),
    (ModelApi::Responses, "/v1/responses"),
    (ModelApi::Gemini, "/v1beta/models/m:generateContent"),
];

const ANSWER: &str = r#"{"content":[],"choices":[],"object":"response","candidates":[]}"#;

fn path(api: ModelApi) -> &'static str {
    PATHS.iter().find(|(found, _)| *found == api).unwrap().1
}

/// What each format can ask of its provider, the grant's name, and the body.
const WANTED: &[(ModelApi, &str, &str)] = &[
    (ModelApi::Anthropic, "mcp", r#"{"mcp_servers":[{"type":"url","url":"https://e.test/mcp"}]}"#),
    (ModelApi::Anthropic, "mcp", r#"{"\u006dcp_servers":[{"name":"e"}]}"#),
    (ModelApi::Anthropic, "web_search", r#"{"tools":[{"type":"web_search_20250305"}]}"#),
    (ModelApi::Anthropic, "urls", r#"{"tools":[{"type":"web_fetch_20250910"}]}"#),
    (ModelApi::Anthropic, "code_execution", r#"{"tools":[{"type":"code_execution_20250825"}]}"#),
    (
        ModelApi::Anthropic,
        "web_search",
        r#"{"tools":[{"type":"custom","type":"web_search_20250305"}]}"#,
    ),
    (ModelApi::Anthropic, "code_execution", r#"{"container":"c1"}"#),
    (
        ModelApi::Anthropic,
        "urls",
        r#"{"messages":[{"content":[{"source":{"type":"url","url":"https://e.test/?d=1"}}]}]}"#,
    ),
    (
        ModelApi::Anthropic,
        "urls",
        r#"{"messages":[{"content":[{"content":[{"source":{"url":"HTTPS://e.test/"}}]}]}]}"#,
    ),
    (ModelApi::Anthropic, "premium", r#"{"speed":"fast"}"#),
    (ModelApi::OpenAi, "premium", r#"{"service_tier":"priority"}"#),
    (ModelApi::OpenAi, "premium", r#"{"service\u005ftier":"Priority"}"#),
    (ModelApi::Responses, "premium", r#"{"service_tier":"a-tier-of-tomorrow"}"#),
    (ModelApi::Gemini, "premium", r#"{"serviceTier":"priority"}"#),
    (ModelApi::OpenAi, "web_search", r#"{"web_search_options":{}}"#),
    (ModelApi::OpenAi, "web_search", r#"{"tools":[{"type":"web_search_preview"}]}"#),
    (
        ModelApi::OpenAi,
        "urls",
        r#"{"messages":[{"content":[{"image_url":{"url":"https://e.test/?d=1"}}]}]}"#,
    ),
    (ModelApi::OpenAi, "urls", r#"{"messages":[{"content":[{"image_url":" http://e.test"}]}]}"#),
    (
        ModelApi::OpenAi,
        "urls",
        r#"{"messages":[{"content":[{"file":{"file_data":"https://e.test/x.pdf"}}]}]}"#,
    ),
    (ModelApi::Responses, "web_search", r#"{"tools":[{"type":"web_search"}]}"#),
    (ModelApi::Responses, "mcp", r#"{"tools":[{"type":"mcp","server_url":"https://e.test"}]}"#),
    (ModelApi::Responses, "file_search", r#"{"tools":[{"type":"file_search"}]}"#),
    (ModelApi::Responses, "code_execution", r#"{"tools":[{"type":"code_interpreter"}]}"#),
    (ModelApi::Responses, "computer_use", r#"{"tools":[{"type":"computer_use_preview"}]}"#),
    (
        ModelApi::Responses,
        "mcp",
        r#"{"tools":[{"type":"namespace","tools":[{"type":"function"},{"type":"mcp"}]}]}"#,
    ),
    (
        ModelApi::Responses,
        "urls",
        r#"{"input":[{"content":[{"type":"input_image","image_url":"https://e.test/?d=1"}]}]}"#,
    ),
    (ModelApi::Responses, "urls", r#"{"input":[{"content":[{"file_url":"https://e.test/"}]}]}"#),
    (ModelApi::Responses, "background", r#"{"background":true}"#),
    (ModelApi::Responses, "stored_prompt", r#"{"prompt":{"id":"pmpt_1"}}"#),
    (ModelApi::Gemini, "web_search", r#"{"tools":[{"googleSearch":{}}]}"#),
    (ModelApi::Gemini, "web_search", r#"{"tools":{"google_search":{}}}"#),
    (ModelApi::Gemini, "urls", r#"{"tools":[{"urlContext":{}}]}"#),
    (ModelApi::Gemini, "code_execution", r#"{"tools":[{"code_execution":{}}]}"#),
    (
        ModelApi::Gemini,
        "urls",
        r#"{"contents":[{"parts":[{"fileData":{"fileUri":"https://e.test/?d=1"}}]}]}"#,
    ),
    (ModelApi::Gemini, "stored_prompt", r#"{"cachedContent":"cachedContents/1"}"#),
];

/// What looks like it, and is the agent's and the model's own affair.
const HARMLESS: &[(ModelApi, &str)] = &[
    (
        ModelApi::Anthropic,
        r#"{"service_tier":"auto","speed":"standard",
        "mcp_servers":[],"container":null,"tools":[{"name":"web_search","input_schema":
        {"properties":{"source":{"url":"https://e.test"},"image_url":{"type":"string"}}}},
        {"type":"custom"},{"type":"bash_20250124"},{"type":"text_editor_20250728"}],
        "messages":[{"content":[{"type":"tool_use","input":{"image_url":"https://e.test/","source":
        {"type":"url","url":"https://e.test"}}},{"source":{"type":"base64","data":"AAAA"}},
        {"type":"text","text":"\"mcp_servers\":[{}] https://e.test"}]}]}"#,
    ),
    (
        ModelApi::OpenAi,
        r#"{"service_tier":"flex",
        "web_search_options":null,"tools":[{"type":"function","function":{"name":"f",
        "parameters":{"properties":{"image_url":{"url":"https://e.test"}}}}}],"messages":[{"content":
        [{"image_url":{"url":"data:image/png;base64,AAAA"}},{"file":{"file_data":"AAAA"}}]}]}"#,
    ),
    (
        ModelApi::Responses,
        r#"{"service_tier":null,"background":false,
        "tools":[{"type":"function","parameters":{"tools":[{"type":"mcp"}]}},
        {"type":"custom","format":{"type":"grammar"}},{"type":"local_shell"}],"input":[{"content":
        [{"image_url":"data:image/png;base64,AAAA"}]},{"type":"function_call","arguments":
        "{\"server_url\":\"https://e.test\"}"}]}"#,
    ),
    (
        ModelApi::Gemini,
        r#"{"tools":[{"functionDeclarations":[{"name":"googleSearch","parameters":{}}]}],
        "contents":[{"parts":[{"functionCall":{"args":{"fileUri":"https://e.test"}}},
        {"inlineData":{"data":"AAAA"}},{"text":"googleSearch"}]}]}"#,
    ),
];

/// The body with the model's name in it.
fn named(body: &str) -> String {
    format!("{{\"model\":\"m\",\"max_tokens\":5,{}", &body[1..])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_s_own_tool_is_refused_by_name_and_nothing_leaves() {
    for &(api, tool, body) in WANTED {
        let server = FakeServer::start(vec![json_answer(200, "", ANSWER)]).await;
        let models = vec![http_model("m", api, server.port, None)];
        let rig = RigPlan { models: models.clone(), ..RigPlan::default() }.build();
        let answer = post(&rig.door, path(api), "", &named(body)).await;
        let (status, text) = parts(&answer);
        assert_eq!(status, 403, "{body}: {text}");
        let remedy = format!("provider = [\\\"{tool}\\\"] under [tools] of agents/tester.toml");
        assert!(text.contains(&remedy), "{body}: {text}");
        assert!(server.requests().is_empty(), "{body}");
        match &rig.sink.bodies()[..] {
            [Body::EgressRefused { rule, target, .. }] => {
                assert_eq!((rule.as_str(), target.as_str()), ("provider-tools", "model m"));
            }
            other => panic!("{body}: {other:?}"),
        }
        // Granted by name it goes out as it came, and is on record before it does.
        let provider_tools = vec![tool.to_owned()];
        let rig = RigPlan { models, provider_tools, ..RigPlan::default() }.build();
        let answer = post(&rig.door, path(api), "", &named(body)).await;
        assert_eq!(parts(&answer).0, 200, "{body}: {answer}");
        assert!(server.requests()[0].contains(&body[1..]), "{body}");
        let recorded = rig.sink.bodies().into_iter().find_map(|b| match b {
            Body::ModelRequest { provider_tools, .. } => Some(provider_tools),
            _ => None,
        });
        assert_eq!(recorded, Some(vec![tool.to_owned()]), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_provider_s_tool_goes_out() {
    for &(api, body) in HARMLESS {
        let server = FakeServer::start(vec![json_answer(200, "", ANSWER)]).await;
        let models = vec![http_model("m", api, server.port, None)];
        let rig = RigPlan { models, ..RigPlan::default() }.build();
        let answer = post(&rig.door, path(api), "", &named(body)).await;
        assert_eq!(parts(&answer).0, 200, "{body}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_tools_doubled_keys_and_betas_open_nothing() {
    let server = FakeServer::start(vec![json_answer(200, "", ANSWER)]).await;
    for (api, body) in [
        (ModelApi::Responses, r#"{"tools":[{"type":"telepathy"}]}"#),
        (ModelApi::Anthropic, r#"{"tools":[{"type":"telepathy_20300101"}]}"#),
        (ModelApi::Gemini, r#"{"tools":[{"telepathy":{}}]}"#),
        (ModelApi::Responses, r#"{"tools":[],"tools":[{"type":"mcp"}]}"#),
        (ModelApi::Responses, r#"{"tools":[],"Tools":[{"type":"mcp"}]}"#),
        (ModelApi::Anthropic, r#"{"tools":[],"t\u006fols":[]}"#),
    ] {
        let models = vec![http_model("m", api, server.port, None)];
        let provider_tools = policy::PROVIDER_TOOLS.map(str::to_owned).to_vec();
        let rig = RigPlan { models, provider_tools, ..RigPlan::default() }.build();
        let answer = post(&rig.door, path(api), "", &named(body)).await;
        assert_eq!(parts(&answer).0, 400, "{body}: {answer}");
    }
    assert!(server.requests().is_empty());
    let models = vec![http_model("m", ModelApi::Anthropic, server.port, None)];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let betas =
        "anthropic-beta: mcp-client-2025-04-04,fast-mode-2026-02-01,context-1m-2025-08-07\r\n";
    let answer = post(&rig.door, path(ModelApi::Anthropic), betas, &named("{\"a\":1}")).await;
    assert_eq!(parts(&answer).0, 200, "{answer}");
    assert!(server.requests()[0].contains("anthropic-beta: context-1m-2025-08-07\r\n"));
}
