//! How high the limits of a container's processes can be set.
//!
//! A runtime may lower the limits it inherits from its engine, and raise them only with a right
//! that root does not have everywhere (`CAP_SYS_RESOURCE`): asked for more, it starts nothing. An
//! engine may have lowered its own: Podman's service is allowed as many processes as the kernel
//! has numbers for.
//!
//! Pipeline: socket ─► who listens ─► `/proc/PID/limits` ─► the lower of its limits and ours.

use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Hard limits that a container can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ceiling {
    /// Descriptors of a process.
    pub(super) files: u64,
    /// Processes of a user of the machine.
    pub(super) processes: u64,
}

impl Ceiling {
    /// Of containers of the engine at this socket. What cannot be read limits nothing here: then
    /// the engine says what it cannot do.
    pub(super) fn of(socket: &Path) -> Self {
        let hard = |resource| getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let own = Self { files: hard(Resource::Nofile), processes: hard(Resource::Nproc) };
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        // Where another process made the socket for it (systemd), its limits are not the engine's,
        // and only the numbers tell what Podman has made of its own.
        let numbers = read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(u64::MAX);
        let engine = listener(socket).map(|pid| read(&format!("/proc/{pid}/limits")));
        let Self { files, processes } = parse(&engine.unwrap_or_default());
        Self { files: own.files.min(files), processes: own.processes.min(processes).min(numbers) }
    }
}

/// Who listens there.
fn listener(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    Some(sockopt::socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get())
}

/// The hard limits in the kernel's table of a process; none where it has no number.
fn parse(limits: &str) -> Ceiling {
    let of = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Ceiling {
        files: of("Max open files").unwrap_or(u64::MAX),
        processes: of("Max processes").unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_lower_of_both_processes_limits_counts() {
        // Linux 6.18, blanks as there.
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max processes             32000                32768                processes \n\
             Max open files            1024                 unlimited            files     \n";
        assert_eq!(parse(table), Ceiling { files: u64::MAX, processes: 32_768 });
        assert_eq!(parse(""), Ceiling { files: u64::MAX, processes: u64::MAX });
        let own = std::fs::read_to_string("/proc/self/limits").unwrap();
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(parse(&own).files, hard);
        // This very process listens: nothing is lowered but to the numbers there are.
        let at = std::env::temp_dir().join(format!("nanoclaw-ceiling-{}", std::process::id()));
        let _listener = std::os::unix::net::UnixListener::bind(&at).unwrap();
        let ceiling = Ceiling::of(&at);
        std::fs::remove_file(&at).unwrap();
        assert_eq!(ceiling.files, hard);
        assert!(ceiling.processes <= parse(&own).processes);
    }
}
