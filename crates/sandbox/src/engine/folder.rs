//! What engines are shown of this process: files and sockets in a folder of its own, and labels
//! that say whose a container is.
//!
//! Pipeline: `Folder::make` ─► files, sockets, names of engines in use ─► removed at the end; what
//! a killed process left is found by the next one (`leftovers`), with the engines to ask.
//!
//! Invariants:
//! 1. The folder is the owner's alone; single things in it are mounted, never it whole.
//! 2. Only what belongs to processes that are gone is ever removed.

use super::root;
use rustix::fs::{Mode, chmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whose home a container belongs to.
pub(super) const HOME_LABEL: &str = "io.nanoclaw.home";
/// Whose session it is.
pub(super) const SESSION_LABEL: &str = "io.nanoclaw.session";
/// Which process started it.
pub(super) const STARTER_LABEL: &str = "io.nanoclaw.starter";
/// Begins the names of the files that name engines.
const ENGINE: &str = "engine-";
/// The name of the empty folder.
const COVER: &str = "cover";

/// A folder of this process.
#[derive(Debug)]
pub(super) struct Folder {
    /// Shared by all processes of this home; the value of [`HOME_LABEL`].
    home: PathBuf,
    path: PathBuf,
    handle: OwnedFd,
    starter: String,
}

/// A socket that the first process of a container calls.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) path: PathBuf,
    pub(super) socket: OwnedFd,
}

impl Drop for Line {
    fn drop(&mut self) {
        // What stays goes with the folder.
        let _ = fs::remove_file(&self.path);
    }
}

/// Folders that this process has made.
static MADE: AtomicU64 = AtomicU64::new(1);

/// `<boot>-<pid>-<start time>-<number>`: one folder of this process, and of no other since the
/// machine exists.
fn starter() -> io::Result<String> {
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{}-{}-{number}", boot()?, crate::spawner::own_name()?))
}

/// The first part of the kernel's name for this boot.
fn boot() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.chars().take_while(char::is_ascii_hexdigit).collect())
}

/// Whether the process that [`starter`] named still runs.
pub(super) fn alive(starter: &str) -> bool {
    let parts = starter.split_once('-').and_then(|(boot, rest)| {
        let (owner, _) = rest.rsplit_once('-')?;
        Some((boot, owner))
    });
    let Some((then, owner)) = parts else { return false };
    boot().is_ok_and(|now| now == then) && crate::spawner::alive(owner)
}

impl Folder {
    /// Makes it below `home`, the folder of all processes of one home.
    pub(super) fn make(home: &Path) -> io::Result<Self> {
        let starter = starter()?;
        let path = home.join(&starter);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let home = fs::canonicalize(home)?;
        let path = home.join(&starter);
        let handle = fs::File::open(&path)?.into();
        Ok(Self { home, path, handle, starter })
    }

    /// The value of [`HOME_LABEL`].
    pub(super) fn home(&self) -> String {
        self.home.display().to_string()
    }

    /// The value of [`STARTER_LABEL`].
    pub(super) fn starter(&self) -> &str {
        &self.starter
    }

    /// A file with these contents, readable by everyone; made once.
    pub(super) fn file(&self, contents: &[u8]) -> io::Result<PathBuf> {
        self.named(&format!("file-{}", root::name(contents)), contents)
    }

