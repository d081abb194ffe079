//! What of an image's tree appears in a sandbox, found by looking, so that the plan stays data.
//!
//! Pipeline: tree + what is the sandbox's own ─► walk, only along the own places ─► `ImageView`.
//!
//! 1. The sandbox's own places win: what an image has there is not shown.
//! 2. No link is followed; one at the root or in a folder that is taken apart is shown as a link.

use crate::error::{SpecError, SpecErrorKind as Kind};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, readlinkat, statat,
};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Each is a step of the plan, and a plan must fit one packet to the first process. A Debian with
/// everything has 220 of them.
const ENTRIES_MAX: usize = 384;
/// One entry's share of the packet.
const NAME_BYTES_MAX: usize = 200;

/// A part of an image, by its path inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageEntry {
    /// A folder that is made anew, for something of the sandbox's own lies in it.
    Directory(String),
    /// A symbolic link and its target.
    Link(String, String),
    /// A folder or file, shown as it is.
    Tree(String),
}

/// All that is shown of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// In order: folders before what is in them.
    pub entries: Vec<ImageEntry>,
    /// Its files of certificate authorities, which the session's own are put over.
    pub bundles: Vec<String>,
}

impl ImageView {
    /// Whether a path lies in a part that is shown as it is, or behind a link.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.entries.iter().any(|entry| match entry {
            ImageEntry::Link(base, _) | ImageEntry::Tree(base) => path.starts_with(base),
            ImageEntry::Directory(_) => false,
        })
    }
}

/// Looks at an image's tree; `own` are the places inside that are not the image's.
pub(crate) fn view(tree: &Path, own: &[PathBuf], bundles: &[&str]) -> Result<ImageView, SpecError> {
    let mut view = ImageView::default();
    let tell = |e: rustix::io::Errno| {
        let cause = format!("the image's tree {tree:?} cannot be read: {e}");
        SpecError::new(Kind::Missing, cause, "pull or import the image again")
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat2(CWD, tree, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(tell)?;
    walk(&top, Path::new("/"), own, &mut view).map_err(|e| match e {
        Problem::Read(e) => tell(e),
        Problem::Name(path) => {
            let cause = format!("the image has the name {path:?}, which cannot be shown");
            SpecError::new(Kind::Path, cause, "rename it in the image: short, UTF-8, no controls")
        }
        Problem::Many => {
            let cause = format!("the image has over {ENTRIES_MAX} names in its root and /etc");
            SpecError::new(Kind::Size, cause, "remove some, or move them into folders")
        }
    })?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let is_file = |path: &&str| {
        let relative = path.trim_start_matches('/');
        let fd = openat2(&top, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath);
        let stat = fd.and_then(rustix::fs::fstat);
        stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)
    };
    let shown = bundles.iter().filter(|path| view.has(Path::new(path)));
    view.bundles = shown.filter(|path| is_file(path)).map(|p| (*p).to_owned()).collect();
    Ok(view)
}

enum Problem {
    Read(rustix::io::Errno),
    Name(PathBuf),
    Many,
}

impl From<rustix::io::Errno> for Problem {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Read(e)
    }
}

fn walk(dir: &OwnedFd, at: &Path, own: &[PathBuf], view: &mut ImageView) -> Result<(), Problem> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort();
    for name in names {
        let path = at.join(name.to_string_lossy().as_ref());
        if own.contains(&path) {
            continue;
        }
        let text = name.to_str().ok().filter(|n| !n.chars().any(char::is_control));
        let Some(text) = text.filter(|n| n.len() <= NAME_BYTES_MAX) else {
            return Err(Problem::Name(path));
        };
        let inside = at.join(text).to_string_lossy().into_owned();
        let below = own.iter().any(|o| o.starts_with(&path));
        let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if below => {
                view.entries.push(ImageEntry::Directory(inside));
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                walk(&openat2(dir, &name, flags, Mode::empty(), beneath)?, &path, own, view)?;
            }
            // Something of the sandbox's own lies behind it, and wins.
            _ if below => {}
            FileType::Symlink => {
                let target = readlinkat(dir, &name, Vec::new())?;
                let target = target.into_string().map_err(|_| Problem::Name(path))?;
                view.entries.push(ImageEntry::Link(inside, target));
            }
            FileType::Directory | FileType::RegularFile => {
                view.entries.push(ImageEntry::Tree(inside));
            }
            _ => {}
        }
        if view.entries.len() > ENTRIES_MAX {
            return Err(Problem::Many);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ImageEntry::{Directory, Link, Tree};
    use std::fs;

    #[test]
    fn own_places_win_and_folders_around_them_are_taken_apart() {
        let dir = std::env::temp_dir().join(format!("nanoclaw-view-{}", std::process::id()));
        for inner in ["etc/ssl/certs", "usr/bin", "dev/x", "var/lib", "var/tmp/x", "proc"] {
            fs::create_dir_all(dir.join(inner)).unwrap();
        }
        for file in ["etc/passwd", "etc/os-release", "etc/ssl/certs/ca-certificates.crt"] {
            fs::write(dir.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("usr/bin", dir.join("bin")).unwrap();
        // A link where the sandbox has a folder of its own: not followed, not shown.
        std::os::unix::fs::symlink("/usr", dir.join("home")).unwrap();
        let own = ["/etc/passwd", "/dev", "/proc", "/var/tmp", "/home/agent"].map(PathBuf::from);
        let bundles = ["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"];
        let seen = view(&dir, &own, &bundles);
        fs::remove_dir_all(&dir).unwrap();
        let seen = seen.unwrap();
        let wanted = [
            Link("/bin".into(), "usr/bin".into()),
            Directory("/etc".into()),
            Tree("/etc/os-release".into()),
            Tree("/etc/ssl".into()),
            Tree("/usr".into()),
            Directory("/var".into()),
            Tree("/var/lib".into()),
        ];
        assert_eq!(seen.entries, wanted);
        assert_eq!(seen.bundles, bundles[..1]);
    }
}
