//! HTML → plain text: what a person would read, with headings, list marks and link targets. Pure.
//!
//! ```text
//! page ─► tags and text, one pass ─► skip what is not shown ─► entities ─► blocks ─► text
//! ```
//!
//! Invariants:
//! 1. Every position of the page is passed once: time is linear in its length.
//! 2. The result is never longer than the limit, whatever the page.
//! 3. Nothing invisible comes out: no markup, no scripts, no control or zero-width characters.
//!
//! It is no parser of the HTML standard and need not be: its output is read, never rendered.

use super::entity;

/// Longest link target that is kept; longer ones are data, not addresses.
const TARGET_BYTES_MAX: usize = 2_048;

/// Elements whose content is text that a reader never sees; only their own end tag ends them.
const RAW: [&str; 8] =
    ["script", "style", "iframe", "noembed", "noframes", "xmp", "textarea", "plaintext"];
/// Elements whose content is markup that a reader never sees.
const UNSEEN: [&str; 7] = ["svg", "template", "object", "canvas", "select", "math", "datalist"];
/// Elements that begin and end a line.
const BLOCKS: [&str; 30] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "dd",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "title",
    "tr",
    "ul",
    "details",
];

/// The text of an HTML page, at most `max` bytes of it, and whether that is all.
pub(crate) fn of_html(page: &str, max: usize) -> (String, bool) {
    let mut writer = Writer::new(max);
    let mut unseen: Option<(String, usize)> = None;
    let mut links: Vec<Option<String>> = Vec::new();
    let mut rest = page;
    while !rest.is_empty() && !writer.is_full() {
        let Some(at) = rest.find('<') else {
            if unseen.is_none() {
                writer.text(rest);
            }
            break;
        };
        if unseen.is_none() {
            writer.text(&rest[..at]);
        }
        let (piece, after) = next_piece(&rest[at..]);
        rest = after;
        let Piece::Tag(tag) = piece else {
            if matches!(piece, Piece::Bare) && unseen.is_none() {
                writer.text("<");
            }
            continue;
        };
        if let Some((name, depth)) = &mut unseen {
            // Only the same element can end it; a page that never does shows nothing more.
            if tag.name == *name && !tag.empty {
                *depth = if tag.end { *depth - 1 } else { *depth + 1 };
                if *depth == 0 {
                    unseen = None;
                }
            }
            continue;
        }
        if !tag.end && RAW.contains(&tag.name.as_str()) {
            rest = after_raw(rest, &tag.name);
        } else if !tag.end && !tag.empty && UNSEEN.contains(&tag.name.as_str()) {
            unseen = Some((tag.name, 1));
        } else {
            show(&mut writer, &mut links, &tag);
        }
    }
    writer.finish()
}

/// Text that is not HTML: only made harmless and cut.
pub(crate) fn of_plain(text: &str, max: usize) -> (String, bool) {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars().filter(|c| is_seen(*c) || matches!(c, '\n' | '\t')) {
        if out.len() + c.len_utf8() > max {
            return (out, false);
        }
        out.push(c);
    }
    (out, true)
}

fn show(writer: &mut Writer, links: &mut Vec<Option<String>>, tag: &Tag) {
    /// More open links than this are no page for people.
    const OPEN_LINKS_MAX: usize = 64;
    let name = tag.name.as_str();
    match (name, tag.end) {
        ("a", false) if links.len() < OPEN_LINKS_MAX => links.push(tag.attribute("href")),
        ("a", true) => {
            if let Some(target) = links.pop().flatten().filter(|t| is_address(t)) {
                writer.exact(&format!(" ({target})"));
            }
        }
        ("br", _) => writer.line(),
        ("img", false) => {
            if let Some(words) = tag.attribute("alt").filter(|words| !words.trim().is_empty()) {
                writer.text(&format!("[image: {words}]"));
            }
        }
        ("td" | "th", true) => writer.exact(" | "),
        ("h1" | "h2" | "h3" | "h4" | "h5" | "h6", end) => {
            writer.paragraph();
            if !end {
                let level = usize::from(name.as_bytes()[1] - b'0');
                writer.exact(&format!("{} ", "#".repeat(level)));
            }
        }
        ("li", false) => {
            writer.line();
            writer.exact("- ");
        }
        ("pre", end) => {
            writer.paragraph();
            writer.verbatim = !end;
        }
        ("p" | "table" | "ul" | "ol" | "title" | "blockquote", _) => writer.paragraph(),
        (name, _) if BLOCKS.contains(&name) => writer.line(),
        _ => {}
    }
}

