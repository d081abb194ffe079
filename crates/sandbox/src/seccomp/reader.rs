//! Which system calls a process makes that reads memory for another (`sys::make_reader`): it is
//! asked, reads, answers, ends.

use super::{Rule, sorted};

/// Every call that has a rule, sorted by number.
pub(crate) fn rules() -> Vec<(u32, Rule)> {
    let calls =
        [libc::SYS_read, libc::SYS_process_vm_readv, libc::SYS_writev, libc::SYS_exit_group];
    sorted(calls.into_iter().map(|number| (number, Rule::Allow)))
}
