//! What an agent was granted in its last session, kept to be compared with what it is granted now.
//!
//! ```text
//! grants of this session ─► the same as kept? ─┬─ yes ─► session_opened
//!                                              └─ no ──► policy_changed, durable ─► kept ─► …
//! ```
//!
//! 1. Kept in `<home>/policies/<agent>.json`, outside of every sandbox, for the person alone; the
//!    first line is the SHA-256 of the rest, so that what is damaged is not taken for a policy.
//! 2. The record comes first. After a crash in between the same change is told once more, never
//!    not at all; and where it cannot be kept, no session is opened.
//! 3. Without a copy the log says whether there was a session before. If there was, or it cannot be
//!    told, the record says `unknown` and why.

use crate::home::Home;
use crate::scribe::{Scribe, inline, sha256_hex};
use crate::world::random_bytes;
use audit::index::{self, Query};
use model::{AgentName, Body, Durability, McpServer, ModelConfig, Sha256Hex};
use policy::{Kept, ResolvedAgent};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Folder below the home.
const FOLDER: &str = "policies";
/// Longest line of a difference in a record, bytes; the agent's file has the whole.
const LINE_BYTES_MAX: usize = 1_000;
/// All lines of one list, bytes as JSON: two lists and a reason of [`model::MAX_INLINE_BYTES`] that
/// is escaped to six times its length still fit into an entry of 64,000.
const LIST_BYTES_MAX: usize = 18_000;
/// Largest copy that is read: far above what agent files of 256 KiB come to.
const COPY_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the salt with which values of variables are veiled.
const SALT_BYTES: usize = 16;

/// What a session is granted.
pub(crate) struct Granted<'a> {
    pub(crate) agent: &'a ResolvedAgent,
    /// The models it may ask.
    pub(crate) models: &'a [ModelConfig],
    /// The servers of its tools.
    pub(crate) servers: &'a [McpServer],
}

/// A copy as it was found.
enum Copy {
    Good { salt: String, kept: Box<Kept> },
    Missing,
    Bad(String),
}

/// Puts it on record, durably, if this session is granted something else than the agent's last one,
/// and keeps what it is granted. To be called before the session is opened.
///
/// # Errors
/// If it cannot be compared, recorded or kept; then no session may be opened.
pub(crate) fn compare(home: &Home, scribe: &Scribe, granted: &Granted<'_>) -> Result<(), String> {
    let folder = home.path().join(FOLDER);
    let lost = |e: io::Error| {
        format!("what the agent was granted cannot be kept in {}: {e}", folder.display())
    };
    // One session at a time compares and keeps, of all processes of this home.
    let _lock = lock(&folder).map_err(lost)?;
    let path = folder.join(format!("{}.json", scribe.agent));
    let copy = read(&path);
    let salt = match &copy {
        Copy::Good { salt, .. } => salt.clone(),
        _ => sha256_hex(&random_bytes::<SALT_BYTES>()).0,
    };
    let kept = keep(granted, &salt);
    let change = change(&home.audit(), &scribe.agent, copy, &kept);
    let Some(body) = change else { return Ok(()) };
    scribe.write(None, body, Durability::Durable).map_err(|e| e.to_string())?;
    let text = text(&salt, &kept)?;
    replace(&folder, &path, &text).map_err(lost)
}

fn keep(granted: &Granted<'_>, salt: &str) -> Kept {
    let Granted { agent, models, servers } = granted;
    let veil = |value: &str| sha256_hex(format!("{salt}{value}").as_bytes()).0;
    Kept::of(sha256_hex(&agent.policy_bytes), agent, models, servers, &veil)
}

/// What is to be put on record, if anything.
fn change(log: &Path, agent: &AgentName, copy: Copy, now: &Kept) -> Option<Body> {
    let after_sha256 = now.policy_sha256.clone();
    let unknown = |why: String, before_sha256| Body::PolicyChanged {
        before_sha256,
        after_sha256: now.policy_sha256.clone(),
        gained: Vec::new(),
        lost: Vec::new(),
        left_out: 0,
        unknown: Some(inline(&why).to_owned()),
    };
    let (before_sha256, diff) = match copy {
        Copy::Good { kept, .. } => {
            let diff = now.since(&kept);
            if diff.is_empty() && kept.policy_sha256 == now.policy_sha256 {
                return None;
            }
            (Some(kept.policy_sha256), diff)
        }
        Copy::Missing => match last_on_record(log, agent) {
            Ok(None) => (None, policy::Diff { gained: now.all(), lost: Vec::new() }),
            Ok(before) => {
                return Some(unknown("no copy of what it was granted is left".into(), before));
            }
            Err(why) => return Some(unknown(format!("no copy is there, and {why}"), None)),
        },
        Copy::Bad(why) => {
            // Where the log does not say either, the reason of the copy is the one that counts.
            let before = last_on_record(log, agent).ok().flatten();
            return Some(unknown(format!("the copy of what it was granted {why}"), before));
        }
    };
    let (gained, more) = bounded(diff.gained);
    let (lost, still_more) = bounded(diff.lost);
    let left_out = more + still_more;
    Some(Body::PolicyChanged { before_sha256, after_sha256, gained, lost, left_out, unknown: None })
}

/// The policy of the agent's last session on record.
fn last_on_record(log: &Path, agent: &AgentName) -> Result<Option<Sha256Hex>, String> {
    let query = Query {
        agent: Some(agent.as_str().to_owned()),
        kind: Some("session_opened".to_owned()),
        ..Query::default()
    };
    let mut last = None;
    let searched = index::search(log, &query, true, |stored| {
        if let Ok(Body::SessionOpened { policy_sha256, .. }) = stored.record.map(|r| r.body) {
            last = Some(policy_sha256);
        }
        ControlFlow::Continue(())
    });
    match searched {
        Ok(_) => Ok(last),
        Err(e) => Err(format!("the log does not tell of a session before: {e}")),
    }
}

