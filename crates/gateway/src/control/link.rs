//! One connection to a gateway, from the client's side: connecting, starting one, hello.

use super::frames::{Inbox, send};
use super::socket_path;
use super::wire::{FromGateway, PROTOCOL, ToGateway, decode, encode};
use rustix::net::sockopt::socket_peercred;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long connecting may take in all, with starting a gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway that took the connection may take to say welcome, or to answer a request
/// while a connection is set up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// First and longest pause between two tries, when another process is starting or just stopping a
/// gateway.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// The sending side of a connection; the receiving side belongs to one thread.
pub(crate) struct Link {
    stream: UnixStream,
    writing: Mutex<()>,
}

impl Link {
    pub(crate) fn send(&self, message: &ToGateway, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let frame = encode(message)?;
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        send(&self.stream, &frame, fd)
    }

    /// The next message; `None` at the end.
    pub(crate) fn receive(&self, inbox: &mut Inbox) -> io::Result<Option<FromGateway>> {
        loop {
            if let Some(frame) = inbox.frame()? {
                return decode(frame).map(Some);
            }
            if inbox.receive(&self.stream)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Answers are waited for without end again.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)
    }

    pub(crate) fn shutdown(&self) {
        // If it is gone already, nobody needs to be told.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Connects to the gateway of `home`; where none runs, `start` makes one, which is waited for.
/// The link still has the time limit of its setting up, see [`Link::settle`].
pub(crate) fn connect(
    home: &Path,
    role: &str,
    start: &(dyn Fn() -> io::Result<()> + Send + Sync),
) -> io::Result<(Link, Inbox)> {
    let (begun, mut pause, mut started) = (Instant::now(), PAUSE.0, false);
    loop {
        let error = match try_connect(home, role) {
            Err(e) if is_absent(&e) => e,
            other => return other,
        };
        if begun.elapsed() > CONNECT_TIMEOUT {
            let socket = socket_path(home);
            let why = format!("no gateway can be reached at {}: {error}", socket.display());
            return Err(io::Error::new(error.kind(), why));
        }
        if started {
            // Ours stopped at once because another one is starting or stopping.
            thread::sleep(pause);
            pause = PAUSE.1.min(pause * 2);
        }
        start()?;
        started = true;
    }
}

fn try_connect(home: &Path, role: &str) -> io::Result<(Link, Inbox)> {
    let stream = UnixStream::connect(socket_path(home))?;
    let peer = socket_peercred(&stream)?;
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        let why = "the gateway's socket is held by another user; look who made it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let link = Link { stream, writing: Mutex::default() };
    let mut inbox = Inbox::default();
    link.send(&ToGateway::Hello { protocol: PROTOCOL, role: role.to_owned() }, None)?;
    match link.receive(&mut inbox) {
        Ok(Some(FromGateway::Welcome { protocol: PROTOCOL, .. })) => Ok((link, inbox)),
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(e) if e.kind() != io::ErrorKind::InvalidData => Err(e),
        Ok(Some(_)) | Err(_) => {
            Err(io::Error::other("the gateway speaks another protocol; stop the old one"))
        }
    }
}

fn is_absent(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        e.kind(),
        K::NotFound | K::ConnectionRefused | K::ConnectionReset | K::BrokenPipe | K::UnexpectedEof
    )
}
