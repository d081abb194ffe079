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
use crate::entry::Entry;
use crate::merkle;
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Signer, Verifier};
use crate::tail::Tail;
use crate::tiler::{self, Inbox, Mode, SignAfter, Tiles};
use crate::wal::{self, SEGMENT_BYTES, Wal, WalError};
use model::{Done, Durability, RecordError};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
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
    #[error("cannot open the audit log: {}: {error}", path.display())]
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
    /// When to sign.
    pub sign_after: SignAfter,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, sign_after: SignAfter::default() }
    }
}

/// What was found on opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Records in the log.
    pub records: u64,
    /// Bytes of a torn write that were cut off and kept in `evidence/`.
    pub torn_bytes: u64,
    /// Whether derived tiles had to be written again.
    pub tiles_repaired: bool,
}

/// An open log.
pub struct Log {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    recovered: Recovered,
    verifier: Verifier,
    _lock: File,
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
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        for folder in [dir.to_owned(), dir.join("private"), dir.join("wal"), dir.join("tile")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        let lock = lock(dir)?;
        let signer = signer(dir)?;
        let head = head(dir, &signer)?;
        let (mut tiles, mut replayed) = check(dir, &head)?;
        let torn_bytes = replayed.torn.as_ref().map_or(0, |t| t.bytes);
        if let Some(torn) = replayed.torn.take() {
            wal::cut(dir, &torn).map_err(at(&torn.segment.path))?;
        }
        let tiles_repaired = *tiles.mode() == Mode::Check { differs: true };
        if tiles_repaired {
            tiles = repair(dir)?;
        }
        tiles.start_writing().map_err(at(&dir.join("tile")))?;
        let wal =
            Wal::resume(dir, &replayed, options.segment_bytes).map_err(at(&dir.join("wal")))?;
        let tail = Tail::new(dir, &replayed).map_err(at(&dir.join("wal")))?;
        let recovered = Recovered { records: replayed.next, torn_bytes, tiles_repaired };
        let verifier = signer.verifier().clone();
        let (shared, threads) =
            start(wal, tail, tiles, signer, head.size, options.sign_after).map_err(at(dir))?;
        Ok(Self { shared, threads, recovered, verifier, _lock: lock })
    }

