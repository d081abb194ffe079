//! What the log says of itself: its recorder, its keys, its gaps, its witnesses.

use super::{quote, utc};
use model::Body;

pub(super) fn of(body: &Body) -> String {
    match body {
        Body::RecorderStarted { version, recovered_records, torn_bytes } => {
            let torn = match torn_bytes {
                0 => String::new(),
                n => format!("; {n} bytes of an unfinished write were set aside"),
            };
            let version = quote(version);
            format!("The recorder {version} opened the log with {recovered_records} records{torn}.")
        }
        Body::RecorderStopped { records } => {
            format!("The recorder closed the log with {records} records.")
        }
        Body::ClientLost { pid, role } => format!(
            "The process {} (pid {pid}) was gone without a word; \
             what it did last may not be on record.",
            quote(role)
        ),
        Body::KeyAnnounced { new_vkey, .. } => {
            format!("From here on the log is signed by another key: {}", quote(new_vkey))
        }
        Body::RecordGap { lost, open, reason } => {
            let more = if *open { "or more " } else { "" };
            format!(
                "Not on record, and not done if it needed to be: {lost} {more}records ({}).",
                quote(reason)
            )
        }
        Body::ClockSetBack { before_ms, now_ms } => format!(
            "The clock was set back from {} to {}; the order of the records is right all the same.",
            utc(*before_ms),
            utc(*now_ms)
        ),
        Body::Cosigning { reached, size, needed, cosigned, failed, contradicted } => {
            let list = |all: &[String]| all.iter().map(|t| quote(t)).collect::<Vec<_>>().join("; ");
            let signed = match cosigned.as_slice() {
                [] => "nobody".to_owned(),
                names => list(names),
            };
            let enough = if *reached { "Enough" } else { "TOO FEW" };
            let why =
                if failed.is_empty() { String::new() } else { format!(" Not: {}.", list(failed)) };
            let fork = match contradicted {
                true => " A WITNESS KNOWS ANOTHER HISTORY OF THIS LOG.",
                false => "",
            };
            format!(
                "{enough} witnesses sign this log ({needed} are needed): {signed} signed the head \
                 of {size} records.{why}{fork}"
            )
        }
        _ => body.kind().to_owned(),
    }
}
