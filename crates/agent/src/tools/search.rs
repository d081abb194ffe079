//! `glob` and `grep`.

use super::walk::{Walked, files};
use super::{Args, MAX_OUTPUT_BYTES, Outcome, Scene};
use crate::rpc::clip;
use globset::{GlobBuilder, GlobMatcher};
use regex::bytes::{Regex, RegexBuilder};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

/// Most files or matching lines given back.
const MAX_HITS: usize = 200;
/// Files found before sorting; more would only cost memory.
const MAX_FOUND: usize = 50_000;
/// Larger files are not searched: data, not source.
const MAX_GREP_FILE_BYTES: u64 = 8 << 20;
/// Longest part of a matching line shown.
const MAX_LINE_BYTES: usize = 300;
/// Memory of a compiled expression; the engine is linear in the text whatever it is.
const MAX_REGEX_BYTES: usize = 2 << 20;

fn matcher(pattern: &str) -> Result<GlobMatcher, String> {
    let anywhere = if pattern.contains('/') { pattern.to_owned() } else { format!("**/{pattern}") };
    let glob = GlobBuilder::new(&anywhere).literal_separator(true).build();
    glob.map(|g| g.compile_matcher())
        .map_err(|e| format!("the pattern {pattern:?} is not valid: {}", e.kind()))
}

/// A path as the model would write it: relative to the working directory where it lies there.
fn shown<'a>(scene: &Scene<'_>, path: &'a Path) -> std::borrow::Cow<'a, str> {
    path.strip_prefix(scene.cwd).unwrap_or(path).to_string_lossy()
}

/// `glob`
pub(super) fn glob(scene: &Scene<'_>, args: &Args<'_>) -> Result<Outcome, String> {
    let root = scene.path(args.optional_text("path")?.unwrap_or("."));
    let pattern = args.text("pattern")?;
    let absolute = pattern.starts_with('/');
    let matcher = matcher(pattern.trim_start_matches("./"))?;
    if !root.is_dir() {
        return Err(format!("{} is not a folder", root.display()));
    }
    let mut found: Vec<(SystemTime, String)> = Vec::new();
    let walked = files(&root, scene.cancel, &mut |path, meta| {
        let named = if absolute { path } else { path.strip_prefix(&root).unwrap_or(path) };
        if matcher.is_match(named) {
            let time = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((time, shown(scene, path).into_owned()));
        }
        found.len() < MAX_FOUND
    });
    found.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let names = found.iter().map(|(_, name)| name.as_str());
    Ok(list(names, found.len(), walked, "no file matches"))
}

/// `grep`
pub(super) fn grep(scene: &Scene<'_>, args: &Args<'_>) -> Result<Outcome, String> {
    let root = scene.path(args.optional_text("path")?.unwrap_or("."));
    let only = args.optional_text("glob")?.map(matcher).transpose()?;
    let regex = RegexBuilder::new(args.text("pattern")?)
        .case_insensitive(args.flag("ignore_case")?)
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(|e| format!("the expression is not valid: {e}"))?;
    if !root.exists() {
        return Err(format!("{} does not exist", root.display()));
    }
    let mut hits: Vec<String> = Vec::new();
    let walked = files(&root, scene.cancel, &mut |path, meta| {
        let named = path.strip_prefix(&root).unwrap_or(path);
        let named = if named.as_os_str().is_empty() { path } else { named };
        if meta.len() <= MAX_GREP_FILE_BYTES && only.as_ref().is_none_or(|m| m.is_match(named)) {
            grep_file(scene, path, &regex, &mut hits);
        }
        hits.len() <= MAX_HITS
    });
    Ok(list(hits.iter().map(String::as_str), hits.len(), walked, "no line matches"))
}

/// Adds the matching lines of one file, stopping just past the limit.
fn grep_file(scene: &Scene<'_>, path: &Path, regex: &Regex, hits: &mut Vec<String>) {
    let mut bytes = Vec::new();
    // The size is bounded again here: a file may grow, and /proc files have none.
    let read = File::open(path).and_then(|f| f.take(MAX_GREP_FILE_BYTES).read_to_end(&mut bytes));
    if read.is_err() || bytes[..bytes.len().min(8 << 10)].contains(&0) {
        return;
    }
    let name = shown(scene, path);
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if regex.is_match(line) {
            let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE_BYTES + 4)]);
            hits.push(format!("{name}:{}:{}", number + 1, clip(text.trim_end(), MAX_LINE_BYTES)));
            if hits.len() > MAX_HITS {
                return;
            }
        }
    }
}

/// The first lines, and a note on what is missing.
fn list<'a>(
    lines: impl Iterator<Item = &'a str>,
    count: usize,
    walked: Walked,
    none: &str,
) -> Outcome {
    let mut text = String::new();
    let mut given = 0;
    for line in lines.take(MAX_HITS) {
        if text.len() + line.len() > MAX_OUTPUT_BYTES {
            break;
        }
        text.push_str(line);
        text.push('\n');
        given += 1;
    }
    if count == 0 {
        text.push_str(none);
    }
    if given < count {
        text.push_str(&format!("[only the first {given}; narrow the search to see the rest]\n"));
    }
    if walked == Walked::Partly {
        text.push_str("[the search was stopped before everything was seen]\n");
    }
    Outcome::ok(text)
}
