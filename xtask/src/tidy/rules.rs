//! Rules about one file: size, words, and what may stand only in one place.

use super::{File, Finding};
use crate::source::has_word;

/// A longer file holds more than one idea: split it.
const MAX_FILE_LINES: usize = 500;
/// A test file reads as a list of cases and may be longer.
const MAX_TEST_FILE_LINES: usize = 800;
/// Two columns of it fit side by side on a screen; rustfmt keeps it where it can.
const MAX_COLUMNS: usize = 100;
/// A function that fits on one screen can be read at once.
const MAX_FUNCTION_LINES: usize = 70;

/// The only place with `unsafe`: DESIGN wall 6.
const UNSAFE_PLACE: &str = "crates/sandbox/src/sys";
/// The only place with SQL.
const SQL_PLACE: &str = "crates/store/";
/// How SQL statements begin, as pairs so that this list is none of them.
const SQL_BEGINNINGS: &[(&str, &str)] =
    &[("INSERT ", "INTO "), ("DELETE ", "FROM "), ("CREATE ", "TABLE "), ("SEL", "ECT ")];
/// Macros of unfinished or debugged code.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];
/// Hosts that only a package manager's configuration should know, in pieces for the same reason.
const REGISTRY_HOSTS: &[(&str, &str)] = &[
    ("crates", ".io"),
    ("pypi", ".org"),
    ("pythonhosted", ".org"),
    ("npmjs", ".org"),
    ("npmjs", ".com"),
    ("deb.debian", ".org"),
];
/// Crates without any effect, and the words by which an effect would come in.
const PURE_PLACE: &str = "crates/model/";
const EFFECTS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::io",
    "Instant",
    "SystemTime",
    "async",
];

/// Every rule that looks at one file alone.
pub(super) fn all(file: &File) -> Vec<Finding> {
    if file.is_generated() {
        return Vec::new();
    }
    let rules = [
        file_length,
        line_width,
        function_length,
        unsafe_place,
        sql_place,
        finished,
        registry_hosts,
        ignore_reasons,
        purity,
    ];
    rules.iter().flat_map(|rule| rule(file)).collect()
}

fn file_length(file: &File) -> Vec<Finding> {
    if file.source.is_none() {
        return Vec::new();
    }
    let limit = if file.is_test() { MAX_TEST_FILE_LINES } else { MAX_FILE_LINES };
    let lines = file.text.lines().count();
    let what = || format!("{lines} lines, {limit} allowed: split it by idea");
    if lines > limit { vec![file.finding(0, what())] } else { Vec::new() }
}

/// What is inside a string literal does not count: a message in one piece can be searched for.
fn line_width(file: &File) -> Vec<Finding> {
    if ![".rs", ".sh", ".py", ".go"].iter().any(|end| file.path.ends_with(end)) {
        return Vec::new();
    }
    let mut widths: Vec<usize> = file.text.lines().map(|line| line.chars().count()).collect();
    let strings = file.source.iter().flat_map(|source| &source.strings);
    for (first, part) in strings.flat_map(|(first, text)| {
        text.split('\n').enumerate().map(move |(index, part)| (first + index, part))
    }) {
        if let Some(width) = widths.get_mut(first - 1) {
            *width = width.saturating_sub(part.chars().count());
        }
    }
    let lines = file.text.lines().zip(widths).enumerate();
    lines
        .filter(|(_, (line, width))| *width > MAX_COLUMNS && !line.contains("://"))
        .map(|(index, (_, width))| {
            file.finding(index + 1, format!("{width} columns, {MAX_COLUMNS} allowed: break it"))
        })
        .collect()
}

