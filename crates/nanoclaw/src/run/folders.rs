//! Folders of sessions that end with their process, and of those whose process was killed.

use crate::failure::{Context, Result};
use crate::home::Home;
use crate::{removal, ui};
use std::path::PathBuf;

/// The folders of a session that nobody will come back to: removed at its end, or, when this
/// process is killed, by whoever next finds their lock free.
pub(crate) struct Folders {
    root: PathBuf,
    _lock: std::fs::File,
}

/// Held by the living; beside workspace and home, so no sandbox sees it.
const LOCK: &str = "run.lock";

impl Folders {
    pub(crate) fn claim(root: PathBuf) -> Result<Self> {
        let path = root.join(LOCK);
        let lock = std::fs::File::create(&path).context(path.display())?;
        lock.try_lock().context(path.display())?;
        Ok(Self { root, _lock: lock })
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if let Err(e) = removal::remove_tree(&self.root) {
            ui::note(format!("nanoclaw: {} could not be removed: {e}", self.root.display()));
        }
    }
}

/// Removes what killed runs left behind.
pub(crate) fn sweep(home: &Home) {
    let all = std::fs::read_dir(home.path().join("sessions")).into_iter().flatten().flatten();
    for entry in all {
        let Ok(lock) = std::fs::File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            let door = format!("run/doors/{}.sock", entry.file_name().to_string_lossy());
            // Left for the next time when it cannot be removed now.
            drop(std::fs::remove_file(home.path().join(door)));
            for inner in ["workspace", "home", "servers"] {
                if removal::remove_tree(&entry.path().join(inner)).is_err() {
                    break;
                }
            }
            // The lock goes last, so that a half-removed folder is found again.
            drop(removal::remove_tree(&entry.path()));
        }
    }
}
