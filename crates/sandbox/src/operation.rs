//! What the kernel reports of a sandbox while it runs: plain data, from whoever answers its calls
//! (the spawner; for a container the client itself) to whoever takes reports.
//!
//! What is said of memory (path, arguments, working directory, addresses) was read from outside at
//! the entry of the call. Another thread of the same process may change it before the kernel reads
//! it, so nothing is ever permitted because of it (`racy` in the records).

use serde::{Deserialize, Serialize};

/// Longest path kept, bytes. With the other two bounds a report stays below 64,000 bytes as a
/// record, even if every byte of it has to be escaped as six characters.
pub const PATH_BYTES_MAX: usize = 2_048;
/// Longest working directory kept, bytes.
pub const CWD_BYTES_MAX: usize = 1_024;
/// All arguments of one execution together, bytes.
pub const ARGV_BYTES_MAX: usize = 4_096;
/// Arguments kept of one execution; each costs the spawner a page's lookup.
pub const ARGV_MAX: usize = 128;

/// A process asked for a program to be executed, and was let go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Counted by the spawner over all its sandboxes, from 1; in containers by who serves them,
    /// from 2^32 + 1; in the n-th virtual machine from n times 2^36 + 1.
    pub number: u64,
    /// The process inside.
    pub pid: u32,
    /// As passed; for a descriptor, what the descriptor names stands before it.
    pub path: String,
    /// As passed.
    pub argv: Vec<String>,
    /// Its working directory, as seen inside.
    pub cwd: Option<String>,
    /// Nothing above was cut off, replaced because it is no UTF-8, or could not be read.
    pub whole: bool,
    /// What could not be read, and why.
    pub unread: Option<String>,
}

/// What a process runs after an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Number of the execution.
    pub number: u64,
    /// The process inside.
    pub pid: u32,
    /// The name in `/proc/PID/exe` (proc_pid_exe(5)) at the first look at which the process was
    /// seen to have a new program; or why there was no such look.
    pub seen: Result<String, String>,
}

/// A call that was answered with an error and not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The process inside.
    pub pid: u32,
    /// `connect` or `socket`.
    pub call: String,
    /// Address and port, or kind of socket.
    pub target: String,
    /// The answer, e.g. `ENETUNREACH`.
    pub errno: String,
    /// The target stood in memory.
    pub racy: bool,
}

/// One report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Before the program is executed.
    Executed(Execution),
    /// After it was, or was not.
    Image(Image),
    /// Refused.
    Refused(Refusal),
    /// So many were not reported.
    Lost {
        /// How many.
        count: u64,
        /// Why, in a few words.
        reason: String,
    },
    /// Everything from before the call of [`crate::Sandbox::mark`] that gave this number has been
    /// reported.
    Mark(u64),
}

/// How many operations there were, as the spawner counted them, reported or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCounts {
    /// Executions that were let go on.
    pub executions: u64,
    /// Calls that were refused.
    pub refusals: u64,
    /// Operations that were not reported.
    pub lost: u64,
}