    /// Something empty to cover a file or folder with; made once, and mounted read-only.
    pub(super) fn cover(&self, directory: bool) -> io::Result<PathBuf> {
        if !directory {
            return self.file(b"");
        }
        let path = self.path.join(COVER);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            // Whoever the program is, it may see that nothing is in it.
            _ => chmod(&path, Mode::from_raw_mode(0o555)).map(|()| path).map_err(Into::into),
        }
    }

    fn named(&self, name: &str, contents: &[u8]) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        if path.exists() {
            return Ok(path);
        }
        // Whole or not at all, for another thread may use it at once.
        let draft = self.path.join(format!("{name}.{:?}", std::thread::current().id()));
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&draft)?;
        file.write_all(contents)?;
        chmod(&draft, Mode::from_raw_mode(0o644))?;
        fs::rename(&draft, &path)?;
        Ok(path)
    }

    /// Notes an engine in use, for whoever comes after this process was killed.
    pub(super) fn note(&self, name: &str, socket: &Path) -> io::Result<()> {
        let text = format!("{name}\n{}", socket.display());
        self.named(&format!("{ENGINE}{}", root::name(text.as_bytes())), text.as_bytes()).map(drop)
    }

    /// A socket to be called at; whoever it is mounted for may call.
    pub(super) fn line(&self, number: u64) -> io::Result<Line> {
        self.called_at(number, SocketType::SEQPACKET)
    }

    /// As [`Folder::line`], of the kind that is relayed into virtual machines: a stream.
    pub(super) fn relayed(&self, number: u64) -> io::Result<Line> {
        self.called_at(number, SocketType::STREAM)
    }

    fn called_at(&self, number: u64, kind: SocketType) -> io::Result<Line> {
        let name = format!("line-{number}");
        let path = self.path.join(&name);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
        // Through the folder's descriptor: a path may be longer than an address has room for.
        let short = format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd());
        bind(&socket, &SocketAddrUnix::new(short)?)?;
        let line = Line { path, socket };
        chmod(&line.path, Mode::from_raw_mode(0o666))?;
        listen(&line.socket, 1)?;
        Ok(line)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is found by the next process.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What a process that is gone left behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) path: PathBuf,
    pub(super) starter: String,
    /// Engines it used: name and socket.
    pub(super) engines: Vec<(String, PathBuf)>,
}

/// Folders of processes that are gone.
pub(super) fn leftovers(home: &Path) -> Vec<Leftover> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    let gone = entries.filter_map(|entry| {
        let starter = entry.file_name().into_string().ok()?;
        let dead = entry.file_type().is_ok_and(|t| t.is_dir()) && !alive(&starter);
        dead.then(|| Leftover { engines: engines(&entry.path()), path: entry.path(), starter })
    });
    gone.collect()
}

fn engines(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(ENGINE));
    let read = named.filter_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        let (name, socket) = text.split_once('\n')?;
        Some((name.to_owned(), PathBuf::from(socket)))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_the_dead_left_is_found_and_the_living_are_left_alone() {
        let home = std::env::temp_dir().join(format!("nanoclaw-engine-{}", std::process::id()));
        let mine = Folder::make(&home).unwrap();
        assert!(alive(mine.starter()));
        mine.note("docker", Path::new("/run/docker.sock")).unwrap();
        let line = mine.line(1).unwrap();
        assert!(line.path.exists());
        let file = mine.file(b"127.0.0.1 localhost\n").unwrap();
        assert_eq!(file, mine.file(b"127.0.0.1 localhost\n").unwrap());
        let (cover, nothing) = (mine.cover(true).unwrap(), mine.cover(false).unwrap());
        assert_eq!(cover, mine.cover(true).unwrap());
        assert_eq!(fs::read_dir(&cover).unwrap().count(), 0);
        assert_eq!(fs::read(&nothing).unwrap(), b"");
        assert!(leftovers(&home).is_empty());
        // As another process of the same number, or of another boot, would have left it.
        let (boot, owner) = mine.starter().split_once('-').unwrap();
        for dead in [format!("{boot}-{}", owner.replacen('-', "-9", 1)), format!("00-{owner}")] {
            fs::create_dir(home.join(&dead)).unwrap();
            let note = fs::read_dir(&mine.path)
                .unwrap()
                .flatten()
                .find(|e| e.file_name().to_string_lossy().starts_with(ENGINE));
            let note = note.unwrap();
            fs::copy(note.path(), home.join(&dead).join(note.file_name())).unwrap();
            let found = leftovers(&home);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].starter, dead);
            assert_eq!(found[0].engines, [("docker".to_owned(), "/run/docker.sock".into())]);
            fs::remove_dir_all(&found[0].path).unwrap();
        }
        let path = mine.path.clone();
        drop((line, mine));
        assert!(!path.exists());
        fs::remove_dir(&home).unwrap();
    }
}
