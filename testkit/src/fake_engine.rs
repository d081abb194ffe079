//! A container engine that runs nothing, or something it should not: its API over a Unix socket, in
//! plain threads.
//!
//! ```text
//! client ─► one request a connection ─► the test's own answer, else that of a good engine
//! ```
//!
//! 1. A good engine remembers what it made: images imported, containers created, started, removed.
//! 2. "Starting" a container runs the program that the test gave, as it is, without any wall: what
//!    an engine would do that only claims to build them.
//! 3. Every request is kept, for the test to look at.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest body taken: a root file system of a few folders is a fraction of it.
const BODY_MAX: usize = 16 << 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCall {
    /// `GET`, `POST`, `DELETE`.
    pub method: String,
    /// Without the version in front, with the query.
    pub path: String,
    /// As JSON; null when it is none.
    pub body: Value,
}

impl EngineCall {
    /// Whether it is this method on a path that begins so.
    #[must_use]
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.starts_with(path)
    }
}

/// What to answer.
#[derive(Debug, Clone)]
pub enum EngineAnswer {
    /// A status and JSON.
    Json(u16, Value),
    /// These bytes, as they are, then the end.
    Raw(Vec<u8>),
    /// Nothing for so long, then the end.
    Silence(Duration),
    /// The end at once.
    HangUp,
}

type Behaviour = dyn Fn(&EngineCall) -> Option<EngineAnswer> + Send + Sync;

#[derive(Debug, Default)]
struct Made {
    body: Value,
    child: Option<Child>,
}

#[derive(Debug, Default)]
struct World {
    calls: Vec<EngineCall>,
    root: Option<String>,
    containers: BTreeMap<String, Made>,
    next: u32,
}

/// The engine. It ends, with all it runs, when this is dropped.
pub struct FakeEngine {
    socket: PathBuf,
    world: Arc<Mutex<World>>,
    stop: Arc<AtomicBool>,
}

/// What a thread serves with.
struct Server {
    world: Arc<Mutex<World>>,
    behaviour: Box<Behaviour>,
    program: Option<PathBuf>,
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeEngine {
    /// Listens in `dir`. `behaviour` answers what it wants to; the rest is answered as a good
    /// engine would. `program` is run with a container's arguments when one is started, the place
    /// of its socket outside put in for the place inside.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn start(
        dir: &Path,
        program: Option<PathBuf>,
        behaviour: impl Fn(&EngineCall) -> Option<EngineAnswer> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let socket = dir.join("engine.sock");
        let listener = UnixListener::bind(&socket)?;
        let (world, stop) = (Arc::<Mutex<World>>::default(), Arc::new(AtomicBool::new(false)));
        let behaviour = Box::new(behaviour);
        let server = Arc::new(Server { world: Arc::clone(&world), behaviour, program });
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let server = Arc::clone(&server);
                // A broken connection ends its own thread only.
                std::thread::spawn(move || drop(server.serve(stream)));
            }
        });
        Ok(Self { socket, world, stop })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it was asked so far.
    #[must_use]
    pub fn calls(&self) -> Vec<EngineCall> {
        lock(&self.world).calls.clone()
    }

    /// How many containers it has.
    #[must_use]
    pub fn containers(&self) -> usize {
        lock(&self.world).containers.len()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, so that it sees the end.
        drop(UnixStream::connect(&self.socket));
        for made in lock(&self.world).containers.values_mut() {
            end(made);
        }
    }
}

fn end(made: &mut Made) {
    if let Some(mut child) = made.child.take() {
        // It may have ended by itself.
        drop(child.kill());
        drop(child.wait());
    }
}

