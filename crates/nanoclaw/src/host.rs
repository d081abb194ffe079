//! Agents in sandboxes: what the orchestrator asks for, made of policy, gateway, sandbox and ACP.
//!
//! Pipeline: grants ─► door ─► spec ─► prepared sandbox ─► its record, durably ─► start ─► ACP.

mod gathered;

use crate::crosscheck::{self, Lived};
use crate::failure::{self, Kind};
use crate::home::Home;
use crate::manifests::Files;
use crate::operations::Reports;
use crate::policies::{self, Granted};
use crate::probing;
use crate::product::{self, Product};
use crate::rootfs::Root;
use crate::sandboxes::{self, Parts, WORKSPACE_INSIDE};
use crate::scribe::{Scribe, inline, sha256_hex};
use crate::servers::Open;
use crate::timer::Timer;
use crate::ui;
use crate::words::Words;
use agent::client::{AcpClient, CancelHandle, PromptError, StopReason, Update};
use gateway::control::{ControlError, Door};
use gateway::{DoorGrant, TurnCell};
use gathered::Gathered;
use model::{
    Body, Command, Durability, HostTools, ModelApi, ModelConfig, RecordError, SandboxSpec, TurnId,
};
use orchestrator::{
    AgentHost, AgentLink, Cancel, Failure, FailureKind, Progress, SessionSeed, TurnDone,
};
use policy::{Additions, ResolvedAgent, Runtime};
use sandbox::{Report, Sandbox, Stdio};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Largest reply kept, bytes: far above any chat's limit, far below what would hurt the store.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// How long the recorder may take to take what was submitted.
const FLUSH_TIME: Duration = Duration::from_secs(10);
/// How long an agent may take to leave once its input has ended.
const LEAVE_GRACE: Duration = Duration::from_millis(500);

/// Makes agents. Shared by all sessions of this process.
pub(crate) struct Host {
    pub(crate) product: Arc<Product>,
    /// What was measured in the newest sandbox of this process, for whoever wants to show it.
    pub(crate) last_report: Mutex<Option<Report>>,
}

impl AgentHost for Host {
    fn start(&self, seed: &SessionSeed) -> Result<Box<dyn AgentLink>, Failure> {
        self.start_link(seed).map(|link| Box::new(link) as Box<dyn AgentLink>)
    }
}

fn lasting(failure: &failure::Failure) -> Failure {
    let remedy = failure.remedy.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
    let kind = match failure.kind {
        Kind::Other => FailureKind::Passing,
        _ => FailureKind::Lasting,
    };
    Failure { kind, sentence: format!("{}{remedy}", failure.cause) }
}

fn fail(sentence: impl ToString) -> Failure {
    Failure { kind: FailureKind::Lasting, sentence: sentence.to_string() }
}

impl Host {
    fn start_link(&self, seed: &SessionSeed) -> Result<Link, Failure> {
        let product = &self.product;
        let agent = product.agent(&seed.agent, &Additions::default()).map_err(|e| lasting(&e))?;
        let model = product.model_of(&agent).map_err(|e| lasting(&e))?;
        let model = model.ok_or_else(|| fail(NO_MODEL))?;
        if agent.runtime != Runtime::Builtin {
            return Err(fail("This agent runs a command; use `nanoclaw run --agent` for it."));
        }
        let scribe = Scribe {
            sink: product.records(),
            session: seed.session.clone(),
            agent: seed.agent.clone(),
        };
        let root = Root::of(&product.home, &agent).map_err(|e| lasting(&e))?;
        let tools = crate::commands::mcp::tools_of(&product.home, &product.config, &agent)
            .map_err(|e| lasting(&e))?;
        let servers = product.servers.open(&seed.session);
        let servers_of_tools = tools.servers.clone();
        let door = self.door(seed, &agent, &model, tools)?;
        let spec = self.spec(seed, &agent, &model, &door, &root)?;
        let models = product.config.models_for(&model);
        let granted = Granted { agent: &agent, models: &models, servers: &servers_of_tools };
        let first = opened(&product.home, &scribe, &granted, seed.resumed)?;
        let started = self.greeted(&scribe, &agent, &spec, &door, seed.resumed);
        let started = started.and_then(|(alive, client, words)| {
            let cancel = client.cancel_handle();
            match Timer::start(move || cancel.cancel()) {
                Ok(timer) => Ok((alive, client, words, timer)),
                Err(e) => {
                    drop(client);
                    alive.end();
                    Err(fail(e))
                }
            }
        });
        let (Alive { sandbox, reports, files }, client, words, timer) =
            started.inspect_err(|failure| {
                // The failure itself is what the person hears of.
                servers.end();
                let counts = crosscheck::counts(door.counts());
                drop(closed_early(&scribe, &failure.sentence, counts));
            })?;
        let product = Arc::clone(product);
        let limit = agent.turn_timeout;
        Ok(Link {
            client,
            sandbox,
            reports,
            files,
            first,
            servers,
            door,
            scribe,
            words,
            timer,
            limit,
            product,
            _root: root,
        })
    }

