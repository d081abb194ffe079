//! One session's conversation with one server: hello, list, call, over either transport.

use super::http::HttpLink;
use super::pins::Described;
use super::protocol::HANDSHAKE;
use super::rpc;
use super::stdio::StdioLink;
use crate::memory::{Held, weight};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Largest message taken from a server: a result of the largest size, escaped, and its frame.
pub(crate) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// A server says hello and lists its tools within this; programs may have to be loaded first.
pub(crate) const HELLO_TIME: Duration = Duration::from_secs(30);
/// Tools of one server; more are a mistake, or a flood.
const TOOLS_MAX: usize = 512;
/// What all pages of one list may take together; it is kept as long as the session lives.
const LIST_BYTES_MAX: usize = 8 << 20;
/// Pages of one list.
const PAGES_MAX: usize = 32;
/// As much of a server's own words as helps.
const QUOTED_CHARS_MAX: usize = 400;

/// Why a server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    /// It cannot be reached, or its address may not be.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// Its secret is missing or may not be used there.
    #[error("{0}")]
    Secret(String),
    /// It ended, or closed the connection in the middle.
    #[error("the server ended the connection in the middle")]
    Ended,
    /// The program is gone.
    #[error("the server's program ended ({0}); the next call starts it again")]
    Died(String),
    /// It said something that is not the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// It refused.
    #[error("the server refused: {0}")]
    Refused(String),
    /// It took too long.
    #[error("the server did not answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// Its answer has no room.
    #[error("the server's answer is not taken: {0}")]
    Full(String),
    /// There is no such server.
    #[error("there is no server {0:?}; write [mcp.{0}] into nanoclaw.toml")]
    Unknown(String),
    /// The record of what was to be done could not be written.
    #[error("nothing was done, for {0}")]
    Unrecorded(#[from] model::RecordError),
}

fn weight_of(value: &Value) -> usize {
    weight(value.to_string().as_bytes())
}

enum Way {
    Http(Box<HttpLink>),
    Stdio(StdioLink),
}

/// A server that was greeted.
pub(crate) struct Link {
    way: Way,
    next: AtomicU64,
}

impl Link {
    /// Greets a server over HTTP.
    pub(crate) async fn http(link: HttpLink) -> Result<Self, McpError> {
        Self { way: Way::Http(Box::new(link)), next: AtomicU64::new(1) }.greeted().await
    }

    /// Greets a program.
    pub(crate) async fn stdio(link: StdioLink) -> Result<Self, McpError> {
        Self { way: Way::Stdio(link), next: AtomicU64::new(1) }.greeted().await
    }

    async fn greeted(self) -> Result<Self, McpError> {
        let params = json!({
            "protocolVersion": HANDSHAKE[0],
            "capabilities": {},
            "clientInfo": {"name": "nanoclaw", "version": env!("CARGO_PKG_VERSION")},
        });
        let (result, _held) = self.request("initialize", &params).await?;
        let version = result.get("protocolVersion").and_then(Value::as_str).unwrap_or("");
        if !HANDSHAKE.contains(&version) {
            let version: String = version.chars().take(40).collect();
            return Err(McpError::Protocol(format!("it speaks only version {version:?}")));
        }
        let message = rpc::notification("notifications/initialized");
        match &self.way {
            Way::Http(link) => {
                link.spoken(version);
                link.notify(&message).await?;
            }
            Way::Stdio(link) => link.notify(&message).await?,
        }
        Ok(self)
    }

    /// Whether it is of no further use.
    pub(crate) fn is_over(&self) -> bool {
        match &self.way {
            Way::Http(link) => link.is_over(),
            Way::Stdio(link) => link.is_over(),
        }
    }

    /// Whether its tools may be others than those it listed.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(&self.way, Way::Stdio(link) if link.is_stale())
    }

    /// What a program has answered so far, see [`Link::overdue`].
    pub(crate) fn answers(&self) -> u64 {
        match &self.way {
            Way::Http(_) => 0,
            Way::Stdio(link) => link.answers(),
        }
    }

    /// A call took too long: a program that has answered nothing since `answers` is ended, for it
    /// would hold up every call after this one. At an address each call is its own.
    pub(crate) fn overdue(&self, answers: u64) {
        if let Way::Stdio(link) = &self.way {
            link.overdue(answers);
        }
    }

    /// Asks and waits; the result is an object.
    pub(crate) async fn request(
        &self,
        method: &str,
        params: &Value,
    ) -> Result<(Value, Held), McpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = rpc::request(id, method, params);
        let (answer, held) = match &self.way {
            Way::Http(link) => link.request(id, &message).await?,
            Way::Stdio(link) => link.request(id, &message).await?,
        };
        match answer {
            Ok(result) if result.is_object() => Ok((result, held)),
            Ok(_) => Err(McpError::Protocol("a result is no object".into())),
            Err(error) => {
                let words = error.get("message").and_then(Value::as_str).unwrap_or("no reason");
                Err(McpError::Refused(words.chars().take(QUOTED_CHARS_MAX).collect()))
            }
        }
    }

    /// Every tool that could be offered, in the server's order. What is no tool is left out.
    pub(crate) async fn tools(&self) -> Result<Vec<Described>, McpError> {
        let (mut all, mut names) = (Vec::new(), HashSet::new());
        let (mut params, mut listed) = (json!({}), 0_usize);
        if let Way::Stdio(link) = &self.way {
            link.refresh();
        }
        for _ in 0..PAGES_MAX {
            let (page, held) = self.request("tools/list", &params).await?;
            listed = listed.saturating_add(weight_of(&page));
            if listed > LIST_BYTES_MAX {
                return Err(McpError::Protocol("its list of tools is too large".into()));
            }
            let tools = page.get("tools").and_then(Value::as_array);
            let tools = tools.ok_or_else(|| McpError::Protocol("it lists no tools".into()))?;
            for tool in tools.iter().filter_map(Described::new) {
                if all.len() < TOOLS_MAX && names.insert(tool.name.clone()) {
                    all.push(tool);
                }
            }
            match page.get("nextCursor").and_then(Value::as_str) {
                Some(cursor) if all.len() < TOOLS_MAX => params = json!({"cursor": cursor}),
                _ => return Ok(all),
            }
            drop(held);
        }
        Ok(all)
    }
}
