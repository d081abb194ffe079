//! One client's connection, and what all of them share.
//!
//! 1. Answers never block the committer: they go to a buffer that the client's own writer empties.
//! 2. A client has at most so many records without an answer and so many bytes of answers unread;
//!    beyond that it is not read.
//! 3. Whatever a client sends, the worst that happens is that its connection ends.

use crate::commit::{Acks, Waiter};
use crate::entry::{self, ENTRY_BYTES_MAX, EncodeError, Entry, Uids};
use crate::log::{Log, Recovered};
use crate::wire::{
    Frames, FromClient, Hello, PROTOCOL, ROLE_BYTES_MAX, parse_client, push_refused, push_welcome,
    push_written,
};
use model::{Body, Durability, Record, RecordError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io::{self, Write};
use std::mem;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Records of one client that may be without an answer.
const OUTSTANDING_MAX: usize = 8_192;

/// Bytes of answers that one client may leave unread.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client that has connected says hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What answers tell the recorder's main loop. Apart from the hub: whoever holds an answer must not
/// hold the log open.
struct Tally {
    wake: OwnedFd,
    records: AtomicU64,
    failed: AtomicBool,
}

impl Tally {
    fn written(&self, index: u64) {
        self.records.fetch_max(index + 1, Ordering::AcqRel);
    }

    fn refused(&self) {
        self.failed.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The log and its clients.
pub(crate) struct Hub {
    log: Log,
    uids: Uids,
    tally: Arc<Tally>,
    seats: Mutex<(u64, HashMap<u64, UnixStream>)>,
    departed: AtomicU64,
}

impl Hub {
    pub(crate) fn new(log: Log, uids: Uids, wake: OwnedFd) -> Self {
        let records = AtomicU64::new(log.recovered().records);
        let failed = AtomicBool::new(false);
        let tally = Arc::new(Tally { wake, records, failed });
        Self { log, uids, tally, seats: Mutex::default(), departed: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, UnixStream>)> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections now.
    pub(crate) fn clients(&self) -> usize {
        self.lock().1.len()
    }

    /// Connections that have ended.
    pub(crate) fn departed(&self) -> u64 {
        self.departed.load(Ordering::Acquire)
    }

    /// Whether the log has failed.
    pub(crate) fn failed(&self) -> bool {
        self.tally.failed.load(Ordering::Acquire)
    }

    /// Records in the log, as far as answers have come.
    pub(crate) fn records(&self) -> u64 {
        self.tally.records.load(Ordering::Acquire)
    }

    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.tally.wake
    }

    pub(crate) fn clear_wake(&self) {
        // Nothing to read means nothing to clear.
        let _ = rustix::io::read(&self.tally.wake, &mut [0; 8]);
    }

    pub(crate) fn wait_for_wake(&self, left: Option<&Timespec>) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.tally.wake, PollFlags::IN)], left) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {
                self.clear_wake();
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Ends every connection; their threads then go in order.
    pub(crate) fn disconnect_all(&self) {
        for stream in self.lock().1.values() {
            // One that is gone already needs no shutdown.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    pub(crate) fn seat(self: &Arc<Self>, stream: &UnixStream) -> Option<Seat> {
        let stream = stream.try_clone().ok()?;
        let mut seats = self.lock();
        seats.0 += 1;
        let id = seats.0;
        seats.1.insert(id, stream);
        Some(Seat { hub: Arc::clone(self), id })
    }

    /// Makes a record an entry, in the memory of `spare`.
    fn encode(&self, spare: Vec<u8>, record: &Record) -> Result<Entry, RecordError> {
        let uid = self.uids.next(record.time_ms);
        entry::encode_in(spare, record, &uid).map_err(|e| match e {
            EncodeError::TooLarge { bytes } => {
                RecordError::TooLarge { bytes, max: ENTRY_BYTES_MAX }
            }
            e => RecordError::Invalid { why: e.to_string() },
        })
    }

    /// What the log had when it was opened.
    pub(crate) fn recovered(&self) -> &Recovered {
        self.log.recovered()
    }

    /// Appends a record of the recorder's own; where that fails, the log has failed.
    pub(crate) fn append_own(&self, body: Body, durability: Durability) -> Result<(), RecordError> {
        let time_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let record = Record { time_ms, session: None, agent: None, turn: None, body };
        let result = self.encode(Vec::new(), &record).and_then(|entry| {
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            self.log.submit(&entry, durability, Box::new(move |result| drop(tell.send(result))));
            told.recv().unwrap_or_else(|_| {
                Err(RecordError::Gone { cause: "the log gave no answer".to_owned() })
            })
        });
        match result {
            Ok(index) => {
                self.tally.written(index);
                Ok(())
            }
            Err(error) => {
                self.tally.refused();
                Err(error)
            }
        }
    }

    /// Signs the head over everything so far.
    pub(crate) fn sign(&self) -> Result<(), RecordError> {
        self.log.sign().map(drop)
    }

    /// Closes the log.
    pub(crate) fn close(self) -> Result<(), RecordError> {
        self.log.close()
    }
}

/// A client's place at the recorder; given up when dropped.
pub(crate) struct Seat {
    hub: Arc<Hub>,
    id: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.lock().1.remove(&self.id);
        self.hub.departed.fetch_add(1, Ordering::AcqRel);
        self.hub.tally.wake();
    }
}

#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    outstanding: usize,
    ended: bool,
    deaf: bool,
}

