//! Does a value look like a credential? A detector that would rather refuse than leak.

/// Words that agents and SDKs take as a placeholder where they insist on a key.
const PLACEHOLDERS: [&str; 8] =
    ["dummy", "local", "placeholder", "none", "not-needed", "unused", "changeme", "example"];

/// Parts of names that announce a secret.
const TELLING_NAMES: [&str; 6] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"];

/// Shortest value under a telling name that counts as a secret.
const NAMED_CHARS_MIN: usize = 6;

/// Shortest text judged by its entropy alone.
const ENTROPY_CHARS_MIN: usize = 20;

/// Shortest rest, once dictionary-like words are taken away, judged by entropy.
const RANDOM_CHARS_MIN: usize = 16;

/// Bits per character above which a text counts as random: English words of this length stay
/// near 3.0, sixteen hexadecimal digits near 3.3, base64 above 4.
const ENTROPY_BITS_MIN: f64 = 3.1;

/// Characters after a known prefix that make it a token and not a word.
const AFTER_PREFIX_MIN: usize = 8;

/// Known beginnings of tokens, written in two halves so that scanners of this file stay quiet.
const PREFIXES: [&str; 27] = [
    concat!("sk", "-"),
    concat!("sk", "_live_"),
    concat!("sk", "_test_"),
    concat!("rk", "_live_"),
    concat!("gh", "p_"),
    concat!("gh", "o_"),
    concat!("gh", "s_"),
    concat!("gh", "u_"),
    concat!("gh", "r_"),
    concat!("github", "_pat_"),
    concat!("gl", "pat-"),
    concat!("xo", "xb-"),
    concat!("xo", "xp-"),
    concat!("xo", "xa-"),
    concat!("xa", "pp-"),
    concat!("AK", "IA"),
    concat!("AS", "IA"),
    concat!("AI", "za"),
    concat!("ya", "29."),
    concat!("hf", "_"),
    concat!("np", "m_"),
    concat!("py", "pi-"),
    concat!("gs", "k_"),
    concat!("xa", "i-"),
    concat!("dop", "_v1_"),
    concat!("wh", "sec_"),
    concat!("ey", "J"),
];

/// Why `value`, given to `name`, looks like a credential; `None` if it does not.
///
/// Total; reads every character once; never keeps or returns the value.
#[must_use]
pub fn looks_like_credential(name: &str, value: &str) -> Option<&'static str> {
    let value = value.trim();
    if PLACEHOLDERS.iter().any(|p| value.eq_ignore_ascii_case(p)) {
        return None;
    }
    if let Some(why) = known_form(value) {
        return Some(why);
    }
    if pieces(value).any(is_random) {
        return Some("it is long and random");
    }
    let name = name.to_ascii_uppercase();
    if TELLING_NAMES.iter().any(|t| name.contains(t)) && !is_trivial(value) {
        return Some("its name says that it is one");
    }
    None
}

/// Why a text contains a credential of a known form, whatever its name. Looks at form only, so
/// that it can be used on prose and on command lines.
#[must_use]
pub fn known_form(text: &str) -> Option<&'static str> {
    if text.contains(concat!("-----BEGIN ", "")) && text.contains("PRIVATE KEY") {
        return Some("it is a private key");
    }
    if has_userinfo(text) {
        return Some("it is an address with a password in it");
    }
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let token = |word: &str| {
        PREFIXES.iter().any(|p| {
            word.strip_prefix(p).is_some_and(|rest| {
                rest.len() >= AFTER_PREFIX_MIN && rest.bytes().any(|b| b.is_ascii_alphanumeric())
            })
        })
    };
    words.any(token).then_some("it begins like a known kind of token")
}

/// `scheme://user:password@host`.
fn has_userinfo(text: &str) -> bool {
    text.split("://").skip(1).any(|after| {
        let authority = after.split(['/', '?', '#', ' ']).next().unwrap_or("");
        authority.rsplit_once('@').is_some_and(|(user, _)| {
            user.split_once(':').is_some_and(|(_, password)| !password.is_empty())
        })
    })
}

/// The pieces that are judged one by one. In paths and addresses '/' separates; elsewhere it may
/// be a digit of base64.
fn pieces(value: &str) -> impl Iterator<Item = &str> {
    let is_path = value.starts_with(['/', '~', '.']) || value.contains("://");
    value.split(move |c: char| {
        c.is_whitespace() || ",;:@&?\"'()[]{}<>|=".contains(c) || (is_path && c == '/')
    })
}

fn is_random(piece: &str) -> bool {
    if piece.chars().count() < ENTROPY_CHARS_MIN {
        return false;
    }
    let mut rest = String::new();
    for word in piece.split(['-', '_', '.']) {
        let one_case = word.bytes().all(|b| b.is_ascii_lowercase())
            || word.bytes().all(|b| b.is_ascii_uppercase())
            || word.bytes().all(|b| b.is_ascii_digit());
        if one_case && word.len() < ENTROPY_CHARS_MIN {
            continue; // a word or a number: `my-long-branch-name-2026`
        }
        rest.push_str(word);
    }
    rest.len() >= RANDOM_CHARS_MIN
        && rest.bytes().any(|b| b.is_ascii_alphabetic())
        && entropy_bits(&rest) >= ENTROPY_BITS_MIN
}

/// Shannon entropy of the bytes, in bits per byte.
fn entropy_bits(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = text.len().max(1) as f64;
    counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) / total).map(|p| -p * p.log2()).sum()
}

/// Values under a telling name that are certainly no secret: short, numbers, switches, paths.
fn is_trivial(value: &str) -> bool {
    value.chars().count() < NAMED_CHARS_MIN
        || value.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        || value.starts_with(['/', '~'])
}

#[cfg(test)]
mod tests {
    use super::looks_like_credential;

    #[test]
    fn tokens_and_keys_are_seen() {
        let made_up = "test-key-not-real";
        for (name, value) in [
            ("X", format!("{}{made_up}", concat!("sk", "-"))),
            ("X", format!("Bearer {}{made_up}", concat!("gh", "p_"))),
            ("X", format!("{}{made_up}", concat!("AK", "IA"))),
            ("X", "postgres://me:not-real@db/app".to_owned()),
            ("X", format!("-----BEGIN {} PRIVATE KEY-----\nnot real", "TEST")),
            ("X", "0123456789abcdef0123456789abcdef".to_owned()),
            ("X", "id=Qm9ndXNCb2d1c0JvZ3VzMTIzNDU2".to_owned()),
            ("X", "qwertzuiopasdfghjklyxcvbnm".to_owned()),
            ("API_KEY", made_up.to_owned()),
            ("db_password", "hunter-two".to_owned()),
            ("GITHUB_TOKEN", made_up.to_owned()),
        ] {
            assert!(looks_like_credential(name, &value).is_some(), "{name}");
        }
    }

    #[test]
    fn ordinary_values_pass() {
        for (name, value) in [
            ("LANG", "en_US.UTF-8"),
            ("RUST_LOG", "info,nanoclaw=debug"),
            ("PYTHONPATH", "/usr/lib/python3.12/site-packages:/mnt/libraries/v2"),
            ("MAX_TOKENS", "4096"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("BRANCH", "my-long-feature-branch-name-2026"),
            ("GREETING", "Good morning to everybody in the room"),
            ("OPENAI_API_KEY", "dummy"),
            ("SSH_KEY_PATH", "/mnt/notes/readme"),
            ("URL", "https://api.example.org/v1/resources?page=12"),
            ("EMPTY_KEY", ""),
        ] {
            assert_eq!(looks_like_credential(name, value), None, "{name}");
        }
    }
}
