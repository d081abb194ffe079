//! The log's signing keys on disk: making the first, replacing one, and finding the state again
//! that a crash in the middle of that left.
//!
//! ```text
//! rotate: private/key.next ─► record announces it, durable ─► epochs/NNNN: the old key's closing
//!         note ─► key.next becomes key ─► vkey ─► the next checkpoint is the new key's
//! ```
//!
//! 1. Every arrow is synced before the next step. Once the closing note is there an open goes on to
//!    the end; before that the rotation did not happen, the old key stays, and it can be repeated.
//! 2. Only the process that made the next key lets the old one close its epoch for it: what lies in
//!    the folder at an open, announced or not, may be anybody's who can write there.
//! 3. The old key's bytes are overwritten by the rename; this process forgets them at once.

use crate::disk::{self, PRIVATE, PUBLIC, SharedDisk};
use crate::epoch::{EPOCHS, Epoch, EpochError, Epochs, announcement, epoch_path, epoch_text, past};
use crate::log::OpenError;
use crate::manifest::{MANIFEST, MANIFEST_BYTES_MAX, Manifest};
use crate::merkle::{self, Hash};
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Signer, Verifier};
use crate::tilestore::write_checkpoint;
use crate::wal::segments_on;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The next key while it waits for its announcement, known to the process that made it alone.
pub(crate) type Prepared = Arc<Mutex<Option<Signer>>>;

/// The key of a log that is being written, and the keys before it.
#[derive(Debug)]
pub(crate) struct Keys {
    disk: SharedDisk,
    dir: PathBuf,
    signer: Signer,
    past: Vec<Epoch>,
    /// What `private/key.next` held when the log was opened.
    next: Option<Signer>,
    prepared: Prepared,
    /// The public half, for whoever asks the open log.
    public: Arc<Mutex<Verifier>>,
    /// The epoch before has ended, but `private/key` or `vkey` are still its.
    unfinished: bool,
}

fn new_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(seed)
}

fn mismatch(dir: &Path, what: impl Into<String>) -> OpenError {
    OpenError::Mismatch { dir: dir.to_owned(), what: what.into() }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io { path, error }
}

fn note_at(path: &Path) -> impl FnOnce(NoteError) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Note { path, error }
}

/// The key in a file, if there is one.
fn signer_in(disk: &SharedDisk, path: &Path) -> Result<Option<Signer>, OpenError> {
    let Some(bytes) = disk::read(&**disk, path, NOTE_BYTES_MAX).map_err(io_at(path))? else {
        return Ok(None);
    };
    let text = crate::log::line(bytes).unwrap_or_default();
    Signer::parse(&text).map(Some).map_err(note_at(path))
}

/// Puts a line into a file that only its owner reads.
fn write_line(disk: &SharedDisk, path: &Path, text: &str) -> io::Result<()> {
    disk::replace(
        &**disk,
        &path.with_extension("new"),
        path,
        format!("{text}\n").as_bytes(),
        PRIVATE,
    )
}

/// Makes a key that nobody announced yet, in `private/key.next`, whatever lies there.
pub(crate) fn prepare_next(
    disk: &SharedDisk,
    dir: &Path,
    name: &str,
    prepared: &Prepared,
) -> Result<String, OpenError> {
    let path = dir.join("private/key.next");
    let next = new_seed().map_err(io_at(&path))?;
    let next = Signer::from_seed(name, next).map_err(note_at(&path))?;
    write_line(disk, &path, &next.skey()).map_err(io_at(&path))?;
    let vkey = next.verifier().vkey();
    *prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
    Ok(vkey)
}

