//! The wire formats as a whole, without a socket.

use super::*;
use serde_json::json;
use testkit::fuzz;

const ANTHROPIC: &[u8] = b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5}}}\n\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"tool_use\",\"id\":\"a\",\"name\":\"bash\",\"input\":{}}}\n\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{}\"}}\n\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":3}}\n\ndata: {\"type\":\"message_stop\"}\n\n";
const OPENAI: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"bash\",\"arguments\":\"{}\"}}]}}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\ndata: [DONE]\n\n";

fn run(framed: &[u8], decoder: &mut dyn Decoder) -> Result<Answer, ModelFailure> {
    run_from(framed, decoder)
}

fn run_from(
    reader: impl std::io::BufRead,
    decoder: &mut dyn Decoder,
) -> Result<Answer, ModelFailure> {
    let mut sink = |_: &str| {};
    let mut assembler = Assembler::new(&mut sink);
    let mut body = http::Body::until_close(reader);
    stream(&mut body, decoder, &mut assembler)?;
    assembler.finish()
}

/// An answer of the model's server from its first byte: head, framing, events, words, tool calls.
#[test]
fn fuzz_model_answer() {
    let chunk = |events: &[u8]| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let (a, b) = events.split_at(40);
        let chunk =
            |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
        let coding = b"transfer-encoding: chunked\r\n\r\n".to_vec();
        [head.to_vec(), coding, chunk(a), chunk(b), b"0\r\n\r\n".to_vec()].concat()
    };
    let whole = |events: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", events.len());
        [head.as_bytes(), events].concat()
    };
    let seeds = [chunk(ANTHROPIC), chunk(OPENAI), whole(ANTHROPIC), whole(OPENAI)];
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).chain([ANTHROPIC, OPENAI]).collect();
    let words: [&[u8]; 9] = [
        b"\r\n",
        b"\n\n",
        b"data: ",
        b"data: [DONE]\n\n",
        b"\"index\":",
        b"null",
        b"0\r\n\r\n",
        b"\"finish_reason\":\"stop\"",
        b"HTTP/1.1 100 x\r\n\r\n",
    ];
    fuzz::with_words("model-answer", &seeds, &words, |bytes, dice| {
        let (small, large) = (1 + dice.below(9), 1 + dice.below(5_000));
        let mut found = Vec::new();
        let framed = http::whole(bytes, large);
        assert_eq!(http::whole(bytes, small), framed, "in pieces it says something else");
        let body = match framed {
            Ok((status, body)) => {
                found.push(status.to_string());
                body
            }
            Err(why) => {
                found.push(why);
                bytes.to_vec()
            }
        };
        for format in 0..2 {
            let decoder = || -> Box<dyn Decoder> {
                if format == 0 {
                    Box::new(anthropic::Events)
                } else {
                    Box::new(openai::Events::default())
                }
            };
            let answer = run(&body, decoder().as_mut());
            let reader = std::io::BufReader::with_capacity(small, &body[..]);
            assert_eq!(run_from(reader, decoder().as_mut()), answer, "in pieces it says otherwise");
            found.push(match answer {
                Ok(answer) => format!("{} {:?}", answer.blocks.len(), answer.stop),
                Err(failure) => failure.message.chars().take(40).collect(),
            });
        }
        fuzz::outcome(found)
    });
}

#[test]
fn every_truncation_of_a_stream_is_a_failure() {
    for cut in 0..ANTHROPIC.len() - 3 {
        let result = run(&ANTHROPIC[..cut], &mut anthropic::Events);
        assert!(result.is_err(), "cut at {cut} passed for an answer");
    }
    assert!(run(ANTHROPIC, &mut anthropic::Events).is_ok());
    let finish = OPENAI.windows(13).position(|w| w == b"finish_reason").unwrap();
    for cut in 0..finish {
        assert!(run(&OPENAI[..cut], &mut openai::Events::default()).is_err(), "cut at {cut}");
    }
    assert!(run(OPENAI, &mut openai::Events::default()).is_ok());
}

fn crowded() -> Vec<Message> {
    let call =
        Block::ToolUse { id: "c".into(), name: "bash".into(), input: json!({"command": "x"}) };
    let result = Block::ToolResult { id: "c".into(), ok: false, text: "gone".into() };
    vec![
        Message::text(Role::User, "summary"),
        Message::text(Role::User, "question"),
        Message { role: Role::Assistant, blocks: vec![call] },
        Message { role: Role::User, blocks: vec![Block::Text { text: "more".into() }, result] },
        Message::text(Role::User, "and more"),
    ]
}

#[test]
fn both_formats_alternate_roles_and_put_results_first() {
    let messages = crowded();
    let request = Request { system: "S", messages: &messages, tools: &[], max_tokens: 9 };
    let body = anthropic::body("m", &request);
    let roles: Vec<&str> =
        body["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
    let kinds: Vec<&str> = body["messages"][2]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["tool_result", "text", "text"]);
    assert_eq!(body["messages"][2]["content"][0]["is_error"], true);
    assert!(
        body["messages"][2]["content"][2]["cache_control"].is_object()
            && body.get("tools").is_none()
    );

    let body = openai::body("m", &request);
    let roles: Vec<&str> =
        body["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
    assert_eq!(body["messages"][1]["content"], "summary\n\nquestion");
    assert_eq!(body["messages"][2]["tool_calls"][0]["function"]["arguments"], r#"{"command":"x"}"#);
    assert_eq!(body["messages"][3]["content"], "error: gone");
    assert_eq!(
        (&body["max_tokens"], &body["stream_options"]["include_usage"]),
        (&json!(9), &json!(true))
    );
    assert_eq!(openai::body("gpt-5-mini", &request)["max_completion_tokens"], 9);
}

#[test]
fn servers_that_bend_the_format_are_understood() {
    let stream = b"data: {\"choices\":[{\"delta\":{\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"bash\",\"arguments\":{\"command\":\"ls\"}}},{\"function\":{\"name\":\"glob\"}}]},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n";
    let answer = run(stream, &mut openai::Events::default()).unwrap();
    let names: Vec<String> = answer
        .blocks
        .iter()
        .map(|b| match b {
            Block::ToolUse { name, input, .. } => format!("{name} {input}"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, [r#"bash {"command":"ls"}"#, "glob {}"]);
    let stream = b"data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\"}}\n\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm\"}}\n\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"text\",\"text\":\"a\"}}\n\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"refusal\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n";
    let answer = run(stream, &mut anthropic::Events).unwrap();
    assert_eq!((answer.stop, answer.blocks.len()), (Stop::Refusal, 1));
}
