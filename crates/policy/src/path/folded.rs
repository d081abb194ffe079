//! Letters as servers and file systems compare them, and the second names they know. Pure.

use super::SLASH;
use idna_adapter::Adapter;

/// Longest base and ending of a short name (MS-FSCC §2.1.5.2.1).
const SHORT_BASE_MAX: usize = 8;
const SHORT_ENDING_MAX: usize = 3;

/// A segment without regard to case, to width, and to other forms of a letter: the mapping of
/// UTS #46, which is NFKC and case folding, for its letters do what file systems do; what it keeps
/// apart and others do not, after it. An escaped slash stays one.
pub(super) fn fold(segment: &[u8]) -> Vec<u8> {
    if segment.iter().all(|b| b.is_ascii() || *b == SLASH) {
        return segment.to_ascii_lowercase();
    }
    let pieces: Vec<Vec<u8>> = segment.split(|b| *b == SLASH).map(fold_text).collect();
    pieces.join(&SLASH)
}

fn fold_text(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    // What names may not have at all, and other mappings take for dots and letters.
    let plainer = text.chars().flat_map(|c| {
        let (c, n) = match c {
            c if c.is_whitespace() => (' ', 1),
            '\u{130}' | '\u{131}' => ('i', 1),
            '\u{2024}' | '\u{fe52}' => ('.', 1),
            '\u{2025}' | '\u{fe30}' => ('.', 2),
            '\u{2026}' | '\u{fe19}' => ('.', 3),
            c => (c, 1),
        };
        std::iter::repeat_n(c, n)
    });
    let mut out = String::with_capacity(text.len());
    for c in Adapter::new().map_normalize(plainer) {
        match c {
            'ß' => out.push_str("ss"),
            'ς' => out.push('σ'),
            // Joiners show nothing.
            '\u{200c}' | '\u{200d}' => {}
            c => out.push(c),
        }
    }
    out.into_bytes()
}

/// The segments up to their first `:`: what follows names a stream of the same file on NTFS.
pub(super) fn without_streams(segments: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let before = |segment: &Vec<u8>| match segment.iter().position(|b| *b == b':') {
        Some(at) if at > 0 => segment[..at].to_vec(),
        _ => segment.clone(),
    };
    segments.iter().map(before).collect()
}

/// Whether this may be the short name that FAT and NTFS give to a longer one. Which one is known to
/// the file system alone: of the name it keeps two letters, or none.
pub(super) fn is_short_name(segment: &[u8]) -> bool {
    let mut parts = segment.splitn(2, |b| *b == b'.');
    let (base, ending) = (parts.next().unwrap_or_default(), parts.next());
    let letters = base.iter().filter(|b| **b & 0xc0 != 0x80).count();
    let Some(tilde) = base.iter().rposition(|b| *b == b'~') else { return false };
    let number = &base[tilde + 1..];
    let ends = ending.is_none_or(|e| e.len() <= SHORT_ENDING_MAX && !e.contains(&b'.'));
    let numbered = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    tilde > 0 && numbered && letters <= SHORT_BASE_MAX && ends
}
