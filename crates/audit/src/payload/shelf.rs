//! Writing payloads: what the recorder does before the entry that names one.
//!
//! 1. A text is taken out of its record first, and written only when the record is to be: who is
//!    refused costs no sync.
//! 2. A file is written in `work`, synced, and gets its name when it is whole.
//! 3. That its name is durable takes its folder's name to be, whoever made the folder: it may have
//!    been a recorder that was killed before it could sync it, or another thread that is about to.
//!    Only what this recorder has synced itself counts.

use super::{Beside, FOLDER, SALT_BYTES, WORK, hex, is_digest, place};
use crate::merkle::sha256;
use model::{MAX_BESIDE_BYTES, MAX_INLINE_BYTES, Record, RecordError, SaltedDigest, Sha256Hex};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How the name of a payload ends that is being written.
const HALF: &str = ".new";

/// Makes what a folder lists durable.
type Sync = fn(&Path) -> io::Result<()>;

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The payloads of a log, for its recorder.
pub(crate) struct Shelf {
    /// The log's folder.
    dir: PathBuf,
    /// Whether texts of agents stand here however short they are.
    private: bool,
    /// Folders whose names are durable.
    named: Mutex<BTreeSet<PathBuf>>,
    sync: Sync,
}

/// A text that was taken out of its record and is not written yet.
pub(crate) struct Aside {
    /// What stands in the entry for it.
    pub(crate) beside: Beside,
    /// Salt and text.
    bytes: Vec<u8>,
}

impl Shelf {
    pub(crate) fn new(dir: &Path, private: bool) -> Self {
        Self { dir: dir.to_owned(), private, named: Mutex::default(), sync }
    }

    /// Takes a text out of the record that is longer than a field may be, or with `private` any
    /// text that may stand beside the log. It is to be kept before the record is written.
    ///
    /// # Errors
    /// When it is too long, or there is no salt for it: then there is no record either.
    pub(crate) fn set_aside(&self, record: &mut Record) -> Result<Option<Aside>, RecordError> {
        let Some((field, text, digest)) = record.beside() else { return Ok(None) };
        if text.is_empty() || (text.len() <= MAX_INLINE_BYTES && !self.private) {
            return Ok(None);
        }
        if text.len() > MAX_BESIDE_BYTES {
            return Err(RecordError::TooLarge { bytes: text.len(), max: MAX_BESIDE_BYTES });
        }
        let mut bytes = vec![0; SALT_BYTES];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
            .map_err(|e| RecordError::Disk { cause: format!("a payload's salt: {e}") })?;
        bytes.extend(text.as_bytes());
        let sha256 = Sha256Hex(hex(&sha256(&bytes)));
        // The digest of the bare text would let whoever reads the log try guesses at it.
        if let Some(digest) = digest {
            *digest = sha256.clone();
        }
        let kept = SaltedDigest { sha256, bytes: text.len() as u64 };
        text.clear();
        Ok(Some(Aside { beside: Beside { field, digest: kept }, bytes }))
    }

    /// Writes a payload, durably.
    ///
    /// # Errors
    /// [`RecordError::Disk`] when it cannot be kept: then the record must not be written either.
    pub(crate) fn keep(&self, aside: &Aside) -> Result<(), RecordError> {
        self.write(aside).map_err(|e| RecordError::Disk { cause: format!("a payload: {e}") })
    }

    fn write(&self, aside: &Aside) -> io::Result<()> {
        let name = &aside.beside.digest.sha256.0;
        let path = place(&self.dir, name);
        let folder = path.parent().unwrap_or(&self.dir);
        self.have(folder)?;
        let new = self.dir.join(WORK).join(format!("{name}{HALF}"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(&aside.bytes).and_then(|()| file.sync_all());
        if let Err(e) = written.and_then(|()| fs::rename(&new, &path)) {
            // It holds what was to be private, and is of no use.
            let _ = fs::remove_file(&new);
            return Err(e);
        }
        (self.sync)(folder)
    }

    /// Makes a folder of payloads, with a name that lasts.
    fn have(&self, folder: &Path) -> io::Result<()> {
        let named = || self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named().contains(folder) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        (self.sync)(&self.dir.join(FOLDER))?;
        (self.sync)(&self.dir)?;
        // Not before: another thread that finds it here does not wait for the disk.
        named().insert(folder.to_owned());
        Ok(())
    }
}

/// Removes what a recorder left that was killed while it wrote: it is no payload yet, and it is
/// what was to be private. Only for whoever holds the log's lock.
///
/// # Errors
/// As the system has it.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    let half = half_written(dir)?;
    for path in &half {
        fs::remove_file(path)?;
    }
    if half.is_empty() { Ok(()) } else { sync(&dir.join(WORK)) }
}

/// Payloads that are being written, or were when their recorder was killed.
pub(super) fn half_written(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let folder = match fs::read_dir(dir.join(WORK)) {
        // A copy of a log has none, and not everybody who may read a log may look into it.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(all);
        }
        other => other?,
    };
    for file in folder {
        let path = file?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.strip_suffix(HALF).is_some_and(is_digest) {
            all.push(path);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        /// What was synced on this thread.
        static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    /// A folder of a log, removed at the end.
    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("shelf-{name}-{}", std::process::id()));
            fs::create_dir_all(dir.join(WORK)).unwrap();
            Self(dir)
        }

        fn shelf(&self) -> Shelf {
            let sync: Sync = |folder| {
                SYNCED.with_borrow_mut(|all| all.push(folder.to_owned()));
                Ok(())
            };
            Shelf { sync, ..Shelf::new(&self.0, false) }
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn synced() -> Vec<PathBuf> {
        SYNCED.take()
    }

    #[test]
    fn a_folder_that_another_made_is_made_durable_before_it_is_relied_on() {
        let temp = Temp::new("made");
        for n in 0..=255_u8 {
            fs::create_dir_all(temp.0.join(FOLDER).join(format!("{n:02x}"))).unwrap();
        }
        let shelf = temp.shelf();
        let sha256 = Sha256Hex("ab".repeat(32));
        let path = place(&temp.0, &sha256.0);
        let beside = Beside { field: "arguments", digest: SaltedDigest { sha256, bytes: 4 } };
        shelf.keep(&Aside { beside, bytes: b"text".to_vec() }).unwrap();
        let folder = path.parent().unwrap().to_owned();
        assert_eq!(synced(), [temp.0.join(FOLDER), temp.0.clone(), folder.clone()]);
        // Known from here on: it costs no more than its own sync.
        shelf.have(&folder).unwrap();
        assert_eq!(synced(), Vec::<PathBuf>::new());
        // The next recorder knows nothing of it.
        temp.shelf().have(&folder).unwrap();
        assert_eq!(synced(), [temp.0.join(FOLDER), temp.0.clone()]);
    }

    #[test]
    fn a_folder_whose_name_could_not_be_made_durable_is_not_relied_on() {
        let temp = Temp::new("failed");
        let fails: Sync = |_| Err(io::Error::other("the disk"));
        let mut shelf = Shelf { sync: fails, ..temp.shelf() };
        let folder = temp.0.join(FOLDER).join("ab");
        assert!(shelf.have(&folder).is_err() && folder.is_dir());
        shelf.sync = temp.shelf().sync;
        shelf.have(&folder).unwrap();
        assert_eq!(synced(), [temp.0.join(FOLDER), temp.0.clone()]);
    }
}
