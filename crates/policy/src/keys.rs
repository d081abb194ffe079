//! The vocabulary of the files: every key of every table, and which of them this version enforces.

/// The schema version this crate reads and writes.
pub const SCHEMA_VERSION: i64 = 1;

/// Furthest a key may be from a known one (in edits) to be suggested; beyond it guesses mislead.
const SUGGEST_DISTANCE_MAX: usize = 3;

/// The keys of one table.
pub(crate) struct Keys {
    /// Accepted.
    pub(crate) known: &'static [&'static str],
    /// Part of the schema, but without a mechanism in this version: refused by name.
    pub(crate) later: &'static [&'static str],
}

pub(crate) const CONFIG: Keys = Keys {
    known: &[
        "schema",
        "default_agent",
        "models",
        "logins",
        "mcp",
        "vault",
        "audit",
        "witnesses",
        "witness_quorum",
    ],
    later: &["channels"],
};

pub(crate) const MODEL: Keys = Keys {
    known: &[
        "api",
        "base_url",
        "model",
        "secret",
        "login",
        "script",
        "max_tokens",
        "context_tokens",
        "fallbacks",
        "price",
    ],
    later: &[],
};

pub(crate) const VAULT: Keys = Keys { known: &["key"], later: &[] };

pub(crate) const AUDIT: Keys = Keys { known: &["texts"], later: &[] };

pub(crate) const PRICE: Keys =
    Keys { known: &["input", "cached_input", "cache_write", "output"], later: &[] };

pub(crate) const AGENT: Keys = Keys {
    known: &[
        "schema",
        "description",
        "runtime",
        "command",
        "model",
        "instructions",
        "workspace",
        "sandbox",
        "mounts",
        "egress",
        "deny",
        "ask",
        "secrets",
        "budget",
        "env",
        "tools",
    ],
    later: &[],
};

pub(crate) const INSTRUCTIONS: Keys = Keys { known: &["file"], later: &[] };

pub(crate) const SANDBOX: Keys = Keys {
    known: &[
        "backend",
        "engine_image",
        "engine_runtime",
        "rootfs",
        "memory",
        "cpus",
        "pids",
        "file_size",
        "tmp",
        "disk",
        "open_files",
        "turn_timeout",
        "wall_time",
        "limits",
        "witness",
        "probe_on_start",
    ],
    later: &["require"],
};

pub(crate) const MOUNT: Keys = Keys { known: &["source", "target", "access"], later: &[] };

pub(crate) const EGRESS: Keys = Keys {
    known: &[
        "host",
        "port",
        "private",
        "methods",
        "paths",
        "secret",
        "inject",
        "tls",
        "protocol",
        "own_credentials",
        "websocket",
        "max_request",
        "max_upload_per_day",
        "max_per_minute",
    ],
    later: &[],
};

pub(crate) const INJECT: Keys = Keys { known: &["header", "basic", "query"], later: &[] };

pub(crate) const DENY: Keys = Keys { known: &["host", "port", "methods", "paths"], later: &[] };

pub(crate) const ASK: Keys =
    Keys { known: &["egress", "by", "timeout", "secret", "inject"], later: &[] };

pub(crate) const SECRET: Keys = Keys { known: &["name", "deliver"], later: &[] };

pub(crate) const BUDGET: Keys =
    Keys { known: &["usd_per_day", "usd_per_turn", "tokens_per_day"], later: &[] };

/// A proposal of rules: inert, and with none of the keys that grant more than a path, but for the
/// WebSockets of the session it was learned from.
pub(crate) const PROPOSAL: Keys =
    Keys { known: &["schema", "agent", "session", "egress"], later: &[] };

pub(crate) const PROPOSED: Keys =
    Keys { known: &["host", "port", "methods", "paths", "websocket"], later: &[] };

pub(crate) const TOOLS: Keys = Keys { known: &["allow", "provider"], later: &[] };

