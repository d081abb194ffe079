//! `run`: any command, once, in a fresh sandbox with the same walls and records.
//!
//! Pipeline: grants ─► session on record ─► door ─► prepared ─► on record ─► start ─► exit code.

mod folders;
mod refusals;
mod streams;

pub(crate) use folders::{Folders, sweep};

use crate::args::{HowHard, RunArgs};
use crate::commands::mcp;
use crate::crosscheck::{self, Lived};
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::{Home, SessionDirs};
use crate::manifests::Files;
use crate::operations::Reports;
use crate::policies::Granted;
use crate::product::{self, Product};
use crate::rootfs::Root;
use crate::sandboxes::{self, Parts};
use crate::scribe::{Scribe, inline, sha256_hex};
use crate::servers::Open;
use crate::watch::{self, Asking, Watch};
use crate::{host, probing, signals, ui, world};
use gateway::control::Door;
use gateway::{DoorGrant, TurnCell};
use model::{
    AgentName, Body, Command, Durability, McpServer, ModelConfig, RecordError, SandboxSpec,
    SessionId, Strictness,
};
use policy::{Additions, MountContext, ResolvedAgent, Runtime};
use sandbox::{Ended, Sandbox};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use streams::Streams;

/// The exit code of a command that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// The exit code of a command that is not in the sandbox, as shells have it.
const NOT_FOUND: u8 = 127;
/// How long a command may take to leave after it was asked to, when its time is over.
const TERMINATE_GRACE: Duration = Duration::from_secs(2);

/// Runs `run`.
pub(crate) fn run(home: Home, args: &RunArgs) -> Result<u8> {
    let config = product::load_config(&home)?;
    let additions = additions(&home, args)?;
    let name = crate::agent_name(args.agent.as_deref(), &policy::Config::default())?;
    let agent = product::resolve_agent(&home, &config, &name, &additions)?;
    let command = command(args, &agent)?;
    let workspace = args.workspace.as_deref().map(folder).transpose()?;
    let watch = Watch::new(asking(args));
    let product = Product::open(home, "run", watch)?;
    let session = SessionId::mint(world::now_ms(), u32::from_le_bytes(world::random_bytes()));
    let one = OneRun::new(&product, &agent, session, name, command)?;
    let timeout = additions.timeout;
    one.go(args, workspace.as_deref(), timeout)
}

/// What is run: the command line's words, else those of the agent's file.
fn command(args: &RunArgs, agent: &ResolvedAgent) -> Result<Vec<String>> {
    match &agent.runtime {
        _ if !args.command.is_empty() => Ok(args.command.clone()),
        Runtime::Command(argv) => Ok(argv.clone()),
        Runtime::Builtin => {
            let name = &agent.name;
            let cause = format!("no command was given, and agent {name} has none of its own");
            Err(Failure::usage(cause).remedy(format!(
                "write it after `--`, e.g. `nanoclaw run -- python3 app.py`, or into \
                 agents/{name}.toml:\nruntime = \"command\" and command = [\"python3\", \"…\"]; \
                 `nanoclaw chat {name}` talks to the built-in agent"
            )))
        }
    }
}

/// Where the command is a file of this folder that the sandbox does not have: what would share it.
fn missing_here(command: &[String], workspace: Option<&Path>) -> Option<&'static str> {
    let program = Path::new(command.first()?);
    let below = program.components().all(|c| matches!(c, Component::CurDir | Component::Normal(_)));
    // A plain name is looked up in PATH, never in a folder.
    let path = program.as_os_str().as_encoded_bytes().contains(&b'/');
    let here = workspace.is_none() && path && below && program.exists();
    here.then_some("nanoclaw: /workspace is empty; `--workspace .` shares this folder")
}

/// Who can be asked while a command runs: with `-t` the terminal is the command's.
fn asking(args: &RunArgs) -> Asking {
    if !args.tty && watch::at_terminal() { Asking::Copied } else { Asking::Nobody }
}

fn folder(path: &Path) -> Result<PathBuf> {
    let real = path.canonicalize().map_err(|e| {
        Failure::usage(format!("the workspace {}: {e}", path.display()))
            .remedy("name a folder that exists")
    })?;
    if !real.is_dir() {
        return Err(Failure::usage(format!("the workspace {} is not a folder", path.display())));
    }
    Ok(real)
}

