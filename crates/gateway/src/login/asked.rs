//! A question to a provider with its records: the intent before, the result after.

use super::exchange::{self, Grant, NoTokens, Place};
use super::tokens::Tokens;
use super::{Logins, Trouble, Who, mark};
use model::{Body, Durability, LoginConfig, Record, RecordError};
use std::time::Instant;

/// What a `LoginResponse` says, but for how it ended.
pub(super) struct Answered {
    login: String,
    purpose: String,
    status: u16,
    rotated: bool,
    expires_ms: Option<u64>,
    duration_ms: u64,
}

impl Logins {
    /// Asks a provider, with the intent on record before.
    pub(super) async fn asked(
        &self,
        who: &Who,
        config: &LoginConfig,
        client_id: &str,
        place: &Place,
        grant: Grant<'_>,
        purpose: &str,
    ) -> Result<Result<(Tokens, Answered), (NoTokens, Answered)>, Trouble> {
        let (login, host) = (config.name.clone(), place.endpoint.host.clone());
        let intent = Body::LoginRequest { login, host, purpose: purpose.to_owned() };
        self.write(who, intent, Durability::Durable)
            .await
            .map_err(|e| Trouble::passing(format!("nothing was sent to the provider, for {e}")))?;
        let started = Instant::now();
        let before = match &grant {
            Grant::Refresh(tokens) => tokens.refresh.as_deref().map(|t| mark(t.as_bytes())),
            Grant::Code { .. } => None,
        };
        let mut status = 0;
        let means = (&self.tls, &self.lookups);
        let with = (config, client_id);
        let asked = exchange::ask(means, place, with, grant, (self.clock)(), &mut status).await;
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut response = Answered {
            login: config.name.clone(),
            purpose: purpose.to_owned(),
            status,
            rotated: false,
            expires_ms: None,
            duration_ms,
        };
        Ok(match asked {
            Ok(tokens) => {
                let after = tokens.refresh.as_deref().map(|t| mark(t.as_bytes()));
                response.rotated = after.is_some() && after != before;
                response.expires_ms = tokens.expires_ms;
                Ok((tokens, response))
            }
            Err(none) => Err((none, response)),
        })
    }

    pub(super) async fn answered(&self, who: &Who, response: Answered, error: Option<String>) {
        let Answered { login, purpose, status, rotated, expires_ms, duration_ms } = response;
        let body =
            Body::LoginResponse { login, purpose, status, rotated, expires_ms, duration_ms, error };
        // It follows what has happened; that it cannot be written holds nothing back.
        let _ = self.write(who, body, Durability::Ordered).await;
    }

    async fn write(
        &self,
        who: &Who,
        body: Body,
        durability: Durability,
    ) -> Result<(), RecordError> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let record = Record {
            time_ms: (self.clock)(),
            session: who.session.clone(),
            agent: who.agent.clone(),
            turn: who.turn.clone(),
            body,
        };
        self.sink.submit(record, durability, Box::new(move |result| drop(tx.send(result))));
        match rx.await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(RecordError::Gone { cause: "no answer".into() }),
        }
    }
}
