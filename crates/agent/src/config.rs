//! The agent's settings, read from its environment once.

use crate::wire::http::Door;
use model::{DoorSpec, ModelApi};
use std::path::PathBuf;

/// Largest answer asked for where nothing else is set, in tokens.
const DEFAULT_MAX_TOKENS: u64 = 8_192;
/// Context window assumed where nothing else is set: what small local models have.
const DEFAULT_CONTEXT_TOKENS: u64 = 32_768;
/// Longest extra instruction text; more would crowd out the conversation.
const MAX_INSTRUCTIONS_BYTES: usize = 64 << 10;

/// Everything the agent was told from outside.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The model's name, sent in requests.
    pub(crate) model: String,
    /// Its wire format.
    pub(crate) api: ModelApi,
    /// Largest answer asked for, in tokens.
    pub(crate) max_tokens: u64,
    /// The model's context window, in tokens.
    pub(crate) context_tokens: u64,
    /// Extra instructions, possibly empty.
    pub(crate) instructions: String,
    /// What stands where a key would; the gateway replaces it.
    pub(crate) placeholder: String,
    /// The door.
    pub(crate) door: Door,
    /// Whether the host has tools for this session.
    pub(crate) host_tools: bool,
    /// Where the conversation is kept.
    pub(crate) home: PathBuf,
}

/// The environment does not make sense. Told in the answer to `initialize`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the built-in agent's setting {name} {why}; set it in the environment of its sandbox")]
pub(crate) struct ConfigError {
    name: &'static str,
    why: &'static str,
}

impl Config {
    /// Reads the settings through `get`, which looks up one environment variable.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let err = |name, why| ConfigError { name, why };
        let api = match set("NANOCLAW_MODEL_API").as_deref() {
            Some("anthropic") => ModelApi::Anthropic,
            Some("openai") => ModelApi::OpenAi,
            None => return Err(err("NANOCLAW_MODEL_API", "is missing")),
            Some(_) => return Err(err("NANOCLAW_MODEL_API", "is neither anthropic nor openai")),
        };
        let number = |name, default| match set(name).map(|value| value.parse::<u64>()) {
            None => Ok(default),
            Some(Ok(value)) if value > 0 => Ok(value),
            Some(_) => Err(err(name, "is not a positive number")),
        };
        let placeholder = set("NANOCLAW_PLACEHOLDER").unwrap_or_else(|| "placeholder".to_owned());
        if !placeholder.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(err("NANOCLAW_PLACEHOLDER", "has characters no header may have"));
        }
        let instructions = set("NANOCLAW_INSTRUCTIONS").unwrap_or_default();
        Ok(Self {
            model: set("NANOCLAW_MODEL").ok_or(err("NANOCLAW_MODEL", "is missing"))?,
            api,
            max_tokens: number("NANOCLAW_MAX_TOKENS", DEFAULT_MAX_TOKENS)?,
            context_tokens: number("NANOCLAW_CONTEXT_TOKENS", DEFAULT_CONTEXT_TOKENS)?,
            instructions: crate::rpc::clip(&instructions, MAX_INSTRUCTIONS_BYTES).to_owned(),
            placeholder,
            door: door(set)?,
            host_tools: set("NANOCLAW_HOST_TOOLS")
                .is_some_and(|value| value == "true" || value == "1"),
            home: set("HOME").map(PathBuf::from).ok_or(err("HOME", "is missing"))?,
        })
    }
}

/// The door: the port of it that the sandbox names, else the socket that is named, else the one
/// that every sandbox with a door has. `set` looks up one environment variable that is not empty.
pub(crate) fn door(set: impl Fn(&str) -> Option<String>) -> Result<Door, ConfigError> {
    const PORT: &str = "NANOCLAW_DOOR_PORT";
    let inside = || DoorSpec::INSIDE.into();
    match set(PORT).map(|port| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(Door::Port(port)),
        Some(_) => Err(ConfigError { name: PORT, why: "is not a port" }),
        None => Ok(Door::Socket(set("NANOCLAW_DOOR").map_or_else(inside, PathBuf::from))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn defaults_are_filled_in_and_nonsense_is_named() {
        let base = [("NANOCLAW_MODEL", "m"), ("NANOCLAW_MODEL_API", "openai"), ("HOME", "/h")];
        let config = read(&base).unwrap();
        assert_eq!(config.door, Door::Socket(DoorSpec::INSIDE.into()));
        // The door takes nobody at its socket but the sandbox's relay, which listens at the port.
        let named =
            [&base[..], &[("NANOCLAW_DOOR_PORT", "3128"), ("NANOCLAW_DOOR", "/x")]].concat();
        assert_eq!(read(&named).unwrap().door, Door::Port(3128));
        assert!(!config.host_tools);
        assert_eq!(config.context_tokens, DEFAULT_CONTEXT_TOKENS);
        for (name, bad) in [
            ("NANOCLAW_MODEL_API", "gemini"),
            ("NANOCLAW_MAX_TOKENS", "0"),
            ("NANOCLAW_CONTEXT_TOKENS", "many"),
            ("NANOCLAW_PLACEHOLDER", "a\r\nX-Evil: 1"),
            ("NANOCLAW_MODEL", ""),
            ("NANOCLAW_DOOR_PORT", "0"),
            ("NANOCLAW_DOOR_PORT", "70000"),
        ] {
            let mut pairs = vec![(name, bad)];
            pairs.extend(base.iter().filter(|(n, _)| *n != name));
            assert_eq!(read(&pairs).unwrap_err().name, name);
        }
    }
}
