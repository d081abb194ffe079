//! A gateway as the door sees it: permits what it is told to, refuses the rest, echoes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What it was asked, in order.
#[derive(Default)]
pub(crate) struct Heard {
    /// Names of `GET /.nanoclaw/name/…`.
    pub(crate) names: Vec<String>,
    /// Targets of `CONNECT`.
    pub(crate) connects: Vec<String>,
}

pub(crate) struct Gateway {
    pub(crate) socket: PathBuf,
    pub(crate) heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
}

impl Gateway {
    /// Listens at `socket`. Connections to a permitted `name:port` get one line that names the
    /// target, then their own bytes back.
    pub(crate) fn new(socket: PathBuf, permitted: &[&str]) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let permitted: BTreeSet<String> = permitted.iter().map(|t| (*t).to_owned()).collect();
        let permitted = Arc::new(permitted);
        let note = Arc::clone(&heard);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (note, permitted) = (Arc::clone(&note), Arc::clone(&permitted));
                std::thread::spawn(move || serve(stream, &permitted, &note));
            }
        });
        Self { socket, heard, stop }
    }

    /// Closes the listening socket, as its process would by dying.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        while UnixStream::connect(&self.socket).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.heard.lock().unwrap().names.clone()
    }

    pub(crate) fn connects(&self) -> Vec<String> {
        self.heard.lock().unwrap().connects.clone()
    }
}

/// A broken connection ends its own thread only.
fn serve(stream: UnixStream, permitted: &BTreeSet<String>, heard: &Mutex<Heard>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        (reader.read_line(&mut head).ok()? > 0).then_some(())?;
    }
    let line = head.lines().next()?;
    if let Some(name) = line.strip_prefix("GET /.nanoclaw/name/") {
        let name = name.strip_suffix(" HTTP/1.1")?;
        heard.lock().unwrap().names.push(name.to_owned());
        match name.split('.').next() {
            Some("broken") => {
                return writer.write_all(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").ok();
            }
            Some("silent") => return None,
            Some("hanging") => std::thread::sleep(std::time::Duration::from_secs(6)),
            _ => {}
        }
        let known = permitted.iter().any(|t| t.split(':').next() == Some(name));
        let status = if known { "204 No Content" } else { "403 Forbidden" };
        let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
        return writer.write_all(format!("HTTP/1.1 {status}\r\n{end}").as_bytes()).ok();
    }
    let target = line.strip_prefix("CONNECT ")?.strip_suffix(" HTTP/1.1")?;
    assert!(head.contains(&format!("\r\nHost: {target}\r\n")), "{head:?}");
    assert!(reader.buffer().is_empty(), "bytes came before the answer");
    heard.lock().unwrap().connects.push(target.to_owned());
    if target.starts_with("slow.") {
        std::thread::sleep(std::time::Duration::from_millis(700));
    }
    if !permitted.contains(target) {
        return writer.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").ok();
    }
    // The head and the first bytes behind it come in one piece.
    writer.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{target}\n").as_bytes()).ok()?;
    let mut buffer = [0; 16_384];
    loop {
        match reader.read(&mut buffer).ok()? {
            0 => return writer.shutdown(std::net::Shutdown::Write).ok(),
            n => writer.write_all(&buffer[..n]).ok()?,
        }
    }
}
