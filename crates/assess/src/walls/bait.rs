//! What is laid out around a sandbox for its probes to look for. Data only; it travels into the
//! sandbox as one argument.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An address that belongs to nobody (RFC 5737, TEST-NET-1).
const NOBODY: &str = "192.0.2.1:80";
/// The same of IPv6 (RFC 3849).
const NOBODY_6: &str = "[2001:db8::1]:80";
/// Where clouds tell machines their credentials.
const METADATA: &str = "169.254.169.254:80";
/// Sockets through which container engines and init systems take orders.
const ORDERS: [&str; 8] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/user/0/bus",
];
/// Places where something could be left that is started later.
const PERSISTENCE: [&str; 3] = ["/var/spool/cron", "/var/spool/at", "/etc/systemd"];
/// The uid inside native sandboxes.
const UID_INSIDE: u32 = 1000;
/// Folders that nobody inside may write.
const READ_ONLY: [&str; 8] =
    ["/", "/usr", "/usr/bin", "/etc", "/run", "/dev", "/home", "/run/nanoclaw"];

/// Where the things are that no probe may reach. Names and addresses, never contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bait {
    /// The host's own namespaces: name and inode of `/proc/self/ns/*`.
    pub namespaces: BTreeMap<String, u64>,
    /// The host's name.
    pub host_name: String,
    /// The host's `/etc/machine-id`.
    pub machine_id: String,
    /// The variables that may be in the environment.
    pub env_names: Vec<String>,
    /// A variable that is in the environment of the host's process.
    pub variable: String,
    /// A word among the arguments of processes outside.
    pub marker: String,
    /// The pid of such a process, as the host counts.
    pub host_pid: u32,
    /// The process whose secrets are tried: the sandbox's first.
    pub init: u32,
    /// A file of the host that everybody there may read.
    pub host_file: String,
    /// Granted folders, what stands at the top of an image, and what a backend puts into every
    /// sandbox of its own: places inside where mounts and names are meant to be.
    pub mounts: Vec<String>,
    /// The uid that its processes have inside; `None` where it is not the same everywhere and any
    /// but root's will do.
    pub uid: Option<u32>,
    /// Whether the process' own group may stand in the list of its further groups, too.
    pub own_group: bool,
    /// A TCP port on the host's loopback at which somebody listens.
    pub tcp_port: u16,
    /// The same at `::1`; 0 when the host has no IPv6.
    pub tcp6_port: u16,
    /// A UDP port on the host's loopback at which somebody listens.
    pub udp_port: u16,
    /// An abstract Unix socket of the host.
    pub abstract_name: String,
    /// A Unix socket of the host, by path.
    pub socket: String,
    /// An address out there.
    pub far: String,
    /// The same of IPv6.
    pub far6: String,
    /// Where a cloud's metadata would be.
    pub metadata: String,
    /// Sockets of engines and of the init system.
    pub orders: Vec<String>,
    /// Folders from which something is started later.
    pub persistence: Vec<String>,
    /// Folders that must be closed to writing.
    pub read_only: Vec<String>,
    /// A file that can only be read, for a hard link to it.
    pub linked: String,
    /// A word in the names of what an earlier session left behind.
    pub left: String,
    /// Another session that runs at the same time.
    pub other: Other,
    /// The limits of a sandbox made to be filled.
    pub tight: Tight,
    /// The door's socket inside; empty when there is none.
    pub door: String,
    /// The loopback port that leads to the door; 0 when there is none.
    pub door_port: u16,
}

/// What another session has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Other {
    /// The name of all its things: file in `/workspace`, `/tmp` and `/dev/shm`, abstract socket,
    /// message queue, argument of its processes.
    pub name: String,
    /// Its workspace on the host.
    pub workspace: String,
    /// Its first process, as the host counts.
    pub pid: u32,
    /// A TCP port it listens at on its loopback.
    pub tcp_port: u16,
    /// The key of its System V shared memory.
    pub shm_key: u32,
    /// What its uid map says.
    pub uid_map: String,
    /// Where, inside both, a folder is shared with it; empty when none is.
    pub shared: String,
}

/// Limits to be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tight {
    /// Processes and threads.
    pub pids: u64,
    /// Memory of all processes, bytes.
    pub memory_bytes: u64,
    /// Thousandths of one CPU.
    pub cpu_milli: u64,
    /// Descriptors of one process.
    pub open_files: u64,
    /// Largest file, bytes.
    pub file_bytes: u64,
    /// All of `/tmp` and `/dev/shm`, bytes.
    pub tmp_bytes: u64,
}

impl Default for Bait {
    /// Nothing of any host: what is forbidden everywhere.
    fn default() -> Self {
        let owned = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        Self {
            namespaces: BTreeMap::new(),
            host_name: String::new(),
            machine_id: String::new(),
            env_names: Vec::new(),
            variable: String::new(),
            marker: String::new(),
            host_pid: 0,
            init: 1,
            host_file: String::new(),
            mounts: Vec::new(),
            uid: Some(UID_INSIDE),
            own_group: false,
            tcp_port: 0,
            tcp6_port: 0,
            udp_port: 0,
            abstract_name: String::new(),
            socket: String::new(),
            far: NOBODY.to_owned(),
            far6: NOBODY_6.to_owned(),
            metadata: METADATA.to_owned(),
            orders: owned(&ORDERS),
            persistence: owned(&PERSISTENCE),
            read_only: owned(&READ_ONLY),
            linked: "/usr/bin/env".to_owned(),
            left: String::new(),
            other: Other::default(),
            tight: Tight::default(),
            door: String::new(),
            door_port: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bait_survives_its_journey_and_strange_keys_are_refused() {
        let bait = Bait { host_pid: 7, left: "x".into(), ..Bait::default() };
        let text = serde_json::to_string(&bait).expect("JSON");
        assert_eq!(serde_json::from_str::<Bait>(&text).expect("bait"), bait);
        assert_eq!(serde_json::from_str::<Bait>("{}").expect("bait"), Bait::default());
        assert!(serde_json::from_str::<Bait>("{\"hots_file\":\"\"}").is_err());
    }
}
