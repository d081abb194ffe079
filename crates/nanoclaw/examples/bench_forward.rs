//! What the gateway adds to requests that an `[[egress]]` rule lets out: `bench_forward [--json]
//! [--only=NAME] [FOLDER]` (records go to that folder's disk; only lines that begin with NAME).
//!
//! ```text
//! 16 keep-alive connections ─┬─► server                              (direct, the floor)
//!                            └─► door ─► gateway ─► server           (forwarded)
//! ```
//!
//! Plain HTTP and intercepted TLS, with records kept in memory and with the real recorder, whose
//! disk's `fdatasync` is measured in the same run. Direct and forwarded take turns; the first turn
//! warms up, the medians of the others count. `paced` sends as many requests a second as half a
//! machine can take; `busy` sends the next one as soon as an answer is there, so that it measures
//! how much work a request is: all sixteen wait for the same few cores.

// A measuring program: what it cannot have, ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use gateway::tls::Authority;
use gateway::{Door, DoorGrant, Gateway, GatewayConfig, Resolver, Resolving, Roots, Vault};
use model::{AgentName, Durability, EgressRule, HostName, Record, RecordSink, SessionId};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HOST: &str = "bench.example";
const CONNECTIONS: usize = 16;
/// Requests of each connection in one turn.
const REQUESTS: usize = 150;
/// Turns; the first one warms up.
const TURNS: usize = 8;
/// All connections together, while `paced`.
const PACE_PER_SECOND: u32 = 800;
/// A large body.
const LARGE_BYTES: usize = 128 << 20;
const SYNCS: usize = 300;

/// What the issue allows on top of direct.
const ADDED_P50: Duration = Duration::from_micros(150);
const ADDED_P99: Duration = Duration::from_millis(1);
const LARGE_RATIO: f64 = 0.6;

/// Either side's stream.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

#[derive(Default)]
struct Memory(AtomicU64);

impl RecordSink for Memory {
    fn submit(&self, _: Record, _: Durability, done: model::Done) {
        done(Ok(self.0.fetch_add(1, Ordering::Relaxed)));
    }
}

struct Here;

impl Resolver for Here {
    fn resolve<'a>(&'a self, _: &'a str) -> Resolving<'a> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a message and throws its body away; says how long that was, `None` at the end.
async fn message(stream: &mut dyn Stream, buffer: &mut Vec<u8>) -> Option<usize> {
    let kept = buffer.len();
    debug_assert_eq!(kept, 0, "one message at a time");
    let end = loop {
        match end_of_head(buffer) {
            Some(end) => break end,
            None if stream.read_buf(buffer).await.ok()? == 0 => return None,
            None => {}
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut left = length.checked_sub(buffer.len() - end)?;
    buffer.clear();
    buffer.reserve(256 * 1024);
    while left > 0 {
        let read = stream.read_buf(buffer).await.ok()?;
        if read == 0 {
            return None;
        }
        left = left.checked_sub(read)?;
        buffer.clear();
    }
    Some(length)
}

/// Answers with 100 bytes, or with [`LARGE_BYTES`] when `/large` is asked for.
async fn answer_all(mut stream: impl Stream) -> Option<()> {
    let piece = vec![b'x'; 256 * 1024];
    let mut buffer = Vec::with_capacity(8 * 1024);
    loop {
        let end = loop {
            match end_of_head(&buffer) {
                Some(end) => break end,
                None if stream.read_buf(&mut buffer).await.ok()? == 0 => return None,
                None => {}
            }
        };
        let length = if buffer.starts_with(b"GET /large") { LARGE_BYTES } else { 100 };
        buffer.drain(..end);
        let mut first = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        first.extend_from_slice(&piece[..length.min(100)]);
        stream.write_all(&first).await.ok()?;
        let mut left = length.saturating_sub(100);
        while left > 0 {
            let now = left.min(piece.len());
            stream.write_all(&piece[..now]).await.ok()?;
            left -= now;
        }
        stream.flush().await.ok()?;
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                None => answer_all(stream).await,
                Some(tls) => answer_all(tls.accept(stream).await.ok()?).await,
            }
        });
    }
}

/// One way to the server.
#[derive(Clone)]
struct Way {
    /// Through this door, or straight.
    door: Option<PathBuf>,
    port: u16,
    tls: Option<TlsConnector>,
}

