//! The engine API (Docker Engine API; Podman answers the same requests at the same paths).
//!
//! Pipeline: typed question ─► path and JSON ─► `Http` ─► status and JSON ─► typed answer or a
//! failure in words.
//!
//! Invariants:
//! 1. One dialect: the lowest version that engine and this module both know, at least `FLOOR`.
//! 2. Fields that are not known are passed over; those that are needed and missing are an error.
//! 3. What an engine says in its errors is cut and cleaned before anybody reads it.

use super::http::{Http, Payload, Reply, Trouble};
use crate::error::{StartError, StartErrorKind};
use hyper::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Oldest version spoken here: that of Docker 20.10 and Podman 4, which Debian 12 has.
const FLOOR: (u32, u32) = (1, 41);
/// Newest version whose description was read for the fields used here.
const CEILING: (u32, u32) = (1, 52);
/// Questions that an idle engine answers within milliseconds.
const ASK: Duration = Duration::from_secs(10);
/// Making, starting and removing a container; it takes a third of a second, and much longer on a
/// machine that is busy.
const ACT: Duration = Duration::from_secs(60);
/// Characters of an engine's own words that are passed on.
const WORDS: usize = 400;
/// Label of images made here.
pub(super) const ROOT_LABEL: &str = "io.nanoclaw.root";

/// `GET /version`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Version {
    pub(super) version: String,
    pub(super) api_version: String,
    #[serde(rename = "MinAPIVersion")]
    pub(super) min_api_version: String,
    pub(super) components: Vec<Component>,
}

/// A part of the engine, by name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Component {
    pub(super) name: String,
}

/// `GET /info`, as far as it matters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Info {
    pub(super) operating_system: String,
    #[serde(rename = "OSType")]
    pub(super) os_type: String,
    pub(super) kernel_version: String,
    pub(super) cgroup_version: String,
    pub(super) memory_limit: bool,
    pub(super) pids_limit: bool,
    #[serde(rename = "CpuCfsQuota")]
    pub(super) cpu_quota: bool,
    pub(super) security_options: Option<Vec<String>>,
    pub(super) runtimes: Option<BTreeMap<String, Value>>,
    pub(super) default_runtime: String,
}

/// `GET /containers/ID/json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspected {
    pub(super) image: String,
    pub(super) state: State,
    pub(super) host_config: HostConfig,
    pub(super) mounts: Option<Vec<MountPoint>>,
    #[serde(rename = "AppArmorProfile")]
    pub(super) apparmor_profile: String,
}

/// Its first process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub(super) running: bool,
    pub(super) pid: i32,
    pub(super) exit_code: i64,
    pub(super) error: String,
}

/// What the engine holds to be its settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HostConfig {
    pub(super) network_mode: String,
    pub(super) pid_mode: String,
    pub(super) ipc_mode: String,
    pub(super) privileged: bool,
    pub(super) readonly_rootfs: bool,
    pub(super) runtime: String,
    pub(super) devices: Option<Vec<Value>>,
}

/// A mount of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct MountPoint {
    #[serde(rename = "Type")]
    pub(super) kind: String,
    pub(super) destination: String,
}

/// An entry of `GET /containers/json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

/// `GET /images/NAME/json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Image {
    pub(super) id: String,
    pub(super) config: Option<ImageConfig>,
}

/// What an image brings along.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ImageConfig {
    pub(super) volumes: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Id {
    id: String,
}

/// An engine that can be asked.
#[derive(Debug, Clone)]
pub(super) struct Api {
    http: Http,
    /// As people call it, for errors.
    name: String,
    /// `/v1.41`.
    prefix: String,
}

/// A failure of the engine, in its own words where it has any.
fn failed(name: &str, http: &Http, what: &str, why: &str) -> StartError {
    let cause = format!("{name} at {} failed to {what}: {why}", http.socket().display());
    StartError::new(StartErrorKind::Engine, cause, remedy(name))
}

fn remedy(name: &str) -> String {
    format!("look at what {name} itself logs, or write `backend = \"native\"`")
}

/// Nobody to speak to.
fn absent(name: &str, http: &Http, trouble: &Trouble) -> StartError {
    let cause = format!("{name} at {}: {trouble}", http.socket().display());
    let remedy = match name {
        "podman" => {
            "start its service (`systemctl --user start podman.socket`, or `podman system service \
             -t 0`), or name the socket in CONTAINER_HOST, or write `backend = \"native\"`"
        }
        _ => {
            "start the engine, or be in the group that may use it, or name its socket in \
             DOCKER_HOST, or write `backend = \"native\"`"
        }
    };
    StartError::new(StartErrorKind::Engine, cause, remedy)
}

/// Words of others, fit to be shown.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS).collect()
}

/// What an engine says of a failure.
fn words(reply: &Reply) -> String {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let said = serde_json::from_slice::<Message>(&reply.body).map(|m| m.message);
    format!("it answers {}: {}", reply.status, clean(&said.unwrap_or_default()))
}