/// Relies on rustfmt: a function ends at the first `}` as far in as its first line.
fn function_length(file: &File) -> Vec<Finding> {
    let Some(source) = file.source.as_ref().filter(|_| !file.is_test()) else {
        return Vec::new();
    };
    let lines: Vec<&str> = source.code.lines().collect();
    let shipped = lines.iter().position(|line| line.starts_with("#[cfg(test)]"));
    let lines = &lines[..shipped.unwrap_or(lines.len())];
    let mut findings = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| starts_function(line)) {
        let indent = &line[..line.len() - line.trim_start().len()];
        let body = &lines[start..];
        let ends = |line: &&str| {
            line.strip_prefix(indent).is_some_and(|rest| {
                let rest = rest.trim_end();
                rest == "}" || (!rest.starts_with(' ') && rest.ends_with(';'))
            })
        };
        let one_line = line.trim_end().ends_with(['}', ';']);
        let length = if one_line { 1 } else { body.iter().position(ends).unwrap_or(0) + 1 };
        if length > MAX_FUNCTION_LINES {
            let what =
                format!("function of {length} lines, {MAX_FUNCTION_LINES} allowed: split it");
            findings.push(file.finding(start + 1, what));
        }
    }
    findings
}

fn starts_function(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let modifiers = ["const", "async", "unsafe", "extern"];
    words.find(|word| !word.starts_with("pub") && !modifiers.contains(word)) == Some("fn")
}

fn unsafe_place(file: &File) -> Vec<Finding> {
    let allowed = file.path.starts_with(UNSAFE_PLACE);
    let in_code = |line: &str| !allowed && has_word(line, "unsafe");
    code_lines(file, in_code, &format!("`unsafe` outside {UNSAFE_PLACE}*: move it there"))
}

fn sql_place(file: &File) -> Vec<Finding> {
    let Some(source) = file.source.as_ref().filter(|_| !file.path.starts_with(SQL_PLACE)) else {
        return Vec::new();
    };
    let begins = |text: &str| {
        SQL_BEGINNINGS.iter().any(|(a, b)| text.trim_start().starts_with(&format!("{a}{b}")))
    };
    let sql = source.strings.iter().filter(|(_, text)| begins(text));
    sql.map(|(line, _)| file.finding(*line, "SQL outside crates/store: ask the store for it"))
        .collect()
}

fn finished(file: &File) -> Vec<Finding> {
    let unfinished = |line: &str| {
        UNFINISHED
            .iter()
            .any(|word| line.contains(word) && has_word(line, word.trim_end_matches('!')))
    };
    code_lines(file, unfinished, "unfinished or debugging macro: finish it")
}

fn registry_hosts(file: &File) -> Vec<Finding> {
    let names = |line: &str| {
        REGISTRY_HOSTS.iter().any(|(name, end)| {
            let host = format!("{name}{end}");
            line.match_indices(&host).any(|(at, _)| {
                // A longer top-level domain is another host; a subdomain in front is not.
                !line[at + host.len()..].starts_with(|c: char| c.is_alphanumeric())
            })
        })
    };
    let lines = file.text.lines().enumerate().filter(|(_, line)| names(line));
    lines
        .map(|(index, _)| file.finding(index + 1, "a package registry's host: say what, not where"))
        .collect()
}

fn ignore_reasons(file: &File) -> Vec<Finding> {
    let bare = |line: &str| line.split_whitespace().collect::<String>().contains("#[ignore]");
    code_lines(file, bare, "`#[ignore]` without a reason: write #[ignore = \"why\"]")
}

/// The nouns have no effects; their own test code may read a clock or a file.
fn purity(file: &File) -> Vec<Finding> {
    let held = file.path.starts_with(PURE_PLACE) && !file.is_test();
    let effect = |line: &str| held && EFFECTS.iter().any(|word| has_word(line, word));
    code_lines(file, effect, "an effect in the crate of the nouns: move it to the crate that acts")
}

/// Findings for the lines of code (no strings, no comments) that match.
fn code_lines(file: &File, matches: impl Fn(&str) -> bool, what: &str) -> Vec<Finding> {
    let code = file.source.as_ref().map_or("", |source| source.code.as_str());
    let lines = code.lines().enumerate().filter(|(_, line)| matches(line));
    lines.map(|(index, _)| file.finding(index + 1, what)).collect()
}

