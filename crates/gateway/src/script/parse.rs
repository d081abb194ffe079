//! A script's text → a checked [`Script`], or file, line and column of the mistake.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Largest script; the longest demonstration has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest pause before an event: a script should imitate a slow model, not a dead one.
const DELAY_MS_MAX: u64 = 10_000;
/// Text per event when nothing is said; about what models send.
const CHUNK_CHARS: u32 = 24;

/// Why a script is refused: what, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("the script {path} cannot be read: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        cause: String,
    },
    /// Its text is wrong.
    #[error("{path}:{line}:{column}: {what}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong and what is expected.
        what: String,
    },
}

/// A script, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub(super) stem: String,
    pub(super) delay_ms: u64,
    pub(super) chunk_chars: usize,
    pub(super) turns: Vec<Turn>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    /// Lower case.
    pub(super) when: Option<String>,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) text: Option<Vec<Part>>,
    pub(super) calls: Vec<Call>,
}

/// A piece of text, or what stands for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// `{{user}}`.
    User,
    /// `{{result}}`: all results, one after the other.
    Results,
    /// `{{result.N}}`, from 0 here.
    Result(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) tool: String,
    pub(super) arguments: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScript {
    schema: Spanned<u32>,
    delay_ms: Option<Spanned<u64>>,
    chunk_chars: Option<Spanned<u32>>,
    turn: Spanned<Vec<Spanned<RawTurn>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTurn {
    when: Option<Spanned<String>>,
    #[serde(default)]
    step: Vec<Spanned<RawStep>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    text: Option<Spanned<String>>,
    #[serde(default)]
    call: Vec<RawCall>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCall {
    tool: Spanned<String>,
    #[serde(default)]
    arguments: Map<String, Value>,
}

/// A mistake and where it stands in the text.
type Mistake = (Range<usize>, String);

impl Script {
    /// Reads and checks a script file.
    ///
    /// # Errors
    /// When it cannot be read, or is wrong anywhere.
    pub fn load(path: &Path) -> Result<Self, ScriptError> {
        Self::parse(&Self::text(path)?, path)
    }

    /// Reads a script file without checking it: at most a byte more than a script may have.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(path: &Path) -> Result<String, ScriptError> {
        let unreadable = |cause: std::io::Error| ScriptError::Unreadable {
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        Ok(text)
    }

    /// Checks a script's text; `path` gives its name and stands in errors.
    ///
    /// # Errors
    /// With line and column of the first mistake.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ScriptError> {
        let stem = path.file_stem().map_or_else(|| "script".into(), |s| s.to_string_lossy());
        check(text, &stem).map_err(|(span, what)| {
            let (line, column) = position(text, span.start);
            ScriptError::Wrong { path: path.to_owned(), line, column, what }
        })
    }

    /// What the model calls itself in every answer.
    #[must_use]
    pub fn model_name(&self) -> String {
        format!("script:{}", self.stem)
    }
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn check(text: &str, stem: &str) -> Result<Script, Mistake> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err((0..0, "the script is larger than 1 MiB".into()));
    }
    let raw: RawScript = toml::from_str(text)
        .map_err(|e| (e.span().unwrap_or(0..0), e.message().trim().to_owned()))?;
    if *raw.schema.get_ref() != 1 {
        return Err((raw.schema.span(), "this version knows schema = 1 only".into()));
    }
    if let Some(delay) = raw.delay_ms.as_ref().filter(|d| *d.get_ref() > DELAY_MS_MAX) {
        return Err((delay.span(), format!("delay_ms may be at most {DELAY_MS_MAX}")));
    }
    if let Some(zero) = raw.chunk_chars.as_ref().filter(|c| *c.get_ref() == 0) {
        return Err((zero.span(), "chunk_chars must be at least 1".into()));
    }
    if raw.turn.get_ref().is_empty() {
        return Err((raw.turn.span(), "the script has no [[turn]]".into()));
    }
    let mut turns: Vec<Turn> = Vec::new();
    for spanned in raw.turn.into_inner() {
        let span = spanned.span();
        if turns.iter().any(|t| t.when.is_none()) {
            let why = "this turn is never reached: an earlier one without `when` fits every text";
            return Err((span, why.into()));
        }
        turns.push(check_turn(spanned.into_inner(), span)?);
    }
    Ok(Script {
        stem: stem.to_owned(),
        delay_ms: raw.delay_ms.map_or(0, Spanned::into_inner),
        chunk_chars: raw.chunk_chars.map_or(CHUNK_CHARS, Spanned::into_inner) as usize,
        turns,
    })
}

