//! Errors as people meet them: kind, cause, remedy; the kind decides the exit code.

use std::fmt::Display;

/// What sort of failure; each has its exit code, so that scripts can tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Wrong words on the command line or in a file: 2.
    Usage,
    /// Something needed is not there (a model, a secret, an agent): 3.
    Missing,
    /// A protection cannot be had on this machine, so nothing was started: 4.
    Protection,
    /// The audit log is damaged or cannot be written: 5.
    Audit,
    /// A forbidden act succeeded: 6.
    Breach,
    /// A file cannot be read, so nothing can be said about it: 7.
    Unreadable,
    /// Everything else: 1.
    Other,
}

impl Kind {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::Missing => 3,
            Self::Protection => 4,
            Self::Audit => 5,
            Self::Breach => 6,
            Self::Unreadable => 7,
        }
    }
}

/// One failure, ready to be shown.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) cause: String,
    pub(crate) remedy: Option<String>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(kind: Kind, cause: impl Display) -> Self {
        Self { kind, cause: cause.to_string(), remedy: None }
    }

    pub(crate) fn remedy(mut self, remedy: impl Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    pub(crate) fn other(cause: impl Display) -> Self {
        Self::new(Kind::Other, cause)
    }

    pub(crate) fn usage(cause: impl Display) -> Self {
        Self::new(Kind::Usage, cause)
    }

    /// As it is printed on standard error.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.cause);
        if let Some(remedy) = &self.remedy {
            for (i, line) in remedy.lines().enumerate() {
                text.push_str(if i == 0 { "  help: " } else { "        " });
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

/// Adds what was being done to an error from below.
pub(crate) trait Context<T> {
    fn context(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|e| Failure::other(format!("{what}: {e}")))
    }
}
