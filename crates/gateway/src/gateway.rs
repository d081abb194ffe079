//! `Gateway`: what all doors share, and the opening of one.

use crate::counters::Counters;
use crate::door::{Door, DoorError, DoorGrant, DoorState};
use crate::endpoint::Endpoint;
use crate::modelapi::route::{Backend, Model};
use crate::modelapi::serve::BODY_PERMITS;
use crate::resolve::{Resolver, SystemResolver};
use crate::retry::RetryPolicy;
use crate::scribe::{Clock, Scribe};
use crate::script::Script;
use crate::upstream::{Pool, Roots, Tls};
use crate::vault::Vault;
use model::{ModelApi, ModelConfig, RecordSink};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// What a gateway is made of.
pub struct GatewayConfig {
    /// Where records go.
    pub sink: Arc<dyn RecordSink>,
    /// The opened vault.
    pub vault: Vault,
    /// Unix milliseconds, for records.
    pub clock: Clock,
    /// Names → addresses.
    pub resolver: Arc<dyn Resolver>,
    /// Who vouches for model servers.
    pub roots: Roots,
    /// How model servers are asked again.
    pub retry: RetryPolicy,
    /// Hosts (names or addresses) of model servers that may be spoken to without TLS. Loopback
    /// needs no entry.
    pub plain_http_hosts: Vec<String>,
}

impl GatewayConfig {
    /// The usual: system clock, resolver and certificates.
    #[must_use]
    pub fn new(sink: Arc<dyn RecordSink>, vault: Vault) -> Self {
        Self {
            sink,
            vault,
            clock: Arc::new(system_clock),
            resolver: Arc::new(SystemResolver),
            roots: Roots::System,
            retry: RetryPolicy::default(),
            plain_http_hosts: Vec::new(),
        }
    }
}

fn system_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The gateway. Cheap to share; doors outlive it.
pub struct Gateway {
    sink: Arc<dyn RecordSink>,
    vault: Arc<Vault>,
    clock: Clock,
    resolver: Arc<dyn Resolver>,
    tls: Arc<Tls>,
    retry: RetryPolicy,
    plain_http_hosts: Vec<String>,
    runtime: Handle,
}

impl Gateway {
    /// Makes a gateway on the current tokio runtime (multi-thread, with I/O and time).
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    #[must_use]
    pub fn new(config: GatewayConfig) -> Self {
        Self {
            sink: config.sink,
            vault: Arc::new(config.vault),
            clock: config.clock,
            resolver: config.resolver,
            tls: Arc::new(Tls::new(config.roots)),
            retry: config.retry,
            plain_http_hosts: config.plain_http_hosts,
            runtime: Handle::current(),
        }
    }

    /// Opens a door for one session. Callable from any thread. Everything in the grant is checked
    /// now, scripts included, so that a mistake shows before the sandbox starts.
    ///
    /// # Errors
    /// When the socket cannot be made safely, or a model of the grant is not usable.
    pub fn open_door(&self, grant: DoorGrant) -> Result<Door, DoorError> {
        let models = grant
            .models
            .into_iter()
            .map(|config| self.check_model(config))
            .collect::<Result<Vec<Model>, DoorError>>()?;
        let default_model = match grant.default_model {
            None => None,
            Some(name) => match models.iter().position(|m| m.config.name == name) {
                Some(at) => Some(at),
                None => return Err(DoorError::UnknownDefault { model: name }),
            },
        };
        let _inside = self.runtime.enter();
        self.warm_up(&models);
        let scribe = Scribe {
            sink: Arc::clone(&self.sink),
            clock: Arc::clone(&self.clock),
            session: grant.session,
            agent: grant.agent,
            turn: grant.turn,
            counters: Arc::new(Counters::default()),
        };
        let state = DoorState {
            scribe: Arc::new(scribe),
            rules: grant.egress,
            models,
            default_model,
            placeholder: grant.placeholder,
            vault: Arc::clone(&self.vault),
            resolver: Arc::clone(&self.resolver),
            pool: Pool::new(Arc::clone(&self.tls), Arc::clone(&self.resolver)),
            retry: self.retry,
            bodies: Arc::new(Semaphore::new(BODY_PERMITS)),
        };
        Door::open(grant.socket, state)
    }

    fn check_model(&self, config: ModelConfig) -> Result<Model, DoorError> {
        let model = config.name.clone();
        let backend = match (config.api, &config.script) {
            (ModelApi::Script, None) => return Err(DoorError::NoScript { model }),
            (ModelApi::Script, Some(path)) => {
                let script = Script::load(path).map_err(|why| DoorError::Script { model, why })?;
                Backend::Script(Arc::new(script))
            }
            (ModelApi::Anthropic | ModelApi::OpenAi, _) => {
                let endpoint = Endpoint::parse(&config.base_url, &self.plain_http_hosts)
                    .map_err(|why| DoorError::Endpoint { model, why })?;
                Backend::Http(endpoint)
            }
        };
        Ok(Model { config, backend })
    }

    /// Reads the system's certificates while the sandbox starts, not during the first request.
    /// An error is told by that request.
    fn warm_up(&self, models: &[Model]) {
        if models.iter().any(|m| matches!(&m.backend, Backend::Http(e) if e.tls)) {
            let tls = Arc::clone(&self.tls);
            tokio::spawn(async move { drop(tls.config().await) });
        }
    }
}