    /// The sandbox, with an agent in it that has answered.
    fn greeted(
        &self,
        scribe: &Scribe,
        agent: &ResolvedAgent,
        spec: &SandboxSpec,
        door: &Door,
        resumed: bool,
    ) -> Result<(Alive, AcpClient, Words), Failure> {
        let (alive, pipes) = self.launch(scribe, agent, spec, door)?;
        let words = Words::read(pipes.stderr);
        let mut client = AcpClient::start(pipes.stdout, pipes.stdin).map_err(fail)?;
        let hello = client
            .initialize()
            .and_then(|_| client.new_session(Path::new(WORKSPACE_INSIDE), resumed));
        match hello {
            Ok(_) => Ok((alive, client, words)),
            Err(e) => {
                let failure = with_words(&e.to_string(), &words);
                alive.end();
                Err(failure)
            }
        }
    }

    fn door(
        &self,
        seed: &SessionSeed,
        agent: &ResolvedAgent,
        model: &ModelConfig,
        tools: HostTools,
    ) -> Result<Door, Failure> {
        let grant = DoorGrant {
            session: seed.session.clone(),
            agent: seed.agent.clone(),
            turn: TurnCell::default(),
            egress: agent.egress.clone(),
            models: self.product.config.models_for(model),
            default_model: Some(model.name.clone()),
            placeholder: sandboxes::placeholder(&seed.session),
            tools,
            budget: agent.budget,
            scripts: BTreeMap::new(),
            plain_http_hosts: product::plain_http_hosts(&self.product.config),
            provider_tools: agent.provider_tools.clone(),
            stdin_secrets: BTreeSet::new(),
        };
        let socket = self.product.home.door(&seed.session).map_err(|e| lasting(&e))?;
        self.product.gateway.open_door(grant, &socket).map_err(fail)
    }

    fn spec(
        &self,
        seed: &SessionSeed,
        agent: &ResolvedAgent,
        model: &ModelConfig,
        door: &Door,
        root: &Root,
    ) -> Result<SandboxSpec, Failure> {
        let dirs = self.product.home.session(&seed.session).map_err(|e| lasting(&e))?;
        let mut spec = sandboxes::spec(Parts {
            session: &seed.session,
            agent,
            rootfs: root.fs(),
            dirs: &dirs,
            workspace: None,
            door: door.socket().to_owned(),
            trust: sandboxes::bundle(self.product.home.path()),
            command: Command::Builtin(vec!["__agent".into()]),
            env: agent_env(agent, model),
        });
        probing::ask(agent, &mut spec).map_err(|e| lasting(&e))?;
        Ok(spec)
    }

    fn launch(
        &self,
        scribe: &Scribe,
        agent: &ResolvedAgent,
        spec: &SandboxSpec,
        door: &Door,
    ) -> Result<(Alive, sandbox::Pipes), Failure> {
        let (stdio, pipes) = Stdio::piped().map_err(fail)?;
        let start = |e| lasting(&product::start_failure(e));
        let mut prepared = self.product.spawner.prepare(spec, stdio).map_err(start)?;
        let report = prepared.report().clone();
        let mode = self.product.spawner.facts().mode;
        probing::judge(agent, &report, mode, scribe).map_err(|e| lasting(&e))?;
        let body = Body::SandboxStarted {
            plan_sha256: sha256_hex(&report.plan.sha256_input()),
            program: "nanoclaw __agent".into(),
            walls: report.walls.clone(),
            limits: report.limits.clone(),
        };
        scribe.write(None, body, Durability::Durable).map_err(fail)?;
        door.only_from(report.pid).map_err(|e| without_gateway(&e))?;
        *self.last_report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        let reports = Reports::take(&mut prepared, scribe, None).map_err(fail)?;
        let files = Files::start(spec, scribe, None, None).map_err(fail)?;
        let sandbox = prepared.start().map_err(start)?;
        Ok((Alive { sandbox, reports, files }, pipes))
    }
}