/// What the command line grants beyond the agent's file.
fn additions(home: &Home, args: &RunArgs) -> Result<Additions> {
    let person = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let protected = [home.path().to_owned()];
    let context = MountContext { home: &person, protected: &protected };
    let lookup = |name: &str| std::env::var(name).ok();
    let mut more = Additions::default();
    for argument in &args.mount {
        // A relative source is meant from here.
        let argument = absolute_source(argument)?;
        more.mounts.push(policy::parse_mount(&argument, &context).map_err(Failure::usage)?);
    }
    for argument in &args.allow {
        let rule = policy::parse_allow(argument).map_err(Failure::usage)?;
        if let Some(why) = policy::unasked(&rule) {
            ui::note(format!("nanoclaw: warning: {why}"));
        }
        more.egress.push(rule);
    }
    for argument in &args.env {
        let (name, value) = policy::parse_env(argument, lookup).map_err(Failure::usage)?;
        more.env.insert(name, value);
    }
    let memory = args.memory.as_deref().map(policy::parse_memory).transpose();
    more.memory = memory.map_err(Failure::usage)?;
    more.limits = args.limits.map(|how| match how {
        HowHard::Required => Strictness::Required,
        HowHard::Fallback => Strictness::Fallback,
    });
    let timeout = args.timeout.as_deref().map(policy::parse_timeout).transpose();
    more.timeout = timeout.map_err(Failure::usage)?;
    Ok(more)
}

fn absolute_source(argument: &str) -> Result<String> {
    if argument.starts_with(['/', '~']) {
        return Ok(argument.to_owned());
    }
    let here = std::env::current_dir().context("the current folder")?;
    let rest = argument.strip_prefix("./").unwrap_or(argument);
    let rest = rest.strip_prefix('.').filter(|r| r.starts_with(':')).unwrap_or(rest);
    let slash = if rest.starts_with(':') { "" } else { "/" };
    Ok(format!("{}{slash}{rest}", here.display()))
}

struct OneRun<'a> {
    product: &'a Product,
    agent: &'a ResolvedAgent,
    scribe: Scribe,
    command: Vec<String>,
    /// Ended before the folders go.
    servers: Open,
    /// The servers of its tools.
    tools: Vec<McpServer>,
    /// The models it may ask.
    models: Vec<ModelConfig>,
    door: Door,
    dirs: SessionDirs,
    root: Root,
    _folders: Folders,
    /// The counts that the session ended with, once its end is on record.
    closed: OnceCell<BTreeMap<String, u64>>,
}

/// What a person should know where a record could not be written.
const NOTHING_STARTED: &str = "nothing was started, for nothing goes unrecorded";

fn unrecorded(error: &RecordError) -> Failure {
    Failure::new(Kind::Audit, error).remedy(NOTHING_STARTED)
}

impl<'a> OneRun<'a> {
    fn new(
        product: &'a Product,
        agent: &'a ResolvedAgent,
        session: SessionId,
        name: AgentName,
        command: Vec<String>,
    ) -> Result<Self> {
        let rootfs = Root::of(&product.home, agent)?;
        let dirs = product.home.session(&session)?;
        let root = product.home.path().join("sessions").join(session.as_str());
        let folders = Folders::claim(root)?;
        // With several models and none named, none is granted.
        let model = product.model_of(agent).ok().flatten();
        let models: Vec<ModelConfig> =
            model.iter().flat_map(|m| product.config.models_for(m)).collect();
        let tools = mcp::tools_of(&product.home, &product.config, agent)?;
        let (granted, servers) = (tools.servers.clone(), product.servers.open(&session));
        let grant = DoorGrant {
            session: session.clone(),
            agent: name.clone(),
            turn: TurnCell::default(),
            egress: agent.egress.clone(),
            default_model: model.as_ref().map(|m| m.name.clone()),
            models: models.clone(),
            placeholder: sandboxes::placeholder(&session),
            tools,
            budget: agent.budget,
            scripts: BTreeMap::new(),
            plain_http_hosts: product::plain_http_hosts(&product.config),
            provider_tools: agent.provider_tools.clone(),
            stdin_secrets: agent.stdin_secrets.clone(),
        };
        let socket = product.home.door(&session)?;
        let door = product.gateway.open_door(grant, &socket).map_err(Failure::other)?;
        let scribe = Scribe { sink: product.records(), session, agent: name };
        let closed = OnceCell::new();
        Ok(Self {
            product,
            agent,
            scribe,
            command,
            servers,
            tools: granted,
            models,
            door,
            dirs,
            root: rootfs,
            _folders: folders,
            closed,
        })
    }

