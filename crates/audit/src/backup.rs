//! A copy of a log that proves itself, taken while it is being written.
//!
//! ```text
//! what witnesses signed ─► head ─► write-ahead log ─► tiles ─► payloads ─► verified there
//! ```
//!
//! 1. The copy is as of one signed head. What came later may be in it too, as it may be in any log
//!    that is being written.
//! 2. It is verified with the key of the log it was taken from, payload by payload, before the
//!    backup counts as made.
//! 3. The signing key stays where it is: whoever has the copy can prove what is in it and add
//!    nothing. To go on with it, `private/key` must be restored beside it.
//! 4. Only a new or empty folder is written to.

use crate::cosign::Quorum;
use crate::disk::{create_anew, open_file, read_whole};
use crate::finding::Finding;
use crate::payload::{self, Kept};
use crate::seen;
use crate::verify::{Report, verify_dir};
use crate::witness::{COSIGNED, FOLDER};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is copied file by file; `checkpoint` comes first and last.
const FOLDERS: [&str; 3] = ["wal", "tile", payload::FOLDER];
/// What is copied of single files and small folders, where it is there.
const BESIDE: [&str; 3] = ["vkey", "epochs", "manifest"];
/// Tries to get a head with everything that belongs to it from a log that is being written.
const TRIES: usize = 5;

/// Why a backup was not made.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The folder has something in it.
    #[error("{} is no empty folder; a backup is made into a new one", .0.display())]
    NotEmpty(PathBuf),
    /// There is no log.
    #[error("there is no log in {}", .0.display())]
    NoLog(PathBuf),
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// The copy is not intact.
    #[error("the copy is not intact: {0}")]
    NotIntact(Finding),
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// What the verification of the copy said.
    pub report: Report,
    /// What the payloads' said.
    pub kept: Kept,
    /// Files copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

fn at(path: &Path) -> impl Fn(io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::Io { path: path.clone(), error }
}

/// Copies the log in `dir` to `to` and verifies the copy.
///
/// # Errors
/// See [`BackupError`]; what was copied stays, to be looked at.
pub fn backup(dir: &Path, to: &Path) -> Result<Backup, BackupError> {
    let vkey = match read_whole(&dir.join("vkey")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(BackupError::NoLog(dir.to_owned()));
        }
        other => other.map_err(at(&dir.join("vkey")))?,
    };
    let vkey = String::from_utf8_lossy(&vkey);
    if to.exists() && !to.is_dir() {
        return Err(BackupError::NotEmpty(to.to_owned()));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(at(to))?;
    if fs::read_dir(to).map_err(at(to))?.next().is_some() {
        return Err(BackupError::NotEmpty(to.to_owned()));
    }
    let mut made = Copied::default();
    let mut last = None;
    for _ in 0..TRIES {
        // What witnesses signed, then the head, which has seen as much; everything that it needs is
        // there then, if not under way to a newer one.
        if dir.join(COSIGNED).exists() {
            let folder = to.join(FOLDER);
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
            made.all(&dir.join(COSIGNED), &to.join(COSIGNED))?;
            File::open(&folder).and_then(|f| f.sync_all()).map_err(at(&folder))?;
        }
        let head = Copied::head(dir)?;
        for name in BESIDE {
            made.all(&dir.join(name), &to.join(name))?;
        }
        for name in FOLDERS {
            made.all(&dir.join(name), &to.join(name))?;
        }
        let place = to.join("checkpoint");
        let written = create_anew(&place).and_then(|mut file| {
            file.write_all(&head)?;
            file.sync_all()
        });
        written.map_err(at(&place))?;
        File::open(to).and_then(|f| f.sync_all()).map_err(at(to))?;
        let verify = || verify_dir(to, Some(vkey.trim_end()));
        match seen::verified(to, &Quorum::default(), verify) {
            Ok((report, _)) => {
                let kept = payload::check(to).map_err(BackupError::NotIntact)?;
                return Ok(Backup { report, kept, files: made.files, bytes: made.bytes });
            }
            // A tile of this head went while it was copied, because a newer one has come.
            Err(found) => last = Some(found),
        }
        if Copied::head(dir)? == head {
            break;
        }
    }
    Err(last.map_or_else(|| BackupError::NoLog(dir.to_owned()), BackupError::NotIntact))
}

#[derive(Default)]
struct Copied {
    files: u64,
    bytes: u64,
}

impl Copied {
    fn head(dir: &Path) -> Result<Vec<u8>, BackupError> {
        let path = dir.join("checkpoint");
        // Not looked at here; the verification of the copy does.
        read_whole(&path).map_err(at(&path))
    }

    /// Copies a file, or a folder with what is in it. What is gone meanwhile is passed over.
    fn all(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let kind = match fs::symlink_metadata(from) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(at(from))?.file_type(),
        };
        if kind.is_file() {
            return self.file(from, to);
        }
        if !kind.is_dir() {
            let error = io::Error::new(io::ErrorKind::InvalidData, "neither a file nor a folder");
            return Err(at(from)(error));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(at(to))?;
        for entry in fs::read_dir(from).map_err(at(from))? {
            let name = entry.map_err(at(from))?.file_name();
            self.all(&from.join(&name), &to.join(&name))?;
        }
        File::open(to).and_then(|f| f.sync_all()).map_err(at(to))
    }

    fn file(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let mut source = match open_file(from) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(at(from))?,
        };
        let length = source.metadata().map_err(at(from))?.len();
        if fs::metadata(to).is_ok_and(|m| m.len() == length) && !grows(from) {
            return Ok(()); // Copied at the try before; such a file never changes.
        }
        let mut made = OpenOptions::new();
        made.write(true).create(true).truncate(true).mode(0o600);
        let mut made = made.open(to).map_err(at(to))?;
        // As long as it was when it was looked at: it may grow meanwhile.
        let copied = io::copy(&mut Read::take(&mut source, length), &mut made);
        self.bytes += copied.map_err(at(to))?;
        self.files += 1;
        made.sync_all().map_err(at(to))
    }
}

/// Files that another content may take the place of.
fn grows(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "wal") || !path.iter().any(|part| part == "tile")
}
