//! The log's side: each new head is put before the witnesses, and their words are kept beside it.
//!
//! ```text
//! checkpoint, tiles ─► a thread a witness: POST ─► 409? proof from there, once more ─► line
//!     └─► each as it comes ─► enough? ─► witness/cosigned    not enough ─► said, and on record
//! ```
//!
//! 1. Only lines that verify under the witness' known key count.
//! 2. A witness that knows another history is believed enough to keep its answer as evidence.
//! 3. Nothing here holds up the log: it has no network, and does not wait for witnesses.
//! 4. No witness holds up another: what one has said is kept as soon as it says it, and who is
//!    late is as good as not there.

use super::request::AddCheckpoint;
use super::{COSIGNED, FOLDER, replace};
use crate::chain::Chain;
use crate::cosign::{Quorum, WITNESSES_MAX, WitnessKey};
use crate::finding::{Finding, finding, io_finding};
use crate::http::{Dial, Url, post};
use crate::merkle::consistency_proof;
use crate::note::{Checkpoint, NoteError, split_note};
use crate::proof::one_spelling;
use crate::source::{Folder, Source, SourceNodes, checkpoint, read_file};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longest answer of a witness read, bytes: some signature lines.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// Longest piece of an answer that is shown, characters.
const SHOWN_CHARS_MAX: usize = 120;

/// Largest file of known sizes, bytes: a line a witness.
const SIZES_BYTES_MAX: u64 = 16 << 10;

/// A witness to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub url: Url,
    /// Its key.
    pub key: WitnessKey,
}

/// Who is asked, and how many must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    targets: Vec<Target>,
    quorum: Quorum,
}

impl Policy {
    /// `needed` of `targets`.
    ///
    /// # Errors
    /// As [`Quorum::new`].
    pub fn new(targets: Vec<Target>, needed: usize) -> Result<Self, NoteError> {
        let keys = targets.iter().map(|t| t.key.clone()).take(WITNESSES_MAX + 1).collect();
        Ok(Self { quorum: Quorum::new(keys, needed)?, targets })
    }

    /// The keys, and how many are needed.
    #[must_use]
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }
}

/// What came of asking one witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its signature line, and its time in seconds since 1970.
    Cosigned(String, u64),
    /// It knows another history of this log: longer than this one, or one that this one does not
    /// continue.
    Contradicts(String),
    /// It is there and does not sign: another key, another log, an error of its own.
    Refused(String),
    /// It cannot be reached.
    Unreachable(String),
}

/// What came of asking all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Records under the head.
    pub size: u64,
    /// How many witnesses were needed.
    pub needed: usize,
    /// Names of the witnesses and what each said, in their order.
    pub said: Vec<(String, Outcome)>,
}

impl Round {
    /// Whether enough have cosigned.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.cosigned().len() >= self.needed
    }

    /// Names of those that cosigned.
    #[must_use]
    pub fn cosigned(&self) -> Vec<&str> {
        let signed = |said: &Outcome| matches!(said, Outcome::Cosigned(..));
        self.said.iter().filter(|(_, said)| signed(said)).map(|(name, _)| name.as_str()).collect()
    }

    /// The others, and why not.
    #[must_use]
    pub fn failed(&self) -> Vec<(&str, &str)> {
        self.said
            .iter()
            .filter_map(|(name, said)| match said {
                Outcome::Cosigned(..) => None,
                Outcome::Contradicts(why) | Outcome::Refused(why) | Outcome::Unreachable(why) => {
                    Some((name.as_str(), why.as_str()))
                }
            })
            .collect()
    }
}

