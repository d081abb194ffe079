//! What callers learn of a sandbox: what was measured before the start, what was used, how it
//! ended.

use model::{LimitState, WallState};
use serde::{Deserialize, Serialize};

/// What was measured inside a prepared sandbox, before its program starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Each wall with what was found.
    pub walls: Vec<WallState>,
    /// Each limit with what enforces it, as read back.
    pub limits: Vec<LimitState>,
    /// The plan as it was executed.
    pub plan: crate::Plan,
    /// Host pid of the sandbox's init.
    pub pid: u32,
}

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The program returned this status. 126 and 127 also stand for a program that could not be
    /// executed or was not found, as in a shell.
    Exited(i32),
    /// The program died of this signal.
    Signaled(i32),
    /// The kernel killed processes of it at its memory limit, and the program with them.
    OutOfMemory,
    /// The whole sandbox was ended from outside or by a limit, in these words.
    Killed(String),
}

impl Outcome {
    /// As a shell would report it: the status, 128 + signal, or 137 when killed.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Self::Exited(code) => *code,
            Self::Signaled(signal) => 128 + signal,
            Self::OutOfMemory | Self::Killed(_) => 137,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Signaled(signal) => write!(f, "died of signal {signal}"),
            Self::OutOfMemory => f.write_str("killed: it ran out of memory"),
            Self::Killed(why) => write!(f, "killed: {why}"),
        }
    }
}

/// What a sandbox has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all its processes, milliseconds.
    pub cpu_ms: u64,
    /// Memory now, bytes.
    pub memory_bytes: u64,
    /// Largest memory so far, bytes; without a cgroup that of its largest process.
    pub peak_memory_bytes: u64,
    /// Processes and threads now.
    pub pids: u64,
    /// Processes that the kernel killed because the memory limit was reached.
    pub oom_kills: u64,
}

/// How a sandbox ended and what it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// Totals.
    pub usage: Usage,
}