/// `1.41` as numbers.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The version to speak: the lowest that both know.
pub(super) fn dialect(version: &Version) -> Result<(u32, u32), String> {
    let newest = parse_version(&version.api_version)
        .ok_or_else(|| format!("it names its API version {:?}", clean(&version.api_version)))?;
    let oldest = parse_version(&version.min_api_version).unwrap_or(FLOOR);
    let spoken = oldest.max(FLOOR);
    if newest < FLOOR {
        return Err(format!("its API version {}.{} is below 1.41", newest.0, newest.1));
    }
    if spoken > CEILING || spoken > newest {
        return Err(format!("it speaks no API version below {}.{}", oldest.0, oldest.1));
    }
    Ok(spoken)
}

/// Everything but letters, digits and `-._~` as `%XX` (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes()
        .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

impl Api {
    /// Asks an engine who it is; nothing is agreed yet.
    pub(super) fn version(name: &str, http: &Http) -> Result<Version, StartError> {
        let asked = http.call(&Method::GET, "/version", Payload::Nothing, ASK);
        let reply = asked.map_err(|trouble| absent(name, http, &trouble))?;
        let tell = |why: &str| failed(name, http, "tell its version", why);
        match reply.status {
            200 => serde_json::from_slice(&reply.body).map_err(|e| tell(&e.to_string())),
            _ => Err(tell(&words(&reply))),
        }
    }

    /// Settles on a version of the API.
    pub(super) fn agreed(name: &str, http: Http, version: &Version) -> Result<Self, StartError> {
        let (major, minor) = dialect(version).map_err(|why| {
            let cause = format!("{name} at {}: {why}", http.socket().display());
            let remedy = "use Docker 20.10 or Podman 4 or later, or write `backend = \"native\"`";
            StartError::new(StartErrorKind::Engine, cause, remedy)
        })?;
        Ok(Self { http, name: name.to_owned(), prefix: format!("/v{major}.{minor}") })
    }

    /// The version agreed on, e.g. `1.41`.
    pub(super) fn spoken(&self) -> &str {
        self.prefix.trim_start_matches("/v")
    }

    fn failed(&self, what: &str, why: &str) -> StartError {
        failed(&self.name, &self.http, what, why)
    }

    fn send(
        &self,
        what: &str,
        method: &Method,
        path: &str,
        payload: Payload,
        limit: Duration,
    ) -> Result<Reply, StartError> {
        let path = format!("{}{path}", self.prefix);
        let reply = self.http.call(method, &path, payload, limit);
        reply.map_err(|trouble| self.failed(what, &trouble.to_string()))
    }

    fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, StartError> {
        let reply = self.send(what, &Method::GET, path, Payload::Nothing, ASK)?;
        self.read(what, &reply, &[200])
    }

    fn read<T: DeserializeOwned>(
        &self,
        what: &str,
        reply: &Reply,
        good: &[u16],
    ) -> Result<T, StartError> {
        if !good.contains(&reply.status) {
            return Err(self.failed(what, &words(reply)));
        }
        let parsed = serde_json::from_slice(&reply.body);
        parsed.map_err(|e| self.failed(what, &format!("its answer is not understood: {e}")))
    }

    /// A request whose answer says nothing but that it was done.
    fn act(&self, what: &str, path: &str, good: &[u16]) -> Result<(), StartError> {
        let reply = self.send(what, &Method::POST, path, Payload::Nothing, ACT)?;
        if good.contains(&reply.status) {
            return Ok(());
        }
        Err(self.failed(what, &words(&reply)))
    }

    pub(super) fn info(&self) -> Result<Info, StartError> {
        self.get("describe itself", "/info")
    }

    /// Makes a container; its id.
    pub(super) fn create(&self, name: &str, body: &Value) -> Result<String, StartError> {
        let what = "make the container";
        let path = format!("/containers/create?name={}", encode(name));
        let payload = Payload::Json(body.to_string().into_bytes());
        let reply = self.send(what, &Method::POST, &path, payload, ACT)?;
        self.read::<Id>(what, &reply, &[201]).map(|made| made.id)
    }

    pub(super) fn start(&self, id: &str) -> Result<(), StartError> {
        let path = format!("/containers/{}/start", encode(id));
        self.act("start the container", &path, &[204, 304])
    }

    pub(super) fn inspect(&self, id: &str) -> Result<Inspected, StartError> {
        self.get("show the container", &format!("/containers/{}/json", encode(id)))
    }

    pub(super) fn pause(&self, id: &str) -> Result<(), StartError> {
        self.act("pause the container", &format!("/containers/{}/pause", encode(id)), &[204])
    }

    pub(super) fn unpause(&self, id: &str) -> Result<(), StartError> {
        self.act("resume the container", &format!("/containers/{}/unpause", encode(id)), &[204])
    }

