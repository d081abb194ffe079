//! `demo`: useful work first, then every forbidden act, by the real agent in the real sandbox.
//!
//! Pipeline: stage (canaries) ─► script ─► two messages ─► observations ─► records ─► verified log.
//!
//! 1. The model is scripted, and that is said aloud; agent, sandbox, gateway and log are not.
//! 2. What decides is what the host sees: canaries, counters and the log, beside each probe's word.

mod report;
mod script;
mod stage;

use crate::args::DemoArgs;
use crate::commands::audit::root_hex;
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::host::Host;
use crate::product::Product;
use crate::scribe::Scribe;
use crate::ui::{self, Paint, brief, harmless};
use crate::watch::{Asking, Watch};
use crate::world;
use assess::{CATALOGUE, Observation, Probe};
use gateway::{Sealer, SecretBytes};
use model::{AgentName, Body, Durability, SessionId};
use orchestrator::{Engine, Incoming, Progress};
use report::{Act, Log, Report};
use stage::Stage;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use store::{Owner, Store};

/// The demo's installation lives apart from the person's own, below it.
const FOLDER: &str = "demo";
/// The name of the agent and of the scripted model.
const NAME: &str = "demo";

/// Runs `demo`; exit code 6 when a forbidden act succeeded.
pub(crate) fn run(home: &Home, args: &DemoArgs) -> Result<u8> {
    let report_kind = args.report.as_deref().map(ReportKind::of).transpose()?;
    args.report.as_deref().map(writable).transpose()?;
    with_canary_variable()?;
    let started = Instant::now();
    let home = Home::open(Some(&home.path().join(FOLDER)))?;
    let key = made_up_key();
    let stage = Stage::set(&home, key.clone())?;
    write_files(&home, &stage, key)?;
    let talk = Talk { json: args.json, paint: Paint::auto() };
    talk.opening();
    let mut play = Play::open(home.clone())?;
    let work = play.work(&talk)?;
    let (acts, walls) = play.misuse(&talk, &stage)?;
    let limits = walls.limits;
    play.close();
    let log = verified(&home, acts.last().map_or(0, |a| a.record))?;
    let untouched = stage.untouched() && stage.visits() == 0;
    let passed = untouched && log.verified && acts.iter().all(|a| a.held);
    let report = Report {
        scripted_model: true,
        version: env!("CARGO_PKG_VERSION"),
        kernel: kernel(),
        started_as: started_as(),
        work,
        walls: walls.walls,
        limits,
        acts,
        log,
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        passed,
    };
    talk.closing(&report, untouched);
    if let (Some(path), Some(kind)) = (&args.report, report_kind) {
        let text = match kind {
            ReportKind::Html => report.html(),
            ReportKind::Json => report.json(),
        };
        std::fs::write(path, text).context(path.display())?;
        talk.say(&format!("The report is in {}.", path.display()));
    }
    Ok(if passed { 0 } else { Kind::Breach.exit_code() })
}

/// Finds out before the demo runs whether its report can be written, and leaves nothing behind.
fn writable(path: &Path) -> Result<()> {
    let there = path.exists();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|e| {
        Failure::usage(format!("the report {} cannot be written: {e}", path.display()))
            .remedy("name a file in a folder that exists and that you may write; nothing was run")
    })?;
    if there { Ok(()) } else { std::fs::remove_file(path).context(path.display()) }
}

#[derive(Clone, Copy)]
enum ReportKind {
    Html,
    Json,
}

impl ReportKind {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("html") => Ok(Self::Html),
            Some("json") => Ok(Self::Json),
            _ => Err(Failure::usage(format!("{}: unknown kind of report", path.display()))
                .remedy("end the name with .html or .json")),
        }
    }
}

