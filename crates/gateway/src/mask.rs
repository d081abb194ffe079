//! Masks a secret in an answer, across pieces of any size, holding back only what might be its
//! beginning. Pure.

use zeroize::Zeroizing;

/// What stands where a secret stood. Fits into JSON strings and header values.
const MASK: &[u8] = b"[secret masked]";
/// A shorter "secret" would be found in ordinary text everywhere.
const SECRET_BYTES_MIN: usize = 6;

/// A streaming search for one byte string (Knuth, Morris, Pratt).
struct Needle {
    bytes: Zeroizing<Vec<u8>>,
    /// For each prefix, the length of its longest proper border.
    borders: Vec<usize>,
    /// How much of the needle the end of what was seen matches.
    matched: usize,
}

impl Needle {
    fn new(bytes: &[u8]) -> Self {
        let mut borders = vec![0; bytes.len()];
        let mut k = 0;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = borders[k - 1];
            }
            if bytes[i] == bytes[k] {
                k += 1;
            }
            borders[i] = k;
        }
        Self { bytes: Zeroizing::new(bytes.to_vec()), borders, matched: 0 }
    }

    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) {
        for &b in input {
            while self.matched > 0 && b != self.bytes[self.matched] {
                let shorter = self.borders[self.matched - 1];
                out.extend_from_slice(&self.bytes[..self.matched - shorter]);
                self.matched = shorter;
            }
            if b == self.bytes[self.matched] {
                self.matched += 1;
                if self.matched == self.bytes.len() {
                    out.extend_from_slice(MASK);
                    self.matched = 0;
                }
            } else {
                out.push(b);
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.matched]);
        self.matched = 0;
    }
}

/// Masks every spelling of one secret.
pub(crate) struct Masker {
    needles: Vec<Needle>,
}

impl Masker {
    /// A masker for `secret` as it stands and as JSON would write it; one that changes nothing
    /// for no secret or a very short one.
    pub(crate) fn new(secret: Option<&[u8]>) -> Self {
        let secret = secret.filter(|s| s.len() >= SECRET_BYTES_MIN);
        let mut needles: Vec<Needle> = secret.map(Needle::new).into_iter().collect();
        if let Some(text) = secret.and_then(|s| std::str::from_utf8(s).ok()) {
            let escaped = Zeroizing::new(serde_json::to_string(text).unwrap_or_default());
            let inner = escaped.trim_matches('"');
            if inner != text && inner.len() >= SECRET_BYTES_MIN {
                needles.push(Needle::new(inner.as_bytes()));
            }
        }
        Self { needles }
    }

    /// What may be passed on after `input` arrived.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Vec<u8> {
        let mut current = input.to_vec();
        for needle in &mut self.needles {
            let mut out = Vec::with_capacity(current.len() + MASK.len());
            needle.feed(&current, &mut out);
            current = out;
        }
        current
    }

    /// What was held back, at the end.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut current = Vec::new();
        for needle in &mut self.needles {
            let mut out = Vec::new();
            needle.feed(&current, &mut out);
            needle.finish(&mut out);
            current = out;
        }
        current
    }

    /// Masks a whole text.
    pub(crate) fn whole(&mut self, input: &[u8]) -> Vec<u8> {
        let mut out = self.feed(input);
        out.extend(self.finish());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(secret: &str, text: &str, size: usize) -> String {
        let mut masker = Masker::new(Some(secret.as_bytes()));
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            out.extend(masker.feed(piece));
        }
        out.extend(masker.finish());
        String::from_utf8(out).expect("ASCII in, ASCII out")
    }

    #[test]
    fn a_secret_is_masked_wherever_the_pieces_are_cut() {
        let text = "abcabcabd abcabcabcabd abcab abcabd";
        for size in 1..text.len() {
            let out = in_pieces("abcabcabd", text, size);
            assert_eq!(out, "[secret masked] abc[secret masked] abcab abcabd", "size {size}");
        }
    }

    #[test]
    fn the_json_spelling_is_masked_too() {
        let out = in_pieces("quo\"te\\x", r#"{"a":"quo\"te\\x"}"#, 3);
        assert_eq!(out, r#"{"a":"[secret masked]"}"#);
    }

    #[test]
    fn nothing_is_held_back_without_cause() {
        let mut masker = Masker::new(Some(b"zzzzzzzz"));
        assert_eq!(masker.feed(b"data: hello\n\n"), b"data: hello\n\n");
        assert_eq!(masker.feed(b"data: zz"), b"data: ");
        assert_eq!(masker.finish(), b"zz");
    }

    #[test]
    fn no_secret_changes_nothing() {
        assert_eq!(Masker::new(None).whole(b"abc"), b"abc");
        assert_eq!(Masker::new(Some(b"ab")).whole(b"abc"), b"abc");
    }
}
