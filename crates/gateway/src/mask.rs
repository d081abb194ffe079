//! Masks a secret in an answer, across pieces of any size, holding back only what might be its
//! beginning. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
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
    found: bool,
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
        Self { bytes: Zeroizing::new(bytes.to_vec()), borders, matched: 0, found: false }
    }

    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while let Some(&b) = input.first() {
            if self.matched == 0 {
                // The common case by far: nothing that begins like it.
                let first = self.bytes[0];
                let skip = input.iter().position(|&b| b == first).unwrap_or(input.len());
                out.extend_from_slice(&input[..skip]);
                input = &input[skip..];
                if !input.is_empty() {
                    input = &input[1..];
                    self.matched = 1;
                }
                continue;
            }
            input = &input[1..];
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
                    self.found = true;
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
    found: bool,
}

/// The spellings a server may give a secret back in: as it stands, as JSON writes it, percent- and
/// form-encoded, and in base64 wherever in the encoded text it stands.
fn spellings(secret: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut all = vec![Zeroizing::new(secret.to_vec())];
    let mut add = |bytes: Zeroizing<Vec<u8>>| {
        if bytes.len() >= SECRET_BYTES_MIN && !all.contains(&bytes) {
            all.push(bytes);
        }
    };
    if let Ok(text) = std::str::from_utf8(secret) {
        let escaped = Zeroizing::new(serde_json::to_string(text).unwrap_or_default());
        let inner = escaped.get(1..escaped.len().saturating_sub(1)).unwrap_or("");
        add(Zeroizing::new(inner.as_bytes().to_vec()));
    }
    let mut percent = Zeroizing::new(String::with_capacity(3 * secret.len()));
    crate::inject::percent_encode(secret, &mut percent);
    add(Zeroizing::new(lower_escapes(&percent)));
    add(Zeroizing::new(percent.replace("%20", "+").into_bytes()));
    add(Zeroizing::new(percent.as_bytes().to_vec()));
    // Some encoders leave nothing but letters and digits.
    let strict = escape_marks(secret);
    add(Zeroizing::new(lower_escapes(&strict)));
    add(Zeroizing::new(strict.as_bytes().to_vec()));
    for before in 0..3 {
        // What stands before shifts the alphabet's sextets; the ones shared with neighbours are
        // left off at both ends.
        let mut shifted = Zeroizing::new(vec![0; before]);
        shifted.extend_from_slice(secret);
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = Zeroizing::new(engine.encode(&*shifted));
            let (from, to) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
            add(Zeroizing::new(text.as_bytes()[from..to].to_vec()));
        }
    }
    all
}

