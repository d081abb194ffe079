//! What is outside: servers that keep every byte they hear, and a name server that follows a
//! script.

use nanoclaw_gateway::{Resolver, Resolving};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Where `good.test` is.
pub(crate) const GOOD: &str = "127.0.0.1";
/// Where every other name is.
pub(crate) const EVIL: &str = "127.0.0.2";

/// `p`: the port of both servers; `q`: a further one of the forbidden server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) p: u16,
    pub(crate) q: u16,
}

/// The permitted server's and the forbidden one's two.
pub(crate) async fn listeners() -> ([TcpListener; 3], Ports) {
    for _ in 0..100 {
        let evil = TcpListener::bind((EVIL, 0)).await.unwrap();
        let p = evil.local_addr().unwrap().port();
        let Ok(good) = TcpListener::bind((GOOD, p)).await else { continue };
        let more = TcpListener::bind((GOOD, 0)).await.unwrap();
        let q = more.local_addr().unwrap().port();
        return ([good, evil, more], Ports { p, q });
    }
    panic!("no port is free on both addresses");
}

/// What a server answers to what it heard, in pieces; an empty one breaks the connection off.
pub(crate) type Answering = fn(&str) -> Vec<Vec<u8>>;

/// "200 fine".
pub(crate) fn fine(_: &str) -> Vec<Vec<u8>> {
    vec![b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_vec()]
}

/// Keeps every byte.
#[derive(Clone, Default)]
pub(crate) struct Canary(Arc<Mutex<Vec<u8>>>);

impl Canary {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    pub(crate) fn heard(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Answers on `listener`, in TLS where there is an acceptor.
    pub(crate) fn serve(&self, listener: TcpListener, tls: Option<TlsAcceptor>, says: Answering) {
        let heard = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (heard, tls) = (heard.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => heard.listen(stream, says).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                heard.listen(stream, says).await;
                            }
                        }
                    }
                });
            }
        });
    }

    async fn listen<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, says: Answering) {
        let (mut text, mut piece) = (String::new(), vec![0; 65_536]);
        while let Ok(n @ 1..) = stream.read(&mut piece).await {
            self.0.lock().unwrap().extend_from_slice(&piece[..n]);
            text.push_str(&String::from_utf8_lossy(&piece[..n]));
            if !is_whole(&text) {
                continue;
            }
            for part in says(&text) {
                if part.is_empty() || stream.write_all(&part).await.is_err() {
                    return;
                }
                let _ = stream.flush().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            text.clear();
        }
    }
}

/// Whether a request is there with its body; of several lengths the last counts.
fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n");
    }
    let mut lengths = head.lines().filter_map(|l| l.strip_prefix("content-length:"));
    body.len() >= lengths.next_back().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// A name server: answers as scripted, and otherwise that `good.test` is good and all else evil.
pub(crate) struct Names {
    script: BTreeMap<String, Vec<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Names {
    pub(crate) fn new(script: &[(&'static str, Vec<Vec<&'static str>>)]) -> Self {
        let parse = |answers: &Vec<Vec<&str>>| {
            let one = |a: &Vec<&str>| a.iter().map(|ip| ip.parse().unwrap()).collect();
            answers.iter().map(one).collect()
        };
        let script = script.iter().map(|(name, a)| ((*name).to_owned(), parse(a))).collect();
        Self { script, asked: Mutex::default() }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn answer(&self, name: &str) -> Vec<IpAddr> {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.iter().filter(|a| *a == name).count();
        asked.push(name.to_owned());
        match self.script.get(name) {
            Some(answers) => answers[before.min(answers.len() - 1)].clone(),
            None if name == "good.test" => vec![GOOD.parse().unwrap()],
            None => vec![EVIL.parse().unwrap()],
        }
    }
}

impl Resolver for Names {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        Box::pin(async move { Ok(self.answer(host)) })
    }
}
