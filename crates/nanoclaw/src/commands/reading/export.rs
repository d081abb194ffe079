//! `audit export`.

use super::{failed, unread};
use crate::args::Format;
use crate::failure::{Context, Failure, Kind, Result};
use crate::ui;
use audit::export::{ocsf::Ocsf, otlp::Otlp};
use audit::index::{Query, search};
use audit::note::{NOTE_BYTES_MAX, Verifier};
use audit::source::read_file;
use std::ops::ControlFlow;
use std::path::Path;

pub(super) fn export(dir: &Path, format: Format, query: &Query) -> Result<u8> {
    let path = dir.join("vkey");
    let vkey = match read_file(&path, NOTE_BYTES_MAX).map_err(|e| failed(&e))? {
        None => {
            let cause = format!("there is no log in {}", dir.display());
            return Err(
                Failure::new(Kind::Missing, cause).remedy("`nanoclaw run -- true` writes one")
            );
        }
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
    };
    let verifier = Verifier::parse(vkey.trim_end()).context(path.display())?;
    let on = || if ui::closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    match format {
        Format::Ocsf => {
            let mut events = Ocsf::new(verifier.name(), vkey.trim_end());
            search(dir, query, true, |stored| {
                if let Some(event) = events.event(stored.index, &stored.bytes) {
                    ui::json_line(&event);
                }
                on()
            })
        }
        Format::Otlp => {
            let mut traces = Otlp::new(verifier.name());
            let found = search(dir, query, true, |stored| {
                if let Some(spans) = traces.push(&stored) {
                    ui::json_line(&spans);
                }
                on()
            });
            if let Some(spans) = traces.finish() {
                ui::json_line(&spans);
            }
            found
        }
    }
    .map_err(|e| unread(&e))?;
    Ok(0)
}
