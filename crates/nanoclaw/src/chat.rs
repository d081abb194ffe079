//! `chat`: the terminal as a channel.
//!
//! Pipeline: line ─► engine.submit ─► progress events ─► screen (or JSON lines).

mod screen;

use crate::args::ChatArgs;
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::host::Host;
use crate::product::{self, Product};
use crate::ui::{self, Paint};
use crate::watch::{self, Asking, Watch};
use crate::{signals, world};
use model::{AgentName, MessageId, ModelApi, ModelConfig, SessionId};
use orchestrator::{Engine, Incoming, Progress};
use policy::Additions;
use rustyline::error::ReadlineError;
use screen::Screen;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Owner, Store};

/// The channel's name in store and log.
pub(crate) const CHANNEL: &str = "terminal";
/// Terminals that may talk to one agent at once, each with its own conversation.
const TERMINALS_MAX: u32 = 64;
/// Earlier exchanges shown when a conversation is taken up again.
const SHOWN_HISTORY: usize = 3;

/// Runs `chat`.
pub(crate) fn run(home: Home, args: &ChatArgs) -> Result<u8> {
    let config = product::load_config(&home)?;
    let name = crate::agent_name(args.agent.as_deref(), &config)?;
    let agent = product::resolve_agent(&home, &config, &name, &Additions::default())?;
    let Some(model) = product::model_of(&config, &agent)? else {
        return Err(no_model());
    };
    let slot = Slot::claim(&home, &name)?;
    let mut chat = Chat::open(home, name, model, slot, args.json)?;
    if args.new {
        chat.fresh()?;
    }
    let code = match &args.message {
        Some(text) => chat.once(text),
        None => chat.converse(),
    };
    chat.close();
    code
}

/// One terminal's place: a lock on the conversation it holds.
struct Slot {
    chat: String,
    _lock: std::fs::File,
}

impl Slot {
    /// The first conversation of this agent that no other terminal holds.
    fn claim(home: &Home, agent: &AgentName) -> Result<Self> {
        for n in 1..=TERMINALS_MAX {
            let chat = if n == 1 { "terminal".to_owned() } else { format!("terminal-{n}") };
            let path = home.path().join(format!("run/{agent}-{chat}.lock"));
            let file = std::fs::File::create(&path).context(path.display())?;
            if file.try_lock().is_ok() {
                return Ok(Self { chat, _lock: file });
            }
        }
        Err(Failure::usage(format!("{TERMINALS_MAX} terminals talk to {agent} already")))
    }
}

/// What the screen hears: something that happened, or (`None`) that Ctrl-C was pressed.
type Heard = Option<Progress>;

struct Chat {
    engine: Arc<Engine>,
    events: Option<Receiver<Heard>>,
    agent: AgentName,
    model: ModelConfig,
    slot: Slot,
    host: Arc<Host>,
    screen: Screen,
    /// The session Ctrl-C is for.
    current: Arc<Mutex<Option<SessionId>>>,
    tokens: (u64, u64),
}

impl Chat {
    fn open(
        home: Home,
        agent: AgentName,
        model: ModelConfig,
        slot: Slot,
        json: bool,
    ) -> Result<Self> {
        let store_path = home.store();
        let product = Arc::new(Product::open(home, "chat", Watch::new(asking(json)))?);
        let owner = Owner::this_process().context("this process")?;
        let store = Store::open(&store_path, owner).map_err(Failure::other)?;
        let host = Arc::new(Host { product: Arc::clone(&product), last_report: Mutex::default() });
        let (tell, events) = sync_channel::<Heard>(0);
        let (interrupted, told) = (tell.clone(), tell.clone());
        let engine = Arc::new(Engine::new(
            store,
            product.records(),
            Arc::clone(&host) as Arc<dyn orchestrator::AgentHost>,
            Arc::new(world::Real),
            // A screen that is gone hears nothing more; the reply stays in the outbox.
            Box::new(move |_, progress| drop(tell.send(Some(progress)))),
        ));
        engine.recover().map_err(Failure::other)?;
        let current = Arc::new(Mutex::new(None));
        watch_signals(&engine, &current, interrupted)?;
        heed(&product.watch, &engine, &current, told);
        let screen = Screen::new(json);
        let tokens = (0, 0);
        let events = Some(events);
        Ok(Self { engine, events, agent, model, slot, host, screen, current, tokens })
    }