/// A key that opens nothing, new each time, so that finding it proves something.
fn made_up_key() -> String {
    let bytes: [u8; 16] = world::random_bytes();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn write_files(home: &Home, stage: &Stage, key: String) -> Result<()> {
    let sealer = Sealer::open_or_create(home.path()).map_err(Failure::other)?;
    let value = SecretBytes::new(key.into_bytes());
    let hosts = ["api.example.com".to_owned()];
    sealer.set("demo-key", value, &hosts, world::now_ms()).map_err(Failure::other)?;
    let script = home.path().join("demo-script.toml");
    std::fs::write(&script, script::text(stage)).context(script.display())?;
    let config = format!(
        "schema = 1\n\n[models.{NAME}]\napi = \"script\"\nscript = {}\n",
        serde_json::Value::String(script.display().to_string())
    );
    std::fs::write(home.config(), config).context(home.config().display())?;
    let agent = format!(
        "schema = 1\ndescription = \"The demo's agent\"\nmodel = \"{NAME}\"\n\n[sandbox]\n\
         memory = \"{}MiB\"\npids = {}\nlimits = \"fallback\"\n",
        stage::MEMORY_MAX >> 20,
        stage::PIDS_MAX
    );
    let path = home.agents().join(format!("{NAME}.toml"));
    std::fs::write(&path, agent).context(path.display())
}

/// The demo's own process must have a variable that the sandbox must not have. It starts itself
/// anew with it, for a running process cannot safely change its environment.
fn with_canary_variable() -> Result<()> {
    if std::env::var_os(stage::HOST_VARIABLE).is_some() {
        return Ok(());
    }
    use std::os::unix::process::CommandExt;
    let error = std::process::Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(stage::HOST_VARIABLE, "not for the sandbox")
        .exec();
    Err(Failure::other(format!("the demo cannot start itself anew: {error}")))
}

/// How long the recorder may take to sign the last records after its last client has gone.
const SIGNED_WITHIN: Duration = Duration::from_secs(5);

/// Verifies the log once its signed head covers record `last`.
fn verified(home: &Home, last: u64) -> Result<Log> {
    let begun = Instant::now();
    let report = loop {
        let found = audit::verify::verify_dir(&home.audit(), None);
        let report = found.map_err(|f| Failure::new(Kind::Audit, format!("the log: {f}")))?;
        if report.records > last && report.unsigned_records == 0 {
            break report;
        }
        if begun.elapsed() > SIGNED_WITHIN {
            let cause = format!("records from {} on were never signed", report.records);
            return Err(Failure::new(Kind::Audit, cause));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(Log {
        folder: home.audit().display().to_string(),
        records: report.records,
        root: root_hex(&report),
        vkey: report.vkey.clone(),
        verified: true,
    })
}

fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}

fn started_as() -> String {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        "root".to_owned()
    } else {
        format!("an ordinary user (uid {})", uid.as_raw())
    }
}

/// The demo's own engine, one session long.
struct Play {
    engine: Engine,
    events: Receiver<Progress>,
    host: Arc<Host>,
    product: Arc<Product>,
    agent: AgentName,
    session: SessionId,
    chat: String,
}

impl Play {
    fn open(home: Home) -> Result<Self> {
        let store_path = home.store();
        let product = Arc::new(Product::open(home, "demo", Watch::new(Asking::Nobody))?);
        let owner = Owner::this_process().context("this process")?;
        let store = Store::open(&store_path, owner).map_err(Failure::other)?;
        let host = Arc::new(Host { product: Arc::clone(&product), last_report: Mutex::default() });
        let (tell, events) = channel();
        let engine = Engine::new(
            store,
            product.records(),
            Arc::clone(&host) as Arc<dyn orchestrator::AgentHost>,
            Arc::new(world::Real),
            Box::new(move |_, progress| drop(tell.send(progress))),
        );
        let agent = AgentName::parse(NAME).map_err(Failure::other)?;
        let chat = format!("demo-{}", world::now_ms());
        let (session, _) = engine.session(&agent, "demo", &chat).map_err(Failure::other)?;
        engine.recover().map_err(Failure::other)?;
        Ok(Self { engine, events, host, product, agent, session, chat })
    }

    /// Says something to the agent and hands every event on until the turn has ended.
    fn say(&self, text: &str, mut on: impl FnMut(&Progress) -> Result<()>) -> Result<String> {
        let incoming = Incoming {
            channel: "demo".into(),
            chat: self.chat.clone(),
            platform_id: format!("{}-{}", self.chat, text.len()),
            user: "owner".into(),
            text: text.to_owned(),
            agent: self.agent.clone(),
        };
        self.engine.submit(&incoming).map_err(Failure::other)?;
        loop {
            let progress = self.events.recv().map_err(|_| Failure::other("the engine is gone"))?;
            on(&progress)?;
            match progress {
                Progress::TurnFinished { outcome, reply, .. } if outcome == "done" => {
                    return Ok(reply);
                }
                Progress::TurnFinished { reply, .. } => {
                    return Err(Failure::new(Kind::Protection, reply));
                }
                Progress::Halted(why) => return Err(Failure::other(why)),
                _ => {}
            }
        }
    }

    fn work(&mut self, talk: &Talk) -> Result<String> {
        talk.person(script::WORK);
        let reply = self.say(script::WORK, |progress| {
            talk.activity(progress);
            Ok(())
        })?;
        talk.agent(&reply);
        Ok(reply)
    }

    /// Lets the agent try everything; each answer goes on record as the host understood it.
    fn misuse(&mut self, talk: &Talk, stage: &Stage) -> Result<(Vec<Act>, sandbox::Report)> {
        talk.person(script::MISUSE);
        let mut acts: Vec<Act> = Vec::new();
        let scribe = Scribe {
            sink: self.product.records(),
            session: self.session.clone(),
            agent: self.agent.clone(),
        };
        self.say(script::MISUSE, |progress| {
            if let Progress::ToolFinished { summary, .. } = progress
                && let Some(probe) = CATALOGUE.get(acts.len())
            {
                let act = judged(probe, summary, stage, &scribe)?;
                talk.act(&act, acts.last().map(|a| a.principle));
                acts.push(act);
            }
            Ok(())
        })?;
        if acts.len() != CATALOGUE.len() {
            let cause = format!("only {} of {} acts were tried", acts.len(), CATALOGUE.len());
            return Err(Failure::other(cause));
        }
        let report = self.host.last_report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.map(|r| (acts, r)).ok_or_else(|| Failure::other("no sandbox was measured"))
    }

    fn close(self) {
        self.engine.shutdown("the demo is over");
    }
}

/// One act: held only if the probe says so in its own words and no canary says otherwise.
fn judged(probe: &Probe, summary: &str, stage: &Stage, scribe: &Scribe) -> Result<Act> {
    let line = summary.lines().find(|l| l.starts_with('{')).unwrap_or_default();
    let told: Option<Observation> = serde_json::from_str(line).ok();
    let told = told.filter(|o| o.probe == probe.name);
    let observed = told.as_ref().map_or_else(
        || format!("the probe gave no answer: {}", brief(summary, 160)),
        |o| brief(&o.observed, 200),
    );
    let held = told.is_some_and(|o| o.held) && stage.untouched() && stage.visits() == 0;
    let body = Body::ProbeObserved {
        probe: probe.name.into(),
        expected: probe.expected.into(),
        observed: observed.clone(),
        held,
    };
    let record =
        scribe.write(None, body, Durability::Ordered).map_err(|e| Failure::new(Kind::Audit, e))?;
    Ok(Act {
        principle: probe.principle.title(),
        probe: probe.name,
        act: probe.act,
        expected: probe.expected,
        observed,
        held,
        record,
    })
}

/// What the demo says on screen.
struct Talk {
    json: bool,
    paint: Paint,
}

impl Talk {
    fn say(&self, text: &str) {
        if !self.json {
            ui::line(text);
        }
    }

    fn opening(&self) {
        self.say(&self.paint.bold("NanoClaw demo"));
        self.say(
            "The model here is SCRIPTED: a file says what it says. The agent, its sandbox, the \
             gateway\nand the log are the real ones, on this machine.",
        );
    }

    fn person(&self, text: &str) {
        self.say(&format!("\n{} {text}", self.paint.bold("you>")));
    }

    fn agent(&self, text: &str) {
        self.say(&format!("{} {}", self.paint.bold("agent>"), harmless(text)));
    }

    fn activity(&self, progress: &Progress) {
        match progress {
            Progress::ToolStarted { tool, .. } => {
                self.say(&self.paint.dim(&format!("  · {}", brief(tool, 40))));
            }
            Progress::Notice(text) => self.say(&self.paint.dim(&harmless(text))),
            _ => {}
        }
    }

    fn act(&self, act: &Act, before: Option<&'static str>) {
        if before != Some(act.principle) {
            self.say(&format!("\n  {}", self.paint.bold(act.principle)));
        }
        let mark = if act.held { self.paint.green("refused") } else { self.paint.red("SUCCEEDED") };
        self.say(&format!("  {mark}  {}", act.act));
        let place = format!("           {}  (record {})", act.observed, act.record);
        self.say(&self.paint.dim(&place));
    }

    fn closing(&self, report: &Report, untouched: bool) {
        if self.json {
            ui::out(&report.json());
            return;
        }
        let held = report.acts.iter().filter(|a| a.held).count();
        let all = report.acts.len();
        let verdict = if report.passed {
            self.paint.green(&format!("\nAll {all} forbidden acts were refused"))
        } else {
            self.paint.red(&format!("\n{} of {all} forbidden acts SUCCEEDED", all - held))
        };
        let canaries = if untouched { "no canary was touched" } else { "A CANARY WAS TOUCHED" };
        self.say(&format!("{verdict}; {canaries}; {} ms in all.", report.milliseconds));
        self.say(&format!(
            "The log is intact: {} records, root {}.\nCheck it yourself: nanoclaw audit verify {}",
            report.log.records,
            &report.log.root[..16],
            report.log.folder
        ));
    }
}
