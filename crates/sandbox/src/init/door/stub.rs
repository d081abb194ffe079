//! The name server of the sandbox: 127.0.0.1:53, UDP and TCP. It knows nothing itself; the
//! gateway says which names exist for this session.
//!
//! Pipeline: packet ─► `message::read` ─► known? ─► answer
//!                                          └─► `GET /.nanoclaw/name/HOST` at the door ─► answer
//!
//! Invariants:
//! 1. Never blocks: every descriptor is polled, and is read no more while there is no room for
//!    what it may bring.
//! 2. Every question that can be answered is answered within [`ASK_TIME`], so that programs need
//!    not wait for their own time-outs.
//! 3. Bounded: [`ASKS_MAX`] names being asked about, [`ASKERS_MAX`] waiting, [`STREAMS_MAX`] TCP
//!    connections, and the tables of `names`.
//! 4. A name that the gateway did not permit within the last half minute has no answer.

use super::message::{self, Code, PACKET_MAX, Query, Read};
use super::names::{Known, Names};
use model::HostName;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, recv, recvfrom, send, sendto};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Names asked about at once; each is one connection through the door.
const ASKS_MAX: usize = 32;
/// Questions that wait for an answer; below a hundred kilobytes.
const ASKERS_MAX: usize = 256;
/// TCP connections at once; only answers too long for UDP need one, and there are none.
const STREAMS_MAX: usize = 16;
/// The gateway answers within a millisecond; this is for one that is being restarted. Shorter
/// than the resolvers' own time-out (`/etc/resolv.conf`).
const ASK_TIME: Duration = Duration::from_secs(4);
/// A TCP connection on which nothing is asked is closed.
const STREAM_TIME: Duration = Duration::from_secs(10);
/// Packets taken from one descriptor before the others have their turn.
const PACKETS_A_TURN: usize = 32;
/// `HTTP/1.1 204`.
const STATUS_LINE: usize = 12;

/// Where an answer goes.
#[derive(Debug)]
enum Via {
    Packet(SocketAddrAny),
    Stream(u64),
}

/// A name that the gateway is being asked about, and who wants to know.
#[derive(Debug)]
struct Ask {
    name: HostName,
    door: OwnedFd,
    head: [u8; STATUS_LINE],
    got: usize,
    deadline: Instant,
    askers: Vec<(Via, Query)>,
}

/// What the gateway said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Permitted,
    Refused,
    Nothing,
}

impl Ask {
    /// Reads on; `None` while more must come.
    fn hear(&mut self) -> Option<Said> {
        loop {
            let rest = self.head.get_mut(self.got..).unwrap_or_default();
            match super::read_door(&self.door, rest) {
                Ok(0) => return Some(Said::Nothing),
                Ok(n) => self.got += n,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(_) => return Some(Said::Nothing),
            }
            if self.got == STATUS_LINE {
                return Some(said(&self.head));
            }
        }
    }
}

/// What a status line says.
fn said(head: &[u8; STATUS_LINE]) -> Said {
    match head.strip_prefix(b"HTTP/1.1 ") {
        Some(b"204") => Said::Permitted,
        Some(b"403") => Said::Refused,
        _ => Said::Nothing,
    }
}

/// One TCP connection: two bytes of length before each message (RFC 1035 §4.2.2). One question
/// at a time; the next is read when the answer is gone.
#[derive(Debug)]
struct Stream {
    number: u64,
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    waits: bool,
    deadline: Instant,
}

/// What a stream has come to.
enum Step {
    Packet(Vec<u8>),
    Later,
    Gone,
}

impl Stream {
    fn interest(&self, room: bool) -> PollFlags {
        if !self.output.is_empty() {
            PollFlags::OUT
        } else if self.waits || !room {
            PollFlags::empty()
        } else {
            PollFlags::IN
        }
    }

    fn reply(&mut self, message: &[u8], now: Instant) {
        // At most 512 bytes: see `Query::answer`.
        let length = u16::try_from(message.len()).unwrap_or(0);
        self.output = [&length.to_be_bytes()[..], message].concat();
        (self.sent, self.waits, self.deadline) = (0, false, now + STREAM_TIME);
    }

