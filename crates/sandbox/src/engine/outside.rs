//! What the kernel tells, from outside, of a container's first process: nothing in the container
//! and no engine is asked.
//!
//! Pipeline: pid ─► `/proc/PID/{status,net/dev}` ─► `Outside`.

use std::fs;
use std::io;

/// As seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outside {
    /// Fields of `/proc/PID/status`.
    status: Vec<(String, String)>,
    /// Names in `/proc/PID/net/dev`.
    pub(super) interfaces: Vec<String>,
}

impl Outside {
    /// Looks at it.
    pub(super) fn look(pid: i32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        Ok(Self::parse(&status, &devices))
    }

    pub(super) fn parse(status: &str, devices: &str) -> Self {
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        };
        let interface = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
        Self {
            status: status.lines().filter_map(field).collect(),
            interfaces: devices.lines().skip(2).filter_map(interface).collect(),
        }
    }

    /// A field of its status, blanks made single; `missing` when this kernel has none.
    pub(super) fn status(&self, name: &str) -> &str {
        self.status.iter().find(|(n, _)| n == name).map_or("missing", |(_, v)| v)
    }

    /// Its uid or gid (real, effective, saved, file system), if all four are one.
    pub(super) fn id(&self, name: &str) -> Option<u32> {
        let text = self.status(name);
        let mut ids = text.split(' ').map(|n| n.parse::<u32>().ok());
        let first = ids.next()??;
        let rest: Vec<Option<u32>> = ids.collect();
        (rest.len() == 3 && rest.iter().all(|n| *n == Some(first))).then_some(first)
    }
}
