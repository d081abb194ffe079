//! From what the system says to an [`Answer`], and small ways of looking.

use crate::walls::{Answer, errno_name};
use rustix::io::Errno;
use sandbox::probe;
use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};

/// How many of what was found are told: the first ones say enough.
const TOLD_MAX: usize = 4;

/// The address of a text, as a system call takes it.
pub(super) fn at(text: &'static CStr) -> usize {
    text.as_ptr().addr()
}

/// One raw call.
pub(super) fn call(number: i64, args: [usize; 6]) -> Answer {
    match probe::raw(number, args) {
        Ok(value) => Answer::Done(format!("the call answered {value}")),
        Err(code) => Answer::Errno(code),
    }
}

/// What a safe call answered.
pub(super) fn of<T>(what: &str, result: Result<T, impl Into<io::Error>>) -> Answer {
    match result.map_err(Into::into) {
        Ok(_) => Answer::Done(what.to_owned()),
        Err(e) => error(&e),
    }
}

/// An error with its number; one without is none of the kernel's.
pub(super) fn error(e: &io::Error) -> Answer {
    match e.raw_os_error() {
        Some(code) => Answer::Errno(code),
        None => Answer::Failed(e.to_string()),
    }
}

/// Whether what was looked at is as it must be.
pub(super) fn seen(held: bool, what: impl Into<String>) -> Answer {
    if held { Answer::Held(what.into()) } else { Answer::Tripped(what.into()) }
}

/// Held when nothing was found.
pub(super) fn nothing(found: &[String], none: &str) -> Answer {
    if found.is_empty() {
        return Answer::Held(none.to_owned());
    }
    let told = found.iter().take(TOLD_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = found.len().saturating_sub(TOLD_MAX);
    Answer::Tripped(if more == 0 { told } else { format!("{told} and {more} more") })
}

/// The contents of a file of `/proc`; why there are none otherwise.
pub(super) fn text(path: &str) -> Result<String, Answer> {
    std::fs::read_to_string(path).map_err(|e| Answer::Failed(format!("{path}: {e}")))
}

/// A field of `/proc/self/status`.
pub(super) fn status(field: &str) -> Result<String, Answer> {
    let all = text("/proc/self/status")?;
    let found = all.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let missing = || Answer::Failed(format!("/proc/self/status has no {field}"));
    found.map(|v| v.split_whitespace().collect::<Vec<_>>().join(" ")).ok_or_else(missing)
}

/// A place of this sandbox's own to make files in: a name there that nobody has.
pub(super) fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nanoclaw-probe-{name}-{}", std::process::id()))
}

/// Makes an empty file there and hands it to `act`; it is removed whatever came of it.
pub(super) fn with_file(name: &str, act: impl FnOnce(&Path) -> Answer) -> Answer {
    let path = scratch(name);
    if let Err(e) = std::fs::write(&path, "") {
        return Answer::Failed(format!("{}: {e}", path.display()));
    }
    let answer = act(&path);
    // Nothing of it may stay; what is gone already is as good.
    drop(std::fs::remove_file(&path));
    answer
}

/// An error's name, for lists.
pub(super) fn name(errno: Errno) -> String {
    errno_name(errno.raw_os_error())
}

/// Takes the answer out of either side: what could not be looked at is an answer, too.
pub(super) fn either(result: Result<Answer, Answer>) -> Answer {
    result.unwrap_or_else(|failed| failed)
}
