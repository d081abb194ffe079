//! What goes over the control socket.
//!
//! ```text
//! frame = u32 little-endian length of the rest ‖ JSON of one message
//! ```
//! `open_door`, `deliver` and `started` bring exactly one descriptor, sent with their frame's first
//! byte.

use crate::asks::{Answer, Question};
use crate::door::DoorGrant;
use crate::usage::Notice;
use model::{AgentName, LoginConfig, SessionId, TurnId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

/// Version of this protocol.
pub(crate) const PROTOCOL: u32 = 3;

/// Largest frame: a grant with a few scripts of 1 MiB each.
pub(crate) const FRAME_BYTES_MAX: usize = 8 << 20;

/// Longest role name in a hello.
pub(crate) const ROLE_BYTES_MAX: usize = 32;

/// From the product.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ToGateway {
    /// First, and only first.
    Hello { protocol: u32, role: String },
    /// With a listening socket. `door` is the client's own number for it; `relay` the only
    /// process that may connect, once there is one.
    OpenDoor {
        id: u64,
        door: u64,
        grant: Box<DoorGrant>,
        turn: Option<TurnId>,
        /// The process that may connect, if it is known already.
        relay: Option<u32>,
    },
    /// Only this process may connect from now on.
    OnlyFrom { id: u64, door: u64, pid: u32 },
    /// Says which turn the session is in.
    SetTurn { id: u64, door: u64, turn: Option<TurnId> },
    /// Closes it and tells its counts.
    CloseDoor { id: u64, door: u64 },
    /// The same for a sandbox that is gone: what is under way ends first, the counts are final.
    SettleDoor { id: u64, door: u64 },
    /// What went through it so far.
    Counts { id: u64, door: u64 },
    /// With the writing end of a pipe: the secret goes into it, and it is closed.
    Deliver { id: u64, door: u64, secret: String },
    /// To a question.
    Answer { ask: u64, answer: Answer },
    /// What does a server of tools offer? A program is started for that session, which has no door.
    DescribeMcp { id: u64, server: model::McpServer, session: Option<SessionId> },
    /// With a connected socket: the other end of a program's stdin and stdout.
    Started { order: u64 },
    /// The program was not started.
    NotStarted { order: u64, why: String },
    /// It ran, and is gone.
    Stopped { order: u64, how: String },
    /// A person wants to log in: what is the address to open?
    BeginLogin { id: u64, login: Box<LoginConfig>, hosts: Vec<String>, agents: Vec<AgentName> },
    /// What came back from it. The code in it opens nothing without what the gateway kept.
    FinishLogin { id: u64, pasted: String },
    /// Is anybody there?
    Ping { id: u64 },
}

/// From the gateway.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FromGateway {
    /// To a hello it understands.
    Welcome { protocol: u32, version: String, pid: u32 },
    /// To the request with this number.
    Reply { id: u64, reply: Reply },
    /// Somebody must decide.
    Ask { ask: u64, question: Question },
    /// Nobody waits for the answer to this question any more.
    Withdraw { ask: u64 },
    /// Somebody should know.
    Notice { notice: Notice },
    /// The session needs the program of this server of tools. It is to end when its socket closes.
    Start { order: u64, session: SessionId, server: String },
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// Counts of a door.
    Counts(BTreeMap<String, u64>),
    /// So many bytes of a secret are in the pipe.
    Delivered { bytes: u64 },
    /// Alive, with so many doors of all clients.
    Pong { doors: u64 },
    /// What the server offers.
    Described(Vec<crate::mcp::Described>),
    /// The address at which a person agrees.
    LoginAddress { url: String },
    /// The login is sealed; when its token runs out, and whether it is renewed by itself.
    LoggedIn { expires_ms: Option<u64>, renewable: bool },
    /// It is not done.
    Refused { why: String },
}

impl ToGateway {
    /// How many descriptors come with it.
    pub(crate) fn descriptors(&self) -> usize {
        let one =
            matches!(self, Self::OpenDoor { .. } | Self::Deliver { .. } | Self::Started { .. });
        usize::from(one)
    }
}

/// One message as a frame.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message)?;
    let len = out.len() - 4;
    match u32::try_from(len) {
        Ok(n) if len <= FRAME_BYTES_MAX => out[..4].copy_from_slice(&n.to_le_bytes()),
        _ => {
            let why = format!("a message of {len} bytes is above the limit of {FRAME_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
    }
    Ok(out)
}

/// What stands in a frame after its length.
pub(crate) fn decode<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    serde_json::from_slice(frame).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "not a message of this control protocol")
    })
}
