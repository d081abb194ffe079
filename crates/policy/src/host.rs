//! Hosts as people write them ─► names as programs send them.
//!
//! ```text
//! "Bücher。Example." ─► mapped, checked (UTS #46) ─► "xn--bcher-kva.example"
//! ```
//!
//! 1. What comes out is ASCII and in the one form in which requests are judged; a request itself is
//!    never mapped, for programs send that form.
//! 2. Upper case, wide letters, the other full stops, soft hyphens and a trailing dot make no
//!    difference; what has no valid form is refused, with the reason.
//! 3. Letters of one script that pose as another's are refused unless written as `xn--`.

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, ErrorPolicy, Hyphens, Uts46};
use model::{HostName, HostNameError, HostPattern};

/// Longest text looked at: the longest name, each of its characters in four bytes.
const TEXT_BYTES_MAX: usize = 4 * 253;

/// Full stops of other scripts, which UTS #46 maps to `.`.
const FULL_STOPS: [char; 4] = ['.', '\u{3002}', '\u{ff0e}', '\u{ff61}'];

/// An exact host in any script; the result is in its `xn--` form.
///
/// # Errors
/// As [`HostName::parse`]; also for what has no `xn--` form, `xn--` forms of nothing, and parts
/// that mix letters of scripts that look alike.
pub fn parse_host_name(text: &str) -> Result<HostName, HostNameError> {
    let refused = |why| HostNameError { value: text.chars().take(80).collect(), why };
    if text.is_ascii() && !text.to_ascii_lowercase().contains("xn--") {
        return HostName::parse(text);
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(refused("it is longer than 253 characters"));
    }
    let bytes = text.strip_suffix(FULL_STOPS).unwrap_or(text).as_bytes();
    let (rules, hyphens) = (AsciiDenyList::STD3, Hyphens::CheckFirstLast);
    let mapped = Uts46::new().to_ascii(bytes, rules, hyphens, DnsLength::Verify);
    let name = mapped.map_err(|_| match text.is_ascii() {
        true => refused("a part that begins with xn-- stands for no name"),
        false => refused("a character, its place or a length in it is not permitted (UTS #46)"),
    })?;
    if !text.is_ascii() && mixes(&name) {
        return Err(refused(
            "a part mixes letters that look alike, of Latin, Greek, Cyrillic or Armenian; if it is \
             meant, write its xn-- form",
        ));
    }
    HostName::parse(&name).map_err(|e| refused(e.why))
}

/// An exact host, or `*.` and a suffix, in any script.
///
/// # Errors
/// As [`parse_host_name`] and [`HostPattern::parse`].
pub fn parse_host_pattern(text: &str) -> Result<HostPattern, HostNameError> {
    match text.strip_prefix('*').and_then(|rest| rest.strip_prefix(FULL_STOPS)) {
        None => parse_host_name(text).map(HostPattern::Exact),
        Some(base) => {
            let base = parse_host_name(base).map_err(|e| HostNameError {
                value: text.chars().take(80).collect(),
                why: e.why,
            })?;
            HostPattern::parse(&format!("*.{base}"))
        }
    }
}

/// Whether a part of the name has letters of more than one of the scripts that look alike.
fn mixes(name: &str) -> bool {
    let mut found = false;
    let mut shown = String::with_capacity(name.len());
    let _ = Uts46::new().process(
        name.as_bytes(),
        AsciiDenyList::STD3,
        Hyphens::CheckFirstLast,
        ErrorPolicy::MarkErrors,
        |label, _, _| {
            let mut scripts = label.iter().filter_map(|c| script(*c));
            let first = scripts.next();
            found |= scripts.any(|other| Some(other) != first);
            true
        },
        &mut shown,
        None,
    );
    found
}