    /// Writes what is to be written, then reads on to the end of one message.
    fn step(&mut self) -> Step {
        while let Some(rest) = self.output.get(self.sent..).filter(|r| !r.is_empty()) {
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Step::Later,
                Err(Errno::INTR) => {}
                Err(_) => return Step::Gone,
            }
        }
        self.output = Vec::new();
        if self.waits {
            return Step::Later;
        }
        loop {
            let wanted = match self.input.first_chunk::<2>() {
                None => 2,
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            };
            if wanted > 2 + PACKET_MAX {
                return Step::Gone;
            }
            if self.input.len() == wanted && wanted > 2 {
                let packet = self.input.split_off(2);
                self.input = Vec::new();
                return Step::Packet(packet);
            }
            let at = self.input.len();
            // An empty message asks for nothing, now or ever.
            if at == wanted {
                return Step::Gone;
            }
            self.input.resize(wanted, 0);
            let got = recv(
                &self.socket,
                self.input.get_mut(at..).unwrap_or_default(),
                RecvFlags::empty(),
            );
            self.input.truncate(at + got.as_ref().map_or(0, |(_, n)| *n));
            match got {
                Ok((_, 0)) => return Step::Gone,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Step::Later,
                Err(_) => return Step::Gone,
            }
        }
    }
}

/// The name server.
#[derive(Debug)]
pub(super) struct Stub {
    socket: OwnedFd,
    door: String,
    names: Names,
    asks: Vec<Ask>,
    streams: Vec<Stream>,
    /// Number of the next stream.
    next: u64,
}

impl Stub {
    pub(super) fn new(socket: OwnedFd, door: String) -> Self {
        let (asks, streams) = (Vec::new(), Vec::new());
        Self { socket, door, names: Names::default(), asks, streams, next: 0 }
    }

    /// The name that was dialled.
    pub(super) fn dialled(&mut self, address: Ipv4Addr, now: Instant) -> Option<&str> {
        self.names.dialled(address, now)
    }

    /// Takes over a TCP connection, if there is room.
    pub(super) fn adopt(&mut self, socket: OwnedFd, now: Instant) {
        if self.streams.len() < STREAMS_MAX {
            self.next += 1;
            self.streams.push(Stream {
                number: self.next,
                socket,
                input: Vec::new(),
                output: Vec::new(),
                sent: 0,
                waits: false,
                deadline: now + STREAM_TIME,
            });
        }
    }

    /// Whether one more question can be taken.
    fn room(&self) -> bool {
        let askers: usize = self.asks.iter().map(|a| a.askers.len()).sum();
        self.asks.len() < ASKS_MAX && askers < ASKERS_MAX
    }

