//! Token counts out of an answer as it streams by, without keeping it. Pure.
//!
//! Each format has its counts in one place, an object called `usage` or `usageMetadata` near the
//! top of an answer or an event; only there they are taken, for what stands deeper may be the
//! agent's own words, repeated. Only that object is kept, so that an event which repeats a whole
//! conversation (Responses' last one does) costs no memory.

use super::Usage;
use crate::modelapi::wire::Wire;
use serde::Deserialize;

/// Largest object of counts; the largest seen has 600 bytes.
const OBJECT_BYTES_MAX: usize = 8 * 1024;
/// Longer keys than this are none of ours.
const KEY_BYTES_MAX: usize = 16;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

/// The counts of all formats.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Counts {
    // Anthropic and Responses.
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    // OpenAI Chat and embeddings.
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    // Gemini.
    #[serde(rename = "promptTokenCount")]
    gemini_prompt: Option<u64>,
    #[serde(rename = "toolUsePromptTokenCount")]
    gemini_tools: Option<u64>,
    #[serde(rename = "cachedContentTokenCount")]
    gemini_cached: Option<u64>,
    #[serde(rename = "candidatesTokenCount")]
    gemini_answer: Option<u64>,
    #[serde(rename = "thoughtsTokenCount")]
    gemini_thoughts: Option<u64>,
}

impl Counts {
    fn usage(&self) -> Usage {
        let details = self.input_tokens_details.as_ref().or(self.prompt_tokens_details.as_ref());
        // Anthropic counts cached tokens beside the input, the others inside it.
        let within = details.and_then(|d| d.cached_tokens).or(self.gemini_cached).unwrap_or(0);
        let gemini = self.gemini_prompt.map(|n| n.saturating_add(self.gemini_tools.unwrap_or(0)));
        let input = self.input_tokens.or(self.prompt_tokens).or(gemini).unwrap_or(0);
        let thoughts = self.gemini_thoughts.unwrap_or(0);
        let gemini = self.gemini_answer.map_or(thoughts, |n| n.saturating_add(thoughts));
        Usage {
            input: input.saturating_sub(within),
            cache_read: within.min(input).saturating_add(self.cache_read_input_tokens.unwrap_or(0)),
            cache_write: self.cache_creation_input_tokens.unwrap_or(0),
            output: self.output_tokens.or(self.completion_tokens).unwrap_or(gemini),
        }
    }
}

/// Where the counts of a format stand: their key, and the object of the top that may hold them
/// too. Nothing else is a count, for answers repeat what the agent wrote (Responses' its tools).
#[derive(Clone, Copy)]
struct Path {
    inner: &'static [u8],
    key: &'static [u8],
}

impl Path {
    fn of(wire: Wire) -> Self {
        match wire {
            // In `message_start` a message has them; `message_delta` and a whole answer do.
            Wire::Anthropic => Self { inner: b"message", key: b"usage" },
            Wire::OpenAi => Self { inner: b"", key: b"usage" },
            // Events about the whole have a response; a whole answer is one.
            Wire::Responses => Self { inner: b"response", key: b"usage" },
            Wire::Gemini => Self { inner: b"", key: b"usageMetadata" },
        }
    }
}

/// How the JSON of an answer is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// It is one text.
    Whole,
    /// So much of `data:` was seen at a line's beginning.
    Start(usize),
    /// The rest of a line with data.
    Data,
    /// The rest of another line.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    No,
    Yes,
    Escape,
}

/// Reads an answer in pieces of any size.
pub(crate) struct Meter {
    path: Path,
    line: Line,
    /// Containers that are open.
    depth: u32,
    /// How many of them lead to counts: the list of a whole stream, the top, the inner object.
    on: u32,
    /// Whether the outermost is a list of answers.
    list: bool,
    text: Text,
    /// In an object that leads to counts: whether a key comes next, and the last one.
    key_next: bool,
    key: Vec<u8>,
    /// The object of counts, while it is read; it began at this depth.
    object: Vec<u8>,
    from: Option<u32>,
    usage: Usage,
}

impl Meter {
    /// The counts of a whole answer.
    pub(crate) fn of(wire: Wire, body: &[u8]) -> Usage {
        let mut meter = Self::new(wire, Line::Whole);
        meter.feed(body);
        meter.usage
    }

