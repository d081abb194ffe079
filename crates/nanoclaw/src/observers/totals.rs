//! Counts against records: what one observer counted must stand in the log as often.

use super::{Finding, Judged, Known, Line, Observer, Unjudged, has_servers};
use model::Body;

fn records_missing(told_by: Observer, what: String) -> Vec<Finding> {
    let not_by = Observer::Record;
    vec![Finding { kind: "records_missing", told_by, not_by, what, records: Vec::new() }]
}

fn number(lines: &[Line], is_one: impl Fn(&Body) -> bool) -> u64 {
    lines.iter().filter(|line| is_one(&line.body)).count() as u64
}

/// Each execution that the kernel reported of the session's own sandbox is on record.
pub(super) fn executions(lines: &[Line], known: &Known<'_>) -> Judged {
    let counted = known.operations.ok_or(Unjudged::NotHere)?.executions;
    let found = number(lines, |b| matches!(b, Body::ProcessExec { server: None, .. }));
    Ok(match counted == found {
        true => Vec::new(),
        false => records_missing(
            Observer::Kernel,
            format!("the kernel reported {counted} executions, {found} are on record"),
        ),
    })
}

/// Each call that was refused is on record.
pub(super) fn refusals(lines: &[Line], known: &Known<'_>) -> Judged {
    let counted = known.operations.ok_or(Unjudged::NotHere)?.refusals;
    let found = number(lines, |b| matches!(b, Body::ConnectRefused { server: None, .. }));
    Ok(match counted == found {
        true => Vec::new(),
        false => records_missing(
            Observer::Kernel,
            format!("the kernel reported {counted} refused calls, {found} are on record"),
        ),
    })
}

/// What became of each execution is on record, or why it was not seen.
pub(super) fn images(lines: &[Line], known: &Known<'_>) -> Judged {
    known.operations.ok_or(Unjudged::NotHere)?;
    let executed = number(lines, |b| matches!(b, Body::ProcessExec { .. }));
    let images = number(lines, |b| matches!(b, Body::ProcessImage { .. }));
    Ok(match executed == images {
        true => Vec::new(),
        false => records_missing(
            Observer::Kernel,
            format!("{executed} executions are on record, and what became of {images}"),
        ),
    })
}

/// The gateway's count, where it is the count of this session's whole life and every exchange on
/// record has its end there.
fn counted(lines: &[Line], known: &Known<'_>, name: &str) -> Result<u64, Unjudged> {
    let counts = known.counts.ok_or(Unjudged::NotHere)?;
    let whole = !counts.contains_key("gateway_restarts");
    let count = counts.get(name).copied().filter(|_| whole).ok_or(Unjudged::NotHere)?;
    if has_servers(lines) {
        return Err(Unjudged::NotHere);
    }
    let begun = |b: &Body| {
        matches!(
            b,
            Body::EgressIntent { .. } | Body::ModelRequest { .. } | Body::HostToolCalled { .. }
        )
    };
    let ended = |b: &Body| {
        matches!(
            b,
            Body::EgressResult { .. } | Body::ModelResponse { .. } | Body::HostToolFinished { .. }
        )
    };
    let (begun, ended) = (number(lines, begun), number(lines, ended));
    if begun == ended {
        return Ok(count);
    }
    Err(Unjudged::LeftOut(format!("{begun} exchanges begin on record, and {ended} end there")))
}

fn sum(lines: &[Line], of: impl Fn(&Body) -> u64) -> u64 {
    lines.iter().fold(0, |sum, line| sum.saturating_add(of(&line.body)))
}

fn adds_up(name: &str, counted: u64, on_record: u64, holds: bool) -> Judged {
    if holds {
        return Ok(Vec::new());
    }
    let what = format!("the gateway counted {counted} {name}, its records add up to {on_record}");
    let (told_by, not_by) = (Observer::Gateway, Observer::Record);
    Ok(vec![Finding { kind: "bytes_disagree", told_by, not_by, what, records: Vec::new() }])
}

/// What came back from outside, by the gateway's count and by its records.
pub(super) fn bytes_down(lines: &[Line], known: &Known<'_>) -> Judged {
    let counted = counted(lines, known, "bytes_down")?;
    let on_record = sum(lines, |body| match body {
        Body::EgressResult { received, .. } => *received,
        Body::ModelResponse { bytes, .. } | Body::HostToolFinished { bytes, .. } => *bytes,
        _ => 0,
    });
    adds_up("bytes that came back", counted, on_record, counted == on_record)
}

/// What was sent: a model that is asked again after a failure is on record once.
pub(super) fn bytes_up(lines: &[Line], known: &Known<'_>) -> Judged {
    let counted = counted(lines, known, "bytes_up")?;
    let on_record = sum(lines, |body| match body {
        Body::EgressResult { sent, .. } => *sent,
        _ => 0,
    });
    adds_up("bytes sent", counted, on_record, on_record <= counted)
}

/// Tokens, as the models counted them.
pub(super) fn tokens(lines: &[Line], known: &Known<'_>) -> Judged {
    let (counted_in, counted_out) =
        (counted(lines, known, "tokens_in")?, counted(lines, known, "tokens_out")?);
    let of = |which: fn(u64, u64) -> u64| {
        sum(lines, |body| match body {
            Body::ModelResponse { input_tokens, output_tokens, .. } => {
                which(*input_tokens, *output_tokens)
            }
            _ => 0,
        })
    };
    let (read, written) = (of(|i, _| i), of(|_, o| o));
    let holds = (counted_in, counted_out) == (read, written);
    let (counted, on_record) =
        (counted_in.saturating_add(counted_out), read.saturating_add(written));
    adds_up("tokens", counted, on_record, holds)
}
