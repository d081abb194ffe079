//! Connections through the door: a loopback connection ⇄ the session's socket, byte for byte.
//!
//! Pipeline: accepted ─► (`CONNECT` sent, 200 read) ─► bytes both ways ─► both ends closed.
//!
//! Invariants:
//! 1. Never blocks, never spins: a descriptor is polled only for what can be done with it now.
//! 2. Half-closing one direction closes exactly that direction on the other side.
//! 3. At most [`CONNECTIONS_MAX`] at a time; further ones wait in the kernel's queue.
//! 4. The door is read and written with `read` and `write`, everything else is not: so the kernel
//!    counts what went through it (see `spawner::witness`).
//! 5. Where the gateway is asked first, no byte of the program goes out before it said 200, and
//!    anything else resets the program's connection.

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use std::os::fd::OwnedFd;

/// Two descriptors each, well below the default limit of open files, and more than a browser
/// opens at once.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// One direction's buffer: a TLS record fits.
const BUFFER: usize = 16 << 10;
/// Longest head of the gateway's answer to `CONNECT`; it writes some hundred bytes.
const HEAD_MAX: usize = 4 << 10;

/// Which way a pipe leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the program into the door.
    Out,
    /// From the door to the program.
    In,
}

/// One direction of one connection.
struct Pipe {
    way: Way,
    data: Box<[u8]>,
    from: usize,
    to: usize,
    /// The source has ended.
    ended: bool,
    /// The end was passed on.
    closed: bool,
}

impl Pipe {
    fn new(way: Way) -> Self {
        Self {
            way,
            data: vec![0; BUFFER].into_boxed_slice(),
            from: 0,
            to: 0,
            ended: false,
            closed: false,
        }
    }

    /// One into the door that begins with these bytes.
    fn holding(bytes: &[u8]) -> Self {
        let mut pipe = Self::new(Way::Out);
        let length = bytes.len().min(BUFFER);
        for (to, from) in pipe.data.iter_mut().zip(bytes) {
            *to = *from;
        }
        pipe.to = length;
        pipe
    }

    fn wants_read(&self) -> bool {
        !self.ended && self.to == 0
    }

    fn wants_write(&self) -> bool {
        self.to > self.from
    }

    /// Moves what can be moved; `Err` when the connection is broken.
    fn pump(&mut self, source: &OwnedFd, sink: &OwnedFd) -> Result<(), Errno> {
        loop {
            if self.wants_read() {
                let got = match self.way {
                    Way::Out => super::receive(source, &mut self.data),
                    Way::In => super::read_door(source, &mut self.data),
                };
                match got {
                    Ok(0) => self.ended = true,
                    Ok(n) => self.to = n,
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e),
                }
            }
            while self.wants_write() {
                let rest = self.data.get(self.from..self.to).unwrap_or_default();
                let put = match self.way {
                    Way::Out => super::write_door(sink, rest),
                    Way::In => super::transmit(sink, rest),
                };
                match put {
                    Ok(n) => self.from += n,
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(e),
                }
            }
            (self.from, self.to) = (0, 0);
            if self.ended {
                if !self.closed {
                    self.closed = true;
                    shutdown(sink, Shutdown::Write)?;
                }
                return Ok(());
            }
        }
    }
}

/// One connection.
struct Connection {
    inner: OwnedFd,
    outer: OwnedFd,
    up: Pipe,
    down: Pipe,
    /// The gateway has not yet said whether it leads anywhere.
    asking: bool,
}

/// What the gateway has said so far.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Yes; the head has this length.
    Yes(usize),
    No,
    Later,
}

/// Reads the head of an answer to `CONNECT` (RFC 9110 §9.3.6).
fn verdict(head: &[u8]) -> Verdict {
    match head.windows(4).position(|w| w == b"\r\n\r\n") {
        Some(end) if head.starts_with(b"HTTP/1.1 200 ") => Verdict::Yes(end + 4),
        None if head.len() < HEAD_MAX => Verdict::Later,
        _ => Verdict::No,
    }
}

impl Connection {
    /// What to wait for at the inner and at the outer end.
    fn interests(&self) -> (PollFlags, PollFlags) {
        if self.asking {
            let outer = if self.up.wants_write() { PollFlags::OUT } else { PollFlags::IN };
            return (PollFlags::empty(), outer);
        }
        (Self::interest(&self.up, &self.down), Self::interest(&self.down, &self.up))
    }

