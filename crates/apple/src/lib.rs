//! Apple's `container` (macOS) as its command line is: what it is asked, and what it answers.
//!
//! ```text
//! spec ─► Container ─► create ─► inspect ─► verify ─► start --attach ─► [ virtual machine ]
//!           version ≥ 1.1.0, image is there               streams │  line: frames │ guest's init
//! ```
//!
//! Each container is a virtual machine with a Linux kernel of its own. Its first process is our
//! own static Linux program, which makes the sandbox there as the native backend does anywhere;
//! the two ends speak over one relayed socket, the line. The sandbox crate has both ends.
//!
//! Invariants:
//! 1. Compiles on every target and needs no Apple SDK: the program is asked, never a library.
//! 2. Every answer is bounded in time and length, and an answer that is not understood is an error.
//! 3. What the program says of a container can only add a reason to refuse it: nothing outside the
//!    machine shows whether it is true.
//! 4. Nothing is pulled: an image that is not there is refused before anything is created.
//!
//! None of this was ever run against Apple's program: the tests use one that knows its documented
//! grammar (`docs/backends.md`).

mod carried;
mod cli;
mod control;
mod error;
mod inspect;
pub mod line;
mod request;
mod version;

pub use carried::guest_program;
pub use cli::{ANSWER_MAX, Cli, PROGRAM};
pub use control::Apple;
pub use error::{Error, ErrorKind};
pub use inspect::{Inspected, parse, verify};
pub use request::{Container, GUEST_ROLE, Mount, Occasion, PROGRAM_INSIDE};
pub use version::{FLOOR, Found, Version, judge};
