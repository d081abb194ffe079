//! The log: write-ahead file, tree, tiles and signed head as one thing that can only grow.
//!
//! ```text
//! submit ─► queue ─► committer: write, one fdatasync ─► done(index)
//!            ▲ batch = whatever queued            └─► tiler: reads it back ─► tiles, checkpoint
//!              while the last sync ran; no timer
//! ```
//!
//! 1. `Durable` is answered after an `fdatasync` that covers it and everything before it; `Ordered`
//!    after the write. Indices are dense and in order of submission.
//! 2. After any failed write or sync the log is failed for good: every later submit is refused. The
//!    next open recovers from disk.
//! 3. Opening refuses a log that is shorter than, or differs from, its signed head, and changes
//!    nothing in it; no index is ever given twice under one head.
//! 4. One writer: the folder is locked while the log is open.

use crate::commit::{self, Shared, Waiter};
use crate::disk::{Held, Real, SharedDisk, open_file};
use crate::entry::{Entry, decode};
use crate::keys::{Keys, Prepared, prepare_next};
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Verifier};
use crate::opening::{CHECKED_BYTES, Checked, check};
use crate::prune;
use crate::replay::settle;
use crate::tail::Tail;
use crate::tiler::{self, Inbox, SignAfter};
use crate::tilestore::{Mode, Tiles};
use crate::wal::{self, SEGMENT_BYTES, Wal, WalError};
use model::{Done, Durability, RecordError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Someone else is writing it.
    #[error(
        "the audit log {} is being written by another process; stop that one, or use another home",
        dir.display()
    )]
    Locked {
        /// The log's folder.
        dir: PathBuf,
    },
    /// The system refused.
    #[error(
        "cannot open the audit log: {}: {error}; nothing is recorded until it can be: see whether \
         the disk is full, failing or read-only, and whose the file is",
        path.display()
    )]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// The write-ahead log is damaged.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Key, verifier key or checkpoint are damaged.
    #[error("{}: {error}", path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: NoteError,
    },
    /// Files that belong together do not fit.
    #[error(
        "the audit log {} was tampered with or restored in part: {what}. Nothing was changed; \
         run `audit verify`, keep the folder as evidence, and restore it whole or start with an \
         empty one",
        dir.display()
    )]
    Mismatch {
        /// The log's folder.
        dir: PathBuf,
        /// What does not fit.
        what: String,
    },
}

/// How a log behaves; the default is right outside tests.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Length at which a segment is followed by a new one, bytes.
    pub segment_bytes: u64,
    /// Bytes at the end of the log that opening reads, at the least.
    pub checked_bytes: u64,
    /// When to sign.
    pub sign_after: SignAfter,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            checked_bytes: CHECKED_BYTES,
            sign_after: SignAfter::default(),
        }
    }
}

/// What was found on opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Records in the log.
    pub records: u64,
    /// Bytes of a torn write, or of a key's announcement that no head covers, that were cut off
    /// and kept in `evidence/`.
    pub torn_bytes: u64,
    /// Whether derived tiles had to be written again.
    pub tiles_repaired: bool,
    /// Time of the last record, ms since 1970; 0 when there is none that says.
    pub last_time_ms: u64,
}

/// An open log.
pub struct Log {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    recovered: Recovered,
    public: Arc<Mutex<Verifier>>,
    prepared: Prepared,
    disk: SharedDisk,
    dir: PathBuf,
}

