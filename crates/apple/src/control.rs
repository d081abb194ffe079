//! The life of a container, as the program is told it: made and looked at, started, removed.
//!
//! Invariants:
//! 1. What was created and is not as it was asked for is removed before anybody hears of it.
//! 2. A container is gone when the program no longer lists it, whatever it said to its removal.
//! 3. Only containers with our label for this home are ever touched.

use crate::cli::Cli;
use crate::error::{Error, ErrorKind};
use crate::inspect::{Listed, parse, parse_list, verify};
use crate::request::Container;
use crate::version::{Found, judge};
use std::process::Command;

/// Apple's program, found fit.
#[derive(Debug, Clone)]
pub struct Apple {
    cli: Cli,
    found: Found,
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|w| (*w).to_owned()).collect()
}

impl Apple {
    /// Asks for its version.
    ///
    /// # Errors
    /// When it is not there, too old, or its service does not run.
    pub fn open(cli: Cli) -> Result<Self, Error> {
        let printed = cli.ask(&words(&["system", "version", "--format", "json"]))?;
        Ok(Self { found: judge(&printed)?, cli })
    }

    /// Its name and release, for people.
    #[must_use]
    pub fn title(&self) -> String {
        format!("container {}", self.found.program)
    }

    /// Whether an image is there: creating a container of one that is not would pull it.
    ///
    /// # Errors
    /// When it is not, or the program does not answer.
    pub fn has_image(&self, image: &str) -> Result<(), Error> {
        match self.cli.ask(&words(&["image", "inspect", image])) {
            Ok(_) => Ok(()),
            Err(e) if e.kind == ErrorKind::Refused => {
                let remedy = "pull it first (`container image pull`): NanoClaw never pulls";
                let cause = format!("container has no image {image}: {}", e.cause);
                Err(Error::new(ErrorKind::Refused, cause, remedy))
            }
            Err(e) => Err(e),
        }
    }

    /// Creates a container, not started, and holds what the program says of it against `asked`.
    ///
    /// # Errors
    /// When it cannot be created, or is not as it was asked for. Nothing is left then.
    pub fn create(&self, asked: &Container) -> Result<(), Error> {
        let made = self.cli.ask(&asked.arguments()).and_then(|_| self.looked_at(asked));
        if made.is_err() {
            // One that cannot be removed now is found by its labels.
            let _ = self.remove(&asked.name);
        }
        made
    }

    fn looked_at(&self, asked: &Container) -> Result<(), Error> {
        let all = parse(&self.cli.ask(&words(&["inspect", &asked.name]))?)?;
        match all.as_slice() {
            [one] => verify(asked, one),
            other => {
                let cause = format!("container tells of {} containers, not of one", other.len());
                Err(Error::new(ErrorKind::Answer, cause, "report this defect"))
            }
        }
    }

    /// The process that starts it and carries its streams; it ends when the container has.
    #[must_use]
    pub fn start(&self, name: &str) -> Command {
        self.cli.command(&words(&["start", "--attach", "--interactive", name]))
    }

    /// Ends it and removes it, if it is there.
    ///
    /// # Errors
    /// When it is still there afterwards, or that cannot be found out.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let Err(error) = self.cli.ask(&words(&["delete", "--force", name])) else { return Ok(()) };
        // It removes itself when it stops, so it may be gone already.
        match self.list()?.iter().any(|c| c.id() == name) {
            true => Err(error),
            false => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<Listed>, Error> {
        parse_list(&self.cli.ask(&words(&["list", "--all", "--format", "json"]))?)
    }

    /// Containers whose label `home` has this value, and whose starter, named in another label, is
    /// gone.
    ///
    /// # Errors
    /// When the program does not answer, or not understandably.
    pub fn orphans(
        &self,
        home: (&str, &str),
        starter: &str,
        alive: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, Error> {
        let ours = |c: &&Listed| {
            c.label(home.0) == Some(home.1) && c.label(starter).is_some_and(|s| !alive(s))
        };
        Ok(self.list()?.iter().filter(ours).map(|c| c.id().to_owned()).collect())
    }
}
