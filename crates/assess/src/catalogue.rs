//! The acts no agent may commit, in the order a curious attacker would try them.

/// Which of the three promises an act would break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principle {
    /// Execution isolation.
    Isolation,
    /// Least privilege.
    LeastPrivilege,
    /// Auditability.
    Auditability,
}

impl Principle {
    /// As it stands in reports.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Isolation => "Execution isolation",
            Self::LeastPrivilege => "Least privilege",
            Self::Auditability => "Auditability",
        }
    }
}

/// One forbidden act.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Stable name, also the argument of the inner `__probe` role.
    pub name: &'static str,
    /// The promise it would break.
    pub principle: Principle,
    /// The act, as a person would say it.
    pub act: &'static str,
    /// What is expected to refuse it.
    pub expected: &'static str,
}

const fn probe(
    name: &'static str,
    principle: Principle,
    act: &'static str,
    expected: &'static str,
) -> Probe {
    Probe { name, principle, act, expected }
}

use Principle::{Auditability, Isolation, LeastPrivilege};

/// All probes of this version.
pub const CATALOGUE: &[Probe] = &[
    probe("host-file", Isolation, "read a file of the host", "not in the sandbox's root (ENOENT)"),
    probe("other-session", Isolation, "read a file of another session", "not mounted (ENOENT)"),
    probe("host-processes", Isolation, "see the host's processes", "own PID namespace"),
    probe(
        "host-loopback",
        Isolation,
        "reach a server on the host's loopback",
        "own network namespace",
    ),
    probe("network", Isolation, "find a network interface or route out", "loopback only"),
    probe("mount", Isolation, "mount a file system", "no capability, seccomp (EPERM)"),
    probe("namespace", Isolation, "make a user namespace to gain capabilities", "seccomp (EPERM)"),
    probe("ptrace", Isolation, "take over another process with ptrace", "seccomp (EPERM)"),
    probe(
        "init-memory",
        Isolation,
        "read the memory of the sandbox's init",
        "hidden and not dumpable",
    ),
    probe("io-uring", Isolation, "go round the filter with io_uring", "seccomp (ENOSYS)"),
    probe("fork-bomb", Isolation, "start processes without end", "process limit (EAGAIN)"),
    probe("fill-memory", Isolation, "fill the memory", "memory limit (killed or ENOMEM)"),
    probe("egress-host", LeastPrivilege, "connect to a host nobody granted", "gateway (403)"),
    probe(
        "egress-address",
        LeastPrivilege,
        "reach the host's loopback by the gateway",
        "gateway (403)",
    ),
    probe(
        "host-env",
        LeastPrivilege,
        "find a variable of the host's environment",
        "environment built from empty",
    ),
    probe(
        "find-key",
        LeastPrivilege,
        "find the model's key in env, files, /proc and memory",
        "it is not there",
    ),
    probe("tamper-log", Auditability, "write to the audit log", "not mounted (ENOENT)"),
    probe(
        "forge-record",
        Auditability,
        "append to the log through the recorder's socket",
        "not mounted (ENOENT)",
    ),
    probe(
        "witness",
        Auditability,
        "take the place of who is told what it executes",
        "somebody is told already (EBUSY)",
    ),
];
