//! `deliver = "stdin"`: the one way a secret's bytes reach an agent, chosen by name in its file.

use crate::door::Door;
use crate::vault::{SecretBytes, VaultError};
use model::{Body, Durability, RecordError};

/// The `host` of the [`Body::SecretUsed`] that stands for a delivery: no host name has a space.
const WHERE: &str = "the agent's standard input";

/// Why a secret is not handed over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    /// The agent's file does not say so.
    #[error(
        "the agent's file does not hand over the secret {name:?}; it would say \
         `deliver = \"stdin\"`"
    )]
    NotGranted { name: String },
    /// The secret itself was sealed for others.
    #[error("the secret {name:?} is not for this agent; set it again with `--agent`")]
    NotForAgent { name: String },
    /// It cannot be opened.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// It would go unrecorded.
    #[error("the secret is not handed over, for {0}")]
    Unrecorded(#[from] RecordError),
}

impl Door {
    /// Opens a secret for the agent's standard input; durably on record before it is returned.
    pub(crate) async fn release(&self, name: &str) -> Result<SecretBytes, DeliverError> {
        let state = &self.state;
        if !state.stdin_secrets.contains(name) {
            return Err(DeliverError::NotGranted { name: name.to_owned() });
        }
        let secret = state.vault.secret(name)?;
        if !secret.is_for(&state.scribe.agent) {
            return Err(DeliverError::NotForAgent { name: name.to_owned() });
        }
        let body = Body::SecretUsed { secret: name.to_owned(), host: WHERE.to_owned() };
        state.scribe.write(body, Durability::Durable).await?;
        Ok(secret.bytes)
    }
}
