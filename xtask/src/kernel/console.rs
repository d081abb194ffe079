//! The guest's console: parts between two marks, each with the status it ended with.
//!
//! ```text
//! @@ begin NAME ─► lines of that part ─► @@ end NAME STATUS        @@ done        @@ broken WHY
//! ```
//!
//! A part without its end has no status, which nobody takes for success.

use std::time::Duration;

const MARK: &str = "@@ ";

/// One part of the matrix, as the console told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// What `guest.sh` calls it.
    pub(super) name: String,
    /// How it ended; `None` while it has not.
    pub(super) status: Option<i32>,
    /// What it printed, both streams together.
    pub(super) lines: Vec<String>,
    /// From its first mark to its second.
    pub(super) took: Duration,
}

/// What was heard so far.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// In the order in which they began.
    pub(super) parts: Vec<Part>,
    /// The guest says that it ran everything.
    pub(super) done: bool,
    /// Why the guest could not begin, in its own words.
    pub(super) broken: Option<String>,
    begun: Duration,
}

impl Console {
    /// Takes one line, heard `at` after the start.
    pub(super) fn line(&mut self, line: &str, at: Duration) {
        let line = line.trim_end_matches('\r');
        let Some(mark) = line.strip_prefix(MARK) else {
            if let Some(part) = self.parts.last_mut().filter(|part| part.status.is_none()) {
                part.lines.push(line.to_owned());
            }
            return;
        };
        match mark.split_once(' ').unwrap_or((mark, "")) {
            ("begin", name) => {
                self.begun = at;
                let (name, took) = (name.to_owned(), Duration::ZERO);
                self.parts.push(Part { name, status: None, lines: Vec::new(), took });
            }
            ("end", rest) => self.end(rest, at),
            ("broken", why) => self.broken = Some(why.to_owned()),
            ("done", _) => self.done = true,
            _ => {}
        }
    }

    fn end(&mut self, rest: &str, at: Duration) {
        let Some((name, status)) = rest.rsplit_once(' ') else { return };
        let open = |part: &&mut Part| part.status.is_none() && part.name == name;
        if let (Some(part), Ok(status)) = (self.parts.last_mut().filter(open), status.parse()) {
            part.status = Some(status);
            part.took = at.saturating_sub(self.begun);
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn heard(text: &str) -> Console {
        let mut console = Console::default();
        for (second, line) in text.lines().enumerate() {
            console.line(line, Duration::from_secs(second as u64));
        }
        console
    }

    #[test]
    fn parts_are_what_stands_between_their_marks() {
        let text = "noise\n@@ begin a\none\r\n\ntwo\n@@ end a 0\nbetween\n@@ begin b c\n@@ end b c 7\n\
                    @@ done";
        let console = heard(text);
        let told: Vec<_> = console.parts.iter().map(|p| (&*p.name, p.status, p.took)).collect();
        let second = Duration::from_secs;
        assert_eq!(told, [("a", Some(0), second(4)), ("b c", Some(7), second(1))]);
        assert_eq!(console.parts[0].lines, ["one", "", "two"]);
        assert!(console.done);
    }

    #[test]
    fn a_part_without_its_own_end_has_no_status() {
        for text in [
            "@@ begin a",
            "@@ begin a\n@@ end b 0",
            "@@ begin a\n@@ end a",
            "@@ begin a\n\
             @@ end a ok",
            "@@ begin a\n@@ begin b\n@@ end a 0",
        ] {
            let console = heard(text);
            assert!(console.parts.iter().all(|p| p.status.is_none()), "{text}");
            assert!(!console.done, "{text}");
        }
        assert_eq!(heard("@@ broken no disk").broken.as_deref(), Some("no disk"));
    }
}
