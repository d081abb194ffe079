//! The inner side of the door: what listens on the sandbox's loopback, and where it leads.
//!
//! Pipeline: connection ─► local address dialled ─► 127.0.0.1: the explicit relay or the name
//! server; an address of a name: `CONNECT name:port` at the door ─► relay; any other: reset.
//!
//! Invariants:
//! 1. All sockets are bound before capabilities fall and none is bound later.
//! 2. Which name is meant follows from the address that was dialled alone, never from what is
//!    sent; whether it may be reached is the gateway's to say, each time.
//! 3. One thread, nothing blocks; no timer runs while nothing is asked.
//! 4. The door's connections are read and written by `read` and `write` alone, and nothing else in
//!    this process is, once the program runs: the kernel's count of the bytes that this process
//!    has read and written is then that of the door's.

mod message;
mod names;
mod relay;
mod stub;

use relay::Relay;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, connect, getsockname, listen, recv, send, socket_with, sockopt,
};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use stub::Stub;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Where resolvers look (RFC 1035 §4.2).
pub(crate) const NAME_PORT: u16 = 53;
/// When the kernel has no descriptor or memory for one more connection, it is asked again so much
/// later: the connection still waits and would wake the loop at once, for ever.
const REST: Duration = Duration::from_millis(100);
/// Connections taken from one listener before the others have their turn.
const ACCEPTS_A_TURN: usize = 64;
/// Descriptors left to everything but relayed connections.
const RESERVE: u64 = 160;

/// What listens.
pub(super) struct Door {
    /// The gateway's socket.
    path: String,
    /// The port of 127.0.0.1 that leads there as it is.
    port: u16,
    listeners: Vec<Listener>,
    relay: Relay,
    stub: Option<Stub>,
    /// No connection is accepted before.
    rests: Option<Instant>,
}

struct Listener {
    socket: OwnedFd,
    port: u16,
}

impl Door {
    /// Listens on `127.0.0.1:port` and relays to the socket at `path`.
    pub(super) fn open(path: &str, port: u16) -> io::Result<Self> {
        let socket = bound(SocketType::STREAM, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        Ok(Self {
            path: path.to_owned(),
            port,
            listeners: vec![Listener { socket, port }],
            relay: Relay::new(),
            stub: None,
            rests: None,
        })
    }

    /// Answers questions for names at 127.0.0.1:53.
    pub(super) fn answer_names(&mut self) -> io::Result<()> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, NAME_PORT);
        self.stub = Some(Stub::new(bound(SocketType::DGRAM, address)?, self.path.clone()));
        let socket = bound(SocketType::STREAM, address)?;
        self.listeners.push(Listener { socket, port: NAME_PORT });
        Ok(())
    }

    /// Takes connections to this port of every name. A port that 127.0.0.1 has already is bound
    /// anew for all addresses: the address dialled tells them apart.
    pub(super) fn bind_port(&mut self, port: u16) -> io::Result<()> {
        self.listeners.retain(|l| l.port != port);
        let socket = bound(SocketType::STREAM, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        self.listeners.push(Listener { socket, port });
        Ok(())
    }

    /// To be called when the limits of this process are final.
    pub(super) fn settled(mut self) -> Self {
        self.relay.limit(connections());
        self
    }

    /// Adds the descriptors to wait for; [`Door::turn`] wants their events in this order.
    pub(super) fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let open = self.rests.is_none() && self.relay.room();
        let accept = if open { PollFlags::IN } else { PollFlags::empty() };
        fds.extend(self.listeners.iter().map(|l| PollFd::new(&l.socket, accept)));
        if let Some(stub) = &self.stub {
            stub.interests(fds);
        }
        self.relay.interests(fds);
    }

    /// When [`Door::turn`] must be called even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.stub.as_ref().and_then(Stub::deadline).into_iter().chain(self.rests).min()
    }

    /// Handles the events of [`Door::interests`] and what is overdue.
    pub(super) fn turn(&mut self, events: &[PollFlags]) {
        let now = Instant::now();
        self.rests = self.rests.filter(|until| *until > now);
        let (accepts, events) = events.split_at_checked(self.listeners.len()).unwrap_or_default();
        let count = self.stub.as_ref().map_or(0, Stub::count);
        let (names, relayed) = events.split_at_checked(count).unwrap_or_default();
        self.relay.turn(relayed);
        if let Some(stub) = &mut self.stub {
            stub.turn(names, now);
        }
        for (number, event) in accepts.iter().enumerate() {
            if event.contains(PollFlags::IN) {
                self.accept(number, now);
            }
        }
    }

    fn accept(&mut self, number: usize, now: Instant) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        for _ in 0..ACCEPTS_A_TURN {
            let Some(listener) = self.listeners.get(number).filter(|_| self.relay.room()) else {
                return;
            };
            let port = listener.port;
            match accept_with(&listener.socket, flags) {
                Ok(inner) => self.admit(inner, port, now),
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.rests = Some(now + REST);
                    return;
                }
                // It was gone before it was taken.
                Err(_) => {}
            }
        }
    }

    /// Where a connection leads, by the address that was dialled.
    fn admit(&mut self, inner: OwnedFd, port: u16, now: Instant) {
        let local = getsockname(&inner).ok().and_then(|a| SocketAddrV4::try_from(a).ok());
        let Some(local) = local else { return };
        // Without it small writes wait for acknowledgements; failing costs only time.
        let _ = sockopt::set_tcp_nodelay(&inner, true);
        if *local.ip() == Ipv4Addr::LOCALHOST {
            if port == self.port {
                self.relay.add(inner, &self.path, None);
            } else if let Some(stub) = self.stub.as_mut().filter(|_| port == NAME_PORT) {
                stub.adopt(inner, now);
            } else {
                reset(&inner);
            }
            return;
        }
        match self.stub.as_mut().and_then(|s| s.dialled(*local.ip(), now)) {
            Some(name) => {
                let head = format!("CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n");
                self.relay.add(inner, &self.path, Some(head.as_bytes()));
            }
            None => reset(&inner),
        }
    }
}

/// So many relayed connections fit what this process may open, two descriptors each.
fn connections() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let pairs = files.unwrap_or(u64::MAX).saturating_sub(RESERVE) / 2;
    usize::try_from(pairs).unwrap_or(usize::MAX).clamp(1, relay::CONNECTIONS_MAX)
}

fn bound(kind: SocketType, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// A connection to the gateway. A door that is shut refuses at once, and so does one with too
/// many waiting before it.
fn dial(path: &str) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    Some(socket)
}

/// Its end is to be seen as a refusal, not as the end of an empty answer.
fn reset(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Takes bytes from the door. The kernel counts them as read by this process.
fn read_door(door: &OwnedFd, room: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::read(door, room)
}

/// Puts bytes into the door. The kernel counts them as written by this process; its signal for a
/// closed pipe is ignored, as Rust's start-up has it.
fn write_door(door: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::io::write(door, bytes)
}

/// Takes bytes from a program; not counted.
fn receive(inner: &OwnedFd, room: &mut [u8]) -> Result<usize, Errno> {
    recv(inner, room, RecvFlags::empty()).map(|(_, n)| n)
}

/// Gives bytes to a program; not counted.
fn transmit(inner: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    send(inner, bytes, SendFlags::NOSIGNAL)
}
