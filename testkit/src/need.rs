//! Tools that a test needs beside the program under test.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Finds an executable on `PATH`. Where it is missing: outside CI prints why the test is skipped
/// and returns `None`, so that the test can return; in CI panics, for there a skipped test is a
/// hole.
///
/// # Panics
/// If the tool is missing and the environment variable `CI` is set.
#[must_use]
pub fn need(tool: &str) -> Option<PathBuf> {
    let found = find(tool);
    if found.is_none() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let why = format!("{test}: {tool:?} is not on PATH");
        // Failing is this function's purpose in CI.
        #[allow(clippy::panic)]
        if std::env::var_os("CI").is_some() {
            panic!("{why}; install it, CI does not skip");
        }
        drop(writeln!(std::io::stderr(), "SKIPPED {why}"));
    }
    found
}

fn find(tool: &str) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(tool)).find(executable)
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_what_is_there_and_not_what_is_not() {
        assert!(super::find("sh").is_some());
        assert!(super::find("no-such-tool-anywhere").is_none());
    }
}
