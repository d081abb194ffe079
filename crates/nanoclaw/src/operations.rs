//! What the kernel reports of a sandbox, put on record under the turn in which it happened.
//!
//! ```text
//! sandbox::Operations ─► a thread ─► records, ordered ─► all taken ─► room for more reports
//!                          ▲ the turn                 └► one refused ─► the sandbox is killed
//! ```
//!
//! Invariants:
//! 1. The order of the reports is the order of the records.
//! 2. Room is made for further ones by the recorder's answers alone: while nothing can be recorded,
//!    nothing is executed.
//! 3. An image belongs to the turn of its execution, whenever it is seen.

use crate::scribe::Scribe;
use model::{Body, Done, Durability, RecordError, TurnId};
use sandbox::{Operation, Operations, Prepared, Sandbox};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long the end of a turn or of a tool call waits for what was reported before it. It takes a
/// tenth of a millisecond; reports that come later are on record all the same, without the turn.
const SETTLE_TIME: Duration = Duration::from_millis(500);

#[derive(Default)]
struct State {
    turn: Option<TurnId>,
    /// The newest mark that came.
    mark: u64,
    late: bool,
    over: bool,
    failed: Option<RecordError>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The taking of one sandbox's reports; without any where they are not wanted.
pub(crate) struct Reports {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Reports {
    /// Begins to take them, before the program runs. `server`: the server of tools it is.
    pub(crate) fn take(
        prepared: &mut Prepared,
        scribe: &Scribe,
        server: Option<&str>,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let Some(operations) = prepared.operations() else {
            return Ok(Self { shared, thread: None });
        };
        let taker = Taker {
            scribe: scribe.clone(),
            server: server.map(str::to_owned),
            shared: Arc::clone(&shared),
            turns: HashMap::new(),
        };
        let run = move || taker.run(&operations);
        let thread = Builder::new().name("operations".into()).spawn(run)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What is reported from now on belongs to this turn.
    pub(crate) fn set_turn(&self, turn: Option<TurnId>) {
        self.shared.lock().turn = turn;
    }

    /// Ends a turn: what happened in it is recorded under it.
    pub(crate) fn settle(&self, sandbox: &Sandbox) {
        self.catch_up(sandbox);
        self.set_turn(None);
    }

    /// Waits until what was reported so far is on record.
    pub(crate) fn catch_up(&self, sandbox: &Sandbox) {
        if self.thread.is_some()
            && let Ok(mark) = sandbox.mark()
        {
            let until = Instant::now() + SETTLE_TIME;
            let mut state = self.shared.lock();
            while state.mark < mark && !state.over {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.late = true;
                    break;
                }
                let waited = self.shared.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Whether reports once came later than they were waited for: where they stand among other
    /// records then means nothing.
    pub(crate) fn late(&self) -> bool {
        self.shared.lock().late
    }

    /// Why its sandbox was killed, if a report could not be put on record.
    pub(crate) fn failed(&self) -> Option<RecordError> {
        self.shared.lock().failed.clone()
    }

    /// Waits until everything is on record; the sandbox has ended.
    pub(crate) fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            // One that panicked has recorded what it could; the counts show the rest missing.
            drop(thread.join());
        }
    }
}

struct Taker {
    scribe: Scribe,
    server: Option<String>,
    shared: Arc<Shared>,
    /// Turns of executions whose images are not known yet; as many as a window holds.
    turns: HashMap<u64, Option<TurnId>>,
}

impl Taker {
    fn run(mut self, operations: &Operations) {
        while let Some(batch) = operations.next_batch() {
            let mark = batch.iter().rev().find_map(|operation| match operation {
                Operation::Mark(number) => Some(*number),
                _ => None,
            });
            match self.record(&batch) {
                Ok(()) => operations.taken(&batch),
                Err(error) => {
                    operations.kill();
                    self.shared.change(|state| state.failed = Some(error));
                    break;
                }
            }
            if let Some(mark) = mark {
                self.shared.change(|state| state.mark = mark);
            }
        }
        self.shared.change(|state| state.over = true);
    }

    /// Submits them all and waits for all answers.
    fn record(&mut self, batch: &[Operation]) -> Result<(), RecordError> {
        let (tell, told) = mpsc::channel();
        for operation in batch {
            let Some((turn, body)) = self.body(operation) else { continue };
            let tell = tell.clone();
            // Whoever waits has gone on after the first refusal.
            let done: Done = Box::new(move |result| drop(tell.send(result)));
            self.scribe.submit(turn.as_ref(), body, Durability::Ordered, done);
        }
        drop(tell);
        told.iter().try_for_each(|result: Result<u64, RecordError>| result.map(drop))
    }

