//! Token counts out of an answer as it streams by, without keeping it. Pure.
//!
//! All four formats put their counts into an object called `usage` or `usageMetadata`, whole or
//! in an event, at whatever depth. Only that object is kept, so that an event which repeats a
//! whole conversation (Responses' last one does) costs no memory. Inside a JSON string the
//! quotes of a key are escaped, so that words of the model are never taken for one.

use super::Usage;
use serde::Deserialize;

/// Largest object of counts; the largest seen has 600 bytes.
const OBJECT_BYTES_MAX: usize = 8 * 1024;
const KEY: &[u8] = b"\"usage";
const TAIL: &[u8] = b"Metadata\"";

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So much of [`KEY`] was seen.
    Key(usize),
    /// So much of [`TAIL`].
    Tail(usize),
    Colon,
    Brace,
    Inside {
        depth: u32,
        string: bool,
        escaped: bool,
    },
}

/// Reads an answer in pieces of any size.
pub(crate) struct Meter {
    state: State,
    object: Vec<u8>,
    usage: Usage,
}

impl Default for Meter {
    fn default() -> Self {
        Self { state: State::Key(0), object: Vec::new(), usage: Usage::default() }
    }
}

impl Meter {
    /// The counts of a whole answer.
    pub(crate) fn of(body: &[u8]) -> Usage {
        let mut meter = Self::default();
        meter.feed(body);
        meter.usage
    }

    pub(crate) fn feed(&mut self, input: &[u8]) {
        for &b in input {
            self.state = self.step(b);
        }
    }

    /// The counts so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    fn step(&mut self, b: u8) -> State {
        let seek = if b == b'"' { State::Key(1) } else { State::Key(0) };
        match self.state {
            State::Key(n) if n < KEY.len() => {
                if b == KEY[n] {
                    State::Key(n + 1)
                } else {
                    seek
                }
            }
            State::Key(_) if b == b'"' => State::Colon,
            State::Key(_) if b == TAIL[0] => State::Tail(1),
            State::Key(_) => seek,
            State::Tail(n) if b != TAIL[n] => seek,
            State::Tail(n) if n + 1 == TAIL.len() => State::Colon,
            State::Tail(n) => State::Tail(n + 1),
            State::Colon | State::Brace if b.is_ascii_whitespace() => self.state,
            State::Colon if b == b':' => State::Brace,
            State::Brace if b == b'{' => {
                self.object.clear();
                self.object.push(b);
                State::Inside { depth: 1, string: false, escaped: false }
            }
            State::Colon | State::Brace => seek,
            State::Inside { depth, string, escaped } => self.inside(b, depth, string, escaped),
        }
    }

    fn inside(&mut self, b: u8, depth: u32, string: bool, escaped: bool) -> State {
        if self.object.len() == OBJECT_BYTES_MAX {
            self.object = Vec::new();
            return State::Key(0);
        }
        self.object.push(b);
        let depth = match b {
            b'{' if !string => depth + 1,
            b'}' if !string => depth - 1,
            _ => depth,
        };
        if depth == 0 {
            if let Ok(counts) = serde_json::from_slice::<Counts>(&self.object) {
                self.usage.keep_most(&counts.usage());
            }
            return State::Key(0);
        }
        State::Inside {
            depth,
            string: string != (b == b'"' && !escaped),
            escaped: string && b == b'\\' && !escaped,
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
        for (text, counts) in [
            (ANTHROPIC, [10, 5, 2, 42]),
            (OPENAI, [3, 4, 0, 3]),
            (RESPONSES, [1, 8, 0, 5]),
            (GEMINI, [4, 2, 0, 7]),
        ] {
            let [input, cache_read, cache_write, output] = counts;
            let want = Usage { input, cache_read, cache_write, output };
            for size in 1..text.len() {
                let mut meter = Meter::default();
                text.as_bytes().chunks(size).for_each(|piece| meter.feed(piece));
                assert_eq!(meter.usage(), want, "size {size} of {text}");
            }
        }
    }

    #[test]
    fn an_object_without_end_is_not_kept() {
        let mut meter = Meter::default();
        meter.feed(b"{\"usage\":{\"a\":\"");
        for _ in 0..1000 {
            meter.feed(&[b'x'; 1024]);
            assert!(meter.object.capacity() <= 2 * OBJECT_BYTES_MAX);
        }
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
        let words: [&[u8]; 9] = [
            b"\"usage\":{",
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
            let usage = Meter::of(bytes);
            let (mut meter, mut masker) = (Meter::default(), Masker::new(Some(b"output_tokens")));
            let mut masked = Vec::new();
            for piece in dice.pieces(bytes, 50) {
                meter.feed(piece);
                assert!(meter.object.len() <= OBJECT_BYTES_MAX);
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
