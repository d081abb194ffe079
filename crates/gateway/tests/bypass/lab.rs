//! The world of one case: a permitted server, a forbidden one, a name server, two doors.
//!
//! ```text
//! 127.0.0.1:P  good.test, permitted        127.0.0.2:P, 127.0.0.1:Q  whatever else, forbidden
//!        ▲                                        ▲
//!        └── door s1 (rules of the case) ── door s2 (rules of another session)
//! ```

use crate::common::{KEY, MemorySink, PLACEHOLDER, TempDir};
use crate::reference::{self, Open};
use crate::world::{Answering, Canary, Names, Ports};
use model::{Body, EgressRule, HostTools, ModelApi, ModelConfig, ToolGrant};
use nanoclaw_gateway::tls::Authority;
use nanoclaw_gateway::{
    Door, Gateway, GatewayConfig, Roots, Sealer, SecretBytes, Vault, bind_door,
};
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

/// What must not arrive.
pub(crate) const MARK: &str = "tripwire-7f3a";
/// A key that the agent has of its own.
pub(crate) const OWN: &str = "agents-own-key-not-real";
/// The longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a held case is watched after its refusal.
const AFTERWARDS: Duration = Duration::from_millis(60);
const TICK: Duration = Duration::from_millis(5);

/// One thing an attacker behind a door tries.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) setup: fn(Ports) -> Setup,
    pub(crate) attack: Attack,
    pub(crate) trip: Trip,
    pub(crate) due: Due,
}

