//! The model API at the door: one base URL that speaks Anthropic Messages and OpenAI Chat.
//!
//! ```text
//! request ─► operation ─► body (bounded) ─► model by name ─► record (durable) ─► server or script
//!                                                                                     │
//! agent ◄─ masked, streamed ◄─ metered, hashed ◄──────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! 1. No header of the agent's goes upstream but those on the list in [`wire`]; no credential does.
//! 2. `ModelRequest` is durable before the first byte goes upstream; a `ModelResponse` follows
//!    every `ModelRequest`, whatever happens.
//! 3. After the first byte went to the agent nothing is asked again.

pub(crate) mod call;
pub(crate) mod outcome;
pub(crate) mod relay;
pub(crate) mod route;
pub(crate) mod serve;
pub(crate) mod wire;
