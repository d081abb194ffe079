//! What became of files, and what one observer tells and another does not.

use super::{Fields, Written, nested};
use crate::canonical::{self, NotCanonical};
use model::{Body, FileChange, MountSeen};

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::FilesChanged { mount, changes, server } => {
            each(f.key("changes"), changes, change)?;
            f.text("kind", kind).text("mount", mount).maybe("server", server.as_deref()).turn()
        }
        Body::FilesManifest { after, mounts, read_bytes, duration_ms, running, server } => {
            f.text("after", after).uint("duration_ms", *duration_ms)?.text("kind", kind);
            each(f.key("mounts"), mounts, seen)?;
            f.uint("read_bytes", *read_bytes)?
                .flag("running", *running)
                .maybe("server", server.as_deref())
                .turn()
        }
        Body::ObserversDisagree { finding, told_by, not_by, what, count, records } => {
            f.uint("count", *count)?
                .text("finding", finding)
                .text("kind", kind)
                .text("not_by", not_by);
            each(f.key("records"), records, |out, n| canonical::uint(out, *n))?;
            f.text("told_by", told_by).turn().text("what", what)
        }
        _ => return Err(NotCanonical),
    }
    .end()
}

/// A list of what can be refused.
fn each<T>(out: &mut Vec<u8>, all: &[T], one: impl Fn(&mut Vec<u8>, &T) -> Written) -> Written {
    out.push(b'[');
    for (i, item) in all.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        one(out, item)?;
    }
    out.push(b']');
    Ok(())
}

fn change(out: &mut Vec<u8>, c: &FileChange) -> Written {
    nested(out)
        .text("act", c.act.name())
        .uint("bytes", c.bytes)?
        .text("mode", &c.mode)
        .text("path", &c.path)
        .flag("racy", c.racy)
        .maybe("sha256", c.sha256.as_ref().map(|d| d.0.as_str()))
        .text("sort", &c.sort)
        .maybe("unread", c.unread.as_deref())
        .end()
}

fn seen(out: &mut Vec<u8>, m: &MountSeen) -> Written {
    nested(out)
        .uint("changed", m.changed)?
        .uint("created", m.created)?
        .uint("deleted", m.deleted)?
        .uint("looked_at", m.looked_at)?
        .uint("missed", m.missed)?
        .list("missed_first", &m.missed_first, |out, name| canonical::string(out, name))
        .text("mount", &m.mount)
        .uint("unlisted", m.unlisted)?
        .uint("unread", m.unread)?
        .end()
}
