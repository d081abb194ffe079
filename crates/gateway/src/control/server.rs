//! The gateway's side: one task a client, its doors, and the questions on their way to people.

use super::approvals::Approvals;
use super::frames::Inbox;
use super::programs::Programs;
use super::tracked::Tracked;
use super::wire::{FromGateway, PROTOCOL, ROLE_BYTES_MAX, Reply, ToGateway, decode, encode};
use crate::door::Door;
use crate::gateway::{BegunLogin, Gateway};
use crate::mcp::StdioServers;
use model::{AgentName, LoginConfig, McpServer, SessionId};
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How long it waits for its first client.
const FIRST_CLIENT_GRACE: Duration = Duration::from_secs(4);
/// How long it waits for another client after the last one has gone: one command after another
/// then shares a gateway.
const LAST_CLIENT_GRACE: Duration = Duration::from_millis(300);
/// How long a client may take to say hello.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Clients at a time: the commands one person runs at once.
const CLIENTS_MAX: usize = 64;
/// Doors of one client.
const DOORS_MAX: usize = 1_024;
/// Frames on their way to a client that reads slowly; a question beyond is not asked.
const UNSENT_MAX: usize = 256;
/// What follows a secret in its pipe: agents read it as a line, and another may follow.
const LINE_END: &[u8] = b"\n";
/// How long the last records of a door may take to be taken by the recorder.
const FLUSH_TIME: Duration = Duration::from_secs(10);

/// Frames on their way to one client.
pub(super) type Sender = mpsc::Sender<Vec<u8>>;

/// What all clients share.
struct Shared {
    gateway: Gateway,
    approvals: Arc<Approvals>,
    records: Arc<Tracked>,
    doors: AtomicU64,
    clients: watch::Sender<usize>,
}

/// Serves clients until the last one has gone, or the recorder is: a gateway that cannot record
/// is of no use, and its successor will find the recorder's. `approvals` is the gateway's own
/// approver, `records` its sink.
///
/// # Errors
/// When the listener fails, or the recorder is gone.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    gateway: Gateway,
    approvals: Arc<Approvals>,
    records: Arc<Tracked>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (clients, mut count) = watch::channel(0);
    let doors = AtomicU64::new(0);
    let shared = Arc::new(Shared { gateway, approvals, records, doors, clients });
    let (mut grace, mut number) = (FIRST_CLIENT_GRACE, 0);
    loop {
        let now = *count.borrow_and_update();
        if shared.records.is_gone() {
            return Err(io::Error::other("the recorder is gone"));
        }
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                number += 1;
                welcome(&shared, stream, number);
            }
            _ = count.changed() => grace = LAST_CLIENT_GRACE,
            () = unneeded(&shared, grace), if now == 0 => return Ok(()),
        }
    }
}

/// Returns when nobody has come for a while, and no provider of a login is being asked: its answer
/// may hold the only refresh token there is.
async fn unneeded(shared: &Shared, grace: Duration) {
    tokio::time::sleep(grace).await;
    shared.gateway.logins.settled().await;
}

/// Whether whoever is at the other end may direct the gateway.
fn may_direct(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

fn welcome(shared: &Arc<Shared>, stream: UnixStream, number: u64) {
    if !may_direct(&stream) || *shared.clients.borrow() >= CLIENTS_MAX {
        return;
    }
    shared.clients.send_modify(|n| *n += 1);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let stream = Arc::new(stream);
        let (to, from) = mpsc::channel(UNSENT_MAX);
        let writing = tokio::spawn(write_frames(Arc::clone(&stream), from));
        let programs = Arc::new(Programs::new(to.clone()));
        let (doors, looking) = (HashMap::new(), JoinSet::new());
        let mut client = Client { shared, number, to, programs, doors, looking, begun: None };
        // However it ended, the client is gone: its doors close.
        let _ = client.run(&stream).await;
        let Client { shared, number, to, programs, doors, looking, begun: _ } = client;
        shared.doors.fetch_sub(doors.len() as u64, Ordering::Relaxed);
        drop((doors, looking));
        programs.left();
        drop(programs);
        shared.approvals.left(number);
        drop(to);
        let _ = writing.await;
        shared.clients.send_modify(|n| *n -= 1);
    });
}