impl Keys {
    /// Reads the keys, making the first one for a log that does not exist yet; changes nothing
    /// else.
    pub(crate) fn open(disk: &SharedDisk, dir: &Path) -> Result<Self, OpenError> {
        let (key_path, vkey_path) = (dir.join("private/key"), dir.join("vkey"));
        let vkey = disk::read(&**disk, &vkey_path, NOTE_BYTES_MAX).map_err(io_at(&vkey_path))?;
        let next = signer_in(disk, &dir.join("private/key.next"))?;
        let past = past(&**disk, dir).map_err(|e| match e {
            EpochError::Io { path, error } => OpenError::Io { path, error },
            EpochError::Bad { path, offset, why } => {
                mismatch(dir, format!("{} at byte {offset}: {why}", path.display()))
            }
        })?;
        let found = signer_in(disk, &key_path)?;
        let is_new = vkey.is_none() && past.is_empty();
        let signer = match found {
            Some(signer) => signer,
            None if !is_new || !segments_on(&**disk, dir).map_err(io_at(dir))?.is_empty() => {
                return Err(mismatch(dir, "the signing key private/key is missing"));
            }
            None => first_key(disk, &key_path)?,
        };
        let ended = past.last().map(|epoch| epoch.verifier.clone());
        let (signer, next, unfinished) = match next {
            _ if ended.as_ref() != Some(signer.verifier()) => (signer, next, false),
            Some(next) => (next, None, true),
            None => return Err(mismatch(dir, "the key that follows private/key is missing")),
        };
        let of = |verifier: &Verifier| format!("{}\n", verifier.vkey()).into_bytes();
        let own = of(signer.verifier());
        let unfinished = match vkey {
            None if past.is_empty() => {
                write_line(disk, &vkey_path, &signer.verifier().vkey())
                    .map_err(io_at(&vkey_path))?;
                false
            }
            Some(bytes) if bytes == own => unfinished,
            Some(bytes) if ended.is_some_and(|ended| bytes == of(&ended)) => true,
            _ => return Err(mismatch(dir, "vkey is not the public half of private/key")),
        };
        let public = Arc::new(Mutex::new(signer.verifier().clone()));
        let (disk, dir) = (Arc::clone(disk), dir.to_owned());
        let prepared = Prepared::default();
        Ok(Self { disk, dir, signer, past, next, prepared, public, unfinished })
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The public half of the key that signs now, as it changes.
    pub(crate) fn public(&self) -> Arc<Mutex<Verifier>> {
        Arc::clone(&self.public)
    }

    /// Where [`prepare_next`] puts the next key.
    pub(crate) fn prepared(&self) -> Prepared {
        Arc::clone(&self.prepared)
    }

    /// Where an epoch has only just ended, `entry`, its last record, must announce the key that was
    /// found to follow: a closing note is any head of the old key, and a key any file.
    pub(crate) fn check_follower(&self, entry: Option<&[u8]>) -> Result<(), OpenError> {
        let ended = self.past.last().filter(|_| self.unfinished);
        let Some(ended) = ended else { return Ok(()) };
        let (old, new) = (ended.verifier.vkey(), self.signer.verifier().vkey());
        if entry.and_then(announcement) == Some((old, new)) {
            return Ok(());
        }
        let what = "an epoch was ended, and no record there announces the key that follows";
        Err(mismatch(&self.dir, what))
    }

    fn epochs(&self) -> Epochs {
        Epochs { past: self.past.clone(), current: self.signer.verifier().clone() }
    }

    /// Records that closing notes of past keys cover.
    pub(crate) fn closed(&self) -> u64 {
        self.past.last().map_or(0, |epoch| epoch.closing.size)
    }

    /// The signed head; a new log gets one over nothing, so that a missing one always means harm.
    pub(crate) fn head(&self) -> Result<Checkpoint, OpenError> {
        let path = self.dir.join("checkpoint");
        let note = disk::read(&*self.disk, &path, NOTE_BYTES_MAX).map_err(io_at(&path))?;
        let segments = segments_on(&*self.disk, &self.dir).map_err(io_at(&path))?;
        match note {
            Some(note) => self.epochs().open(&note).map_err(note_at(&path)),
            None if segments.is_empty() && self.past.is_empty() => {
                let root = merkle::empty_root();
                write_checkpoint(&self.disk, &self.dir, &self.signer.sign(0, root))
                    .map_err(io_at(&path))?;
                Ok(Checkpoint { origin: self.signer.verifier().name().to_owned(), size: 0, root })
            }
            None => Err(mismatch(&self.dir, "records are there, but no checkpoint")),
        }
    }

    /// The list of sealed segments; an empty one if there is none.
    pub(crate) fn manifest(&self) -> Result<Manifest, OpenError> {
        let path = self.dir.join(MANIFEST);
        let note = disk::read(&*self.disk, &path, MANIFEST_BYTES_MAX).map_err(io_at(&path))?;
        let Some(note) = note else { return Ok(Manifest::default()) };
        let (text, most) = self.epochs().open_text(&note).map_err(note_at(&path))?;
        Manifest::parse(text, self.signer.verifier().name())
            .filter(|manifest| manifest.next() <= most)
            .ok_or_else(|| mismatch(&self.dir, "the manifest is no list of its segments"))
    }

    /// Ends the epoch of the key that signs: the last of the first `size` records announces `new`.
    pub(crate) fn close_epoch(&mut self, size: u64, root: Hash, new: &str) -> io::Result<()> {
        if size <= self.closed() {
            return Ok(());
        }
        let next = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(next) = next.filter(|next| next.verifier().vkey() == new) else {
            let why = format!("record {} announces a key that was not made here", size - 1);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        };
        let folder = self.dir.join(EPOCHS);
        self.disk.create_folder(&folder)?;
        self.disk.sync(&self.dir)?;
        let path = epoch_path(&self.dir, self.past.len());
        let verifier = self.signer.verifier().clone();
        let text = epoch_text(&verifier, &self.signer.sign(size, root));
        let staged = self.dir.join("work/epoch.new");
        disk::replace(&*self.disk, &staged, &path, text.as_bytes(), PUBLIC)?;
        let closing = Checkpoint { origin: verifier.name().to_owned(), size, root };
        self.past.push(Epoch { path, verifier, closing });
        (self.signer, self.next, self.unfinished) = (next, None, true);
        self.finish()
    }

    /// Brings what an ended epoch left undone to its end, and drops a key that was never announced.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let (key, next) = (self.dir.join("private/key"), self.dir.join("private/key.next"));
        if std::mem::take(&mut self.unfinished) {
            // At an open the closing note may stand in memory alone, left by a sync that failed.
            for path in self
                .past
                .last()
                .map(|e| e.path.clone())
                .into_iter()
                .chain([self.dir.join(EPOCHS), self.dir.clone()])
            {
                self.disk.sync(&path)?;
            }
            if disk::read(&*self.disk, &next, NOTE_BYTES_MAX)?.is_some() {
                self.disk.rename(&next, &key)?;
                self.disk.sync(&self.dir.join("private"))?;
            }
            write_line(&self.disk, &self.dir.join("vkey"), &self.signer.verifier().vkey())?;
        } else if self.next.take().is_some() {
            self.disk.remove(&next)?;
            self.disk.sync(&self.dir.join("private"))?;
        }
        *self.public.lock().unwrap_or_else(PoisonError::into_inner) =
            self.signer.verifier().clone();
        Ok(())
    }
}

/// Makes the first key of a log, and with it the log's name.
fn first_key(disk: &SharedDisk, path: &Path) -> Result<Signer, OpenError> {
    let mut id = [0; 4];
    rustix::rand::getrandom(&mut id[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| io_at(path)(e.into()))?;
    let name = format!("nanoclaw/{:08x}", u32::from_be_bytes(id));
    let seed = new_seed().map_err(io_at(path))?;
    let made = Signer::from_seed(&name, seed).map_err(note_at(path))?;
    write_line(disk, path, &made.skey()).map_err(io_at(path))?;
    Ok(made)
}
