//! A gateway that is open on purpose: it understands whatever can be understood, believes what it
//! is told, checks nothing and forgets nothing. A case that does not trip here proves nothing.
//!
//! What it gets wrong, each a mistake that gateways were found to make: no rules; targets read
//! leniently (userinfo, decimal and octal addresses, ports that overflow, bare LF, blanks); the
//! `Host` field believed before the target; names resolved anew for every use, the last answer
//! taken; bytes copied blindly after the first head; the secret put in wherever the placeholder
//! stands and into every request; redirects followed with the secret; one identity for all doors;
//! connections that outlive it.

use crate::common::{KEY, PLACEHOLDER};
use crate::world::{EVIL, GOOD, Names};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;

/// What all its doors share.
pub(crate) struct Open {
    names: Arc<Names>,
    port: u16,
    injects: bool,
    pub(crate) dialled: Mutex<Vec<String>>,
    pub(crate) log: Mutex<Vec<String>>,
}

impl Open {
    /// `port` is what it takes where it understands none.
    pub(crate) fn new(names: Arc<Names>, port: u16, injects: bool) -> Self {
        Self { names, port, injects, dialled: Mutex::default(), log: Mutex::default() }
    }

    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        match address(host) {
            Some(ip) => vec![ip],
            None => self.names.answer(host),
        }
    }

    /// Connects to whatever it is. Addresses outside this machine stand for the forbidden server.
    async fn dial(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let Some(&ip) = self.addresses(host).last() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        self.dialled.lock().unwrap().push(ip.to_string());
        let here = match ip.to_canonical() {
            IpAddr::V4(v4) if v4.is_loopback() => IpAddr::V4(v4),
            _ => EVIL.parse().unwrap(),
        };
        let port = if here.to_string() == EVIL { self.port } else { port };
        TcpStream::connect((here, port)).await
    }

    fn target(&self, text: &str) -> (String, u16) {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let text = text.split(['/', '?', '#']).next().unwrap_or("");
        let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
        if let Some((host, port)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
            let host = host.split('%').next().unwrap_or(host);
            return (host.to_owned(), self.number(port.trim_start_matches(':')));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        (decoded(host).trim().to_owned(), self.number(port))
    }

    /// Wraps around, and takes nothing for the usual port.
    fn number(&self, text: &str) -> u16 {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        match digits.parse::<u64>().unwrap_or(0) as u16 {
            0 => self.port,
            port => port,
        }
    }
}

/// Every spelling of an address that inet_aton(3) and inet_pton(3) know.
fn address(host: &str) -> Option<IpAddr> {
    if let Ok(ip) = host.parse() {
        return Some(ip);
    }
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Option<Vec<u32>> = host.trim_end_matches('.').split('.').map(number).collect();
    let parts = parts.filter(|p| p.len() <= 4)?;
    let (last, front) = parts.split_last()?;
    let bits = front.iter().enumerate().fold(*last, |n, (i, part)| n | part << (24 - 8 * i));
    Some(Ipv4Addr::from_bits(bits).into())
}

fn decoded(text: &str) -> String {
    let (mut out, bytes) = (Vec::new(), text.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Opens a door that anybody's claims pass through. Ending it ends no connection.
pub(crate) fn open(listener: StdListener, state: Arc<Open>) -> AbortHandle {
    listener.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(listener).unwrap();
    let accepting = async move {
        while let Ok((client, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                let _ = serve(client, &state).await;
            });
        }
    };
    tokio::spawn(accepting).abort_handle()
}

/// Where the head ends: after an empty line, however lines end.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let crlf = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    let lf = bytes.windows(2).position(|w| w == b"\n\n").map(|at| at + 2);
    crlf.into_iter().chain(lf).min()
}

async fn read_head(
    from: &mut (impl AsyncRead + Unpin),
    buf: &mut Vec<u8>,
) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = end_of_head(buf) {
            let head = buf.drain(..end).collect::<Vec<u8>>();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if from.read_buf(buf).await? == 0 {
            return Ok(None);
        }
    }
}

async fn serve(mut client: UnixStream, state: &Open) -> io::Result<()> {
    let mut buf = Vec::new();
    while let Some(head) = read_head(&mut client, &mut buf).await? {
        let line = head.split('\n').next().unwrap_or("").trim_end().to_owned();
        state.log.lock().unwrap().push(line.clone());
        let (method, rest) = line.split_once([' ', '\t']).unwrap_or((&line, ""));
        let target = rest.rsplit_once(' ').map_or(rest, |(target, _)| target).trim();
        if method == "CONNECT" {
            return connect(client, state, target, buf).await;
        }
        if target == "/mcp" {
            let url = fetched(&mut client, &mut buf).await?;
            let to = state.target(&url);
            let path = url.splitn(4, '/').nth(3).unwrap_or("");
            let head = format!("GET /{path} HTTP/1.1\r\nHost: {}:{}\r\n\r\n", to.0, to.1);
            return forward(client, state, to, &head, buf).await;
        }
        if let Some(name) = target.strip_prefix("/.nanoclaw/name/") {
            state.addresses(name);
            client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
            continue;
        }
        let to = match field(&head, "host").filter(|_| !target.starts_with("/v1")) {
            Some(host) => state.target(&host),
            None if target.starts_with('/') => (GOOD.to_owned(), state.port),
            None => state.target(target),
        };
        return forward(client, state, to, &head, buf).await;
    }
    Ok(())
}

