//! Probes: attempts made inside a sandbox to find out what is really enforced.
//!
//! ```text
//! Catalogue (what is tried, and why it must fail) ─► probe_main (tries it, inside) ─► Observation
//! ```
//!
//! 1. A probe tries the act itself; it never asks the system whether the act would be allowed.
//! 2. Every probe can trip: run without walls it reports `held: false`. A test does just that.
//! 3. A probe is bounded in time, processes and memory, so that it is safe without walls too.

mod catalogue;
mod inside;
mod search;
pub mod walls;

pub use catalogue::{CATALOGUE, Principle, Probe};
pub use inside::probe_main;

use serde::{Deserialize, Serialize};

/// What one probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Name of the probe in the [`CATALOGUE`].
    pub probe: String,
    /// `true` when the act was refused.
    pub held: bool,
    /// What answered, in one line: the system call and its errno, or the gateway's words.
    pub observed: String,
}
