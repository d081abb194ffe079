//! Logins: subscriptions used in place of keys. Access tokens are opened for one request, renewed
//! before they run out and when they are refused.
//!
//! ```text
//! begin ─► a person agrees ─► code ─┐
//!                                   ├─► record (durable) ─► token endpoint ─► sealed, durable
//! due, or refused with 401 ─► slot ─┘                                              │
//!     request ◄── Credential ◄── opened from the vault, every time ◄───────────────┘
//! ```
//!
//! Invariants:
//! 1. Tokens are used only as they stand sealed on disk: a refresh token that was rotated is
//!    durable before anything is done with what came with it.
//! 2. One renewal of a login at a time; whoever else needs it waits and takes its result.
//! 3. A renewal outlives whoever asked for it, and the gateway does not leave during one: its
//!    answer may hold the only token there is.
//! 4. `LoginRequest` is durable before a token leaves; a `LoginResponse` follows it. No word of
//!    the provider's that is not known is repeated in one.
//! 5. Tokens go to the hosts that were sealed with them, and serve the agents that were.

mod asked;
mod exchange;
pub(crate) mod flow;
mod tokens;

pub(crate) use flow::Begun;
pub(crate) use tokens::Tokens;

use crate::lookups::Lookups;
use crate::scribe::Clock;
use crate::upstream::Tls;
use crate::vault::{SealedLogin, SecretBytes, Vault, VaultError};
use aws_lc_rs::digest::{SHA256, digest};
use exchange::{Grant, NoTokens, Place};
use flow::Came;
use model::{AgentName, LoginConfig, LoginProvider, RecordSink, SessionId, TurnId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// So long a request waits for a renewal; the renewal itself goes on.
const WAIT: Duration = Duration::from_secs(30);
/// A provider that could not answer is left alone for so long.
const REST: Duration = Duration::from_secs(5);

/// On whose behalf, for records and for what was sealed.
#[derive(Clone, Default)]
pub(crate) struct Who {
    pub(crate) session: Option<SessionId>,
    pub(crate) agent: Option<AgentName>,
    pub(crate) turn: Option<TurnId>,
}

/// What opens a model server, for one request.
pub(crate) struct Credential {
    /// A key, or an access token.
    pub(crate) bytes: SecretBytes,
    /// Whose token it is; `None` for a key.
    pub(crate) login: Option<LoginProvider>,
}

/// Why there is no credential. Holds no byte of one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Trouble {
    /// The HTTP status that the agent is told.
    pub(crate) status: u16,
    message: String,
    /// Whether another model may do better, or this one later.
    pub(crate) passing: bool,
}

impl Trouble {
    fn new(status: u16, message: String) -> Self {
        Self { status, message, passing: false }
    }

    fn passing(message: String) -> Self {
        Self { status: 503, message, passing: true }
    }

    fn of_vault(error: &VaultError) -> Self {
        Self::new(401, error.to_string())
    }

    fn ended(config: &LoginConfig, why: &str) -> Self {
        let name = &config.name;
        let how = match config.client_id {
            Some(_) => "log in again",
            None => "make a new token with the provider's own program and hand it over",
        };
        Self::new(
            401,
            format!("the login {name} is over: {why}; {how} with `nanoclaw login {name}`"),
        )
    }
}

/// New tokens that the disk did not take. Nothing is done with them before it has.
struct Unstored {
    old: String,
    tokens: Tokens,
}

/// One login's place in line.
#[derive(Default)]
struct Slot {
    unstored: Option<Unstored>,
    rest: Option<(Instant, Trouble)>,
}

/// All logins of an installation.
pub(crate) struct Logins {
    vault: Arc<Vault>,
    sink: Arc<dyn RecordSink>,
    clock: Clock,
    tls: Arc<Tls>,
    lookups: Lookups,
    slots: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Slot>>>>,
    under_way: watch::Sender<usize>,
}

/// Counts one exchange with a provider.
struct UnderWay(Arc<Logins>);

impl UnderWay {
    fn begin(logins: &Arc<Logins>) -> Self {
        logins.under_way.send_modify(|n| *n += 1);
        Self(Arc::clone(logins))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|n| *n -= 1);
    }
}

type Mark = [u8; 32];

fn mark(token: &[u8]) -> Mark {
    let mut mark = [0; 32];
    mark.copy_from_slice(digest(&SHA256, token).as_ref());
    mark
}

impl Logins {
    pub(crate) fn new(
        vault: Arc<Vault>,
        sink: Arc<dyn RecordSink>,
        clock: Clock,
        tls: Arc<Tls>,
        lookups: Lookups,
    ) -> Arc<Self> {
        let (slots, under_way) = (Mutex::default(), watch::channel(0).0);
        Arc::new(Self { vault, sink, clock, tls, lookups, slots, under_way })
    }

    /// Returns when no provider is being asked.
    pub(crate) async fn settled(&self) {
        // It fails only when the sender is gone, and that is here.
        let _ = self.under_way.subscribe().wait_for(|n| *n == 0).await;
    }

