//! Queues of sockets: memory of the kernel that a program fills as it likes.
//!
//! v2 charges them to the group's memory. v1 has an account of their own for those of the Internet
//! (TCP and UDP; Unix sockets are charged as the kernel's other memory is), without a limit until
//! one is written, and only sockets made after that count. All are: what writes it makes the group.

use std::path::{Path, PathBuf};

/// The limit of that account.
pub(super) const LIMIT: &str = "memory.kmem.tcp.limit_in_bytes";
/// The part of the memory limit that it is set to, beside the limit. An eighth of the default are
/// 128 MiB, some twenty connections whose queues are as full as the kernel lets one be (6 MiB);
/// beyond it each socket keeps a few KiB, so nothing stands still.
const SHARE: u64 = 8;

/// What the queues of Internet sockets may hold on v1, bytes, beside a memory limit of `bytes`.
pub(crate) fn share(bytes: u64) -> u64 {
    super::whole_pages(bytes / SHARE)
}

/// What an account of version 1 holds beside the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Bytes.
    AtMost(u64),
    Unlimited,
}

impl super::Group {
    /// Limits the queues of Internet sockets where they have an account of their own, which engines
    /// leave without a limit; whether that could be done shows in [`Group::held`].
    pub(crate) fn hold_sockets(&self, memory_bytes: u64) {
        if let Some(dir) = &self.memory {
            let _ = super::set(dir, LIMIT, &share(memory_bytes).to_string());
        }
    }
}

/// What the kernel has for the group at `dir`.
pub(super) fn held(dir: &PathBuf) -> Beside {
    let most = super::limited(super::number(Some(dir), LIMIT));
    most.map_or(Beside::Unlimited, Beside::AtMost)
}

/// Whether v2 charges sockets to `memory.max`. It does (cgroup-v2.rst, "Memory Ownership"), unless
/// the machine was started with `cgroup.memory=nosocket` (kernel-parameters.txt).
pub(super) fn charged(command_line: &str) -> bool {
    let options = command_line.split_whitespace().filter_map(|w| w.strip_prefix("cgroup.memory="));
    !options.flat_map(|list| list.split(',')).any(|option| option == "nosocket")
}

/// Whether v1 groups below `dir` can limit them: kernels without `CONFIG_MEMCG_KMEM` cannot.
pub(super) fn limitable(dir: &Path) -> bool {
    dir.join(LIMIT).exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Parent;
    use super::*;
    use crate::facts::{Ladder, Rung};

    #[test]
    fn a_machine_started_without_accounts_of_sockets_is_known() {
        assert!(charged("root=/dev/vda cgroup.memory=nokmem quiet nosocket"));
        assert!(!charged("quiet cgroup.memory=nokmem,nosocket"));
    }

    #[test]
    fn a_group_that_cannot_limit_sockets_holds_no_memory() {
        let dir = std::env::temp_dir().join(format!("nanoclaw-sockets-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let parent = Parent::V1 { memory: Some(dir.clone()), cpu: None, pids: None };
        assert_eq!(parent.ladder(), Ladder::NONE);
        std::fs::write(dir.join(LIMIT), "9223372036854771712").unwrap();
        assert_eq!(parent.ladder(), Ladder { memory: Rung::V1, ..Ladder::NONE });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
