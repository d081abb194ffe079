//! Text that looks like a secret: a known prefix, or a random-looking value under a telling name.

use super::{File, Finding};

/// Beginnings of the tokens that services issue, in pieces so that this table is no finding.
const PREFIXES: &[(&str, &str)] = &[
    ("sk-", "ant-"),
    ("sk-", "proj-"),
    ("sk-", ""),
    ("gh", "p_"),
    ("gh", "o_"),
    ("gh", "s_"),
    ("github", "_pat_"),
    ("gl", "pat-"),
    ("xo", "xb-"),
    ("xo", "xp-"),
    ("AK", "IA"),
    ("AI", "za"),
    ("hf", "_"),
];
/// After a prefix, this many characters without a pause make a token.
const TOKEN_TAIL: usize = 16;
/// The names whose values are looked at.
const TELLING_NAMES: &[&str] = &["key", "token", "secret", "passw", "credential"];
/// A shorter value is a word or an id.
const VALUE_LENGTH: usize = 24;
/// Bits a character; English in snake case stays below 4, random base64 of this length above.
const RANDOM_BITS: f64 = 4.0;

/// Lines of `file` that hold something like a real secret.
pub(super) fn look_like_secrets(file: &File) -> Vec<Finding> {
    if file.is_generated() {
        return Vec::new();
    }
    let lines = file.text.lines().enumerate().filter(|(_, line)| is_suspicious(line));
    lines
        .map(|(index, _)| {
            file.finding(
                index + 1,
                "looks like a secret: take it out; a sample says that it is one",
            )
        })
        .collect()
}

fn is_suspicious(line: &str) -> bool {
    let key_file = format!("-----{} ", "BEGIN");
    if line.contains(&key_file) && line.contains("PRIVATE KEY-----") && line.trim().len() < 64 {
        return true;
    }
    let mut tokens = line.split(|c: char| !(c.is_ascii_alphanumeric() || "_-+/=".contains(c)));
    let lower = line.to_ascii_lowercase();
    let telling = TELLING_NAMES.iter().any(|name| lower.contains(name));
    tokens.any(|token| has_known_prefix(token) || (telling && is_random(token)))
}

fn has_known_prefix(token: &str) -> bool {
    PREFIXES.iter().any(|(a, b)| {
        let tail = token.strip_prefix(a).and_then(|rest| rest.strip_prefix(b));
        tail.is_some_and(|tail| {
            tail.len() >= TOKEN_TAIL
                && tail.bytes().any(|byte| byte.is_ascii_digit())
                && !says_it_is_a_sample(tail)
        })
    })
}

fn says_it_is_a_sample(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    ["not-real", "not_real", "example", "fake", "test", "placeholder"]
        .iter()
        .any(|word| lower.contains(word))
}

/// Long, of three kinds of characters, and without the repetition of words.
fn is_random(token: &str) -> bool {
    let token = token.trim_matches('=');
    let has = |kind: fn(&u8) -> bool| token.as_bytes().iter().any(kind);
    token.len() >= VALUE_LENGTH
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_uppercase)
        && bits_a_character(token) >= RANDOM_BITS
        && !says_it_is_a_sample(token)
}

/// Shannon entropy of the characters of `text`.
fn bits_a_character(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX));
    let part = |count: &u32| f64::from(*count) / total;
    counts.iter().filter(|count| **count > 0).map(part).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_token_with_a_known_prefix_trips() {
        for (a, b) in PREFIXES {
            let line = format!("x = \"{a}{b}Zq8Wn3Lr7Tb2Vx9Kd4Mf\"");
            let file = File::new("a.toml", line.clone());
            assert_eq!(look_like_secrets(&file).len(), 1, "{line}");
        }
        assert!(is_suspicious(&format!("-----{} PRIVATE KEY-----", "BEGIN")));
    }

    #[test]
    fn a_random_value_trips_only_under_a_telling_name() {
        let value = ["Zq8Wn3Lr7Tb2", "Vx9Kd4MfPh6Cs1"].concat();
        assert!(is_suspicious(&format!("api_key = \"{value}\"")));
        assert!(!is_suspicious(&format!("digest = \"{value}\"")));
    }

    #[test]
    fn samples_and_ordinary_text_do_not_trip() {
        for line in [
            "let key = \"test-key-not-real\";",
            "sk-ant-api03-this-is-not-real-0000",
            "secret = \"ThisIsAPlaceholder12345678901\"",
            "pub(crate) const MAX_SECRET_BYTES: usize = 64 * 1024; // the key's limit",
            "the token bucket of section 12 in ARCHITECTURE.md names it",
        ] {
            assert!(!is_suspicious(line), "{line}");
        }
    }
}
