//! Entries as whole OCSF 1.9 events.
//!
//! 1. What stands in the entry stays; added is what its class requires and what follows from its
//!    place in the log. The bytes of the entry itself are hashed into `attestation_list[0].uid`.
//! 2. The fingerprint is computed as the profile `record_integrity` says: over the canonical form
//!    of the event with its attestation, but without fingerprint and signatures. Signed is the tree
//!    over all entries, not an event: `audit proof` gives that signature for one record.

use super::line;
use crate::canonical;
use crate::merkle::{leaf_hash, sha256};
use crate::payload::hex;
use crate::story;
use model::{Body, Record};
use serde_json::{Map, Value, json};

/// `device.type_id` of a virtual machine, which is the nearest to a sandbox.
const DEVICE_VIRTUAL: u64 = 6;
/// `file.type_id` of a regular file, and of a folder.
const FILE_REGULAR: u64 = 1;
const FILE_FOLDER: u64 = 2;
/// `fingerprint.algorithm_id` of SHA-256.
const SHA_256: u64 = 3;
/// `action_id` and `disposition_id` of the profile `security_control`.
const ALLOWED: u64 = 1;
const DENIED: u64 = 2;
/// `compliance.status_id`.
const PASS: u64 = 1;
const FAIL: u64 = 3;

/// An export under way: every event names the one before it.
#[derive(Debug)]
pub struct Ocsf {
    origin: String,
    vkey: String,
    previous: Option<(String, String)>,
}

impl Ocsf {
    /// An export of the log `origin`, whose verifier key is `vkey`.
    #[must_use]
    pub fn new(origin: &str, vkey: &str) -> Self {
        Self { origin: origin.to_owned(), vkey: vkey.to_owned(), previous: None }
    }

    /// One record as one line; `None` for what is no JSON object.
    pub fn event(&mut self, index: u64, entry: &[u8]) -> Option<String> {
        let Ok(Value::Object(mut event)) = serde_json::from_slice(entry) else { return None };
        let record = crate::entry::decode(entry).ok();
        let uid = event["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let mut profiles = vec!["record_integrity"];
        if event.contains_key("ai_agent") {
            profiles.insert(0, "ai_operation");
        }
        if let Some(record) = &record {
            event.insert("message".into(), story::words(&record.body).into());
            require(&mut event, record, &uid, &mut profiles);
        }
        if let Some(metadata) = event.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("log_name".into(), self.origin.as_str().into());
            metadata.insert("sequence".into(), index.into());
            metadata.insert("profiles".into(), profiles.into());
        }
        let mut attestation = json!({"uid": hex(&leaf_hash(entry)), "chain_uid": self.origin,
            "authority_uid": self.vkey});
        if let Some((uid, value)) = &self.previous {
            attestation["prev_event"] = json!({"uid": uid, "fingerprint": fingerprint(value)});
        }
        event.insert("attestation_list".into(), json!([attestation]));
        let mut event = Value::Object(event);
        let mut bytes = Vec::new();
        canonical::write(&mut bytes, &event).ok()?;
        let value = hex(&sha256(&bytes));
        event["attestation_list"][0]["fingerprint"] = fingerprint(&value);
        self.previous = Some((uid, value));
        Some(line(&event))
    }
}

fn fingerprint(value: &str) -> Value {
    json!({"algorithm_id": SHA_256, "value": value})
}

