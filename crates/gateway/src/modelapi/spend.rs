//! What a request may cost, set aside before it leaves; or the refusal that says why not.

use super::body::AskBody;
use super::operation::Ask;
use super::route::{Backend, Model};
use super::wire::Failure;
use crate::door::DoorState;
use crate::usage::{Ledger, Notice, Notices, OverBudget, Reservation, Spender, Usage};
use model::{Budget, Price};
use std::sync::Arc;

/// How a door's session pays.
pub(crate) struct Spend {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) budget: Budget,
    pub(crate) notices: Option<Notices>,
}

/// A price for what costs nothing.
const FREE: Price = Price { input: 0, cached_input: 0, cache_write: 0, output: 0 };

/// The most a request is expected to take: prompt tokens at the dearest way to be charged for.
fn estimate(body: &AskBody, ask: Ask, model: &Model, price: Option<Price>) -> Usage {
    let (prompt, output) = body.estimate(ask, &model.config);
    let written = price.is_some_and(|p| p.cache_write > p.input);
    let (input, cache_write) = if written { (0, prompt) } else { (prompt, 0) };
    Usage { input, cache_read: 0, cache_write, output }
}

/// Reserves; `None` for what costs nothing (counting tokens).
///
/// A refusal has status 402, which no SDK asks again for, and is on record under the rule
/// `budget`; the first of each limit goes to the owner as a notice.
pub(crate) async fn reserve(
    door: &DoorState,
    model: &Model,
    ask: Ask,
    body: &AskBody,
) -> Result<Option<Reservation>, Failure> {
    if ask.is_count() {
        return Ok(None);
    }
    let scribe = &door.scribe;
    let who = Spender {
        agent: scribe.agent.clone(),
        session: scribe.session.clone(),
        turn: scribe.turn.get(),
        model: model.config.name.clone(),
        time_ms: (scribe.clock)(),
    };
    let price = match model.backend {
        Backend::Script(_) => Some(FREE),
        Backend::Http(_) => model.config.price,
    };
    let estimate = estimate(body, ask, model, price);
    let error = match door.spend.ledger.reserve(&who, estimate, price, &door.spend.budget) {
        Ok(reservation) => return Ok(Some(reservation)),
        Err(error) => error,
    };
    let text = error.to_string();
    if matches!(error, OverBudget::Ledger(_)) {
        return Err(Failure::new(503, text));
    }
    scribe.refused(format!("model {}", model.config.name), "budget", text.clone()).await;
    let first = matches!(&error, OverBudget::Limit(limit) if limit.first);
    if let Some(notices) = door.spend.notices.as_ref().filter(|_| first) {
        notices(Notice {
            agent: who.agent,
            session: who.session,
            turn: who.turn,
            rule: "budget".into(),
            text: text.clone(),
        });
    }
    Err(Failure::budget(text))
}