    /// What was found on opening.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The public key, whose name is the log's origin.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
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
    signer: Signer,
    signed: u64,
    after: SignAfter,
) -> io::Result<(Arc<Shared>, Vec<JoinHandle<()>>)> {
    let shared = Arc::new(Shared::default());
    let inbox = Arc::new(Inbox::new(wal.next()));
    let (for_tiler, news) = (Arc::clone(&shared), Arc::clone(&inbox));
    let tiler = thread::Builder::new().name("audit-tiles".into()).spawn(move || {
        let _leaving = news.refuse_when_done();
        if let Err(e) = tiler::run(tiles, tail, &signer, signed, after, &news) {
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

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("private/lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|error| OpenError::Io { path: path.clone(), error })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(e) => Err(OpenError::Io { path, error: e.into() }),
    }
}

/// Replays the write-ahead log against the signed head and the tiles, changing nothing.
fn check(dir: &Path, head: &Checkpoint) -> Result<(Tiles, wal::Replayed), OpenError> {
    let mut tiles = Tiles::new(dir, Mode::Check { differs: false });
    let mut root_there = (head.size == 0).then(merkle::empty_root);
    let mut failed = None;
    let replayed = wal::replay(dir, |frame| {
        if failed.is_none() {
            failed = tiles.push(frame.bytes).err();
            if tiles.size() == head.size {
                root_there = Some(tiles.root());
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(OpenError::Io { path: dir.join("tile"), error });
    }
    let mismatch = |what| OpenError::Mismatch { dir: dir.to_owned(), what };
    match root_there {
        None => Err(mismatch(format!(
            "the signed head covers {} records, but only {} are there",
            head.size, replayed.next
        ))),
        Some(root) if root != head.root => {
            Err(mismatch(format!("the first {} records are not those that were signed", head.size)))
        }
        Some(_) => Ok((tiles, replayed)),
    }
}

fn repair(dir: &Path) -> Result<Tiles, OpenError> {
    let mut tiles = Tiles::new(dir, Mode::Repair);
    let mut failed = None;
    wal::replay(dir, |frame| {
        if failed.is_none() {
            failed = tiles.push(frame.bytes).err();
        }
    })?;
    match failed {
        Some(error) => Err(OpenError::Io { path: dir.join("tile"), error }),
        None => Ok(tiles),
    }
}

/// Reads a small file whole; `None` when there is none.
pub(crate) fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?.take(NOTE_BYTES_MAX).read_to_end(&mut bytes)?,
    };
    Ok(Some(bytes))
}

/// The one line of a key file.
pub(crate) fn line(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok()?.strip_suffix('\n').map(str::to_owned)
}

fn write_new(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = dir.join(name);
    let new = path.with_extension("new");
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    let mut file = options.open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(path.parent().unwrap_or(dir))?.sync_all()
}

/// The signing key, made on first open; refuses to make one for a log that exists.
fn signer(dir: &Path) -> Result<Signer, OpenError> {
    let (key_path, vkey_path) = (dir.join("private/key"), dir.join("vkey"));
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io { path, error }
    };
    let mismatch = |what: &str| OpenError::Mismatch { dir: dir.to_owned(), what: what.to_owned() };
    let vkey = read_small(&vkey_path).map_err(io_at(&vkey_path))?;
    let signer = match read_small(&key_path).map_err(io_at(&key_path))? {
        Some(bytes) => {
            let key = line(bytes).unwrap_or_default();
            Signer::parse(&key).map_err(|error| OpenError::Note { path: key_path, error })?
        }
        None if vkey.is_some() || !wal::segments(dir).map_err(io_at(dir))?.is_empty() => {
            return Err(mismatch("the signing key private/key is missing"));
        }
        None => {
            let mut random = [0; 36];
            rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
                .map_err(|e| io_at(&key_path)(e.into()))?;
            let (id, seed) = random.split_at(4);
            let name = format!("nanoclaw/{:02x}{:02x}{:02x}{:02x}", id[0], id[1], id[2], id[3]);
            let seed = <[u8; 32]>::try_from(seed).unwrap_or_default();
            let made = Signer::from_seed(&name, seed);
            let made = made.map_err(|error| OpenError::Note { path: key_path.clone(), error })?;
            write_new(dir, "private/key", &format!("{}\n", made.skey()))
                .map_err(io_at(&key_path))?;
            made
        }
    };
    let text = signer.verifier().vkey();
    match vkey {
        None => write_new(dir, "vkey", &format!("{text}\n")).map_err(io_at(&vkey_path))?,
        Some(bytes) if bytes == format!("{text}\n").as_bytes() => {}
        Some(_) => return Err(mismatch("vkey is not the public half of private/key")),
    }
    Ok(signer)
}

/// The signed head; a new log gets one over nothing, so that a missing one always means harm.
fn head(dir: &Path, signer: &Signer) -> Result<Checkpoint, OpenError> {
    let path = dir.join("checkpoint");
    let io_at = |error| OpenError::Io { path: path.clone(), error };
    match read_small(&path).map_err(io_at)? {
        Some(note) => {
            signer.verifier().open(&note).map_err(|error| OpenError::Note { path, error })
        }
        None if wal::segments(dir).map_err(io_at)?.is_empty() => {
            let root = merkle::empty_root();
            tiler::write_checkpoint(dir, &signer.sign(0, root)).map_err(io_at)?;
            Ok(Checkpoint { origin: signer.verifier().name().to_owned(), size: 0, root })
        }
        None => Err(OpenError::Mismatch {
            dir: dir.to_owned(),
            what: "records are there, but no checkpoint".to_owned(),
        }),
    }
}