impl Log {
    /// Opens the log in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is changed then, but for folders and a key that were missing.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, Options::default())
    }

    /// As [`Log::open`], with other limits.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_with(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::open_on(&(Arc::new(Real) as SharedDisk), dir, options)
    }

    /// As [`Log::open_with`], on another disk than the operating system's.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_on(disk: &SharedDisk, dir: &Path, options: Options) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        folders(disk, dir)?;
        let held = lock(disk, dir)?;
        let mut keys = Keys::open(disk, dir)?;
        let (head, mut manifest) = (keys.head()?, keys.manifest()?);
        let looked = || check(disk, dir, &keys, &head, &manifest, options.checked_bytes);
        let (mut found, mut torn_bytes) = (looked()?, 0);
        keys.check_follower(found.ended.as_deref())?;
        if let Some(loose) = found.unfounded(&**disk, dir)? {
            wal::cut(&**disk, dir, &loose).map_err(at(&loose.segment.path))?;
            (found, torn_bytes) = (looked()?, loose.bytes);
        }
        let torn = found.replayed.torn.take();
        torn_bytes += torn.as_ref().map_or(0, |t| t.bytes);
        let unsigned = found.replayed.next != head.size || torn.is_some();
        if let Some(torn) = torn {
            wal::cut(&**disk, dir, &torn).map_err(at(&torn.segment.path))?;
        }
        settle(&**disk, dir, &found.replayed).map_err(at(&dir.join("wal")))?;
        let tiles_repaired = *found.tiles.mode() == Mode::Check { differs: true };
        if tiles_repaired || unsigned {
            // What a former process left behind in a hurry is not believed, save what was listed.
            let durable = if unsigned { manifest.next() } else { u64::MAX };
            found.repair(disk, dir, &head, durable)?;
        }
        keys.finish().map_err(at(&dir.join("private")))?;
        prune::finish(&**disk, dir, keys.signer(), &mut manifest, &found.pruned)
            .map_err(at(&dir.join("wal")))?;
        let last_time_ms = decode(&found.last_entry).map_or(0, |record| record.time_ms);
        let Checked { mut tiles, replayed, .. } = found;
        tiles.start_writing(held, manifest, head.size).map_err(at(&dir.join("tile")))?;
        let wal = Wal::resume(disk, dir, &replayed, options.segment_bytes);
        let wal = wal.map_err(at(&dir.join("wal")))?;
        let tail = Tail::new(disk, dir, &replayed).map_err(at(&dir.join("wal")))?;
        let recovered =
            Recovered { records: replayed.next, torn_bytes, tiles_repaired, last_time_ms };
        let (disk, place, public) = (Arc::clone(disk), dir.to_owned(), keys.public());
        let prepared = keys.prepared();
        let (shared, threads) =
            start(wal, tail, tiles, keys, head.size, options.sign_after).map_err(at(dir))?;
        Ok(Self { shared, threads, recovered, public, prepared, disk, dir: place })
    }

    /// What was found on opening.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The public key that signs now, whose name is the log's origin.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.public.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the next key and returns the old and the new one as vkeys. It signs as soon as a
    /// [`model::Body::KeyAnnounced`] that names both is in this log, while it is open; should that
    /// never be, it is forgotten.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn prepare_key(&self) -> Result<(String, String), OpenError> {
        let old = self.verifier();
        let new = prepare_next(&self.disk, &self.dir, old.name(), &self.prepared)?;
        Ok((old.vkey(), new))
    }

    /// Queues an entry. Blocks while the queue is full; `done` is called once, on the committer's
    /// thread (so it must be quick), or here if the log has failed.
    pub fn submit(&self, entry: &Entry, durability: Durability, done: Done) {
        self.shared.submit(entry, durability, Waiter::Call(done));
    }

    /// As [`Log::submit`], for those who take answers by the batch.
    pub(crate) fn submit_for(&self, entry: &Entry, durability: Durability, waiter: Waiter) {
        self.shared.submit(entry, durability, waiter);
    }

    /// Batches synced since the log was opened: what group commit made of the records.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.syncs()
    }

    /// Waits until everything submitted before is durable and signed, and returns that head.
    ///
    /// # Errors
    /// [`RecordError::Disk`] when the log has failed.
    pub fn sign(&self) -> Result<Checkpoint, RecordError> {
        let (tell, told) = mpsc::channel();
        self.shared.sign(tell)?;
        told.recv().map_err(|_| self.shared.failure())
    }

    /// Whether the log has failed; it then refuses every submit.
    #[must_use]
    pub fn failed(&self) -> Option<RecordError> {
        self.shared.failed()
    }

    /// Writes, syncs and signs what is left, and closes.
    ///
    /// # Errors [`RecordError::Disk`] when the log has failed; what was acknowledged is on disk all
    /// the same.
    pub fn close(mut self) -> Result<(), RecordError> {
        self.stop();
        self.shared.failed().map_or(Ok(()), Err)
    }

    fn stop(&mut self) {
        self.shared.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared.fail("a thread of the log broke off".to_owned());
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start(
    wal: Wal,
    tail: Tail,
    tiles: Tiles,
    mut keys: Keys,
    signed: u64,
    after: SignAfter,
) -> io::Result<(Arc<Shared>, Vec<JoinHandle<()>>)> {
    let shared = Arc::new(Shared::default());
    let inbox = Arc::new(Inbox::new(wal.next()));
    let (for_tiler, news) = (Arc::clone(&shared), Arc::clone(&inbox));
    let tiler = thread::Builder::new().name("audit-tiles".into()).spawn(move || {
        let _leaving = news.refuse_when_done();
        // Whoever waits for a head hears of a failure once the log has failed, not before.
        let mut asked = Vec::new();
        if let Err(e) = tiler::run(tiles, tail, &mut keys, signed, after, &news, &mut asked) {
            for_tiler.fail(e.to_string());
        }
    })?;
    let for_committer = Arc::clone(&shared);
    let committer = thread::Builder::new().name("audit-commit".into()).spawn(move || {
        let _leaving = inbox.close_when_done();
        commit::run(wal, &for_committer, &inbox);
    })?;
    Ok((shared, vec![committer, tiler]))
}

fn lock(disk: &SharedDisk, dir: &Path) -> Result<Held, OpenError> {
    let path = dir.join("work/lock");
    match disk.lock(&path) {
        Ok(Some(held)) => Ok(held),
        Ok(None) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(error) => Err(OpenError::Io { path, error }),
    }
}

/// Makes the folders of a log, durable as names.
fn folders(disk: &SharedDisk, dir: &Path) -> Result<(), OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io { path, error }
    };
    disk.create_folder(dir).map_err(at(dir))?;
    for folder in ["private", "work", "wal", "tile"].map(|name| dir.join(name)) {
        disk.create_folder(&folder).map_err(at(&folder))?;
    }
    // Without these a power cut could take back the folder that a synced record lies in, or the
    // key's name, which an open that failed in its first steps left unsynced.
    for folder in [dir, &dir.join("private"), &dir.join("work")] {
        disk.sync(folder).map_err(at(folder))?;
    }
    let above = dir.parent().map(|p| if p == Path::new("") { Path::new(".") } else { p });
    let Some(above) = above else { return Ok(()) };
    match disk.sync(above) {
        // Behind walls it is out of reach; whoever put them up has synced it (`recorder::prepare`).
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result.map_err(at(above)),
    }
}

/// Reads a small file whole; `None` when there is none.
pub(crate) fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match open_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?.take(NOTE_BYTES_MAX).read_to_end(&mut bytes)?,
    };
    Ok(Some(bytes))
}

/// The one line of a key file.
pub(crate) fn line(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok()?.strip_suffix('\n').map(str::to_owned)
}
