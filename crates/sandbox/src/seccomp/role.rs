//! Which system calls a role of the product may make once it is confined: files, sockets, memory,
//! threads, waiting. It starts no program, makes no process, traces nobody, changes no identity,
//! maps nothing executable and signals nobody but itself.

use super::{Rule, sorted};
use libc::*;

/// Allowed whatever the arguments, on every architecture.
const COMMON: &[c_long] = &[
    // files and directories (Landlock says which)
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_close,
    SYS_lseek,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fstatfs,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getdents64,
    SYS_getcwd,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_readlinkat,
    SYS_ftruncate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_syncfs,
    SYS_fcntl,
    SYS_flock,
    SYS_dup,
    SYS_dup3,
    SYS_umask,
    SYS_pipe2,
    // waiting for descriptors
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    // memory
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_mincore,
    SYS_brk,
    SYS_mlock,
    SYS_munlock,
    SYS_membarrier,
    // threads and the end
    SYS_exit,
    SYS_exit_group,
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_set_tid_address,
    SYS_set_robust_list,
    SYS_futex,
    SYS_rseq,
    SYS_restart_syscall,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getcpu,
    SYS_getrusage,
    SYS_times,
    // who am I
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_uname,
    SYS_sysinfo,
    SYS_getrandom,
    // its own signals (a panic ends in one)
    SYS_tkill,
    SYS_tgkill,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    // time
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    // sockets (which families: see below)
    SYS_accept,
    SYS_accept4,
    SYS_bind,
    SYS_connect,
    SYS_shutdown,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
];

/// The older spellings that only x86_64 has, and musl uses.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &[c_long] = &[
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_mkdir,
    SYS_rmdir,
    SYS_unlink,
    SYS_rename,
    SYS_readlink,
    SYS_pipe,
    SYS_dup2,
    SYS_poll,
    SYS_select,
    SYS_epoll_wait,
];
/// aarch64 has no older spellings.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[c_long] = &[];

/// PROT_EXEC.
const EXECUTABLE: u32 = 0x4;
/// AF_UNIX, AF_INET, AF_INET6.
const FAMILIES: &[u32] = &[1, 2, 10];
/// O_TRUNC and the access mode.
const TRUNCATING: u32 = 0o1003;
/// O_TRUNC of a file that is opened for reading only: Linux does truncate it, and before ABI 3
/// Landlock takes it for reading (landlock(7)).
const TRUNCATE_READ_ONLY: u32 = 0o1000;
/// AF_UNIX.
const PAIRS: &[u32] = &[1];
/// FIONBIO, FIONREAD, FIOCLEX: what sockets and pipes are asked.
const IOCTLS: &[u32] = &[0x5421, 0x541b, 0x5451];
/// PR_SET_NAME (threads have names), PR_GET_NAME, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS.
const PRCTLS: &[u32] = &[15, 16, 3, 39];
/// S_ISUID | S_ISGID.
const SET_ID_BITS: u32 = 0o6000;

/// Allowed only with some arguments.
const FILTERED: &[(c_long, Rule)] = &[
    (SYS_clone, Rule::Thread),
    (SYS_mmap, Rule::NoBits(2, EXECUTABLE)),
    (SYS_mprotect, Rule::NoBits(2, EXECUTABLE)),
    (SYS_openat, Rule::NotThese(2, TRUNCATING, TRUNCATE_READ_ONLY)),
    (SYS_socketpair, Rule::OneOf(0, PAIRS)),
    (SYS_ioctl, Rule::OneOf(1, IOCTLS)),
    (SYS_prctl, Rule::OneOf(0, PRCTLS)),
    (SYS_fchmod, Rule::NoBits(1, SET_ID_BITS)),
    (SYS_fchmodat, Rule::NoBits(2, SET_ID_BITS)),
    #[cfg(target_arch = "x86_64")]
    (SYS_chmod, Rule::NoBits(1, SET_ID_BITS)),
    #[cfg(target_arch = "x86_64")]
    (SYS_open, Rule::NotThese(1, TRUNCATING, TRUNCATE_READ_ONLY)),
];

/// Threads are made with `clone` where `clone3` is not there; its flags no filter can see.
const NOT_IMPLEMENTED: &[c_long] = &[SYS_clone3];

/// Every call that has a rule, sorted by number, each once. Without `network` there are Unix
/// sockets only: Landlock knows TCP from ABI 4 on, and UDP not at all.
pub(crate) fn rules(network: bool) -> Vec<(u32, Rule)> {
    let families = if network { FAMILIES } else { PAIRS };
    let allowed = COMMON.iter().chain(ARCHITECTURE).map(|n| (*n, Rule::Allow));
    let missing = NOT_IMPLEMENTED.iter().map(|n| (*n, Rule::NotImplemented));
    let sockets = (SYS_socket, Rule::OneOf(0, families));
    sorted(allowed.chain(missing).chain(FILTERED.iter().copied()).chain([sockets]))
}
