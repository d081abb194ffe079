//! What the kernel reported of a sandbox: executions, refused connections, and what was missed.

use super::{Fields, Written};
use crate::canonical::{self, NotCanonical};
use model::Body;

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::ProcessExec { exec, pid, path, argv, cwd, whole, racy, server, unread } => f
            .list("argv", argv, |out, argument| canonical::string(out, argument))
            .maybe("cwd", cwd.as_deref())
            .uint("exec", *exec)?
            .text("kind", kind)
            .text("path", path)
            .uint("pid", u64::from(*pid))?
            .flag("racy", *racy)
            .maybe("server", server.as_deref())
            .turn()
            .maybe("unread", unread.as_deref())
            .flag("whole", *whole),
        Body::ProcessImage { exec, pid, image, unseen } => f
            .uint("exec", *exec)?
            .maybe("image", image.as_deref())
            .text("kind", kind)
            .uint("pid", u64::from(*pid))?
            .turn()
            .maybe("unseen", unseen.as_deref()),
        Body::ConnectRefused { pid, call, target, errno, racy, server } => f
            .text("call", call)
            .text("errno", errno)
            .text("kind", kind)
            .uint("pid", u64::from(*pid))?
            .flag("racy", *racy)
            .maybe("server", server.as_deref())
            .text("target", target)
            .turn(),
        Body::WitnessGap { lost, reason } => {
            f.text("kind", kind).uint("lost", *lost)?.text("reason", reason).turn()
        }
        _ => return Err(NotCanonical),
    }
    .end()
}
