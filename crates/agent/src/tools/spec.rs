//! What the model is told about each tool. The texts are prompts: short, exact, with the limits.

use crate::wire::ToolSpec;
use serde_json::{Value, json};
use std::sync::OnceLock;

/// The tools, in the order the model sees them.
pub(crate) fn specs() -> &'static [ToolSpec] {
    static SPECS: OnceLock<Vec<ToolSpec>> = OnceLock::new();
    SPECS.get_or_init(|| {
        // Which tools this agent is offered. Set once, before the first turn, by whoever started
        // it; the walls are the kernel's, this only spares the model useless attempts.
        // An empty list is none; no list is all.
        let mut specs = build();
        if let Ok(offered) = std::env::var("NANOCLAW_TOOLS") {
            specs.retain(|spec| offered.split(',').any(|name| name == spec.name));
        }
        specs
    })
}

/// About how many bytes of every request they take.
pub(crate) fn specs_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    let bytes = |spec: &ToolSpec| spec.schema.to_string().len() + spec.description.len();
    *BYTES.get_or_init(|| specs().iter().map(bytes).sum())
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required,
        "additionalProperties": false})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn number(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

fn path() -> Value {
    text("Absolute, or relative to the working directory")
}

fn build() -> Vec<ToolSpec> {
    let mut specs = vec![bash()];
    specs.extend(files());
    specs.extend(searches());
    specs
}

fn bash() -> ToolSpec {
    ToolSpec {
        name: "bash".into(),
        description: "Runs a shell command in the working directory and returns its output \
                (stdout and stderr together, beginning and end if it is long) and its exit code. \
                Nothing it starts outlives it unless background is true; then it returns at once \
                with an id, the process group and a log file to read."
            .into(),
        schema: object(
            json!({
                "command": text("The command"),
                "timeout_ms": number("Time limit in milliseconds; default 120000, at most 600000"),
                "background": flag("Leave it running and return at once"),
            }),
            &["command"],
        ),
    }
}

fn files() -> [ToolSpec; 3] {
    [
        ToolSpec {
            name: "read_file".into(),
            description: "Reads a text file with line numbers, 2000 lines from offset unless limit says otherwise."
.into(),
            schema: object(
                json!({
                    "path": path(),
                    "offset": number("First line to read, from 1"),
                    "limit": number("Number of lines"),
                }),
                &["path"],
            ),
        },
        ToolSpec {
            name: "write_file".into(),
            description: "Writes a whole file, making its folders where they are missing and replacing what was there."
.into(),
            schema: object(
                json!({"path": path(), "content": text("The whole new content")}),
                &["path", "content"],
            ),
        },
        ToolSpec {
            name: "edit_file".into(),
            description: "Replaces text in a file. old_string must occur exactly once (add \
                surrounding lines to make it unique) unless replace_all is true."
.into(),
            schema: object(
                json!({
                    "path": path(),
                    "old_string": text("Text to replace, exactly as in the file, without line numbers"),
                    "new_string": text("Text to put there"),
                    "replace_all": flag("Replace every occurrence"),
                }),
                &["path", "old_string", "new_string"],
            ),
        },
    ]
}

fn searches() -> [ToolSpec; 2] {
    [
        ToolSpec {
            name: "glob".into(),
            description: "Finds files by name, newest first, at most 200. A pattern without a \
                slash matches at any depth. .git is left out."
                .into(),
            schema: object(
                json!({"pattern": text("e.g. *.rs or src/**/*.py"), "path": text("Folder to search; default the working directory")}),
                &["pattern"],
            ),
        },
        ToolSpec {
            name: "grep".into(),
            description: "Searches text files for a regular expression (Rust syntax) and returns \
                path:line:text, at most 200 matches. Binary files and .git are left out."
                .into(),
            schema: object(
                json!({
                    "pattern": text("The regular expression"),
                    "path": text("File or folder to search; default the working directory"),
                    "glob": text("Only files whose names match, e.g. *.rs"),
                    "ignore_case": flag("Ignore case"),
                }),
                &["pattern"],
            ),
        },
    ]
}
