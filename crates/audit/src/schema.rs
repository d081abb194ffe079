//! The published form of an entry as a JSON schema (draft 2020-12), derived from the types
//! themselves: no list of fields is kept by hand that could differ from them.
//!
//! ```text
//! an example of every kind (catalogue) ─► one field changed at a time ─► is it still read?
//!                                                                     └─► schema
//! ```
//!
//! 1. A field may be null if the type takes null for it, may be missing if it is not written then,
//!    and is bounded as the type bounds it.
//! 2. Every kind has a form of its own, by `unmapped.kind`.

use crate::canonical::INTEGER_MAX;
use crate::catalogue;
use crate::entry::{ENTRY_BYTES_MAX, OCSF_VERSION, Uids, decode, encode};
use crate::payload;
use model::{AgentName, Body, Record, SessionId, TurnId};
use serde_json::{Map, Value, json};

/// Where the schema stands in this repository.
pub const FILE: &str = "docs/record.schema.json";

const SHA256: &str = "^[0-9a-f]{64}$";
/// Every word of a type that is one of several words.
const WORDS: [&str; 5] = ["in", "out", "created", "changed", "deleted"];
/// Ids and names of agents (`model::ids`).
const ID: &str = "^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$";

/// The schema of all entries.
#[must_use]
pub fn schema() -> Value {
    let kinds: Vec<Value> = catalogue::examples().iter().map(of_kind).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://nanoclaw.invalid/record.schema.json",
        "title": "A record of NanoClaw's audit log",
        "description": format!(
            "One entry of the log: canonical JSON (RFC 8785), at most {ENTRY_BYTES_MAX} bytes, in \
             the shape of an OCSF {OCSF_VERSION} event. What OCSF has no field for stands under \
             unmapped, which has a form for each kind."),
        "type": "object",
        "required": ["activity_id", "category_uid", "class_uid", "metadata", "severity_id",
            "status_id", "time", "type_uid", "unmapped"],
        "additionalProperties": false,
        "properties": {
            "activity_id": number(99),
            "ai_agent": {
                "description": "Profile ai_operation: the session and its agent.",
                "type": "object", "additionalProperties": false, "minProperties": 1,
                "properties": {
                    "instance_uid": {"type": "string", "pattern": ID},
                    "uid": {"type": "string", "pattern": ID},
                },
            },
            "category_uid": number(9),
            "class_uid": number(9_999),
            "metadata": metadata(),
            "severity_id": number(6),
            "status_id": number(99),
            "time": {"description": "Unix milliseconds, UTC.", "type": "integer", "minimum": 0,
                "maximum": INTEGER_MAX},
            "type_uid": number(999_999),
            "unmapped": {"type": "object", "required": ["kind"], "properties": {
                "kind": {"enum": catalogue::examples().iter().map(Body::kind).collect::<Vec<_>>()},
            }},
        },
        "oneOf": kinds,
    })
}

/// The schema as the file has it.
#[must_use]
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text.push('\n');
    text
}

fn number(max: u64) -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": max})
}

fn metadata() -> Value {
    json!({
        "type": "object", "additionalProperties": false,
        "required": ["product", "uid", "version"],
        "properties": {
            "product": {"type": "object", "additionalProperties": false,
                "required": ["name", "version"], "properties": {
                    "name": {"const": "nanoclaw"}, "version": {"type": "string"}}},
            "profiles": {"const": ["ai_operation"]},
            "uid": {"description": "UUIDv7.", "type": "string", "pattern":
                "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"},
            "version": {"const": OCSF_VERSION},
        },
    })
}

fn record(body: &Body) -> Record {
    Record {
        time_ms: 1_767_225_600_000,
        session: SessionId::parse("s19a1b2c3d4e-0f1e2d3c").ok(),
        agent: AgentName::parse("triage").ok(),
        turn: TurnId::parse("t19a1b2c3d4e-0f1e2d3c").ok(),
        body: body.clone(),
    }
}

/// An example as an entry, for schema, table and tests.
#[must_use]
pub fn example(body: &Body) -> Vec<u8> {
    let uid = Uids::new(7).next(1_767_225_600_000);
    encode(&record(body), &uid).map(crate::entry::Entry::into_bytes).unwrap_or_default()
}

/// An example as JSON; null for one that cannot be an entry, which the tests would notice.
#[must_use]
pub fn example_json(body: &Body) -> Value {
    serde_json::from_slice(&example(body)).unwrap_or_default()
}

fn of_kind(body: &Body) -> Value {
    let mut entry = example_json(body);
    let class = entry["class_uid"].clone();
    let mut form = of_object(&mut entry, "/unmapped");
    form["properties"]["kind"] = json!({"const": body.kind()});
    form["properties"]["turn"] = json!({"type": "string", "pattern": ID});
    if let Some(required) = form["required"].as_array_mut() {
        required.retain(|key| key != "turn");
    }
    if record(body).beside().is_some() {
        form["properties"]["payloads"] = payloads(body);
    }
    json!({
        "title": body.kind(),
        "description": catalogue::meaning(body),
        "properties": {"class_uid": {"const": class}, "unmapped": form},
    })
}