/// The scripts with letters that look like each other's, by Unicode block.
fn script(c: char) -> Option<u8> {
    match c {
        'a'..='z' | '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => Some(b'L'),
        '\u{370}'..='\u{3ff}' | '\u{1f00}'..='\u{1fff}' => Some(b'G'),
        '\u{400}'..='\u{52f}' | '\u{1c80}'..='\u{1c8f}' | '\u{a640}'..='\u{a69f}' => Some(b'C'),
        '\u{530}'..='\u{58f}' => Some(b'A'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> String {
        parse_host_name(text).unwrap_or_else(|e| panic!("{text:?}: {e}")).to_string()
    }

    #[test]
    fn names_in_any_script_come_out_as_programs_send_them() {
        for (written, sent) in [
            ("example.org", "example.org"),
            ("EXAMPLE.org.", "example.org"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.Example.", "xn--bcher-kva.example"),
            ("bu\u{308}cher.example", "xn--bcher-kva.example"),
            ("XN--Bcher-KVA.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.bücher.example", "xn--bcher-kva.xn--bcher-kva.example"),
            ("straße.example", "xn--strae-oqa.example"),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
            ("bücher\u{ff0e}example\u{3002}", "xn--bcher-kva.example"),
            ("good\u{ff0e}test", "good.test"),
            ("ex\u{ad}ample.org", "example.org"),
            ("\u{ff45}xample.org", "example.org"),
            ("пример.испытание", "xn--e1afmkfd.xn--80akhbyknj4f"),
            ("xn--pypal-4ve.example", "xn--pypal-4ve.example"),
        ] {
            assert_eq!(host(written), sent, "{written}");
        }
    }

    #[test]
    fn what_has_no_form_or_two_faces_is_refused() {
        for bad in [
            "",
            ".",
            "\u{3002}",
            "\u{ad}",
            "p\u{430}ypal.example",
            "\u{3b1}lpha.example",
            "xn--bücher.example",
            "xn--a.example",
            "xn--.example",
            "a..bücher.example",
            "bücher.example..",
            "-bücher.example",
            "bücher_x.example",
            "bücher example",
            "bücher.example:443",
            "bücher.example/x",
            "u@bücher.example",
            "*.bücher.example",
            "a\u{200d}b.example",
            "\u{5d0}a.example",
            "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
            "bücher.1",
            "a\u{0}b.example",
            "\u{fffd}.example",
        ] {
            assert!(parse_host_name(bad).is_err(), "{bad:?}");
        }
        assert!(parse_host_name(&"ü".repeat(70)).is_err(), "a part that is too long");
        assert!(parse_host_name(&"ü.".repeat(2_000)).is_err(), "a name that is too long");
    }

    #[test]
    fn suffixes_are_mapped_like_names() {
        let pattern = |text: &str| parse_host_pattern(text).map(|p| p.to_string());
        for written in ["*.Bücher.example", "*\u{3002}bücher.example.", "*.xn--bcher-kva.example"]
        {
            assert_eq!(pattern(written).as_deref(), Ok("*.xn--bcher-kva.example"), "{written}");
        }
        assert_eq!(pattern("bücher.example").as_deref(), Ok("xn--bcher-kva.example"));
        for bad in ["*.", "*", "*.bücher", "a.*.bücher.example", "**.bücher.example", "*.*.a.b"]
        {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }

    /// Whatever is written: no panic, and what comes out is plain, stable, and the same however
    /// its dots, its case and its invisible characters are written.
    #[test]
    fn random_texts_come_out_plain_and_stable_or_not_at_all() {
        let parts = [
            "a",
            "Z",
            "9",
            "-",
            ".",
            "xn--",
            "ü",
            "Ü",
            "ß",
            "u\u{308}",
            "例",
            "а",
            "α",
            "\u{ad}",
            "\u{ff0e}",
            "\u{3002}",
            "\u{200d}",
            "\u{202e}",
            "\u{5d0}",
            "\u{661}",
            "_",
            "*",
            "\u{0}",
            "%",
            "bcher-kva",
            "😀",
            "\u{10ffff}",
            "example",
            ".org",
        ];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        let mut valid = 0;
        for _ in 0..60_000 {
            let text: String = (0..=next(7)).map(|_| parts[next(parts.len())]).collect();
            let Ok(name) = parse_host_name(&text) else { continue };
            valid += 1;
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
            assert!(name.as_str().bytes().all(plain), "{text:?} → {name}");
            assert_eq!(parse_host_name(name.as_str()).as_ref(), Ok(&name), "{text:?}");
            assert_eq!(HostName::parse(name.as_str()).as_ref(), Ok(&name), "{text:?}");
            for same in [text.replace('.', "\u{ff61}"), format!("\u{ad}{text}"), format!("{text}.")]
            {
                if !text.ends_with(FULL_STOPS) && !text.to_ascii_lowercase().contains("xn--") {
                    assert_eq!(parse_host_name(&same).as_ref(), Ok(&name), "{text:?} {same:?}");
                }
            }
            if let Ok(pattern) = parse_host_pattern(&format!("*.{text}")) {
                assert_eq!(pattern.base(), &name, "{text:?}");
            }
        }
        assert!(valid > 1_000, "only {valid} of the texts were names");
    }
}