/// A sandbox that runs, what the kernel reports of it, and its files.
struct Alive {
    sandbox: Sandbox,
    reports: Reports,
    files: Files,
}

impl Alive {
    /// Ends it, with what was reported of it on record.
    fn end(self) {
        let Self { sandbox, mut reports, files } = self;
        // A spawner that is gone has killed it already.
        drop(sandbox.kill());
        let _ = sandbox.wait();
        reports.finish();
        // That it did not start is what the person hears of.
        drop(files.end(None));
    }
}

/// The session is on record before its sandbox is made, and before it what has changed in what the
/// agent is granted.
pub(crate) fn opened(
    home: &Home,
    scribe: &Scribe,
    granted: &Granted<'_>,
    resumed: bool,
) -> Result<u64, Failure> {
    policies::compare(home, scribe, granted).map_err(fail)?;
    let Granted { agent, servers, .. } = granted;
    let servers: Vec<String> = servers.iter().flat_map(policy::server_grants).collect();
    let body = Body::SessionOpened {
        resumed,
        backend: agent.backend.name().into(),
        policy_sha256: sha256_hex(&agent.policy_bytes),
        grants: agent.grants_text.iter().chain(&servers).map(|g| inline(g).to_owned()).collect(),
    };
    scribe.write(None, body, Durability::Ordered).map_err(fail)
}

/// A session that was put on record and then did not come to life is closed with the reason.
pub(crate) fn closed_early(
    scribe: &Scribe,
    cause: &str,
    counts: BTreeMap<String, u64>,
) -> Result<u64, RecordError> {
    let reason = inline(&format!("not started: {cause}")).to_owned();
    scribe.write(None, Body::SessionClosed { reason, counts }, Durability::Durable)
}

const NO_MODEL: &str = "No model is configured, so there is nobody to ask. `nanoclaw chat` tells \
                        the three ways to get one.";

