//! Environment variables granted by name.

use crate::credential::looks_like_credential;
use crate::error::{Problem, quote};

/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 128;

/// Longest value, bytes: a quarter of what Linux takes for one string (MAX_ARG_STRLEN, 128 KiB).
const VALUE_BYTES_MAX: usize = 32 * 1024;

/// Checks a name (POSIX.1 §8.1, lower case allowed).
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if first
        && name.len() <= NAME_BYTES_MAX
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return Ok(());
    }
    let remedy = "use letters, digits and '_', not a digit first, 128 at most";
    Err(Problem::bad(quote(name), "is not the name of an environment variable", remedy))
}

/// Checks a value; its bytes never appear in the error.
pub(crate) fn check_value(name: &str, value: &str) -> Result<(), Problem> {
    if value.contains('\0') {
        return Err(Problem::bad(name, "has a NUL character in its value", "remove it"));
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(Problem::bad(name, "has a value longer than 32 KiB", "put it in a file"));
    }
    match looks_like_credential(name, value) {
        Some(why) => Err(Problem::Credential { name: name.to_owned(), why }),
        None => Ok(()),
    }
}