/// The address that a call of `web_fetch` names.
async fn fetched(client: &mut UnixStream, buf: &mut Vec<u8>) -> io::Result<String> {
    loop {
        let text = String::from_utf8_lossy(buf).into_owned();
        let url = text.split_once("\"url\":\"").and_then(|(_, rest)| rest.split_once('"'));
        if let Some((url, _)) = url {
            buf.clear();
            return Ok(url.to_owned());
        }
        if client.read_buf(buf).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The last of its name, and of its list.
fn field(head: &str, name: &str) -> Option<String> {
    let found = head.lines().skip(1).filter_map(|l| l.split_once(':'));
    let found = found.filter(|(n, _)| n.trim().eq_ignore_ascii_case(name));
    found.last().and_then(|(_, v)| v.rsplit(',').next().map(|v| v.trim().to_owned()))
}

async fn connect(
    mut client: UnixStream,
    state: &Open,
    target: &str,
    mut buf: Vec<u8>,
) -> io::Result<()> {
    let (host, port) = state.target(target);
    // The check, whose answer nobody will use.
    state.addresses(&host);
    client.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n").await?;
    while buf.is_empty() {
        if client.read_buf(&mut buf).await? == 0 {
            return Ok(());
        }
    }
    let http = ["GET ", "PUT ", "POST ", "DELETE "].iter().any(|m| buf.starts_with(m.as_bytes()));
    if http && let Some(head) = read_head(&mut client, &mut buf).await? {
        let named = field(&head, "host").map(|named| state.target(&named));
        return forward(client, state, named.unwrap_or((host, port)), &head, buf).await;
    }
    let server = state.dial(&host, port).await?;
    copy_both(client, server, buf, state.injects).await
}

async fn forward(
    mut client: UnixStream,
    state: &Open,
    (host, port): (String, u16),
    head: &str,
    rest: Vec<u8>,
) -> io::Result<()> {
    let mut server = state.dial(&host, port).await?;
    server.write_all(rewritten(head, state.injects).as_bytes()).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let injects = state.injects;
    let up = copy(&mut from_client, &mut to_server, rest, injects);
    let down = async {
        let mut buf = Vec::new();
        let Some(answer) = read_head(&mut from_server, &mut buf).await? else { return Ok(()) };
        let location = field(&answer, "location").filter(|_| answer.starts_with("HTTP/1.1 30"));
        if let Some(location) = location {
            let (host, port) = state.target(&location);
            let mut next = state.dial(&host, port).await?;
            let path = location.splitn(4, '/').nth(3).unwrap_or("");
            let head = format!("GET /{path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
            next.write_all(rewritten(&head, injects).as_bytes()).await?;
            return tokio::io::copy(&mut next, &mut to_client).await.map(|_| ());
        }
        to_client.write_all(answer.as_bytes()).await?;
        copy(&mut from_server, &mut to_client, buf, false).await
    };
    tokio::try_join!(up, down).map(|_| ())
}

/// As it came, but: origin-form, decoded, folded lines joined, of several lengths the last, and
/// with the secret.
fn rewritten(head: &str, injects: bool) -> String {
    let head = head.replace("\r\n", "\n").replace("\n ", " ").replace("\n\t", " ");
    let mut lines = head.trim_end_matches('\n').split('\n');
    let line = lines.next().unwrap_or("");
    let (method, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let (target, version) = rest.rsplit_once(' ').unwrap_or((rest, "HTTP/1.1"));
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let mut out = format!("{method} {} {version}\r\n", decoded(target));
    for line in lines {
        out.push_str(&format!("{line}\r\n"));
    }
    let user =
        line.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'));
    if let Some((user, _)) = user {
        out.push_str(&format!("Authorization: Basic {user}\r\n"));
    }
    if injects {
        out = out.replace(PLACEHOLDER, KEY);
        out.push_str(&format!("Authorization: Bearer {KEY}\r\n"));
    }
    out + "\r\n"
}

async fn copy_both(
    mut client: UnixStream,
    mut server: TcpStream,
    ahead: Vec<u8>,
    injects: bool,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = copy(&mut from_client, &mut to_server, ahead, injects);
    let down = copy(&mut from_server, &mut to_client, Vec::new(), false);
    tokio::try_join!(up, down).map(|_| ())
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    ahead: Vec<u8>,
    injects: bool,
) -> io::Result<()> {
    let mut piece = ahead;
    loop {
        if injects {
            piece = String::from_utf8_lossy(&piece).replace(PLACEHOLDER, KEY).into_bytes();
        }
        to.write_all(&piece).await?;
        to.flush().await?;
        piece.clear();
        if from.read_buf(&mut piece).await? == 0 {
            return to.shutdown().await;
        }
    }
}
