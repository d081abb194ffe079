//! A refusal: what decided, why, how the program in the sandbox is told, and its record.

use super::request::Origin;
use crate::door::DoorState;
use crate::http::conn::Conn;
use crate::http::head::Head;
use crate::modelapi::serve::plain;
use model::RequestLine;
use policy::{DEFAULT_DENY, Denial};
use std::io;

/// The rule that decided, why, and the status it is answered with.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) rule: String,
    pub(crate) reason: String,
    /// Whether the log says so already.
    recorded: bool,
}

impl Refusal {
    pub(crate) fn new(status: u16, rule: &str, reason: impl Into<String>) -> Self {
        // Without its record nothing happens, and the recorder cannot be told so.
        let recorded = status == 503;
        Self { status, rule: rule.to_owned(), reason: reason.into(), recorded }
    }

    /// A failure that an `EgressResult` tells of.
    pub(crate) fn on_record(mut self) -> Self {
        self.recorded = true;
        self
    }

    /// A verdict, with the remedy.
    pub(crate) fn denied(door: &DoorState, to: &Origin, denial: Denial) -> Self {
        let (host, port, agent) = (&to.host, to.port, &door.scribe.agent);
        let shown = match port {
            443 | 80 => host.to_string(),
            _ => format!("{host}:{port}"),
        };
        let remedy = if denial.rule == DEFAULT_DENY {
            format!(
                "add [[egress]] host = \"{host}\" (and port = {port}) to agents/{agent}.toml, or \
                 --allow {shown}"
            )
        } else {
            format!("what that agent may do stands in agents/{agent}.toml, or --allow {shown}")
        };
        Self::new(403, &denial.rule, format!("{}; {remedy}", denial.why))
    }

    /// What the program in the sandbox is told.
    pub(crate) fn text(&self) -> String {
        format!("nanoclaw refused this: {} (rule: {})", self.reason, self.rule)
    }

    /// Puts it on record, once.
    pub(crate) async fn record(&self, door: &DoorState, target: String, line: Option<RequestLine>) {
        if !self.recorded {
            door.scribe.refused_request(target, &self.rule, self.reason.clone(), line).await;
        }
    }

    /// Answers a request with it.
    pub(crate) async fn answer(&self, conn: &mut Conn, head: &Head) -> io::Result<bool> {
        plain(conn, head, self.status, &self.text(), &[]).await
    }
}
