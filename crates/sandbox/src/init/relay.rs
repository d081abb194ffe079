//! The loopback side of the door: `127.0.0.1:port` ⇄ the session's socket, byte for byte.
//!
//! Invariants:
//! 1. Never blocks, never spins: a descriptor is polled only for what can be done with it now.
//! 2. Half-closing one direction closes exactly that direction on the other side.
//! 3. At most [`CONNECTIONS_MAX`] at a time; further ones wait in the kernel's queue.

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    connect, recv, send, shutdown, socket_with, sockopt,
};
use std::os::fd::OwnedFd;

/// Two descriptors each, well below the default limit of open files, and more than a browser
/// opens at once.
const CONNECTIONS_MAX: usize = 256;
/// One direction's buffer: a TLS record fits.
const BUFFER: usize = 16 << 10;

/// One direction of one connection.
struct Pipe {
    data: Box<[u8]>,
    from: usize,
    to: usize,
    /// The source has ended.
    ended: bool,
    /// The end was passed on.
    closed: bool,
}

impl Pipe {
    fn new() -> Self {
        Self {
            data: vec![0; BUFFER].into_boxed_slice(),
            from: 0,
            to: 0,
            ended: false,
            closed: false,
        }
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
                match recv(source, &mut *self.data, rustix::net::RecvFlags::empty()) {
                    Ok((_, 0)) => self.ended = true,
                    Ok((_, n)) => self.to = n,
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e),
                }
            }
            while self.wants_write() {
                let rest = self.data.get(self.from..self.to).unwrap_or_default();
                match send(sink, rest, SendFlags::NOSIGNAL) {
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
}

impl Connection {
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

    /// Moves bytes both ways; `false` when it is over.
    fn pump(&mut self) -> bool {
        self.up.pump(&self.inner, &self.outer).is_ok()
            && self.down.pump(&self.outer, &self.inner).is_ok()
            && !(self.up.closed && self.down.closed)
    }
}

/// All connections through one door.
pub(super) struct Relay {
    listener: OwnedFd,
    path: String,
    connections: Vec<Connection>,
}

impl Relay {
    pub(super) fn new(listener: OwnedFd, path: String) -> Self {
        Self { listener, path, connections: Vec::new() }
    }

    /// Adds the descriptors to wait for: the listener, then two a connection, always in this
    /// order, so that [`Relay::turn`] can match events to them.
    pub(super) fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let open = self.connections.len() < CONNECTIONS_MAX;
        let accept = if open { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(&self.listener, accept));
        for c in &self.connections {
            let inner = Connection::interest(&c.up, &c.down);
            let outer = Connection::interest(&c.down, &c.up);
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
        let Some((accept, pairs)) = events.split_first() else { return };
        let mut pairs = pairs.chunks(2);
        self.connections.retain_mut(|c| {
            let pair = pairs.next().unwrap_or_default();
            let inner = pair.first().copied().unwrap_or(PollFlags::empty());
            let nothing = pair.iter().all(|e| e.is_empty());
            // Both directions of a TCP connection are gone: nobody will read or write again.
            let dead = inner.intersects(PollFlags::ERR | PollFlags::HUP)
                && !c.up.wants_read()
                && !c.down.wants_write();
            nothing || (!dead && c.pump())
        });
        if accept.contains(PollFlags::IN) {
            self.accept();
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while self.connections.len() < CONNECTIONS_MAX {
            let Ok(inner) = accept_with(&self.listener, flags) else { return };
            // Without it small writes wait for acknowledgements; failing costs only time.
            let _ = sockopt::set_tcp_nodelay(&inner, true);
            // A door that is shut closes the connection at once, which the program sees.
            let Some(outer) = self.dial() else { continue };
            let mut connection = Connection { inner, outer, up: Pipe::new(), down: Pipe::new() };
            if connection.pump() {
                self.connections.push(connection);
            }
        }
    }

    fn dial(&self) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        let address = SocketAddrUnix::new(self.path.as_str()).ok()?;
        connect(&socket, &address).ok()?;
        Some(socket)
    }
}
