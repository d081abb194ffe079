//! Many sessions streaming at once: 200 doors, each with one answer of 20 events a second for five
//! seconds from a local server. Measured is how much later each event reached the client than the
//! server's own gap allows, and the memory of the whole process (server and clients included). A
//! few clients ask the server directly at the same time: what they wait is the machine's doing.
//!
//! `cargo run --release --example bench_streams -p nanoclaw-gateway [-- SESSIONS]`
#![allow(clippy::print_stdout)] // a program's output

use model::{AgentName, Budget, Durability, ModelApi, ModelConfig, Record, RecordSink, SessionId};
use nanoclaw_gateway::usage::Ledger;
use nanoclaw_gateway::{
    Door, DoorGrant, Gateway, GatewayConfig, Sealer, SecretBytes, TurnCell, Vault, bind_door,
};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Sessions when nothing is said.
const SESSIONS: usize = 200;
/// Clients beside them that use no door.
const DIRECT: usize = 20;
/// Events of one answer.
const EVENTS: usize = 100;
/// Between two events.
const GAP: Duration = Duration::from_millis(50);
/// What no event may be late by.
const STALL_MAX: Duration = Duration::from_millis(50);
/// What the process may take.
const RSS_MIB_MAX: u64 = 150;

#[derive(Default)]
struct Counting(AtomicU64);

impl RecordSink for Counting {
    fn submit(&self, _: Record, _: Durability, done: model::Done) {
        done(Ok(self.0.fetch_add(1, Ordering::Relaxed)));
    }
}

/// The moment an event was written, in microseconds since `start`, stands in the event.
async fn answer(mut stream: TcpStream, start: Instant) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buf = vec![0; 16 * 1024];
    let mut seen = 0;
    while !buf[..seen].windows(4).any(|w| w == b"\r\n\r\n") {
        seen += stream.read(&mut buf[seen..]).await?;
    }
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut tick = tokio::time::interval(GAP);
    for _ in 0..EVENTS {
        tick.tick().await;
        let at = start.elapsed().as_micros();
        let text = "word ".repeat(8);
        let event = format!("data: {{\"at\":{at:012},\"delta\":{{\"text\":\"{text}\"}}}}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

async fn serve(listener: TcpListener, start: Instant) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream, start));
    }
}

fn open(gateway: &Gateway, home: &Path, port: u16, n: usize) -> Result<Door, Box<dyn Error>> {
    let model = ModelConfig {
        name: "m".into(),
        api: ModelApi::Anthropic,
        also: Vec::new(),
        base_url: format!("http://127.0.0.1:{port}"),
        model: "m".into(),
        secret: Some("bench".into()),
        login: None,
        script: None,
        max_tokens: 1,
        context_tokens: 1,
        fallbacks: Vec::new(),
        price: None,
    };
    let listener = bind_door(&home.join(format!("vault/door-{n}.sock")))?;
    let grant = DoorGrant {
        session: SessionId::parse(&format!("bench-{n}"))?,
        agent: AgentName::parse("bench")?,
        turn: TurnCell::default(),
        egress: vec![],
        models: vec![model],
        default_model: Some("m".into()),
        placeholder: "placeholder".into(),
        tools: Default::default(),
        budget: Budget { tokens_per_day: Some(u64::MAX), ..Budget::default() },
        scripts: Default::default(),
        plain_http_hosts: Vec::new(),
        provider_tools: Default::default(),
        stdin_secrets: Default::default(),
    };
    Ok(gateway.open_door(grant, listener)?)
}

/// Streams one answer; how much longer each event was under way than the quickest, in microseconds.
async fn listen(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    start: Instant,
) -> std::io::Result<Vec<u64>> {
    let body = r#"{"model":"m","max_tokens":1,"stream":true,"messages":[]}"#;
    let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await?;
    let (mut late, mut buf, mut used) = (Vec::with_capacity(EVENTS), Vec::new(), 0);
    while stream.read_buf(&mut buf).await? > 0 {
        let now = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        while let Some(at) = buf[used..].windows(5).position(|w| w == b"\"at\":") {
            let from = used + at + 5;
            let Some(digits) = buf.get(from..from + 12) else { break };
            let sent = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u64>().ok());
            late.push(now.saturating_sub(sent.unwrap_or(0)));
            used = from + 12;
        }
    }
    Ok(late)
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let sessions = std::env::args().nth(1).map_or(Ok(SESSIONS), |n| n.parse())?;
    let home = std::env::temp_dir().join(format!("nanoclaw-streams-{}", std::process::id()));
    std::fs::create_dir_all(&home)?;
    let sealer = Sealer::open_or_create(&home)?;
    sealer.set("bench", SecretBytes::new(b"not-a-real-key".to_vec()), &["127.0.0.1".into()], 0)?;
    let mut config = GatewayConfig::new(Arc::new(Counting::default()), Vault::open(&home)?);
    config.ledger = Ledger::open(&home)?;
    let gateway = Gateway::new(config);
    let (start, listener) = (Instant::now(), TcpListener::bind("127.0.0.1:0").await?);
    let port = listener.local_addr()?.port();
    tokio::spawn(serve(listener, start));
    let doors: Vec<Door> =
        (0..sessions).map(|n| open(&gateway, &home, port, n)).collect::<Result<_, _>>()?;
    let (mut clients, mut direct) = (Vec::new(), Vec::new());
    for door in &doors {
        let stream = UnixStream::connect(door.socket()).await?;
        clients.push(tokio::spawn(listen(stream, start)));
    }
    for _ in 0..DIRECT {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        direct.push(tokio::spawn(listen(stream, start)));
    }
    let (mut all, mut plain) = (Vec::new(), Vec::new());
    for client in clients {
        all.extend(client.await??);
    }
    for client in direct {
        plain.extend(client.await??);
    }
    all.sort_unstable();
    plain.sort_unstable();
    let at =
        |times: &[u64], part: f64| times[((times.len() - 1) as f64 * part) as usize] as f64 / 1e3;
    let (ms, rss) = (|part| at(&all, part), rss_mib());
    let worst = ms(1.0);
    println!("{sessions} sessions, {} events of {}", all.len(), sessions * EVENTS);
    println!(
        "server to client: p50 {:.2} ms, p99 {:.2} ms, worst {worst:.2} ms",
        ms(0.5),
        ms(0.99)
    );
    println!("without a door:   p99 {:.2} ms, worst {:.2} ms", at(&plain, 0.99), at(&plain, 1.0));
    println!("largest resident memory, server and clients included: {rss} MiB");
    let good = all.len() == sessions * EVENTS
        && worst < STALL_MAX.as_secs_f64() * 1e3
        && rss < RSS_MIB_MAX;
    println!("{}", if good { "within the targets" } else { "MISSED a target" });
    drop(doors);
    std::fs::remove_dir_all(&home)?;
    Ok(())
}