    /// The access token for one request to `host`; with `refused`, another one than that.
    pub(crate) async fn credential(
        self: &Arc<Self>,
        who: &Who,
        config: &LoginConfig,
        host: &str,
        refused: Option<&Credential>,
    ) -> Result<Credential, Trouble> {
        let refused = refused.map(|credential| mark(credential.bytes.expose()));
        let (tokens, sealed) = self.open(config, who)?;
        check_host(config, &sealed, host)?;
        if let Some(why) = &tokens.ended {
            return Err(Trouble::ended(config, why));
        }
        if !is_needed(&tokens, refused, (self.clock)()) {
            return Ok(usable(config, &tokens));
        }
        let task = {
            let (this, who, config) = (Arc::clone(self), who.clone(), config.clone());
            let busy = UnderWay::begin(self);
            tokio::spawn(async move {
                let renewed = this.renew(&who, &config, refused).await;
                drop(busy);
                renewed
            })
        };
        let trouble = match tokio::time::timeout(WAIT, task).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(trouble))) => Some(trouble),
            Ok(Err(e)) => Some(Trouble::passing(format!("the login {}: {e}", config.name))),
            Err(_) => {
                let name = &config.name;
                Some(Trouble::passing(format!(
                    "the login {name} is still being renewed; try again"
                )))
            }
        };
        if let Some(trouble) = trouble {
            // What was only to be renewed early still serves.
            let early = refused.is_none() && !tokens.is_over((self.clock)()) && trouble.passing;
            return if early { Ok(usable(config, &tokens)) } else { Err(trouble) };
        }
        let (tokens, sealed) = self.open(config, who)?;
        check_host(config, &sealed, host)?;
        match &tokens.ended {
            Some(why) => Err(Trouble::ended(config, why)),
            None => Ok(usable(config, &tokens)),
        }
    }

    fn open(&self, config: &LoginConfig, who: &Who) -> Result<(Tokens, SealedLogin), Trouble> {
        let name = &config.name;
        let found = self.vault.login(name).map_err(|e| Trouble::of_vault(&e))?;
        let none = || {
            let why = format!("nobody has logged in as {name}; do so with `nanoclaw login {name}`");
            Trouble::new(401, why)
        };
        let sealed = found.ok_or_else(none)?;
        if let Some(agent) = &who.agent
            && !sealed.is_for(agent)
        {
            let why = format!(
                "the login {name} is not for agent {agent}; log in again with `nanoclaw login \
                 {name}` and name this agent too"
            );
            return Err(Trouble::new(403, why));
        }
        let damaged = || {
            let why =
                format!("the login {name} is damaged; log in again with `nanoclaw login {name}`");
            Trouble::new(401, why)
        };
        let tokens = Tokens::opened(&sealed.bytes).ok_or_else(damaged)?;
        Ok((tokens, sealed))
    }

    fn slot(&self, name: &str) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(name.to_owned()).or_default())
    }

    /// Renews, if that is still needed once it is our turn.
    async fn renew(
        &self,
        who: &Who,
        config: &LoginConfig,
        refused: Option<Mark>,
    ) -> Result<(), Trouble> {
        let slot = self.slot(&config.name);
        let mut slot = slot.lock().await;
        let place = Place::of(config).map_err(|why| Trouble::new(500, why))?;
        let (mut tokens, mut sealed) = self.open(config, who)?;
        if let Some(unstored) = slot.unstored.take() {
            self.store(config, &sealed, unstored, &mut slot)?;
            (tokens, sealed) = self.open(config, who)?;
        }
        if let Some(why) = &tokens.ended {
            return Err(Trouble::ended(config, why));
        }
        if !is_needed(&tokens, refused, (self.clock)()) {
            return Ok(());
        }
        if let Some((until, trouble)) = &slot.rest
            && Instant::now() < *until
        {
            return Err(trouble.clone());
        }
        slot.rest = None;
        let client_id = tokens.client.as_ref().or(config.client_id.as_ref());
        let (Some(_), Some(client_id)) = (&tokens.refresh, client_id) else {
            let why = "its token was refused or has run out, and there is none to renew it with";
            return Err(Trouble::ended(config, why));
        };
        check_host(config, &sealed, &place.endpoint.host)?;
        let grant = Grant::Refresh(&tokens);
        let asked = self.asked(who, config, client_id, &place, grant, "renewal").await?;
        match asked {
            Ok((fresh, response)) => {
                let old = sealed.text.clone();
                let unstored = Unstored { old, tokens: fresh };
                let stored = self.store(config, &sealed, unstored, &mut slot);
                self.answered(who, response, stored.as_ref().err().map(ToString::to_string)).await;
                stored
            }
            Err((NoTokens::Ended(why), response)) => {
                let unstored = Unstored {
                    old: sealed.text.clone(),
                    tokens: Tokens::ended(&why, tokens.client.clone(), (self.clock)()),
                };
                let stored = self.store(config, &sealed, unstored, &mut slot);
                self.answered(who, response, Some(why.clone())).await;
                stored.and(Err(Trouble::ended(config, &why)))
            }
            Err((NoTokens::Later(why), response)) => {
                self.answered(who, response, Some(why.clone())).await;
                let name = &config.name;
                let why = format!("the login {name} cannot be renewed now: {why}");
                let trouble = Trouble::passing(why);
                slot.rest = Some((Instant::now() + REST, trouble.clone()));
                Err(trouble)
            }
        }
    }

    /// Seals new tokens over those they came for; what the disk does not take is kept for the next
    /// time, and what was replaced meanwhile stays as it is.
    fn store(
        &self,
        config: &LoginConfig,
        sealed: &SealedLogin,
        unstored: Unstored,
        slot: &mut Slot,
    ) -> Result<(), Trouble> {
        let like = (sealed.hosts.as_slice(), sealed.agents.as_slice());
        let stored = unstored.tokens.sealed_form().and_then(|value| {
            let now_ms = (self.clock)();
            self.vault.replace_login(&config.name, Some(&unstored.old), like, &value, now_ms)
        });
        match stored {
            Ok(_) => Ok(()),
            Err(e) => {
                slot.unstored = Some(unstored);
                let name = &config.name;
                Err(Trouble::passing(format!(
                    "the new tokens of the login {name} are not used, for they cannot be kept: {e}"
                )))
            }
        }
    }

    /// Begins a login at which a person agrees; also the address to open. Its tokens will be for
    /// `hosts` and for the provider's own token endpoint.
    pub(crate) fn begin(
        &self,
        config: LoginConfig,
        hosts: &[String],
        agents: Vec<AgentName>,
    ) -> Result<(Begun, String), String> {
        let Some(mut client_id) = config.client_id.clone() else {
            return Err(format!("the login {} has no client_id", config.name));
        };
        // The client that was issued the first time stands for this installation for good.
        if LoginConfig::built_in("", config.provider).client_id.as_ref() == Some(&client_id)
            && let Ok((known, _)) = self.open(&config, &Who::default())
            && let Some(issued) = &known.client
        {
            client_id.clone_from(issued);
        }
        let installation = self.vault.installation().map_err(|e| e.to_string())?;
        let mut hosts = hosts.to_vec();
        hosts.push(Place::of(&config)?.endpoint.host);
        hosts.sort();
        hosts.dedup();
        flow::begin(config, client_id, &installation, (hosts, agents)).map_err(str::to_owned)
    }

    /// Ends it: the code becomes tokens, and they are sealed. Returns when they run out, if the
    /// provider says so, and whether they can be renewed.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        begun: &Arc<Begun>,
        pasted: &str,
    ) -> Result<(Option<u64>, bool), String> {
        let came = flow::code_in(pasted, &begun.state)?;
        let (this, begun, busy) = (Arc::clone(self), Arc::clone(begun), UnderWay::begin(self));
        let task = tokio::spawn(async move {
            let finished = this.exchange(&begun, &came).await;
            drop(busy);
            finished
        });
        task.await.map_err(|e| e.to_string())?
    }

    async fn exchange(&self, begun: &Begun, came: &Came) -> Result<(Option<u64>, bool), String> {
        let (who, config) = (Who::default(), &begun.config);
        let slot = self.slot(&config.name);
        let mut slot = slot.lock().await;
        let place = Place::of(config)?;
        let (code, verifier) = (&came.code, &begun.verifier);
        let grant = Grant::Code { code, verifier, state: &begun.state };
        let client_id = came.client.as_ref().unwrap_or(&begun.client_id);
        let asked = self.asked(&who, config, client_id, &place, grant, "login").await;
        let (tokens, response) = match asked.map_err(|t| t.to_string())? {
            Ok(got) => got,
            Err((NoTokens::Ended(why) | NoTokens::Later(why), response)) => {
                self.answered(&who, response, Some(why.clone())).await;
                return Err(why);
            }
        };
        *slot = Slot::default();
        let like = (begun.hosts.as_slice(), begun.agents.as_slice());
        let stored = tokens.sealed_form().and_then(|value| {
            self.vault.replace_login(&config.name, None, like, &value, (self.clock)())
        });
        let error = stored.err().map(|e| e.to_string());
        self.answered(&who, response, error.clone()).await;
        match error {
            Some(why) => Err(why),
            None => Ok((tokens.expires_ms, tokens.refresh.is_some())),
        }
    }
}

/// Tokens go where they were sealed for, whatever the configuration has become.
fn check_host(config: &LoginConfig, sealed: &SealedLogin, host: &str) -> Result<(), Trouble> {
    if sealed.serves(host) {
        return Ok(());
    }
    let (name, hosts) = (&config.name, sealed.hosts.join(", "));
    let why = format!(
        "the tokens of the login {name} may be sent to {hosts} only, not to {host}; log in again \
         with `nanoclaw login {name}`"
    );
    Err(Trouble::new(403, why))
}

fn is_needed(tokens: &Tokens, refused: Option<Mark>, now_ms: u64) -> bool {
    match refused {
        Some(refused) => mark(tokens.access.as_bytes()) == refused,
        None => tokens.is_due(now_ms),
    }
}

fn usable(config: &LoginConfig, tokens: &Tokens) -> Credential {
    Credential {
        bytes: SecretBytes::new(tokens.access.as_bytes().to_vec()),
        login: Some(config.provider),
    }
}
