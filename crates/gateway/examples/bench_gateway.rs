//! What the gateway adds to a model request: the same keep-alive exchange straight to a local
//! server and through a door, one connection, interleaved in one run. Records go to memory, so the
//! disk's `fdatasync` is not in the figure.
//!
//! `cargo run --release --example bench_gateway -p nanoclaw-gateway`
#![allow(clippy::print_stdout)] // a program's output

use model::{AgentName, Durability, ModelApi, ModelConfig, Record, RecordSink, SessionId};
use nanoclaw_gateway::{
    DoorGrant, Gateway, GatewayConfig, Sealer, SecretBytes, TurnCell, Vault, bind_door,
};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Measured exchanges of each kind; enough for a steady p99.
const ROUNDS: usize = 2_000;
/// Exchanges before measuring.
const WARM_UP: usize = 200;
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 76\r\n\r\n{\"content\":[],\"usage\":{\"input_tokens\":1,\"output_tokens\":1},\"pad\":\"12345678\"}";

#[derive(Default)]
struct Counting(AtomicU64);

impl RecordSink for Counting {
    fn submit(&self, _: Record, _: Durability, done: model::Done) {
        done(Ok(self.0.fetch_add(1, Ordering::Relaxed)));
    }
}

fn header_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let value = head.lines().find_map(|l| l.strip_prefix("content-length: "));
    value.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Reads one message and says whether there was one.
async fn message(
    stream: &mut (impl AsyncRead + Unpin),
    buf: &mut Vec<u8>,
) -> std::io::Result<bool> {
    buf.clear();
    loop {
        if let Some(end) = header_end(buf)
            && buf.len() >= end + length(&buf[..end])
        {
            return Ok(true);
        }
        if stream.read_buf(buf).await? == 0 {
            return Ok(false);
        }
    }
}

async fn serve(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buf = Vec::with_capacity(128 * 1024);
            while message(&mut stream, &mut buf).await? {
                stream.write_all(ANSWER.as_bytes()).await?;
            }
            std::io::Result::Ok(())
        });
    }
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
    buf: &mut Vec<u8>,
) -> std::io::Result<Duration> {
    let started = Instant::now();
    stream.write_all(request).await?;
    message(stream, buf).await?;
    Ok(started.elapsed())
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn open(home: &Path, port: u16) -> Result<nanoclaw_gateway::Door, Box<dyn Error>> {
    let sealer = Sealer::open_or_create(home)?;
    sealer.set("bench", SecretBytes::new(b"not-a-real-key".to_vec()), &["127.0.0.1".into()], 0)?;
    let sink = Arc::new(Counting::default());
    let gateway = Gateway::new(GatewayConfig::new(sink, Vault::open(home)?));
    let model = ModelConfig {
        name: "m".into(),
        api: ModelApi::Anthropic,
        base_url: format!("http://127.0.0.1:{port}"),
        model: "m".into(),
        secret: Some("bench".into()),
        login: None,
        script: None,
        max_tokens: 1,
        context_tokens: 1,
        also: Vec::new(),
        fallbacks: Vec::new(),
        price: None,
    };
    let grant = DoorGrant {
        session: SessionId::parse("bench")?,
        agent: AgentName::parse("bench")?,
        turn: TurnCell::default(),
        egress: vec![],
        models: vec![model],
        default_model: Some("m".into()),
        placeholder: "placeholder".into(),
        tools: Default::default(),
        budget: Default::default(),
        scripts: Default::default(),
        plain_http_hosts: Vec::new(),
        provider_tools: Default::default(),
        stdin_secrets: Default::default(),
    };
    Ok(gateway.open_door(grant, bind_door(&home.join("vault/door.sock"))?)?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let home = std::env::temp_dir().join(format!("nanoclaw-bench-{}", std::process::id()));
    std::fs::create_dir_all(&home)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(serve(listener));
    let door = open(&home, port)?;
    for size in [1_000, 48_000] {
        let pad = "x".repeat(size);
        let body = format!(
            "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{pad}\"}}]}}"
        );
        let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut straight = TcpStream::connect(("127.0.0.1", port)).await?;
        straight.set_nodelay(true)?;
        let mut through = UnixStream::connect(door.socket()).await?;
        let (mut a, mut b, mut buf) = (Vec::new(), Vec::new(), Vec::with_capacity(128 * 1024));
        for round in 0..WARM_UP + ROUNDS {
            let direct = exchange(&mut straight, request.as_bytes(), &mut buf).await?;
            let gated = exchange(&mut through, request.as_bytes(), &mut buf).await?;
            if round >= WARM_UP {
                a.push(direct);
                b.push(gated);
            }
        }
        let (a50, b50) = (percentile(&mut a, 0.5), percentile(&mut b, 0.5));
        let (a99, b99) = (percentile(&mut a, 0.99), percentile(&mut b, 0.99));
        println!(
            "{size:>6} bytes  p50: direct {a50:?}, door {b50:?}, added {:?}",
            b50.saturating_sub(a50)
        );
        println!(
            "              p99: direct {a99:?}, door {b99:?}, added {:?}",
            b99.saturating_sub(a99)
        );
    }
    drop(door);
    std::fs::remove_dir_all(&home)?;
    Ok(())
}
