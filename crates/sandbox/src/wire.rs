//! The two protocols: client ↔ spawner and spawner ↔ init. One packet a message, JSON, bounded;
//! descriptors travel as `SCM_RIGHTS`.
//!
//! Invariants:
//! 1. A packet longer than its bound, with an unknown shape or with unexpected descriptors is an
//!    error, never a guess.
//! 2. Everything received is `CLOEXEC`.

use crate::error::{PauseError, StartError};
use crate::operation::Operation;
use crate::report::{Ended, Report, Usage};
use crate::secrets::Mask;
use model::SandboxSpec;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Largest packet: below the kernel's default socket buffer (212,992 bytes on all supported
/// kernels), so that a packet is never refused for its size.
pub(crate) const PACKET_MAX: usize = 192 << 10;
/// Largest order to init: the paths of three control groups, each below 4 KiB. Small, for init
/// touches no page it need not.
pub(crate) const ORDER_MAX: usize = 16 << 10;
/// Descriptors in one packet: the three standard streams, and a user namespace for each owner of
/// home, workspace, door and the most mounts that may be granted.
const FDS_MAX: usize = 3 + 3 + crate::check::MOUNTS_MAX;

/// A sandbox's number on one spawner connection.
pub(crate) type BoxId = u64;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello {
        private: Vec<PathBuf>,
        spares: bool,
    },
    Prepare {
        id: BoxId,
        spec: Box<SandboxSpec>,
        masks: Vec<Mask>,
    },
    Start {
        id: BoxId,
    },
    Signal {
        id: BoxId,
        signal: i32,
    },
    Kill {
        id: BoxId,
    },
    Usage {
        id: BoxId,
    },
    /// So many of its operations are on record.
    Taken {
        id: BoxId,
        count: usize,
    },
    /// Answer with this number among its operations.
    Mark {
        id: BoxId,
        number: u64,
    },
    /// Stop all its processes, or let them run on.
    Freeze {
        id: BoxId,
        frozen: bool,
    },
    TryNamespaces,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Ready { facts: Box<crate::HostFacts> },
    Prepared { id: BoxId, report: Box<Report> },
    Failed { id: BoxId, error: StartError },
    Usage { id: BoxId, usage: Usage },
    Operation { id: BoxId, operation: Operation },
    Frozen { id: BoxId, error: Option<PauseError> },
    Ended { id: BoxId, ended: Ended },
    Tried { namespaces: Vec<(String, Option<String>)> },
}

/// Spawner to init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Carry out a job. The last one brings the standard streams and a user namespace for each
    /// mapping.
    Work(Box<Job>),
    /// Write "0" to these files.
    Join(Vec<PathBuf>),
    Go,
    Signal(i32),
    /// To a first process that an engine started: our sealed executable and filter come with it.
    Kit,
}

/// Init to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// Our own probe begins; with the listener, where operations are witnessed.
    Probing,
    /// With the open counter of what it moves, if the kernel counts it, then the listener, where
    /// operations are witnessed and it has not gone out yet.
    Measured(Measured),
    Failed {
        step: String,
        error: StartError,
    },
    /// The program has ended and nothing is moved any more; it waits to be killed.
    Finished {
        status: i32,
    },
}

/// What init read about itself after the last step.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// `/proc/self/ns/*`: name and inode.
    pub(crate) namespaces: Vec<(String, u64)>,
    /// Fields of `/proc/self/status`.
    pub(crate) status: Vec<(String, String)>,
    /// Names in `/proc/net/dev`.
    pub(crate) interfaces: Vec<String>,
    /// `/proc/self/uid_map`, normalised.
    pub(crate) uid_map: String,
    /// Resource limits by name.
    pub(crate) limits: Vec<(String, u64)>,
    /// The root's mount flag.
    pub(crate) root_read_only: bool,
    /// What it has read and written so far, if the kernel counts it.
    pub(crate) moved: Option<Moved>,
    /// What the probe printed, if one was asked for.
    pub(crate) probes: Option<String>,
    /// What stands at the places it was told to look at.
    #[serde(default)]
    pub(crate) places: Vec<Place>,
    /// Of the paths that should show nothing, those that show something.
    #[serde(default)]
    pub(crate) shown: Vec<String>,
    /// What Landlock refused when it was tried.
    pub(crate) felt: Option<crate::landlock::Felt>,
}

/// What stands at one place inside, as stat(2) and statvfs(3) tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) path: String,
    /// Device and inode: which file of the machine it is.
    pub(crate) file: (u64, u64),
    /// The mount cannot be written through.
    pub(crate) read_only: bool,
}

/// Bytes that one thread has moved with `read`, `write` and their relatives
/// (proc_pid_io(5): `rchar`, `wchar`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Moved {
    /// Reads the text of `/proc/…/io`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|l| l.strip_prefix(name))?.trim().parse().ok()
        };
        Some(Self { read: field("rchar:")?, written: field("wchar:")? })
    }
}

/// Steps of the plan, and the numbers that differ from start to start.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Job {
    /// What to do now; a plan comes in one job or two, and its last step runs the program.
    pub(crate) steps: Vec<crate::Step>,
    /// Session uid and gid in root mode, 0 in plain-user mode.
    pub(crate) identity: u32,
    /// The spawner's own uid and gid: in a fresh user namespace one cannot see them.
    pub(crate) caller: (u32, u32),
    /// Owners on disk, in the order of the user namespaces that map them.
    pub(crate) mappings: Vec<crate::step::Owner>,
}

/// Sends one packet.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_bytes(socket, &encode(message)?, fds)
}

/// A message as bytes, checked against the bound.
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > PACKET_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
    }
    Ok(bytes)
}

/// Sends bytes that are one message.
pub(crate) fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    transmit(socket, bytes, fds, SendFlags::NOSIGNAL)
}

/// As [`send_bytes`], never waiting; `false` when the socket takes no more for now.
pub(crate) fn send_at_once(socket: impl AsFd, bytes: &[u8]) -> io::Result<bool> {
    match transmit(socket, bytes, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

fn transmit(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
    })?;
    Ok(())
}

/// Receives one packet into `buffer`, which keeps its size; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    if buffer.is_empty() {
        buffer.resize(PACKET_MAX, 0);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is too long"));
    }
    let message = serde_json::from_slice(buffer.get(..got.bytes).unwrap_or_default())?;
    Ok(Some((message, fds)))
}
