//! The clock and the kernel's randomness.

use std::time::{SystemTime, UNIX_EPOCH};

/// The real world.
pub(crate) struct Real;

/// Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Fills from the kernel's generator (getrandom(2)), which does not fail once booted.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        if let Ok(n) = rustix::rand::getrandom(&mut bytes[filled..], flags) {
            filled += n;
        }
    }
    bytes
}

impl orchestrator::World for Real {
    fn now_ms(&self) -> u64 {
        now_ms()
    }
    fn random(&self) -> u32 {
        u32::from_le_bytes(random_bytes())
    }
    fn salt(&self) -> [u8; 16] {
        random_bytes()
    }
}
