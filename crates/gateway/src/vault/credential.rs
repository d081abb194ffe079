//! A guess whether an environment value is a credential, so that it is not put in a sandbox.

/// Beginnings of well-known tokens with what they are; in two pieces each, so that scanners for
/// leaked secrets do not take this table for a leak.
const PREFIXES: &[(&str, &str, &str)] = &[
    ("sk", "-", "it starts like a model provider's key"),
    ("gh", "p_", "it starts like a GitHub token"),
    ("gh", "o_", "it starts like a GitHub token"),
    ("gh", "s_", "it starts like a GitHub token"),
    ("gh", "u_", "it starts like a GitHub token"),
    ("gh", "r_", "it starts like a GitHub token"),
    ("github", "_pat_", "it starts like a GitHub token"),
    ("gl", "pat-", "it starts like a GitLab token"),
    ("xo", "xb-", "it starts like a Slack token"),
    ("xo", "xp-", "it starts like a Slack token"),
    ("xa", "pp-", "it starts like a Slack token"),
    ("AK", "IA", "it starts like an AWS key id"),
    ("AS", "IA", "it starts like an AWS key id"),
    ("AI", "za", "it starts like a Google API key"),
    ("ya", "29.", "it starts like a Google access token"),
    ("hf", "_", "it starts like a Hugging Face token"),
    ("gs", "k_", "it starts like a Groq key"),
    ("pplx", "-", "it starts like a Perplexity key"),
    ("npm", "_", "it starts like an npm token"),
    ("pypi", "-", "it starts like a PyPI token"),
    ("dop", "_v1_", "it starts like a DigitalOcean token"),
    ("age-secret", "-key-", "it is an age private key"),
    ("ey", "J", "it starts like a JSON web token"),
    ("-----BEGIN", " ", "it is a PEM block"),
];

/// Parts of names that announce a credential.
const NAME_PARTS: &[&str] =
    &["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "AUTH"];
/// Shorter values under a telling name ("1", "true", "dummy") are taken for switches.
const NAMED_VALUE_MIN: usize = 8;
/// Shorter than this a token could be guessed, so nobody issues them.
const PREFIXED_VALUE_MIN: usize = 12;
/// Random-looking values shorter than this are more often ids and versions than keys.
const RANDOM_VALUE_MIN: usize = 20;
/// Bits a character; English words and paths stay below, base64 and base62 keys above.
const RANDOM_BITS: f64 = 3.9;
/// Bits a character of hex keys; hex cannot go above 4.
const RANDOM_HEX_BITS: f64 = 3.3;

/// Says why `value`, to be set as environment variable `name`, looks like a credential, or `None`.
#[must_use]
pub fn looks_like_credential(name: &str, value: &str) -> Option<&'static str> {
    let value = value.trim();
    if value.len() >= PREFIXED_VALUE_MIN {
        for (start, rest, why) in PREFIXES {
            if value.strip_prefix(start).is_some_and(|tail| tail.starts_with(rest)) {
                return Some(why);
            }
        }
    }
    if has_userinfo(value) {
        return Some("it is a URL with a password in it");
    }
    let upper = name.to_ascii_uppercase();
    let told = upper.split('_').any(|word| NAME_PARTS.iter().any(|part| word.ends_with(part)));
    if told && value.len() >= NAMED_VALUE_MIN && !is_path(value) {
        return Some("its name says so, and its value is no mere switch");
    }
    if value.len() >= RANDOM_VALUE_MIN && is_random(value) {
        return Some("it is long and random, as keys are");
    }
    None
}

/// A path names a file that holds a key; that file is not in the sandbox unless mounted.
fn is_path(value: &str) -> bool {
    value.starts_with('/') || value.starts_with("~/") || value.starts_with("./")
}

fn has_userinfo(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

fn is_random(value: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_');
    if !value.bytes().all(token) || is_path(value) || is_uuid(value) {
        return false;
    }
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    if digits < 2 {
        return false;
    }
    let hex = value.bytes().all(|b| b.is_ascii_hexdigit());
    entropy_bits(value) >= if hex { RANDOM_HEX_BITS } else { RANDOM_BITS }
}

/// Session and request ids come as UUIDs; they are not secrets.
fn is_uuid(value: &str) -> bool {
    value.len() == 36
        && value.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// Shannon entropy of the characters, bits each.
fn entropy_bits(value: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for b in value.bytes() {
        counts[usize::from(b)] += 1;
    }
    let total = value.len() as f64;
    counts.iter().filter(|&&n| n > 0).map(|&n| f64::from(n) / total).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::looks_like_credential as looks;

    #[test]
    fn credentials_are_recognised_by_prefix_name_url_or_randomness() {
        let prefixed = |a: &str, b: &str| format!("{a}{b}not-a-real-one");
        assert!(looks("X", &prefixed("gh", "p_")).is_some());
        assert!(looks("X", &prefixed("sk", "-")).is_some());
        assert!(looks("MY_API_KEY", "long enough value").is_some());
        assert!(looks("DB_PASSWORD", "correct horse").is_some());
        assert!(looks("GITHUB_TOKEN", "whatever-it-is").is_some());
        assert!(looks("DATABASE_URL", "postgres://me:word@db/x").is_some());
        let random: String = (0..32_u32)
            .map(|i| char::from(b"0aB1cD2eF3gH4iJ5kL6mN7oP8qR9sTuV"[i as usize]))
            .collect();
        assert!(looks("X", &random).is_some());
    }

    #[test]
    fn everyday_values_pass() {
        for (name, value) in [
            ("LANG", "en_US.UTF-8"),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("TERM", "xterm-256color"),
            ("EDITOR", "/usr/bin/vim"),
            ("KEYBOARD", "de-latin1-nodeadkeys"),
            ("MONKEY", "1"),
            ("OPENAI_API_KEY", "dummy"),
            ("USE_TOKEN", "true"),
            ("SSH_KEY_FILE", "/home/me/.ssh/id"),
            ("REQUEST_ID", "123e4567-e89b-12d3-a456-426614174000"),
            ("GREETING", "hello to everybody in the world"),
            ("URL", "https://example.com/a/b?c=d@e:f"),
            ("HOME", "/home/someone-with-a-long-name-2026"),
        ] {
            assert_eq!(looks(name, value), None, "{name}={value}");
        }
    }
}
