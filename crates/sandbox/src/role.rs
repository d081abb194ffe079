//! The walls around a role of the product itself (`__gateway` and its siblings), put up by the role
//! before its first thread and before it meets anything foreign.
//!
//! ```text
//! exec ─► detach (nothing inherited) ─► confine: no dump ─► no capability ─► Landlock ─► seccomp
//!      ─► measured by trying ─► threads, sockets, work
//! ```
//!
//! Invariants:
//! 1. Single-threaded: what one thread puts on, later threads inherit; a second thread already
//!    there is an error.
//! 2. What was asked for is measured afterwards, by trying what must fail; a wall that does not
//!    hold is an error, and the role must end.
//! 3. Nothing here can be taken off again.

use crate::facts::LANDLOCK_VETTED;
use crate::{landlock, seccomp, sys};
use model::WallState;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Longest `/proc/self/status` looked at, bytes; the kernel's has about 1,500.
const STATUS_BYTES_MAX: usize = 16 << 10;

/// What a role may still do. Everything not named is refused by the kernel.
#[derive(Debug, Clone, Default)]
pub struct RoleWalls {
    /// Files and folders that may be read; those that do not exist are left out.
    pub read: Vec<PathBuf>,
    /// Folders below which plain files may be made, changed and removed. They must exist.
    pub keep: Vec<PathBuf>,
    /// Folders in which the role may make and remove sockets of its own, and see what is there.
    /// They must exist.
    pub sockets: Vec<PathBuf>,
    /// Whether there is a network at all (held by seccomp, and for TCP by Landlock from ABI 4 on);
    /// without it there are Unix sockets only. Listening never.
    pub connect: bool,
    /// What must not open afterwards: the proof that the walls around files stand. `/` is always
    /// tried too.
    pub forbidden: Vec<PathBuf>,
}

/// Why a role may not go on.
#[derive(Debug, thiserror::Error)]
#[error("the walls of this role: {cause}; {remedy}")]
pub struct RoleError {
    /// What failed, or what could still be done.
    pub cause: String,
    /// What to do.
    pub remedy: &'static str,
}

const FLOOR_REMEDY: &str = "nothing was started; `nanoclaw doctor` tells what this machine lacks";

fn failed(what: &'static str) -> impl Fn(io::Error) -> RoleError {
    move |e| RoleError { cause: format!("{what}: {e}"), remedy: FLOOR_REMEDY }
}

/// Closes everything that was inherited beyond the three standard streams, leaves the starter's
/// session and terminal, and goes to `/`. For the first line of a role's `main`: no descriptor
/// beyond the streams may be owned by anybody yet.
///
/// # Errors
/// When the kernel refuses.
pub fn detach() -> Result<(), RoleError> {
    sys::close_inherited().map_err(failed("inherited descriptors"))?;
    // It fails only for a leader of a process group, which is nobody's foreground then.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").map_err(|e| failed("leaving the folder")(e.into()))
}

/// Puts the walls up around this process, for ever, and measures them.
///
/// # Errors
/// When a wall cannot be put up or does not hold. The process is then in an undefined state of
/// confinement and must end.
pub fn confine(walls: &RoleWalls) -> Result<Vec<WallState>, RoleError> {
    let status = File::open("/proc/self/status").map_err(failed("/proc/self/status"))?;
    if field(&status, "Threads:")? != "1" {
        let cause = "another thread runs already".to_owned();
        return Err(RoleError { cause, remedy: "confine before the first thread" });
    }
    undumpable().map_err(failed("keeping memory private"))?;
    drop_capabilities().map_err(failed("dropping capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| failed("no new privileges")(e.into()))?;
    let level = sys::landlock_abi().min(LANDLOCK_VETTED);
    landlock::restrict_role(level, walls)
        .map_err(|cause| RoleError { cause, remedy: FLOOR_REMEDY })?;
    let rules = seccomp::role_rules(walls.connect);
    let calls = rules.iter().filter(|(_, r)| *r != seccomp::Rule::NotImplemented).count();
    let program = seccomp::program_of(rules);
    sys::load_filter(&program).map_err(failed("seccomp"))?;
    measure(&status, walls)?;
    Ok(vec![
        state("landlock", format!("ABI {level}")),
        state("seccomp", format!("{calls} system calls reachable")),
        state("capabilities", "none".into()),
        state("memory", "not dumpable".into()),
    ])
}

fn state(wall: &str, state: String) -> WallState {
    WallState { wall: wall.to_owned(), state }
}

/// Neither a core file nor another process of the same user sees this memory (prctl(2)).
fn undumpable() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    Ok(rustix::process::setrlimit(Resource::Core, none)?)
}

fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// A field of `/proc/self/status` (proc_pid_status(5)), read anew by way of a descriptor from
/// before the walls.
fn field(status: &File, name: &str) -> Result<String, RoleError> {
    let mut bytes = vec![0; STATUS_BYTES_MAX];
    let n = status.read_at(&mut bytes, 0).map_err(failed("/proc/self/status"))?;
    let text = String::from_utf8_lossy(&bytes[..n]);
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim();
    Ok(line.to_owned())
}

/// Something that must fail.
type Act = fn() -> io::Result<()>;

fn measure(status: &File, walls: &RoleWalls) -> Result<(), RoleError> {
    let broken = |cause: String| RoleError { cause, remedy: FLOOR_REMEDY };
    let expected = [("Seccomp:", "2"), ("NoNewPrivs:", "1"), ("CapEff:", "0000000000000000")];
    for (name, wanted) in expected {
        let found = field(status, name)?;
        if found != wanted {
            return Err(broken(format!("{name} is {found:?} and should be {wanted}")));
        }
    }
    let root = Path::new("/");
    for path in std::iter::once(root).chain(walls.forbidden.iter().map(PathBuf::as_path)) {
        if File::open(path).is_ok() {
            return Err(broken(format!("{} can still be opened", path.display())));
        }
    }
    let refused =
        |result: io::Result<()>| result.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
    let acts: [(&str, Act); 3] = [
        ("start a program", sys::attempt::exec_nothing),
        ("make a user namespace", sys::attempt::new_user_namespace),
        ("set up io_uring", sys::attempt::io_uring),
    ];
    match acts.iter().find(|(_, act)| !refused(act())) {
        Some((act, _)) => Err(broken(format!("it can still {act}"))),
        None => Ok(()),
    }
}