    fn body(&mut self, operation: &Operation) -> Option<(Option<TurnId>, Body)> {
        let turn = self.shared.lock().turn.clone();
        let body = body(operation, self.server.as_deref())?;
        let turn = match operation {
            Operation::Executed(execution) => {
                self.turns.insert(execution.number, turn.clone());
                turn
            }
            Operation::Image(image) => self.turns.remove(&image.number).unwrap_or(turn),
            _ => turn,
        };
        Some((turn, body))
    }
}

/// The record of a report; a mark has none.
fn body(operation: &Operation, server: Option<&str>) -> Option<Body> {
    let server = server.map(str::to_owned);
    Some(match operation {
        Operation::Executed(e) => Body::ProcessExec {
            exec: e.number,
            pid: e.pid,
            path: e.path.clone(),
            argv: e.argv.clone(),
            cwd: e.cwd.clone(),
            whole: e.whole,
            racy: true,
            server,
            unread: e.unread.clone(),
        },
        Operation::Image(image) => Body::ProcessImage {
            exec: image.number,
            pid: image.pid,
            image: image.seen.clone().ok(),
            unseen: image.seen.clone().err(),
        },
        Operation::Refused(refusal) => Body::ConnectRefused {
            pid: refusal.pid,
            call: refusal.call.clone(),
            target: refusal.target.clone(),
            errno: refusal.errno.clone(),
            racy: refusal.racy,
            server,
        },
        Operation::Lost { count, reason } => {
            Body::WitnessGap { lost: *count, reason: reason.clone() }
        }
        Operation::Mark(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AgentName, Record, RecordSink, SessionId};
    use sandbox::{Execution, Image};

    /// Keeps what it is given; refuses what comes after so many.
    struct Sink(Mutex<Vec<Record>>, usize);

    impl RecordSink for Sink {
        fn submit(&self, record: Record, _: Durability, done: Done) {
            let mut all = self.0.lock().expect("whole");
            let full = all.len() >= self.1;
            if !full {
                all.push(record);
            }
            let count = all.len() as u64;
            drop(all);
            done(if full { Err(RecordError::Disk { cause: "full".into() }) } else { Ok(count) });
        }
    }

    fn taker(sink: &Arc<Sink>) -> Taker {
        let scribe = Scribe {
            sink: Arc::clone(sink) as Arc<dyn RecordSink>,
            session: SessionId::parse("s1").expect("valid"),
            agent: AgentName::parse("a").expect("valid"),
        };
        Taker { scribe, server: None, shared: Arc::default(), turns: HashMap::new() }
    }

    fn executed(number: u64) -> Operation {
        Operation::Executed(Execution {
            number,
            pid: 7,
            path: "/bin/sh".into(),
            argv: vec!["sh".into()],
            cwd: None,
            whole: true,
            unread: None,
        })
    }

    fn image(number: u64) -> Operation {
        Operation::Image(Image { number, pid: 7, seen: Ok("/usr/bin/dash".into()) })
    }

    #[test]
    fn an_image_belongs_to_the_turn_of_its_execution() {
        let sink = Arc::new(Sink(Mutex::default(), 100));
        let mut taker = taker(&sink);
        let turn = |name: &str| Some(TurnId::parse(name).expect("valid"));
        taker.shared.lock().turn = turn("t1");
        taker.record(&[executed(1), executed(2)]).expect("recorded");
        taker.shared.lock().turn = None;
        taker.record(&[image(1), Operation::Mark(1), executed(3)]).expect("recorded");
        taker.shared.lock().turn = turn("t2");
        taker.record(&[image(3), image(2)]).expect("recorded");
        let all = sink.0.lock().expect("whole");
        let found: Vec<_> = all.iter().map(|r| (r.body.kind(), r.turn.clone())).collect();
        assert_eq!(
            found,
            [
                ("process_exec", turn("t1")),
                ("process_exec", turn("t1")),
                ("process_image", turn("t1")),
                ("process_exec", None),
                ("process_image", None),
                ("process_image", turn("t1")),
            ]
        );
        assert!(taker.turns.is_empty());
    }

    #[test]
    fn a_report_that_cannot_be_recorded_is_an_error_of_the_batch() {
        let sink = Arc::new(Sink(Mutex::default(), 1));
        let mut taker = taker(&sink);
        assert!(taker.record(&[executed(1)]).is_ok());
        assert!(matches!(taker.record(&[executed(2), image(1)]), Err(RecordError::Disk { .. })));
    }
}
