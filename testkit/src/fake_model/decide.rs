//! What is answered, whatever the wire format.

use serde_json::{Map, Value};

/// One step of the conversation, as far as the rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    User(String),
    ToolResult(String),
}

/// A tool that is offered.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) schema: Value,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Text(String),
    Calls(Vec<Call>),
}

/// Longest text repeated in an answer, characters.
const ECHO_CHARS_MAX: usize = 2_000;

/// Parts of names under which agents offer a shell.
const SHELL_NAMES: [&str; 4] = ["bash", "shell", "exec", "command"];

/// Names of the argument that takes the command.
const COMMAND_ARGUMENTS: [&str; 3] = ["command", "cmd", "script"];

fn has_directive(text: &str) -> bool {
    ["RUN:", "CALL:", "NOTOOL"].iter().any(|d| text.contains(d))
}

/// The rules, see the module's header.
pub(super) fn decide(items: &[Item], tools: &[Tool]) -> Decision {
    let user = |wanted: fn(&str) -> bool| {
        items.iter().rposition(|i| matches!(i, Item::User(text) if wanted(text)))
    };
    // A text without a directive after one with a directive is the runtime talking to itself.
    let Some(at) = user(has_directive).or_else(|| user(|_| true)) else {
        return Decision::Text("MOCK_TEXT[]".into());
    };
    let results: Vec<&str> = items[at..]
        .iter()
        .filter_map(|i| if let Item::ToolResult(text) = i { Some(text.trim()) } else { None })
        .collect();
    if !results.is_empty() {
        return Decision::Text(format!("MOCK_FINAL[{}]", cut(&results.join(" | "))));
    }
    let Item::User(text) = &items[at] else { return Decision::Text("MOCK_TEXT[]".into()) };
    let calls = if text.contains("NOTOOL") { Vec::new() } else { calls(text, tools, items.len()) };
    if calls.is_empty() {
        return Decision::Text(format!("MOCK_TEXT[{}]", cut(text.trim())));
    }
    Decision::Calls(calls)
}

fn cut(text: &str) -> String {
    text.chars().take(ECHO_CHARS_MAX).collect()
}

fn calls(text: &str, tools: &[Tool], depth: usize) -> Vec<Call> {
    let mut all = Vec::new();
    for line in text.lines() {
        let found = if let Some((_, command)) = line.split_once("RUN:") {
            let shell = |t: &&Tool| {
                let name = t.name.to_ascii_lowercase();
                SHELL_NAMES.iter().any(|s| name.contains(s))
            };
            tools.iter().find(shell).map(|t| (t, shell_arguments(t, command.trim())))
        } else if let Some((_, rest)) = line.split_once("CALL:") {
            let rest = rest.trim();
            let (name, given) = rest.split_once(' ').unwrap_or((rest, ""));
            let tool = tools.iter().find(|t| t.name.contains(name));
            tool.map(|t| (t, serde_json::from_str(given).unwrap_or_else(|_| fill(t))))
        } else {
            None
        };
        if let Some((tool, arguments)) = found {
            let id = format!("call_{depth}_{}", all.len());
            all.push(Call { id, name: tool.name.clone(), arguments });
        }
    }
    all
}

/// The command where the tool wants it, as text or as an argument vector.
fn shell_arguments(tool: &Tool, command: &str) -> Value {
    let mut arguments = fill(tool);
    let properties = &tool.schema["properties"];
    let key = COMMAND_ARGUMENTS.iter().find(|k| !properties[**k].is_null()).unwrap_or(&"command");
    let value = if properties[*key]["type"] == "array" {
        serde_json::json!(["bash", "-c", command])
    } else {
        Value::String(command.to_owned())
    };
    if let Some(map) = arguments.as_object_mut() {
        map.insert((*key).to_owned(), value);
    }
    arguments
}

/// Every required argument with a value of its type.
fn fill(tool: &Tool) -> Value {
    let mut map = Map::new();
    let required = tool.schema["required"].as_array().cloned().unwrap_or_default();
    for key in required.iter().filter_map(Value::as_str) {
        let kind = tool.schema["properties"][key]["type"].as_str().unwrap_or("string");
        let value = match kind {
            "integer" | "number" => Value::from(1),
            "boolean" => Value::Bool(false),
            "array" => Value::Array(Vec::new()),
            "object" => Value::Object(Map::new()),
            _ => Value::String("x".into()),
        };
        map.insert(key.to_owned(), value);
    }
    Value::Object(map)
}

/// The text of a content field: a string, or the `text` of its blocks.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks.iter().filter_map(|b| b["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// A number of tokens that grows with the text: a quarter of its bytes, at least one.
pub(super) fn tokens(text: &str) -> usize {
    text.len() / 4 + 1
}

/// A text in the pieces it is streamed in: words, spaces kept.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    text.split_inclusive(' ').collect()
}

/// The two halves of the arguments' JSON, as servers split them across deltas.
pub(super) fn halves(arguments: &Value) -> [String; 2] {
    let text = arguments.to_string();
    let mut middle = text.len() / 2;
    while !text.is_char_boundary(middle) {
        middle += 1;
    }
    [text[..middle].to_owned(), text[middle..].to_owned()]
}