fn agent_env(agent: &ResolvedAgent, model: &ModelConfig) -> BTreeMap<String, String> {
    // A model without either is refused when the door is asked, in the words of the agent's format.
    let api = model.builtin_api().unwrap_or(ModelApi::Anthropic).name();
    let mut env: BTreeMap<String, String> = [
        ("NANOCLAW_MODEL", model.name.clone()),
        ("NANOCLAW_MODEL_API", api.to_owned()),
        ("NANOCLAW_MAX_TOKENS", model.max_tokens.to_string()),
        ("NANOCLAW_CONTEXT_TOKENS", model.context_tokens.to_string()),
        ("NANOCLAW_TOOLS", policy::sandbox_tools(&agent.tools).join(",")),
        ("NANOCLAW_HOST_TOOLS", policy::has_host_tools(&agent.tools).to_string()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect();
    if let Some(text) = &agent.instructions {
        env.insert("NANOCLAW_INSTRUCTIONS".into(), text.clone());
    }
    env
}

fn without_gateway(error: &ControlError) -> Failure {
    let sentence = format!("Nothing goes out any more, for {error}. Start nanoclaw again.");
    Failure { kind: FailureKind::Lasting, sentence }
}

fn with_words(cause: &str, words: &Words) -> Failure {
    let text = words.so_far();
    let last = text.trim();
    let said = if last.is_empty() { String::new() } else { format!(" It said: {last}") };
    Failure { kind: FailureKind::LinkLost, sentence: format!("The agent failed: {cause}.{said}") }
}

/// A running agent.
struct Link {
    client: AcpClient,
    sandbox: Sandbox,
    reports: Reports,
    files: Files,
    /// Index of the record that opened the session.
    first: u64,
    servers: Open,
    door: Door,
    scribe: Scribe,
    words: Words,
    timer: Timer,
    limit: Duration,
    product: Arc<Product>,
    /// Held against the removal of its image.
    _root: Root,
}

struct Canceller(CancelHandle);

impl Cancel for Canceller {
    fn cancel(&self) {
        self.0.cancel();
    }
}

impl AgentLink for Link {
    fn prompt(
        &mut self,
        turn: &TurnId,
        text: &str,
        on: &mut dyn FnMut(Progress),
    ) -> Result<TurnDone, Failure> {
        self.begin(turn)?;
        self.timer.arm(self.limit);
        let mut gathered = Gathered::new(&self.scribe, turn, self.client.cancel_handle(), on);
        let (reports, sandbox) = (&self.reports, &self.sandbox);
        let result = self.client.prompt(text, &mut |update| {
            // What a call executed stands before its end.
            if matches!(update, Update::ToolFinished { .. }) {
                reports.catch_up(sandbox);
            }
            gathered.update(update);
        });
        let Gathered { text, refused, .. } = gathered;
        let late = self.timer.disarm();
        self.reports.settle(&self.sandbox);
        // Without a gateway nothing goes out that could be taken for this turn's.
        drop(self.door.set_turn(None));
        let recorded = self.files.after_turn(turn);
        if let Some(sentence) = refused {
            return Err(fail(sentence));
        }
        recorded.map_err(|e| fail(format!("What became of the files is not on record: {e}.")))?;
        if let Some(error) = self.reports.failed() {
            return Err(fail(format!("The agent was ended, for {error}.")));
        }
        if let Some(cause) = self.product.watch.gone() {
            return Err(without_gateway(&ControlError::Gone { cause }));
        }
        self.outcome(result, text, late)
    }

    fn canceller(&self) -> Box<dyn Cancel> {
        Box::new(Canceller(self.client.cancel_handle()))
    }

    fn stop(self: Box<Self>, reason: &str) {
        let Self {
            client, sandbox, mut reports, files, first, servers, door, scribe, product, ..
        } = *self;
        drop(client); // closes its input, upon which the agent leaves
        if sandbox.wait_timeout(LEAVE_GRACE).is_none() {
            // A spawner that is gone has killed it already.
            drop(sandbox.kill());
        }
        let ended = sandbox.wait();
        reports.finish();
        let stopped = crosscheck::stopped(ended.outcome.to_string(), &ended.usage);
        let lived = Lived { first, told: true, late: reports.late() };
        servers.end();
        // Nothing follows that could be withheld; a log that is gone shows its missing tail.
        drop(files.end(None));
        let mut totals = crosscheck::settle(&door, &ended);
        totals.observe(&product.home.audit(), &scribe.session, &ended, &lived);
        let agreed = totals.findings.is_empty();
        drop(crosscheck::record(&scribe, totals, stopped, reason.to_owned()));
        if !agreed {
            ui::note(format!("nanoclaw: {} {}`", crosscheck::DISAGREED, scribe.session));
        }
    }
}

impl Link {
    /// The gateway knows the turn before the agent does; and what was submitted about the turn is
    /// with the recorder before the gateway can record anything of it.
    fn begin(&self, turn: &TurnId) -> Result<(), Failure> {
        self.door.set_turn(Some(turn.clone())).map_err(|e| without_gateway(&e))?;
        self.reports.set_turn(Some(turn.clone()));
        self.product.sink.flush(FLUSH_TIME).map_err(fail)
    }

    fn outcome(
        &self,
        result: Result<agent::client::PromptResult, PromptError>,
        text: String,
        late: bool,
    ) -> Result<TurnDone, Failure> {
        match result {
            Ok(_) if late => {
                let limit = policy::format_duration(self.limit);
                Err(fail(format!(
                    "The turn took longer than its limit of {limit} and was stopped."
                )))
            }
            Ok(done) => Ok(TurnDone {
                text,
                cancelled: done.stop == StopReason::Cancelled,
                input_tokens: done.usage.input_tokens,
                output_tokens: done.usage.output_tokens,
            }),
            Err(PromptError::Model(failure)) => {
                let kind =
                    if failure.retryable { FailureKind::Passing } else { FailureKind::Lasting };
                Err(Failure { kind, sentence: failure.message })
            }
            Err(PromptError::Agent(error)) if !error.is_fatal() => Err(fail(error)),
            Err(PromptError::Agent(error)) => {
                Err(with_words(error.to_string().trim_end_matches('.'), &self.words))
            }
        }
    }
}
