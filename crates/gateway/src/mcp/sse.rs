//! Server-sent events, as far as answers to one request need them. Pure.
//!
//! Source: the HTML standard, event stream interpretation: only `data` is of use here.

/// Cuts a stream of bytes into the data of its events.
#[derive(Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    any: bool,
    after_cr: bool,
}

impl Events {
    /// Takes the next bytes; the data of every event that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut complete = Vec::new();
        for &b in bytes {
            // CR, LF and CR LF all end a line.
            let second = std::mem::replace(&mut self.after_cr, b == b'\r') && b == b'\n';
            match b {
                b'\n' if second => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    complete.extend(self.end_line(&line));
                }
                other => self.line.push(other),
            }
        }
        complete
    }

    fn end_line(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        if line.is_empty() {
            return std::mem::take(&mut self.any).then(|| std::mem::take(&mut self.data));
        }
        if let Some(value) = line.strip_prefix(b"data:") {
            if self.any {
                self.data.push(b'\n');
            }
            self.any = true;
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Events;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let stream =
            b"id: 1\ndata:\n\n: note\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: x\n\ndata:b\r\r";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let mut all = Vec::new();
            for piece in stream.chunks(size) {
                all.extend(events.push(piece));
            }
            assert_eq!(all, [b"".to_vec(), b"{\"a\":\n1}".to_vec(), b"b".to_vec()], "{size}");
        }
    }

    #[test]
    fn fuzz_mcp_events() {
        let seeds: [&[u8]; 2] = [
            b"id: 1\ndata:\n\n: note\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: x\n\ndata:b\r\r",
            b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n",
        ];
        let words: [&[u8]; 5] = [b"data: ", b"\r\n\r\n", b"\n\n", b"\r", b"data:"];
        testkit::fuzz::with_words("mcp-events", &seeds, &words, |bytes, dice| {
            let whole = Events::default().push(bytes);
            let mut events = Events::default();
            let pieces = dice.pieces(bytes, 9);
            let cut: Vec<_> = pieces.into_iter().flat_map(|piece| events.push(piece)).collect();
            assert_eq!(cut, whole);
            assert!(whole.iter().map(Vec::len).sum::<usize>() <= bytes.len());
            testkit::fuzz::outcome((whole.len(), whole.last().map(Vec::len)))
        });
    }
}