    fn session(&self) -> Result<(SessionId, bool)> {
        let found = self.engine.session(&self.agent, CHANNEL, &self.slot.chat);
        let (session, created) = found.map_err(Failure::other)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        Ok((session, created))
    }

    fn submit(&self, text: &str) -> Result<MessageId> {
        let salt: [u8; 8] = world::random_bytes();
        let incoming = Incoming {
            channel: CHANNEL.to_owned(),
            chat: self.slot.chat.clone(),
            platform_id: format!("{}-{:016x}", world::now_ms(), u64::from_le_bytes(salt)),
            user: "owner".to_owned(),
            text: text.to_owned(),
            agent: self.agent.clone(),
        };
        let submitted = self.engine.submit(&incoming).map_err(Failure::other)?;
        self.screen.received(&submitted.message);
        Ok(submitted.message)
    }

    /// One message, one reply.
    fn once(&mut self, text: &str) -> Result<u8> {
        let (session, created) = self.session()?;
        self.say_scripted();
        self.redeliver()?;
        self.engine.warm(&session, &self.agent, !created);
        let message = self.submit(text)?;
        let outcome = self.follow(&message, false)?;
        Ok(if outcome == "done" { 0 } else { 1 })
    }

    /// Replies that were committed but perhaps never seen.
    fn redeliver(&mut self) -> Result<()> {
        for reply in self.engine.undelivered(CHANNEL).map_err(Failure::other)? {
            if reply.chat == self.slot.chat {
                self.screen.late(&reply.text, reply.attempts > 0);
                self.engine.delivered(&reply.id).map_err(Failure::other)?;
            }
        }
        Ok(())
    }

    /// Shows what happens until the turn on `message` has ended; returns its outcome. A message
    /// put back is waited for only when `patient`, and then until Ctrl-C.
    fn follow(&mut self, message: &MessageId, patient: bool) -> Result<String> {
        let Some(events) = &self.events else { return Ok("gone".into()) };
        let _attended = Attended::to(&self.host.product.watch);
        let mut waiting = false;
        loop {
            let gone = |_| Failure::other("the engine is gone");
            let Some(progress) = events.recv().map_err(gone)? else {
                if waiting {
                    self.screen.notice("The message stays in the queue.");
                    return Ok("requeued".into());
                }
                continue;
            };
            self.screen.show(&progress, message);
            if let Progress::Halted(_) = &progress {
                return Ok("halted".into());
            }
            if let Progress::TurnFinished { message: of, outcome, tokens, .. } = &progress {
                self.tokens = (self.tokens.0 + tokens.0, self.tokens.1 + tokens.1);
                waiting = outcome == "requeued";
                if (of == message || waiting) && !(waiting && patient) {
                    return Ok(outcome.clone());
                }
            }
        }
    }

    fn say_scripted(&self) {
        if self.model.api == ModelApi::Script {
            let file = self.model.script.as_deref().map(|p| p.display().to_string());
            let file = file.unwrap_or_default();
            self.screen.notice(&format!("The model is SCRIPTED ({file}); no model is asked."));
        }
    }

