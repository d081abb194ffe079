//! What the program says of a container, against what it was asked for. Any difference, and
//! anything that is not said, refuses it.
//!
//! Source: `container inspect ID` prints a list of `{id, configuration, status}`
//! (apple/container, `ManagedContainer.swift`, `ContainerConfiguration.swift`).
//!
//! What it says is not a measurement: no file of the host shows what is in the virtual machine.

use crate::error::{Error, ErrorKind};
use crate::request::{Container, PROGRAM_INSIDE};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A container as the program tells it. What is a wall has no default: left out, it is refused.
#[derive(Debug, Clone, Deserialize)]
pub struct Inspected {
    configuration: Configuration,
    status: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    id: String,
    image: Image,
    mounts: Vec<Shown>,
    networks: Vec<Value>,
    published_ports: Vec<Value>,
    published_sockets: Vec<Value>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
    dns: Option<Names>,
    init_process: Process,
    resources: Resources,
    runtime_handler: String,
    read_only: bool,
    ssh: bool,
    virtualization: bool,
    rosetta: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Image {
    reference: String,
    descriptor: Descriptor,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Shown {
    source: String,
    destination: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Names {
    #[serde(default)]
    nameservers: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    executable: String,
    arguments: Vec<String>,
    terminal: bool,
    user: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resources {
    cpus: u64,
    memory_in_bytes: u64,
}

impl Inspected {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.configuration.id
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.configuration.labels.get(key).map(String::as_str)
    }

    /// `running`, `stopped` and the like; older programs say it in a word, newer in a table.
    #[must_use]
    pub fn state(&self) -> &str {
        let word = self.status.as_str().or_else(|| self.status.get("state")?.as_str());
        word.unwrap_or_default()
    }
}

/// Any container as it stands in a list: others than ours may be of any kind.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listed {
    configuration: Known,
}

#[derive(Debug, Clone, Deserialize)]
struct Known {
    id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Listed {
    pub(crate) fn id(&self) -> &str {
        &self.configuration.id
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.configuration.labels.get(key).map(String::as_str)
    }
}

/// Reads what `inspect` printed.
///
/// # Errors
/// When it is not understood.
pub fn parse(printed: &[u8]) -> Result<Vec<Inspected>, Error> {
    understood(printed)
}

/// Reads what `list --format json` printed.
pub(crate) fn parse_list(printed: &[u8]) -> Result<Vec<Listed>, Error> {
    understood(printed)
}

fn understood<T: serde::de::DeserializeOwned>(printed: &[u8]) -> Result<Vec<T>, Error> {
    serde_json::from_slice(printed).map_err(|e| {
        let cause = format!("what container prints of its containers is not understood: {e}");
        Error::new(ErrorKind::Answer, cause, REMEDY)
    })
}

const REMEDY: &str = "container did not make what it was asked for: look at its version and \
                      settings, and at `container system property list`";

fn wrong(what: &str, found: impl std::fmt::Debug, wanted: &str) -> Error {
    let found: String = format!("{found:?}").chars().take(200).collect();
    Error::new(ErrorKind::Verification, format!("{what} is {found}, not {wanted}"), REMEDY)
}

fn expect(what: &str, found: &str, wanted: &str) -> Result<(), Error> {
    if found == wanted { Ok(()) } else { Err(wrong(what, found, wanted)) }
}

/// Whether it is what was asked for.
///
/// # Errors
/// The first difference.
pub fn verify(asked: &Container, found: &Inspected) -> Result<(), Error> {
    let told = &found.configuration;
    expect("the container's id", &told.id, &asked.name)?;
    let digest = asked.image.rsplit_once('@').map_or("", |(_, digest)| digest);
    if told.image.descriptor.digest != digest {
        let shown = (&told.image.reference, &told.image.descriptor.digest);
        return Err(wrong("the container's image", shown, digest));
    }
    expect("the container's runtime", &told.runtime_handler, "container-runtime-linux")?;
    let nothing = [
        ("networks", told.networks.len()),
        ("published ports", told.published_ports.len()),
        ("published sockets", told.published_sockets.len()),
        ("system controls", told.sysctls.len()),
        ("name servers", told.dns.as_ref().map_or(0, |d| d.nameservers.len())),
    ];
    for (what, count) in nothing {
        if count > 0 {
            return Err(wrong(&format!("the number of the container's {what}"), count, "0"));
        }
    }
    let flags = [
        ("its root being read-only", told.read_only, true),
        ("forwarding of the SSH agent", told.ssh, false),
        ("virtualization inside", told.virtualization, false),
        ("translation of other processors' programs", told.rosetta, false),
        ("its terminal", told.init_process.terminal, asked.terminal),
    ];
    for (what, is, wanted) in flags {
        if is != wanted {
            return Err(wrong(what, is, &wanted.to_string()));
        }
    }
    process(asked, &told.init_process)?;
    size(asked, &told.resources)?;
    mounts(asked, &told.mounts)?;
    match asked.labels.iter().find(|(key, value)| found.label(key) != Some(value.as_str())) {
        Some((key, value)) => Err(wrong(&format!("the label {key}"), found.label(key), value)),
        None => Ok(()),
    }
}

/// Who it is, and what it runs first.
fn process(asked: &Container, told: &Process) -> Result<(), Error> {
    expect("the first program", &told.executable, PROGRAM_INSIDE)?;
    if told.arguments != asked.command() {
        return Err(wrong("the list of its arguments", &told.arguments, "what was asked for"));
    }
    let user = &told.user;
    let id = |name: &str| user.get("id").and_then(|id| id.get(name)).and_then(Value::as_u64);
    let raw = user.get("raw").and_then(|raw| raw.get("userString")).and_then(Value::as_str);
    if raw == Some("0:0") || (id("uid"), id("gid")) == (Some(0), Some(0)) {
        return Ok(());
    }
    Err(wrong("the first program's user", user, "root of the virtual machine"))
}

fn size(asked: &Container, told: &Resources) -> Result<(), Error> {
    if told.cpus != asked.cpus {
        return Err(wrong("the number of its processors", told.cpus, &asked.cpus.to_string()));
    }
    let wanted = asked.memory_mib << 20;
    if told.memory_in_bytes != wanted {
        return Err(wrong("its memory", told.memory_in_bytes, &format!("{wanted} bytes")));
    }
    Ok(())
}

/// What is shown is what was asked for, each at its place, and nothing else.
fn mounts(asked: &Container, told: &[Shown]) -> Result<(), Error> {
    for mount in &asked.mounts {
        let target = mount.target.to_string_lossy();
        let Some(shown) = told.iter().find(|s| s.destination == target) else {
            return Err(wrong(&format!("what is shown at {target}"), "nothing", "there"));
        };
        expect("the source of a mount", &shown.source, &mount.source.to_string_lossy())?;
        if !shown.kind.contains_key("virtiofs") {
            return Err(wrong(&format!("the mount at {target}"), &shown.kind, "of the host"));
        }
        if mount.read_only && !shown.options.iter().any(|o| o == "ro") {
            return Err(wrong(&format!("the mount at {target}"), &shown.options, "read-only"));
        }
    }
    if told.len() != asked.mounts.len() {
        let count = asked.mounts.len().to_string();
        return Err(wrong("the number of its mounts", told.len(), &count));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::request::tests::{occasion, spec};
    use serde_json::json;

    fn asked() -> Container {
        Container::of(&spec(), &occasion()).unwrap()
    }

    fn good() -> Value {
        let asked = asked();
        let mount = |m: &crate::Mount| {
            let options = if m.read_only { vec!["ro"] } else { vec![] };
            json!({ "source": m.source, "destination": m.target, "options": options,
                "type": { "virtiofs": {} } })
        };
        let mounts: Vec<Value> = asked.mounts.iter().map(mount).collect();
        json!({
            "id": asked.name,
            "configuration": {
                "id": asked.name, "mounts": mounts, "labels": asked.labels, "sysctls": {},
                "image": { "reference": "debian",
                    "descriptor": { "digest": format!("sha256:{}", "0".repeat(64)), "size": 1 } },
                "networks": [], "publishedPorts": [], "publishedSockets": [],
                "initProcess": { "executable": PROGRAM_INSIDE, "arguments": asked.command(),
                    "terminal": false, "user": { "raw": { "userString": "0:0" } },
                    "environment": [], "workingDirectory": "/" },
                "resources": { "cpus": asked.cpus, "memoryInBytes": asked.memory_mib << 20 },
                "runtimeHandler": "container-runtime-linux", "readOnly": true, "ssh": false,
                "virtualization": false, "rosetta": false, "useInit": false,
                "platform": { "os": "linux", "architecture": "arm64" },
            },
            "status": { "state": "stopped", "networks": [] },
        })
    }

    fn judged(value: &Value) -> Result<(), Error> {
        let printed = serde_json::to_vec(&json!([value])).unwrap();
        let all = parse(&printed)?;
        verify(&asked(), &all[0])
    }

    #[test]
    fn what_is_as_it_was_asked_for_is_taken() {
        assert_eq!(judged(&good()), Ok(()));
        let mut by_number = good();
        by_number["configuration"]["initProcess"]["user"] = json!({ "id": { "uid": 0, "gid": 0 } });
        assert_eq!(judged(&by_number), Ok(()));
        let parsed = parse(&serde_json::to_vec(&json!([good()])).unwrap()).unwrap();
        assert_eq!((parsed[0].state(), parsed[0].id()), ("stopped", "nanoclaw-s1-1"));
        assert_eq!(parsed[0].label("io.nanoclaw.session"), Some("s1"));
    }

    #[test]
    fn every_difference_refuses_it() {
        let changes = [
            ("/configuration/id", json!("other")),
            ("/configuration/image/descriptor/digest", json!("sha256:11")),
            ("/configuration/networks", json!([{ "network": "default" }])),
            ("/configuration/publishedPorts", json!([{ "hostPort": 1 }])),
            ("/configuration/publishedSockets", json!([{}])),
            ("/configuration/sysctls", json!({ "a": "b" })),
            ("/configuration/readOnly", json!(false)),
            ("/configuration/ssh", json!(true)),
            ("/configuration/virtualization", json!(true)),
            ("/configuration/rosetta", json!(true)),
            ("/configuration/runtimeHandler", json!("other")),
            ("/configuration/initProcess/executable", json!("/bin/sh")),
            ("/configuration/initProcess/arguments", json!(["__guest"])),
            ("/configuration/initProcess/terminal", json!(true)),
            ("/configuration/initProcess/user", json!({ "id": { "uid": 0, "gid": 1 } })),
            ("/configuration/resources/cpus", json!(64)),
            ("/configuration/resources/memoryInBytes", json!(1)),
            ("/configuration/mounts/0/source", json!("/Users")),
            ("/configuration/mounts/0/destination", json!("/elsewhere")),
            ("/configuration/mounts/0/type", json!({ "tmpfs": {} })),
            ("/configuration/mounts/2/options", json!([])),
            ("/configuration/labels", json!({})),
        ];
        for (place, value) in changes {
            let mut told = good();
            *told.pointer_mut(place).unwrap() = value;
            assert_eq!(judged(&told).unwrap_err().kind, ErrorKind::Verification, "{place}");
        }
        let mut told = good();
        told["configuration"]["dns"] = json!({ "nameservers": ["1.1.1.1"] });
        assert_eq!(judged(&told).unwrap_err().kind, ErrorKind::Verification);
        let mut more = good();
        let extra = more["configuration"]["mounts"][0].clone();
        more["configuration"]["mounts"].as_array_mut().unwrap().push(extra);
        assert_eq!(judged(&more).unwrap_err().kind, ErrorKind::Verification);
    }

    #[test]
    fn a_list_may_hold_containers_of_any_kind() {
        let list = json!([{ "configuration": { "id": "builder" }, "status": "running" }, good()]);
        let listed = parse_list(&serde_json::to_vec(&list).unwrap()).unwrap();
        let ids: Vec<&str> = listed.iter().map(Listed::id).collect();
        assert_eq!(ids, ["builder", "nanoclaw-s1-1"]);
        assert_eq!(listed[0].label("io.nanoclaw.session"), None);
        assert_eq!(listed[1].label("io.nanoclaw.session"), Some("s1"));
        assert_eq!(parse_list(b"ID").unwrap_err().kind, ErrorKind::Answer);
    }

    #[test]
    fn what_is_not_said_is_not_believed() {
        for wall in [
            "mounts",
            "networks",
            "publishedPorts",
            "publishedSockets",
            "readOnly",
            "ssh",
            "virtualization",
            "rosetta",
            "initProcess",
            "resources",
            "runtimeHandler",
            "image",
        ] {
            let mut told = good();
            told["configuration"].as_object_mut().unwrap().remove(wall);
            assert_eq!(judged(&told).unwrap_err().kind, ErrorKind::Answer, "{wall}");
        }
        for odd in [&b""[..], b"{}", b"[{}]", b"ID IMAGE OS"] {
            assert_eq!(parse(odd).unwrap_err().kind, ErrorKind::Answer);
        }
    }
}
