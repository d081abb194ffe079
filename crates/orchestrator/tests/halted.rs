//! A queue that the store will not let go on is said aloud, and its messages are kept.

// Helpers of tests fail by panicking.
#![allow(clippy::expect_used, clippy::panic)]

use model::{AgentName, Durability, MessageId, Record, RecordSink, SessionId, TurnId};
use nanoclaw_orchestrator::{
    AgentHost, AgentLink, Cancel, Engine, Failure, Incoming, Progress, SessionSeed, TurnDone, World,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use store::{MessageState, NewMessage, NewSession, Owner, Store};
use testkit::TempDir;

/// Takes every record.
struct Sink;

impl RecordSink for Sink {
    fn submit(&self, _: Record, _: Durability, done: model::Done) {
        done(Ok(1));
    }
}

/// Counts on.
#[derive(Default)]
struct Count(AtomicU32);

impl World for Count {
    fn now_ms(&self) -> u64 {
        5_000
    }

    fn random(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn salt(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// An agent that is never to be asked.
struct Idle;

impl Cancel for Idle {
    fn cancel(&self) {}
}

impl AgentLink for Idle {
    fn prompt(
        &mut self,
        turn: &TurnId,
        _: &str,
        _: &mut dyn FnMut(Progress),
    ) -> Result<TurnDone, Failure> {
        panic!("{turn} was begun though the store refused it");
    }

    fn canceller(&self) -> Box<dyn Cancel> {
        Box::new(Self)
    }

    fn stop(self: Box<Self>, _: &str) {}
}

struct Host;

impl AgentHost for Host {
    fn start(&self, _: &SessionSeed) -> Result<Box<dyn AgentLink>, Failure> {
        Ok(Box::new(Idle))
    }
}

fn owner() -> Owner {
    Owner::this_process().expect("/proc")
}

#[test]
fn whoever_waits_hears_that_the_store_refused() {
    let dir = TempDir::new("halted").expect("folder");
    let path = dir.join("store.db");
    let agent = AgentName::parse("helper").expect("name");
    // A turn of the same session runs already, in a process that is alive.
    let mut other = Store::open(&path, owner()).expect("the store opens");
    let id = SessionId::mint(1, 1);
    let new = NewSession {
        workspace: id.to_string(),
        id,
        agent: agent.clone(),
        channel: "terminal".into(),
        chat: "main".into(),
        now_ms: 1_000,
    };
    let (session, _) = other.open_session(&new).expect("opens");
    let first = NewMessage {
        id: MessageId::mint(1_000, 1),
        channel: "terminal".into(),
        platform_id: "p1".into(),
        chat: "main".into(),
        user: "me".into(),
        text: "first".into(),
        salt: vec![7; 16],
        received_ms: 1_000,
        session: Some(session.id.clone()),
    };
    other.receive(&first).expect("kept");
    other.start_turn(&TurnId::mint(2_000, 1), &first.id, 2_000).expect("begins");

    let (tell, told) = mpsc::channel();
    let engine = Engine::new(
        Store::open(&path, owner()).expect("the store opens"),
        Arc::new(Sink),
        Arc::new(Host),
        Arc::new(Count::default()),
        Box::new(move |_, progress| drop(tell.send(progress))),
    );
    let incoming = Incoming {
        channel: "terminal".into(),
        chat: "main".into(),
        platform_id: "p2".into(),
        user: "me".into(),
        text: "second".into(),
        agent,
    };
    let submitted = engine.submit(&incoming).expect("kept");
    match told.recv_timeout(Duration::from_secs(20)).expect("something is said") {
        Progress::Halted(why) => assert!(why.contains("in the middle of another turn"), "{why}"),
        other => panic!("{other:?}"),
    }
    engine.shutdown("the test is over");
    let kept = other.message(&submitted.message).expect("read");
    assert_eq!(kept.state, MessageState::Queued);
}
