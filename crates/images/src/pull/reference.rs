//! `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, as people write it for docker.
//!
//! Grammar: OCI distribution specification, "Pulling manifests"; what stands before the first slash
//! is a host if it has a dot or a colon or is `localhost`, as docker has it.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use model::ImageName;
use std::net::IpAddr;

/// Where images without a host come from, and the host that answers for it.
const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_ANSWERS: &str = "registry-1.docker.io";
const TAG_BYTES_MAX: usize = 128;
const REPOSITORY_BYTES_MAX: usize = 255;

/// A registry, and what is wanted from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) repository: String,
    pub(super) tag: String,
    pub(super) digest: Option<Digest>,
    /// As it was written, without digest.
    written: String,
}

impl Reference {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            let shown: String = text.chars().take(120).collect();
            let remedy = "write e.g. debian:12, registry.example/team/tools:1 or …@sha256:DIGEST";
            Error::new(ErrorKind::Usage, format!("the reference {shown:?} {why}"), remedy)
        };
        let (written, digest) = match text.split_once('@') {
            Some((before, digest)) => {
                let digest = Digest::parse(digest).ok_or_else(|| bad("has no SHA-256 digest"))?;
                (before, Some(digest))
            }
            None => (text, None),
        };
        let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (host, path) = match written.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            _ => (DEFAULT_HOST, written),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, tag),
            None => (path, "latest"),
        };
        let tagged = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if tag.is_empty() || tag.len() > TAG_BYTES_MAX || !tag.bytes().all(tagged) {
            return Err(bad("has no proper tag"));
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let part = |p: &str| !p.is_empty() && !p.starts_with('.') && p.bytes().all(plain);
        if path.len() > REPOSITORY_BYTES_MAX || !path.split('/').all(part) {
            return Err(bad("has no proper repository"));
        }
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => {
                (name, Some(port.parse::<u16>().map_err(|_| bad("has no proper port"))?))
            }
            None => (host, None),
        };
        let of_host = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
        if name.is_empty() || !name.bytes().all(of_host) {
            return Err(bad("has no proper host"));
        }
        let official = host == DEFAULT_HOST && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        let answers = if name == DEFAULT_HOST { DEFAULT_ANSWERS } else { name };
        let (host, tag, written) = (answers.to_owned(), tag.to_owned(), written.to_owned());
        Ok(Self { host, port, repository, tag, digest, written })
    }

    /// What the image will be called, unless somebody says otherwise.
    pub(super) fn name(&self) -> Result<ImageName> {
        ImageName::parse(&self.written.to_ascii_lowercase()).map_err(|e| {
            Error::new(ErrorKind::Usage, e.to_string(), "say what to call it with --name")
        })
    }

    /// What to ask for: the digest counts, where there is one.
    pub(super) fn wanted(&self) -> String {
        self.digest.as_ref().map_or_else(|| self.tag.clone(), ToString::to_string)
    }
}

/// This machine, by name or address.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, host, port, repository, wanted) in [
            ("debian", DEFAULT_ANSWERS, None, "library/debian", "latest"),
            ("debian:12", DEFAULT_ANSWERS, None, "library/debian", "12"),
            ("team/x", DEFAULT_ANSWERS, None, "team/x", "latest"),
            ("docker.io/team/x:Y", DEFAULT_ANSWERS, None, "team/x", "Y"),
            ("localhost:5000/x", "localhost", Some(5000), "x", "latest"),
            ("r.example/a/b/c:1.0", "r.example", None, "a/b/c", "1.0"),
            (&format!("r.example/x@{digest}"), "r.example", None, "x", digest.as_str()),
        ] {
            let r = Reference::parse(text).unwrap();
            let found = (r.host.as_str(), r.port, r.repository.as_str(), r.wanted());
            assert_eq!(found, (host, port, repository, wanted.to_owned()), "{text}");
        }
        for bad in [
            "",
            ":1",
            "a:",
            "A",
            "a/../b",
            "a//b",
            "r.example/",
            "r.example:x/a",
            "a@sha256:1",
            "a b",
            "a\r\nHost: b",
            "https://r.example/a",
            "r.example:99999/a",
            "me@r.example/a",
            ".example/../a",
            "r.ex%61mple/a",
            "a?b",
            "a#b",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