    fn spec(&self, args: &RunArgs, workspace: Option<&Path>) -> Result<SandboxSpec> {
        let mut env = BTreeMap::new();
        if args.tty
            && let Ok(term) = std::env::var("TERM")
        {
            env.insert("TERM".to_owned(), term);
        }
        let mut spec = sandboxes::spec(Parts {
            session: &self.scribe.session,
            agent: self.agent,
            rootfs: self.root.fs(),
            dirs: &self.dirs,
            workspace,
            door: self.door.socket().to_owned(),
            trust: sandboxes::bundle(self.product.home.path()),
            command: Command::Program(self.command.clone()),
            env,
        });
        probing::ask(self.agent, &mut spec)?;
        Ok(spec)
    }

    fn go(self, args: &RunArgs, workspace: Option<&Path>, timeout: Option<Duration>) -> Result<u8> {
        let (models, servers) = (&self.models, &self.tools);
        let granted = Granted { agent: self.agent, models, servers };
        let opened = host::opened(&self.product.home, &self.scribe, &granted, false);
        let first =
            opened.map_err(|f| Failure::new(Kind::Audit, f.sentence).remedy(NOTHING_STARTED))?;
        let code = self.live(args, workspace, timeout, first);
        if let Err(failure) = &code
            && self.closed.get().is_none()
        {
            self.servers.end();
            // The failure itself is what the person must hear of.
            drop(host::closed_early(&self.scribe, &failure.cause, self.counts()));
        }
        if let Ok(NOT_FOUND) = code
            && let Some(hint) = missing_here(&self.command, workspace)
        {
            ui::note(hint);
        }
        if !args.quiet && self.counts().get("refused").is_some_and(|n| *n > 0) {
            refusals::tell(&self.product.home, &self.scribe.session, first);
        }
        code
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let closed = self.closed.get().cloned();
        closed.unwrap_or_else(|| crosscheck::counts(self.door.counts()))
    }

    fn live(
        &self,
        args: &RunArgs,
        workspace: Option<&Path>,
        timeout: Option<Duration>,
        first: u64,
    ) -> Result<u8> {
        let own_input = !self.agent.stdin_secrets.is_empty();
        let (stdio, mut streams) = Streams::open(args.tty, own_input)?;
        let spec = self.spec(args, workspace)?;
        let mut prepared =
            self.product.spawner.prepare(&spec, stdio).map_err(product::start_failure)?;
        let report = prepared.report();
        let mode = self.product.spawner.facts().mode;
        probing::judge(self.agent, report, mode, &self.scribe)?;
        if !args.quiet {
            refusals::covered(&report.plan);
        }
        let started = Body::SandboxStarted {
            plan_sha256: sha256_hex(&report.plan.sha256_input()),
            program: inline(&self.command.join(" ")).to_owned(),
            walls: report.walls.clone(),
            limits: report.limits.clone(),
        };
        self.scribe.write(None, started, Durability::Durable).map_err(|e| unrecorded(&e))?;
        self.door.only_from(report.pid).map_err(Failure::other)?;
        let forwarder = Forwarder::watch()?;
        let mut reports = Reports::take(&mut prepared, &self.scribe, None)
            .map_err(|e| Failure::other(format!("no thread could be had for its record: {e}")))?;
        let files = Files::start(&spec, &self.scribe, None, None).map_err(|e| unrecorded(&e))?;
        let sandbox = Arc::new(prepared.start().map_err(product::start_failure)?);
        forwarder.to(&sandbox);
        self.end_without_gateway(&sandbox);
        if let Err(e) = self.hand_over(&mut streams) {
            drop(sandbox.kill());
            let ended = sandbox.wait();
            reports.finish();
            self.close(&ended, false, files, first)?;
            return Err(e);
        }
        let streams = streams.attach(&self.product.watch)?;
        follow_window(streams.master())?;
        let (ended, late) = wait(&sandbox, timeout);
        streams.finish();
        reports.finish();
        let product = self.product;
        let code = self.close(&ended, late, files, first)?;
        if let Some(error) = reports.failed() {
            let cause = format!("the command was ended, for what it did is not on record: {error}");
            return Err(Failure::new(Kind::Audit, cause));
        }
        match product.watch.gone() {
            None => Ok(code),
            Some(cause) => Err(Failure::new(
                Kind::Protection,
                format!("the command was ended, for the gateway is gone: {cause}"),
            )
            .remedy("nothing went out meanwhile; run it again")),
        }
    }