impl Way {
    async fn connect(&self) -> Box<dyn Stream> {
        let stream: Box<dyn Stream> = match &self.door {
            None => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
            Some(door) => Box::new(UnixStream::connect(door).await.unwrap()),
        };
        let Some(tls) = &self.tls else { return stream };
        let mut stream = stream;
        if self.door.is_some() {
            let to = format!("{HOST}:{}", self.port);
            let connect = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
            stream.write_all(connect.as_bytes()).await.unwrap();
            let mut byte = Vec::new();
            while end_of_head(&byte).is_none() {
                byte.push(stream.read_u8().await.unwrap());
            }
            assert!(byte.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&byte));
        }
        Box::new(tls.connect(ServerName::try_from(HOST).unwrap(), stream).await.unwrap())
    }

    fn request(&self, path: &str) -> Vec<u8> {
        let to = format!("{HOST}:{}", self.port);
        let base = match (&self.door, &self.tls) {
            (Some(_), None) => format!("http://{to}"),
            _ => String::new(),
        };
        format!("GET {base}{path} HTTP/1.1\r\nhost: {to}\r\naccept: */*\r\n\r\n").into_bytes()
    }

    /// All connections at once; the time of every request.
    async fn turn(&self, paced: bool) -> Vec<Duration> {
        let pause = Duration::from_secs(CONNECTIONS as u64) / PACE_PER_SECOND;
        let one = |n: usize| {
            let way = self.clone();
            async move {
                let (mut stream, request) = (way.connect().await, way.request("/small"));
                let (mut buffer, mut times) = (Vec::new(), Vec::with_capacity(REQUESTS));
                let begun = tokio::time::Instant::now() + pause * n as u32 / CONNECTIONS as u32;
                for k in 0..REQUESTS {
                    if paced {
                        tokio::time::sleep_until(begun + pause * k as u32).await;
                    }
                    let asked = Instant::now();
                    stream.write_all(&request).await.unwrap();
                    stream.flush().await.unwrap();
                    assert_eq!(message(&mut *stream, &mut buffer).await, Some(100));
                    times.push(asked.elapsed());
                }
                // Connecting and the first exchange are another figure.
                times.split_off(5)
            }
        };
        let tasks: Vec<_> = (0..CONNECTIONS).map(|n| tokio::spawn(one(n))).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all
    }

    /// Bytes a second of one large body.
    async fn large(&self) -> f64 {
        let mut stream = self.connect().await;
        let mut buffer = Vec::new();
        let asked = Instant::now();
        stream.write_all(&self.request("/large")).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(message(&mut *stream, &mut buffer).await, Some(LARGE_BYTES));
        LARGE_BYTES as f64 / asked.elapsed().as_secs_f64()
    }
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn median<T: PartialOrd + Copy>(all: &[T]) -> T {
    let mut all = all.to_vec();
    all.sort_by(|a, b| a.partial_cmp(b).unwrap());
    all[all.len() / 2]
}

/// p50 and p99 of every turn but the first: direct, forwarded.
struct Turns {
    p50: [Duration; 2],
    p99: [Duration; 2],
}

fn compare(client: &Runtime, direct: &Way, forwarded: &Way, paced: bool) -> Turns {
    let (mut p50, mut p99) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 0..TURNS {
        for (n, way) in [direct, forwarded].into_iter().enumerate() {
            let way = way.clone();
            let mut times = client.block_on(async move { way.turn(paced).await });
            if turn > 0 {
                p50[n].push(percentile(&mut times, 0.5));
                p99[n].push(percentile(&mut times, 0.99));
            }
        }
    }
    Turns { p50: [median(&p50[0]), median(&p50[1])], p99: [median(&p99[0]), median(&p99[1])] }
}

/// The disk's own: p50 and p99 of an append and its `fdatasync`.
fn sync_floor(dir: &Path) -> [Duration; 2] {
    let mut file = File::create(dir.join("sync")).unwrap();
    let mut once = || {
        let begun = Instant::now();
        file.write_all(&[7; 512]).unwrap();
        file.sync_data().unwrap();
        begun.elapsed()
    };
    let mut all: Vec<Duration> = (0..SYNCS).map(|_| once()).collect();
    [percentile(&mut all, 0.5), percentile(&mut all, 0.99)]
}

struct Page {
    json: bool,
}

impl Page {
    fn line(&self, name: &str, unit: &str, (value, floor): (f64, f64), target: &str, ok: bool) {
        let added = value - floor;
        if self.json {
            let figure = serde_json::json!({
                "name": name, "unit": unit, "value": value.round(), "floor": floor.round(),
                "added": added.round(), "ratio": (value / floor * 1e3).round() / 1e3,
                "target": target, "ok": ok,
            });
            println!("{figure}");
        } else {
            let met = if ok { "met" } else { "OVER" };
            println!(
                "{name:<40} {value:>9.0} {floor:>9.0} {added:>9.0} {unit:<5} {target:<24} {met}"
            );
        }
    }

    fn times(&self, name: &str, turns: &Turns, allowed: [Duration; 2]) {
        let micros = |d: Duration| d.as_secs_f64() * 1e6;
        for (part, [direct, forwarded], most) in
            [("p50", turns.p50, allowed[0]), ("p99", turns.p99, allowed[1])]
        {
            let ok = forwarded.saturating_sub(direct) <= most;
            let target = format!("adds at most {:.0}", micros(most));
            let pair = (micros(forwarded), micros(direct));
            self.line(&format!("{name}, {part}"), "us", pair, &target, ok);
        }
    }
}