    /// For a stream of events.
    pub(crate) fn of_events(wire: Wire) -> Self {
        Self::new(wire, Line::Start(0))
    }

    fn new(wire: Wire, line: Line) -> Self {
        Self {
            path: Path::of(wire),
            line,
            depth: 0,
            on: 0,
            list: false,
            text: Text::No,
            key_next: false,
            key: Vec::new(),
            object: Vec::new(),
            from: None,
            usage: Usage::default(),
        }
    }

    pub(crate) fn feed(&mut self, input: &[u8]) {
        for &b in input {
            self.byte(b);
        }
    }

    /// The counts so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Takes events apart: their data is JSON, one text each.
    fn byte(&mut self, b: u8) {
        const DATA: &[u8] = b"data:";
        let end = matches!(b, b'\r' | b'\n');
        self.line = match self.line {
            Line::Whole => {
                self.json(b);
                Line::Whole
            }
            // An empty line ends an event, and what it left open.
            Line::Start(0) if end => {
                self.begin();
                Line::Start(0)
            }
            _ if end => Line::Start(0),
            Line::Start(n) if b != DATA[n] => Line::Other,
            Line::Start(n) if n + 1 == DATA.len() => Line::Data,
            Line::Start(n) => Line::Start(n + 1),
            Line::Data => {
                self.json(b);
                Line::Data
            }
            Line::Other => Line::Other,
        };
    }

    fn begin(&mut self) {
        (self.depth, self.on, self.list) = (0, 0, false);
        (self.text, self.key_next, self.from) = (Text::No, false, None);
    }

    fn json(&mut self, b: u8) {
        if self.from.is_some() {
            self.object.push(b);
            if self.object.len() > OBJECT_BYTES_MAX {
                (self.object, self.from) = (Vec::new(), None);
            }
        }
        match self.text {
            Text::Escape => self.text = Text::Yes,
            Text::Yes => self.in_text(b),
            Text::No => self.between(b),
        }
    }

    fn in_text(&mut self, b: u8) {
        match b {
            b'"' => self.text = Text::No,
            b'\\' => {
                self.text = Text::Escape;
                // No provider escapes these keys; one that is escaped is none of them.
                if self.key_next && self.key.len() <= KEY_BYTES_MAX {
                    self.key.push(b);
                }
            }
            _ if self.key_next && self.key.len() < KEY_BYTES_MAX => self.key.push(b),
            _ => {}
        }
    }

    /// Whether the object or list at hand leads to counts.
    fn here(&self) -> bool {
        self.depth == self.on
    }

    /// Whether the object at hand is the top, not the inner one.
    fn top(&self) -> bool {
        self.on == 1 + u32::from(self.list)
    }

    fn between(&mut self, b: u8) {
        match b {
            b'"' => {
                self.text = Text::Yes;
                if self.here() && self.key_next {
                    self.key.clear();
                }
            }
            b':' if self.here() => self.key_next = false,
            b',' => self.key_next = self.here() && !self.in_list(),
            b'{' | b'[' => self.open(b),
            b'}' | b']' => self.close(),
            _ => {}
        }
    }

    fn in_list(&self) -> bool {
        self.list && self.on == 1
    }

    fn open(&mut self, b: u8) {
        let object = b == b'{';
        if !self.here() {
            self.depth = self.depth.saturating_add(1);
            return;
        }
        let leads = match self.depth {
            0 => {
                self.list = !object;
                true
            }
            _ if self.in_list() => object,
            _ => {
                let counts = object && self.key == self.path.key;
                if counts && self.from.is_none() {
                    self.object.clear();
                    self.object.push(b);
                    self.from = Some(self.depth);
                }
                let inner = !self.path.inner.is_empty() && self.key == self.path.inner;
                object && !counts && self.top() && inner
            }
        };
        self.depth += 1;
        if leads {
            self.on = self.depth;
            self.key.clear();
        }
        self.key_next = leads && object;
    }