    /// Adds the descriptors to wait for: the socket, the streams, the door's; [`Stub::turn`]
    /// wants their events in this order.
    pub(super) fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let room = self.room();
        let packets = if room { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(&self.socket, packets));
        fds.extend(self.streams.iter().map(|s| PollFd::new(&s.socket, s.interest(room))));
        fds.extend(self.asks.iter().map(|a| PollFd::new(&a.door, PollFlags::IN)));
    }

    /// How many [`Stub::interests`] adds.
    pub(super) fn count(&self) -> usize {
        1 + self.streams.len() + self.asks.len()
    }

    /// When [`Stub::turn`] must be called even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let asks = self.asks.iter().map(|a| a.deadline);
        asks.chain(self.streams.iter().map(|s| s.deadline)).min()
    }

    /// Handles the events of [`Stub::interests`] and what is overdue.
    pub(super) fn turn(&mut self, events: &[PollFlags], now: Instant) {
        let mut events = events.iter().copied().chain(std::iter::repeat(PollFlags::empty()));
        let packets = !events.next().unwrap_or(PollFlags::empty()).is_empty();
        let streams: Vec<PollFlags> = events.by_ref().take(self.streams.len()).collect();
        let asks: Vec<PollFlags> = events.take(self.asks.len()).collect();
        self.hear(&asks, now);
        // While they are served they are not among the others: an answer that comes at once goes
        // straight to them.
        let mut served = std::mem::take(&mut self.streams);
        let mut events = streams.into_iter();
        served.retain_mut(|s| {
            let event = events.next().unwrap_or(PollFlags::empty());
            s.deadline > now && (event.is_empty() || self.serve(s, event, now))
        });
        served.append(&mut self.streams);
        self.streams = served;
        if packets {
            self.packets(now);
        }
    }

    /// What the gateway says, and silence that has lasted too long.
    fn hear(&mut self, events: &[PollFlags], now: Instant) {
        let mut told = Vec::new();
        let mut events = events.iter();
        let mut at = 0;
        while let Some(ask) = self.asks.get_mut(at) {
            let event = events.next().is_some_and(|e| !e.is_empty());
            let said = if event { ask.hear() } else { None };
            match said.or_else(|| (ask.deadline <= now).then_some(Said::Nothing)) {
                Some(said) => told.push((self.asks.remove(at), said)),
                None => at += 1,
            }
        }
        for (ask, said) in told {
            self.tell(ask, said, now);
        }
    }

    /// Answers everybody who asked for this name.
    fn tell(&mut self, ask: Ask, said: Said, now: Instant) {
        let (code, address) = match said {
            Said::Permitted => match self.names.permit(ask.name.as_str(), now) {
                Some(address) => (Code::Fine, Some(address)),
                None => (Code::Failure, None),
            },
            Said::Refused => {
                self.names.refuse(ask.name.as_str(), now);
                (Code::NoName, None)
            }
            Said::Nothing => (Code::Failure, None),
        };
        for (via, query) in ask.askers {
            let message = query.answer(code, address);
            match via {
                Via::Packet(to) => self.send(&message, &to),
                Via::Stream(number) => {
                    if let Some(stream) = self.streams.iter_mut().find(|s| s.number == number) {
                        stream.reply(&message, now);
                    }
                }
            }
        }
    }

    /// A packet that cannot be sent is one that was lost.
    fn send(&self, message: &[u8], to: &SocketAddrAny) {
        let _ = sendto(&self.socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT, to);
    }

    /// Some packets, as long as there is room.
    fn packets(&mut self, now: Instant) {
        // One byte more: what fills it was longer than may be.
        let mut buffer = [0; PACKET_MAX + 1];
        for _ in 0..PACKETS_A_TURN {
            if !self.room() {
                return;
            }
            let got = recvfrom(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT);
            let Ok((_, length, Some(from))) = got else { return };
            match message::read(buffer.get(..length).unwrap_or_default()) {
                Read::Silence => {}
                Read::Reply(reply) => self.send(&reply, &from),
                Read::Query(query) => {
                    if let Some(reply) = self.question(query, Via::Packet(from.clone()), now) {
                        self.send(&reply, &from);
                    }
                }
            }
        }
    }

    /// One stream's turn; `false` when it is over.
    fn serve(&mut self, stream: &mut Stream, event: PollFlags, now: Instant) -> bool {
        if stream.waits && event.intersects(PollFlags::ERR | PollFlags::HUP) {
            return false;
        }
        for _ in 0..PACKETS_A_TURN {
            let packet = match stream.step() {
                Step::Packet(packet) => packet,
                Step::Later => return true,
                Step::Gone => return false,
            };
            match message::read(&packet) {
                Read::Silence => return false,
                Read::Reply(reply) => stream.reply(&reply, now),
                Read::Query(query) => match self.question(query, Via::Stream(stream.number), now) {
                    Some(reply) => stream.reply(&reply, now),
                    None => stream.waits = true,
                },
            }
            if !self.room() {
                return true;
            }
        }
        true
    }

    /// The answer, if it is known; else the gateway is asked and the answer comes later.
    fn question(&mut self, query: Query, via: Via, now: Instant) -> Option<Vec<u8>> {
        let Some(name) = query.name.clone() else {
            return Some(query.answer(Code::NoName, None));
        };
        // RFC 6761 §6.3.
        if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
            return Some(query.answer(Code::Fine, Some(Ipv4Addr::LOCALHOST)));
        }
        // Addresses have no names here; asking would only put a line into the log.
        if name.as_str().ends_with(".arpa") {
            return Some(query.answer(Code::NoName, None));
        }
        match self.names.look(name.as_str(), now) {
            Known::Address(address) => return Some(query.answer(Code::Fine, Some(address))),
            Known::Refused => return Some(query.answer(Code::NoName, None)),
            Known::Nothing => {}
        }
        if let Some(ask) = self.asks.iter_mut().find(|a| a.name == name) {
            ask.askers.push((via, query));
            return None;
        }
        let Some(door) = self.ask(&name) else {
            return Some(query.answer(Code::Failure, None));
        };
        let askers = vec![(via, query)];
        let (head, deadline) = ([0; STATUS_LINE], now + ASK_TIME);
        self.asks.push(Ask { name, door, head, got: 0, deadline, askers });
        None
    }

    /// Puts the question to the gateway.
    fn ask(&self, name: &HostName) -> Option<OwnedFd> {
        let door = super::dial(&self.door)?;
        let request = format!(
            "GET /.nanoclaw/name/{name} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
        );
        // A fresh socket takes these few hundred bytes whole, or something is wrong.
        let sent = super::write_door(&door, request.as_bytes()).ok()?;
        (sent == request.len()).then_some(door)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_204_permits_and_only_403_refuses() {
        assert_eq!(said(b"HTTP/1.1 204"), Said::Permitted);
        assert_eq!(said(b"HTTP/1.1 403"), Said::Refused);
        for other in [b"HTTP/1.1 200", b"HTTP/1.0 204", b"HTTP/1.1 503", b"            "] {
            assert_eq!(said(other), Said::Nothing);
        }
    }
}