fn check_turn(raw: RawTurn, span: Range<usize>) -> Result<Turn, Mistake> {
    if let Some(when) = raw.when.as_ref().filter(|w| w.get_ref().trim().is_empty()) {
        return Err((when.span(), "`when` is empty; leave it out to fit every text".into()));
    }
    if raw.step.is_empty() {
        return Err((span, "this turn has no [[turn.step]]".into()));
    }
    let count = raw.step.len();
    let mut steps: Vec<Step> = Vec::with_capacity(count);
    for (i, spanned) in raw.step.into_iter().enumerate() {
        let span = spanned.span();
        let results = steps.last().map_or(0, |previous| previous.calls.len());
        let step = check_step(spanned.into_inner(), &span, results)?;
        match (step.calls.is_empty(), i + 1 == count) {
            (true, false) => {
                let why = "this step calls no tool, so the steps after it are never reached";
                return Err((span, why.into()));
            }
            (false, true) => {
                let why = "the last step of a turn may not call tools: nothing answers the results";
                return Err((span, why.into()));
            }
            _ => steps.push(step),
        }
    }
    let when = raw.when.map(|w| w.into_inner().to_lowercase());
    Ok(Turn { when, steps })
}

fn check_step(raw: RawStep, span: &Range<usize>, results: usize) -> Result<Step, Mistake> {
    let text = match raw.text {
        Some(text) => {
            let at = text.span();
            Some(parts(text.get_ref(), results).map_err(|why| (at, why))?)
        }
        None => None,
    };
    if text.is_none() && raw.call.is_empty() {
        return Err((span.clone(), "this step has neither text nor a call".into()));
    }
    let mut calls = Vec::with_capacity(raw.call.len());
    for call in raw.call {
        let named = call.tool.get_ref();
        let fits = matches!(named.len(), 1..=64)
            && named.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !fits {
            let why = "a tool's name has 1 to 64 letters, digits, '_' and '-'";
            return Err((call.tool.span(), why.into()));
        }
        let arguments = Value::Object(call.arguments);
        calls.push(Call { tool: call.tool.into_inner(), arguments });
    }
    Ok(Step { text, calls })
}

/// Splits a text at its placeholders. `results` is how many the previous step leaves.
fn parts(text: &str, results: usize) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, tail) =
            after.split_once("}}").ok_or("a placeholder is opened with {{ and never closed")?;
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(placeholder(name.trim(), results)?);
        rest = tail;
    }
    if !rest.is_empty() || parts.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

