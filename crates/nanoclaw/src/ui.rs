//! What is printed: colours only on a terminal, foreign text made harmless.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

/// Whether colours are wanted on standard output (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

/// How words are painted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    pub(crate) fn auto() -> Self {
        Self(colours())
    }
    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }
    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }
    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }
    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }
}

/// What became of standard output: nothing yet, its reader left, or it takes no more.
static OUTPUT: OnceLock<std::io::Error> = OnceLock::new();

/// Prints to standard output. A reader that went away is not an error of ours; any other failure
/// is told at the end, see [`finish`].
pub(crate) fn out(text: &str) {
    wrote(std::io::stdout().write_all(text.as_bytes()));
}

/// Notes how a write to standard output went.
pub(crate) fn wrote(result: std::io::Result<()>) {
    if let Err(e) = result {
        // The first failure is the cause of those after it.
        drop(OUTPUT.set(e));
    }
}

/// Whether nobody takes what is printed any more.
pub(crate) fn closed() -> bool {
    OUTPUT.get().is_some()
}

/// The exit code, once everything was printed: `code`, unless what was to be printed was lost.
pub(crate) fn finish(code: u8) -> u8 {
    flush();
    match OUTPUT.get() {
        Some(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            note(format!("error: standard output takes no more: {e}"));
            if code == 0 { 1 } else { code }
        }
        _ => code,
    }
}

/// One line to standard output.
pub(crate) fn line(text: impl AsRef<str>) {
    out(&format!("{}\n", text.as_ref()));
}

/// Flushes what was printed without a line's end.
pub(crate) fn flush() {
    wrote(std::io::stdout().flush());
}

/// Text to standard error.
pub(crate) fn aside(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}

/// One line to standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    drop(writeln!(std::io::stderr(), "{}", text.as_ref()));
}

/// Replaces the last line on a terminal's standard error.
pub(crate) fn progress(text: &str) {
    drop(write!(std::io::stderr(), "\r\x1b[K{}", brief(text, 78)));
}

/// One line of JSON, with what a terminal might act upon written as `\\uXXXX`: JSON itself escapes
/// only the first 32 control characters.
pub(crate) fn json_line(json: &str) {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if acts_on_terminals(c) => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    line(safe);
}

/// Control characters, and characters that reorder text (Unicode TR 9).
fn acts_on_terminals(c: char) -> bool {
    let isolates = matches!(c, '\u{2066}'..='\u{2069}' | '\u{200E}' | '\u{200F}' | '\u{061C}');
    c.is_control() || isolates || matches!(c, '\u{202A}'..='\u{202E}')
}

/// Text from an agent or a model, safe for a terminal: control characters other than new line
/// and tab, and characters that reorder text (Unicode TR 9), are shown as escapes.
pub(crate) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            '\r' => {}
            c if acts_on_terminals(c) => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

/// One line, cut to `width` characters.
pub(crate) fn brief(text: &str, width: usize) -> String {
    let flat = harmless(text).replace(['\n', '\t'], " ");
    if flat.chars().count() <= width {
        return flat;
    }
    let cut: String = flat.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_bidi_do_not_reach_the_terminal() {
        let nasty = "a\x1b[2Jb\u{202E}c\rd\u{7}";
        assert_eq!(harmless(nasty), "a\\u{1b}[2Jb\\u{202e}cd\\u{7}");
    }

    #[test]
    fn brief_keeps_one_line() {
        assert_eq!(brief("ab\ncd", 10), "ab cd");
        assert_eq!(brief("abcdef", 4), "abc…");
    }
}
