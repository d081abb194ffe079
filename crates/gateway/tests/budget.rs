//! Budgets and the ledger: through a door, among many calls at once, over restarts and crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{AgentName, Body, Budget, ModelApi, ModelConfig, Price, SessionId, TurnId};
use nanoclaw_gateway::RetryPolicy;
use nanoclaw_gateway::usage::{Ledger, Notice, OverBudget, Spender, Usage, totals};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const JSON: &str = r#"{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":50}}"#;
const ASK: &str = r#"{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;
/// One USD a million: a micro-USD a token.
const PRICE: Price =
    Price { input: 1_000_000, cached_input: 1_000_000, cache_write: 1_000_000, output: 1_000_000 };
const NOON: u64 = 1_798_718_400_000;

fn priced(port: u16) -> ModelConfig {
    let mut model = http_model("m", ModelApi::OpenAi, port, None);
    model.price = Some(PRICE);
    model
}

fn per_day(micro_usd: u64) -> Budget {
    Budget { micro_usd_per_day: Some(micro_usd), ..Budget::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_budget_nothing_leaves_and_the_owner_is_told_once() {
    for (path, ask, api, kind) in [
        ("/v1/chat/completions", ASK, ModelApi::OpenAi, "insufficient_quota"),
        ("/v1/messages", ASK, ModelApi::Anthropic, "billing_error"),
        (
            "/v1/responses",
            r#"{"model":"m","input":"hi"}"#,
            ModelApi::Responses,
            "insufficient_quota",
        ),
        ("/v1beta/models/m:generateContent", "{}", ModelApi::Gemini, "FAILED_PRECONDITION"),
    ] {
        let server = FakeServer::start(vec![json_answer(200, "", JSON)]).await;
        let mut model = priced(server.port);
        model.api = api;
        let told = Arc::new(Mutex::new(Vec::<Notice>::new()));
        let kept = Arc::clone(&told);
        let plan = RigPlan {
            models: vec![model],
            budget: per_day(50),
            notices: Some(Arc::new(move |notice| kept.lock().unwrap().push(notice))),
            ..RigPlan::default()
        };
        let rig = plan.build();
        for _ in 0..2 {
            let answer = post(&rig.door, path, "", ask).await;
            let (status, body) = parts(&answer);
            assert_eq!(status, 402, "{body}");
            assert!(answer.contains("x-should-retry: false") && body.contains(kind), "{body}");
            assert!(body.contains("nanoclaw_budget"), "told from a provider's refusal: {body}");
            assert!(body.contains("lower max_tokens") && !body.contains("wait"), "{body}");
            assert!(body.contains("usd_per_day = $0.00005") && body.contains("agents/tester.toml"));
        }
        assert!(server.requests().is_empty());
        assert_eq!(rig.sink.kinds(), ["egress_refused"; 2]);
        match &rig.sink.bodies()[0] {
            Body::EgressRefused { rule, target, .. } => {
                assert_eq!((rule.as_str(), target.as_str()), ("budget", "model m"));
            }
            other => panic!("{other:?}"),
        }
        let told = told.lock().unwrap();
        assert_eq!((told.len(), told[0].rule.as_str()), (1, "budget"));
        assert!(told[0].text.contains("$0.00005"), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_reserved_is_replaced_by_what_was_used() {
    let dir = TempDir::new();
    let ledger = Ledger::open(&dir.0).unwrap();
    let server = FakeServer::start(vec![json_answer(200, "", JSON)]).await;
    // The estimate is above 120, the use 150: two calls fit into 400, a third does not.
    let models = vec![priced(server.port)];
    let plan = RigPlan { models, budget: per_day(400), ledger: Some(ledger), ..RigPlan::default() };
    let rig = plan.build();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = post(&rig.door, "/v1/chat/completions", "", ASK).await;
        statuses.push(parts(&answer).0);
    }
    assert_eq!(statuses, [200, 200, 402]);
    let all = totals(&dir.0).unwrap();
    assert_eq!(all.len(), 1);
    let total = &all[0];
    assert_eq!((total.calls, total.micro_usd, total.estimated), (2, 300, 0));
    assert_eq!((total.usage.input, total.usage.output), (200, 100));
    assert_eq!((total.agent.as_str(), total.model.as_str()), ("tester", "m"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_cost_nothing_and_hanging_up_early_is_not_free() {
    let dir = TempDir::new();
    let down = FakeServer::start(vec![json_answer(500, "", "{}")]).await;
    let plan = |port, ledger| RigPlan {
        models: vec![priced(port)],
        budget: per_day(1_000_000),
        ledger: Some(ledger),
        ..RigPlan::default()
    };
    let rig = plan(down.port, Ledger::open(&dir.0).unwrap()).build();
    assert_eq!(parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await).0, 500);
    assert_eq!(totals(&dir.0).unwrap()[0].micro_usd, 0);
    drop(rig);
    // A stream whose counts never come, left after its first event.
    let event = format!("data: {{\"choices\":[{{\"delta\":\"{}\"}}]}}\n\n", "x".repeat(400));
    let mut endless = sse_answer(&[event.as_str(); 400]);
    endless.0.pop();
    let server = FakeServer::start(vec![endless]).await;
    let rig = plan(server.port, Ledger::open(&dir.0).unwrap()).build();
    let mut stream = tokio::net::UnixStream::connect(rig.door.socket()).await.unwrap();
    let ask = ASK.replace("\"max", "\"stream\":true,\"max");
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{ask}",
        ask.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let mut piece = [0; 600];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut piece).await.unwrap();
    drop(stream);
    match rig.sink.wait_for("model_response").await {
        Body::ModelResponse { cost_micro_usd: Some(cost), .. } => assert!(cost >= 125, "{cost}"),
        other => panic!("{other:?}"),
    }
    let all = totals(&dir.0).unwrap();
    assert_eq!(all.iter().map(|t| t.estimated).sum::<u64>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_left_costs_nothing_also_when_it_is_given_up() {
    // Nobody listens there, so the gateway pauses between attempts.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // This one takes the request and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (port, estimated) in [(port, 0), (silent.local_addr().unwrap().port(), 1)] {
        let dir = TempDir::new();
        let ledger = Some(Ledger::open(&dir.0).unwrap());
        let models = vec![priced(port)];
        // A pause that outlasts the test: the agent hangs up in it.
        let pause = std::time::Duration::from_secs(60);
        let retry = RetryPolicy { attempts_max: 2, pause, pause_max: pause, total_max: 2 * pause };
        let budget = per_day(1_000_000);
        let rig = RigPlan { models, budget, ledger, retry, ..RigPlan::default() }.build();
        let mut stream = tokio::net::UnixStream::connect(rig.door.socket()).await.unwrap();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{ASK}",
            ASK.len()
        );
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        rig.sink.wait_for("model_request").await;
        if estimated == 1 {
            let (mut taken, _) = silent.accept().await.unwrap();
            tokio::io::AsyncReadExt::read_exact(&mut taken, &mut [0; 100]).await.unwrap();
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        drop(stream);
        match rig.sink.wait_for("model_response").await {
            Body::ModelResponse { cost_micro_usd: Some(cost), error: Some(why), .. } => {
                assert_eq!(cost > 0, estimated == 1, "{cost} {why}");
                assert!(why.contains("hung up"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(totals(&dir.0).unwrap().iter().map(|t| t.estimated).sum::<u64>(), estimated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_in_usd_wants_a_price_and_scripts_cost_nothing() {
    let server = FakeServer::start(vec![json_answer(200, "", JSON)]).await;
    let models = vec![http_model("m", ModelApi::OpenAi, server.port, None)];
    let rig = RigPlan { models, budget: per_day(1_000_000), ..RigPlan::default() }.build();
    let (status, body) = parts(&post(&rig.door, "/v1/chat/completions", "", ASK).await);
    assert!(status == 402 && body.contains("[models.m.price]"), "{body}");
    assert!(server.requests().is_empty());
    // Tokens can be counted without a price.
    let budget = Budget { tokens_per_day: Some(500), ..Budget::default() };
    let models = vec![http_model("m", ModelApi::OpenAi, server.port, None)];
    let rig = RigPlan { models, budget, ..RigPlan::default() }.build();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = post(&rig.door, "/v1/chat/completions", "", ASK).await;
        statuses.push(parts(&answer).0);
    }
    assert_eq!(statuses, [200, 200, 200, 402]);
}

fn spender(turn: Option<&str>) -> Spender {
    Spender {
        agent: AgentName::parse("tester").unwrap(),
        session: SessionId::parse("s1").unwrap(),
        turn: turn.map(|t| TurnId::parse(t).unwrap()),
        model: "m".into(),
        time_ms: NOON,
    }
}

fn tokens(n: u64) -> Usage {
    Usage { output: n, ..Usage::default() }
}

#[test]
fn many_calls_at_once_cannot_overspend_not_even_of_two_gateways() {
    let dir = TempDir::new();
    let ledgers = [Ledger::open(&dir.0).unwrap(), Ledger::open(&dir.0).unwrap()];
    let (granted, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut threads = Vec::new();
    for n in 0..16 {
        let ledger = Arc::clone(&ledgers[n % 2]);
        let (granted, refused) = (Arc::clone(&granted), Arc::clone(&refused));
        threads.push(std::thread::spawn(move || {
            for _ in 0..20 {
                match ledger.reserve(&spender(None), tokens(10), Some(PRICE), &per_day(1_000)) {
                    Ok(reservation) => {
                        granted.fetch_add(1, Ordering::SeqCst);
                        reservation.settle(tokens(10), false);
                    }
                    Err(OverBudget::Limit(_)) => drop(refused.fetch_add(1, Ordering::SeqCst)),
                    Err(other) => panic!("{other}"),
                }
            }
        }));
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!((granted.load(Ordering::SeqCst), refused.load(Ordering::SeqCst)), (100, 220));
    assert_eq!(totals(&dir.0).unwrap()[0].micro_usd, 1_000);
}

#[test]
fn turns_and_days_have_their_own_limits() {
    let ledger = Ledger::in_memory();
    let budget = Budget { micro_usd_per_turn: Some(100), ..Budget::default() };
    let take = |who: &Spender| ledger.reserve(who, tokens(60), Some(PRICE), &budget);
    take(&spender(Some("t1"))).unwrap().settle(tokens(60), false);
    let error = take(&spender(Some("t1"))).err().unwrap().to_string();
    assert!(error.contains("usd_per_turn = $0.0001 $0.00006 are spent"), "{error}");
    take(&spender(Some("t2"))).unwrap().release();
    take(&spender(Some("t2"))).unwrap();
    assert!(take(&spender(Some("t2"))).is_err(), "a reservation counts before it is settled");
    let day = |time_ms| {
        let who = Spender { time_ms, ..spender(None) };
        ledger.reserve(&who, tokens(60), Some(PRICE), &per_day(299))
    };
    day(NOON).unwrap().settle(tokens(60), false);
    day(NOON).unwrap().settle(tokens(60), false);
    assert!(day(NOON).is_err(), "the turns of that day count too");
    assert!(day(NOON + 12 * 3600 * 1000).is_ok(), "a new day begins at 00:00 UTC");
}

#[test]
fn a_restart_forgets_nothing_and_forgives_a_torn_end_only() {
    let dir = TempDir::new();
    let path = dir.0.join("usage.jsonl");
    let reserve = |ledger: &Arc<Ledger>, n| {
        ledger.reserve(&spender(Some("t1")), tokens(n), Some(PRICE), &per_day(1_000))
    };
    let ledger = Ledger::open(&dir.0).unwrap();
    reserve(&ledger, 400).unwrap().settle(tokens(300), false);
    drop(reserve(&ledger, 500).unwrap()); // the gateway dies during this call
    drop(ledger);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"id\":\"half a li");
    std::fs::write(&path, &bytes).unwrap();
    let ledger = Ledger::open(&dir.0).unwrap();
    assert!(reserve(&ledger, 201).is_err(), "300 spent and 500 never settled leave 200");
    reserve(&ledger, 200).unwrap().settle(tokens(1), false);
    drop(ledger);
    let total: u64 = totals(&dir.0).unwrap().iter().map(|t| t.micro_usd).sum();
    assert_eq!(total, 801);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"agent\"", "agent", 1)).unwrap();
    let error = Ledger::open(&dir.0).err().unwrap().to_string();
    assert!(error.contains("damaged at byte 0") && error.contains("move it away"), "{error}");
}

#[test]
fn a_long_ledger_is_shortened_when_nobody_else_has_it_open() {
    let dir = TempDir::new();
    let ledger = Ledger::open(&dir.0).unwrap();
    for _ in 0..400 {
        let held = ledger.reserve(&spender(None), tokens(5), Some(PRICE), &Budget::default());
        held.unwrap().settle(tokens(2), false);
    }
    let lines = || std::fs::read_to_string(dir.0.join("usage.jsonl")).unwrap().lines().count();
    let second = Ledger::open(&dir.0).unwrap();
    assert_eq!(lines(), 800, "another one has it open");
    drop((ledger, second));
    let ledger = Ledger::open(&dir.0).unwrap();
    assert_eq!(lines(), 1);
    assert!(ledger.reserve(&spender(None), tokens(1), Some(PRICE), &per_day(800)).is_err());
    assert_eq!(totals(&dir.0).unwrap()[0].calls, 400);
}
