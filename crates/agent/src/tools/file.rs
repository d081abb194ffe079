//! `read_file`, `write_file` and `edit_file`.

use super::{Args, MAX_OUTPUT_BYTES, Outcome, Scene};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lines read where no limit is given.
const DEFAULT_LINES: u64 = 2_000;
/// Longest part of a line shown.
const MAX_LINE_BYTES: usize = 2_000;
/// Largest file that is edited in memory.
const MAX_EDIT_BYTES: u64 = 16 << 20;
/// How far into a file a NUL byte is looked for.
const BINARY_PROBE_BYTES: usize = 8 << 10;

/// Opens a regular file; a pipe or device could block for ever.
fn open(path: &Path) -> Result<File, String> {
    let because = |e: io::Error| format!("{}: {e}", path.display());
    let meta = fs::metadata(path).map_err(because)?;
    if meta.is_dir() {
        return Err(format!("{} is a folder; list it with glob or bash", path.display()));
    }
    if !meta.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    File::open(path).map_err(because)
}

/// `read_file`
pub(super) fn read(scene: &Scene<'_>, args: &Args<'_>) -> Result<Outcome, String> {
    let path = scene.path(args.text("path")?);
    let first = args.number("offset", 1, u64::MAX)?.max(1);
    let limit = args.number("limit", DEFAULT_LINES, u64::MAX)?.max(1);
    let because = |e: io::Error| format!("{}: {e}", path.display());
    let mut reader = BufReader::with_capacity(BINARY_PROBE_BYTES, open(&path)?);
    if reader.fill_buf().map_err(because)?.contains(&0) {
        return Err(format!(
            "{} is a binary file; look at it with bash (file, xxd)",
            path.display()
        ));
    }
    let mut text = String::new();
    let (mut number, mut line) = (0_u64, Vec::new());
    let last = first.saturating_add(limit - 1);
    while next_line(&mut reader, &mut line).map_err(because)? {
        number += 1;
        if scene.cancel.is_cancelled() {
            return Err("cancelled".to_owned());
        }
        if number < first {
            continue;
        }
        if number > last || text.len() + line.len() > MAX_OUTPUT_BYTES {
            text.push_str(&format!("[more follows; read on with offset {number}]\n"));
            break;
        }
        let shown = String::from_utf8_lossy(&line);
        text.push_str(&format!("{number:>6}\t{shown}\n"));
    }
    if text.is_empty() {
        text = match number {
            0 => "[the file is empty]".to_owned(),
            _ => format!("[the file has only {number} lines]"),
        };
    }
    Ok(Outcome::ok(text))
}

/// Reads a line, keeping its first bytes and throwing the rest away; `false` at the end.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let got = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', line)?;
    if got == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    } else if got == MAX_LINE_BYTES && reader.skip_until(b'\n')? > 1 {
        line.extend_from_slice(" [line cut]".as_bytes());
    }
    Ok(true)
}

/// `write_file`
pub(super) fn write(scene: &Scene<'_>, args: &Args<'_>) -> Result<Outcome, String> {
    let path = scene.path(args.text("path")?);
    let content = args.text("content")?;
    let existed = path.exists();
    replace(&path, content.as_bytes()).map_err(|e| format!("{}: {e}", path.display()))?;
    let done = if existed { "replaced" } else { "created" };
    Ok(Outcome::ok(format!("{done} {} ({} bytes)", path.display(), content.len())))
}

/// `edit_file`
pub(super) fn edit(scene: &Scene<'_>, args: &Args<'_>) -> Result<Outcome, String> {
    let path = scene.path(args.text("path")?);
    let (old, new) = (args.text("old_string")?, args.text("new_string")?);
    let all = args.flag("replace_all")?;
    if old.is_empty() {
        return Err("\"old_string\" is empty; use write_file to make a file".to_owned());
    }
    if old == new {
        return Err("\"old_string\" and \"new_string\" are the same".to_owned());
    }
    let mut bytes = Vec::new();
    let read = open(&path)?.take(MAX_EDIT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| format!("{}: {e}", path.display()))?;
    if bytes.len() as u64 > MAX_EDIT_BYTES {
        return Err(format!("{} is larger than 16 MiB; edit it with bash", path.display()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| format!("{} is not UTF-8 text; edit it with bash", path.display()))?;
    let count = text.matches(old).count();
    match count {
        0 => {
            return Err(format!(
                "old_string does not occur in {}; read the file again and copy it exactly",
                path.display()
            ));
        }
        2.. if !all => {
            return Err(format!(
                "old_string occurs {count} times in {}; add surrounding lines until it is unique, or set replace_all",
                path.display()
            ));
        }
        _ => {}
    }
    let changed = text.replace(old, new);
    replace(&path, changed.as_bytes()).map_err(|e| format!("{}: {e}", path.display()))?;
    let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
    Ok(Outcome::ok(format!("replaced {times} in {}", path.display())))
}

/// Writes beside the file and renames, so that no reader sees half of it. A symlink stays one:
/// what it points to is replaced. The mode of an existing file is kept.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let target: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if target.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = parent.join(format!(".nanoclaw-{}-{number}.tmp", std::process::id()));
    let written = File::create_new(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        if let Ok(meta) = fs::metadata(&target) {
            file.set_permissions(meta.permissions())?;
        }
        fs::rename(&temporary, &target)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