/// A path of the machine that somebody wrote on works nowhere else.
pub(super) fn names_a_folder(file: &File, checkout: &str) -> Vec<Finding> {
    // A checkout at `/src` would make every `/src/…` in a document a finding.
    const SHORTEST_TELLING_PATH: usize = 10;
    if checkout.len() < SHORTEST_TELLING_PATH {
        return Vec::new();
    }
    let lines = file.text.lines().enumerate().filter(|(_, line)| line.contains(checkout));
    lines
        .map(|(index, _)| file.finding(index + 1, "this checkout's own folder: write it relative"))
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let file = File::new(path, text.to_owned());
        all(&file).iter().map(ToString::to_string).collect()
    }

    fn trips(path: &str, text: &str, word: &str) {
        let found = found(path, text);
        assert!(found.iter().any(|line| line.contains(word)), "{path}: {found:?}");
    }

    #[test]
    fn sizes_trip_one_above_their_limit() {
        let file = |lines: usize| "\n".repeat(lines);
        assert_eq!(found("crates/a/src/b.rs", &file(500)), [""; 0]);
        trips("crates/a/src/b.rs", &file(501), "501 lines");
        assert_eq!(found("crates/a/tests/b.rs", &file(800)), [""; 0]);
        trips("crates/a/tests/b.rs", &file(801), "801 lines");
        trips("a.rs", &format!("// {}\n", "x".repeat(98)), "101 columns");
        assert_eq!(found("a.md", &"x".repeat(101)), [""; 0]);
        let message = format!("fail(\"{}\");\n", "x".repeat(120));
        assert_eq!(found("a.rs", &message), [""; 0]);
    }

    #[test]
    fn a_long_function_trips_and_a_declaration_is_none() {
        let function =
            |lines: usize| format!("    pub(crate) fn f() {{\n{}    }}\n", "\n".repeat(lines));
        assert_eq!(found("a.rs", &function(68)), [""; 0]);
        trips("a.rs", &function(69), "function of 71 lines");
        let declared =
            format!("    fn f(\n        a: u8,\n    ) -> u8;\n{}    }}\n", "\n".repeat(90));
        assert_eq!(found("a.rs", &declared), [""; 0]);
        let in_test = format!("#[cfg(test)]\nmod t {{\n{}}}\n", function(90));
        assert_eq!(found("a.rs", &in_test), [""; 0]);
    }

    #[test]
    fn what_has_one_place_trips_everywhere_else() {
        let code = "fn f() { unsafe { g() } }\n";
        trips("crates/gateway/src/lib.rs", code, "unsafe");
        assert_eq!(found("crates/sandbox/src/sys/mount.rs", code), [""; 0]);
        assert_eq!(
            found("crates/gateway/src/lib.rs", "#![forbid(unsafe_code)] // unsafe\n"),
            [""; 0]
        );
        let query = "const Q: &str = \"SELECT 1\";\n";
        trips("crates/gateway/src/lib.rs", query, "SQL");
        assert_eq!(found("crates/store/src/lib.rs", query), [""; 0]);
        trips("crates/model/src/lib.rs", "use std::time::SystemTime;\n", "effect");
    }

    #[test]
    fn forbidden_words_trip() {
        for name in UNFINISHED {
            trips("a.rs", &format!("fn f() {{ {name}() }}\n"), "unfinished");
            assert_eq!(found("a.rs", &format!("// never {name}\n")), [""; 0]);
        }
        for (name, end) in REGISTRY_HOSTS {
            trips("docs/a.md", &format!("see https://{name}{end}/x\n"), "registry");
            assert_eq!(found("Cargo.lock", &format!("{name}{end}")), [""; 0]);
        }
        trips("a.rs", "#[test]\n#[ignore]\nfn a() {}\n", "without a reason");
        assert_eq!(found("a.rs", "#[ignore = \"needs a disk\"]\n"), [""; 0]);
    }

    #[test]
    fn the_checkouts_own_folder_trips() {
        let file = File::new("a.md", "cd /home/someone/nanoclaw\n".to_owned());
        assert_eq!(names_a_folder(&file, "/home/someone/nanoclaw").len(), 1);
        assert_eq!(names_a_folder(&file, "/home"), []);
    }
}
