//! Paths of requests, as servers read them, and the patterns that rules hold against them.
//!
//! ```text
//! /a%2Fb/%61dmin ─► decoded, checked ─┬─► kept   a%2Fb · admin     an escaped slash stays
//!                                     └─► split  a · b · admin     an escaped slash separates
//! ```
//!
//! Servers disagree about escapes, so one text may name two things. Therefore:
//! 1. What may be read in still more ways (segments of dots and blanks alone, empty segments, `;`,
//!    backslashes, double escapes, control characters, characters that some servers take for these
//!    ones, bytes that are no UTF-8) is not read at all: [`Path::read`] gives `None`, and callers
//!    fail closed.
//! 2. A rule that permits must match under both readings ([`Pattern::surely`]); a rule that
//!    forbids or asks, under any, without regard to case, to forms of one letter, to what servers
//!    drop and to the second names that some file systems give ([`Pattern::maybe`]).
//! 3. Time is bounded by the path's length times the pattern's, both of which are bounded.

mod folded;
#[cfg(test)]
mod tests;

use folded::fold;

/// Longest path held against patterns, bytes; RFC 9110 §4.1 recommends that servers take 8,000.
const PATH_BYTES_MAX: usize = 8_192;

/// Stands for an escaped slash; occurs in no UTF-8 text.
const SLASH: u8 = 0xFF;

/// One byte of a pattern, or `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Star,
}

/// One segment of a pattern, or `**`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    One(Vec<Token>),
    Many,
}

/// A path that is clear, in its two readings, each also in the letters that servers compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    kept: Vec<Vec<u8>>,
    split: Vec<Vec<u8>>,
    kept_folded: Vec<Vec<u8>>,
    split_folded: Vec<Vec<u8>>,
}

/// A pattern in its two readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    kept: Vec<Part>,
    split: Vec<Part>,
}

impl Path {
    /// Reads a path as sent, without its query; `None` if servers may read it in ways that are
    /// not looked at here.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let tokens = decode(text)?;
        let bytes: Vec<u8> = tokens.into_iter().map(|t| byte(t, b'*')).collect();
        let segments = |separates: fn(u8) -> bool| -> Vec<Vec<u8>> {
            bytes.split(|b| separates(*b)).skip(1).map(<[u8]>::to_vec).collect()
        };
        let kept = segments(|b| b == b'/');
        let split = segments(|b| b == b'/' || b == SLASH);
        let folded = |segments: &[Vec<u8>]| segments.iter().map(|s| fold(s)).collect::<Vec<_>>();
        let (kept_folded, split_folded) = (folded(&kept), folded(&split));
        let is_clear = clear(&split, &split_folded);
        is_clear.then_some(Self { kept, split, kept_folded, split_folded })
    }
}

