//! The two threads between the client and the agent's pipes.

use super::{AcpError, MAX_FRAME_BYTES};
use crate::rpc::{self, Frame, Incoming};
use serde_json::Value;
use std::io::{BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

/// Frames read and not yet handled. A full queue stops the reader, and with it the agent.
const INBOUND_FRAMES: usize = 64;
/// Frames to the agent not yet written. Only an agent that does not read fills it.
const OUTBOUND_FRAMES: usize = 64;
/// The threads only move bytes.
const THREAD_STACK_BYTES: usize = 256 << 10;

/// What the reader saw.
pub(super) enum Event {
    Request {
        id: Value,
        method: String,
        params: Value,
    },
    Notification {
        method: String,
        params: Value,
    },
    Response {
        id: Value,
        result: Result<Value, Value>,
    },
    /// Nothing came; look at the cancelled flag.
    Wake,
}

type Received = Result<(Event, usize), AcpError>;

pub(super) struct Link {
    inbound: Receiver<Received>,
    wake: SyncSender<Received>,
    outbound: Arc<SyncSender<Vec<u8>>>,
}

/// Wakes whoever waits for the agent, and sends one frame. Does not keep the agent's stdin open.
#[derive(Clone)]
pub(super) struct Waker {
    wake: SyncSender<Received>,
    outbound: Weak<SyncSender<Vec<u8>>>,
}

impl Waker {
    pub(super) fn notify(&self, frame: Vec<u8>) {
        // Where a queue is full its reader is awake anyway, and the grace period decides.
        if let Some(outbound) = self.outbound.upgrade() {
            let _ = outbound.try_send(frame);
        }
        let _ = self.wake.try_send(Ok((Event::Wake, 0)));
    }
}

impl Link {
    pub(super) fn start(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<Self, AcpError> {
        let (wake, inbound) = sync_channel(INBOUND_FRAMES);
        let (outbound, frames) = sync_channel::<Vec<u8>>(OUTBOUND_FRAMES);
        let events = wake.clone();
        spawn("acp-read", move || read_all(reader, &events))?;
        spawn("acp-write", move || write_all(writer, &frames))?;
        Ok(Self { inbound, wake, outbound: Arc::new(outbound) })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker { wake: self.wake.clone(), outbound: Arc::downgrade(&self.outbound) }
    }

    pub(super) fn send(&self, frame: Vec<u8>) -> Result<(), AcpError> {
        self.outbound.try_send(frame).map_err(|e| match e {
            TrySendError::Full(_) => AcpError::Stuck,
            TrySendError::Disconnected(_) => AcpError::Closed,
        })
    }

    pub(super) fn receive(&self, deadline: Option<Instant>) -> Received {
        let Some(deadline) = deadline else {
            return self.inbound.recv().unwrap_or(Err(AcpError::Closed));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.inbound.recv_timeout(left).unwrap_or_else(|e| match e {
            RecvTimeoutError::Timeout => Err(AcpError::Timeout),
            RecvTimeoutError::Disconnected => Err(AcpError::Closed),
        })
    }

    /// Throws away updates that came after the last turn had ended, at most a queue full of
    /// them. An error found on the way is put back for the next wait.
    pub(super) fn discard_stale(&self) {
        for _ in 0..INBOUND_FRAMES {
            match self.inbound.try_recv() {
                Ok(Ok((Event::Notification { .. } | Event::Wake, _))) => {}
                Ok(kept) => {
                    let _ = self.wake.try_send(kept);
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), AcpError> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(work)
        .map(|_| ())
        .map_err(|e| AcpError::Io { cause: e.to_string() })
}

/// Ends at the agent's end, at the first bad frame, or when nobody listens any more.
fn read_all(reader: impl Read, events: &SyncSender<Received>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        let received = read_one(&mut reader, &mut line);
        let last = received.is_err();
        if events.send(received).is_err() || last {
            return;
        }
        // A large frame's buffer is not kept for the small ones that follow.
        line.shrink_to(64 << 10);
    }
}

fn read_one(reader: &mut BufReader<impl Read>, line: &mut Vec<u8>) -> Received {
    match rpc::read_frame(reader, MAX_FRAME_BYTES, line) {
        Ok(Frame::Line) => {}
        Ok(Frame::TooLong) => return Err(AcpError::FrameTooLarge { max: MAX_FRAME_BYTES }),
        Ok(Frame::End) => return Err(AcpError::Closed),
        Err(e) => return Err(AcpError::Io { cause: e.to_string() }),
    }
    let event = match rpc::parse(line) {
        Ok(Incoming::Request { id, method, params }) => Event::Request { id, method, params },
        Ok(Incoming::Notification { method, params }) => Event::Notification { method, params },
        Ok(Incoming::Response { id, result }) => Event::Response { id, result },
        Err(_) => {
            let sample = rpc::one_line(&String::from_utf8_lossy(&line[..line.len().min(200)]), 200);
            return Err(AcpError::Garbage { sample });
        }
    };
    Ok((event, line.len()))
}

fn write_all(mut writer: impl Write, frames: &Receiver<Vec<u8>>) {
    while let Ok(frame) = frames.recv() {
        if writer.write_all(&frame).and_then(|()| writer.flush()).is_err() {
            return; // the reader sees the end and tells
        }
    }
}
