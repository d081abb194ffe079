//! Output of unknown length, kept as its beginning and its end.

use std::collections::VecDeque;

/// Keeps the first and the last half of `max` bytes.
pub(crate) struct HeadTail {
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl HeadTail {
    pub(crate) fn new(max: usize) -> Self {
        Self { half: max / 2, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.half.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.half);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// Bytes pushed in all.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The text with a note where something was left out. Bytes that are not UTF-8 are replaced.
    pub(crate) fn text(mut self) -> String {
        let missing = self.total - (self.head.len() + self.tail.len()) as u64;
        if missing > 0 {
            let note = format!("\n[… {missing} bytes left out here …]\n");
            self.head.extend_from_slice(note.as_bytes());
        }
        self.head.extend(self.tail);
        String::from_utf8_lossy(&self.head).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::HeadTail;

    #[test]
    fn beginning_and_end_survive_in_any_split() {
        let input: Vec<u8> = (b'a'..=b'z').collect();
        for step in [1, 3, 7, 26] {
            let mut output = HeadTail::new(8);
            input.chunks(step).for_each(|chunk| output.push(chunk));
            assert_eq!(output.text(), "abcd\n[… 18 bytes left out here …]\nwxyz");
            let mut short = HeadTail::new(52);
            input.chunks(step).for_each(|chunk| short.push(chunk));
            assert_eq!(short.total(), 26);
            assert_eq!(short.text().as_bytes(), input);
        }
    }
}