    fn close(&mut self) {
        if self.here() {
            self.on = self.on.saturating_sub(1);
        }
        self.depth = self.depth.saturating_sub(1);
        self.key_next = false;
        if self.from == Some(self.depth) {
            self.from = None;
            if let Ok(counts) = serde_json::from_slice::<Counts>(&self.object) {
                self.usage.keep_most(&counts.usage());
            }
        }
    }
}

/// Whether bytes can be the beginning of an event stream.
pub(crate) fn looks_like_sse(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    let start = start.trim_ascii_start();
    [&b"data:"[..], b"event:", b"id:", b"retry:", b":"]
        .iter()
        .any(|word| start.starts_with(word) || word.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Masker;
    use testkit::fuzz;

    const ANTHROPIC: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":2,\"cache_read_input_tokens\":5,\"cache_creation\":{\"ephemeral_5m_input_tokens\":2},\"output_tokens\":1}}}\n\nevent: message_delta\r\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":42}}\r\n\r\n";
    const OPENAI: &str = "data: {\"choices\":[],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";
    const RESPONSES: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"text\":\"say \\\"usage\\\":{\\\"output_tokens\\\":999}\"}],\"usage\": {\"input_tokens\":9,\"input_tokens_details\":{\"cached_tokens\":8},\"output_tokens\":5,\"output_tokens_details\":{\"reasoning_tokens\":2}}}}\n\n";
    const GEMINI: &str = "data: {\"candidates\":[],\"usageMetadata\":{\"promptTokenCount\":6}}\r\n\r\ndata: {\"usageMetadata\":{\"promptTokenCount\":6,\"cachedContentTokenCount\":2,\"candidatesTokenCount\":4,\"thoughtsTokenCount\":3,\"promptTokensDetails\":[{\"modality\":\"TEXT\"}]}}\r\n\r\n";

    #[test]
    fn every_format_is_metered_in_pieces_of_any_size() {
        for (wire, text, counts) in [
            (Wire::Anthropic, ANTHROPIC, [10, 5, 2, 42]),
            (Wire::OpenAi, OPENAI, [3, 4, 0, 3]),
            (Wire::Responses, RESPONSES, [1, 8, 0, 5]),
            (Wire::Gemini, GEMINI, [4, 2, 0, 7]),
        ] {
            let [input, cache_read, cache_write, output] = counts;
            let want = Usage { input, cache_read, cache_write, output };
            for size in 1..text.len() {
                let mut meter = Meter::of_events(wire);
                text.as_bytes().chunks(size).for_each(|piece| meter.feed(piece));
                assert_eq!(meter.usage(), want, "size {size} of {text}");
            }
        }
    }

    #[test]
    fn counts_are_taken_at_the_format_s_own_place_only() {
        let false_counts = r#"{"input_tokens":900,"output_tokens":900}"#;
        let of = |wire, text: &str| {
            let whole = Meter::of(wire, text.as_bytes());
            let mut events = Meter::of_events(wire);
            events.feed(format!("event: x\ndata: {text}\n\n").as_bytes());
            assert_eq!(whole, events.usage(), "{text}");
            whole.tokens()
        };
        for (wire, text) in [
            (
                Wire::Responses,
                r#"{"response":{"tools":[{"parameters":{"usage":@}}],"usage":null}}"#,
            ),
            (
                Wire::Responses,
                r#"{"object":"response","tools":[{"usage":@}],"metadata":{"usage":@}}"#,
            ),
            (Wire::Responses, r#"{"response":{"response":{"usage":@}}}"#),
            (Wire::Responses, r#"{"message":{"usage":@}}"#),
            (Wire::Responses, r#"[[{"usage":@}]]"#),
            (Wire::Anthropic, r#"{"content":[{"type":"tool_use","input":{"usage":@}}]}"#),
            (Wire::Anthropic, r#"{"content_block":{"input":{"message":{"usage":@}}}}"#),
            (Wire::Anthropic, r#"{"usage":{"input_tokens":"900"},"x":["usage",@]}"#),
            (Wire::OpenAi, r#"{"choices":[{"usage":@}],"message":{"usage":@}}"#),
            (Wire::OpenAi, r#"{"choices":"\"usage\":{}","us\u0061ge":@,"usage":[@]}"#),
            (Wire::Gemini, r#"{"candidates":[{"usageMetadata":@}],"usage":@}"#),
        ] {
            assert_eq!(of(wire, &text.replace('@', false_counts)), 0, "{text}");
        }
        for (wire, text) in [
            (
                Wire::Responses,
                r#" {"a":{"b":["}{"]},"response":{"tools":[{"usage":9}],"usage" : @}}"#,
            ),
            (Wire::Responses, r#"{"tools":[{}],"usage":@}"#),
            (Wire::Anthropic, r#"{"message":{"usage":@}}"#),
            (Wire::Anthropic, r#"{"message":7,"usage":@}"#),
            (Wire::OpenAi, r#"{"usage":@,"a":"\\"}"#),
        ] {
            assert_eq!(of(wire, &text.replace('@', false_counts)), 1800, "{text}");
        }
        let list = br#"[{"candidates":[]},{"usageMetadata":{"promptTokenCount":6}}]"#;
        assert_eq!(Meter::of(Wire::Gemini, list).input, 6);
    }

    #[test]
    fn an_object_without_end_is_not_kept() {
        let mut meter = Meter::of_events(Wire::OpenAi);
        meter.feed(b"data: {\"usage\":{\"a\":\"");
        for _ in 0..1000 {
            meter.feed(&[b'x'; 1024]);
            assert!(meter.object.capacity() <= 2 * OBJECT_BYTES_MAX);
        }
        meter.feed(b"\n\n");
        meter.feed(OPENAI.as_bytes());
        assert_eq!(meter.usage().output, 3);
    }

    /// An answer on its way to an agent: counted, masked, told from a page, of a format or not.
    #[test]
    fn fuzz_model_stream() {
        use crate::modelapi::operation::Ask;
        let whole = br#"{"object":"response","output":[],"content":[],"choices":[],"candidates":[],
            "input_tokens":1,"usage":{"input_tokens":9,"output_tokens":5}}"#;
        let seeds: [&[u8]; 5] = [
            ANTHROPIC.as_bytes(),
            OPENAI.as_bytes(),
            RESPONSES.as_bytes(),
            GEMINI.as_bytes(),
            whole,
        ];
        let words: [&[u8]; 12] = [
            b"\"usage\":{",
            b"\"response\":{",
            b"[",
            b"]",
            b"\"usage",
            b"Metadata\":{",
            b"{",
            b"}",
            b"\\",
            b"\"",
            b"data: ",
            b"\"output_tokens\":",
        ];
        let asks = [Ask::Messages { beta: false }, Ask::Chat, Ask::Responses, Ask::Generate];
        fuzz::with_words("model-stream", &seeds, &words, |bytes, dice| {
            let wire = asks[dice.below(asks.len())].wire();
            let line = [Line::Whole, Line::Start(0)][dice.below(2)];
            let (mut whole, mut meter) = (Meter::new(wire, line), Meter::new(wire, line));
            whole.feed(bytes);
            let usage = whole.usage();
            let mut masker = Masker::new(Some(b"output_tokens"));
            let mut masked = Vec::new();
            for piece in dice.pieces(bytes, 50) {
                meter.feed(piece);
                assert!(meter.object.len() <= OBJECT_BYTES_MAX);
                assert!(meter.key.len() <= KEY_BYTES_MAX + 1);
                masked.extend(masker.feed(piece));
            }
            masked.extend(masker.finish());
            assert_eq!(meter.usage(), usage, "in pieces it counts otherwise");
            assert!(!masked.windows(13).any(|w| w == b"output_tokens"));
            let is = asks.map(|ask| ask.wire().is_answer(ask, bytes));
            let counts = [usage.input, usage.output, usage.cache_read, usage.cache_write];
            fuzz::outcome((is, looks_like_sse(bytes), counts.map(|n| n.min(64))))
        });
    }

    #[test]
    fn event_streams_are_told_from_pages() {
        for good in ["data: x", "event: y", ": ping", "\n\ndata:", "d", "ev"] {
            assert!(looks_like_sse(good.as_bytes()), "{good}");
        }
        for bad in ["<html>", "{\"a\":1}", "dada"] {
            assert!(!looks_like_sse(bad.as_bytes()), "{bad}");
        }
    }
}