fn open_door(
    runtime: &Runtime,
    home: &Path,
    name: &str,
    sink: Arc<dyn RecordSink>,
    ports: [u16; 2],
    authority: &Arc<Authority>,
) -> Door {
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
    let mut config = GatewayConfig::new(sink, Vault::open(home).unwrap());
    config.resolver = Arc::new(Here);
    config.roots = Roots::Only(vec![root]);
    config.authority = Some(Arc::clone(authority));
    let host = HostName::parse(HOST).unwrap();
    let rule = |port| {
        let mut rule = EgressRule::allow(format!("bench:{port}"), host.clone(), port);
        rule.private = true;
        rule
    };
    let grant = DoorGrant {
        session: SessionId::parse(name).unwrap(),
        agent: AgentName::parse("bench").unwrap(),
        turn: Default::default(),
        egress: ports.map(rule).to_vec(),
        models: Vec::new(),
        default_model: None,
        placeholder: "placeholder".into(),
        tools: Default::default(),
        provider_tools: Default::default(),
        budget: Default::default(),
        scripts: Default::default(),
        plain_http_hosts: Vec::new(),
        stdin_secrets: Default::default(),
    };
    let _inside = runtime.enter();
    let socket = gateway::bind_door(&home.join(format!("{name}.sock"))).unwrap();
    Gateway::new(config).open_door(grant, socket).unwrap()
}

fn connector(authority: &Authority) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

fn measure(dir: &Path, json: bool, only: &str) {
    let home = dir.join("home");
    std::fs::create_dir_all(&home).unwrap();
    let _vault = gateway::Sealer::open_or_create(&home).unwrap();
    let authority = Arc::new(Authority::open(&home).unwrap());
    let (servers, client, ours) = (runtime(1), runtime(1), runtime(2));
    let listen = || servers.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let (plain, secure) = (listen(), listen());
    let ports = [plain.local_addr().unwrap().port(), secure.local_addr().unwrap().port()];
    let leaf = authority.server_config(&HostName::parse(HOST).unwrap()).unwrap();
    servers.spawn(serve(plain, None));
    servers.spawn(serve(secure, Some(TlsAcceptor::from(leaf))));
    let program = std::env::current_exe().unwrap();
    let recorder = audit::Client::connect(&home, "bench", || {
        audit::start_recorder(&program, &[OsStr::new("__recorder"), home.as_os_str()])
    });
    let recorder: Arc<dyn RecordSink> = Arc::new(recorder.unwrap());
    let memory: Arc<dyn RecordSink> = Arc::new(Memory::default());
    let off = open_door(&ours, &home, "off", memory, ports, &authority);
    let on = open_door(&ours, &home, "on", recorder, ports, &authority);
    let sync = sync_floor(dir);
    let page = Page { json };
    if !json {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("unknown").to_owned();
        println!(
            "{CONNECTIONS} connections, medians of {}; fdatasync p50 {:?} p99 {:?}; load {load}",
            TURNS - 1,
            sync[0],
            sync[1]
        );
        let heads = ["", "forwarded", "direct", "added", "", "target"];
        let [a, b, c, d, e, f] = heads;
        println!("{a:<40} {b:>9} {c:>9} {d:>9} {e:<5} {f}");
    }
    for (kind, port, tls) in
        [("plain", ports[0], None), ("TLS", ports[1], Some(connector(&authority)))]
    {
        let direct = Way { door: None, port, tls };
        let through = |door: &Door| Way { door: Some(door.socket().to_owned()), ..direct.clone() };
        for (record, way, syncs) in [("no record", through(&off), 0), ("recorded", through(&on), 2)]
        {
            let allowed = [ADDED_P50 + sync[0] * syncs, ADDED_P99 + sync[1] * syncs];
            for (load, paced) in [("paced", true), ("busy", false)] {
                let name = format!("{kind}, {record}, {load}");
                if name.starts_with(only) {
                    page.times(&name, &compare(&client, &direct, &way, paced), allowed);
                }
            }
        }
        let (name, way) = (format!("{kind}, large body"), through(&off));
        if !name.starts_with(only) {
            continue;
        }
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..5 {
            rates[0].push(client.block_on(direct.large()) / f64::from(1 << 20));
            rates[1].push(client.block_on(way.large()) / f64::from(1 << 20));
        }
        let (floor, value) = (median(&rates[0]), median(&rates[1]));
        let target = format!("at least {LARGE_RATIO} of direct");
        let ok = value / floor >= LARGE_RATIO;
        page.line(&name, "MiB/s", (value, floor), &target, ok);
    }
}

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "__recorder") {
        let ready = rustix::io::dup(std::io::stdout()).unwrap();
        return audit::recorder_main(Path::new(&args[1]), ready);
    }
    let base = args.iter().find(|a| !a.starts_with("--"));
    let base = base.map_or_else(std::env::temp_dir, Into::into);
    let dir = base.join(format!("bench-forward-{}", std::process::id()));
    let only = args.iter().find_map(|a| a.strip_prefix("--only=")).unwrap_or_default();
    measure(&dir, args.iter().any(|a| a == "--json"), only);
    // The recorder leaves by itself, and writes its last head while it does.
    let started = Instant::now();
    while let Err(e) = std::fs::remove_dir_all(&dir) {
        assert!(started.elapsed() < Duration::from_secs(10), "{}: {e}", dir.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::process::ExitCode::SUCCESS
}