    /// Kills its first process, and everything with it. One that has ended is as good.
    pub(super) fn kill(&self, id: &str) -> Result<(), StartError> {
        let path = format!("/containers/{}/kill?signal=KILL", encode(id));
        self.act("kill the container", &path, &[204, 404, 409])
    }

    /// Removes it, killed if need be. True when it is gone; false when the engine is at it.
    pub(super) fn remove(&self, id: &str) -> Result<bool, StartError> {
        let what = "remove the container";
        let path = format!("/containers/{}?force=true&v=true", encode(id));
        let reply = self.send(what, &Method::DELETE, &path, Payload::Nothing, ACT)?;
        match reply.status {
            200 | 204 | 404 => Ok(true),
            409 => Ok(false),
            _ => Err(self.failed(what, &words(&reply))),
        }
    }

    /// All containers, running or not, with this label and value.
    pub(super) fn list(&self, label: &str, value: &str) -> Result<Vec<Listed>, StartError> {
        let filters = json!({ "label": [format!("{label}={value}")] }).to_string();
        let path = format!("/containers/json?all=true&filters={}", encode(&filters));
        self.get("list containers", &path)
    }

    /// An image by name or id; `None` when the engine has none.
    pub(super) fn image(&self, reference: &str) -> Result<Option<Image>, StartError> {
        let what = "show the image";
        let path = format!("/images/{}/json", encode(reference));
        let reply = self.send(what, &Method::GET, &path, Payload::Nothing, ASK)?;
        if reply.status == 404 {
            return Ok(None);
        }
        self.read(what, &reply, &[200]).map(Some)
    }

    /// The id of an image made here before.
    pub(super) fn root(&self, name: &str) -> Result<Option<String>, StartError> {
        let filters = json!({ "label": [format!("{ROOT_LABEL}={name}")] }).to_string();
        let path = format!("/images/json?filters={}", encode(&filters));
        let found: Vec<Id> = self.get("list images", &path)?;
        Ok(found.into_iter().map(|image| image.id).min())
    }

    /// Makes an image of an archive, labelled with its name.
    pub(super) fn import(&self, name: &str, archive: Vec<u8>) -> Result<(), StartError> {
        let what = "import the root file system";
        let label = encode(&format!("LABEL {ROOT_LABEL}={name}"));
        let path = format!(
            "/images/create?fromSrc=-&repo=nanoclaw-root&tag={}&changes={label}",
            encode(name)
        );
        let reply = self.send(what, &Method::POST, &path, Payload::Archive(archive), ACT)?;
        // A failure in the middle comes as a line of its own in a good answer.
        let text = String::from_utf8_lossy(&reply.body);
        match (reply.status, text.lines().find(|line| line.contains("\"error\""))) {
            (200, None) => Ok(()),
            (200, Some(line)) => Err(self.failed(what, &clean(line))),
            _ => Err(self.failed(what, &words(&reply))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(newest: &str, oldest: &str) -> Version {
        Version {
            api_version: newest.to_owned(),
            min_api_version: oldest.to_owned(),
            ..Version::default()
        }
    }

    #[test]
    fn the_lowest_common_version_is_spoken_and_none_below_the_floor() {
        let spoken = |newest, oldest| dialect(&version(newest, oldest)).ok();
        assert_eq!(spoken("1.41", "1.12"), Some((1, 41)), "Docker 20.10");
        assert_eq!(spoken("1.41", "1.24"), Some((1, 41)), "Podman 4");
        assert_eq!(spoken("1.52", "1.44"), Some((1, 44)), "Docker 29");
        assert_eq!(spoken("1.40", "1.12"), None, "Docker 19.03");
        assert_eq!(spoken("2.0", "1.99"), None, "a future that is not known");
        assert_eq!(spoken("1.41", "1.42"), None, "nonsense");
        assert_eq!(spoken("", ""), None);
        assert_eq!(spoken("1.99", "1.44"), Some((1, 44)));
    }

    #[test]
    fn what_others_say_is_cut_and_cleaned() {
        let body = format!("{{\"message\":\"a\\u001b[31m{}\"}}", "x".repeat(1_000)).into_bytes();
        let said = words(&Reply { status: 500, body });
        assert!(said.starts_with("it answers 500: a [31mxxx"), "{said}");
        assert!(said.len() < WORDS + 40 && !said.contains('\u{1b}'));
        assert_eq!(words(&Reply { status: 502, body: b"<html>".to_vec() }), "it answers 502: ");
    }

    #[test]
    fn nothing_in_a_name_leaves_its_place_in_the_path() {
        assert_eq!(encode("a/../b?c=d&e%f g"), "a%2F..%2Fb%3Fc%3Dd%26e%25f%20g");
        assert_eq!(encode("sha256:0a"), "sha256%3A0a");
    }
}
