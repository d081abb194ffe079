//! Logins: the use of a subscription in place of a key. Finished decisions, no policy.

use serde::{Deserialize, Serialize};

/// Whose subscription it is: what differs between the providers' ways of OAuth 2.0 (RFC 6749 with
/// PKCE, RFC 7636).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoginProvider {
    /// Anthropic's Claude.
    Claude,
    /// OpenAI's ChatGPT.
    ChatGpt,
}

impl LoginProvider {
    /// Every provider.
    pub const ALL: [Self; 2] = [Self::Claude, Self::ChatGpt];

    /// As it is written in `nanoclaw.toml`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Claude => "claude",
            Self::ChatGpt => "chatgpt",
        }
    }

    /// Where models of the subscription are asked.
    #[must_use]
    pub fn base_url(self) -> &'static str {
        match self {
            Self::Claude => "https://api.anthropic.com",
            Self::ChatGpt => "https://api.openai.com",
        }
    }
}

/// A login, resolved: `[logins.NAME]` of `nanoclaw.toml` over what is built in for the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginConfig {
    /// NAME; the vault knows it under this name.
    pub name: String,
    /// Whose it is.
    pub provider: LoginProvider,
    /// The registered name of the program that logs in; `None` where a token is pasted instead.
    pub client_id: Option<String>,
    /// Where a person agrees.
    pub authorize_url: String,
    /// Where codes and refresh tokens become access tokens.
    pub token_url: String,
    /// Where the provider sends the person afterwards; a loopback address is listened at.
    pub redirect_url: String,
    /// What is asked for, separated by spaces.
    pub scope: String,
}

impl LoginConfig {
    /// What is built in for a provider.
    ///
    /// Nothing is built in as Claude's client: Anthropic's terms leave the login of claude.ai to
    /// its own programs. `ChatGPT`'s is the one with which `OpenAI` has open-source programs begin
    /// ("Sign in with ChatGPT"); the client that it issues then is kept with the tokens.
    #[must_use]
    pub fn built_in(name: &str, provider: LoginProvider) -> Self {
        let (client_id, authorize_url, token_url, redirect_url, scope) = match provider {
            LoginProvider::Claude => (
                None,
                "https://claude.ai/oauth/authorize",
                "https://console.anthropic.com/v1/oauth/token",
                "https://console.anthropic.com/oauth/code/callback",
                "user:profile user:inference",
            ),
            LoginProvider::ChatGpt => (
                Some("dynamic_agent_client"),
                "https://auth.openai.com/api/accounts/authorize",
                "https://auth.openai.com/api/accounts/oauth/token",
                "http://127.0.0.1:1455/auth/callback",
                "openid profile email offline_access resource.invoke chatgpt.tokens.use.direct",
            ),
        };
        Self {
            name: name.to_owned(),
            provider,
            client_id: client_id.map(str::to_owned),
            authorize_url: authorize_url.to_owned(),
            token_url: token_url.to_owned(),
            redirect_url: redirect_url.to_owned(),
            scope: scope.to_owned(),
        }
    }
}
