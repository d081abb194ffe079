//! The gateway: the only way out of a sandbox, and the only place where secrets are opened.
//!
//! ```text
//! sandbox ─► door (one socket = one session) ─► strict parse ─► verdict ─► resolve, judge, pin
//!         ─► intent on record, durably ─► key injected ─► streamed ─► result on record
//! ```
//!
//! Invariants, each with a test:
//! 1. Who asks is decided by the listening socket, never by what is sent through it.
//! 2. Nothing leaves before its intent is durable; if it cannot be written, nothing leaves.
//! 3. No credential from the sandbox goes upstream to a model, and no byte of an injected secret
//!    goes into the sandbox or a record.
//! 4. What is not permitted by name is refused, told why and how to permit it, and recorded.
//! 5. What a session can hold here is bounded.

mod address;
mod asks;
mod authority;
pub mod control;
mod counters;
mod door;
mod egress;
mod endpoint;
mod gateway;
mod http;
mod inject;
mod mask;
pub mod mcp;
mod modelapi;
mod quota;
mod rates;
mod resolve;
mod retry;
mod room;
mod scribe;
pub mod script;
pub mod tls;
mod upstream;
pub mod usage;
pub mod vault;

pub use asks::{Answer, Approver, NobodyApproves, Question};
pub use counters::Counts;
pub use door::{Door, DoorError, DoorGrant, bind_door};
pub use endpoint::EndpointError;
pub use gateway::{Gateway, GatewayConfig};
pub use inject::{InjectError, Injector, Outgoing};
pub use resolve::{Resolver, Resolving, SystemResolver};
pub use retry::RetryPolicy;
pub use room::CONNECTIONS_MAX;
pub use scribe::{Clock, TurnCell};
pub use upstream::Roots;
pub use vault::{Sealer, SecretBytes, SecretInfo, Vault, VaultError};
