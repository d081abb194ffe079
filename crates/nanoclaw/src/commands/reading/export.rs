//! `audit export`.

use super::unread;
use crate::args::Format;
use crate::failure::{Context, Failure, Kind, Result};
use crate::ui;
use audit::export::{ocsf::Ocsf, otlp::Otlp};
use audit::index::{Query, search};
use audit::note::Verifier;
use std::ops::ControlFlow;
use std::path::Path;

pub(super) fn export(dir: &Path, format: Format, query: &Query) -> Result<u8> {
    let path = dir.join("vkey");
    let vkey = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let cause = format!("there is no log in {}", dir.display());
            return Err(
                Failure::new(Kind::Missing, cause).remedy("`nanoclaw run -- true` writes one")
            );
        }
        other => other.context(path.display())?,
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
