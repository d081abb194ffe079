//! What can go wrong with an agent, told apart so that the orchestrator can act on it.

use crate::acp::ModelFailure;
use serde_json::Value;

/// The agent or the connection to it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcpError {
    /// Its output ended.
    #[error(
        "the agent ended before it answered; its sandbox may have stopped it (see the session's record)"
    )]
    Closed,
    /// The pipes failed.
    #[error("the pipe to the agent failed: {cause}; start the session again")]
    Io {
        /// The operating system's words.
        cause: String,
    },
    /// It does not read what it is sent.
    #[error("the agent does not read its input; start the session again")]
    Stuck,
    /// A line is longer than [`super::MAX_FRAME_BYTES`].
    #[error("the agent sent a line longer than {max} bytes; the session was ended")]
    FrameTooLarge {
        /// The limit.
        max: usize,
    },
    /// A line is not a protocol frame.
    #[error(
        "the agent printed something that is not its protocol: {sample:?}; is it really an ACP agent?"
    )]
    Garbage {
        /// Its beginning, one printable line of at most 200 bytes.
        sample: String,
    },
    /// A frame fits the protocol's form but not this conversation.
    #[error("the agent broke the protocol: {why}; the session was ended")]
    Forged {
        /// What does not fit.
        why: &'static str,
    },
    /// More in one turn than a turn may have.
    #[error(
        "the agent flooded its output ({frames} frames, {bytes} bytes in one turn); the session was ended"
    )]
    Flood {
        /// Frames taken.
        frames: usize,
        /// Bytes taken.
        bytes: usize,
    },
    /// It did not answer in time.
    #[error("the agent did not answer in time; start the session again")]
    Timeout,
    /// It speaks another version of the protocol.
    #[error(
        "the agent speaks version {spoken:?} of the Agent Client Protocol, version 1 is needed; install a matching agent"
    )]
    Version {
        /// What it said, if anything.
        spoken: Option<u64>,
    },
    /// It answered with an error. The connection stays usable.
    #[error("the agent refused: {message}")]
    Refused {
        /// JSON-RPC error code.
        code: i64,
        /// Its words, one line of at most 600 bytes.
        message: String,
    },
    /// `prompt` was called before a session was started.
    #[error("no session was started with this agent; call new_session first")]
    NoSession,
}

impl AcpError {
    /// Whether the connection is out of step and must not be used again.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::NoSession)
    }
}

/// A turn failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The model failed; the message is for the person in the chat and the agent is well.
    #[error("{0}")]
    Model(ModelFailure),
    /// The agent failed.
    #[error("{0}")]
    Agent(#[from] AcpError),
}

/// A JSON-RPC error object as one of ours.
pub(super) fn refusal(error: &Value) -> PromptError {
    let message = error.get("message").and_then(Value::as_str).unwrap_or("it gave no reason");
    let data = error.get("data").unwrap_or(&Value::Null);
    if let Some(failure) = ModelFailure::from_rpc(message, data) {
        return PromptError::Model(failure);
    }
    PromptError::Agent(AcpError::Refused {
        code: error.get("code").and_then(Value::as_i64).unwrap_or(0),
        message: crate::rpc::one_line(message, 600),
    })
}
