//! What callers learn of a sandbox: what was measured before the start, what was used, how it
//! ended.

use crate::operation::OperationCounts;
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
    /// What [`model::SandboxSpec::probe`] printed inside, as far as it was asked for. It was
    /// printed before anything of the session ran.
    #[serde(default)]
    pub probes: Option<String>,
}

/// What [`Outcome::Killed`] says where no control group held the memory limit, and a sandbox that
/// was seen beyond it was killed.
pub const OVER_MEMORY: &str = "it used more memory than its limit (watchdog)";

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
    /// Most processes and threads at a time, init among them, as its control group counted them;
    /// `None` where there is no such group, or its kernel does not count that.
    #[serde(default)]
    pub peak_pids: Option<u64>,
    /// What the session kept in its folders at the end, bytes; `None` where that was not counted,
    /// because it has no limit or there was too much to count.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
}

/// What the kernel counted in a sandbox's network namespace, whose only interface is its own
/// loopback. Both families of addresses together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCounts {
    /// Bytes over the loopback, with the packets' heads: connections to the door, and whatever the
    /// programs inside say to each other.
    pub loopback_bytes: u64,
    /// Packets over the loopback.
    pub loopback_packets: u64,
    /// Packets over any other interface. There is none, so anything but 0 is a broken wall.
    pub other_packets: u64,
    /// Packets and connections to addresses to which no way leads.
    pub unroutable: u64,
    /// UDP datagrams, all of them over the loopback; questions for names and their answers too.
    pub udp_datagrams: u64,
    /// ICMP messages, all of them over the loopback.
    pub icmp_messages: u64,
}

/// What the kernel counted of a sandbox's traffic, from its start to its end. No process of the
/// sandbox and no gateway can change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes that its first process, through which all connections lead, wrote into the door.
    /// `None` where the kernel does not account for it (`CONFIG_TASK_IO_ACCOUNTING`), and where
    /// somebody else than the spawner ended that process and the spawner is not root: newer kernels
    /// then show it no more.
    pub door_up: Option<u64>,
    /// Bytes that its first process read from the door.
    pub door_down: Option<u64>,
    /// Counters of its network; `None` where `/proc` does not show them.
    pub network: Option<NetworkCounts>,
}

/// How a sandbox ended and what it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// Totals.
    pub usage: Usage,
    /// What went in and out; `None` when the spawner is gone and cannot say.
    pub traffic: Option<Traffic>,
    /// How many operations there were; `None` where they were not witnessed or the spawner is gone.
    pub operations: Option<OperationCounts>,
}
