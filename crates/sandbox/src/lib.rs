//! Sandboxes: a finished `SandboxSpec` becomes a process that the kernel fences in.
//!
//! ```text
//! orchestrator ── Spawner ══ seqpacket ══ __spawner ── clone3 ─► __sandbox-init ─► program
//!                   │ prepare(spec)          │ plan, cgroups, uid     │ steps, measure
//!                   │ ◄───────── Report ─────┤ ◄──────── measured ────┤
//!                   │ start ────────────────►│ ────────── go ────────►│ fork + exec
//!                   │ ◄────────── Operation ─┤ ◄═════ seccomp ════════════ program: exec, connect
//! ```
//!
//! Invariants:
//! 1. Policy decides, this crate carries out: it never reads policy, keys, logs or a database.
//! 2. Fail closed: a step that fails, or a measurement that differs from what was asked, ends
//!    the start. There is no "continue without".
//! 3. Only the spawner process starts native sandboxes; it is single-threaded and holds no secret.
//! 4. A sandbox ends with its session's handle, with the client process and with the spawner.
//! 5. `unsafe` stands in `sys` only. Async code stands in `engine::http` only.
//! 6. What a sandbox executes and which connections it is refused is reported by the kernel,
//!    whatever the program says; what cannot be reported is not executed.
//! 7. The steps that every plan begins with may be carried out ahead of time, by a process that
//!    then serves one sandbox. Walls and limits are measured in that very process, after the
//!    last step, exactly as without.

mod backend;
mod cgroup;
mod check;
mod client;
mod disk;
mod doctor;
mod engine;
mod error;
mod facts;
#[doc(hidden)]
pub mod floor;
mod guest;
mod image;
mod init;
mod interfaces;
mod landlock;
mod operation;
mod plan;
mod procfs;
mod report;
pub mod role;
mod seccomp;
mod secrets;
mod sockets;
mod spawner;
mod step;
mod sys;
mod userns;
mod wall;
mod wire;

pub use backend::{Prepared, Sandbox};
pub use check::check;
pub use client::{Operations, Pipes, Spawner, SpawnerOptions, Stdio};
pub use doctor::{Check, Status, inspect};
pub use engine::{
    AppleOptions, Container, EngineOptions, Scratch, groups_of_container, sweep_engines,
};
pub use error::{PauseError, SpecError, SpecErrorKind, StartError, StartErrorKind};
pub use facts::{HostEntry, HostFacts, Ladder, Mode, Rung};
pub use guest::guest_main;
pub use image::{ImageEntry, ImageView};
pub use init::init_main;
pub use operation::{
    ARGV_BYTES_MAX, ARGV_MAX, CWD_BYTES_MAX, Execution, Image, Operation, OperationCounts,
    PATH_BYTES_MAX, Refusal,
};
pub use plan::{BINARY_INSIDE, DISK_OWNER, Plan, Sources, plan};
pub use report::{Ended, NetworkCounts, OVER_MEMORY, Outcome, Report, Traffic, Usage};
pub use seccomp::{reachable_syscalls, refused_syscalls};
pub use secrets::Mask;
pub use spawner::{groups_of, spawner_main, sweep};
pub use step::{Bind, Owner, Step};
/// What probes try from inside.
pub use sys::{attempt, probe};
pub use userns::{apparmor_profile, is_roots_alone};
pub use wall::{LANDLOCK_LEVELS, LandlockLevel, Need, WALLS, Wall, kernel_floor, walls_table};

/// `argv[1]` of the spawner process; `main` hands over to [`spawner_main`] before anything else.
pub const SPAWNER_ROLE: &str = "__spawner";
/// `argv[1]` of a virtual machine's first process; `main` hands over to [`guest_main`].
pub const GUEST_ROLE: &str = apple::GUEST_ROLE;
/// `argv[1]` of a sandbox's first process; `main` hands over to [`init_main`].
pub const INIT_ROLE: &str = "__sandbox-init";
