//! `Gateway`: what all doors share, and the opening of one.

use crate::asks::{Approver, Asks, NobodyApproves};
use crate::counters::Counters;
use crate::door::{Door, DoorError, DoorGrant, DoorState};
use crate::egress::{link::Links, name::Refused};
use crate::endpoint::Endpoint;
use crate::mcp::{
    self, Described, DoorTools, McpError, Means, NoStdioServers, Reach, StdioServers,
};
use crate::modelapi::route::{Backend, Model};
use crate::modelapi::serve::BODY_PERMITS;
use crate::modelapi::spend::Spend;
use crate::quota::Quota;
use crate::rates::Rates;
use crate::resolve::{Resolver, SystemResolver};
use crate::retry::RetryPolicy;
use crate::room::{self, Room};
use crate::scribe::{Clock, Scribe};
use crate::script::Script;
use crate::tls::Authority;
use crate::upstream::{Pool, Roots, Tls};
use crate::usage::{Ledger, Notices};
use crate::vault::Vault;
use model::{McpServer, ModelApi, ModelConfig, RecordSink};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
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
    /// Folder of what the gateway keeps over restarts (`<home>/gateway`, 0700): the day's uploads.
    /// Without one they are forgotten at the end.
    pub state_dir: Option<PathBuf>,
    /// Who is asked where a rule says `ask`; by default nobody, which denies.
    pub approver: Arc<dyn Approver>,
    /// Whose certificates the sandboxes trust. Without one no TLS can be looked into, and what a
    /// rule wants looked into is refused.
    pub authority: Option<Arc<Authority>>,
    /// Where the cost of models is kept and held to budgets; by default it is forgotten at the end.
    pub ledger: Arc<Ledger>,
    /// Where the owner is told things, e.g. that a budget is used up.
    pub notices: Option<Notices>,
    /// Who starts the programs of `command = […]` servers of tools; by default nobody.
    pub stdio_servers: Arc<dyn StdioServers>,
    /// Connections that all doors share, beside the few that each has to itself.
    pub shared_connections: usize,
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
            state_dir: None,
            approver: Arc::new(NobodyApproves),
            authority: None,
            ledger: Ledger::in_memory(),
            notices: None,
            stdio_servers: Arc::new(NoStdioServers),
            shared_connections: room::shared_max(),
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
    approver: Arc<dyn Approver>,
    authority: Option<Arc<Authority>>,
    quota: Result<Quota, String>,
    ledger: Arc<Ledger>,
    notices: Option<Notices>,
    stdio_servers: Arc<dyn StdioServers>,
    connections: Arc<Semaphore>,
    runtime: Handle,
}

impl Gateway {
    /// Makes a gateway on the current tokio runtime (multi-thread, with I/O and time).
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    #[must_use]
    pub fn new(config: GatewayConfig) -> Self {
        let quota = Quota::open(config.state_dir.as_deref(), (config.clock)());
        let quota = quota.map_err(|e| e.to_string());
        Self {
            sink: config.sink,
            vault: Arc::new(config.vault),
            clock: config.clock,
            resolver: config.resolver,
            tls: Arc::new(Tls::new(config.roots)),
            retry: config.retry,
            plain_http_hosts: config.plain_http_hosts,
            approver: config.approver,
            authority: config.authority,
            quota,
            ledger: config.ledger,
            notices: config.notices,
            stdio_servers: config.stdio_servers,
            connections: Arc::new(Semaphore::new(config.shared_connections)),
            runtime: Handle::current(),
        }
    }

    /// Opens a door for one session on a socket of [`bind_door`](crate::bind_door). Callable from
    /// any thread. Everything in the grant is checked
    /// now, scripts included, so that a mistake shows before the sandbox starts.
    ///
    /// # Errors
    /// When the socket cannot be listened to, or a model of the grant is not usable.
    pub fn open_door(&self, grant: DoorGrant, listener: UnixListener) -> Result<Door, DoorError> {
        let models = grant
            .models
            .into_iter()
            .map(|config| self.check_model(config, &grant.scripts, &grant.plain_http_hosts))
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
            tools: DoorTools::new(grant.tools, &scribe, self.mcp_means()),
            scribe: Arc::new(scribe),
            rules: grant.egress,
            stdin_secrets: grant.stdin_secrets,
            models,
            default_model,
            placeholder: grant.placeholder,
            vault: Arc::clone(&self.vault),
            resolver: Arc::clone(&self.resolver),
            pool: Pool::new(Arc::clone(&self.tls), Arc::clone(&self.resolver)),
            retry: self.retry,
            spend: Spend {
                ledger: Arc::clone(&self.ledger),
                budget: grant.budget,
                notices: self.notices.clone(),
            },
            bodies: Arc::new(Semaphore::new(BODY_PERMITS)),
            authority: self.authority.clone(),
            links: Links::new(Arc::clone(&self.tls)),
            asks: Asks::new(Arc::clone(&self.approver)),
            quota: self.quota.clone().map_err(|cause| DoorError::Quota { cause })?,
            rates: Rates::new(),
            names: Refused::default(),
            room: Room::new(Arc::clone(&self.connections)),
        };
        Door::open(listener, state)
    }

    fn mcp_means(&self) -> Means {
        let reach = Reach {
            vault: Arc::clone(&self.vault),
            resolver: Arc::clone(&self.resolver),
            tls: Arc::clone(&self.tls),
        };
        Means { session: None, agent: None, reach, programs: Arc::clone(&self.stdio_servers) }
    }

    /// What a server of tools offers now, for a person who is to approve it. That its secret is
    /// used is on record before it is.
    ///
    /// # Errors
    /// When the record cannot be written, or the server cannot be reached or does not speak MCP.
    pub async fn describe_mcp(&self, server: McpServer) -> Result<Vec<Described>, McpError> {
        mcp::describe(server, self.mcp_means(), &self.sink, (self.clock)()).await
    }

    fn check_model(
        &self,
        config: ModelConfig,
        scripts: &BTreeMap<PathBuf, String>,
        plain_http_hosts: &[String],
    ) -> Result<Model, DoorError> {
        let model = config.name.clone();
        let backend = match (config.api, &config.script) {
            (ModelApi::Script, None) => return Err(DoorError::NoScript { model }),
            (ModelApi::Script, Some(path)) => {
                let script = match scripts.get(path) {
                    Some(text) => Script::parse(text, path),
                    None => Script::load(path),
                };
                let script = script.map_err(|why| DoorError::Script { model, why })?;
                Backend::Script(Arc::new(script))
            }
            (_, _) => {
                let plain = [&self.plain_http_hosts, plain_http_hosts].concat();
                let endpoint = Endpoint::parse(&config.base_url, &plain)
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
