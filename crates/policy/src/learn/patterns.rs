//! Many paths → few patterns.

use crate::credential::looks_like_credential;
use std::collections::{BTreeMap, BTreeSet};

/// So many different names in one place are values, not names.
const SIBLINGS_MAX: usize = 2;

/// Deepest path learned from, parts.
const DEPTH_MAX: usize = 48;

/// Shortest hexadecimal text taken for an identifier, where it also has a digit.
const HEX_CHARS_MIN: usize = 8;

/// Parts of a path that name secrets, whole.
const SECRET_PARTS: [&str; 17] = [
    ".env",
    ".git",
    ".ssh",
    ".aws",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".docker",
    ".kube",
    "id_rsa",
    "id_ed25519",
    "token",
    "tokens",
    "keys",
    "apikeys",
    "api-keys",
    "meta-data",
];

/// Pieces of a part that name secrets wherever they stand.
const SECRET_PIECES: [&str; 6] =
    ["secret", "password", "passwd", "credential", "private-key", "private_key"];

/// Requests to one destination, by path.
#[derive(Debug, Default)]
pub(super) struct Tree {
    methods: BTreeSet<String>,
    below: BTreeMap<String, Tree>,
}

impl Tree {
    pub(super) fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.below.is_empty()
    }

    /// Adds a path that begins with `/` and is not [`too_deep`].
    pub(super) fn insert(&mut self, method: &str, path: &str) {
        let mut at = self;
        for part in path.trim_start_matches('/').split('/') {
            let name = if is_id(part) { "*".to_owned() } else { part.replace('*', "%2A") };
            at = at.below.entry(name).or_default();
        }
        at.methods.insert(method.to_owned());
    }

    fn merge(&mut self, other: Self) {
        self.methods.extend(other.methods);
        for (name, tree) in other.below {
            self.below.entry(name).or_default().merge(tree);
        }
    }

    fn generalise(&mut self) {
        let mut siblings: BTreeMap<String, usize> = BTreeMap::new();
        for name in self.below.keys() {
            let general = general(name);
            *siblings.entry(general.clone()).or_default() += usize::from(general != *name);
        }
        for (name, tree) in std::mem::take(&mut self.below) {
            let general = general(&name);
            let many = siblings.get(&general).is_some_and(|n| *n > SIBLINGS_MAX);
            self.below.entry(if many { general } else { name }).or_default().merge(tree);
        }
        self.below.values_mut().for_each(Self::generalise);
    }

    /// The patterns, grouped by the methods that were used on them.
    pub(super) fn patterns(mut self) -> BTreeMap<BTreeSet<String>, BTreeSet<String>> {
        self.generalise();
        let mut all = BTreeMap::new();
        self.collect("", &mut all);
        all
    }

    fn collect(&self, path: &str, all: &mut BTreeMap<BTreeSet<String>, BTreeSet<String>>) {
        if !self.methods.is_empty() {
            all.entry(self.methods.clone()).or_default().insert(path.to_owned());
        }
        for (name, tree) in &self.below {
            tree.collect(&format!("{path}/{name}"), all);
        }
    }
}

/// Whether a path has more parts than are learned from; also keeps [`Tree`] shallow.
pub(super) fn too_deep(path: &str) -> bool {
    path.bytes().filter(|b| *b == b'/').count() > DEPTH_MAX
}

/// What stands for a part and its like: `*`, with as many escaped slashes as it has, for servers
/// may split there. The empty part is a slash at the end, which nothing else stands for.
fn general(part: &str) -> String {
    if part.is_empty() {
        return String::new();
    }
    let upper = part.to_ascii_uppercase();
    vec!["*"; upper.split("%2F").count()].join("%2F")
}

/// Numbers, UUIDs (RFC 9562) and hexadecimal identifiers.
fn is_id(part: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let digit = part.bytes().any(|b| b.is_ascii_digit());
    let groups: Vec<&str> = part.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    let uuid = lengths == [8, 4, 4, 4, 12] && groups.iter().all(|g| hex(g));
    let number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    number || uuid || (part.len() >= HEX_CHARS_MIN && digit && hex(part))
}

/// Whether a path holds what may be a secret, or leads to one.
pub(super) fn looks_secret(path: &str) -> bool {
    path.split('/').any(|part| {
        let plain = decoded(part).to_ascii_lowercase();
        SECRET_PARTS.contains(&plain.as_str())
            || SECRET_PIECES.iter().any(|piece| plain.contains(piece))
            || (!is_id(part) && looks_like_credential("", &decoded(part)).is_some())
    })
}

fn decoded(part: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = part.bytes();
    while let Some(b) = bytes.next() {
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let rest = bytes.clone();
        match (b, digit(bytes.next()), digit(bytes.next())) {
            (b'%', Some(high), Some(low)) => out.push(u8::try_from(high * 16 + low).unwrap_or(b)),
            _ => {
                out.push(b);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
