//! `SecretBytes` and `SecretName`: the value that cannot be shown, and the name that can.

use super::VaultError;
use crate::mask::SECRET_BYTES_MIN;
use std::fmt;
use zeroize::Zeroizing;

/// Largest secret: above any API key or private key in PEM, below anything that could make a
/// header that servers refuse.
pub(crate) const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Also for one that was sealed by an older version.
pub(super) const TOO_SHORT: &str = "it has fewer than 6 bytes, so it could not be masked where a \
    server repeats it; have a longer one issued and set that";
/// Longest name: it becomes a file name together with a suffix.
const NAME_CHARS_MAX: usize = 64;

/// What stands before a login's name where it is sealed.
const LOGIN: &str = "login:";

/// The bytes of a secret. No `Debug`, `Display`, `Clone` or `Serialize`; wiped when dropped.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of the bytes; the caller keeps no copy.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one place that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Trims one trailing newline and applies the rules for values.
    pub(crate) fn checked(mut self) -> Result<Self, VaultError> {
        if self.0.last() == Some(&b'\n') {
            self.0.pop();
            if self.0.last() == Some(&b'\r') {
                self.0.pop();
            }
        }
        let refused = |why| Err(VaultError::Refused { what: "the secret's value", why });
        if self.0.is_empty() {
            return refused("it is empty");
        }
        if self.0.len() < SECRET_BYTES_MIN {
            return refused(TOO_SHORT);
        }
        if self.0.len() > VALUE_BYTES_MAX {
            return refused("it is longer than 16 KiB");
        }
        if self.0.iter().any(|b| matches!(b, 0 | b'\n' | b'\r')) {
            return refused("it contains a NUL or a line break; give it as one line");
        }
        Ok(self)
    }
}

/// The name of a secret: ASCII letters, digits, inner `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName(String);

impl SecretName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// When it is empty, longer than 64 characters, has other characters, or starts or ends with
    /// '-'.
    pub fn parse(value: &str) -> Result<Self, VaultError> {
        let fits = !value.is_empty()
            && value.len() <= NAME_CHARS_MAX
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !value.starts_with('-')
            && !value.ends_with('-');
        if fits {
            Ok(Self(value.to_owned()))
        } else {
            Err(VaultError::Refused {
                what: "the secret's name",
                why: "it must have 1 to 64 letters, digits, '_' and inner '-'",
            })
        }
    }

    /// What a login of that name is sealed as: no secret can be called so.
    pub(super) fn of_login(name: &str) -> Result<Self, VaultError> {
        Self::parse(name).map(|name| Self(format!("{LOGIN}{name}")))
    }

    /// The login's own name again.
    pub(super) fn login_of(sealed: &str) -> &str {
        sealed.strip_prefix(LOGIN).unwrap_or(sealed)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
