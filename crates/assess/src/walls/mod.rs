//! The battery of the walls: what is really enforced around a sandbox, found by trying from inside.
//!
//! ```text
//! CATALOGUE (name, wall, act, expectation) ── Bait (where the host's things are) ─┐
//!      │                                                                          ▼
//!      │            outside: sandboxes, baits, counts ──► inside: every act in a copy of its own
//!      ▼                                                                          │
//!   judge ◄──────────────────────────── Sighting (errno, signal, what was seen) ◄─┘
//!      └──► Finding ──► Board (backend × wall)
//! ```
//!
//! 1. The catalogue and the judging are pure. What is tried stands in `inside`, what is set up
//!    around it in `outside`; a test holds both against the catalogue.
//! 2. No probe is vacuous: each says in which open place it trips, and a test makes it trip there.
//! 3. An act that would harm the machine if its wall were missing is made with arguments that the
//!    kernel refuses as wrong: its answer then tells how far the call came.
//! 4. A probe that gives no answer has not held.

mod bait;
mod board;
mod catalogue;
mod errno;
mod inside;
mod judge;
mod outside;

pub use bait::{Bait, Other, Tight};
pub use board::{Board, Row};
pub use catalogue::{CATALOGUE, Expect, Open, Probe, Wall, When, all, find};
pub use inside::{accomplice_main, battery_main, linger_main};
pub use judge::{Answer, Finding, Gap, Sighting, Verdict, judge, judge_all};
pub use outside::{
    Backend, Boxed, Count, Engine, Native, Place, ProbeError, Run, Running, Stop, ask_for_probe,
    keeper_main, known_gaps, probe_on_start,
};

pub(crate) use errno::name as errno_name;

/// `argv[1]` of a battery inside: `__walls quick|full|tight|memory BAIT`. Not for people.
pub const WALLS_ROLE: &str = "__walls";
/// `argv[1]` of the other session that a battery looks for.
pub const ACCOMPLICE_ROLE: &str = "__walls-other";
/// `argv[1]` of what tries to outlive its session.
pub const LINGER_ROLE: &str = "__walls-linger";
/// `argv[1]` of a process outside that has a container made and is killed for it.
pub const KEEPER_ROLE: &str = "__walls-keeper";
