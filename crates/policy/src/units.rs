//! Sizes and durations as people write them, always with a unit.

use crate::error::{Problem, quote};
use std::time::Duration;

/// Largest size: 2^50 bytes. Keeps every size below 2^53, the largest integer that canonical
/// JSON (RFC 8785 §3.2.2.3) carries exactly.
const SIZE_MAX: u64 = 1 << 50;

/// Longest duration: a week. A longer turn is a mistake in a unit.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

const SIZE_UNITS: [(&str, u64); 4] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

const DURATION_UNITS: [(&str, u64); 4] =
    [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000)];

/// Splits `512MiB` into number and unit; only ASCII digits, no sign, no fraction.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.strip_prefix(' ').unwrap_or(unit)))
}

/// Parses a size such as `1GiB`, `512MiB`, `64KiB`, in bytes.
///
/// # Errors
/// Without a binary unit, for fractions, zero, and more than 1024 TiB.
pub fn parse_size(key: &str, text: &str) -> Result<u64, Problem> {
    const REMEDY: &str = "write a whole number and a unit: KiB, MiB, GiB or TiB, e.g. \"512MiB\"";
    let bad = |why: &str| Problem::bad(key, format!("is {}: {why}", quote(text)), REMEDY);
    let (number, unit) = split(text).ok_or_else(|| bad("not a size"))?;
    if unit.is_empty() {
        return Err(bad("a size needs a unit"));
    }
    let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
    let (_, factor) = known.ok_or_else(|| bad("not a unit of size known here"))?;
    match number.checked_mul(*factor) {
        Some(0) => Err(bad("zero is not a limit")),
        Some(bytes) if bytes <= SIZE_MAX => Ok(bytes),
        _ => Err(bad("more than 1024TiB")),
    }
}

/// Parses a duration such as `30s`, `10min`, `2h`, `500ms`.
///
/// # Errors
/// Without a unit, for fractions, zero, and more than a week.
pub fn parse_duration(key: &str, text: &str) -> Result<Duration, Problem> {
    const REMEDY: &str = "write a whole number and a unit: ms, s, min or h, e.g. \"10min\"";
    let bad = |why: &str| Problem::bad(key, format!("is {}: {why}", quote(text)), REMEDY);
    let (number, unit) = split(text).ok_or_else(|| bad("not a duration"))?;
    if unit.is_empty() {
        return Err(bad("a duration needs a unit"));
    }
    let known = DURATION_UNITS.iter().find(|(name, _)| *name == unit);
    let (_, factor) = known.ok_or_else(|| bad("not a unit of time known here"))?;
    match number.checked_mul(*factor).map(Duration::from_millis) {
        Some(Duration::ZERO) => Err(bad("zero is not a limit")),
        Some(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err(bad("more than a week")),
    }
}

/// A size with the largest unit that divides it, or plain bytes.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    match SIZE_UNITS.iter().rev().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes} bytes"),
    }
}

/// A duration with the largest unit that divides it.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, factor): &&(&str, u64)| ms >= *factor && ms.is_multiple_of(*factor);
    match DURATION_UNITS.iter().rev().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", ms / factor),
        None => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_round_trip() {
        for text in ["1GiB", "512MiB", "64KiB", "1025KiB", "1024TiB"] {
            let bytes = parse_size("memory", text).expect(text);
            assert_eq!(parse_size("memory", &format_size(bytes)), Ok(bytes), "{text}");
        }
        for text in ["10min", "30s", "2h", "1500ms", "168h"] {
            let d = parse_duration("turn_timeout", text).expect(text);
            assert_eq!(parse_duration("turn_timeout", &format_duration(d)), Ok(d), "{text}");
        }
        assert_eq!(parse_size("memory", "1 GiB"), Ok(1 << 30));
    }

    #[test]
    fn what_has_no_unit_or_no_sense_is_refused() {
        for bad in ["", "1024", "GiB", "1.5GiB", "-1GiB", "1GB", "0KiB", "1025TiB", "1gib", "1GiBx"]
        {
            assert!(parse_size("memory", bad).is_err(), "{bad}");
        }
        assert!(parse_size("memory", "99999999999999999999GiB").is_err());
        for bad in ["", "10", "10m", "1d", "0s", "169h", "1.5h", "s", "-1s", "١s"] {
            assert!(parse_duration("timeout", bad).is_err(), "{bad}");
        }
    }
}