/// Adds what the record's class requires.
fn require(event: &mut Map<String, Value>, record: &Record, uid: &str, profiles: &mut Vec<&str>) {
    let product = event["metadata"]["product"].clone();
    let app = record.agent.as_ref().map_or("nanoclaw", |a| a.as_str()).to_owned();
    let place = record.session.as_ref().map_or("nanoclaw", |s| s.as_str()).to_owned();
    let class = event["class_uid"].as_u64().unwrap_or_default();
    let mut put = |key: &str, value: Value| drop(event.insert(key.to_owned(), value));
    match class {
        6002 => put("app", product),
        6003 => {
            put("actor", json!({"app_name": app}));
            put("api", json!({"operation": record.body.kind()}));
            put("src_endpoint", json!({"name": place}));
            if let Some(end) = endpoint(&record.body) {
                put("dst_endpoint", end);
            }
        }
        1001 | 1007 => {
            put("actor", json!({"app_name": app}));
            put("device", json!({"name": place, "type_id": DEVICE_VIRTUAL, "type": "Virtual"}));
            match class {
                1001 => put("file", file(&record.body)),
                _ => put("process", process(&record.body)),
            }
        }
        4001 => {
            put("dst_endpoint", endpoint(&record.body).unwrap_or_else(|| json!({"name": place})));
            put("src_endpoint", json!({"name": place}));
            control(&record.body, &mut put);
            profiles.push("security_control");
        }
        2003 => {
            let failed = event_failed(&record.body);
            put(
                "compliance",
                json!({"control": record.body.kind(), "standards": ["nanoclaw"],
                    "status_id": if failed { FAIL } else { PASS }}),
            );
            let title = story::words(&record.body);
            put("finding_info", json!({"uid": uid, "title": title}));
        }
        _ => {}
    }
    let (Body::ModelRequest { model, .. } | Body::ModelResponse { model, .. }) = &record.body
    else {
        return;
    };
    let provider = match &record.body {
        Body::ModelRequest { host, .. } => host.as_str(),
        _ => "unknown",
    };
    if let Some(agent) = event.get_mut("ai_agent").and_then(Value::as_object_mut) {
        agent.insert("ai_model".into(), json!({"name": model, "ai_provider": provider}));
    }
}

fn event_failed(body: &Body) -> bool {
    !matches!(body, Body::ProbeObserved { held: true, .. })
}

fn control(body: &Body, put: &mut impl FnMut(&str, Value)) {
    let (verdict, rule) = match body {
        Body::EgressIntent { rule, .. } => (ALLOWED, Some(rule)),
        Body::EgressRefused { rule, .. } => (DENIED, Some(rule)),
        Body::ConnectRefused { .. } => (DENIED, None),
        _ => (ALLOWED, None),
    };
    put("action_id", verdict.into());
    put("disposition_id", verdict.into());
    if let Some(rule) = rule {
        put("firewall_rule", json!({"name": rule}));
    }
}

fn endpoint(body: &Body) -> Option<Value> {
    Some(match body {
        Body::EgressIntent { host, port, address: Some(ip), .. }
        | Body::EgressPinned { host, port, address: ip } => {
            json!({"hostname": host, "port": port, "ip": ip})
        }
        Body::EgressIntent { host, port, .. } | Body::EgressResult { host, port, .. } => {
            json!({"hostname": host, "port": port})
        }
        Body::ModelRequest { host, .. }
        | Body::SecretUsed { host, .. }
        | Body::LoginRequest { host, .. } => json!({"hostname": host}),
        Body::EgressRefused { target, .. } | Body::ConnectRefused { target, .. } => {
            json!({"name": target})
        }
        _ => return None,
    })
}

/// The one file that a record is about, or the folder of many; each stands in `unmapped`.
fn file(body: &Body) -> Value {
    let folder = |path: &str| json!({"name": path, "path": path, "type_id": FILE_FOLDER});
    match body {
        Body::FilesChanged { mount, changes, .. } => match changes.as_slice() {
            [one] if one.sort == "file" => {
                let path = format!("{mount}/{}", one.path);
                let name = one.path.rsplit('/').next().unwrap_or_default();
                json!({"name": name, "path": path, "type_id": FILE_REGULAR, "size": one.bytes})
            }
            _ => folder(mount),
        },
        Body::FilesManifest { mounts, .. } => match mounts.as_slice() {
            [one] => folder(&one.mount),
            _ => folder("/"),
        },
        _ => folder("/"),
    }
}

fn process(body: &Body) -> Value {
    match body {
        Body::ProcessExec { pid, path, argv, cwd, .. } => {
            let mut process = json!({"pid": pid, "path": path, "cmd_line": argv.join(" ")});
            if let Some(cwd) = cwd {
                process["working_directory"] = cwd.as_str().into();
            }
            process
        }
        Body::ProcessImage { pid, image, .. } => {
            json!({"pid": pid, "path": image.as_deref().unwrap_or("unknown")})
        }
        Body::SandboxStarted { program, .. } => json!({"cmd_line": program, "name": "sandbox"}),
        _ => json!({"name": "sandbox"}),
    }
}