/// Whether a link leads somewhere a reader could go.
fn is_address(target: &str) -> bool {
    let lower = target.trim_start().get(..11).unwrap_or(target).to_ascii_lowercase();
    let scripted = ["javascript:", "data:", "vbscript:", "#"].iter().any(|s| lower.starts_with(s));
    !scripted && !target.trim().is_empty() && target.len() <= TARGET_BYTES_MAX
}

struct Tag {
    name: String,
    end: bool,
    empty: bool,
    attributes: Vec<(String, String)>,
}

impl Tag {
    fn attribute(&self, name: &str) -> Option<String> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| entity::decode(v))
    }
}

enum Piece {
    Tag(Tag),
    /// A comment, a declaration, or a tag that the page breaks off in.
    Nothing,
    /// A `<` that begins no tag.
    Bare,
}

/// Takes what stands at a `<`; the rest begins behind it.
fn next_piece(at: &str) -> (Piece, &str) {
    let inner = &at[1..];
    if let Some(comment) = inner.strip_prefix("!--") {
        return (Piece::Nothing, comment.find("-->").map_or("", |end| &comment[end + 3..]));
    }
    if inner.starts_with(['!', '?']) {
        return (Piece::Nothing, inner.find('>').map_or("", |end| &inner[end + 1..]));
    }
    let (end, body) = match inner.strip_prefix('/') {
        Some(body) => (true, body),
        None => (false, inner),
    };
    if !body.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return (Piece::Bare, inner);
    }
    let stop = body.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>'));
    let (name, rest) = body.split_at(stop.unwrap_or(body.len()));
    let mut tag = Tag { name: clipped_lower(name), end, empty: false, attributes: Vec::new() };
    match attributes(rest, &mut tag) {
        Some(rest) => (Piece::Tag(tag), rest),
        None => (Piece::Nothing, ""),
    }
}

/// No element that matters has a longer name.
fn clipped_lower(name: &str) -> String {
    name[..name.floor_char_boundary(32)].to_ascii_lowercase()
}

/// Reads up to and with the `>`; `None` when the page ends before.
fn attributes<'p>(mut rest: &'p str, tag: &mut Tag) -> Option<&'p str> {
    /// Only `href` and `alt` are wanted; what stands behind so many is not looked for.
    const KEPT_MAX: usize = 32;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
        if let Some(after) = rest.strip_prefix('>') {
            return Some(after);
        }
        if let Some(after) = rest.strip_prefix('/') {
            tag.empty = after.starts_with('>');
            rest = after;
            continue;
        }
        if rest.is_empty() {
            return None;
        }
        // At least one character is taken, so that a stray `=` cannot hold the loop.
        let first = rest.chars().next().map_or(1, char::len_utf8);
        let ends = |c: char| c.is_ascii_whitespace() || matches!(c, '=' | '>' | '/');
        let stop = rest[first..].find(ends).map_or(rest.len(), |at| first + at);
        let name = &rest[..stop];
        rest = rest[stop..].trim_start_matches(|c: char| c.is_ascii_whitespace());
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            (value, rest) = attribute_value(after)?;
        }
        if tag.attributes.len() < KEPT_MAX && matches!(clipped_lower(name).as_str(), "href" | "alt")
        {
            let value = &value[..value.floor_char_boundary(TARGET_BYTES_MAX + 1)];
            tag.attributes.push((clipped_lower(name), value.to_owned()));
        }
    }
}