/// Puts the newest head of the log in `dir` before all witnesses at once, and keeps what they say.
/// Who has not answered within the time of one exchange counts as unreachable; what still asks it
/// ends by its own time. `None` when the log has no head yet.
///
/// # Errors
/// When the log's own files cannot be read, or what was said cannot be kept.
pub fn round<D>(dir: &Path, policy: &Policy, dial: &D) -> Result<Option<Round>, Finding>
where
    D: Dial + Clone + Send + 'static,
{
    let source = Folder(dir.to_owned());
    if source.read("checkpoint", crate::note::NOTE_BYTES_MAX)?.is_none() {
        return Ok(None);
    }
    let note = checkpoint(&source)?;
    let keys = Chain::own(dir)?;
    let place = dir.join("checkpoint");
    let bad = |e: NoteError| finding(&place, e.offset(), e.to_string());
    let (head, _) = keys.open(&note).map_err(bad)?;
    let folder = dir.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(io_finding(&folder))?;
    let mut sizes = sizes(&folder)?;
    let asked = Arc::new(Asked { source, note, head });
    let wait = dial.patience().exchange;
    let answers = ask(&asked, policy, dial, &sizes);
    let said = gather(&answers, wait, policy, &dir.join(COSIGNED), &asked.note)?;
    for (target, said) in policy.targets.iter().zip(&said) {
        match said {
            Outcome::Cosigned(..) => {
                sizes.insert(target.key.vkey(), asked.head.size);
            }
            Outcome::Contradicts(why) => keep(&folder, target, &asked.note, why)?,
            _ => {}
        }
    }
    let names = policy.targets.iter().map(|t| t.key.name().to_owned());
    let (size, needed) = (asked.head.size, policy.quorum.needed());
    write_sizes(&folder, &sizes)?;
    Ok(Some(Round { size, needed, said: names.zip(said).collect() }))
}

/// What is put before the witnesses.
struct Asked {
    source: Folder,
    note: Vec<u8>,
    head: Checkpoint,
}

/// An answer, and which witness' it is.
type Answer = (usize, Outcome);

/// Asks each witness in a thread of its own, which nobody waits for.
fn ask<D>(
    asked: &Arc<Asked>,
    policy: &Policy,
    dial: &D,
    sizes: &BTreeMap<String, u64>,
) -> Receiver<Answer>
where
    D: Dial + Clone + Send + 'static,
{
    let (tell, answers) = channel();
    for (i, target) in policy.targets.iter().enumerate() {
        let known = sizes.get(&target.key.vkey()).copied().unwrap_or(0).min(asked.head.size);
        let (asked, target, dial) = (Arc::clone(asked), target.clone(), dial.clone());
        let answer = tell.clone();
        let ask = move || {
            let said = submit(&target, &dial, &asked.source, &asked.note, &asked.head, known);
            // Nobody hears it when it is late.
            drop(answer.send((i, said)));
        };
        if let Err(e) = thread::Builder::new().name("witness".into()).spawn(ask) {
            let why = Outcome::Unreachable(format!("it cannot be asked: {e}"));
            drop(tell.send((i, why)));
        }
    }
    answers
}

/// Takes answers as they come, for so long. From when enough have signed the signatures are in
/// the file `cosigned`.
fn gather(
    answers: &Receiver<Answer>,
    wait: Duration,
    policy: &Policy,
    cosigned: &Path,
    note: &[u8],
) -> Result<Vec<Outcome>, Finding> {
    let begun = Instant::now();
    let mut said: Vec<Option<Outcome>> = vec![None; policy.targets.len()];
    let mut missing = "asking it broke off".to_owned();
    while said.iter().any(Option::is_none) {
        let (i, outcome) = match answers.recv_timeout(wait.saturating_sub(begun.elapsed())) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                missing = format!("it has not answered within {} s", wait.as_secs_f32());
                break;
            }
        };
        let signed = matches!(outcome, Outcome::Cosigned(..));
        if let Some(place) = said.get_mut(i) {
            *place = Some(outcome);
        }
        let line = |said: &Option<Outcome>| match said {
            Some(Outcome::Cosigned(line, _)) => Some(line.clone()),
            _ => None,
        };
        let lines: Vec<String> = said.iter().filter_map(line).collect();
        if signed && lines.len() >= policy.quorum.needed() {
            let bytes = [note, lines.concat().as_bytes()].concat();
            replace(cosigned, &bytes).map_err(io_finding(cosigned))?;
        }
    }
    let late = || Outcome::Unreachable(missing.clone());
    Ok(said.into_iter().map(|said| said.unwrap_or_else(late)).collect())
}