fn payloads(body: &Body) -> Value {
    let mut record = record(body);
    let field = record.beside().map_or("", |(field, ..)| field);
    json!({
        "description": format!(
            "The text of {field} stands beside the log, and {field} is empty here: its length, and \
             the SHA-256 of {} random bytes and the text.", payload::SALT_BYTES),
        "type": "object", "additionalProperties": false, "required": [field],
        "properties": {field: {"type": "object", "additionalProperties": false,
            "required": ["bytes", "sha256"], "properties": {
                "bytes": {"type": "integer", "minimum": 1, "maximum": model::MAX_BESIDE_BYTES},
                "sha256": {"type": "string", "pattern": SHA256}}}},
    })
}

/// Whether the entry, with this value there (or nothing), is still read; and as what it is written
/// then.
fn changed(entry: &mut Value, at: &str, value: Option<Value>) -> Option<Value> {
    let (parent, key) = at.rsplit_once('/')?;
    let object = entry.pointer_mut(parent)?.as_object_mut()?;
    let old = object.get(key).cloned();
    match value {
        Some(value) => drop(object.insert(key.to_owned(), value)),
        None => drop(object.remove(key)),
    }
    let read = serde_json::to_vec(entry).ok().and_then(|bytes| decode(&bytes).ok());
    if let (Some(old), Some(object)) =
        (old, entry.pointer_mut(parent).and_then(Value::as_object_mut))
    {
        object.insert(key.to_owned(), old);
    }
    let record = read?;
    let again = encode(&record, &Uids::new(7).next(record.time_ms)).ok()?;
    serde_json::from_slice(again.bytes()).ok()
}

fn of_object(entry: &mut Value, at: &str) -> Value {
    let Some(object) = entry.pointer(at).and_then(Value::as_object).cloned() else {
        return json!({});
    };
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (key, value) in &object {
        let place = format!("{at}/{key}");
        let mut form = of_value(entry, &place, key, value);
        if let (true, Some(sort)) =
            (changed(entry, &place, Some(Value::Null)).is_some(), form.get("type").cloned())
        {
            form["type"] = json!([sort, "null"]);
        }
        properties.insert(key.clone(), form);
        // Left out if it is not written when it is not there.
        let without = changed(entry, &place, None);
        if without.is_none_or(|again| again.pointer(&place).is_some()) {
            required.push(key.clone());
        }
    }
    json!({"type": "object", "additionalProperties": false, "required": required,
        "properties": properties})
}

fn of_value(entry: &mut Value, at: &str, key: &str, value: &Value) -> Value {
    match value {
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(_) => {
            let fits = |entry: &mut Value, n: u64| changed(entry, at, Some(n.into())).is_some();
            let max = [u64::from(u16::MAX), u64::from(u32::MAX), INTEGER_MAX]
                .into_iter()
                .find(|max| !fits(entry, max + 1))
                .unwrap_or(INTEGER_MAX);
            number(max)
        }
        Value::String(_) => of_text(entry, at, key),
        Value::Array(items) => {
            let inner = match items.first() {
                Some(Value::Object(_)) => of_object(entry, &format!("{at}/0")),
                Some(Value::Number(_)) => number(INTEGER_MAX),
                _ => json!({"type": "string"}),
            };
            json!({"type": "array", "items": inner})
        }
        Value::Object(_) => {
            let mut more = entry.clone();
            let free = format!("{at}/a name that no type has");
            let again = changed(&mut more, &free, Some(1.into()));
            if again.is_some_and(|again| again.pointer(&free).is_some()) {
                return json!({"type": "object", "additionalProperties": number(INTEGER_MAX)});
            }
            of_object(entry, at)
        }
        Value::Null => of_null(entry, at, key),
    }
}

/// Null in the example, so something else is tried.
fn of_null(entry: &mut Value, at: &str, key: &str) -> Value {
    for other in [json!("any text"), json!(1), json!(true)] {
        if changed(entry, at, Some(other.clone())).is_some() {
            return of_value(entry, at, key, &other);
        }
    }
    json!({})
}

fn of_text(entry: &mut Value, at: &str, key: &str) -> Value {
    let takes = |entry: &mut Value, text: &str| changed(entry, at, Some(text.into())).is_some();
    if takes(entry, "any text") {
        if key.ends_with("sha256") {
            return json!({"type": "string", "pattern": SHA256});
        }
        return json!({"type": "string"});
    }
    if takes(entry, "m19a1b2c3d4e-0f1e2d3c") {
        return json!({"type": "string", "pattern": ID});
    }
    let words: Vec<&str> = WORDS.into_iter().filter(|word| takes(entry, word)).collect();
    json!({"type": "string", "enum": words})
}
