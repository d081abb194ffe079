//! Token counts out of an answer as it streams by, without keeping it. Pure.

use serde::Deserialize;

/// Longest `data:` line that is looked at; those with usage have a few hundred bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Tokens as the provider counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

#[derive(Deserialize)]
struct Event {
    message: Option<Message>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Message {
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Counts {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Usage {
    /// Counts grow while an answer streams (Anthropic repeats them cumulatively): keep the most.
    fn take(&mut self, json: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Event>(json) else { return };
        for c in [event.message.and_then(|m| m.usage), event.usage].into_iter().flatten() {
            let cached = [c.cache_creation_input_tokens, c.cache_read_input_tokens];
            let input = cached
                .into_iter()
                .flatten()
                .fold(c.input_tokens.or(c.prompt_tokens).unwrap_or(0), u64::saturating_add);
            self.input = self.input.max(input);
            self.output = self.output.max(c.output_tokens.or(c.completion_tokens).unwrap_or(0));
        }
    }

    /// The counts of a whole JSON answer.
    pub(crate) fn of_json(body: &[u8]) -> Self {
        let mut usage = Self::default();
        usage.take(body);
        usage
    }
}

/// Reads server-sent events (WHATWG HTML §9.2) in pieces of any size.
#[derive(Default)]
pub(crate) struct SseMeter {
    line: Vec<u8>,
    skipping: bool,
    usage: Usage,
}

impl SseMeter {
    pub(crate) fn feed(&mut self, mut input: &[u8]) {
        while let Some(at) = input.iter().position(|&b| b == b'\n' || b == b'\r') {
            self.keep(&input[..at]);
            self.end_of_line();
            input = &input[at + 1..];
        }
        self.keep(input);
    }

    fn keep(&mut self, part: &[u8]) {
        if self.skipping || self.line.len() + part.len() > LINE_BYTES_MAX {
            self.skipping = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    fn end_of_line(&mut self) {
        if !self.skipping
            && let Some(data) = self.line.strip_prefix(b"data:")
            && data.windows(7).any(|w| w == b"\"usage\"")
        {
            self.usage.take(data);
        }
        self.skipping = false;
        self.line.clear();
    }

    /// The counts so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
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

    const ANTHROPIC: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\nevent: message_delta\r\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":42}}\r\n\r\n";
    const OPENAI: &str = "data: {\"choices\":[],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

    #[test]
    fn both_formats_are_metered_in_pieces_of_any_size() {
        for (text, input, output) in [(ANTHROPIC, 15, 42), (OPENAI, 7, 3)] {
            for size in 1..text.len() {
                let mut meter = SseMeter::default();
                text.as_bytes().chunks(size).for_each(|piece| meter.feed(piece));
                assert_eq!(meter.usage(), Usage { input, output }, "size {size}");
            }
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut meter = SseMeter::default();
        for _ in 0..1000 {
            meter.feed(&[b'x'; 1024]);
        }
        assert!(meter.line.capacity() <= 2 * LINE_BYTES_MAX);
        meter.feed(b"\n");
        meter.feed(OPENAI.as_bytes());
        assert_eq!(meter.usage().output, 3);
    }

    #[test]
    fn random_bytes_never_break_the_meter() {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let words: [&[u8]; 8] = [
            b"data: ",
            b"\"usage\"",
            b"{",
            b"}",
            b"\n",
            b":",
            b"{\"usage\":{\"output_tokens\":",
            b"9",
        ];
        let mut meter = SseMeter::default();
        for _ in 0..100_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = words[(state % 8) as usize];
            let noise = state.to_le_bytes();
            meter.feed(if state & 0x100 == 0 { word } else { &noise[..3] });
        }
        assert!(meter.line.len() <= LINE_BYTES_MAX);
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
