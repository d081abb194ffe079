//! `cargo xtask tidy`: the written rules of this repository, checked on every file that git knows.
//!
//! ```text
//! git ls-files ─► File ─► rules (size, words, unsafe, SQL, secrets, promises) ─► findings
//! ```
//!
//! Invariants:
//! 1. A rule is a pure function from files to findings, with a test that shows it trip.
//! 2. All findings are shown, each as `path:line: what, and what to do`.

mod promises;
mod rules;
mod secrets;

use std::fmt;
use std::fs;

use crate::only_flags;
use crate::repo::{Failure, Outcome, Repo, at, capture, step};
use crate::source::{Source, split};

/// Documents that a stranger looks for at the top of a repository.
const REQUIRED_DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "SPECIFICATION.md",
    "THREAT_MODEL.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs/development.md",
];

/// A text file of the repository.
struct File {
    /// From the root, with `/`.
    path: String,
    text: String,
    /// For Rust: code apart from strings and comments.
    source: Option<Source>,
}

impl File {
    fn new(path: &str, text: String) -> Self {
        let source = path.ends_with(".rs").then(|| split(&text));
        Self { path: path.to_owned(), text, source }
    }

    /// Whether the whole file is a test, an example or a benchmark.
    fn is_test(&self) -> bool {
        let folders = ["tests/", "examples/", "benches/"];
        let in_folder = |folder: &&str| {
            self.path.starts_with(*folder) || self.path.contains(&format!("/{folder}"))
        };
        folders.iter().any(in_folder)
            || ["tests.rs", "unit.rs"].iter().any(|name| self.path.ends_with(&format!("/{name}")))
            || self.path.ends_with("_tests.rs")
    }

    /// Written by a tool: not held to our words and columns.
    fn is_generated(&self) -> bool {
        self.path == "Cargo.lock"
    }

    fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }
}

/// A broken rule: where, what, and what to do.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// `cargo xtask tidy`.
pub(crate) fn tidy(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &[])?;
    let files = read_files(repo)?;
    step(format!("tidy: {} files", files.len()));
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(rules::all(file));
        findings.extend(rules::names_a_folder(file, &repo.root.to_string_lossy()));
        findings.extend(secrets::look_like_secrets(file));
    }
    findings.extend(missing_documents(&files));
    findings.extend(promises::kept(&files));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => {
            Err(Failure::new(format!("{count} broken rules; docs/development.md has reasons")))
        }
    }
}

/// Every text file that is tracked, or would be with `git add --all`.
fn read_files(repo: &Repo) -> Outcome<Vec<File>> {
    let listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"];
    let listing = capture(repo.command("git").args(listed))?;
    let mut files = Vec::new();
    for path in listing.split('\0').filter(|path| !path.is_empty()) {
        let full = repo.root.join(path);
        if !full.is_file() {
            continue; // Deleted in the work tree, or a symbolic link to a folder.
        }
        let bytes = fs::read(&full).map_err(at(&full))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File::new(path, text));
        }
    }
    Ok(files)
}

fn missing_documents(files: &[File]) -> Vec<Finding> {
    let missing = |path: &&&str| !files.iter().any(|file| file.path == ***path);
    let finding = |path: &&str| Finding {
        path: (*path).to_owned(),
        line: 0,
        what: "missing: a stranger looks for it; write it".to_owned(),
    };
    REQUIRED_DOCUMENTS.iter().filter(missing).map(finding).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_missing_document_is_a_finding() {
        let mut files: Vec<File> =
            REQUIRED_DOCUMENTS.iter().map(|path| File::new(path, String::new())).collect();
        assert_eq!(missing_documents(&files), []);
        files.pop();
        assert_eq!(missing_documents(&files)[0].path, "docs/development.md");
    }

    #[test]
    fn a_finding_reads_as_path_line_and_what() {
        let file = File::new("crates/a/tests/b.rs", String::new());
        assert!(file.is_test());
        assert_eq!(file.finding(7, "too long").to_string(), "crates/a/tests/b.rs:7: too long");
        assert_eq!(file.finding(0, "too long").to_string(), "crates/a/tests/b.rs: too long");
    }
}