    /// Without a gateway the command has no exit, and would wait for ever for answers.
    fn end_without_gateway(&self, sandbox: &Arc<Sandbox>) {
        let sandbox = Arc::downgrade(sandbox);
        self.product.watch.when_gone(move || {
            if let Some(sandbox) = sandbox.upgrade() {
                // It may just have ended.
                drop(sandbox.kill());
            }
        });
    }

    /// `deliver = "stdin"`: each secret and a line's end, in the order of their names, written by
    /// the gateway into the command's input before anything else.
    fn hand_over(&self, streams: &mut Streams) -> Result<()> {
        for name in &self.agent.stdin_secrets {
            let pipe = streams.input()?;
            self.door.deliver(name, pipe).map_err(|e| {
                Failure::new(Kind::Protection, format!("the secret {name} was not delivered: {e}"))
            })?;
        }
        Ok(())
    }

    fn close(&self, ended: &Ended, late: bool, files: Files, first: u64) -> Result<u8> {
        let outcome =
            if late { "stopped at its time limit".into() } else { ended.outcome.to_string() };
        let stopped = crosscheck::stopped(outcome.clone(), &ended.usage);
        self.servers.end();
        let looked = files.end(None);
        let mut totals = crosscheck::settle(&self.door, ended);
        // A command has no account of its own that could be compared.
        let lived = Lived { first, told: false, late: false };
        totals.observe(&self.product.home.audit(), &self.scribe.session, ended, &lived);
        let agreed = totals.findings.is_empty();
        // Set once: a session ends once.
        drop(self.closed.set(totals.counts.clone()));
        let closed = crosscheck::record(&self.scribe, totals, stopped, outcome);
        looked.and(closed).map_err(|e| {
            Failure::new(
                Kind::Audit,
                format!("the command ended, but its end is not on record: {e}"),
            )
        })?;
        if !agreed {
            let session = &self.scribe.session;
            ui::note(format!("nanoclaw: {} {session}`", crosscheck::DISAGREED));
        }
        if let sandbox::Outcome::Killed(why) = &ended.outcome {
            ui::note(format!("nanoclaw: the command was killed: {why}"));
        }
        if ended.outcome == sandbox::Outcome::OutOfMemory {
            let limit = policy::format_size(self.agent.limits.memory_bytes.value);
            ui::note(format!("nanoclaw: the command was killed at its memory limit of {limit}"));
        }
        if late {
            ui::note("nanoclaw: the command was stopped at its time limit");
            return Ok(TIMED_OUT);
        }
        Ok(u8::try_from(ended.outcome.code() & 0xff).unwrap_or(1))
    }
}

/// Waits; at the time limit asks the command to leave, then ends it.
fn wait(sandbox: &Sandbox, timeout: Option<Duration>) -> (Ended, bool) {
    let Some(limit) = timeout else { return (sandbox.wait(), false) };
    if let Some(ended) = sandbox.wait_timeout(limit) {
        return (ended, false);
    }
    // A spawner that is gone has killed it already.
    drop(sandbox.signal(signals::TERMINATE));
    if let Some(ended) = sandbox.wait_timeout(TERMINATE_GRACE) {
        return (ended, true);
    }
    drop(sandbox.kill());
    (sandbox.wait(), true)
}

/// Hands signals on to the command. It listens before the command runs, so that none finds this
/// process without a handler while the command lives.
#[derive(Clone, Default)]
struct Forwarder(Arc<Mutex<Forwarding>>);

#[derive(Default)]
struct Forwarding {
    sandbox: Option<Arc<Sandbox>>,
    /// What came before there was anyone to tell.
    early: Vec<i32>,
}

impl Forwarder {
    fn watch() -> Result<Self> {
        let kinds = [signals::INTERRUPT, signals::QUIT, signals::HANGUP, signals::TERMINATE];
        let this = Self::default();
        let own = this.clone();
        signals::watch(&kinds, move |kind| {
            let mut state = own.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &state.sandbox {
                // It may just have ended; then there is nobody to tell.
                Some(sandbox) => drop(sandbox.signal(kind)),
                None => state.early.push(kind),
            }
        })?;
        Ok(this)
    }

    fn to(&self, sandbox: &Arc<Sandbox>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in state.early.drain(..) {
            drop(sandbox.signal(kind));
        }
        state.sandbox = Some(Arc::clone(sandbox));
    }
}

fn follow_window(master: Option<std::fs::File>) -> Result<()> {
    let Some(master) = master else { return Ok(()) };
    signals::watch(&[signals::WINDOW], move |_| streams::copy_window(&master))
}