fn attribute_value(after: &str) -> Option<(&str, &str)> {
    let after = after.trim_start_matches(|c: char| c.is_ascii_whitespace());
    for quote in ['"', '\''] {
        if let Some(inner) = after.strip_prefix(quote) {
            let end = inner.find(quote)?;
            return Some((&inner[..end], &inner[end + 1..]));
        }
    }
    let end = after.find(|c: char| c.is_ascii_whitespace() || c == '>')?;
    Some(after.split_at(end))
}

/// What follows the end tag of a raw element; nothing, if it has none.
fn after_raw<'p>(page: &'p str, name: &str) -> &'p str {
    let mut rest = page;
    while let Some(at) = rest.find("</") {
        rest = &rest[at + 2..];
        let same = rest.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
        let ends = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>');
        if same && rest[name.len()..].starts_with(ends) {
            return rest.find('>').map_or("", |end| &rest[end + 1..]);
        }
    }
    ""
}

/// Gathers the text: runs of blanks become one, lines are never more than one empty one apart.
struct Writer {
    out: String,
    max: usize,
    cut: bool,
    verbatim: bool,
    blank: bool,
}

impl Writer {
    fn new(max: usize) -> Self {
        Self { out: String::new(), max, cut: false, verbatim: false, blank: false }
    }

    fn is_full(&self) -> bool {
        self.cut
    }

    fn push(&mut self, c: char) {
        if self.out.len() + c.len_utf8() > self.max {
            self.cut = true;
        }
        if !self.cut {
            self.out.push(c);
        }
    }

    /// Text of the page, with its entities.
    fn text(&mut self, text: &str) {
        for c in entity::decode(text).chars() {
            if self.verbatim && matches!(c, '\n' | '\t') {
                self.push(c);
            } else if c.is_whitespace() && !self.verbatim {
                self.blank = true;
            } else if is_seen(c) {
                self.flush_blank();
                self.push(c);
            }
            if self.cut {
                return;
            }
        }
    }

    fn flush_blank(&mut self) {
        if std::mem::take(&mut self.blank)
            && !self.out.is_empty()
            && !self.out.ends_with([' ', '\n'])
        {
            self.push(' ');
        }
    }

    /// Marks of our own.
    fn exact(&mut self, text: &str) {
        self.blank = false;
        text.chars().filter(|c| is_seen(*c)).for_each(|c| self.push(c));
    }

    fn line(&mut self) {
        self.blank = false;
        while self.out.ends_with(' ') {
            self.out.pop();
        }
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.push('\n');
        }
    }

    fn paragraph(&mut self) {
        self.line();
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.push('\n');
        }
    }

    fn finish(mut self) -> (String, bool) {
        let end = self.out.trim_end().len();
        self.out.truncate(end);
        (self.out, !self.cut)
    }
}

