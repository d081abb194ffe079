//! Logins at a model's provider: a person agrees in a browser, the gateway holds what comes of it.

use super::{ControlClient, ControlError, unexpected};
use crate::control::wire::{Reply, ToGateway};
use model::{AgentName, LoginConfig};

impl ControlClient {
    /// Begins a login; the address at which a person agrees. Its tokens will be for `hosts` and,
    /// unless `agents` is empty, for these agents only. A later call replaces it.
    ///
    /// # Errors
    /// When the login is not usable, or the gateway is gone.
    pub fn begin_login(
        &self,
        login: &LoginConfig,
        hosts: &[String],
        agents: &[AgentName],
    ) -> Result<String, ControlError> {
        let made = |id| ToGateway::BeginLogin {
            id,
            login: Box::new(login.clone()),
            hosts: hosts.to_vec(),
            agents: agents.to_vec(),
        };
        match self.shared.request(&made, None, true)?.0 {
            Reply::LoginAddress { url } => Ok(url),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the login that this client began, with what the browser was sent to or a person
    /// copied; the gateway fetches the tokens and seals them. When the access token runs out
    /// (Unix milliseconds), if the provider says so, and whether it is renewed by itself.
    ///
    /// # Errors
    /// When there is no code in it, it is another login's, the provider refuses, the tokens cannot
    /// be sealed, or the gateway is gone. A wrong paste may be tried again.
    pub fn finish_login(&self, pasted: &str) -> Result<(Option<u64>, bool), ControlError> {
        let made = |id| ToGateway::FinishLogin { id, pasted: pasted.to_owned() };
        match self.shared.request(&made, None, true)?.0 {
            Reply::LoggedIn { expires_ms, renewable } => Ok((expires_ms, renewable)),
            other => Err(unexpected(&other)),
        }
    }
}
