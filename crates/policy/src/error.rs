//! Errors of files and arguments: where, what, why, what to do.

use crate::keys::SCHEMA_VERSION;
use std::fmt;

/// Longest piece of a user's text repeated in an error, in characters.
const QUOTED_CHARS_MAX: usize = 80;

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A character of a file; line and column start at 1, columns count characters.
    File {
        /// The file's name as the caller gave it.
        file: String,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// A file as a whole.
    Whole(String),
    /// A command-line argument, as it may be shown (never with a value that may be secret).
    Argument(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Whole(file) => f.write_str(file),
            Self::Argument(argument) => f.write_str(argument),
        }
    }
}

/// What is wrong with a file or an argument, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct PolicyError {
    /// Where.
    pub place: Place,
    /// What, why, and what to do.
    pub problem: Problem,
}

/// What is wrong. Every variant says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The TOML parser refused the text (duplicate keys included).
    #[error("not valid TOML: {message}; correct this line")]
    Syntax {
        /// The parser's words.
        message: String,
    },
    /// No `schema`.
    #[error("the schema version is missing; write `schema = {SCHEMA_VERSION}` as the first line")]
    SchemaMissing,
    /// Another `schema` than ours.
    #[error(
        "schema version {found} is not understood by this version, which reads {SCHEMA_VERSION}; \
         update NanoClaw or write the file for schema {SCHEMA_VERSION}"
    )]
    SchemaVersion {
        /// What the file says.
        found: i64,
    },
    /// A key that no version knows.
    #[error("unknown key {key} {} {section}{}", preposition(.section), hint(.nearest))]
    UnknownKey {
        /// The key, quoted.
        key: String,
        /// The table it stands in.
        section: String,
        /// The nearest known key, if one is near.
        nearest: Option<&'static str>,
    },
    /// A rule without a mechanism.
    #[error(
        "{what} is not enforced in this version; remove it \
         (NanoClaw does not accept a rule it cannot enforce)"
    )]
    NotEnforced {
        /// The key or the value, as written.
        what: String,
    },
    /// A required key is absent.
    #[error("{section} lacks the key {key:?}; add e.g. `{example}`")]
    Missing {
        /// The table.
        section: String,
        /// The key.
        key: &'static str,
        /// A line that would do.
        example: &'static str,
    },
    /// The value's TOML type is wrong.
    #[error("{key} must be {wanted}, not {found}; write e.g. `{example}`")]
    WrongType {
        /// The key.
        key: String,
        /// The type it must have.
        wanted: &'static str,
        /// The type it has.
        found: &'static str,
        /// A line that would do.
        example: String,
    },
    /// The value's type is right, its content is not.
    #[error("{key} {why}; {remedy}")]
    BadValue {
        /// The key or argument.
        key: String,
        /// What is wrong.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// A value looks like a credential. The value itself is never repeated.
    #[error(
        "the value of {name} looks like a credential ({why}); do not write it here: run \
         `nanoclaw secret set {name}`, and the gateway will use it without showing it to the agent"
    )]
    Credential {
        /// The name it was given to.
        name: String,
        /// What gave it away.
        why: &'static str,
    },
    /// A secret stands where its name should. The value itself is never repeated.
    #[error(
        "{key} should be the name of a secret, and looks like the secret itself ({why}); do not \
         write it here: run `nanoclaw secret set {name}`, which asks for the value, and write \
         {key} = \"{name}\""
    )]
    PastedSecret {
        /// The key of the file.
        key: &'static str,
        /// A name that would do.
        name: String,
        /// What gave it away.
        why: &'static str,
    },
    /// A file cannot be read, or may not be trusted.
    #[error("{why}; {remedy}")]
    Unreadable {
        /// What is wrong.
        why: String,
        /// What to do.
        remedy: String,
    },
}

fn preposition(section: &str) -> &'static str {
    if section.starts_with('[') { "in" } else { "at" }
}

fn hint(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(key) => format!("; did you mean {key:?}?"),
        None => "; remove it".to_owned(),
    }
}

impl Problem {
    /// A value of the right type that cannot be accepted.
    pub(crate) fn bad(
        key: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::BadValue { key: key.into(), why: why.into(), remedy: remedy.into() }
    }

    /// For a pasted secret: a name that would do for it.
    pub(crate) fn named(self, better: &str) -> Self {
        match self {
            Self::PastedSecret { key, why, .. } => {
                Self::PastedSecret { key, why, name: better.to_owned() }
            }
            other => other,
        }
    }

    /// The same problem at a place.
    pub(crate) fn at(self, place: &Place) -> PolicyError {
        PolicyError { place: place.clone(), problem: self }
    }
}

/// A user's text for an error: quoted, escaped, cut.
pub(crate) fn quote(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}