async fn write_frames(stream: Arc<UnixStream>, mut from: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = from.recv().await {
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match stream.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if stream.writable().await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}

struct Client {
    shared: Arc<Shared>,
    number: u64,
    to: Sender,
    programs: Arc<Programs>,
    doors: HashMap<u64, Door>,
    /// Servers of tools that are being looked at; each may take a minute.
    looking: JoinSet<()>,
    /// A login at which a person is agreeing.
    begun: Option<BegunLogin>,
}

fn unwelcome(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Client {
    async fn run(&mut self, stream: &UnixStream) -> io::Result<()> {
        let mut inbox = Inbox::default();
        let hello = tokio::time::timeout(HELLO_TIME, next(stream, &mut inbox)).await;
        match hello.map_err(|_| io::ErrorKind::TimedOut)?? {
            Some((ToGateway::Hello { protocol: PROTOCOL, role }, None))
                if role.len() <= ROLE_BYTES_MAX => {}
            _ => return Err(unwelcome("another protocol")),
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let welcome = FromGateway::Welcome { protocol: PROTOCOL, version, pid: std::process::id() };
        self.tell(&welcome).await?;
        while let Some((message, fd)) = next(stream, &mut inbox).await? {
            self.obey(message, fd).await?;
        }
        Ok(())
    }

    async fn tell(&self, message: &FromGateway) -> io::Result<()> {
        let frame = encode(message)?;
        self.to.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn obey(&mut self, message: ToGateway, fd: Option<OwnedFd>) -> io::Result<()> {
        let (id, reply) = match (message, fd) {
            (ToGateway::OpenDoor { id, door, grant, turn, relay }, Some(fd)) => {
                let reply = self.open(door, *grant, turn, fd);
                if let (Some(pid), Some(door)) = (relay, self.doors.get(&door)) {
                    door.only_from(pid);
                }
                (id, reply)
            }
            (ToGateway::OnlyFrom { id, door, pid }, None) => {
                let known = self.doors.get(&door).map(|d| d.only_from(pid));
                (id, known.map_or_else(no_door, |()| Reply::Done))
            }
            (ToGateway::Deliver { id, door, secret }, Some(fd)) => {
                (id, self.deliver(door, &secret, fd).await)
            }
            (ToGateway::SetTurn { id, door, turn }, None) => {
                let known = self.doors.get(&door).map(|d| d.set_turn(turn));
                (id, known.map_or_else(no_door, |()| Reply::Done))
            }
            (ToGateway::Counts { id, door }, None) => (id, self.counts(door).await),
            (ToGateway::CloseDoor { id, door }, None) => {
                let counts = self.counts(door).await;
                if self.doors.remove(&door).is_some() {
                    self.shared.doors.fetch_sub(1, Ordering::Relaxed);
                }
                (id, counts)
            }
            (ToGateway::SettleDoor { id, door }, None) => {
                let Some(door) = self.doors.remove(&door) else {
                    return self.tell(&FromGateway::Reply { id, reply: no_door() }).await;
                };
                self.shared.doors.fetch_sub(1, Ordering::Relaxed);
                // Other sessions of this client do not wait for it.
                tokio::spawn(settle(id, door, Arc::clone(&self.shared.records), self.to.clone()));
                return Ok(());
            }
            (ToGateway::Answer { ask, answer }, None) => {
                self.shared.approvals.answered(self.number, ask, answer);
                return Ok(());
            }
            (ToGateway::DescribeMcp { id, server, session }, None) => {
                self.describe(id, server, session);
                return Ok(());
            }
            (ToGateway::Started { order }, Some(fd)) => return self.programs.started(order, fd),
            (ToGateway::NotStarted { order, why }, None) => {
                self.programs.not_started(order, why);
                return Ok(());
            }
            (ToGateway::Stopped { order, how }, None) => {
                self.programs.stopped(order, how);
                return Ok(());
            }
            (ToGateway::BeginLogin { id, login, hosts, agents }, None) => {
                (id, self.begin(*login, &hosts, agents))
            }
            (ToGateway::FinishLogin { id, pasted }, None) => (id, self.finish(&pasted).await),
            (ToGateway::Ping { id }, None) => {
                (id, Reply::Pong { doors: self.shared.doors.load(Ordering::Relaxed) })
            }
            _ => return Err(unwelcome("a second hello, or a descriptor out of place")),
        };
        self.tell(&FromGateway::Reply { id, reply }).await
    }

    fn begin(&mut self, login: LoginConfig, hosts: &[String], agents: Vec<AgentName>) -> Reply {
        let (reply, begun) = match self.shared.gateway.begin_login(login, hosts, agents) {
            Ok((begun, url)) => (Reply::LoginAddress { url }, Some(begun)),
            Err(why) => (Reply::Refused { why }, None),
        };
        self.begun = begun;
        reply
    }

    /// Beside everything else, for what is looked at may have to be started by this very client.
    fn describe(&mut self, id: u64, server: McpServer, session: Option<SessionId>) {
        while self.looking.try_join_next().is_some() {}
        let (shared, to) = (Arc::clone(&self.shared), self.to.clone());
        let programs = Arc::clone(&self.programs) as Arc<dyn StdioServers>;
        self.looking.spawn(async move {
            let described = shared.gateway.describe_mcp_with(server, session, programs).await;
            let reply = match described {
                Ok(tools) => Reply::Described(tools),
                Err(e) => Reply::Refused { why: e.to_string() },
            };
            if let Ok(frame) = encode(&FromGateway::Reply { id, reply }) {
                // A client that is gone needs no answer.
                let _ = to.send(frame).await;
            }
        });
    }

    fn open(
        &mut self,
        key: u64,
        grant: crate::door::DoorGrant,
        turn: Option<model::TurnId>,
        fd: OwnedFd,
    ) -> Reply {
        let refused = |why: String| Reply::Refused { why };
        if self.doors.len() >= DOORS_MAX || self.doors.contains_key(&key) {
            return refused(format!("a client has at most {DOORS_MAX} doors, each once"));
        }
        if let Err(why) = listening(&fd) {
            return refused(why.to_owned());
        }
        let (session, shared) = (grant.session.clone(), &self.shared);
        let programs = Arc::clone(&self.programs) as Arc<dyn StdioServers>;
        let listener = std::os::unix::net::UnixListener::from(fd);
        match shared.gateway.open_door_with(grant, listener, programs) {
            Ok(door) => {
                door.set_turn(turn);
                self.doors.insert(key, door);
                shared.doors.fetch_add(1, Ordering::Relaxed);
                shared.approvals.came(session, self.number, self.to.clone());
                Reply::Done
            }
            Err(e) => refused(e.to_string()),
        }
    }

    /// The counts, once the door's records are with the recorder: what its owner records next
    /// stands behind them.
    async fn counts(&self, key: u64) -> Reply {
        let Some(door) = self.doors.get(&key) else { return no_door() };
        match flush(&self.shared.records).await {
            Ok(()) => Reply::Counts(door.counts().to_map()),
            Err(why) => Reply::Refused { why },
        }
    }

    /// What was pasted wrongly may be pasted again.
    async fn finish(&mut self, pasted: &str) -> Reply {
        let Some(begun) = &self.begun else {
            return Reply::Refused { why: "no login was begun here".into() };
        };
        match self.shared.gateway.finish_login(begun, pasted).await {
            Ok((expires_ms, renewable)) => {
                self.begun = None;
                Reply::LoggedIn { expires_ms, renewable }
            }
            Err(why) => Reply::Refused { why },
        }
    }

    async fn deliver(&self, key: u64, secret: &str, pipe: OwnedFd) -> Reply {
        let refused = |why: String| Reply::Refused { why };
        let Some(door) = self.doors.get(&key) else { return no_door() };
        let kind = rustix::fs::fstat(&pipe).map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode));
        if kind != Ok(rustix::fs::FileType::Fifo) {
            return refused("a secret is delivered into a pipe only".into());
        }
        let secret = match door.release(secret).await {
            Ok(secret) => secret,
            Err(e) => return refused(e.to_string()),
        };
        let written = tokio::task::spawn_blocking(move || {
            let mut pipe = std::fs::File::from(pipe);
            pipe.write_all(secret.expose())?;
            pipe.write_all(LINE_END).map(|()| (secret.expose().len() + LINE_END.len()) as u64)
        });
        match written.await {
            Ok(Ok(bytes)) => Reply::Delivered { bytes },
            Ok(Err(e)) => refused(format!("the pipe to the agent: {e}")),
            Err(e) => refused(e.to_string()),
        }
    }
}

/// Waits until the records so far are with the recorder.
async fn flush(records: &Arc<Tracked>) -> Result<(), String> {
    let records = Arc::clone(records);
    match tokio::task::spawn_blocking(move || records.flush(FLUSH_TIME)).await {
        Ok(flushed) => flushed.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

/// Ends a door whose sandbox is gone, and tells its client.
async fn settle(id: u64, door: Door, records: Arc<Tracked>, to: Sender) {
    let counts = door.settle().await;
    let reply = match flush(&records).await {
        Ok(()) => Reply::Counts(counts.to_map()),
        Err(why) => Reply::Refused { why },
    };
    if let Ok(frame) = encode(&FromGateway::Reply { id, reply }) {
        // A client that is gone wants no counts.
        let _ = to.send(frame).await;
    }
}

fn no_door() -> Reply {
    Reply::Refused { why: "this client has no such door".into() }
}

/// Whether a descriptor is a Unix socket that listens: anything else could not be a door, and a
/// connected one would make its other end a session.
fn listening(fd: &OwnedFd) -> Result<(), &'static str> {
    let why = "a door needs a listening Unix socket";
    let accepts = rustix::net::sockopt::socket_acceptconn(fd).map_err(|_| why)?;
    let family = rustix::net::sockopt::socket_domain(fd).map_err(|_| why)?;
    if accepts && family == rustix::net::AddressFamily::UNIX { Ok(()) } else { Err(why) }
}

/// The next message with its descriptor; `None` when the client has left between two frames.
async fn next(
    stream: &UnixStream,
    inbox: &mut Inbox,
) -> io::Result<Option<(ToGateway, Option<OwnedFd>)>> {
    loop {
        if let Some(frame) = inbox.frame()? {
            let message: ToGateway = decode(frame)?;
            let wants = message.descriptors() > 0;
            let fd = if wants { Some(inbox.descriptor()?) } else { None };
            if inbox.strays() {
                return Err(unwelcome("a descriptor nobody asked for"));
            }
            return Ok(Some((message, fd)));
        }
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || inbox.receive(stream)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}
