//! `chat`: the terminal as a channel.
//!
//! Pipeline: line ─► engine.submit ─► progress events ─► screen (or JSON lines).

mod heard;
mod models;
mod once;
mod queue;
mod screen;

use crate::args::ChatArgs;
use crate::failure::{Context, Failure, Result};
use crate::home::Home;
use crate::host::Host;
use crate::product::{self, Product};
use crate::ui::Paint;
use crate::watch::{self, Asking, Watch};
use crate::world;
use heard::Heard;
use model::{AgentName, MessageId, ModelApi, ModelConfig, SessionId};
use orchestrator::{Engine, Incoming, Progress};
use policy::Additions;
use rustyline::error::ReadlineError;
use screen::Screen;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Owner, Store};

/// The channel's name in store and log.
pub(crate) const CHANNEL: &str = "terminal";
/// Terminals that may talk to one agent at once, each with its own conversation.
const TERMINALS_MAX: u32 = 64;
/// What can be said besides messages.
const HELP: &str = "/new  /status  /queue (what waits)  /drop [N] (take it back)  /quit; \
                    Ctrl-C stops a running turn.";
/// How long a listener that nobody needs any more listens on.
const LISTEN: Duration = Duration::from_millis(20);
/// Earlier exchanges shown when a conversation is taken up again.
const SHOWN_HISTORY: usize = 3;

/// Runs `chat`.
pub(crate) fn run(home: Home, args: &ChatArgs) -> Result<u8> {
    let config = product::load_config(&home)?;
    let name = crate::agent_name(args.agent.as_deref(), &config)?;
    if args.queued || args.drop_queued {
        return queue::run(&home, &name, args);
    }
    let agent = product::resolve_agent(&home, &config, &name, &Additions::default())?;
    let Some(model) = product::model_of(&config, &agent)? else {
        return Err(models::no_model());
    };
    let slot = Slot::claim(&home, &name)?;
    let mut chat = Chat::open(home, name, model, slot, args)?;
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
    /// That conversation, unless another terminal holds it.
    fn take(home: &Home, agent: &AgentName, chat: String) -> Result<Option<Self>> {
        let path = home.path().join(format!("run/{agent}-{chat}.lock"));
        let file = std::fs::File::create(&path).context(path.display())?;
        Ok(file.try_lock().is_ok().then_some(Self { chat, _lock: file }))
    }

    /// The first conversation of this agent that no other terminal holds.
    fn claim(home: &Home, agent: &AgentName) -> Result<Self> {
        for n in 1..=TERMINALS_MAX {
            let chat = if n == 1 { "terminal".to_owned() } else { format!("terminal-{n}") };
            if let Some(slot) = Self::take(home, agent, chat)? {
                return Ok(slot);
            }
        }
        Err(Failure::usage(format!("{TERMINALS_MAX} terminals talk to {agent} already")))
    }
}

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
        args: &ChatArgs,
    ) -> Result<Self> {
        let (json, once) = (args.json, args.message.is_some());
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
            Box::new(move |_, progress| drop(tell.send(Heard::Progress(progress)))),
        ));
        engine.recover().map_err(Failure::other)?;
        let current = Arc::new(Mutex::new(None));
        heard::watch_signals(&engine, &current, interrupted, once)?;
        heard::heed(&product.watch, &engine, &current, told);
        let screen = Screen::new(json, once);
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

    /// Shows what happens until the turn on `message` has ended. A message put back is waited for
    /// until Ctrl-C.
    fn follow(&mut self, message: &MessageId) -> Result<()> {
        let Some(events) = self.events.take() else { return Ok(()) };
        let _attended = Attended::to(&self.host.product.watch);
        let mut waiting = false;
        let ended = loop {
            match events.recv() {
                Err(_) => break Err(Failure::other("the engine is gone")),
                Ok(Heard::Signal(_)) if waiting => {
                    self.screen.notice("The message stays in the queue; /drop takes it back.");
                    break Ok(());
                }
                Ok(Heard::Signal(_)) => {}
                Ok(Heard::Progress(progress)) => {
                    let outcome = self.shown(&progress, message);
                    waiting = outcome.as_ref().map_or(waiting, |(_, o)| o == "requeued");
                    let over = outcome.is_some_and(|(own, _)| own) && !waiting;
                    if over || matches!(progress, Progress::Halted(_)) {
                        break Ok(());
                    }
                }
            }
        };
        self.events = Some(events);
        ended
    }

    /// Shows one event; of the end of a turn, whether it was that of `message`, and its outcome.
    fn shown(&mut self, progress: &Progress, message: &MessageId) -> Option<(bool, String)> {
        if let Progress::TurnStarted { message: of, .. } = progress
            && of != message
        {
            let text = self.engine.message(of).map(|m| m.text).unwrap_or_default();
            self.screen.earlier(of, &text);
        }
        self.screen.show(progress, message);
        let Progress::TurnFinished { message: of, outcome, tokens, .. } = progress else {
            return None;
        };
        self.tokens = (self.tokens.0 + tokens.0, self.tokens.1 + tokens.1);
        Some((of == message, outcome.clone()))
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
        // What waits from before is not begun before there was a chance to take it back.
        if !self.tell_waiting()? {
            self.engine.warm(&session, &self.agent, !created);
        }
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
            "/queue" => self.list_waiting()?,
            "/help" => self.screen.notice(HELP),
            drop if drop == "/drop" || drop.starts_with("/drop ") => {
                self.drop_waiting(drop["/drop".len()..].trim())?;
            }
            command if command.starts_with('/') => {
                self.screen.notice(&format!("{command} is not known. /help lists what is."));
            }
            text => {
                let message = self.submit(text)?;
                self.follow(&message)?;
            }
        }
        Ok(true)
    }

    fn fresh(&mut self) -> Result<()> {
        let (session, created) = self.session()?;
        if !created {
            self.drop_all("a fresh conversation was begun")?;
            self.archive(&session)?;
        }
        let (session, created) = self.session()?;
        self.engine.warm(&session, &self.agent, !created);
        Ok(())
    }

    /// Archives the session, hearing what its worker still has to say: it waits for a listener, and
    /// whoever ends it waits for the worker.
    fn archive(&mut self, session: &SessionId) -> Result<()> {
        let Some(events) = self.events.take() else { return Ok(()) };
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let listener = std::thread::spawn(move || {
            while !seen.load(Ordering::SeqCst) {
                drop(events.recv_timeout(LISTEN));
            }
            events
        });
        let archived = self.engine.archive(session).map_err(Failure::other);
        over.store(true, Ordering::SeqCst);
        self.events = listener.join().ok();
        archived
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