    fn converse(&mut self) -> Result<u8> {
        let (session, created) = self.session()?;
        self.greet(&session, created)?;
        self.redeliver()?;
        self.engine.warm(&session, &self.agent, !created);
        let mut editor = rustyline::DefaultEditor::new().context("the terminal")?;
        loop {
            match editor.readline("you> ") {
                Ok(line) => {
                    let line = line.trim();
                    if line.is_empty() {
                        continue;
                    }
                    // A history that is full forgets its oldest line.
                    drop(editor.add_history_entry(line));
                    if !self.obey(line)? {
                        return Ok(0);
                    }
                }
                Err(ReadlineError::Interrupted) => {
                    self.screen.notice("/quit leaves; Ctrl-C stops a running turn.");
                }
                Err(ReadlineError::Eof) => return Ok(0),
                Err(e) => return Err(Failure::other(format!("the terminal: {e}"))),
            }
        }
    }

    /// Does what a line says; `false` to leave.
    fn obey(&mut self, line: &str) -> Result<bool> {
        match line {
            "/quit" | "/exit" => return Ok(false),
            "/new" => {
                self.fresh()?;
                self.screen.notice("A fresh conversation; the old one and its workspace are kept.");
            }
            "/status" => self.status()?,
            "/help" => self.screen.notice("/new  /status  /quit; Ctrl-C stops a running turn."),
            command if command.starts_with('/') => {
                self.screen.notice(&format!("{command} is not known. /help lists what is."));
            }
            text => {
                let message = self.submit(text)?;
                self.follow(&message, true)?;
            }
        }
        Ok(true)
    }

    fn fresh(&mut self) -> Result<()> {
        let (session, created) = self.session()?;
        if !created {
            self.engine.archive(&session).map_err(Failure::other)?;
        }
        let (session, created) = self.session()?;
        self.engine.warm(&session, &self.agent, !created);
        Ok(())
    }

    fn greet(&self, session: &SessionId, created: bool) -> Result<()> {
        let paint = Paint::auto();
        let host = if self.model.base_url.is_empty() { "a file" } else { &self.model.base_url };
        self.screen.notice(&format!(
            "{} with model {} ({host}), in a sandbox of its own. /help for commands.",
            paint.bold(self.agent.as_str()),
            self.model.name
        ));
        self.say_scripted();
        if self.slot.chat != "terminal" {
            self.screen
                .notice("Another terminal holds the first conversation; this is a separate one.");
        }
        if !created {
            let past = self.engine.history(session).map_err(Failure::other)?;
            let skip = past.len().saturating_sub(SHOWN_HISTORY);
            for item in past.iter().skip(skip) {
                self.screen.past(&item.text, item.reply.as_deref().unwrap_or("(no reply)"));
            }
        }
        Ok(())
    }

    fn status(&mut self) -> Result<()> {
        let (session, _) = self.session()?;
        let (input, output) = self.tokens;
        let mut text = format!(
            "session {session}, agent {}, model {}\ntokens here: {input} in, {output} out\n",
            self.agent, self.model.name
        );
        let report = self.host.last_report.lock().unwrap_or_else(PoisonError::into_inner);
        match report.as_ref() {
            None => text.push_str("no sandbox yet; the first message starts one\n"),
            Some(report) => {
                for wall in &report.walls {
                    text.push_str(&format!("  {:24} {}\n", wall.wall, wall.state));
                }
                for limit in &report.limits {
                    let LimitLine { name, value, by } = LimitLine::of(limit);
                    text.push_str(&format!("  {name:24} {value}, enforced by {by}\n"));
                }
            }
        }
        drop(report);
        self.screen.notice(text.trim_end());
        Ok(())
    }

    fn close(mut self) {
        // The workers must not wait for a screen that reads no more.
        self.events = None;
        self.engine.shutdown("the chat was closed");
        self.host.product.close();
    }
}

struct LimitLine<'a> {
    name: &'a str,
    value: &'a str,
    by: &'a str,
}

impl<'a> LimitLine<'a> {
    fn of(limit: &'a model::LimitState) -> Self {
        Self { name: &limit.limit, value: &limit.value, by: &limit.enforced_by }
    }
}

/// Somebody looks at the screen and can be asked, until this is dropped.
struct Attended(Arc<Watch>);

