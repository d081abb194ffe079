//! The door itself: odd requests, floods, sockets, identity.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, ModelApi, TurnId};
use nanoclaw_gateway::{
    CONNECTIONS_MAX, Door, DoorError, DoorGrant, Gateway, GatewayConfig, Vault, bind_door,
};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

#[tokio::test(flavor = "multi_thread")]
async fn odd_and_smuggled_requests_are_refused_and_reach_nobody() {
    let server = FakeServer::start(vec![json_answer(200, "", "{}")]).await;
    let models = vec![http_model("m", ModelApi::OpenAi, server.port, None)];
    let rig = RigPlan { models, ..RigPlan::default() }.build();
    let path = "/v1/chat/completions";
    let cases: Vec<(String, u16)> = vec![
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nabcde"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nabcde\r\n0\r\n\r\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcde\r\n0\r\n\r\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"), 400),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"), 413),
        (format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{{}}"), 415),
        ("GET / HTTP/1.1\nHost: x\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n X: y\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".into(), 400),
        ("GET /v1/models HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/3.0\r\nHost: x\r\n\r\n".into(), 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), 400),
        ("GET /v1/models HTTP/1.0\r\n\r\n".into(), 505),
        ("\u{16}\u{3}\u{1}\r\n\r\n".into(), 400),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(40_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(200)), 431),
        ("GET /etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), 404),
        ("POST /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into(), 404),
        ("GET /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n".into(), 426),
        ("GET /v1/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), 405),
    ];
    for (request, expected) in &cases {
        let (status, body) = parts(&raw(&rig.door, request.as_bytes()).await);
        let shown: String = request.chars().take(120).collect();
        assert_eq!(status, *expected, "{shown:?}: {body}");
    }
    assert!(server.requests().is_empty());
    assert!(rig.sink.kinds().iter().all(|kind| *kind == "egress_refused"));
    assert!(rig.sink.kinds().len() >= 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_is_bounded_and_other_doors_stay_open() {
    let rig = RigPlan::default().build();
    let other = RigPlan::default().build();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
        stream.write_all(b"GET /v1/models HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    // All are accepted in order, so the next one finds the door full.
    let mut extra = UnixStream::connect(rig.door.socket()).await.unwrap();
    let answer = read_all(&mut extra).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("128 connections"), "{answer}");
    let get = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(parts(&raw(&other.door, get.as_bytes()).await).0, 200);
    drop(held);
    for _ in 0..100 {
        if parts(&raw(&rig.door, get.as_bytes()).await).0 == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the door stayed full after its connections ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_doors_together_are_bounded_and_each_keeps_some_room_of_its_own() {
    const SHARED: usize = 30;
    const OWN: usize = 8;
    let dir = TempDir::new();
    let sink = Arc::new(MemorySink::default());
    let mut config = GatewayConfig::new(sink, Vault::open(&dir.0).unwrap());
    config.shared_connections = SHARED;
    let gateway = Gateway::new(config);
    let doors = ["d1", "d2"]
        .map(|name| gateway.open_door(grant(), bind_door(&dir.0.join(name)).unwrap()).unwrap());
    let hold = async |door: &Door, count: usize| {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut stream = UnixStream::connect(door.socket()).await.unwrap();
            stream.write_all(b"GET /v1/models HTTP/1.1\r\n").await.unwrap();
            held.push(stream);
        }
        held
    };
    let refused = async |door: &Door| {
        let mut extra = UnixStream::connect(door.socket()).await.unwrap();
        let answer = read_all(&mut extra).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("all sessions"), "{answer}");
    };
    let held = hold(&doors[0], SHARED + OWN).await;
    refused(&doors[0]).await;
    // The other session has its own room, and no more than that while the first holds the rest.
    let own = hold(&doors[1], OWN - 1).await;
    let get = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(parts(&raw(&doors[1], get.as_bytes()).await).0, 200);
    // Its place is free when the gateway has seen the end.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let last = hold(&doors[1], 1).await;
    refused(&doors[1]).await;
    drop((held, own, last));
    for _ in 0..100 {
        let both = (raw(&doors[0], get.as_bytes()).await, raw(&doors[1], get.as_bytes()).await);
        if (parts(&both.0).0, parts(&both.1).0) == (200, 200) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the doors stayed full after their connections ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_carry_the_door_s_session_and_turn_and_nothing_the_client_says() {
    let rig = RigPlan::default().build();
    rig.door.set_turn(Some(TurnId::parse("t1").unwrap()));
    let request = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nX-Session: s2\r\n\r\n";
    raw(&rig.door, request.as_bytes()).await;
    let (record, _) = rig.sink.records.lock().unwrap()[0].clone();
    assert_eq!(record.session.map(|s| s.to_string()).as_deref(), Some("s1"));
    assert_eq!(record.turn.map(|t| t.to_string()).as_deref(), Some("t1"));
    assert!(matches!(record.body, Body::EgressRefused { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_door_ends_its_connections_and_its_socket_can_be_served_again() {
    let rig = RigPlan::default().build();
    let path = rig.door.socket().to_owned();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut buf = [0; 64];
    assert!(stream.read(&mut buf).await.unwrap() > 0);
    drop(rig.door);
    read_all(&mut stream).await;
    assert!(UnixStream::connect(&path).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_kept_serves_another_gateway_at_the_same_socket() {
    let dir = TempDir::new();
    let kept = bind_door(&dir.0.join("door")).unwrap();
    let get = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for _ in 0..2 {
        let sink = Arc::new(MemorySink::default());
        let gateway = Gateway::new(GatewayConfig::new(sink, Vault::open(&dir.0).unwrap()));
        let door = gateway.open_door(grant(), kept.try_clone().unwrap()).unwrap();
        assert_eq!(parts(&raw(&door, get.as_bytes()).await).0, 200);
    }
}

fn grant() -> DoorGrant {
    let grant = serde_json::json!({
        "session": "s1", "agent": "a", "egress": [], "models": [], "default_model": null,
        "placeholder": "",
    });
    serde_json::from_value(grant).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_is_made_only_where_nobody_can_replace_it() {
    let dir = TempDir::new();
    let gateway = |dir: &TempDir| {
        let sink = Arc::new(MemorySink::default());
        Gateway::new(GatewayConfig::new(sink, Vault::open(&dir.0).unwrap()))
    };
    let gateway = gateway(&dir);
    std::fs::write(dir.0.join("file"), "keep me").unwrap();
    let why = |path: &str| {
        let error = bind_door(&dir.0.join(path)).unwrap_err().into_inner().unwrap();
        *error.downcast::<DoorError>().unwrap()
    };
    assert!(matches!(why("file"), DoorError::Occupied { .. }));
    assert_eq!(std::fs::read_to_string(dir.0.join("file")).unwrap(), "keep me");
    drop(std::os::unix::net::UnixListener::bind(dir.0.join("stale")).unwrap());
    assert!(bind_door(&dir.0.join("stale")).is_ok());
    let open = dir.0.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(why("open/s"), DoorError::OpenFolder { .. }));
    let listener = bind_door(&dir.0.join("s")).unwrap();
    let try_open = |grant| gateway.open_door(grant, listener.try_clone().unwrap());
    let mut wrong = grant();
    wrong.default_model = Some("none".into());
    assert!(matches!(try_open(wrong), Err(DoorError::UnknownDefault { .. })));
    let mut wrong = grant();
    wrong.models = vec![http_model("m", ModelApi::OpenAi, 1, None)];
    wrong.models[0].base_url = "http://api.example.com".into();
    assert!(matches!(try_open(wrong), Err(DoorError::Endpoint { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_never_bring_a_door_down() {
    let rig = RigPlan::default().build();
    let mut state = 0x1234_5678_9ABC_DEF1_u64;
    for _ in 0..500 {
        let mut bytes = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec();
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = (state as usize >> 8) % bytes.len();
            bytes[at] = state as u8;
        }
        let mut stream = UnixStream::connect(rig.door.socket()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        read_all(&mut stream).await;
    }
    let get = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(parts(&raw(&rig.door, get.as_bytes()).await).0, 200);
}