/// Percent-encoded, all but letters and digits.
fn escape_marks(secret: &[u8]) -> Zeroizing<String> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Zeroizing::new(String::with_capacity(3 * secret.len()));
    for &b in secret {
        if b.is_ascii_alphanumeric() {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
    out
}

/// The same with lower-case hex digits in its escapes.
fn lower_escapes(percent: &str) -> Vec<u8> {
    let (mut out, mut digits) = (percent.as_bytes().to_vec(), 0);
    for b in &mut out {
        if digits > 0 {
            b.make_ascii_lowercase();
            digits -= 1;
        } else if *b == b'%' {
            digits = 2;
        }
    }
    out
}

impl Masker {
    /// A masker for `secret` in every spelling; one that changes nothing for no secret or a very
    /// short one.
    pub(crate) fn new(secret: Option<&[u8]>) -> Self {
        let secret = secret.filter(|s| s.len() >= SECRET_BYTES_MIN);
        let all = secret.map(spellings).unwrap_or_default();
        Self { needles: all.iter().map(|s| Needle::new(s)).collect(), found: false }
    }

    /// Whether the secret was found so far.
    pub(crate) fn found(&self) -> bool {
        self.found
    }

    /// Whether what arrived last ends with half of the secret or more. For those who cannot hold
    /// anything back.
    pub(crate) fn nearly_found(&self) -> bool {
        self.needles.iter().any(|needle| 2 * needle.matched >= needle.bytes.len())
    }

    /// What may be passed on after `input` arrived.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Vec<u8> {
        let mut current = input.to_vec();
        for needle in &mut self.needles {
            let mut out = Vec::with_capacity(current.len() + MASK.len());
            needle.feed(&current, &mut out);
            self.found |= needle.found;
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
            self.found |= needle.found;
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
    use testkit::fuzz;

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
    fn other_spellings_are_masked_wherever_they_are_cut() {
        use base64::engine::general_purpose::STANDARD;
        let secret = "not/a+real key?";
        let mut texts = vec![
            "x=not%2Fa%2Breal%20key%3F&y".to_owned(),
            "x=not%2fa%2breal%20key%3f&y".to_owned(),
            "x=not%2Fa%2Breal+key%3F&y".to_owned(),
        ];
        for before in ["", "u:", "user:", "user1:"] {
            let whole = format!("{before}{secret} and more");
            texts.push(STANDARD.encode(&whole));
            texts.push(base64::engine::general_purpose::URL_SAFE.encode(&whole));
        }
        for text in texts {
            for size in [1, 2, 5, text.len()] {
                let out = in_pieces(secret, &text, size);
                assert!(out.contains("[secret masked]"), "{text} in {size}: {out}");
            }
        }
    }

    /// A secret and a text that has it, in some spelling, wherever the input has one of `SBUPJ`.
    fn secret_and_text(input: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let size = usize::from(input.first().copied().unwrap_or(0)) % 24;
        let size = size.min(input.len().saturating_sub(1));
        let secret = input.get(1..1 + size).unwrap_or(b"");
        let all = if size < SECRET_BYTES_MIN {
            vec![Zeroizing::new(secret.to_vec())] // too short to be masked
        } else {
            spellings(secret)
        };
        let mut text = Vec::new();
        for &b in input.get(1 + size..).unwrap_or(b"") {
            match b"SBUPJ".iter().position(|&mark| mark == b) {
                // The whole of it or its beginning, which must be let go again.
                Some(n) if text.len() % 3 > 0 => {
                    text.extend_from_slice(&all[(n + text.len()) % all.len()]);
                }
                Some(_) => text.extend_from_slice(&secret[..secret.len() / 2]),
                None => text.push(b),
            }
        }
        (secret.to_vec(), text)
    }

    #[test]
    fn fuzz_mask() {
        let seeds: [&[u8]; 4] = [
            b"\x09abcabcabdabS-xSyyPJ bbU...BBS SSSS",
            b"\x08k\"y/+ \\zdata: S\n\nJJPPU=S",
            b"\x06aabaabSaabaaSaabaabaab",
            b"\x14test-key-not-real-00xBUSPJxyzBxxU",
        ];
        fuzz::run("mask", &seeds, |input, dice| {
            let (secret, text) = secret_and_text(input);
            let mut masker = Masker::new(Some(secret.as_slice()));
            let whole = masker.whole(&text);
            let mut cut = Masker::new(Some(secret.as_slice()));
            let mut out = Vec::new();
            for piece in dice.pieces(&text, 9) {
                out.extend(cut.feed(piece));
            }
            out.extend(cut.finish());
            assert_eq!(out, whole, "in pieces it says something else");
            assert_eq!(cut.found(), masker.found());
            assert!(masker.found() || whole == text, "changed without a cause");
            // Between the marks nothing is left of any spelling.
            let mark = String::from_utf8_lossy(MASK).into_owned();
            if secret.len() >= SECRET_BYTES_MIN && std::str::from_utf8(&whole).is_ok() {
                let whole = String::from_utf8_lossy(&whole);
                for part in whole.split(&mark) {
                    for spelling in spellings(&secret) {
                        let found =
                            part.as_bytes().windows(spelling.len()).any(|w| w == &**spelling);
                        assert!(!found, "a spelling of the secret came through");
                    }
                }
            }
            fuzz::outcome((
                masker.found(),
                fuzz::magnitude(text.len()),
                fuzz::magnitude(whole.len()),
            ))
        });
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