fn answer(status: u16, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

impl Server {
    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        while let Some(call) = read(&mut reader)? {
            lock(&self.world).calls.push(call.clone());
            match (self.behaviour)(&call) {
                Some(EngineAnswer::Json(status, body)) => {
                    writer.write_all(&answer(status, body.to_string().as_bytes()))?;
                }
                Some(EngineAnswer::Raw(bytes)) => return writer.write_all(&bytes),
                Some(EngineAnswer::Silence(time)) => {
                    std::thread::sleep(time);
                    return Ok(());
                }
                Some(EngineAnswer::HangUp) => return Ok(()),
                None => {
                    let (status, body) = self.good(&call);
                    let text = if status == 204 { String::new() } else { body.to_string() };
                    writer.write_all(&answer(status, text.as_bytes()))?;
                }
            }
        }
        Ok(())
    }

    /// As an engine of this machine answers.
    fn good(&self, call: &EngineCall) -> (u16, Value) {
        let mut world = lock(&self.world);
        let parts: Vec<&str> = call.path.split(['/', '?']).skip(1).collect();
        match (call.method.as_str(), parts.as_slice()) {
            ("GET", ["version", ..]) => (200, good_version()),
            ("GET", ["info", ..]) => (200, good_info()),
            ("GET", ["images", "json", ..]) => {
                let found: Vec<Value> = world.root.iter().map(|id| json!({ "Id": id })).collect();
                (200, json!(found))
            }
            ("POST", ["images", "create", ..]) => {
                world.root = Some("sha256:root".into());
                (200, json!({ "status": "sha256:root" }))
            }
            ("GET", ["containers", "json", ..]) => (200, json!([])),
            ("POST", ["containers", "create", ..]) => {
                world.next += 1;
                let id = format!("c{}", world.next);
                let made = Made { body: call.body.clone(), child: None };
                world.containers.insert(id.clone(), made);
                (201, json!({ "Id": id, "Warnings": [] }))
            }
            ("POST", ["containers", id, "start", ..]) => match world.containers.get_mut(*id) {
                Some(made) => {
                    made.child = self.program.as_ref().and_then(|p| run(p, &made.body));
                    (204, Value::Null)
                }
                None => (404, json!({ "message": "no such container" })),
            },
            ("GET", ["containers", id, "json", ..]) => match world.containers.get_mut(*id) {
                Some(made) => (200, inspected(made)),
                None => (404, json!({ "message": "no such container" })),
            },
            ("DELETE", ["containers", id, ..]) => match world.containers.remove(*id) {
                Some(mut made) => {
                    end(&mut made);
                    (204, Value::Null)
                }
                None => (404, json!({ "message": "no such container" })),
            },
            _ => (404, json!({ "message": "page not found" })),
        }
    }
}

fn read(reader: &mut BufReader<UnixStream>) -> io::Result<Option<EngineCall>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut length = 0;
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field)? == 0 || field == "\r\n" {
            break;
        }
        if let Some((name, value)) = field.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length.min(BODY_MAX)];
    reader.read_exact(&mut body)?;
    // `/v1.41/info` is `/info`.
    let plain = match path.strip_prefix("/v").and_then(|rest| rest.split_once('/')) {
        Some((version, rest)) if version.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("/{rest}")
        }
        _ => path,
    };
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Some(EngineCall { method, path: plain, body }))
}

/// What a good engine says to `GET /version`.
#[must_use]
pub fn good_version() -> Value {
    json!({
        "Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12",
        "Components": [{ "Name": "Engine", "Version": "20.10.24" }],
    })
}

/// What a good engine of this machine says to `GET /info`.
#[must_use]
pub fn good_info() -> Value {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "OperatingSystem": "Debian GNU/Linux 12", "OSType": "linux",
        "KernelVersion": kernel.trim(), "CgroupVersion": "2",
        "MemoryLimit": true, "PidsLimit": true, "CpuCfsQuota": true,
        "SecurityOptions": ["name=seccomp,profile=default"],
        "Runtimes": { "runc": {} }, "DefaultRuntime": "runc",
    })
}

/// Runs a container's command without any wall.
fn run(program: &Path, body: &Value) -> Option<Child> {
    let command = body["Entrypoint"].as_array()?;
    let (role, inside) = (command.get(1)?.as_str()?, command.get(2)?.as_str()?);
    let mounts = body["HostConfig"]["Mounts"].as_array()?;
    let line = mounts.iter().find(|m| m["Target"] == inside)?["Source"].as_str()?;
    Command::new(program).args([role, line]).env_clear().stdin(Stdio::null()).spawn().ok()
}

/// Everything as it was asked for, whether it is so or not.
fn inspected(made: &mut Made) -> Value {
    let ended = made.child.as_mut().is_none_or(|c| c.try_wait().is_ok_and(|s| s.is_some()));
    let pid = made.child.as_ref().map_or(0, Child::id);
    json!({
        "Image": made.body["Image"],
        "State": {
            "Running": !ended, "Pid": if ended { 0 } else { pid },
            "ExitCode": 125, "Error": "",
        },
        "HostConfig": made.body["HostConfig"],
        "Mounts": [],
    })
}
