//! What an entry can be found by.
//!
//! 1. Whatever the bytes are, there is an answer and no panic; what is not understood is found by
//!    its number and by a scan alone.

use serde::Deserialize;
use serde_json::Value;

/// What a term is about; its first byte in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum About {
    Agent = b'a' as isize,
    File = b'f' as isize,
    Host = b'h' as isize,
    Kind = b'k' as isize,
    Session = b's' as isize,
    User = b'u' as isize,
}

/// Longest term in an index, bytes; a longer one is found by its beginning, and the record itself
/// is looked at anyway.
pub(crate) const TERM_BYTES_MAX: usize = 512;

impl About {
    pub(crate) fn term(self, text: &str) -> Vec<u8> {
        let end = text.floor_char_boundary(TERM_BYTES_MAX);
        let mut term = vec![self as u8];
        term.extend(&text.as_bytes()[..end]);
        term
    }
}

/// What an entry can be found by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// When it was submitted, Unix milliseconds.
    pub time_ms: u64,
    /// Its session.
    pub session: Option<String>,
    /// Its agent.
    pub agent: Option<String>,
    /// Its kind.
    pub kind: String,
    /// Who wrote or decided, `channel/chat` for messages.
    pub user: Option<String>,
    /// The host it is about, lower case, without port.
    pub host: Option<String>,
    /// The files or programs it is about, as the sandbox names them.
    pub files: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Event {
    #[serde(default)]
    time: u64,
    #[serde(default)]
    ai_agent: Agent,
    #[serde(default)]
    unmapped: Unmapped,
}

#[derive(Default, Deserialize)]
struct Agent {
    instance_uid: Option<String>,
    uid: Option<String>,
}

#[derive(Default, Deserialize)]
struct Unmapped {
    #[serde(default)]
    kind: String,
    by: Option<String>,
    channel: Option<String>,
    chat: Option<String>,
    host: Option<String>,
    target: Option<String>,
    path: Option<String>,
    image: Option<String>,
    program: Option<String>,
    file: Option<String>,
    mount: Option<String>,
    #[serde(default)]
    changes: Vec<Change>,
}

/// A file of a writable mount, by its path below that.
#[derive(Default, Deserialize)]
struct Change {
    path: String,
}

impl Unmapped {
    /// Where a field has another type than in the kinds known today.
    fn lenient(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Self {
            kind: text("kind").unwrap_or_default(),
            by: text("by"),
            channel: text("channel"),
            chat: text("chat"),
            host: text("host"),
            target: text("target"),
            path: text("path"),
            image: text("image"),
            program: text("program"),
            file: text("file"),
            mount: None,
            changes: Vec::new(),
        }
    }

    fn files(self) -> Vec<String> {
        let mount = self.mount.unwrap_or_default();
        let below = |change: Change| match change.path.as_str() {
            "" => mount.clone(),
            path => format!("{mount}/{path}"),
        };
        let one = self.path.or(self.image).or(self.program).or(self.file);
        one.into_iter().chain(self.changes.into_iter().map(below)).collect()
    }
}

impl Terms {
    /// The terms of an entry.
    #[must_use]
    pub fn of(entry: &[u8]) -> Self {
        // A list would be read as the fields in their order.
        if entry.first() != Some(&b'{') {
            return Self::default();
        }
        let event = serde_json::from_slice::<Event>(entry).unwrap_or_else(|_| {
            let value: Value = serde_json::from_slice(entry).unwrap_or_default();
            let agent = |key: &str| value["ai_agent"][key].as_str().map(str::to_owned);
            Event {
                time: value["time"].as_u64().unwrap_or_default(),
                ai_agent: Agent { instance_uid: agent("instance_uid"), uid: agent("uid") },
                unmapped: Unmapped::lenient(&value["unmapped"]),
            }
        });
        let mut of = event.unmapped;
        let user = match (of.channel.take(), of.chat.take()) {
            (Some(channel), Some(chat)) => Some(format!("{channel}/{chat}")),
            _ => of.by.take(),
        };
        let host = of.host.take().or_else(|| of.target.as_deref().map(host_of));
        Self {
            time_ms: event.time,
            session: event.ai_agent.instance_uid,
            agent: event.ai_agent.uid,
            kind: std::mem::take(&mut of.kind),
            user,
            host: host.map(|h| lower(&h)),
            files: of.files(),
        }
    }

    /// As they stand in an index.
    pub(crate) fn all(&self) -> impl Iterator<Item = Vec<u8>> {
        let kind = Some(&self.kind).filter(|k| !k.is_empty());
        [
            (About::Agent, self.agent.as_ref()),
            (About::Host, self.host.as_ref()),
            (About::Kind, kind),
            (About::Session, self.session.as_ref()),
            (About::User, self.user.as_ref()),
        ]
        .into_iter()
        .filter_map(|(about, text)| text.map(|text| about.term(text)))
        .chain(self.files.iter().map(|file| About::File.term(file)))
    }
}

pub(crate) fn lower(host: &str) -> String {
    host.to_ascii_lowercase()
}

/// The host of `[METHOD ][scheme://]host[:port][/path]`; of what is none, what stands there.
fn host_of(target: &str) -> String {
    let rest = target.rsplit(' ').next().unwrap_or(target);
    let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    if let Some((address, _)) = authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        return address.to_owned();
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => host.to_owned(),
        _ => authority.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_targets_and_files_in_programs() {
        for (target, host) in [
            ("a.org:443", "a.org"),
            ("GET https://a.org:8443/x?y", "a.org"),
            ("[::1]:80", "::1"),
            ("fe80::1", "fe80::1"),
            ("unix socket", "socket"),
        ] {
            assert_eq!(host_of(target), host, "{target}");
        }
        let entry = br#"{"ai_agent":{"instance_uid":"s1","uid":"a"},"time":5,
            "unmapped":{"kind":"egress_refused","target":"GET http://A.ORG/x"}}"#;
        let terms = Terms::of(entry);
        assert_eq!((terms.session.as_deref(), terms.time_ms), (Some("s1"), 5));
        assert_eq!(terms.host.as_deref(), Some("a.org"));
        assert_eq!(terms.all().count(), 4);
    }

    #[test]
    fn what_is_no_entry_has_no_terms_and_other_types_do_no_harm() {
        assert_eq!(Terms::of(b"\xff"), Terms::default());
        assert_eq!(Terms::of(b"[1]"), Terms::default());
        let odd = Terms::of(br#"{"time":-1,"unmapped":{"kind":"later","path":["x"],"host":"H"}}"#);
        assert_eq!((odd.kind.as_str(), odd.host.as_deref()), ("later", Some("h")));
        assert_eq!(odd.files, Vec::<String>::new());
    }

    #[test]
    fn every_changed_file_can_be_found() {
        let terms = Terms::of(
            br#"{"unmapped":{"changes":[{"path":"a/b"},{"path":""}],"kind":"files_changed",
            "mount":"/workspace"}}"#,
        );
        assert_eq!(terms.files, ["/workspace/a/b", "/workspace"]);
        assert_eq!(terms.all().filter(|term| term[0] == About::File as u8).count(), 2);
    }
}
