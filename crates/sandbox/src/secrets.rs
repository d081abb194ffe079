//! Places below a grant where people keep keys: covered inside by something empty.
//!
//! Pipeline: granted folders ─► walk, no link followed ─► names ─► `Mask`s ─► steps of the plan.
//!
//! 1. It goes by names. A key under another name, a second name of a covered file, and what appears
//!    after the start are not covered; THREAT_MODEL.md says so.
//! 2. What is covered is listed in the plan, so that a person sees why a file is empty inside.
//! 3. A place that cannot be written into a plan refuses the grant, it is never left open.

use crate::error::{SpecError, SpecErrorKind as Kind};
use crate::plan::WORKSPACE;
use crate::sockets::ENTRIES_MAX;
use model::{SandboxSpec, Workspace};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Each is a step of the plan and three system calls at every start.
const MASKS_MAX: usize = 256;
/// Their share of the packets between client, spawner and init.
const MASK_BYTES_MAX: usize = 32 << 10;
/// Files that hold nothing but keys, wherever they stand.
const FILES: [&str; 6] =
    [".env", ".netrc", ".pgpass", ".git-credentials", ".vault-token", ".pypirc"];
/// Folders of keys.
const FOLDERS: [&str; 7] =
    [".ssh", ".aws", ".gnupg", ".kube", ".azure", ".password-store", ".mozilla"];
/// `.env.local` and its like hold keys; these show which ones there are to be, and are committed.
const PATTERNS: [&str; 5] = ["example", "sample", "template", "dist", "defaults"];

/// A place that is covered inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    /// Its path inside.
    pub path: String,
    /// Covered by an empty folder, else by an empty file.
    pub directory: bool,
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.directory { "folder" } else { "file" };
        write!(f, "cover {} with an empty {kind}: it may hold keys", self.path)
    }
}

/// What is to be covered in the folders that a spec grants. Takes as long as they have files.
pub(crate) fn masks(spec: &SandboxSpec) -> Result<Vec<Mask>, SpecError> {
    let mut found = Vec::new();
    let workspace = match &spec.workspace {
        Workspace::User(path) => Some((path.as_path(), Path::new(WORKSPACE))),
        Workspace::Session(_) => None,
    };
    let mounts = spec.mounts.iter().map(|m| (m.source.as_path(), m.target.as_path()));
    for (source, target) in workspace.into_iter().chain(mounts) {
        search(source, target, &mut found)?;
    }
    let bytes: usize = found.iter().map(|mask| mask.path.len()).sum();
    if found.len() > MASKS_MAX || bytes > MASK_BYTES_MAX {
        let cause = format!("{} places that may hold keys lie in what is granted", found.len());
        return Err(SpecError::new(Kind::Size, cause, "grant a smaller folder"));
    }
    // The same whatever order the file system has them in: the plan's hash rests on it.
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn search(source: &Path, target: &Path, found: &mut Vec<Mask>) -> Result<(), SpecError> {
    let mut pending: Vec<PathBuf> = vec![source.to_owned()];
    let mut seen = 0;
    while let Some(folder) = pending.pop() {
        // A folder that cannot be listed is judged by the search for sockets, and a file granted by
        // itself by its own name.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > ENTRIES_MAX {
                let cause = format!("{source:?} has more than {ENTRIES_MAX} entries");
                return Err(SpecError::new(Kind::Size, cause, "grant a smaller folder"));
            }
            let Ok(kind) = entry.file_type() else { continue };
            let name = entry.file_name();
            if !kind.is_symlink() && holds_keys(&name.to_string_lossy(), kind.is_dir()) {
                found.push(mask(source, target, &entry.path(), kind.is_dir())?);
            } else if kind.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}

fn mask(source: &Path, target: &Path, at: &Path, directory: bool) -> Result<Mask, SpecError> {
    let inside = at.strip_prefix(source).ok().map(|rest| target.join(rest));
    let path = inside.and_then(|path| path.into_os_string().into_string().ok());
    match path.filter(|p| !p.chars().any(char::is_control)) {
        Some(path) => Ok(Mask { path, directory }),
        None => {
            let cause = format!("{at:?} may hold keys, and its name cannot stand in a plan");
            let remedy = "rename it (UTF-8, no control characters), or grant another folder";
            Err(SpecError::new(Kind::Path, cause, remedy))
        }
    }
}

/// Whether a file or folder of this name is one in which people keep keys.
fn holds_keys(name: &str, directory: bool) -> bool {
    let name = name.to_ascii_lowercase();
    if directory {
        return FOLDERS.contains(&name.as_str());
    }
    FILES.contains(&name.as_str())
        || name.strip_prefix(".env.").is_some_and(|rest| {
            rest.rsplit('.').next().is_some_and(|last| !PATTERNS.contains(&last))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_keys_are_known_and_patterns_of_them_are_none() {
        for (name, directory) in [
            (".env", false),
            (".ENV", false),
            (".env.local", false),
            (".env.production", false),
            (".env.sample.local", false),
            (".netrc", false),
            (".ssh", true),
            (".aws", true),
        ] {
            assert!(holds_keys(name, directory), "{name}");
        }
        for (name, directory) in [
            (".env.example", false),
            (".env.production.template", false),
            (".envrc.md", false),
            ("env", false),
            (".environment", false),
            ("ssh", true),
            // A virtual environment, and a file of that name.
            (".env", true),
            (".ssh", false),
        ] {
            assert!(!holds_keys(name, directory), "{name}");
        }
    }

    #[test]
    fn what_lies_below_is_found_by_its_path_inside_and_links_are_not_followed() {
        let dir = std::env::temp_dir().join(format!("nanoclaw-masks-{}", std::process::id()));
        let (project, outside) = (dir.join("project"), dir.join("outside"));
        for inner in ["project/deep/er", "project/.ssh/keys", "outside"] {
            fs::create_dir_all(dir.join(inner)).unwrap();
        }
        for file in ["project/.env", "project/deep/er/.env.local", "outside/.env"] {
            fs::write(dir.join(file), "KEY=1").unwrap();
        }
        fs::write(project.join(".ssh/.env"), "in a folder that is covered whole").unwrap();
        std::os::unix::fs::symlink(&outside, project.join("away")).unwrap();
        let mut found = Vec::new();
        let result = search(&project, Path::new("/mnt/p"), &mut found);
        let odd = project.join("a\nb");
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join(".env"), "").unwrap();
        let refused = search(&project, Path::new("/mnt/p"), &mut Vec::new());
        fs::remove_dir_all(&dir).unwrap();
        result.unwrap();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let told: Vec<(&str, bool)> =
            found.iter().map(|m| (m.path.as_str(), m.directory)).collect();
        assert_eq!(
            told,
            [("/mnt/p/.env", false), ("/mnt/p/.ssh", true), ("/mnt/p/deep/er/.env.local", false)]
        );
        assert_eq!(refused.unwrap_err().kind, Kind::Path);
    }
}
