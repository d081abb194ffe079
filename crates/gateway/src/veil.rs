//! Which secrets an answer may hold beside the one that its own request used: those of the door's
//! other rules, models and servers of tools.
//!
//! ```text
//! host ─► is a secret of the door's used there? ─► then all of the door's are looked for
//! ```
//!
//! 1. A server that stores a secret and gives it back to another request, by another rule of the
//!    same agent, shows nothing.
//! 2. Where no secret is used, nothing is opened and nothing is looked for.
//! 3. A secret that is used at the host and cannot be opened closes the host: what cannot be
//!    looked for cannot be masked.

use crate::mask::Masker;
use crate::modelapi::route::{Backend, Model};
use crate::vault::{Secret, Vault, VaultError};
use model::{AgentName, EgressRule, HostName, HostPattern, HostTools, McpReach};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where a door uses a secret.
enum Place {
    Rule(HostPattern),
    /// A name or an address, of a model or of a server of tools.
    Host(String),
}

impl Place {
    /// `name` is `host` read as a name, if it is one.
    fn is(&self, host: &str, name: Option<&HostName>) -> bool {
        match self {
            Self::Rule(pattern) => name.is_some_and(|name| pattern.covers(name)),
            Self::Host(own) => own == host,
        }
    }
}

/// The secrets of one door, by name.
pub(crate) struct Veil {
    vault: Arc<Vault>,
    agent: AgentName,
    uses: Vec<(Place, String)>,
}

impl Veil {
    /// The secrets that rules, models and servers of tools name.
    pub(crate) fn new(
        vault: Arc<Vault>,
        agent: AgentName,
        rules: &[EgressRule],
        models: &[Model],
        tools: &HostTools,
    ) -> Self {
        let of_rules = rules.iter().filter_map(|rule| {
            let used = rule.secret.as_ref()?;
            Some((Place::Rule(rule.host.clone()), used.name.clone()))
        });
        let of_models = models.iter().filter_map(|m| match &m.backend {
            Backend::Http(to) => Some((Place::Host(to.host.clone()), m.config.secret.clone()?)),
            Backend::Script(_) => None,
        });
        let of_servers = tools.servers.iter().filter_map(|server| match &server.reach {
            McpReach::Http { url, secret: Some(secret), .. } => {
                Some((Place::Host(crate::mcp::host_of(url)?), secret.clone()))
            }
            _ => None,
        });
        let uses = of_rules.chain(of_models).chain(of_servers).collect();
        Self { vault, agent, uses }
    }

    /// What an answer of `host` to a request with the secret `own` must not show, `own` apart.
    /// Nothing where no secret of the door's is used.
    pub(crate) fn at(&self, host: &str, own: Option<&str>) -> Result<Vec<Secret>, VaultError> {
        let here = self.here(host, own)?;
        if here.is_empty() && own.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.with_others(here, own))
    }

    /// The same for texts that are looked through anyway: all that can be opened of the door's.
    pub(crate) fn everywhere(
        &self,
        host: &str,
        own: Option<&str>,
    ) -> Result<Vec<Secret>, VaultError> {
        Ok(self.with_others(self.here(host, own)?, own))
    }

    /// Masks every secret of the door's that can be opened.
    pub(crate) fn masker(&self) -> Masker {
        let all = self.with_others(BTreeMap::new(), None);
        Masker::of(all.iter().map(|s| s.bytes.expose()))
    }

    /// The secrets used at `host` by rule and seal.
    fn here(&self, host: &str, own: Option<&str>) -> Result<BTreeMap<&str, Secret>, VaultError> {
        let as_name = HostName::parse(host).ok();
        let uses = self.uses.iter().filter(|(place, _)| place.is(host, as_name.as_ref()));
        let names: BTreeSet<&str> = uses.map(|(_, name)| name.as_str()).collect();
        let mut all = BTreeMap::new();
        for name in names.into_iter().filter(|name| Some(*name) != own) {
            match self.vault.secret(name) {
                Ok(secret) if secret.serves(host, &self.agent) => drop(all.insert(name, secret)),
                // Never used there, so nobody there can have it.
                Ok(_) | Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Adds what was used elsewhere: servers pass on what they were given.
    fn with_others<'a>(
        &'a self,
        mut all: BTreeMap<&'a str, Secret>,
        own: Option<&str>,
    ) -> Vec<Secret> {
        for name in self.uses.iter().map(|(_, name)| name.as_str()) {
            if Some(name) != own
                && !all.contains_key(name)
                && let Ok(secret) = self.vault.secret(name)
                && secret.is_for(&self.agent)
            {
                all.insert(name, secret);
            }
        }
        all.into_values().collect()
    }
}