pub(crate) type Doing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the attacker does.
pub(crate) enum Attack {
    /// Sends this through the door; see [`fill`] for what stands in braces.
    Says(&'static str),
    /// Sends bytes that are made.
    Sends(fn(Ports) -> Vec<u8>),
    /// Anything.
    Does(fn(Arc<Lab>) -> Doing),
}

/// What shows that the attack went through.
pub(crate) enum Trip {
    /// [`MARK`] arrived at any server.
    Mark,
    /// The permitted server heard this.
    Good(&'static str),
    /// The forbidden server heard this.
    Evil(&'static str),
    /// The attacker was answered this.
    Answer(&'static str),
    /// This address was dialled.
    Dialled(&'static str),
    /// The name server was asked for a name with this in it.
    Asked(&'static str),
    /// More lines than this went into the log.
    Logged(usize),
}

/// What the gateway has to show for it.
pub(crate) enum Due {
    /// A record of the refusal, with this in its rule and reason.
    Refused(&'static str),
    /// A record of a connection that was cut, with this in its error.
    Cut(&'static str),
    /// No refusal: what holds it, in words.
    Held(&'static str),
}

/// What the case's world is like.
pub(crate) struct Setup {
    pub(crate) rules: Vec<EgressRule>,
    /// The rules of the other session.
    pub(crate) others: Vec<EgressRule>,
    /// What the name server answers, time after time; the last for ever.
    pub(crate) names: Vec<(&'static str, Vec<Vec<&'static str>>)>,
    /// What the permitted server shows as its certificate; without one it speaks plainly.
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) says: Answering,
    pub(crate) secret_hosts: Vec<&'static str>,
    pub(crate) secret_agents: Vec<&'static str>,
    pub(crate) model: Option<ModelApi>,
    /// Whether the session may call `web_fetch`.
    pub(crate) fetches: bool,
    /// What must still get through afterwards, with this in what the permitted server hears.
    pub(crate) control: Option<(Vec<u8>, &'static str)>,
}

/// Who stands behind the doors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Real,
    Reference,
}

enum Keeper {
    Real(Vec<Door>, Box<Gateway>),
    Reference(Vec<AbortHandle>),
}

pub(crate) struct Lab {
    pub(crate) side: Side,
    pub(crate) ports: Ports,
    pub(crate) good: Canary,
    pub(crate) evil: Canary,
    pub(crate) sink: Arc<MemorySink>,
    names: Arc<Names>,
    open: Arc<Open>,
    dir: TempDir,
    keeper: Mutex<Option<Keeper>>,
    answers: Arc<Mutex<Vec<u8>>>,
    control: Option<(Vec<u8>, &'static str)>,
}

/// Puts ports and keys in place of `{P}`, `{Q}`, `{MARK}`, `{KEY}`, `{OWN}` and `{PLACEHOLDER}`.
pub(crate) fn fill(text: &str, ports: Ports) -> Vec<u8> {
    let text = text.replace("{P}", &ports.p.to_string()).replace("{Q}", &ports.q.to_string());
    let text = text.replace("{MARK}", MARK).replace("{OWN}", OWN).replace("{KEY}", KEY);
    text.replace("{Q+65536}", &(u32::from(ports.q) + 65_536).to_string())
        .replace("{PLACEHOLDER}", PLACEHOLDER)
        .into_bytes()
}

impl Lab {
    pub(crate) async fn new(side: Side, setup: fn(Ports) -> Setup) -> Arc<Self> {
        let (listeners, ports) = crate::world::listeners().await;
        let setup = setup(ports);
        let [good, evil, more] = listeners;
        let (heard, tls) = (Canary::default(), setup.tls.clone());
        heard.serve(good, tls, setup.says);
        let bad = Canary::default();
        bad.serve(evil, None, crate::world::fine);
        bad.serve(more, None, crate::world::fine);
        let names = Arc::new(Names::new(&setup.names));
        let dir = TempDir::new();
        std::fs::create_dir_all(dir.0.join("gateway")).unwrap();
        let sink = Arc::new(MemorySink::default());
        let injects = setup.model.is_some() || setup.rules.iter().any(|r| r.secret.is_some());
        let open = Arc::new(Open::new(Arc::clone(&names), ports.p, injects));
        let control = setup.control.clone();
        let keeper = match side {
            Side::Real => real(&setup, &dir, &sink, &names, ports),
            Side::Reference => {
                let doors = ["s1.sock", "s2.sock"].map(|d| bind_door(&dir.0.join(d)).unwrap());
                Keeper::Reference(doors.map(|d| reference::open(d, Arc::clone(&open))).into())
            }
        };
        Arc::new(Self {
            side,
            ports,
            good: heard,
            evil: bad,
            sink,
            names,
            open,
            dir,
            keeper: Mutex::new(Some(keeper)),
            answers: Arc::default(),
            control,
        })
    }

    /// The gateway dies.
    pub(crate) fn kill(&self) {
        match self.keeper.lock().unwrap().take() {
            Some(Keeper::Reference(accepting)) => accepting.iter().for_each(AbortHandle::abort),
            Some(Keeper::Real(doors, gateway)) => drop((doors, gateway)),
            None => {}
        }
    }

    pub(crate) fn door(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    /// Opens a connection to this session's door.
    pub(crate) async fn enter(&self) -> UnixStream {
        UnixStream::connect(self.door("s1.sock")).await.unwrap()
    }

    /// A connection on which `CONNECT good.test:P` was granted.
    pub(crate) async fn through(&self) -> UnixStream {
        let mut stream = self.enter().await;
        let ask = fill("CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n", self.ports);
        stream.write_all(&ask).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
        stream
    }

    /// Sends bytes through a door and keeps what comes back, as long as it comes.
    pub(crate) async fn send_to(&self, door: &str, bytes: &[u8]) {
        let stream = UnixStream::connect(self.door(door)).await.unwrap();
        let (read, mut write) = stream.into_split();
        self.keep(read);
        // A gateway that refuses early takes no more.
        let _ = write.write_all(bytes).await;
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE * 2).await;
            drop(write);
        });
    }

    pub(crate) async fn send(&self, bytes: &[u8]) {
        self.send_to("s1.sock", bytes).await;
    }

    pub(crate) async fn say(&self, text: &str) {
        self.send(&fill(text, self.ports)).await;
    }

    /// Keeps what comes out of `stream`.
    pub(crate) fn keep(&self, mut stream: impl AsyncRead + Send + Unpin + 'static) {
        let answers = Arc::clone(&self.answers);
        tokio::spawn(async move {
            let mut piece = vec![0; 65_536];
            while let Ok(n @ 1..) = stream.read(&mut piece).await {
                answers.lock().unwrap().extend_from_slice(&piece[..n]);
            }
            answers.lock().unwrap().extend_from_slice(b"<end>");
        });
    }

    pub(crate) fn answers(&self) -> String {
        String::from_utf8_lossy(&self.answers.lock().unwrap()).into_owned()
    }

    /// Waits until that many answers' heads, or ends of connections, have come.
    pub(crate) async fn answered(&self, count: usize) {
        let heads = |t: &str| t.matches("HTTP/1.1 ").count() + t.matches("<end>").count();
        until(|| heads(&self.answers()) >= count).await;
    }

    fn logged(&self) -> usize {
        match self.side {
            Side::Real => self.sink.kinds().len(),
            Side::Reference => self.open.log.lock().unwrap().len(),
        }
    }

    fn dialled(&self) -> Vec<String> {
        if self.side == Side::Reference {
            return self.open.dialled.lock().unwrap().clone();
        }
        let address = |body| match body {
            Body::EgressIntent { address, .. } => address,
            Body::EgressPinned { address, .. } => Some(address),
            _ => None,
        };
        self.sink.bodies().into_iter().filter_map(address).collect()
    }

    /// Whether the attack went through.
    pub(crate) fn tripped(&self, trip: &Trip) -> bool {
        match *trip {
            Trip::Mark => self.good.heard(MARK) || self.evil.heard(MARK),
            Trip::Good(text) => self.good.heard(&filled(text, self.ports)),
            Trip::Evil(text) => self.evil.heard(&filled(text, self.ports)),
            Trip::Answer(text) => dechunked(&self.answers()).contains(&filled(text, self.ports)),
            Trip::Dialled(address) => self.dialled().iter().any(|a| a == address),
            // Names have no case, and not every gateway keeps it.
            Trip::Asked(name) => {
                let name = name.to_ascii_lowercase();
                self.names.asked().iter().any(|a| a.to_ascii_lowercase().contains(&name))
            }
            Trip::Logged(most) => self.logged() > most,
        }
    }

    /// Waits for what is due, then looks a little longer. What held it, or what is wrong.
    pub(crate) async fn held(&self, trip: &Trip, due: &Due) -> Result<String, String> {
        let words = match due {
            Due::Held(words) => {
                self.settled().await;
                (*words).to_owned()
            }
            Due::Refused(text) | Due::Cut(text) => {
                let found = |words: Vec<String>| words.into_iter().find(|w| w.contains(text));
                let words = || found(self.words(matches!(due, Due::Cut(_))));
                until(|| words().is_some() || self.tripped(trip)).await;
                let said = || format!("no record of {text:?}; {:?}", self.words(false));
                words().ok_or_else(|| match self.tripped(trip) {
                    true => "TRIPPED".to_owned(),
                    false => format!("{}; answers {:?}", said(), self.answers()),
                })?
            }
        };
        tokio::time::sleep(AFTERWARDS).await;
        if self.tripped(trip) {
            let (good, evil) = (self.good.text(), self.evil.text());
            return Err(format!("TRIPPED; good heard {good:?}, evil {evil:?}"));
        }
        self.control().await?;
        Ok(words)
    }

    /// Rule and reason of every refusal; or how connections ended.
    fn words(&self, results: bool) -> Vec<String> {
        let word = |body| match body {
            Body::EgressRefused { rule, reason, .. } if !results => {
                Some(format!("{rule}: {reason}"))
            }
            Body::EgressResult { error: Some(error), .. } if results => Some(error),
            _ => None,
        };
        self.sink.bodies().into_iter().filter_map(word).collect()
    }

    /// The permitted thing still works, so that what held was not a broken world.
    async fn control(&self) -> Result<(), String> {
        let Some((bytes, text)) = &self.control else { return Ok(()) };
        self.send(bytes).await;
        until(|| self.good.heard(text)).await;
        let answers = || format!("the permitted request got lost: {}", self.answers());
        if self.good.heard(text) { Ok(()) } else { Err(answers()) }
    }

    /// Waits until something was answered and nothing more comes.
    async fn settled(&self) {
        const QUIET: Duration = Duration::from_millis(150);
        until(|| !self.answers().is_empty() || self.good.text().contains(MARK)).await;
        let mut before = self.answers().len();
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.answers().len();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// Waits until the attack went through, as it must here.
    pub(crate) async fn falls(&self, trip: &Trip) -> Result<(), String> {
        until(|| self.tripped(trip)).await;
        if self.tripped(trip) {
            return Ok(());
        }
        let (good, evil) = (self.good.text(), self.evil.text());
        let (log, dialled) = (self.open.log.lock().unwrap().clone(), self.dialled());
        Err(format!(
            "VACUOUS: the open reference holds it; good heard {good:?}, evil {evil:?}, dialled \
             {dialled:?}, log {log:?}, answers {:?}",
            self.answers()
        ))
    }
}

fn filled(text: &str, ports: Ports) -> String {
    String::from_utf8(fill(text, ports)).unwrap()
}

/// Bodies in chunks of a few bytes, read together.
fn dechunked(text: &str) -> String {
    let lines: Vec<&str> = text.split("\r\n").collect();
    let is_size = |line: &&&str| line.len() <= 4 && u16::from_str_radix(line, 16).is_ok();
    let joined: String = lines.iter().filter(|l| !is_size(l)).copied().collect();
    format!("{text}\n{joined}")
}

pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(TICK).await;
    }
}

fn real(
    setup: &Setup,
    dir: &TempDir,
    sink: &Arc<MemorySink>,
    names: &Arc<Names>,
    ports: Ports,
) -> Keeper {
    let home = &dir.0;
    let owned = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let sealer = Sealer::open_or_create(home).unwrap();
    let (hosts, agents) = (owned(&setup.secret_hosts), owned(&setup.secret_agents));
    sealer.set_for("key1", SecretBytes::new(KEY.into()), &hosts, &agents, 1).unwrap();
    let mut config = GatewayConfig::new(sink.clone(), Vault::open(home).unwrap());
    config.resolver = names.clone();
    config.roots = Roots::Only(setup.roots.clone());
    config.authority = Some(Arc::new(Authority::open(&home.join("vault")).unwrap()));
    config.state_dir = Some(home.join("gateway"));
    let gateway = Gateway::new(config);
    let models: Vec<ModelConfig> = setup
        .model
        .map(|api| crate::common::http_model("m", api, ports.p, Some("key1")))
        .into_iter()
        .collect();
    let own = ToolGrant { server: ToolGrant::OWN.into(), tool: "web_fetch".into(), pin: None };
    let grants = setup.fetches.then_some(own).into_iter().collect();
    let tools = HostTools { grants, servers: Vec::new() };
    let open = |session: &str, agent: &str, egress: &[EgressRule]| {
        let grant = serde_json::json!({
            "session": session, "agent": agent, "egress": egress, "models": models,
            "default_model": models.first().map(|m| &m.name), "placeholder": PLACEHOLDER,
            "tools": tools,
        });
        let listener = bind_door(&home.join(format!("{session}.sock"))).unwrap();
        gateway.open_door(serde_json::from_value(grant).unwrap(), listener).unwrap()
    };
    let doors = vec![open("s1", "tester", &setup.rules), open("s2", "other", &setup.others)];
    Keeper::Real(doors, Box::new(gateway))
}
