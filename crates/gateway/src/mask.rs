//! Masks secrets in an answer, across pieces of any size, holding back only what might be the
//! beginning of one. Pure.
//!
//! ```text
//! piece ─► spelling of the longest secret ─► next spelling ─► … of the shortest ─► out
//! ```
//!
//! 1. What comes out does not depend on where the pieces are cut: each search is a stream.
//! 2. The longest secret goes first, so that one which begins another leaves no rest of it.

mod escapes;
mod needle;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use escapes::Syntax;
use needle::Needle;
use serde_json::Number;
use zeroize::Zeroizing;

/// What stands where a secret stood. Fits into JSON strings and header values.
const MASK: &[u8] = b"[secret masked]";
/// A shorter "secret" would be found in ordinary text everywhere; the vault takes none.
pub(crate) const SECRET_BYTES_MIN: usize = 6;

/// Masks every spelling of some secrets.
pub(crate) struct Masker {
    needles: Vec<Needle>,
    found: bool,
}

/// The searches for the spellings in which a server may give a secret back: as it stands; in JSON,
/// HTML and percent-encoded, whichever characters are escaped; in hexadecimal; and in base64
/// wherever in the encoded text it stands, in lines and with its marks escaped too.
fn needles(secret: &[u8]) -> Vec<Needle> {
    let mut all = vec![Needle::new(secret, Syntax::Plain), Needle::new(secret, Syntax::Percent)];
    if std::str::from_utf8(secret).is_ok() {
        all.push(Needle::new(secret, Syntax::Json));
        all.push(Needle::new(secret, Syntax::Html));
    }
    if secret.contains(&b' ') {
        all.push(Needle::new(secret, Syntax::Form));
    }
    let digit = |n: u8| b"0123456789abcdef"[usize::from(n)];
    let two = |b: &u8| [digit(b >> 4), digit(b & 15)];
    let digits = Zeroizing::new(secret.iter().flat_map(two).collect::<Vec<u8>>());
    all.push(Needle::new(&digits, Syntax::Hex));
    for before in 0..3 {
        // What stands before shifts the alphabet's sextets; the ones shared with neighbours are
        // left off at both ends.
        let mut shifted = Zeroizing::new(vec![0; before]);
        shifted.extend_from_slice(secret);
        let text = Zeroizing::new(STANDARD_NO_PAD.encode(&*shifted));
        let (from, to) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
        let inner = &text.as_bytes()[from..to];
        if inner.len() >= SECRET_BYTES_MIN {
            all.push(Needle::new(inner, Syntax::Base64));
            all.push(Needle::new(inner, Syntax::Escaped64));
        }
    }
    all
}

/// Whether a number that was read with some 16 digits may be this secret, a longer one.
fn rounds_to(secret: &[u8], value: f64) -> bool {
    /// Numbers of no more digits are exact.
    const EXACT_DIGITS: usize = 15;
    let long = secret.len() > EXACT_DIGITS && secret.iter().all(u8::is_ascii_digit);
    let whole = std::str::from_utf8(secret).ok().filter(|_| long);
    let whole = whole.and_then(|digits| digits.parse::<f64>().ok()).filter(|f| f.is_finite());
    whole.is_some_and(|whole| (whole - value).abs() <= whole * 1e-14)
}

impl Masker {
    /// A masker for `secret` in every spelling; one that changes nothing for no secret or a very
    /// short one.
    pub(crate) fn new(secret: Option<&[u8]>) -> Self {
        Self::of(secret)
    }

    /// A masker for each of `secrets`.
    pub(crate) fn of<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut secrets: Vec<&[u8]> =
            secrets.into_iter().filter(|s| s.len() >= SECRET_BYTES_MIN).collect();
        secrets.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        Self { needles: secrets.into_iter().flat_map(needles).collect(), found: false }
    }

    /// Whether there is nothing to mask.
    pub(crate) fn is_idle(&self) -> bool {
        self.needles.is_empty()
    }

    /// Whether a secret was found so far.
    pub(crate) fn found(&self) -> bool {
        self.found
    }

    /// Whether what arrived last ends with half of a secret or more. For those who cannot hold
    /// anything back.
    pub(crate) fn nearly_found(&self) -> bool {
        self.needles.iter().any(|needle| 2 * needle.matched >= needle.bytes.len())
    }

    /// Whether a secret stands in a field's name, which does not keep upper and lower case.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.needles.iter().any(|needle| {
            let name: Vec<u8> = name.bytes().map(|b| needle.syntax.letter(b)).collect();
            let mut windows = name.windows(needle.bytes.len());
            windows.any(|window| window.eq_ignore_ascii_case(&needle.bytes))
        })
    }

    /// What stands in place of a number of JSON that holds a secret of digits.
    pub(crate) fn number(&mut self, number: &Number) -> Option<String> {
        let text = number.to_string();
        let masked = self.whole(text.as_bytes());
        if masked != text.as_bytes() {
            return Some(String::from_utf8_lossy(&masked).into_owned());
        }
        let value = number.as_f64().filter(|_| number.is_f64())?;
        let mut plain = self.needles.iter().filter(|needle| needle.syntax == Syntax::Plain);
        let found = plain.any(|needle| rounds_to(&needle.bytes, value));
        self.found |= found;
        found.then(|| String::from_utf8_lossy(MASK).into_owned())
    }

    /// What may be passed on after `input` arrived.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Vec<u8> {
        let mut current = input.to_vec();
        for needle in &mut self.needles {
            if needle.ignores(&current) {
                continue;
            }
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
