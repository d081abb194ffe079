//! Sentences on what people decide, and on what agents may do.

use super::{quote, utc, visible};
use model::{Body, Sha256Hex};
use std::fmt::Write;

pub(super) fn sentence(body: &Body) -> String {
    match body {
        Body::ApprovalAsked { approval, rule, by, summary, shown_sha256 } => format!(
            "The {} was asked ({}{}) by the rule {}: {}",
            quote(by),
            quote(approval),
            shown(", the text", shown_sha256.as_ref()),
            quote(rule),
            quote(summary)
        ),
        Body::ApprovalDecided { approval, decision, by, shown_sha256 } => format!(
            "The answer to {} was {} ({}){}.",
            quote(approval),
            quote(decision),
            quote(by),
            shown(", given to the text", shown_sha256.as_ref())
        ),
        Body::HostToolCalled { server, tool, arguments, .. } => format!(
            "It called the host's tool {} of {}: {}",
            quote(tool),
            quote(server),
            quote(arguments)
        ),
        Body::HostToolFinished { tool, ok, bytes, duration_ms, error, .. } => {
            let how = if *ok { "answered" } else { "FAILED" };
            let why = error.as_ref().map_or(String::new(), |e| format!(" ({})", quote(e)));
            format!("The tool {} {how} after {duration_ms} ms, {bytes} bytes{why}.", quote(tool))
        }
        Body::PolicyLearned { session, rules, unused, .. } => format!(
            "LEARNING: {rules} rules were proposed from {session}, which grant nothing; \
             {unused} grants were never used."
        ),
        Body::PolicyAccepted { file, .. } => {
            format!("A person accepted new rules into {}.", quote(file))
        }
        Body::PolicyChanged { .. } => change(body, true),
        Body::PayloadsErased { scope, records, texts, bytes } if records.is_empty() => {
            format!("ERASED by a person: {texts} texts, {bytes} bytes ({}).", quote(scope))
        }
        Body::PayloadsErased { scope, records, texts, bytes } => format!(
            "ERASED by a person: {texts} texts of {} records, {bytes} bytes ({}). Their digests \
             stay.",
            records.len(),
            quote(scope)
        ),
        Body::RecordsPruned { before_ms, first, .. } => format!(
            "REMOVED by a person: the records before #{first}, all older than {}. Their hashes \
             stay.",
            utc(*before_ms)
        ),
        _ => body.kind().to_owned(),
    }
}

/// The text that a person was shown, by the beginning of its digest.
fn shown(before: &str, digest: Option<&Sha256Hex>) -> String {
    digest.map_or(String::new(), |digest| format!("{before} {}", short(digest)))
}

fn short(digest: &Sha256Hex) -> String {
    visible(&digest.0).chars().take(12).collect()
}

/// As one sentence of a short story, which tells the grants of a first session right after it.
pub(super) fn brief_change(body: &Body) -> String {
    match body {
        Body::PolicyChanged { before_sha256: None, unknown: None, .. } => {
            "It had no session before: all that it is granted is new.".to_owned()
        }
        _ => change(body, false),
    }
}

fn change(body: &Body, digests: bool) -> String {
    let Body::PolicyChanged { before_sha256, after_sha256, gained, lost, left_out, unknown } = body
    else {
        return body.kind().to_owned();
    };
    let from = before_sha256.as_ref().map_or("none".to_owned(), short);
    let pair = if digests {
        format!(" (policy {from}, now {})", short(after_sha256))
    } else {
        String::new()
    };
    if let Some(why) = unknown {
        return format!(
            "Whether what it may do has CHANGED since its last session is NOT KNOWN{pair}: {}.",
            quote(why)
        );
    }
    let all = |lines: &[String]| lines.iter().map(|l| quote(l)).collect::<Vec<_>>().join("; ");
    let mut text = match before_sha256 {
        Some(_) => format!("What it may do CHANGED since its last session{pair}."),
        None => format!("It had no session before{pair}."),
    };
    if gained.is_empty() && lost.is_empty() {
        text.push_str(
            " No grant was gained or lost by it: what it is told changed, or how its grants are \
             written.",
        );
    }
    // Writing to a string does not fail.
    if !gained.is_empty() {
        let _ = write!(text, " GAINED: {}.", all(gained));
    }
    if !lost.is_empty() {
        let _ = write!(text, " Lost: {}.", all(lost));
    }
    if *left_out > 0 {
        let _ = write!(text, " {left_out} more lines had no room in the record.");
    }
    text
}