fn placeholder(name: &str, results: usize) -> Result<Part, String> {
    if name == "user" {
        return Ok(Part::User);
    }
    let number = match name.strip_prefix("result") {
        Some("") => None,
        Some(tail) => tail.strip_prefix('.').and_then(|n| n.parse::<usize>().ok()).or(Some(0)),
        None => {
            return Err(format!(
                "unknown placeholder {{{{{name}}}}}; known: user, result, result.N"
            ));
        }
    };
    match number {
        _ if results == 0 => {
            Err("no step before this one calls a tool, so there is no result".into())
        }
        None => Ok(Part::Results),
        Some(n) if (1..=results).contains(&n) => Ok(Part::Result(n - 1)),
        Some(_) => {
            Err(format!("write result.N with N from 1 to {results}: so many calls come before"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzz;

    fn wrong(text: &str) -> (usize, usize, String) {
        match Script::parse(text, Path::new("s.toml")) {
            Err(ScriptError::Wrong { line, column, what, .. }) => (line, column, what),
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn mistakes_are_named_with_line_and_column() {
        let cases: &[(&str, usize, &str)] = &[
            ("schema = 2\n[[turn]]\n", 1, "schema = 1"),
            ("schema = 1\nchunk = 3\n", 2, "unknown field"),
            ("schema = 1\n[[turn]]\nwen = \"x\"\n", 3, "unknown field"),
            ("schema = 1\nturn = []\n", 2, "no [[turn]]"),
            ("schema = 1\n[[turn]]\nwhen = \"x\"\n", 2, "no [[turn.step]]"),
            ("schema = 1\n[[turn]]\n[[turn.step]]\n", 3, "neither text"),
            ("schema = 1\n[[turn]]\n[[turn.step]]\ntext = \"{{result}}\"\n", 4, "no result"),
            ("schema = 1\n[[turn]]\n[[turn.step]]\ntext = \"{{usr}}\"\n", 4, "unknown placeholder"),
            ("schema = 1\n[[turn]]\n[[turn.step]]\ntext = \"{{\"\n", 4, "never closed"),
            (
                "schema = 1\n[[turn]]\n[[turn.step]]\n[[turn.step.call]]\ntool = \"a\"\n",
                3,
                "last step",
            ),
            (
                "schema = 1\n[[turn]]\n[[turn.step]]\n[[turn.step.call]]\ntool = \"a b\"\n",
                5,
                "tool's name",
            ),
            (
                "schema = 1\n[[turn]]\n[[turn.step]]\ntext=\"a\"\n[[turn.step]]\ntext=\"b\"\n",
                3,
                "never reached",
            ),
            (
                "schema = 1\n[[turn]]\n[[turn.step]]\ntext=\"a\"\n[[turn]]\n[[turn.step]]\ntext=\"b\"\n",
                5,
                "never reached",
            ),
            ("schema = 1\ndelay_ms = 99999\n[[turn]]\n", 2, "at most"),
            ("schema = 1\nchunk_chars = 0\n[[turn]]\n", 2, "at least"),
            ("schema = 1\n x y\n", 2, ""),
            ("", 1, "missing field"),
        ];
        for (text, line, part) in cases {
            let (found, column, what) = wrong(text);
            assert_eq!(found, *line, "{text:?}: {what}");
            assert!(column >= 1 && what.contains(part), "{text:?}: {what}");
        }
        let three = "schema = 1\n[[turn]]\n[[turn.step]]\n[[turn.step.call]]\ntool = \"a\"\n[[turn.step]]\ntext = \"{{result.2}}\"\n";
        assert!(wrong(three).2.contains("from 1 to 1"));
    }

    #[test]
    fn fuzz_script() {
        use crate::modelapi::operation::Ask;
        let good = "schema = 1\nchunk_chars = 3\n[[turn]]\nwhen = \"é\"\n[[turn.step]]\ntext = \"a {{user}}\"\n[[turn.step.call]]\ntool = \"bash\"\narguments = { command = \"ls\", n = [1, 2.5, true] }\n[[turn.step]]\ntext = \"{{result.1}}\"\n";
        let script = Script::parse(good, Path::new("dir/demo.toml")).expect("valid");
        assert_eq!(script.model_name(), "script:demo");
        let seeds: [&[u8]; 5] = [
            good.as_bytes(),
            br#"{"messages":[{"role":"user","content":"x \u00e9"},{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"bash","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"r"}]}]}"#,
            br#"{"messages":[{"role":"user","content":[{"type":"text","text":"\u00e9"}]},{"role":"assistant","tool_calls":[{"id":"c"}]},{"role":"tool","tool_call_id":"c","content":"r"}],"stream_options":{"include_usage":true}}"#,
            br#"{"input":[{"role":"user","content":"\u00e9"},{"type":"function_call","call_id":"c"},{"type":"function_call_output","call_id":"c","output":"r"}]}"#,
            br#"{"contents":[{"role":"user","parts":[{"text":"\u00e9"}]},{"role":"model","parts":[{"functionCall":{"name":"bash"}}]},{"role":"user","parts":[{"functionResponse":{"response":{"output":"r"}}}]}],"generationConfig":{"responseMimeType":"application/json","responseSchema":{"type":"OBJECT"}}}"#,
        ];
        let words: [&[u8]; 8] = [
            b"[[turn]]\n",
            b"[[turn.step]]\n",
            b"{{result}}",
            b"{{",
            b"text = ",
            b"\"role\":\"user\"",
            b"null",
            b"\"content\":",
        ];
        let asks = [Ask::Messages { beta: false }, Ask::Chat, Ask::Responses, Ask::Generate];
        fuzz::with_words("script", &seeds, &words, |bytes, _| {
            let text = String::from_utf8_lossy(bytes);
            let mut found = match Script::parse(&text, Path::new("s.toml")) {
                Err(ScriptError::Wrong { line, column, what, .. }) => {
                    let lines = text.matches('\n').count() + 1;
                    assert!((1..=lines).contains(&line) && (1..=text.len() + 1).contains(&column));
                    vec![what.chars().take(30).collect()]
                }
                other => vec![format!("{:?}", other.map(|script| script.turns.len()))],
            };
            for ask in asks {
                for stream in [false, true] {
                    let Ok(played) = crate::script::wire::perform(&script, ask, bytes, stream)
                    else {
                        continue;
                    };
                    assert!(played.whole.is_some() != (stream && !played.events.is_empty()));
                    found.push(format!("{}", played.events.len()));
                }
            }
            fuzz::outcome(found)
        });
    }
}
