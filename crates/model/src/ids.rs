//! Typed ids. Each is short, printable, free of path and shell characters, and checked once.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {why}")]
pub struct IdError {
    /// Which id was meant, for people: "session id", "agent name".
    pub kind: &'static str,
    /// What was given, cut to 80 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Longest id accepted: it becomes a file name together with a suffix (NAME_MAX is 255).
const ID_CHARS_MAX: usize = 64;

fn check(kind: &'static str, value: &str) -> Result<(), IdError> {
    let err = |why| Err(IdError { kind, value: value.chars().take(80).collect(), why });
    if value.is_empty() {
        return err("it is empty");
    }
    if value.len() > ID_CHARS_MAX {
        return err("it is longer than 64 characters");
    }
    if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return err("only lower-case letters, digits and '-' are allowed");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return err("it may not start or end with '-'");
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a string.
            ///
            /// # Errors
            /// When it is empty, longer than 64 characters, or has any character other than
            /// lower-case ASCII letters, digits and inner '-'.
            pub fn parse(value: &str) -> Result<Self, IdError> {
                check($kind, value)?;
                Ok(Self(value.to_owned()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                check($kind, &value)?;
                Ok(Self(value))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// One conversation of an agent; also the name of its sandbox and of its door.
    SessionId,
    "session id"
);
id!(
    /// One prompt and its result.
    TurnId,
    "turn id"
);
id!(
    /// One message in, or one reply out.
    MessageId,
    "message id"
);
id!(
    /// The name of a configured worker: `agents/<name>.toml`.
    AgentName,
    "agent name"
);

/// 48 bits of milliseconds and 32 bits of randomness make `20` base-32 characters at most:
/// ids sort by time and do not collide among any number of sessions a machine can hold.
fn time_ordered(prefix: char, unix_ms: u64, random: u32) -> String {
    format!("{prefix}{unix_ms:011x}-{random:08x}")
}

macro_rules! minted {
    ($($name:ident $prefix:literal),*) => {$(
        impl $name {
            /// Makes an id that sorts by time. The caller brings clock (Unix milliseconds) and
            /// randomness, for this crate has neither.
            #[must_use]
            pub fn mint(unix_ms: u64, random: u32) -> Self {
                Self(time_ordered($prefix, unix_ms, random))
            }
        }
    )*};
}
minted!(SessionId 's', TurnId 't', MessageId 'm');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_become_a_path_or_an_argument() {
        for bad in ["", "..", "a/b", "-rf", "a-", "A", "a b", "a\n", "é", &"x".repeat(65)] {
            assert!(SessionId::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(AgentName::parse("triage-2").is_ok());
    }

    #[test]
    fn minted_ids_are_valid_and_sort_by_time() {
        let a = SessionId::mint(1_000, 0xffff_ffff);
        let b = SessionId::mint(1_001, 0);
        assert!(a < b);
        assert!(SessionId::parse(a.as_str()).is_ok());
    }
}