impl Keys {
    /// The known or later key nearest to `key`, if near enough to be what was meant.
    pub(crate) fn nearest(&self, key: &str) -> Option<&'static str> {
        nearest(key, self.known.iter().chain(self.later).copied())
    }
}

/// The candidate with the fewest edits from `word`: at most a third of the word and never more
/// than [`SUGGEST_DISTANCE_MAX`]. Ties go to the first.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let chars: Vec<char> = word.chars().take(64).collect();
    let limit = (chars.len() / 3 + 1).min(SUGGEST_DISTANCE_MAX);
    candidates
        .map(|c| (distance(&chars, c), c))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of
/// neighbours, each worth one.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &cb) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(ca != cb)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_and_leaves_strangers_alone() {
        for (typo, want) in [
            ("memroy", Some("memory")),
            ("cpu", Some("cpus")),
            ("time_out", None),
            ("roofts", Some("rootfs")),
            ("opne_files", Some("open_files")),
            ("turntimeout", Some("turn_timeout")),
            ("dsik", Some("disk")),
            ("", None),
        ] {
            assert_eq!(SANDBOX.nearest(typo), want, "{typo}");
        }
    }

    /// The committed schemas name exactly the keys that are accepted, table by table.
    #[test]
    fn the_schemas_are_fresh() {
        let agent: serde_json::Value =
            serde_json::from_str(include_str!("../schema/agent.schema.json")).expect("JSON");
        let config: serde_json::Value =
            serde_json::from_str(include_str!("../schema/nanoclaw.schema.json")).expect("JSON");
        let of = |root: &serde_json::Value, path: &str| -> Vec<String> {
            let table = root.pointer(path).expect(path);
            assert_eq!(table["additionalProperties"], false, "{path} lets strangers in");
            let mut keys: Vec<_> =
                table["properties"].as_object().expect(path).keys().cloned().collect();
            keys.sort();
            keys
        };
        for (root, path, keys) in [
            (&agent, "", &AGENT),
            (&agent, "/properties/instructions/oneOf/1", &INSTRUCTIONS),
            (&agent, "/properties/sandbox", &SANDBOX),
            (&agent, "/properties/mounts/items", &MOUNT),
            (&agent, "/properties/egress/items", &EGRESS),
            (&agent, "/properties/egress/items/properties/inject/oneOf/1", &INJECT),
            (&agent, "/properties/deny/items", &DENY),
            (&agent, "/properties/ask/items", &ASK),
            (&agent, "/properties/secrets/items", &SECRET),
            (&agent, "/properties/budget", &BUDGET),
            (&agent, "/properties/tools", &TOOLS),
            (&config, "", &CONFIG),
            (&config, "/properties/mcp/additionalProperties", &crate::mcp_section::MCP),
            (
                &config,
                "/properties/mcp/additionalProperties/properties/sandbox",
                &crate::mcp_section::SANDBOX,
            ),
            (&config, "/properties/vault", &VAULT),
            (&config, "/properties/audit", &AUDIT),
            (&config, "/properties/logins/additionalProperties", &crate::login_section::LOGIN),
            (
                &config,
                "/properties/witnesses/additionalProperties",
                &crate::witness_section::WITNESS,
            ),
            (&config, "/properties/models/additionalProperties", &MODEL),
            (&config, "/properties/models/additionalProperties/properties/price", &PRICE),
        ] {
            let mut known = keys.known.to_vec();
            known.sort_unstable();
            assert_eq!(of(root, path), known, "{path}");
        }
        let tools = agent.pointer("/properties/tools/properties/allow/items/anyOf/0/enum");
        let all: Vec<_> = crate::BUILTIN_TOOLS.into_iter().chain(crate::HOST_TOOLS).collect();
        assert_eq!(tools, Some(&serde_json::json!(all)));
        let tools = agent.pointer("/properties/tools/properties/provider/items/enum");
        assert_eq!(tools, Some(&serde_json::json!(crate::PROVIDER_TOOLS)));
    }
}