impl Pattern {
    /// Reads a pattern; `None` if it could mean two things.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let tokens = decode(text)?;
        let parts = |separates: fn(u8) -> bool| -> Vec<Part> {
            let is = |t: &Token| matches!(t, Token::Byte(b) if separates(*b));
            let part = |segment: &[Token]| match segment {
                [Token::Star, Token::Star] => Part::Many,
                one => Part::One(one.to_vec()),
            };
            tokens.split(is).skip(1).map(part).collect()
        };
        let kept = parts(|b| b == b'/');
        let split = parts(|b| b == b'/' || b == SLASH);
        let text = |part: &Part| match part {
            Part::Many => vec![b'*'],
            Part::One(tokens) => tokens.iter().map(|t| byte(*t, b'*')).collect(),
        };
        let texts: Vec<Vec<u8>> = split.iter().map(text).collect();
        let folded: Vec<Vec<u8>> = texts.iter().map(|s| fold(s)).collect();
        clear(&texts, &folded).then_some(Self { kept, split })
    }

    /// Whether every reading of the path is matched.
    pub(crate) fn surely(&self, path: &Path) -> bool {
        matches(&self.kept, &path.kept) && matches(&self.split, &path.split)
    }

    /// Whether any reading is matched, also by servers that ignore case and forms of one letter, a
    /// last slash, and dots and spaces at the end of a segment, or take what follows a `:` for a
    /// stream of the file before it, and `NAME~1` for the short name of any.
    pub(crate) fn maybe(&self, path: &Path) -> bool {
        let any = |parts: &[Part], segments: &[Vec<u8>], folded: &[Vec<u8>]| {
            if matches(&lower_parts(parts), &lower(segments)) {
                return true;
            }
            let parts = folded_parts(parts);
            let trimmed = trim_parts(parts.clone());
            let maybe = |segments: Vec<Vec<u8>>| {
                loosely(&parts, &segments)
                    || loosely(without_last(&parts), without_last(&segments))
                    || loosely(&trimmed, &trim(segments))
            };
            maybe(folded.to_vec()) || maybe(folded::without_streams(folded))
        };
        any(&self.kept, &path.kept, &path.kept_folded)
            || any(&self.split, &path.split, &path.split_folded)
    }

    /// Whether whatever `other` surely matches, this surely matches too. May say no where yes
    /// would be true, never the reverse.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        let all = |mine: &[Part], theirs: &[Part]| {
            glob(
                mine,
                theirs,
                |p| *p == Part::Many,
                |mine, theirs| match (mine, theirs) {
                    (Part::One(mine), Part::One(theirs)) if theirs.is_empty() => mine.is_empty(),
                    (Part::One(mine), Part::One(theirs)) => glob(
                        mine,
                        theirs,
                        |t| *t == Token::Star,
                        |a, b| a == b && *a != Token::Star,
                    ),
                    _ => false,
                },
            )
        };
        all(&self.kept, &other.kept) && all(&self.split, &other.split)
    }

    /// How many bytes it names literally: the more, the more particular it is.
    pub(crate) fn literal_bytes(&self) -> usize {
        let of = |part: &Part| match part {
            Part::One(tokens) => tokens.iter().filter(|t| **t != Token::Star).count(),
            Part::Many => 0,
        };
        self.kept.iter().map(of).sum()
    }
}

fn byte(token: Token, star: u8) -> u8 {
    match token {
        Token::Byte(byte) => byte,
        Token::Star => star,
    }
}

/// Decodes every escape; `*` as itself is a [`Token::Star`], escaped a byte.
fn decode(text: &str) -> Option<Vec<Token>> {
    if text.len() > PATH_BYTES_MAX || !text.starts_with('/') {
        return None;
    }
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len());
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let (value, escaped) = match b {
            b'%' => (hex(*bytes.get(at + 1)?)? << 4 | hex(*bytes.get(at + 2)?)?, true),
            b if b.is_ascii_graphic() => (b, false),
            _ => return None,
        };
        at += if escaped { 3 } else { 1 };
        // Some servers cut at these, some decode twice, some take a backslash for a slash.
        if matches!(value, b'\\' | b';' | b'?' | b'#' | b'%') {
            return None;
        }
        plain.push(value);
        tokens.push(match (value, escaped) {
            (b'/', true) => Token::Byte(SLASH),
            (b'*', false) => Token::Star,
            (value, _) => Token::Byte(value),
        });
    }
    let plain = std::str::from_utf8(&plain).ok()?;
    (!plain.chars().any(char::is_control)).then_some(tokens)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// Nothing empty but the last, and nothing that folds to nothing, to dots and blanks alone (which
/// some servers trim, one after the other), or to more than one segment.
fn clear(segments: &[Vec<u8>], folded: &[Vec<u8>]) -> bool {
    segments.iter().zip(folded).enumerate().all(|(at, (text, folded))| {
        if text.is_empty() {
            return at + 1 == segments.len();
        }
        let separates = |b: &u8| matches!(b, b'/' | b'\\' | b'%');
        folded.iter().any(|b| !matches!(b, b'.' | b' ')) && !folded.iter().any(separates)
    })
}

fn matches(parts: &[Part], segments: &[Vec<u8>]) -> bool {
    glob(parts, segments, |p| *p == Part::Many, |part, segment| is_one(part, segment))
}

/// As [`matches`], where each segment may have dots and blanks at its end, for some servers trim
/// one kind and not the other, and where a short name stands for any segment.
fn loosely(parts: &[Part], segments: &[Vec<u8>]) -> bool {
    glob(
        parts,
        segments,
        |p| *p == Part::Many,
        |part, segment| match part {
            Part::One(tokens) if !segment.is_empty() && folded::is_short_name(segment) => {
                !tokens.is_empty()
            }
            Part::One(tokens) => {
                let trimmed = Part::One(trimmed(tokens, |t| matches!(t, Token::Byte(b'.' | b' '))));
                let unblanked = segment.trim_ascii_end();
                is_one(part, segment)
                    || is_one(part, unblanked)
                    || is_one(&trimmed, &trimmed_text(segment))
            }
            Part::Many => false,
        },
    )
}

