//! Files and findings in words.

use super::{quote, visible};
use crate::merkle::sha256;
use model::{Body, FileChange, MountSeen};

/// Files named in one line; the record has them all.
const NAMED_MAX: usize = 20;
/// Digits of a digest that a person compares.
const DIGEST_SHOWN: usize = 12;
/// Characters of a long name that are shown, from its beginning and from its end: a file's own name
/// stands at the end of its path.
const NAME_BEGIN: usize = 120;
const NAME_END: usize = 80;
/// Digits of the digest that tells long names apart. Whoever picks both names finds two that agree
/// in 8 digits within a moment, in 32 never.
const NAME_DIGEST_SHOWN: usize = 32;
/// The finding that accounts could not be compared: nobody disagrees there, as far as is known.
const NOT_COMPARED: &str = "not_compared";

pub(super) fn sentence(body: &Body) -> String {
    match body {
        Body::FilesChanged { mount, changes, server } => {
            let named: Vec<String> = changes.iter().take(NAMED_MAX).map(change).collect();
            let more = match changes.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                n => format!("; and {n} more"),
            };
            let (mount, at) = (quote(mount), of(server.as_deref()));
            format!("Files below {mount}{at}: {}{more}.", named.join("; "))
        }
        Body::FilesManifest { after, mounts, read_bytes, running, server, .. } => {
            let all: Vec<String> = mounts.iter().map(|m| seen(m, after != "start")).collect();
            let all = if all.is_empty() { "there is none".to_owned() } else { all.join("; ") };
            let when = match after.as_str() {
                "start" => "before it ran".to_owned(),
                "turn" => "after its turn".to_owned(),
                "end" => "after its end".to_owned(),
                other => quote(other),
            };
            let still = if *running { ", while programs may have written" } else { "" };
            let read = match read_bytes {
                0 => String::new(),
                n => format!(" {n} bytes were read."),
            };
            format!("The writable mounts{} {when}{still}: {all}.{read}", of(server.as_deref()))
        }
        Body::ObserversDisagree { finding, told_by, not_by, what, count, records } => {
            let more = if *count > 1 { format!(", {count} of this kind") } else { String::new() };
            let at: Vec<String> = records.iter().map(|n| format!("#{n}")).collect();
            let at = if at.is_empty() { String::new() } else { format!(" See {}.", at.join(", ")) };
            if finding == NOT_COMPARED {
                return format!("NOT COMPARED: {}.{at}", quote(what));
            }
            format!(
                "THE OBSERVERS DISAGREE ({}{more}): {}. Told by the {}, not by the {}.{at}",
                quote(finding),
                quote(what),
                quote(told_by),
                quote(not_by)
            )
        }
        _ => body.kind().to_owned(),
    }
}

/// A short story has it only when something was left out.
pub(super) fn brief_manifest(body: &Body) -> Option<String> {
    let Body::FilesManifest { mounts, .. } = body else { return None };
    mounts.iter().any(|m| m.missed > 0 || m.unlisted > 0 || m.unread > 0).then(|| sentence(body))
}

fn of(server: Option<&str>) -> String {
    server.map_or(String::new(), |name| format!(" of the server of tools {}", quote(name)))
}

/// A name that a program chose, so that no two read alike and none reads as anything else: it ends
/// at its quotation mark, `<U+` always begins a character that is shown by its number, and what a
/// long name does not show stands as a digest, outside of the marks.
fn name(text: &str) -> String {
    let count = text.chars().count();
    if count <= NAME_BEGIN + NAME_END {
        return format!("\"{}\"", plain(text));
    }
    let begin: String = text.chars().take(NAME_BEGIN).collect();
    let end: String = text.chars().skip(count - NAME_END).collect();
    let digest: String = sha256(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let (begin, end, digest) = (plain(&begin), plain(&end), &digest[..NAME_DIGEST_SHOWN]);
    format!("\"{begin}\"…\"{end}\" (name of {count} characters, sha256 {digest})")
}

/// What a name itself has of the marks it is shown with is shown by number, as is what hides.
fn plain(text: &str) -> String {
    let parts: Vec<String> = text.split("<U+").map(visible).collect();
    parts.join("<U+003C>U+").replace('"', "<U+0022>")
}

fn change(c: &FileChange) -> String {
    let path = if c.path.is_empty() { "itself".to_owned() } else { name(&c.path) };
    let sort = if c.sort == "file" { String::new() } else { format!(", {}", quote(&c.sort)) };
    let digest = match (&c.sha256, &c.unread) {
        (Some(d), _) => {
            let shown: String = d.0.chars().take(DIGEST_SHOWN).collect();
            format!(", sha256 {}", quote(&shown))
        }
        (None, Some(why)) => format!(", not read: {}", quote(why)),
        (None, None) => String::new(),
    };
    let racy = if c.racy { ", while it changed" } else { "" };
    format!("{} {path} ({} bytes{sort}{digest}{racy})", c.act.name(), c.bytes)
}

fn seen(m: &MountSeen, compared: bool) -> String {
    let mut text = format!("{}: {} looked at", quote(&m.mount), m.looked_at);
    let acts = [("created", m.created), ("changed", m.changed), ("deleted", m.deleted)];
    for (act, count) in acts.iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!(", {count} {act}"));
    }
    if compared && acts.iter().all(|(_, count)| *count == 0) {
        text.push_str(", nothing is different");
    }
    for (count, what) in [(m.unlisted, "OF THEM NOT NAMED"), (m.unread, "files not read")] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if m.missed > 0 {
        let first: Vec<String> = m.missed_first.iter().map(|first| name(first)).collect();
        text.push_str(&format!(", {} FOLDERS NOT LOOKED INTO ({})", m.missed, first.join("; ")));
    }
    text
}
