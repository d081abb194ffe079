//! Command-line additions: the same rules as in files, with the argument as the place.

use crate::egress_section::{HTTPS_PORT, parse_host};
use crate::environment;
use crate::error::{Place, PolicyError, Problem, quote};
use crate::mounts::{MountContext, parse_access, parse_source, parse_target};
use crate::sandbox_section::parse_memory_bytes;
use crate::units::parse_duration;
use model::{EgressRule, Mount};
use std::time::Duration;

fn place(flag: &str, argument: &str) -> Place {
    Place::Argument(format!("{flag} {}", quote(argument)))
}

/// `--mount SRC:DST:ro|rw`. The two last colons separate, so a source may have colons.
///
/// # Errors
/// As for `[[mounts]]`.
pub fn parse_mount(argument: &str, context: &MountContext<'_>) -> Result<Mount, PolicyError> {
    let mut parts = argument.rsplitn(3, ':');
    let (access, target, source) = (parts.next(), parts.next(), parts.next());
    let parsed = match (source, target, access) {
        (Some(source), Some(target), Some(access)) => parse_access(access).and_then(|access| {
            let target = parse_target(target)?;
            Ok(Mount { source: parse_source(source, context)?, target, access })
        }),
        _ => Err(Problem::bad(
            "the mount",
            "has not the form SRC:DST:ro or SRC:DST:rw",
            "write e.g. `--mount ~/notes:/mnt/notes:ro`",
        )),
    };
    parsed.map_err(|p| p.at(&place("--mount", argument)))
}

/// `--allow HOST[:PORT]`, port 443 if none is named. Private addresses stay refused.
///
/// # Errors
/// As for `[[egress]]`.
pub fn parse_allow(argument: &str) -> Result<EgressRule, PolicyError> {
    let (host, port) = match argument.rsplit_once(':') {
        None => (argument, Ok(HTTPS_PORT)),
        Some((host, port)) => (
            host,
            match port.parse::<u16>() {
                Ok(number) if number > 0 && !port.starts_with('+') => Ok(number),
                _ => Err(Problem::bad(
                    "port",
                    format!("is {}, not a number from 1 to 65535", quote(port)),
                    "write e.g. `--allow example.org:443`",
                )),
            },
        ),
    };
    let parsed = parse_host(host).and_then(|host| Ok((host, port?)));
    let (host, port) = parsed.map_err(|p| p.at(&place("--allow", argument)))?;
    Ok(EgressRule::allow(format!("--allow {host}:{port}"), host, port))
}

/// `--env NAME=VALUE`, or `--env NAME` whose value `lookup` brings from the caller's environment.
///
/// # Errors
/// For bad names, absent variables, and values that look like a credential (never repeated).
pub fn parse_env(
    argument: &str,
    lookup: impl FnOnce(&str) -> Option<String>,
) -> Result<(String, String), PolicyError> {
    let (name, value) = match argument.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (argument, None),
    };
    let place = place("--env", name);
    environment::check_name(name).map_err(|p| p.at(&place))?;
    let value = value.or_else(|| lookup(name)).ok_or_else(|| {
        let remedy = format!("set it, or write `--env {name}=VALUE`");
        Problem::bad(name, "is not set in this environment", remedy).at(&place)
    })?;
    environment::check_value(name, &value).map_err(|p| p.at(&place))?;
    Ok((name.to_owned(), value))
}

/// `--memory 512MiB`, in bytes.
///
/// # Errors
/// As for `memory` in `[sandbox]`.
pub fn parse_memory(argument: &str) -> Result<u64, PolicyError> {
    parse_memory_bytes(argument).map_err(|p| p.at(&place("--memory", argument)))
}

/// `--timeout 30s`.
///
/// # Errors
/// As for `turn_timeout` in `[sandbox]`.
pub fn parse_timeout(argument: &str) -> Result<Duration, PolicyError> {
    parse_duration("timeout", argument).map_err(|p| p.at(&place("--timeout", argument)))
}
