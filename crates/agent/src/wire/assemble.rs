//! Puts the pieces of a streamed answer together, within limits, whatever order they come in.

use super::{Answer, Block, Stop, fail};
use crate::acp::{ModelFailure, Usage};
use serde_json::{Value, json};

/// Most text and tool arguments of one answer together.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Most tool calls of one answer.
const MAX_TOOL_CALLS: usize = 64;
/// Longest tool name or id kept; both formats allow 64.
const MAX_NAME_BYTES: usize = 64;
/// The one member of a tool call's input whose arguments were not a JSON object.
pub(crate) const UNPARSED: &str = "unparsed_arguments";

struct Call {
    key: u64,
    id: String,
    name: String,
    arguments: String,
}

/// Collects one answer.
pub(super) struct Assembler<'a> {
    on_text: &'a mut dyn FnMut(&str),
    text: String,
    calls: Vec<Call>,
    bytes: usize,
    pub(super) stop: Stop,
    pub(super) usage: Usage,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(on_text: &'a mut dyn FnMut(&str)) -> Self {
        let usage = Usage { requests: 1, ..Usage::default() };
        Self { on_text, text: String::new(), calls: Vec::new(), bytes: 0, stop: Stop::Done, usage }
    }

    fn count(&mut self, bytes: usize) -> Result<(), ModelFailure> {
        self.bytes += bytes;
        if self.bytes > MAX_ANSWER_BYTES {
            return Err(fail::bad_answer("it is endless"));
        }
        Ok(())
    }

    /// More text.
    pub(super) fn text(&mut self, piece: &str) -> Result<(), ModelFailure> {
        if piece.is_empty() {
            return Ok(());
        }
        self.count(piece.len())?;
        self.text.push_str(piece);
        (self.on_text)(piece);
        Ok(())
    }

    /// More of the tool call that the server numbers `key`; empty strings add nothing.
    pub(super) fn call(
        &mut self,
        key: u64,
        id: &str,
        name: &str,
        arguments: &str,
    ) -> Result<(), ModelFailure> {
        self.count(id.len() + name.len() + arguments.len())?;
        let at = match self.calls.iter().position(|call| call.key == key) {
            Some(at) => at,
            None if self.calls.len() >= MAX_TOOL_CALLS => {
                return Err(fail::bad_answer("it has too many tool calls"));
            }
            None => {
                let (id, name, arguments) = (String::new(), String::new(), String::new());
                self.calls.push(Call { key, id, name, arguments });
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at];
        if call.id.is_empty() {
            call.id.push_str(id);
        }
        if call.name.is_empty() {
            call.name.push_str(name);
        }
        call.arguments.push_str(arguments);
        Ok(())
    }

    /// The whole answer.
    pub(super) fn finish(self) -> Result<Answer, ModelFailure> {
        let mut blocks = Vec::new();
        if !self.text.trim().is_empty() {
            blocks.push(Block::Text { text: self.text });
        }
        let mut ids: Vec<String> = Vec::new();
        for call in self.calls {
            if call.name.is_empty() {
                return Err(fail::bad_answer("a tool call has no name"));
            }
            let id = usable_id(call.id, &ids);
            ids.push(id.clone());
            let name = plain(&call.name);
            blocks.push(Block::ToolUse { id, name, input: input(&call.arguments) });
        }
        Ok(Answer { blocks, stop: self.stop, usage: self.usage })
    }
}

/// Both formats refuse names with other characters when they come back in the history.
fn plain(name: &str) -> String {
    let usable = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    name.chars().take(MAX_NAME_BYTES).map(usable).collect()
}

/// The server's id if it is one and new, else one of ours.
fn usable_id(id: String, taken: &[String]) -> String {
    let fits = !id.is_empty() && id.len() <= MAX_NAME_BYTES && plain(&id) == id;
    if fits && !taken.contains(&id) {
        return id;
    }
    let mut number = taken.len();
    loop {
        let made = format!("call_{number}");
        if !taken.contains(&made) {
            return made;
        }
        number += 1;
    }
}

fn input(arguments: &str) -> Value {
    if arguments.trim().is_empty() {
        return json!({});
    }
    match serde_json::from_str::<Value>(arguments) {
        Ok(value @ Value::Object(_)) => value,
        _ => json!({ UNPARSED: arguments }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_unique_and_arguments_always_an_object() {
        let mut sink = |_: &str| {};
        let mut assembler = Assembler::new(&mut sink);
        for (key, id, arguments) in
            [(0, "a", "{}"), (1, "a", "[1]"), (2, "b c", ""), (3, "", "{\"x\":")]
        {
            assembler.call(key, id, "ba sh", arguments).unwrap();
        }
        let answer = assembler.finish().unwrap();
        let mut ids: Vec<String> = answer
            .blocks
            .iter()
            .map(|block| match block {
                Block::ToolUse { id, name, input } => {
                    assert_eq!(name, "ba_sh");
                    assert!(input.is_object());
                    id.clone()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        ids.dedup();
        assert_eq!(ids.len(), 4);
    }

    #[test]
    fn endless_answers_are_refused() {
        let mut sink = |_: &str| {};
        let mut assembler = Assembler::new(&mut sink);
        let piece = "x".repeat(1 << 20);
        assert!((0..9).any(|_| assembler.text(&piece).is_err()));
        let mut assembler = Assembler::new(&mut sink);
        assert!((0..100).any(|key| assembler.call(key, "", "bash", "").is_err()));
    }
}
