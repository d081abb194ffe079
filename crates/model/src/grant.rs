//! Host names, models, prices and budgets. Finished decisions, no policy.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A DNS name in the one spelling that is compared: lower case, ASCII (IDNA A-labels), no
/// trailing dot, never an address literal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// Why a string is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host {value:?} is not valid: {why}")]
pub struct HostNameError {
    /// What was given, cut to 80 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl HostName {
    /// Normalises and checks (RFC 1123 §2.1 host names, RFC 1035 §2.3.4 sizes).
    ///
    /// # Errors
    /// For addresses, wildcards, ports, userinfo, non-ASCII text (write the `xn--` form), empty
    /// or over-long labels.
    pub fn parse(value: &str) -> Result<Self, HostNameError> {
        let err = |why| Err(HostNameError { value: value.chars().take(80).collect(), why });
        let name = value.strip_suffix('.').unwrap_or(value).to_ascii_lowercase();
        if name.is_empty() {
            return err("it is empty");
        }
        if !name.is_ascii() {
            return err("it is not ASCII; write the xn-- form");
        }
        if name.len() > 253 {
            return err("it is longer than 253 characters");
        }
        if name.bytes().any(|b| !(b.is_ascii_alphanumeric() || b == b'-' || b == b'.')) {
            return err("only letters, digits, '-' and '.' are allowed (no port, no path, no '*')");
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 {
                return err("each part between dots must have 1 to 63 characters");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return err("no part may start or end with '-'");
            }
        }
        // Every legacy spelling of IPv4 (1.2.3.4, 0x7f.1, 2130706433) ends in a numeric label.
        let last = name.rsplit('.').next().unwrap_or("");
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
            return err("it is an address, not a name");
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;
    fn try_from(value: String) -> Result<Self, HostNameError> {
        Self::parse(&value)
    }
}

impl From<HostName> for String {
    fn from(host: HostName) -> String {
        host.0
    }
}

/// Where the vault's private key is kept: `[vault] key` of `nanoclaw.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file of mode 0600 in the vault.
    File,
    /// The desktop's keyring (Secret Service).
    Keyring,
    /// A credential that systemd hands to the service.
    Systemd,
}

impl KeyPlace {
    /// Every place.
    pub const ALL: [Self; 3] = [Self::File, Self::Keyring, Self::Systemd];

    /// As it is written in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Keyring => "keyring",
            Self::Systemd => "systemd",
        }
    }
}

/// The wire format a model speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelApi {
    /// Anthropic Messages: `POST /v1/messages`.
    Anthropic,
    /// OpenAI Chat Completions: `POST /v1/chat/completions` (also Ollama, llama.cpp, vLLM, …).
    OpenAi,
    /// OpenAI Responses: `POST /v1/responses`.
    Responses,
    /// Gemini: `POST /v1beta/models/M:generateContent` and `:streamGenerateContent`.
    Gemini,
    /// A file of turns, played by the gateway in any wire format. Always said aloud.
    Script,
}

impl ModelApi {
    /// As it is written in `nanoclaw.toml` and in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
            Self::Responses => "responses",
            Self::Gemini => "gemini",
            Self::Script => "script",
        }
    }
}

/// What a provider takes, in micro-USD (10^-6 USD) per million tokens: `3.0` USD per million in
/// the file is `3_000_000` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Price {
    /// Prompt tokens that no cache held.
    pub input: u64,
    /// Prompt tokens read from the provider's cache.
    pub cached_input: u64,
    /// Prompt tokens written to the provider's cache.
    pub cache_write: u64,
    /// Tokens of the answer, hidden reasoning included.
    pub output: u64,
}

/// What an agent may spend on models. `None` is no limit. Days are UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Budget {
    /// `usd_per_day` in micro-USD, over all sessions of the agent.
    pub micro_usd_per_day: Option<u64>,
    /// `usd_per_turn` in micro-USD.
    pub micro_usd_per_turn: Option<u64>,
    /// `tokens_per_day`: prompts and answers together, over all sessions of the agent.
    pub tokens_per_day: Option<u64>,
}

impl Budget {
    /// Whether it limits anything.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        *self != Self::default()
    }
}

/// One `[models.NAME]` of `nanoclaw.toml`, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// NAME.
    pub name: String,
    /// Its wire format; the first where it speaks several.
    pub api: ModelApi,
    /// Further wire formats that it speaks.
    pub also: Vec<ModelApi>,
    /// Where it is, without the `/v1/...` path; empty for scripts.
    pub base_url: String,
    /// The provider's own name for the model, sent in requests; for scripts the file's stem.
    pub model: String,
    /// The vault's name of the key; `None` for servers that want none.
    pub secret: Option<String>,
    /// The subscription used in place of a key.
    #[serde(default)]
    pub login: Option<crate::LoginConfig>,
    /// The file of turns, for scripts only.
    pub script: Option<std::path::PathBuf>,
    /// Largest answer asked for, in tokens.
    pub max_tokens: u32,
    /// The model's context window, in tokens; history is summarised before it overflows.
    pub context_tokens: u32,
    /// Names of the models asked in its place, in order, while it cannot answer.
    pub fallbacks: Vec<String>,
    /// What it costs; `None` is unknown, which no budget in USD accepts.
    pub price: Option<Price>,
}

impl ModelConfig {
    /// Whether it can be asked in this wire format.
    #[must_use]
    pub fn speaks(&self, api: ModelApi) -> bool {
        self.api == ModelApi::Script || self.api == api || self.also.contains(&api)
    }

    /// The format the built-in agent asks it in: the first written of the two it knows.
    #[must_use]
    pub fn builtin_api(&self) -> Option<ModelApi> {
        if self.api == ModelApi::Script {
            return Some(ModelApi::Anthropic);
        }
        let known = |api: &ModelApi| matches!(api, ModelApi::Anthropic | ModelApi::OpenAi);
        std::iter::once(self.api).chain(self.also.iter().copied()).find(known)
    }
}

#[cfg(test)]
mod tests {
    use super::HostName;

    #[test]
    fn addresses_in_any_spelling_are_not_names() {
        for bad in ["127.0.0.1", "2130706433", "0x7f000001", "017700000001", "1.2.3.0x4", "[::1]"] {
            assert!(HostName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_normalised_and_limited() {
        let host = HostName::parse("API.Example.COM.").map(|h| h.to_string());
        assert_eq!(host.as_deref(), Ok("api.example.com"));
        let long = format!("{}.com", "a".repeat(64));
        for bad in ["", ".", "a..b", "*.a.com", "a.com:80", "u@a.com", "-a.com", "é.com", &long] {
            assert!(HostName::parse(bad).is_err(), "{bad}");
        }
    }
}