/// Answers on their way to one client.
struct Outbox {
    answers: Mutex<Answers>,
    changed: Condvar,
    tally: Arc<Tally>,
}

impl Acks for Outbox {
    fn written(&self, done: &[(u64, u64)]) {
        if let Some((_, index)) = done.last() {
            self.tally.written(*index);
        }
        let mut answers = self.lock();
        answers.outstanding -= done.len();
        if !answers.deaf {
            push_written(&mut answers.bytes, done);
        }
        drop(answers);
        self.changed.notify_all();
    }

    fn refused(&self, id: u64, error: RecordError) {
        if matches!(error, RecordError::Disk { .. }) {
            self.tally.refused();
        }
        let mut answers = self.lock();
        answers.outstanding -= 1;
        if !answers.deaf {
            push_refused(&mut answers.bytes, id, error);
        }
        drop(answers);
        self.changed.notify_all();
    }
}

impl Outbox {
    fn new(tally: Arc<Tally>) -> Self {
        Self { answers: Mutex::default(), changed: Condvar::new(), tally }
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, answers: MutexGuard<'a, Answers>) -> MutexGuard<'a, Answers> {
        self.changed.wait(answers).unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for one more record; waits while there is none.
    fn take_place(&self) {
        let mut answers = self.lock();
        while !answers.deaf
            && (answers.outstanding >= OUTSTANDING_MAX || answers.bytes.len() > ANSWER_BYTES_MAX)
        {
            answers = self.wait(answers);
        }
        answers.outstanding += 1;
    }

    /// Sends answers until the reader has ended and every record is answered.
    fn send(&self, mut stream: UnixStream) {
        let mut bytes = Vec::new();
        loop {
            let mut answers = self.lock();
            while answers.bytes.is_empty() && !(answers.ended && answers.outstanding == 0) {
                answers = self.wait(answers);
            }
            if answers.bytes.is_empty() {
                break;
            }
            mem::swap(&mut bytes, &mut answers.bytes);
            drop(answers);
            self.changed.notify_all();
            if stream.write_all(&bytes).is_err() {
                let mut answers = self.lock();
                answers.deaf = true;
                answers.bytes.clear();
                self.changed.notify_all();
            }
            bytes.clear();
        }
        // The client's reader sees the end; if it is gone, nobody needs to.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Serves one connection to its end.
pub(crate) fn run(seat: &Seat, stream: UnixStream, pid: u32) {
    let outbox = Arc::new(Outbox::new(Arc::clone(&seat.hub.tally)));
    let Ok(answers_to) = stream.try_clone() else { return };
    let for_writer = Arc::clone(&outbox);
    let writer = thread::Builder::new()
        .name("audit-answers".into())
        .spawn(move || for_writer.send(answers_to));
    let Ok(writer) = writer else { return };
    if stream.set_read_timeout(Some(HELLO_TIMEOUT)).is_ok() {
        let mut frames = Frames::new(&stream);
        if let Some(role) = hello(&mut frames)
            && stream.set_read_timeout(None).is_ok()
        {
            push_welcome(&mut outbox.lock().bytes);
            outbox.changed.notify_all();
            if !take_records(&seat.hub, &outbox, &mut frames) {
                // One that fails has set the hub's state, which ends the recorder.
                let _ = seat.hub.append_own(Body::ClientLost { pid, role }, Durability::Durable);
            }
        }
    }
    outbox.lock().ended = true;
    outbox.changed.notify_all();
    // It ends by itself: every record gets an answer, and a send to nobody fails.
    let _ = writer.join();
}

fn hello(frames: &mut Frames<&UnixStream>) -> Option<String> {
    match frames.next_frame().ok()?.map(parse_client)? {
        Ok(FromClient::Hello(Hello { protocol: PROTOCOL, role, .. }))
            if role.len() <= ROLE_BYTES_MAX && role.chars().all(|c| c.is_ascii_graphic()) =>
        {
            Some(role)
        }
        _ => None,
    }
}

/// Takes records until the client says bye (`true`) or is lost (`false`).
fn take_records(hub: &Hub, outbox: &Arc<Outbox>, frames: &mut Frames<&UnixStream>) -> bool {
    let mut spare = Vec::new();
    loop {
        let frame = match frames.next_frame() {
            Ok(Some(frame)) => parse_client(frame),
            Ok(None) | Err(_) => return false,
        };
        match frame {
            Ok(FromClient::Submit { id, durability, record }) => {
                outbox.take_place();
                let entry = record
                    .and_then(not_ours)
                    .and_then(|record| hub.encode(mem::take(&mut spare), &record));
                match entry {
                    Ok(entry) => {
                        let acks: Arc<dyn Acks> = outbox.clone();
                        hub.log.submit_for(&entry, durability, Waiter::Client(acks, id));
                        spare = entry.into_bytes();
                    }
                    Err(error) => outbox.refused(id, error),
                }
            }
            Ok(FromClient::Bye) => return true,
            Ok(FromClient::Hello(_)) | Err(_) => return false,
        }
    }
}

/// Only the recorder speaks for itself.
fn not_ours(record: Record) -> Result<Record, RecordError> {
    match record.body {
        Body::RecorderStarted { .. } | Body::RecorderStopped { .. } | Body::ClientLost { .. } => {
            let why = "only the recorder writes this kind of record".to_owned();
            Err(RecordError::Invalid { why })
        }
        _ => Ok(record),
    }
}
