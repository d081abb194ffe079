//! Machines that are slow by nature, such as an emulated one.

use std::time::Duration;

/// The variable that says how many times slower than usual this machine is: a whole number, 1 to
/// 100. Not set means 1.
pub const SLOW: &str = "NANOCLAW_SLOW";
const MAX: u32 = 100;

/// How many times slower than usual this machine is. For the time that a test waits at most, and
/// for pauses that let something happen; never for what must be found.
///
/// # Panics
/// If the variable holds anything else than a number from 1 to 100.
#[must_use]
pub fn slow() -> u32 {
    let value = std::env::var(SLOW).ok();
    // A wrong number would make every limit a wrong one.
    #[allow(clippy::panic)]
    factor(value.as_deref()).unwrap_or_else(|| panic!("{SLOW}={value:?} is no number, 1 to {MAX}"))
}

/// `limit` on a usual machine, as long as this one needs.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    limit * slow()
}

fn factor(value: Option<&str>) -> Option<u32> {
    match value {
        None | Some("") => Some(1),
        Some(text) => text.parse().ok().filter(|n| (1..=MAX).contains(n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_number_makes_tests_wait_longer() {
        assert_eq!(
            (factor(None), factor(Some("")), factor(Some("15"))),
            (Some(1), Some(1), Some(15))
        );
        for wrong in ["0", "-1", "1.5", "fast", "101"] {
            assert_eq!(factor(Some(wrong)), None, "{wrong}");
        }
    }
}
