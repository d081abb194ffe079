//! A streaming search for one byte string (Knuth, Morris, Pratt), also where its characters are
//! escaped, each as it pleases. Pure.

use super::MASK;
use super::escapes::{Bytes, Step, Syntax};
use std::collections::VecDeque;
use zeroize::Zeroizing;

/// Characters between two lines of base64 at most: the end of one, and how far the next stands in.
const GAP_MAX: u8 = 64;
/// What matches of a line is held back over its end from so many letters on. Fewer stand there by
/// chance too often, and a stream of lines would come late; they show 18 bits at most.
const HELD_MIN: usize = 4;

pub(super) struct Needle {
    pub(super) syntax: Syntax,
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// For each prefix, the length of its longest proper border.
    borders: Vec<u32>,
    /// How much of the needle the end of what was seen matches.
    pub(super) matched: usize,
    pub(super) found: bool,
    /// The beginning of an escape.
    token: Vec<u8>,
    /// What matches as it was written, and how many bytes of it each byte of the needle took. Empty
    /// for [`Syntax::Plain`], where it is the needle's own beginning.
    written: VecDeque<u8>,
    sizes: VecDeque<u32>,
    /// How many characters of a line's end were passed over just now, and whether a line feed was
    /// among them: an empty line ends every match, for it ends a message.
    gap: u8,
    line_ended: bool,
}

impl Needle {
    /// `bytes` are not empty.
    pub(super) fn new(bytes: &[u8], syntax: Syntax) -> Self {
        let mut borders = vec![0_u32; bytes.len()];
        let mut k = 0_usize;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = borders[k - 1] as usize;
            }
            if bytes[i] == bytes[k] {
                k += 1;
            }
            borders[i] = u32::try_from(k).unwrap_or(0);
        }
        Self {
            syntax,
            bytes: Zeroizing::new(bytes.to_vec()),
            borders,
            matched: 0,
            found: false,
            token: Vec::new(),
            written: VecDeque::new(),
            sizes: VecDeque::new(),
            gap: 0,
            line_ended: false,
        }
    }

    /// Whether `b` changes nothing outside a match.
    fn passes(&self, b: u8) -> bool {
        self.syntax.plain(b) != self.bytes[0] && !self.syntax.begins(b)
    }

    /// Whether `input` goes on as it is: the common case by far.
    pub(super) fn ignores(&self, input: &[u8]) -> bool {
        self.matched == 0 && self.token.is_empty() && input.iter().all(|&b| self.passes(b))
    }

    pub(super) fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while let Some(&b) = input.first() {
            if self.matched == 0 && self.token.is_empty() {
                let skip = input.iter().position(|&b| !self.passes(b)).unwrap_or(input.len());
                if skip > 0 {
                    out.extend_from_slice(&input[..skip]);
                    input = &input[skip..];
                    continue;
                }
            }
            input = &input[1..];
            self.read(b, out);
        }
    }

    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let token = std::mem::take(&mut self.token);
        match self.syntax.at_end(&token) {
            Some(bytes) => self.characters(bytes, &token, out),
            None => token.iter().for_each(|&b| self.match_byte(self.syntax.plain(b), &[b], out)),
        }
        self.release(self.matched, out);
        self.matched = 0;
    }

    fn read(&mut self, b: u8, out: &mut Vec<u8>) {
        if self.token.is_empty() {
            if self.syntax.begins(b) {
                self.token.push(b);
            } else {
                self.match_byte(self.syntax.plain(b), &[b], out);
            }
            return;
        }
        match self.syntax.step(&self.token, b) {
            Step::More => self.token.push(b),
            Step::Done(bytes) => {
                self.token.push(b);
                let token = std::mem::take(&mut self.token);
                self.characters(bytes, &token, out);
            }
            Step::Before(bytes) => {
                let token = std::mem::take(&mut self.token);
                self.characters(bytes, &token, out);
                self.read(b, out);
            }
            Step::Not => {
                // No escape has the beginning of another one inside, so this goes one level deep.
                let token = std::mem::take(&mut self.token);
                for &b in &token {
                    self.match_byte(self.syntax.plain(b), &[b], out);
                }
                self.read(b, out);
            }
        }
    }

    /// The bytes of one escaped character; what was written for them goes with the first.
    fn characters(&mut self, (bytes, n): Bytes, written: &[u8], out: &mut Vec<u8>) {
        for (at, &b) in bytes[..n].iter().enumerate() {
            self.match_byte(b, if at == 0 { written } else { &[] }, out);
        }
    }

    fn match_byte(&mut self, b: u8, written: &[u8], out: &mut Vec<u8>) {
        let b = self.syntax.letter(b);
        if self.is_between_lines(b) {
            self.pass_over(written, out);
            return;
        }
        while self.matched > 0 && b != self.bytes[self.matched] {
            let shorter = self.borders[self.matched - 1] as usize;
            self.release(self.matched - shorter, out);
            self.matched = shorter;
        }
        if b != self.bytes[self.matched] {
            out.extend_from_slice(written);
            return;
        }
        self.matched += 1;
        if self.syntax != Syntax::Plain {
            self.written.extend(written);
            self.sizes.push_back(u32::try_from(written.len()).unwrap_or(0));
        }
        if self.matched == self.bytes.len() {
            out.extend_from_slice(MASK);
            self.written.clear();
            self.sizes.clear();
            self.matched = 0;
            self.found = true;
        }
    }

    /// Whether `b` belongs to the end of a line within what matches, or to the blanks after it.
    fn is_between_lines(&mut self, b: u8) -> bool {
        let may = self.matched > 0 && self.gap < GAP_MAX && self.syntax.has_lines();
        let is = may
            && match b {
                b'\n' => !self.line_ended,
                b'\r' => self.gap == 0,
                b' ' | b'\t' => self.gap > 0,
                _ => false,
            };
        (self.gap, self.line_ended) =
            if is { (self.gap + 1, self.line_ended || b == b'\n') } else { (0, false) };
        is
    }

    /// Keeps the end of a line with the letter before it.
    fn pass_over(&mut self, written: &[u8], out: &mut Vec<u8>) {
        match self.sizes.back_mut().filter(|_| self.matched >= HELD_MIN) {
            Some(size) => {
                *size += u32::try_from(written.len()).unwrap_or(0);
                self.written.extend(written);
            }
            None => {
                out.extend(self.written.drain(..));
                out.extend_from_slice(written);
                self.sizes.iter_mut().for_each(|size| *size = 0);
            }
        }
    }

    /// Lets the first `n` bytes of what matched go on as they were written.
    fn release(&mut self, n: usize, out: &mut Vec<u8>) {
        if self.syntax == Syntax::Plain {
            // The needle begins like all that matched of it.
            out.extend_from_slice(&self.bytes[..n]);
            return;
        }
        let size: u32 = self.sizes.drain(..n).sum();
        out.extend(self.written.drain(..size as usize));
    }
}