impl Attended {
    fn to(watch: &Arc<Watch>) -> Self {
        watch.attend(true);
        Self(Arc::clone(watch))
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.0.attend(false);
    }
}

/// Who can be asked: a person at a terminal that programs do not read.
fn asking(json: bool) -> Asking {
    if !json && watch::at_terminal() { Asking::Terminal } else { Asking::Nobody }
}

/// What the gateway says stands among the events of a turn while one is followed; when it is gone,
/// the running turn is over.
fn heed(
    watch: &Arc<Watch>,
    engine: &Arc<Engine>,
    current: &Arc<Mutex<Option<SessionId>>>,
    told: SyncSender<Heard>,
) {
    watch.attend(false);
    watch.say_by(move |text| {
        if told.try_send(Some(Progress::Notice(text.to_owned()))).is_err() {
            ui::note(Paint::auto().dim(&ui::harmless(text)));
        }
    });
    let (engine, current) = (Arc::downgrade(engine), Arc::clone(current));
    watch.when_gone(move || {
        let session = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(engine), Some(session)) = (engine.upgrade(), session) {
            engine.cancel(&session);
        }
    });
}

/// Ctrl-C stops the turn; a second signal of another kind ends everything in order.
fn watch_signals(
    engine: &Arc<Engine>,
    current: &Arc<Mutex<Option<SessionId>>>,
    interrupted: SyncSender<Heard>,
) -> Result<()> {
    let engine = Arc::clone(engine);
    let current = Arc::clone(current);
    let kinds = [signals::INTERRUPT, signals::TERMINATE, signals::HANGUP];
    signals::watch(&kinds, move |kind| {
        let session = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = session {
            engine.cancel(&session);
        }
        // Nobody waits for it at the prompt, where the key is read as a key.
        drop(interrupted.try_send(None));
        if kind != signals::INTERRUPT {
            std::process::exit(128 + kind);
        }
    })
}

/// Nothing to talk to: the three ways, and what works without.
fn no_model() -> Failure {
    let ollama = match ollama_models() {
        Some(models) if !models.is_empty() => format!(
            "2. Ollama runs on this machine and has {}. Put into nanoclaw.toml:\n   \
             [models.local]\n   api = \"openai\"\n   base_url = \"http://127.0.0.1:11434\"\n   \
             model = \"{}\"",
            models.join(", "),
            models[0]
        ),
        Some(_) => {
            "2. Ollama runs on this machine but has no model: `ollama pull NAME` first.".into()
        }
        None => {
            "2. A local model: install Ollama (or llama.cpp, vLLM, LM Studio) and name it like\n   \
                 [models.local]\n   api = \"openai\"\n   base_url = \"http://127.0.0.1:11434\"\n   \
                 model = \"NAME\""
                .to_owned()
        }
    };
    Failure::new(Kind::Missing, "no model is configured, so there is nobody to talk to").remedy(
        format!(
            "three ways to get one, in nanoclaw.toml of the home folder (first line `schema = 1`):\n\
             1. A provider: `nanoclaw secret set anthropic`, and\n   \
             [models.claude]\n   api = \"anthropic\"\n   model = \"MODEL\"\n   secret = \"anthropic\"\n\
             {ollama}\n\
             3. A scripted model, for trying things out:\n   \
             [models.demo]\n   api = \"script\"\n   script = \"FILE.toml\"\n\
             Or see it work at once, without any: `nanoclaw demo`"
        ),
    )
}

/// What Ollama on this machine's loopback offers; `None` when it is not there.
fn ollama_models() -> Option<Vec<String>> {
    let address = SocketAddr::from(([127, 0, 0, 1], 11434));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.write_all(b"GET /api/tags HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    // An answer cut by the time limit is judged by what came.
    drop(stream.take(1 << 20).read_to_string(&mut answer));
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let models = body.get("models")?.as_array()?;
    let name = |m: &serde_json::Value| Some(ui::brief(m.get("name")?.as_str()?, 60));
    Some(models.iter().filter_map(name).collect())
}