/// Whether a reader would see it. What is left out can carry orders that only a machine reads:
/// controls, zero-width and direction marks, tag characters, variation selectors.
pub(super) fn is_seen(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{3164}')
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        && !matches!(c, '\u{180b}'..='\u{180e}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}')
        && !matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
    use testkit::fuzz;

    fn text(page: &str) -> String {
        of_html(page, 1 << 20).0
    }

    #[test]
    fn what_a_person_reads_comes_out_with_headings_lists_and_links() {
        let page = "<!DOCTYPE html><html><head><title>The &lt;page&gt;</title>\
            <style>p { color: red } </style><script>if (a<b) { \"</p>\" }</script></head>\
            <body><h1>Top</h1><p>One  two\nthree <b>four</b>.</p>\
            <ul><li>first<li><a href='/x?a=1&amp;b=2'>second</a></ul>\
            <pre>a\n  b</pre><svg><text>hid<svg></svg>den</text></svg>\
            <img src=x alt=\"a cat\"><table><tr><td>1</td><td>2</td></tr></table>\
            <a href=\"javascript:alert(1)\">go</a><!-- ignore all orders --></body></html>";
        assert_eq!(
            text(page),
            "The <page>\n\n# Top\n\nOne two three four.\n\n- first\n- second (/x?a=1&b=2)\n\na\n  \
             b\n\n[image: a cat]\n\n1 | 2 |\n\ngo"
        );
    }

    #[test]
    fn scripts_and_what_is_invisible_never_come_out() {
        for page in [
            "a<script>HID</script>b",
            "a<SCRIPT type=x>HID</ScRiPt >b",
            "a<script>HID</scripty>HID</script\n>b",
            "a<style/>HID</style>b",
            "a<iframe src=x>HID</iframe>b",
            "a<template><p>HID<template>HID</template>HID</template>b",
            "a<!-- HID -->b",
            "a<![CDATA[HID]]>b",
            "a<?php HID ?>b",
            "a<i title=\"HID>HID\">b</i>",
            "a\u{200b}\u{202e}\u{e0048}b",
            "a&#x200b;&#8238;&ZeroWidthSpace;b",
        ] {
            let got = text(page);
            assert!(!got.contains("HID"), "{page}: {got}");
            assert_eq!(got.replace(char::is_whitespace, ""), "ab", "{page}: {got:?}");
        }
        for page in ["a<script>HID", "a<style>HID</styl", "a<!-- HID", "a<svg>HID", "a<b HID"] {
            assert_eq!(text(page), "a", "{page}");
        }
        assert_eq!(text("1 < 2 and 2 <3 </> x"), "1 < 2 and 2 <3 </> x");
    }

    #[test]
    fn the_limit_holds_and_says_so() {
        assert_eq!(of_html("<p>äää</p>", 4), ("ää".to_owned(), false));
        assert_eq!(of_plain("a\u{0}ä\tb\n", 5), ("aä\tb".to_owned(), false));
        assert_eq!(of_plain("a\r\nb", 9), ("a\nb".to_owned(), true));
        let (cut, whole) = of_html(&"<h6>x</h6>".repeat(10_000), 1_000);
        assert!(cut.len() <= 1_000 && !whole);
    }

    /// Quadratic behaviour would take minutes on these; linear takes well under a second.
    #[test]
    fn hostile_pages_take_linear_time() {
        let started = Instant::now();
        for unit in [
            "<",
            "</",
            "<a ",
            "<a href='",
            "<script>",
            "<script></scrip",
            "<!--",
            "<!-- --",
            "&",
            "&#",
            "&amp",
            "<svg>",
            "<a>",
            "<p",
            "<x=",
            "<h1>",
            "<a href=x>y",
            "</script",
            "<pre>\n",
            "<textarea></",
            "< ",
            "<a b=\"",
            "&lt;",
            "<title>",
        ] {
            let page = unit.repeat(600_000 / unit.len());
            let (out, _) = of_html(&page, 1 << 20);
            assert!(out.len() <= 1 << 20);
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }

    #[test]
    fn fuzz_html_text() {
        let seed = "<html><head><title>t&amp;</title><script>x</script></head><body><h2 a='b'>H\
            </h2><p>&#228;\u{e4}<a href=\"/x\">l</a><br/><ul><li>1</ul><svg><g/></svg><pre> a</pre>\
            <img alt=x><!-- c --><td>d</td>&copy; &notanentity; \u{1f600}</body>";
        let words: [&[u8]; 7] =
            [b"<!--", b"-->", b"<svg>", b"</svg>", b"</", b"&#x", b"\xe2\x80\x8b"];
        fuzz::with_words("html-text", &[seed.as_bytes()], &words, |bytes, dice| {
            let page = String::from_utf8_lossy(bytes);
            let max = if dice.below(4) == 0 { dice.below(200) } else { 1 << 20 };
            let (out, whole) = of_html(&page, max);
            let (plain, _) = of_plain(&page, max);
            for text in [&out, &plain] {
                assert!(
                    text.len() <= max && text.chars().all(|c| is_seen(c) || "\n\t".contains(c))
                );
            }
            // Marks may be added, but no more than a few bytes for each byte of the page.
            assert!(out.len() <= 64 + 12 * page.len());
            fuzz::outcome((
                whole,
                fuzz::magnitude(out.len()),
                out.matches(['#', '-', '(', '[']).count(),
            ))
        });
    }
}
