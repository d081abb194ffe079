//! Images by name and digest.

use crate::Sha256Hex;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name: with every '/' written as three characters it is still a file name.
const NAME_BYTES_MAX: usize = 120;

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} {why}")]
pub struct ImageError {
    /// What was given, cut to 80 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// What an image is called on this machine, e.g. `debian:12` or `registry.example/team/tools`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// When it is empty or longer than 120 characters, has others than lower-case letters, digits,
    /// `.`, `_`, `-`, `/` and `:`, or when a part between slashes begins or ends with none of the
    /// first two.
    pub fn parse(value: &str) -> Result<Self, ImageError> {
        let err = |why| Err(ImageError { value: value.chars().take(80).collect(), why });
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if value.is_empty() || value.len() > NAME_BYTES_MAX {
            return err("is no name of an image: it must have 1 to 120 characters");
        }
        if !value.bytes().all(|b| plain(b) || b"._-/:".contains(&b)) {
            return err("is no name of an image: lower-case letters, digits and ._-/: are allowed");
        }
        let ends = |part: &str| {
            let (first, last) = (part.bytes().next(), part.bytes().last());
            first.is_some_and(plain) && last.is_some_and(plain)
        };
        if !value.split('/').all(ends) {
            return err(
                "is no name of an image: each part must begin and end with a letter or digit",
            );
        }
        Ok(Self(value.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = ImageError;
    fn try_from(value: String) -> Result<Self, ImageError> {
        Self::parse(&value)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// One image and no other: its name and the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// What it is called.
    pub name: ImageName,
    /// SHA-256 of its manifest, 64 lower-case hex digits.
    pub digest: Sha256Hex,
}

impl ImageRef {
    /// Reads `NAME@sha256:<64 hex digits>`.
    ///
    /// # Errors
    /// When the name is none, or the digest is missing or not a SHA-256.
    pub fn parse(value: &str) -> Result<Self, ImageError> {
        let err = |why| ImageError { value: value.chars().take(80).collect(), why };
        let (name, digest) = value.split_once('@').ok_or_else(|| err("has no digest"))?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digest = digest
            .strip_prefix("sha256:")
            .filter(|d| d.len() == 64 && d.bytes().all(hex))
            .ok_or_else(|| err("has a digest that is not sha256: and 64 hex digits"))?;
        Ok(Self { name: ImageName::parse(name)?, digest: Sha256Hex(digest.to_owned()) })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@sha256:{}", self.name, self.digest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_digests_are_read_strictly() {
        for good in ["debian", "debian:12", "a.example:5000/team/x_y-z:1.0"] {
            assert_eq!(ImageName::parse(good).map(String::from).as_deref(), Ok(good));
        }
        for bad in ["", "A", "../x", "a/../b", "/a", "a/", "a//b", ".a", "a b", "a\0", "a%2f", "é"]
        {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ImageName::parse(&"a".repeat(121)).is_err());
        let digest = "0123456789abcdef".repeat(4);
        let text = format!("debian:12@sha256:{digest}");
        assert_eq!(ImageRef::parse(&text).map(|r| r.to_string()), Ok(text.clone()));
        for bad in ["debian", "debian@sha256:12", "debian@md5:00", &text.to_uppercase()] {
            assert!(ImageRef::parse(bad).is_err(), "{bad}");
        }
    }
}
