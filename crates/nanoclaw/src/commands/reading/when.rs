//! Times as people write them: a date, a date and a time (UTC), or how long ago.

use crate::failure::{Failure, Result};
use crate::world::now_ms;

const REMEDY: &str =
    "write 2026-01-31, '2026-01-31 17:30' (UTC), or how long ago: 90min, 12h, 30d, 4w";

/// Unix milliseconds.
pub(super) fn parse(text: &str) -> Result<u64> {
    parse_at(text, now_ms())
        .ok_or_else(|| Failure::usage(format!("{text:?} is not a time")).remedy(REMEDY))
}

fn parse_at(text: &str, now_ms: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return date(text),
    };
    now_ms.checked_sub(number.parse::<u64>().ok()?.checked_mul(factor)?)
}

fn date(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (day, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let mut parts = day.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, date) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    if date == 0 || date > days_of(year, month) {
        return None;
    }
    let mut parts = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years: u64 = (1970..year).map(|y| if leap(y) { 366 } else { 365 }).sum();
    let months: u64 = (1..month).map(|m| days_of(year, m)).sum();
    let days = years + months + date - 1;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000)
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_spans_are_read_and_nothing_else() {
        for (text, want) in [
            ("1970-01-01", Some(0)),
            ("2000-02-29", Some(951_782_400_000)),
            ("2026-01-31 17:30", Some(1_769_880_600_000)),
            ("2026-01-31T17:30:05Z", Some(1_769_880_605_000)),
            ("2d", Some(1_000_000_000_000 - 172_800_000)),
            ("90min", Some(1_000_000_000_000 - 5_400_000)),
            ("1900-01-01", None),
            ("2001-02-29", None),
            ("2026-13-01", None),
            ("2026-01-31 24:00", None),
            ("yesterday", None),
            ("", None),
            ("5", None),
            ("99999999999999999999d", None),
            ("99999999d", None),
        ] {
            assert_eq!(parse_at(text, 1_000_000_000_000), want, "{text}");
        }
        // As the story writes them.
        assert!(
            audit::story::utc(parse_at("2026-01-31 17:30", 0).unwrap_or(0))
                .starts_with("2026-01-31 17:30:00")
        );
    }
}