/// As many lines as a record may have, those that must not be overlooked first of all; and how many
/// have no room.
fn bounded(lines: Vec<String>) -> (Vec<String>, u64) {
    let cut = |line: String| match line.len() > LINE_BYTES_MAX {
        true => format!("{}…", &line[..line.floor_char_boundary(LINE_BYTES_MAX)]),
        false => line,
    };
    let lines: Vec<String> = lines.into_iter().map(cut).collect();
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_key(|i| !lines[*i].starts_with(policy::LOUD));
    let (mut room, mut taken) = (LIST_BYTES_MAX, vec![false; lines.len()]);
    for i in order {
        // With its quotes, and the comma after it.
        let bytes = serde_json::Value::from(lines[i].as_str()).to_string().len() + 1;
        taken[i] = bytes <= room;
        room = room.saturating_sub(if taken[i] { bytes } else { 0 });
    }
    let all = lines.len();
    let some: Vec<String> =
        lines.into_iter().zip(taken).filter(|(_, is)| *is).map(|(line, _)| line).collect();
    let left = (all - some.len()) as u64;
    (some, left)
}

/// Holds the folder, made if need be, until it is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = File::open(folder)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

/// The SHA-256 of the rest, the salt, and what is kept: a line each.
fn text(salt: &str, kept: &Kept) -> Result<Vec<u8>, String> {
    let json = kept.to_json().map_err(|e| format!("what it is granted cannot be kept: {e}"))?;
    let mut rest = format!("{salt}\n").into_bytes();
    rest.extend(json);
    rest.push(b'\n');
    let mut all = format!("{}\n", sha256_hex(&rest).0).into_bytes();
    all.extend(rest);
    Ok(all)
}

fn read(path: &Path) -> Copy {
    let file = match OpenOptions::new().read(true).custom_flags(NO_LINK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Copy::Missing,
        Err(e) => return Copy::Bad(format!("cannot be opened: {e}")),
    };
    let mut bytes = Vec::new();
    match file.take(COPY_BYTES_MAX + 1).read_to_end(&mut bytes) {
        Ok(n) if n as u64 <= COPY_BYTES_MAX => parse(&bytes),
        Ok(_) => Copy::Bad("is damaged: it is larger than it can be".into()),
        Err(e) => Copy::Bad(format!("cannot be read: {e}")),
    }
}

/// Neither through a link nor waiting for whoever writes into a pipe.
const NO_LINK: i32 = {
    let flags = rustix::fs::OFlags::NOFOLLOW.union(rustix::fs::OFlags::NONBLOCK);
    flags.bits() as i32
};

fn parse(bytes: &[u8]) -> Copy {
    let damaged = |why: &str| Copy::Bad(format!("is damaged: {why}"));
    let mut parts = bytes.splitn(2, |b| *b == b'\n');
    let (Some(digest), Some(rest)) = (parts.next(), parts.next()) else {
        return damaged("it is cut off");
    };
    if sha256_hex(rest).0.as_bytes() != digest {
        return damaged("it has not the digest that it names");
    }
    let mut parts = rest.splitn(2, |b| *b == b'\n');
    let (Some(salt), Some(json)) = (parts.next(), parts.next()) else {
        return damaged("it is cut off");
    };
    match (std::str::from_utf8(salt), Kept::parse(json)) {
        (Ok(salt), Ok(kept)) => Copy::Good { salt: salt.to_owned(), kept: Box::new(kept) },
        (_, Err(why)) => Copy::Bad(format!("is not understood: {why}")),
        (Err(_), _) => damaged("its salt is no text"),
    }
}

/// Puts the copy in place of the one before, whole or not at all.
fn replace(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let new: PathBuf = path.with_extension("json.new");
    match fs::remove_file(&new) {
        // Left behind by a process that was killed.
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_room_for_what_must_not_be_overlooked() {
        let line = |n: usize| format!("{n:04} {}", "\u{1}x".repeat(100));
        let mut lines: Vec<String> = (0..200).map(line).collect();
        lines.push(format!("{}tool of a provider", policy::LOUD));
        lines.push("é".repeat(LINE_BYTES_MAX));
        let all = lines.len() as u64;
        let (some, left) = bounded(lines);
        assert_eq!(some.len() as u64 + left, all);
        assert!(some.iter().any(|l| l.starts_with(policy::LOUD)), "{}", some.len());
        assert!(some[0].starts_with("0000") && some.len() > 20, "in their order");
        let json = serde_json::to_string(&some).unwrap_or_default();
        assert!(json.len() <= LIST_BYTES_MAX + 2, "{}", json.len());
        let (one, left) = bounded(vec!["é".repeat(LINE_BYTES_MAX)]);
        assert_eq!((one[0].chars().count(), left), (LINE_BYTES_MAX / 2 + 1, 0));
    }

    #[test]
    fn what_is_damaged_is_not_read() {
        let rest = "salt\n{}\n";
        let good = format!("{}\n{rest}", sha256_hex(rest.as_bytes()).0);
        let why = |bytes: &[u8]| match parse(bytes) {
            Copy::Bad(why) => why,
            _ => "nothing".to_owned(),
        };
        assert!(why(good.as_bytes()).starts_with("is not understood: it is not of the form"));
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(why(&bytes).starts_with("is damaged"), "{at}: {}", why(&bytes));
            assert!(why(&good.as_bytes()[..at]).starts_with("is damaged"), "{at}");
        }
    }
}
