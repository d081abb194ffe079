//! Server-sent events: bytes in any pieces → the `data` of each event.
//!
//! Source: WHATWG HTML §9.2.6. Only `data` matters to the two model formats; event names repeat
//! what the data says, and ids and retry times are for browsers.

/// Longest data of one event. A whole tool call may come in one; 4 MiB is far above any.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// One event is longer than 4 MiB.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

#[derive(Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    started: bool,
}

impl Parser {
    /// Takes the next bytes and gives the data of every event they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let second_half = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            if second_half {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                events.extend(self.end_line());
            } else {
                self.line.push(byte);
                if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                    return Err(TooLong);
                }
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let mut line = std::mem::take(&mut self.line);
        if !self.started {
            self.started = true;
            if line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
        }
        if line.is_empty() {
            let had = std::mem::take(&mut self.has_data);
            let data = std::mem::take(&mut self.data);
            return had.then_some(data);
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[][..],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            _ => return None,
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8], step: usize) -> Vec<String> {
        let mut parser = Parser::default();
        let events = bytes.chunks(step).flat_map(|chunk| parser.push(chunk).unwrap());
        events.map(|data| String::from_utf8(data).unwrap()).collect()
    }

    #[test]
    fn any_line_end_and_any_split_give_the_same_events() {
        let text =
            "\u{feff}: hello\nevent: x\ndata: a\ndata:b\n\ndata\n\nid: 1\n\ndata:  c é\n\nlost";
        for end in ["\n", "\r\n", "\r"] {
            let bytes = text.replace('\n', end).into_bytes();
            for step in [1, 2, 3, 7, 1_000] {
                assert_eq!(parse(&bytes, step), ["a\nb", "", " c é"], "{end:?} by {step}");
            }
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 20];
        let results: Vec<_> = (0..5).map(|_| parser.push(&chunk)).collect();
        assert!(results.contains(&Err(TooLong)));
        let mut parser = Parser::default();
        let lines = [b"data: ".as_slice(), &[b'y'; 1_000], b"\n"].concat();
        assert!((0..5_000).any(|_| parser.push(&lines).is_err()));
    }
}
