//! The Linux program that a macOS build carries, to be the guest's first process.
//!
//! A build for macOS is made with `--features guest` and
//! `NANOCLAW_GUEST=/path/to/aarch64-unknown-linux-musl/release/nanoclaw`: the product's own static
//! Linux binary of the same version (`cargo xtask build --target aarch64-unknown-linux-musl`). The
//! guest tells its version before anything else, and another one is refused.

/// What is carried; nothing without the feature.
#[cfg(feature = "guest")]
static CARRIED: Option<&[u8]> = Some(include_bytes!(env!("NANOCLAW_GUEST")));
#[cfg(not(feature = "guest"))]
static CARRIED: Option<&[u8]> = None;

/// The guest's program as a build carries it; `None` in one that was made without.
#[must_use]
pub fn guest_program() -> Option<&'static [u8]> {
    CARRIED
}
