//! A refusal: what decided, why, how the program in the sandbox is told, and its record.

use super::request::Origin;
use crate::door::DoorState;
use crate::http::conn::Conn;
use crate::http::head::Head;
use crate::modelapi::serve::plain;
use model::{Effect, PathPattern, RequestLine};
use policy::{DEFAULT_DENY, Denial};
use std::io;

/// Longest path that is worth repeating in a remedy.
const PATH_CHARS_MAX: usize = 200;

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

    /// A verdict, with the remedy. `asked` is method and path, where they are known.
    pub(crate) fn denied(
        door: &DoorState,
        to: &Origin,
        denial: Denial,
        asked: Option<(&str, &str)>,
    ) -> Self {
        let (host, port, agent) = (&to.host, to.port, &door.scribe.agent);
        let file = format!("agents/{agent}.toml");
        // `--allow` without a port means 443.
        let shown = if port == 443 { host.to_string() } else { format!("{host}:{port}") };
        let decided = door.rules.iter().find(|rule| rule.id == denial.rule);
        let remedy = match decided {
            None if denial.rule == DEFAULT_DENY => format!(
                "add [[egress]] host = \"{host}\" (and port = {port}) to {file}, or --allow {shown}"
            ),
            Some(rule) if rule.effect == Effect::Deny => {
                format!(
                    "a [[deny]] wins over whatever permits; if this is meant, change it in {file}"
                )
            }
            Some(rule) if rule.port == Some(port) => match asked.map(request) {
                Some(Some(request)) => format!(
                    "add [[egress]] host = \"{host}\", port = {port}, {request} to {file}, or --allow \
                     {shown} for all requests"
                ),
                Some(None) => format!("no rule can name this path exactly; see {file}"),
                None => format!("what may be done there stands in {file}"),
            },
            _ => format!(
                "add [[egress]] host = \"{host}\", port = {port} to {file}, or --allow {shown}"
            ),
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

/// `methods = ["GET"], paths = ["/x"]`, where exactly this path can be written so.
fn request((method, path): (&str, &str)) -> Option<String> {
    let plain = path.len() <= PATH_CHARS_MAX && !path.contains(['*', '"', '\\']);
    let path = PathPattern::parse(path).ok().filter(|_| plain)?;
    Some(format!("methods = [\"{method}\"], paths = [\"{path}\"]"))
}