fn is_one(part: &Part, segment: &[u8]) -> bool {
    match part {
        Part::Many => false,
        // `*` stands for at least something where it is all: `/a/*` does not mean `/a/`.
        Part::One(tokens) if segment.is_empty() => tokens.is_empty(),
        Part::One(tokens) => {
            glob(tokens, segment, |t| *t == Token::Star, |t, b| *t == Token::Byte(*b))
        }
    }
}

/// Without the empty end that a slash behind makes.
fn without_last<T: AsEnd>(all: &[T]) -> &[T] {
    match all.split_last() {
        Some((last, rest)) if last.is_end() => rest,
        _ => all,
    }
}

trait AsEnd {
    fn is_end(&self) -> bool;
}

impl AsEnd for Part {
    fn is_end(&self) -> bool {
        matches!(self, Self::One(tokens) if tokens.is_empty())
    }
}

impl AsEnd for Vec<u8> {
    fn is_end(&self) -> bool {
        self.is_empty()
    }
}

fn trimmed<T: Clone>(items: &[T], goes: impl Fn(&T) -> bool) -> Vec<T> {
    let kept = items.iter().rposition(|item| !goes(item)).map_or(0, |at| at + 1);
    items[..kept].to_vec()
}

fn trimmed_text(text: &[u8]) -> Vec<u8> {
    trimmed(text, |b| matches!(b, b'.' | b' '))
}

/// Wildcard matching: `many` stands for any number of items, everything else for one. Steps back
/// to the last `many` only, so it takes at most `pattern × items` steps.
fn glob<P, T>(
    pattern: &[P],
    items: &[T],
    many: impl Fn(&P) -> bool,
    one: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut i) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while i < items.len() {
        match pattern.get(p) {
            Some(part) if many(part) => {
                back = Some((p, i));
                p += 1;
            }
            Some(part) if one(part, &items[i]) => {
                p += 1;
                i += 1;
            }
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (p, i) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(many)
}

fn lower(segments: &[Vec<u8>]) -> Vec<Vec<u8>> {
    segments.iter().map(|s| s.to_ascii_lowercase()).collect()
}

fn lower_parts(parts: &[Part]) -> Vec<Part> {
    let token = |t: &Token| match t {
        Token::Byte(b) => Token::Byte(b.to_ascii_lowercase()),
        Token::Star => Token::Star,
    };
    let part = |p: &Part| match p {
        Part::One(tokens) => Part::One(tokens.iter().map(token).collect()),
        Part::Many => Part::Many,
    };
    parts.iter().map(part).collect()
}

/// Each literal run between stars folded by itself.
fn folded_parts(parts: &[Part]) -> Vec<Part> {
    let run = |run: &[Token]| {
        let text: Vec<u8> = run.iter().map(|t| byte(*t, b'*')).collect();
        fold(&text).into_iter().map(Token::Byte).collect::<Vec<_>>()
    };
    let part = |p: &Part| match p {
        Part::One(tokens) => {
            let runs: Vec<_> = tokens.split(|t| *t == Token::Star).map(run).collect();
            Part::One(runs.join(&Token::Star))
        }
        Part::Many => Part::Many,
    };
    parts.iter().map(part).collect()
}

fn trim(mut segments: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for segment in &mut segments {
        *segment = trimmed_text(segment);
    }
    if segments.last().is_some_and(Vec::is_empty) {
        segments.pop();
    }
    segments
}

fn trim_parts(mut parts: Vec<Part>) -> Vec<Part> {
    for part in &mut parts {
        if let Part::One(tokens) = part {
            while matches!(tokens.last(), Some(Token::Byte(b'.' | b' '))) {
                tokens.pop();
            }
        }
    }
    if parts.last().is_some_and(|p| matches!(p, Part::One(tokens) if tokens.is_empty())) {
        parts.pop();
    }
    parts
}