/// Asks one witness; `known` is the size that it cosigned last, as far as we know.
#[must_use]
pub fn submit(
    target: &Target,
    dial: &dyn Dial,
    source: &dyn Source,
    note: &[u8],
    head: &Checkpoint,
    known: u64,
) -> Outcome {
    let mut old = known;
    // Once with the size that we remember, once with the one that it names.
    for _ in 0..2 {
        let proof = match consistency_proof(&SourceNodes::new(source, head.size), old, head.size) {
            Ok(proof) => proof.unwrap_or_default(),
            Err(e) => return Outcome::Refused(format!("no proof can be made for it: {e}")),
        };
        let note_text = String::from_utf8_lossy(note).into_owned();
        let request = AddCheckpoint { old, proof, note: note_text }.text();
        let asked = post(dial, &target.url, "add-checkpoint", request.as_bytes(), ANSWER_BYTES_MAX);
        let (response, body) = match asked {
            Ok(answer) => answer,
            Err(e) => return Outcome::Unreachable(e.to_string()),
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        let is_size = response.kind.as_deref() == Some("text/x.tlog.size");
        let named = body.strip_suffix('\n').and_then(one_spelling).filter(|_| is_size);
        match (response.status, named) {
            (200, _) => return cosigned(target, note, &body),
            (409, Some(size)) if size > head.size => {
                return Outcome::Contradicts(format!(
                    "it has seen {size} records of this log, which has {}: the log was rolled back",
                    head.size
                ));
            }
            (409, Some(size)) if size != old => old = size,
            (409 | 422, _) => {
                return Outcome::Contradicts(format!(
                    "it knows another history of this log (answer {}: {})",
                    response.status,
                    shown(&body)
                ));
            }
            (403, _) => {
                return Outcome::Refused(format!(
                    "it does not know the key that signs this log now (answer 403: {}); after \
                     `rotate-key` its keeper names the new one behind the old one",
                    shown(&body)
                ));
            }
            (status, _) => {
                return Outcome::Refused(format!("it answered {status}: {}", shown(&body)));
            }
        }
    }
    Outcome::Refused("it names another size each time".into())
}

fn cosigned(target: &Target, note: &[u8], answer: &str) -> Outcome {
    let Ok((text, _)) = split_note(note) else {
        return Outcome::Refused("the checkpoint is no signed note".into());
    };
    match target.key.own_line(text, answer) {
        Ok((line, time)) => Outcome::Cosigned(line, time),
        Err(e) => Outcome::Refused(format!("its answer is not its signature: {e}")),
    }
}

/// The beginning of a foreign text, with every character visible.
fn shown(text: &str) -> String {
    crate::story::visible(&text.trim_end().chars().take(SHOWN_CHARS_MAX).collect::<String>())
}

/// Keeps what a witness said against a head, with the head.
fn keep(folder: &Path, target: &Target, note: &[u8], why: &str) -> Result<(), Finding> {
    let evidence = folder.join("evidence");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&evidence)
        .map_err(io_finding(&evidence))?;
    // One file a witness, the first of its kind: from then on nothing can be mended, and later
    // heads add nothing.
    let id: String = target.key.vkey().bytes().map(|b| format!("{b:02x}")).collect();
    let path = evidence.join(&id[..id.len().min(64)]);
    if path.exists() {
        return Ok(());
    }
    let mut bytes = format!("{} says: {why}\nof this head:\n\n", target.key.vkey()).into_bytes();
    bytes.extend(note);
    replace(&path, &bytes).map_err(io_finding(&path))
}

/// What size each witness, by its key, has cosigned last. A file that cannot be understood is as
/// good as none: the witnesses name the size.
fn sizes(folder: &Path) -> Result<BTreeMap<String, u64>, Finding> {
    let bytes = read_file(&folder.join("sizes"), SIZES_BYTES_MAX)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line = |line: &str| {
        let (key, size) = line.split_once(' ')?;
        Some((key.to_owned(), one_spelling(size)?))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn write_sizes(folder: &Path, sizes: &BTreeMap<String, u64>) -> Result<(), Finding> {
    let text: String = sizes.iter().map(|(key, size)| format!("{key} {size}\n")).collect();
    let path = folder.join("sizes");
    replace(&path, text.as_bytes()).map_err(io_finding(&path))
}