    fn interest(read: &Pipe, write: &Pipe) -> PollFlags {
        let mut flags = PollFlags::empty();
        if read.wants_read() {
            flags |= PollFlags::IN;
        }
        if write.wants_write() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Puts the question, reads the answer. `Some(true)` when the way is open.
    fn ask(&mut self) -> Option<bool> {
        while self.up.wants_write() {
            let rest = self.up.data.get(self.up.from..self.up.to).unwrap_or_default();
            match super::write_door(&self.outer, rest) {
                Ok(n) => self.up.from += n,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(_) => return Some(false),
            }
        }
        (self.up.from, self.up.to) = (0, 0);
        loop {
            let room = self.down.data.get_mut(self.down.to..HEAD_MAX).unwrap_or_default();
            match super::read_door(&self.outer, room) {
                Ok(0) => return Some(false),
                Ok(n) => self.down.to += n,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => continue,
                Err(_) => return Some(false),
            }
            match verdict(self.down.data.get(..self.down.to).unwrap_or_default()) {
                Verdict::Later => {}
                Verdict::No => return Some(false),
                Verdict::Yes(length) => {
                    self.down.from = length;
                    if !self.down.wants_write() {
                        (self.down.from, self.down.to) = (0, 0);
                    }
                    return Some(true);
                }
            }
        }
    }

    /// Moves bytes both ways; `false` when it is over.
    fn pump(&mut self) -> bool {
        if self.asking {
            match self.ask() {
                None => return true,
                Some(true) => self.asking = false,
                Some(false) => {
                    super::reset(&self.inner);
                    return false;
                }
            }
        }
        self.up.pump(&self.inner, &self.outer).is_ok()
            && self.down.pump(&self.outer, &self.inner).is_ok()
            && !(self.up.closed && self.down.closed)
    }
}

/// All connections through one door.
pub(super) struct Relay {
    most: usize,
    connections: Vec<Connection>,
}

impl Relay {
    pub(super) fn new() -> Self {
        Self { most: CONNECTIONS_MAX, connections: Vec::new() }
    }

    /// At most so many at a time from now on.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// Whether one more can be taken.
    pub(super) fn room(&self) -> bool {
        self.connections.len() < self.most
    }

    /// Adds the descriptors to wait for, two a connection, always in this order, so that
    /// [`Relay::turn`] can match events to them.
    pub(super) fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for c in &self.connections {
            let (inner, outer) = c.interests();
            // Without interest the door's end may report "hung up" for ever while bytes still
            // wait for the inner side; then the inner side stands in for it.
            fds.push(PollFd::new(&c.inner, inner));
            if outer.is_empty() {
                fds.push(PollFd::new(&c.inner, inner));
            } else {
                fds.push(PollFd::new(&c.outer, outer));
            }
        }
    }

    /// Handles the events of [`Relay::interests`], in its order.
    pub(super) fn turn(&mut self, events: &[PollFlags]) {
        let mut pairs = events.chunks(2);
        self.connections.retain_mut(|c| {
            let pair = pairs.next().unwrap_or_default();
            let inner = pair.first().copied().unwrap_or(PollFlags::empty());
            let nothing = pair.iter().all(|e| e.is_empty());
            // Both directions of a TCP connection are gone: nobody will read or write again.
            let dead = inner.intersects(PollFlags::ERR | PollFlags::HUP)
                && (c.asking || (!c.up.wants_read() && !c.down.wants_write()));
            nothing || (!dead && c.pump())
        });
    }

    /// Takes over a connection and leads it to the socket at `path`; with a `head`, the gateway
    /// is asked first. A door that is shut closes it at once, which the program sees.
    pub(super) fn add(&mut self, inner: OwnedFd, path: &str, head: Option<&[u8]>) {
        let Some(outer) = super::dial(path) else {
            super::reset(&inner);
            return;
        };
        let up = head.map_or_else(|| Pipe::new(Way::Out), Pipe::holding);
        let down = Pipe::new(Way::In);
        let mut connection = Connection { inner, outer, up, down, asking: head.is_some() };
        if connection.pump() {
            self.connections.push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_opens_the_way_and_the_head_is_bounded() {
        assert_eq!(verdict(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nrest"), Verdict::Yes(25));
        assert_eq!(verdict(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Verdict::Later);
        for no in ["HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 2000 \r\n\r\n", "\r\n\r\n"] {
            assert_eq!(verdict(no.as_bytes()), Verdict::No, "{no:?}");
        }
        let endless = ["HTTP/1.1 200 OK\r\nA: ", &"b".repeat(HEAD_MAX)].concat();
        assert_eq!(verdict(&endless.as_bytes()[..HEAD_MAX]), Verdict::No);
    }
}
