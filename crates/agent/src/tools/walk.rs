//! A bounded walk over a folder: no symlink is followed, `.git` is left out.

use crate::cancel::Cancel;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// Entries looked at in one walk: seconds on a slow disk.
const MAX_ENTRIES: usize = 200_000;
/// Folders inside folders.
const MAX_DEPTH: usize = 64;

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walked {
    /// Everything was seen, or the visitor had enough.
    Whole,
    /// The limits of one walk were reached, or it was cancelled.
    Partly,
}

/// Calls `visit` with each regular file beneath `root` (or `root` itself), in the order of
/// names, until it returns `false`. What cannot be read is passed over.
pub(super) fn files(
    root: &Path,
    cancel: &Cancel,
    visit: &mut dyn FnMut(&Path, &Metadata) -> bool,
) -> Walked {
    let mut todo: Vec<(PathBuf, usize)> = vec![(root.to_owned(), 0)];
    let mut seen = 0;
    let mut complete = Walked::Whole;
    while let Some((path, depth)) = todo.pop() {
        seen += 1;
        if seen > MAX_ENTRIES || cancel.is_cancelled() {
            return Walked::Partly;
        }
        // The root may be a symlink the model named; beneath it none is followed.
        let found = if depth == 0 { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let Ok(meta) = found else { continue };
        if meta.is_file() && !visit(&path, &meta) {
            return Walked::Whole;
        }
        if !meta.is_dir() {
            continue;
        }
        if depth >= MAX_DEPTH {
            complete = Walked::Partly;
            continue;
        }
        let Ok(entries) = fs::read_dir(&path) else { continue };
        let mut names: Vec<PathBuf> = entries
            .take(MAX_ENTRIES)
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name() != ".git")
            .map(|entry| entry.path())
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a)); // the last is taken first
        todo.extend(names.into_iter().map(|name| (name, depth + 1)));
    }
    complete
}
