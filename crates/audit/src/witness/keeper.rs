//! A witness: what it knows of each log, and when it signs (C2SP tlog-witness v1.0.0).
//!
//! ```text
//! body ─► parse ─► origin known? ─► signed? ─► old size right? ─► continues? ─► on disk ─► signed
//!         400       404            403         400, 409           409, 422      500
//! ```
//!
//! 1. A head is on disk, synced, before its cosignature leaves; of two requests at once one waits.
//! 2. For each log it remembers the largest head it cosigned. What it cannot read of that it does
//!    not replace: it refuses that log until a person has looked.
//! 3. A log may have had several keys, named in their order: once it has signed a head under one,
//!    none before that one counts.
//! 4. What contradicts a remembered head is kept, both sides of it, as evidence. How much is kept
//!    is bounded by kind, so that what anyone can send does not crowd out what only the log can.

use super::replace;
use super::request::{AddCheckpoint, REQUEST_BYTES_MAX};
use crate::cosign::WitnessSigner;
use crate::finding::Finding;
use crate::http::{Answer, Content, Request, Service};
use crate::merkle::{empty_root, sha256, verify_consistency};
use crate::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, Verifier, split_note};
use crate::source::read_file;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Two signed heads of one size: nobody but the log can make them.
const FORKS_KEPT: usize = 1_000;

/// Signed heads with a proof that does not fit, and older heads than the known one: whoever has
/// seen the log's heads can send them.
const OTHERS_KEPT: usize = 200;

/// What a witness answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// 200: the signature line.
    Cosigned(String),
    /// 400: no request, or sizes that contradict themselves.
    Bad(&'static str),
    /// 404: it is no witness of that log.
    UnknownLog,
    /// 403: not signed by the log.
    NotSigned,
    /// 409: the known head has another size, this one.
    Known(u64),
    /// 409: the known head has that size and another root.
    Fork,
    /// 422: the proof does not lead from the known head to this one.
    Inconsistent,
    /// 500: its own files; nothing was signed.
    Broken(String),
}

/// Why there is no witness.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The system refused.
    #[error("the witness' folder: {}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// Another witness uses the folder.
    #[error("another witness is running on {}; stop that one, or name another folder", .0.display())]
    Running(PathBuf),
    /// What it knows of a log is signed by a key that was not named.
    #[error(
        "{}: what this witness knows of {origin} is signed by a key that was not named, or was \
         changed. If the log's key was replaced, name the keys in their order, the old one first",
        path.display()
    )]
    OtherKey {
        /// Name of the log.
        origin: String,
        /// What it knows.
        path: PathBuf,
    },
    /// What it knows of a log cannot be believed.
    #[error(
        "{0}: what this witness knows of a log was changed; nothing was signed. Put the folder \
         back from a copy that is not older than its last signature"
    )]
    Changed(Finding),
}

/// A witness and its folder.
pub struct Keeper {
    dir: PathBuf,
    signer: WitnessSigner,
    logs: BTreeMap<String, Vec<Verifier>>,
    now: fn() -> u64,
    one: Mutex<()>,
    _lock: File,
}

/// What kind of contradiction is kept.
enum Evidence {
    Fork,
    Inconsistent,
    Older,
}

