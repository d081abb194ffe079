//! The tools: what the model may do inside the sandbox. The sandbox is the wall, not this code.
//!
//! ```text
//! name + JSON arguments ─► dispatch ─► Outcome (text for the model, bounded)
//! ```
//!
//! Invariants:
//! 1. Any arguments whatever give an outcome; bad ones an error the model can act on.
//! 2. Every outcome is bounded by [`MAX_OUTPUT_BYTES`] and a little for notes.
//! 3. Every tool ends soon after its turn is cancelled.

mod bash;
mod file;
mod output;
mod search;
mod spec;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use bash::Jobs;
pub(crate) use output::HeadTail;
pub(crate) use spec::{specs, specs_bytes};

use crate::cancel::Cancel;
use crate::mcp::HostTools;
use crate::wire::UNPARSED;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Most text one tool call gives the model: about 8,000 tokens.
pub(crate) const MAX_OUTPUT_BYTES: usize = 32 << 10;

/// What a tool call gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether it did what was asked.
    pub(crate) ok: bool,
    /// For the model.
    pub(crate) text: String,
    /// Size of the whole output, before it was cut.
    pub(crate) bytes: u64,
}

impl Outcome {
    fn ok(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { ok: true, bytes: text.len() as u64, text }
    }

    pub(crate) fn error(text: impl std::fmt::Display) -> Self {
        let text = format!("error: {text}");
        Self { ok: false, bytes: text.len() as u64, text }
    }
}

/// Where and for whom the tools work.
pub(crate) struct Scene<'a> {
    /// Relative paths start here.
    pub(crate) cwd: &'a Path,
    /// Logs of background commands go here.
    pub(crate) logs: &'a Path,
    /// Raised when the turn is cancelled.
    pub(crate) cancel: &'a Cancel,
    /// Background commands.
    pub(crate) jobs: &'a Jobs,
    /// Tools of the host.
    pub(crate) host: &'a HostTools,
}

impl Scene<'_> {
    fn path(&self, given: &str) -> PathBuf {
        self.cwd.join(given)
    }
}

/// Runs one tool call to its end.
pub(crate) fn run(scene: &Scene<'_>, name: &str, input: &Value) -> Outcome {
    let empty = Map::new();
    let map = input.as_object().unwrap_or(&empty);
    if map.contains_key(UNPARSED) {
        return Outcome::error(
            "the arguments were not a JSON object (perhaps cut off; write large files in parts)",
        );
    }
    if scene.host.has(name) {
        return scene.host.call(name, map, scene.cancel);
    }
    let args = Args { map };
    let offered = specs().iter().any(|spec| spec.name == name);
    let result = match if offered { name } else { "" } {
        "bash" => bash::run(scene, &args),
        "read_file" => file::read(scene, &args),
        "write_file" => file::write(scene, &args),
        "edit_file" => file::edit(scene, &args),
        "glob" => search::glob(scene, &args),
        "grep" => search::grep(scene, &args),
        _ => {
            let all = specs().iter().chain(scene.host.specs());
            let known: Vec<&str> = all.map(|spec| &*spec.name).collect();
            Err(format!("there is no tool named {name:?}; there are {}", known.join(", ")))
        }
    };
    result.unwrap_or_else(Outcome::error)
}

/// The ACP kind of a tool, for whoever shows it.
pub(crate) fn kind(name: &str) -> &'static str {
    match name {
        "bash" => "execute",
        "read_file" => "read",
        "write_file" | "edit_file" => "edit",
        "glob" | "grep" => "search",
        _ => "other",
    }
}

/// One line that says what a call does.
pub(crate) fn title(name: &str, input: &Value) -> String {
    let field = match name {
        "bash" => "command",
        "read_file" | "write_file" | "edit_file" => "path",
        _ => "pattern",
    };
    let detail = input.get(field).and_then(Value::as_str).unwrap_or("");
    crate::rpc::one_line(&format!("{name} {detail}"), 200)
}

/// Arguments, taken out one by one with their types checked.
struct Args<'a> {
    map: &'a Map<String, Value>,
}

impl Args<'_> {
    fn optional_text(&self, name: &str) -> Result<Option<&str>, String> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if name == "path" && text.contains('\0') => {
                Err("\"path\" holds a NUL character".to_owned())
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(format!("{name:?} must be a string, not {other}").chars().take(200).collect())
            }
        }
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        self.optional_text(name)?.ok_or_else(|| format!("the argument {name:?} is missing"))
    }

    fn number(&self, name: &str, default: u64, max: u64) -> Result<u64, String> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(default),
            // Some models write whole numbers as 5.0 or "5".
            Some(value) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let whole = text.strip_suffix(".0").unwrap_or(&text).parse::<u64>();
                whole.map(|n| n.min(max)).map_err(|_| format!("{name:?} must be a whole number"))
            }
        }
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(format!("{name:?} must be true or false")),
        }
    }
}
