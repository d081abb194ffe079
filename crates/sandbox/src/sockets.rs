//! Sockets in granted folders. A read-only mount does not stop connect(2), and no system-call
//! filter sees where a connection goes, so a folder that holds a host's socket is not granted.
//!
//! A socket that a host program makes there later is out of this check's reach; THREAT_MODEL.md
//! says so.

use crate::error::{SpecError, SpecErrorKind};
use model::{SandboxSpec, Workspace};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most entries looked at in one grant. A project with all its dependencies has some hundred
/// thousand; a tree beyond this is refused, for it cannot be vouched for.
pub(crate) const ENTRIES_MAX: usize = 5_000_000;

/// Refuses a spec whose mounts or user workspace hold a socket.
pub(crate) fn refuse(spec: &SandboxSpec) -> Result<(), SpecError> {
    let mounts = spec.mounts.iter().map(|m| m.source.as_path());
    let workspace = match &spec.workspace {
        Workspace::User(path) => Some(path.as_path()),
        Workspace::Session(_) => None,
    };
    mounts.chain(workspace).try_for_each(search)
}

fn search(root: &Path) -> Result<(), SpecError> {
    let refused = |cause: String, remedy: &str| {
        Err(SpecError::new(SpecErrorKind::Socket, cause, remedy.to_owned()))
    };
    let mut pending: Vec<PathBuf> = vec![root.to_owned()];
    let mut seen = 0;
    match fs::symlink_metadata(root) {
        Ok(meta) if meta.file_type().is_socket() => {
            return refused(format!("{root:?} is a socket of the host"), REMEDY);
        }
        Ok(meta) if meta.is_file() => return Ok(()),
        _ => {}
    }
    while let Some(folder) = pending.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(_) if closed(&folder) => continue,
            Err(e) => {
                return refused(format!("{folder:?} cannot be searched for sockets: {e}"), OPEN);
            }
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > ENTRIES_MAX {
                let cause = format!("{root:?} has more than {ENTRIES_MAX} entries");
                return refused(cause, "grant a smaller folder");
            }
            match entry.file_type() {
                Ok(kind) if kind.is_socket() => {
                    let path = entry.path();
                    return refused(format!("{path:?} is a socket of the host"), REMEDY);
                }
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a folder that cannot be listed cannot be entered either, nor opened up from inside by
/// its owner. One that may only be passed through would hide a socket whose name is known.
fn closed(folder: &Path) -> bool {
    let Ok(meta) = fs::symlink_metadata(folder) else { return true };
    meta.uid() != rustix::process::geteuid().as_raw()
        && rustix::fs::access(folder, rustix::fs::Access::EXEC_OK).is_err()
}

const OPEN: &str = "make it readable (`chmod u+r`), or grant another folder";
const REMEDY: &str = "remove it or grant another folder: a session reaches programs of the host \
                      through the gateway only";

#[cfg(test)]
mod tests {
    use super::search;

    #[test]
    fn a_socket_at_any_depth_is_found_and_other_files_are_not() {
        let root = std::env::temp_dir().join(format!("nanoclaw-sockets-{}", std::process::id()));
        let deep = root.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), "x").unwrap();
        assert!(search(&root).is_ok());
        let socket = std::os::unix::net::UnixListener::bind(deep.join("s")).unwrap();
        let error = search(&root).unwrap_err();
        assert!(error.cause.contains("a/b/s"), "{error}");
        drop(socket);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