impl Keeper {
    /// A witness of these logs, each known by its key, or by its keys from the oldest on, whose
    /// memory is in `dir`; `now` is the time in seconds since 1970.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn open(
        dir: &Path,
        signer: WitnessSigner,
        logs: Vec<Verifier>,
        now: fn() -> u64,
    ) -> Result<Self, KeeperError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| KeeperError::Io { path, error }
        };
        for folder in [dir.to_owned(), dir.join("logs"), dir.join("evidence")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(at(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(KeeperError::Running(dir.to_owned()));
            }
            other => other.map_err(|e| at(&path)(e.into()))?,
        }
        let mut all: BTreeMap<String, Vec<Verifier>> = BTreeMap::new();
        for log in logs {
            all.entry(log.name().to_owned()).or_default().push(log);
        }
        let (dir, one) = (dir.to_owned(), Mutex::new(()));
        let keeper = Self { dir, signer, logs: all, now, one, _lock: lock };
        for origin in keeper.logs.keys() {
            match keeper.known(origin) {
                Err(found) if keeper.other_key(origin) => {
                    let (origin, path) = (origin.clone(), found.file);
                    return Err(KeeperError::OtherKey { origin, path });
                }
                known => known.map_err(KeeperError::Changed)?,
            };
        }
        Ok(keeper)
    }

    /// The public key of this witness.
    #[must_use]
    pub fn key(&self) -> &crate::cosign::WitnessKey {
        self.signer.key()
    }

    /// The largest head of that log that was cosigned, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read or is not signed by the log.
    pub fn known(&self, origin: &str) -> Result<Option<(Checkpoint, Vec<u8>)>, Finding> {
        let path = self.state(origin);
        let Some(note) = read_file(&path, NOTE_BYTES_MAX)? else { return Ok(None) };
        let opened = self
            .opened(origin, &note)
            .map_err(|e| crate::finding::finding(&path, e.offset(), e.to_string()))?;
        Ok(opened.map(|head| (head, note)))
    }

    fn state(&self, origin: &str) -> PathBuf {
        self.dir.join("logs").join(hex(&sha256(origin.as_bytes())))
    }

    /// Whether the known head has a line of that log, but of none of the keys that were named.
    fn other_key(&self, origin: &str) -> bool {
        let note = read_file(&self.state(origin), NOTE_BYTES_MAX).ok().flatten();
        let note = note.unwrap_or_default();
        let Ok((_, lines)) = split_note(&note) else { return false };
        let named = |id: &[u8]| self.logs.get(origin).into_iter().flatten().any(|k| k.id() == id);
        let mut ids = lines.iter().filter(|line| line.name == origin).map(|line| &line.blob[..4]);
        let first = ids.next();
        first.is_some_and(|id| !named(id)) && !ids.any(named)
    }

    /// Which of the log's keys signed that.
    fn key_number(&self, origin: &str, note: &[u8]) -> Option<usize> {
        self.logs.get(origin)?.iter().position(|key| key.open_text(note).is_ok())
    }

    /// The head, if one of the log's keys signed it; `None` for an origin that is not known.
    fn opened(&self, origin: &str, note: &[u8]) -> Result<Option<Checkpoint>, NoteError> {
        let mut result = Ok(None);
        for key in self.logs.get(origin).into_iter().flatten() {
            result = key.open(note).map(Some);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Judges a request and, if it is in order, remembers the head and signs it.
    #[must_use]
    pub fn add_checkpoint(&self, body: &[u8]) -> Verdict {
        let request = match AddCheckpoint::parse(body) {
            Ok(request) => request,
            Err(why) => return Verdict::Bad(why),
        };
        let note = request.note.as_bytes();
        let text = match split_note(note) {
            Ok((text, _)) => text,
            Err(_) => return Verdict::Bad("the checkpoint is no signed note"),
        };
        let origin = text.split('\n').next().unwrap_or_default();
        if !self.logs.contains_key(origin) {
            return Verdict::UnknownLog;
        }
        let new = match self.opened(origin, note) {
            Ok(Some(new)) => new,
            Err(NoteError::Malformed { .. }) => return Verdict::Bad("the checkpoint is malformed"),
            _ => return Verdict::NotSigned,
        };
        if request.old > new.size {
            return Verdict::Bad("the old size is larger than the checkpoint's");
        }
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        self.judge(&request, &new, text)
    }

    fn judge(&self, request: &AddCheckpoint, new: &Checkpoint, text: &str) -> Verdict {
        let known = match self.known(&new.origin) {
            Ok(known) => known,
            Err(e) => return Verdict::Broken(e.to_string()),
        };
        if let Some((_, held)) = &known {
            let by = |note| self.key_number(&new.origin, note);
            if by(request.note.as_bytes()) < by(held) {
                return Verdict::NotSigned;
            }
        }
        let (size, held) = known.as_ref().map_or((0, &[][..]), |(k, note)| (k.size, &note[..]));
        let same = known.as_ref().filter(|(known, _)| known.size == new.size);
        let forked = same.is_some_and(|(known, _)| known.root != new.root);
        if forked {
            self.keep(Evidence::Fork, request, held);
        }
        if request.old != size {
            if new.size < size {
                self.keep(Evidence::Older, request, held);
            }
            return Verdict::Known(size);
        }
        if forked {
            return Verdict::Fork;
        }
        let continues = match &known {
            None => request.proof.is_empty() && (new.size > 0 || new.root == empty_root()),
            // Every log begins with nothing, so nothing is to be proven from there.
            Some((known, _)) if known.size == 0 => request.proof.is_empty(),
            Some((known, _)) => {
                let (old_root, proof) = (&known.root, &request.proof);
                verify_consistency(known.size, old_root, new.size, &new.root, proof)
            }
        };
        if !continues {
            self.keep(Evidence::Inconsistent, request, held);
            return Verdict::Inconsistent;
        }
        if same.is_none()
            && let Err(e) = replace(&self.state(&new.origin), request.note.as_bytes())
        {
            return Verdict::Broken(e.to_string());
        }
        Verdict::Cosigned(self.signer.cosign(text, (self.now)()))
    }

    /// Keeps a request and the head it contradicts. That it cannot be kept changes no verdict.
    fn keep(&self, kind: Evidence, request: &AddCheckpoint, held: &[u8]) {
        let (kind, most) = match kind {
            Evidence::Fork => ("fork", FORKS_KEPT),
            Evidence::Inconsistent => ("inconsistent", OTHERS_KEPT),
            Evidence::Older => ("older", OTHERS_KEPT),
        };
        let folder = self.dir.join("evidence").join(kind);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        let kept = fs::read_dir(&folder).map_or(usize::MAX, Iterator::count);
        if made.is_err() || kept >= most {
            return;
        }
        // The head decides the name: a repetition is no new evidence.
        let name = &hex(&sha256(request.note.as_bytes()))[..32];
        let path = folder.join(name);
        if path.exists() {
            return;
        }
        let mut bytes = b"known to this witness:\n\n".to_vec();
        bytes.extend(held);
        bytes.extend(b"\nrequested:\n\n");
        bytes.extend(request.text().as_bytes());
        // Nobody waits for it, and a full disk is told by the next head that cannot be remembered.
        let _ = replace(&path, &bytes);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Service for Keeper {
    fn body_max(&self) -> u64 {
        REQUEST_BYTES_MAX
    }

    fn answer(&self, request: &Request, body: &[u8]) -> Answer {
        if request.path != "/add-checkpoint" {
            return Answer::text(404, "there is /add-checkpoint here");
        }
        if request.method != "POST" {
            return Answer::text(405, "add-checkpoint is a POST");
        }
        match self.add_checkpoint(body) {
            Verdict::Cosigned(line) => {
                let content = Content::Bytes(line.into_bytes());
                Answer { content, ..Answer::text(200, "") }
            }
            Verdict::Bad(why) => Answer::text(400, why),
            Verdict::UnknownLog => Answer::text(404, "this is no witness of that log"),
            Verdict::NotSigned => Answer::text(403, "the checkpoint is not signed by the log"),
            Verdict::Known(size) => {
                Answer { kind: "text/x.tlog.size", ..Answer::text(409, &size.to_string()) }
            }
            Verdict::Fork => Answer::text(409, "a head of that size with another root is known"),
            Verdict::Inconsistent => Answer::text(422, "the proof does not lead here"),
            Verdict::Broken(_) => Answer::text(500, "the witness cannot remember; nothing signed"),
        }
    }
}
