//! Whether the program and its service are of an age that will do.
//!
//! Source: `container system version --format json` prints a list of `{version, appName, …}`: the
//! program first, then its service, where that runs (apple/container, `SystemVersion.swift`). The
//! service's version may be a sentence ("container-apiserver version 1.1.0 (build: …)").

use crate::error::{Error, ErrorKind};
use serde::Deserialize;
use std::fmt;

/// The first release with sockets that are relayed into the guest (`-v host.sock:guest.sock`) and
/// with `--network none`; both are needed, for the door is the one way out.
pub const FLOOR: Version = Version { major: 1, minor: 1, patch: 0, released: true };

/// The name under which the program itself stands in its list.
const OWN_NAME: &str = "container";

/// A release of the program. What comes before a release counts as less than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
    /// Not `1.1.0-rc1` or the like.
    pub released: bool,
}

impl Version {
    /// The first word of a text that is a version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::word)
    }

    fn word(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let (numbers, rest) = match word.find(['-', '+']) {
            Some(at) => word.split_at(at),
            None => (word, ""),
        };
        let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
        let (major, minor, patch) = (parts.next()??, parts.next()??, parts.next()??);
        let released = !rest.starts_with('-');
        parts.next().is_none().then_some(Self { major, minor, patch, released })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch, released } = self;
        let early = if *released { "" } else { " (not a release)" };
        write!(f, "{major}.{minor}.{patch}{early}")
    }
}

/// A program that will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its own release.
    pub program: Version,
    /// That of its service.
    pub service: Version,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    version: String,
    #[serde(default)]
    app_name: String,
}

/// Judges what the program printed of its versions.
///
/// # Errors
/// When it is not understood, too old, or its service does not run.
pub fn judge(printed: &[u8]) -> Result<Found, Error> {
    let components: Vec<Component> = serde_json::from_slice(printed).map_err(|e| {
        let cause = format!("what container prints of its version is not understood: {e}");
        Error::new(ErrorKind::Answer, cause, UPDATE)
    })?;
    let find = |own: bool| components.iter().find(|c| (c.app_name == OWN_NAME) == own);
    let Some(program) = find(true) else {
        return Err(Error::new(ErrorKind::Answer, "container does not tell its version", UPDATE));
    };
    let program = new_enough(&program.version)?;
    let Some(service) = find(false) else {
        return Err(Error::new(
            ErrorKind::Stopped,
            "the service of container does not run",
            "start it: `container system start`",
        ));
    };
    Ok(Found { program, service: new_enough(&service.version)? })
}

const UPDATE: &str = "install container 1.1.0 or later (github.com/apple/container)";

fn new_enough(text: &str) -> Result<Version, Error> {
    let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    match Version::parse(text) {
        Some(version) if version >= FLOOR => Ok(version),
        Some(version) => {
            let cause = format!("container is {version}, and sockets are relayed from {FLOOR} on");
            Err(Error::new(ErrorKind::Version, cause, UPDATE))
        }
        None => {
            let cause = format!("container's version {shown:?} is not understood");
            Err(Error::new(ErrorKind::Answer, cause, UPDATE))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn printed(program: &str, service: Option<&str>) -> Vec<u8> {
        let mut all = vec![serde_json::json!({
            "version": program, "buildType": "release", "commit": "0", "appName": "container",
        })];
        all.extend(service.map(|version| {
            serde_json::json!({
                "version": version, "buildType": "release", "commit": "0",
                "appName": "container API Server",
            })
        }));
        serde_json::to_vec(&all).unwrap()
    }

    #[test]
    fn versions_are_read_and_ordered() {
        let version = |text| Version::parse(text).unwrap();
        assert_eq!(version("1.1.0"), FLOOR);
        assert_eq!(version("container-apiserver version 1.1.0 (build: release)"), FLOOR);
        assert!(version("1.10.0") > version("1.9.9"));
        assert!(version("1.1.0-rc1") < FLOOR && version("v1.1.0+x") == FLOOR);
        for odd in ["", "1.1", "1.1.0.0", "one", "1.1.x", "99999999999.0.0"] {
            assert_eq!(Version::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn both_the_program_and_its_service_must_be_new_enough_and_run() {
        let found = judge(&printed("1.2.2", Some("version 1.1.0 (build)"))).unwrap();
        assert_eq!((found.program.minor, found.service), (2, FLOOR));
        let kind = |printed: &[u8]| judge(printed).unwrap_err().kind;
        assert_eq!(kind(&printed("1.0.0", Some("1.0.0"))), ErrorKind::Version);
        assert_eq!(kind(&printed("1.1.0-rc2", Some("1.1.0"))), ErrorKind::Version);
        assert_eq!(kind(&printed("1.2.0", Some("1.0.9"))), ErrorKind::Version);
        assert_eq!(kind(&printed("1.2.0", None)), ErrorKind::Stopped);
        assert_eq!(kind(&printed("unspecified", Some("1.1.0"))), ErrorKind::Answer);
        for odd in [&b""[..], b"[]", b"{}", b"[{\"version\":1}]", b"COMPONENT VERSION"] {
            assert_eq!(kind(odd), ErrorKind::Answer);
        }
        assert!(judge(&printed("1.2.0", None)).unwrap_err().remedy.contains("system start"));
    }
}
