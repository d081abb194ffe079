//! What people decide, what tools of the host do for it, and the grants that say so.

use super::{Fields, Written};
use crate::canonical::{self, NotCanonical};
use model::Body;

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::ApprovalAsked { approval, rule, by, summary, shown_sha256 } => f
            .text("approval", approval)
            .text("by", by)
            .text("kind", kind)
            .payloads()?
            .text("rule", rule)
            .known("shown_sha256", shown_sha256.as_ref())
            .text("summary", summary)
            .turn(),
        Body::ApprovalDecided { approval, decision, by, shown_sha256 } => f
            .text("approval", approval)
            .text("by", by)
            .text("decision", decision)
            .text("kind", kind)
            .known("shown_sha256", shown_sha256.as_ref())
            .turn(),
        Body::HostToolCalled { call, server, tool, arguments, arguments_sha256 } => f
            .text("arguments", arguments)
            .text("arguments_sha256", &arguments_sha256.0)
            .text("call", call)
            .text("kind", kind)
            .payloads()?
            .text("server", server)
            .text("tool", tool)
            .turn(),
        Body::HostToolFinished { call, server, tool, ok, bytes, sha256, duration_ms, error } => f
            .uint("bytes", *bytes)?
            .text("call", call)
            .uint("duration_ms", *duration_ms)?
            .maybe("error", error.as_deref())
            .text("kind", kind)
            .flag("ok", *ok)
            .text("server", server)
            .text("sha256", &sha256.0)
            .text("tool", tool)
            .turn(),
        Body::PolicyLearned { session, proposal_sha256, rules, unused } => f
            .text("kind", kind)
            .text("proposal_sha256", &proposal_sha256.0)
            .uint("rules", *rules)?
            .text("session", session.as_str())
            .turn()
            .uint("unused", *unused)?,
        Body::PolicyAccepted { file, before_sha256, after_sha256 } => f
            .text("after_sha256", &after_sha256.0)
            .text("before_sha256", &before_sha256.0)
            .text("file", file)
            .text("kind", kind)
            .turn(),
        Body::PolicyChanged { before_sha256, after_sha256, gained, lost, left_out, unknown } => f
            .text("after_sha256", &after_sha256.0)
            .maybe("before_sha256", before_sha256.as_ref().map(|d| d.0.as_str()))
            .list("gained", gained, |out, line| canonical::string(out, line))
            .text("kind", kind)
            .uint("left_out", *left_out)?
            .list("lost", lost, |out, line| canonical::string(out, line))
            .turn()
            .maybe("unknown", unknown.as_deref()),
        _ => return Err(NotCanonical),
    }
    .end()
}
