//! Manifests of a sandbox's writable mounts, on record.
//!
//! Pipeline: before its program runs ─► after each turn ─► after its end; each look is records of
//! changes, then one that counts them.

use crate::manifest::{Bounds, Looked, Manifests};
use crate::sandboxes::{HOME_INSIDE, WORKSPACE_INSIDE};
use crate::scribe::Scribe;
use model::{
    Access, Body, Done, Durability, FileChange, RecordError, SandboxSpec, TurnId, Workspace,
};
use std::path::PathBuf;
use std::sync::mpsc;

/// What one record of changes may weigh, by [`weight`]: an entry of the log may have 64,000 bytes,
/// and what stands around the changes needs a few hundred.
const CHANGES_BYTES_MAX: usize = 48_000;
/// What a change takes beside its path and reason: keys, marks and a digest.
const CHANGE_BYTES: usize = 280;

/// The mounts of one sandbox.
pub(crate) struct Files {
    manifests: Manifests,
    server: Option<String>,
    scribe: Scribe,
}

impl Files {
    /// Looks at them before the program runs, and puts on record what was and was not seen.
    pub(crate) fn start(
        spec: &SandboxSpec,
        scribe: &Scribe,
        server: Option<&str>,
        turn: Option<&TurnId>,
    ) -> Result<Self, RecordError> {
        let (manifests, looked) = Manifests::start(writable(spec), Bounds::USUAL);
        let this = Self { manifests, server: server.map(str::to_owned), scribe: scribe.clone() };
        this.record(looked, "start", turn)?;
        Ok(this)
    }

    /// What became of them since the last look; programs may still run.
    pub(crate) fn after_turn(&mut self, turn: &TurnId) -> Result<(), RecordError> {
        let looked = self.manifests.next(false, Bounds::USUAL);
        self.record(looked, "turn", Some(turn))
    }

    /// The last look; nothing in the sandbox runs any more.
    pub(crate) fn end(mut self, turn: Option<&TurnId>) -> Result<(), RecordError> {
        let looked = self.manifests.next(true, Bounds::USUAL);
        self.record(looked, "end", turn)
    }

    /// Submits all and waits for all answers: nothing of a manifest is lost without a word.
    fn record(
        &self,
        looked: Looked,
        after: &str,
        turn: Option<&TurnId>,
    ) -> Result<(), RecordError> {
        let (tell, told) = mpsc::channel();
        for body in bodies(looked, after, self.server.as_deref()) {
            let tell = tell.clone();
            // Whoever waits has gone on after the first refusal.
            let done: Done = Box::new(move |result| drop(tell.send(result)));
            self.scribe.submit(turn, body, Durability::Ordered, done);
        }
        drop(tell);
        told.iter().try_for_each(|result: Result<u64, RecordError>| result.map(drop))
    }
}

/// Every folder and file of the host that a program in it may write, with its place inside.
fn writable(spec: &SandboxSpec) -> Vec<(String, PathBuf)> {
    let (Workspace::Session(workspace) | Workspace::User(workspace)) = &spec.workspace;
    let own = [(WORKSPACE_INSIDE, workspace), (HOME_INSIDE, &spec.home)];
    let own = own.into_iter().map(|(inside, source)| (inside.to_owned(), source.clone()));
    let granted = spec.mounts.iter().filter(|m| m.access == Access::Write);
    own.chain(granted.map(|m| (m.target.display().to_string(), m.source.clone()))).collect()
}

/// The records of a look.
fn bodies(looked: Looked, after: &str, server: Option<&str>) -> Vec<Body> {
    let server = server.map(str::to_owned);
    let (mut all, mut mounts) = (Vec::new(), Vec::new());
    for (seen, changes) in looked.mounts {
        let mount = seen.mount.clone();
        all.extend(parts(changes).into_iter().map(|changes| Body::FilesChanged {
            mount: mount.clone(),
            changes,
            server: server.clone(),
        }));
        mounts.push(seen);
    }
    all.push(Body::FilesManifest {
        after: after.to_owned(),
        mounts,
        read_bytes: looked.read_bytes,
        duration_ms: u64::try_from(looked.took.as_millis()).unwrap_or(u64::MAX),
        running: after == "turn",
        server,
    });
    all
}

/// As many at a time as fit into an entry.
fn parts(changes: Vec<FileChange>) -> Vec<Vec<FileChange>> {
    let mut all: Vec<Vec<FileChange>> = Vec::new();
    let mut left = 0;
    for change in changes {
        let weight = weight(&change);
        match all.last_mut() {
            Some(part) if weight <= left => {
                left -= weight;
                part.push(change);
            }
            _ => {
                left = CHANGES_BYTES_MAX.saturating_sub(weight);
                all.push(vec![change]);
            }
        }
    }
    all
}

/// At most what it takes in JSON: a character of a path or reason at most two bytes for each of
/// its own, for control characters are escaped already.
fn weight(change: &FileChange) -> usize {
    let reason = change.unread.as_ref().map_or(0, String::len);
    CHANGE_BYTES + 2 * (change.path.len() + reason)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use audit::entry::{ENTRY_BYTES_MAX, encode};
    use model::{AgentName, FileAct, MountSeen, Record, SessionId, Sha256Hex};

    fn change(path: String, unread: Option<String>) -> FileChange {
        FileChange {
            path,
            act: FileAct::Created,
            sort: "socket".into(),
            bytes: (1 << 53) - 1,
            mode: "7777".into(),
            sha256: Some(Sha256Hex("ab".repeat(32))),
            unread,
            racy: false,
        }
    }

    /// The worst names: each character is two in JSON.
    #[test]
    fn however_long_the_names_every_record_fits_into_an_entry_and_none_is_missing() {
        for length in [0, 1, 100, 2_000, 4_090] {
            let all: Vec<FileChange> = (0..700)
                .map(|n| change(format!("{n}{}", "\"".repeat(length)), Some("\"".repeat(200))))
                .collect();
            let looked = Looked {
                mounts: vec![(
                    MountSeen { mount: "/".repeat(300), ..Default::default() },
                    all.clone(),
                )],
                ..Looked::default()
            };
            let bodies = bodies(looked, "turn", Some("lab"));
            let mut found = Vec::new();
            for body in bodies {
                let record = Record {
                    time_ms: 1,
                    session: Some(SessionId::mint(5, 6)),
                    agent: Some(AgentName::parse("a").unwrap()),
                    turn: None,
                    body,
                };
                let entry = encode(&record, &[b'0'; 36]).unwrap();
                assert!(entry.bytes().len() <= ENTRY_BYTES_MAX);
                if let Body::FilesChanged { changes, .. } = record.body {
                    found.extend(changes);
                }
            }
            assert_eq!(found, all, "{length}");
        }
    }

    #[test]
    fn a_look_without_changes_is_one_record_that_says_so() {
        let seen = MountSeen { mount: "/workspace".into(), ..MountSeen::default() };
        let looked = Looked { mounts: vec![(seen, Vec::new())], ..Looked::default() };
        let bodies = bodies(looked, "end", None);
        let kinds: Vec<&str> = bodies.iter().map(Body::kind).collect();
        assert_eq!(kinds, ["files_manifest"]);
        assert!(matches!(bodies[0], Body::FilesManifest { running: false, .. }));
    }
}
