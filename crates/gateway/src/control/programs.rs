//! Servers of tools that are programs, from the gateway's side: it may start nothing itself, so the
//! client whose session needs one starts it in a sandbox, and sends a socket to speak with it.
//!
//! ```text
//! call ─► Start ─► client ─► sandbox [ program ]
//!                  client ═ pipes ═ program
//!   ◄─ Started ─── client ═ socket pair ═ this end         (closing it ends the program)
//!   ◄─ Stopped ─── client: how it ended
//! ```
//!
//! Invariants:
//! 1. A client starts programs for its own sessions only, and what runs is what it was told to
//!    grant, not what the gateway says.
//! 2. The socket's other end stays with the client, which copies: nothing in a sandbox ever holds
//!    a descriptor that leads here.

use super::server::Sender;
use super::wire::{FromGateway, encode};
use crate::mcp::{Opening, Running, StdioAsk, StdioServers};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Programs of one client that are being started or run; far above what its sessions may have.
const PROGRAMS_MAX: usize = 1_024;

#[derive(Default)]
struct Orders {
    next: u64,
    starting: HashMap<u64, oneshot::Sender<Result<Running, String>>>,
    running: HashMap<u64, oneshot::Sender<String>>,
}

/// The programs of one client.
pub(super) struct Programs {
    to: Sender,
    orders: Mutex<Orders>,
}

impl Programs {
    pub(super) fn new(to: Sender) -> Self {
        Self { to, orders: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program runs. If nobody waits for it any more, its socket closes, which ends it.
    pub(super) fn started(&self, order: u64, socket: OwnedFd) -> io::Result<()> {
        let stream = connected(socket)?;
        let mut orders = self.lock();
        let Some(waiting) = orders.starting.remove(&order) else { return Ok(()) };
        let (tell, ended) = oneshot::channel();
        let running = Running { stream: Box::new(stream), ended: Some(ended) };
        if waiting.send(Ok(running)).is_ok() {
            orders.running.insert(order, tell);
        }
        Ok(())
    }

    pub(super) fn not_started(&self, order: u64, why: String) {
        if let Some(waiting) = self.lock().starting.remove(&order) {
            let _ = waiting.send(Err(why));
        }
    }

    pub(super) fn stopped(&self, order: u64, how: String) {
        if let Some(tell) = self.lock().running.remove(&order) {
            let _ = tell.send(how);
        }
    }

    /// The client is gone: nobody waits for it any longer.
    pub(super) fn left(&self) {
        let mut orders = self.lock();
        orders.starting.clear();
        orders.running.clear();
    }

    async fn start(&self, ask: StdioAsk<'_>) -> Result<Running, String> {
        let session = ask.session.cloned().ok_or("no session needs it")?;
        let (answer, answered) = oneshot::channel();
        let order = {
            let mut orders = self.lock();
            if orders.starting.len() + orders.running.len() >= PROGRAMS_MAX {
                return Err(format!("{PROGRAMS_MAX} programs run already"));
            }
            orders.next += 1;
            let order = orders.next;
            orders.starting.insert(order, answer);
            order
        };
        let _forget = Forget { programs: self, order };
        let message = FromGateway::Start { order, session, server: ask.server.to_owned() };
        let frame = encode(&message).map_err(|e| e.to_string())?;
        let gone = || "whoever starts it is gone".to_owned();
        self.to.send(frame).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl StdioServers for Programs {
    fn open<'a>(&'a self, ask: StdioAsk<'a>) -> Opening<'a> {
        Box::pin(async move { self.start(ask).await.map_err(io::Error::other) })
    }
}

/// Takes an order that nobody waits for any more out of the list.
struct Forget<'a> {
    programs: &'a Programs,
    order: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.programs.lock().starting.remove(&self.order);
    }
}

/// A connected stream socket of this machine; anything else is no end of a program.
fn connected(socket: OwnedFd) -> io::Result<UnixStream> {
    let unix = socket_domain(&socket)? == AddressFamily::UNIX;
    if !unix || socket_type(&socket)? != SocketType::STREAM || socket_acceptconn(&socket)? {
        let why = "a program is spoken with over a connected Unix socket";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
