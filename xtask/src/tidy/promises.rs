//! SPECIFICATION.md: every promise names the test that keeps it, or says that the test is pending.
//!
//! ```text
//! - The log survives a torn tail. `tests: crates/audit/tests/recovery.rs::torn_tail_is_legal`
//! - Two hosts witness one log. (test pending)
//! ```
//!
//! A promise is a list item, with its continuation lines. A name with a file must be a function of
//! that file; a name without one must be a function somewhere in the workspace.

use super::{File, Finding};

const DOCUMENT: &str = "SPECIFICATION.md";
const PENDING: &str = "test pending";

/// Promises of the specification that nothing keeps.
pub(super) fn kept(files: &[File]) -> Vec<Finding> {
    let Some(document) = files.iter().find(|file| file.path == DOCUMENT) else {
        return Vec::new(); // Its absence is a finding of the required documents.
    };
    items(&document.text)
        .into_iter()
        .flat_map(|(line, promise)| {
            let problems = broken(&promise, files);
            problems.into_iter().map(move |what| document.finding(line, what))
        })
        .collect()
}

/// The list items of a Markdown text outside code blocks: first line's number and the whole item.
fn items(text: &str) -> Vec<(usize, String)> {
    let mut items: Vec<(usize, String)> = Vec::new();
    let (mut in_code, mut open) = (false, false);
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if in_code {
            continue;
        } else if line.starts_with("- ") || line.starts_with("* ") {
            items.push((index + 1, line.to_owned()));
            open = true;
        } else if open && line.starts_with(' ') {
            if let Some((_, item)) = items.last_mut() {
                item.push(' ');
                item.push_str(line.trim());
            }
        } else {
            open = false;
        }
    }
    items
}

/// What is wrong with one promise; empty if it is kept or says that its test is pending.
fn broken(promise: &str, files: &[File]) -> Vec<String> {
    if promise.contains(PENDING) {
        return Vec::new();
    }
    let named = promise.split_once("tests: ").or_else(|| promise.split_once("test: "));
    let Some((_, names)) = named else {
        return vec![format!("a promise without `tests: path::name` or \"{PENDING}\"")];
    };
    let separators = |c: char| c.is_whitespace() || ",;`()[]".contains(c);
    let names: Vec<&str> = names
        .split(separators)
        .map(|name| name.trim_end_matches('.'))
        .filter(|name| name.contains("::"))
        .collect();
    if names.is_empty() {
        return vec!["`tests:` names no `path::name`".to_owned()];
    }
    let missing = names.into_iter().filter(|name| !exists(name, files));
    missing.map(|name| format!("no test `{name}`: rename it here, or write it")).collect()
}

fn exists(name: &str, files: &[File]) -> bool {
    let Some((place, function)) = name.rsplit_once("::") else {
        return false;
    };
    let path = place.find(".rs").map(|end| &place[..end + 3]);
    files
        .iter()
        .filter(|file| path.is_none_or(|path| file.path == path))
        .any(|file| is_test_function(file, function) || is_listed_test(file, function))
}

/// Whether a file lists the name in a table of tests of its own runner: `("name", function),`, or
/// in the list that runs each test in both modes: `both!(name, …);`.
fn is_listed_test(file: &File, name: &str) -> bool {
    let in_table = || file.text.contains(&format!("(\"{name}\", "));
    let lists = file.text.split("both!(").skip(1).filter_map(|rest| rest.split(')').next());
    let mut names = lists.flat_map(|list| list.split(','));
    file.path.contains("/tests/") && (in_table() || names.any(|listed| listed.trim() == name))
}

/// Whether a file has the function under a `#[test]` attribute (of any runtime).
fn is_test_function(file: &File, function: &str) -> bool {
    let code = file.source.as_ref().map_or("", |source| source.code.as_str());
    let lines: Vec<&str> = code.lines().collect();
    let heading = format!("fn {function}(");
    let declares = |line: &str| line.contains(&heading);
    lines.iter().enumerate().filter(|(_, line)| declares(line)).any(|(at, _)| {
        let above = lines[..at].iter().rev();
        let attributes = above.take_while(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#')
        });
        let mut attributes = attributes.map(|line| line.trim());
        attributes.any(|line| line.contains("test]") || line.contains("test("))
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    fn check(promise: &str) -> Vec<String> {
        let test = "#[test]\n// Why it matters.\nfn torn_tail() {}\nfn helper() {}\n\
            const TESTS: &[Test] = &[(\"started_by_itself\", helper)];\n\
            both!(\n    runs_in_both_modes,\n);\n";
        let files = [
            File::new("crates/audit/tests/recovery.rs", test.to_owned()),
            File::new(DOCUMENT, format!("# Promises\n\n{promise}\n")),
        ];
        kept(&files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_promise_with_its_test_or_pending_is_kept() {
        for promise in [
            "- It recovers. `tests: crates/audit/tests/recovery.rs::torn_tail`",
            "- It recovers,\n  whatever was torn (tests: `audit::recovery::torn_tail`).",
            "- It starts. `tests: crates/audit/tests/recovery.rs::started_by_itself`",
            "- It runs. `tests: crates/audit/tests/recovery.rs::runs_in_both_modes`",
            "- It is witnessed. (test pending)",
            "Plain text and\n```\n- code\n```\nare no promises.",
        ] {
            assert_eq!(check(promise), [""; 0], "{promise}");
        }
    }

    #[test]
    fn a_promise_without_a_real_test_trips() {
        for (promise, word) in [
            ("- It recovers.", "SPECIFICATION.md:3: a promise without"),
            ("- It recovers. tests: soon", "names no"),
            ("- It recovers. `tests: crates/audit/tests/recovery.rs::gone`", "no test"),
            ("- It recovers. `tests: crates/audit/tests/other.rs::torn_tail`", "no test"),
            ("- It recovers. `tests: crates/audit/tests/recovery.rs::helper`", "no test"),
        ] {
            let found = check(promise);
            assert!(found.len() == 1 && found[0].contains(word), "{promise}: {found:?}");
        }
    }
}
