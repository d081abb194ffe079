//! Rust source, split into what is code and what only looks like it.
//!
//! ```text
//! text ─► split ─► code (strings and comments blanked, same lines)  +  string literals with lines
//! ```
//!
//! Invariants:
//! 1. The code has exactly the lines of the source, so a finding's line number is the reader's.
//! 2. A word inside a string or a comment is never mistaken for code.

/// A Rust file after [`split`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The text with every comment and the inside of every literal blanked.
    pub(crate) code: String,
    /// String literals: the line they begin on (from 1) and their raw content.
    pub(crate) strings: Vec<(usize, String)>,
}

/// Splits Rust source; text that is not Rust comes out in one piece or another and never panics.
pub(crate) fn split(text: &str) -> Source {
    let mut scanner = Scanner { rest: text, line: 1, out: Source::default() };
    while !scanner.rest.is_empty() {
        scanner.token();
    }
    scanner.out
}

/// Whether `word` stands in `code` as a whole word.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part)
    })
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    out: Source,
}

impl<'a> Scanner<'a> {
    fn token(&mut self) {
        let rest = self.rest;
        if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            self.blank(end);
        } else if rest.starts_with("/*") {
            self.blank(block_comment(rest));
        } else if let Some((open, close)) = self.string_bounds() {
            self.string(open, &close);
        } else if let Some(end) = character_literal(rest) {
            self.blank(end);
        } else {
            let end = rest.chars().next().map_or(0, char::len_utf8);
            let taken = self.take(end);
            self.out.code.push_str(taken);
        }
    }

    fn take(&mut self, end: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(end);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// Takes text and leaves only its line ends in the code.
    fn blank(&mut self, end: usize) {
        let taken = self.take(end);
        let blanked = taken.chars().map(|character| if character == '\n' { '\n' } else { ' ' });
        self.out.code.extend(blanked);
    }

    /// The length of a string's opening and its closing text, if one begins here.
    fn string_bounds(&self) -> Option<(usize, String)> {
        let in_word = self.out.code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if self.rest.starts_with('"') {
            return Some((1, "\"".to_owned()));
        }
        if in_word {
            return None;
        }
        let prefixes = ["br", "cr", "r", "b", "c"];
        let prefix = prefixes.iter().find(|prefix| self.rest.starts_with(**prefix))?;
        let after = &self.rest[prefix.len()..];
        let hashes = after.len() - after.trim_start_matches('#').len();
        let is_raw = prefix.ends_with('r');
        if !after[hashes..].starts_with('"') || (hashes > 0 && !is_raw) {
            return None;
        }
        let close = format!("\"{}", "#".repeat(hashes));
        // A raw string ends at the first quote with its hashes; mark it by a leading 'r'.
        let close = if is_raw { format!("r{close}") } else { close };
        Some((prefix.len() + hashes + 1, close))
    }

    fn string(&mut self, open: usize, close: &str) {
        let line = self.line;
        self.blank(open);
        let (inside, closing) = match close.strip_prefix('r') {
            Some(raw) => (self.rest.find(raw).unwrap_or(self.rest.len()), raw.len()),
            None => (escaped_end(self.rest), close.len()),
        };
        self.out.strings.push((line, self.rest[..inside].to_owned()));
        self.blank(inside);
        self.blank(closing.min(self.rest.len()));
    }
}

/// Where the first unescaped quote stands.
fn escaped_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    text.len()
}

/// The length of a block comment, which may hold others.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, pair) in text.as_bytes().windows(2).enumerate() {
        match pair {
            b"/*" => depth += 1,
            b"*/" => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 2;
        }
    }
    text.len()
}

/// The length of a character literal, if one begins here; a lifetime is none.
fn character_literal(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    let mut characters = inside.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        // The escaped character itself may be a quote, so look for the end behind it.
        let (escaped_at, escaped) = characters.next()?;
        let behind = escaped_at + escaped.len_utf8();
        return Some(1 + behind + inside[behind..].find('\'')? + 1);
    }
    let (after, quote) = characters.next()?;
    (quote == '\'').then_some(1 + after + 1)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn strings_and_comments_are_no_code() {
        let text = "let a = \"unsafe \\\" x\"; // unsafe\n/* unsafe /* x */ unsafe */ fn b() {}\n";
        let source = split(text);
        assert!(!has_word(&source.code, "unsafe"), "{}", source.code);
        assert!(has_word(&source.code, "fn"));
        assert_eq!(source.code.lines().count(), text.lines().count());
        assert_eq!(source.strings, [(1, "unsafe \\\" x".to_owned())]);
    }

    #[test]
    fn raw_strings_end_at_their_own_hashes() {
        let source = split("let q = r#\"a \"quoted\" b\"#; let c = br\"\\\"; unsafe {}");
        assert_eq!(source.strings[0].1, "a \"quoted\" b");
        assert_eq!(source.strings[1].1, "\\");
        assert!(has_word(&source.code, "unsafe"));
    }

    #[test]
    fn lifetimes_and_quotes_as_characters_do_not_open_a_string() {
        let source = split("fn f<'a>(x: &'a str) { g('\"', '\\'', '\\u{1F600}'); unsafe {} }");
        assert!(source.strings.is_empty(), "{:?}", source.strings);
        assert!(has_word(&source.code, "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
    }

    #[test]
    fn cut_off_text_never_panics() {
        for text in ["\"", "r#\"", "'", "'\\", "/*", "b\"é", "r", "'é", "\"\\"] {
            split(text);
        }
    }
}
