//! The model API at the door: one base URL that speaks Anthropic Messages, OpenAI Chat
//! Completions, OpenAI Responses and Gemini.
//!
//! ```text
//! request ─► operation ─► own key? ─► body (bounded) ─► model by name ─► within the budget?
//!                                                                              │
//!                    server, its fallbacks, or script ◄─ record (durable) ◄────┘
//!                                     │
//! agent ◄─ masked, streamed ◄─ metered, hashed
//! ```
//!
//! Invariants:
//! 1. No header of the agent's goes upstream but those on the list in [`wire`]; no credential does,
//!    and a request that carries another key than the session's placeholder is refused.
//! 2. `ModelRequest` is durable before the first byte goes upstream; a `ModelResponse` follows
//!    every `ModelRequest`, whatever happens.
//! 3. After the first byte went to the agent nothing is asked again.
//! 4. What a request may cost is reserved before it leaves; over budget, nothing leaves.

pub(crate) mod ask;
pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod credential;
pub(crate) mod operation;
pub(crate) mod outcome;
pub(crate) mod outline;
pub(crate) mod provider;
pub(crate) mod relay;
pub(crate) mod route;
pub(crate) mod serve;
pub(crate) mod spend;
pub(crate) mod wire;
