//! Paths of requests, as servers read them, and the patterns that rules hold against them.
//!
//! ```text
//! /a%2Fb/%61dmin ─► decoded, checked ─┬─► kept   a%2Fb · admin     an escaped slash stays
//!                                     └─► split  a · b · admin     an escaped slash separates
//! ```
//!
//! Servers disagree about escapes, so one text may name two things. Therefore:
//! 1. What may be read in still more ways (dot segments, empty segments, `;`, backslashes, double
//!    escapes, control characters, bytes that are no UTF-8) is not read at all: [`Path::read`]
//!    gives `None`, and callers fail closed.
//! 2. A rule that permits must match under both readings ([`Pattern::surely`]); a rule that
//!    forbids or asks, under any, without regard to case and to what servers drop
//!    ([`Pattern::maybe`]).
//! 3. Time is bounded by the path's length times the pattern's, both of which are bounded.

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

/// A path that is clear, in its two readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    kept: Vec<Vec<u8>>,
    split: Vec<Vec<u8>>,
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
        clear(&split, |s| s.clone()).then_some(Self { kept, split })
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
        clear(&split, text).then_some(Self { kept, split })
    }

    /// Whether every reading of the path is matched.
    pub(crate) fn surely(&self, path: &Path) -> bool {
        matches(&self.kept, &path.kept) && matches(&self.split, &path.split)
    }

    /// Whether any reading is matched, also by servers that ignore case, a last slash, and dots
    /// and spaces at the end of a segment.
    pub(crate) fn maybe(&self, path: &Path) -> bool {
        let any = |parts: &[Part], segments: &[Vec<u8>]| {
            let (parts, segments) = (lower_parts(parts), lower(segments));
            matches(&parts, &segments) || matches(&trim_parts(parts), &trim(segments))
        };
        any(&self.kept, &path.kept) || any(&self.split, &path.split)
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

/// No `.`, no `..`, nothing empty but the last.
fn clear<T>(segments: &[T], text: impl Fn(&T) -> Vec<u8>) -> bool {
    segments.iter().enumerate().all(|(at, segment)| {
        let text = text(segment);
        let empty_inside = text.is_empty() && at + 1 < segments.len();
        !empty_inside && text != b"." && text != b".."
    })
}

fn matches(parts: &[Part], segments: &[Vec<u8>]) -> bool {
    glob(
        parts,
        segments,
        |p| *p == Part::Many,
        |part, segment| match part {
            Part::Many => false,
            // `*` stands for at least something where it is all: `/a/*` does not mean `/a/`.
            Part::One(tokens) if segment.is_empty() => tokens.is_empty(),
            Part::One(tokens) => {
                glob(tokens, segment, |t| *t == Token::Star, |t, b| *t == Token::Byte(*b))
            }
        },
    )
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

fn trim(mut segments: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for segment in &mut segments {
        while matches!(segment.last(), Some(b'.' | b' ')) {
            segment.pop();
        }
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

#[cfg(test)]
mod tests {
    use super::{Path, Pattern};

    fn surely(pattern: &str, path: &str) -> bool {
        let pattern = Pattern::read(pattern).expect(pattern);
        Path::read(path).is_some_and(|path| pattern.surely(&path))
    }

    fn maybe(pattern: &str, path: &str) -> bool {
        let pattern = Pattern::read(pattern).expect(pattern);
        Path::read(path).is_none_or(|path| pattern.maybe(&path))
    }

    #[test]
    fn stars_stay_in_their_segment_and_double_stars_do_not() {
        for (pattern, path, want) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/**", "/", true),
            ("/**", "/a/b/", true),
            ("/repos/**", "/repos", true),
            ("/repos/**", "/repos/a/b", true),
            ("/repos/**", "/reposx", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a/b/c", false),
            ("/a/**/z", "/a/z", true),
            ("/a/**/z", "/a/b/z/c/z", true),
            ("/a/**/z", "/a/b/z/c", false),
            ("/v1/models/*:generate", "/v1/models/some-model:generate", true),
            ("/v1/models/*:generate", "/v1/models/some-model:delete", false),
            ("/*.json", "/a.json", true),
            ("/a*b*c", "/aXbYbZc", true),
            ("/%2A", "/*", true),
            ("/%2A", "/x", false),
        ] {
            assert_eq!(surely(pattern, path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn escapes_are_decoded_on_both_sides() {
        for (pattern, path) in [
            ("/admin", "/%61dmin"),
            ("/%61dmin", "/admin"),
            ("/a:b", "/a%3ab"),
            ("/a%20b", "/a%20b"),
            ("/caf%C3%A9", "/caf%c3%a9"),
            ("/@*%2f*", "/@types%2Fnode"),
            ("/repos/**", "/repos/a%2Fb"),
        ] {
            assert!(surely(pattern, path), "{pattern} {path}");
        }
        // An escaped slash matches a pattern of one reading only: permitted by neither.
        assert!(!surely("/repos/*", "/repos/a%2Fb") && !surely("/repos/*/*", "/repos/a%2Fb"));
        assert!(!surely("/@*%2f*", "/@types/node"));
        assert!(maybe("/repos/*", "/repos/a%2Fb") && maybe("/repos/*/*", "/repos/a%2Fb"));
    }

    #[test]
    fn what_servers_read_differently_is_not_read() {
        for bad in [
            "",
            "a",
            "*",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/%2e%2e/b",
            "/a%2F..%2Fb",
            "/a%2f%2fb",
            "/..;/a",
            "/a;x",
            "/a%3bx",
            "/a\\b",
            "/a%5Cb",
            "/a%00",
            "/a%0d%0a",
            "/%252e",
            "/%",
            "/%4",
            "/%zz",
            "/%u002f",
            "/%c0%af",
            "/%ff",
            "/a b",
            "/é",
            "/a?b",
            "/a#b",
            "/a%3Fb",
            "/a%23b",
            "/%C2%85",
        ] {
            assert_eq!(Path::read(bad), None, "{bad}");
        }
        assert_eq!(Path::read(&format!("/{}", "a".repeat(8_192))), None);
    }

    #[test]
    fn forbidding_ignores_what_some_servers_ignore() {
        for path in ["/admin", "/ADMIN", "/admin/", "/Admin.", "/admin%20", "/%41dmin./"] {
            assert!(maybe("/admin", path), "{path}");
            assert!(maybe("/admin/**", path), "{path}");
        }
        assert!(!maybe("/admin", "/administrator") && !maybe("/admin", "/x/admin"));
        assert!(!surely("/admin", "/Admin") && !surely("/admin", "/admin/"));
    }

    #[test]
    fn inclusion_is_true_only_where_everything_is_included() {
        let includes = |a: &str, b: &str| {
            let read = |p| Pattern::read(p).expect(p);
            read(a).includes(&read(b))
        };
        for (wide, narrow) in [
            ("/**", "/a/*/b"),
            ("/a/**", "/a"),
            ("/a/**", "/a/**/b"),
            ("/a/*", "/a/b*"),
            ("/a*", "/ab*c"),
            ("/a/*", "/a/*"),
        ] {
            assert!(includes(wide, narrow), "{wide} {narrow}");
        }
        for (a, b) in [("/a/*", "/a/**"), ("/a/b*", "/a/*"), ("/a/*", "/a/"), ("/a", "/a/**")] {
            assert!(!includes(a, b), "{a} {b}");
        }
    }
}
