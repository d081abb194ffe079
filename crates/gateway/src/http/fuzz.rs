//! Bodies in pieces: what comes out is what a plain reader of the whole would say.

use super::conn::{BodyReader, Conn, ReadError};
use super::head::Framing;
use bytes::BytesMut;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use testkit::fuzz;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest body here: small, so that it is reached.
const BODY_BYTES_MAX: u64 = 64;

/// A stream that brings these pieces one by one, and ends.
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(b.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The body's bytes and what stands behind it, or why there is none.
type Read = Result<(Vec<u8>, Vec<u8>), String>;

async fn through(pieces: Vec<&[u8]>, framing: Framing) -> Read {
    let pieces = pieces.into_iter().map(<[u8]>::to_vec).collect();
    let mut conn = Conn::with(Box::new(Pieces(pieces)), BytesMut::new());
    let said = |e: ReadError| match e {
        ReadError::Io(_) => "cut".to_owned(),
        ReadError::TooLarge { .. } => "large".to_owned(),
        other => format!("wrong: {}", other.status()),
    };
    let mut body = BodyReader::new(framing, BODY_BYTES_MAX).map_err(said)?;
    let mut out = Vec::new();
    while let Some(piece) = conn.read_body(&mut body).await.map_err(said)? {
        assert!(!piece.is_empty(), "a piece of nothing would be the end to the one behind");
        out.extend_from_slice(&piece);
    }
    let (mut stream, ahead) = conn.take_parts();
    let mut rest = ahead.to_vec();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await.expect("no error in it");
    Ok((out, rest))
}

/// RFC 9112 §7.1 without extensions and trailers, read from the whole.
fn chunked(mut bytes: &[u8]) -> Read {
    let cut = || "cut".to_owned();
    let wrong = || "wrong: 400".to_owned();
    let line = |bytes: &mut &[u8]| -> Result<Vec<u8>, String> {
        let seen = &bytes[..bytes.len().min(10)];
        let Some(end) = seen.iter().position(|b| *b == b'\n') else {
            return Err(if seen.len() == 10 { wrong() } else { cut() });
        };
        let text = seen[..end].strip_suffix(b"\r").ok_or_else(wrong)?.to_vec();
        *bytes = &bytes[end + 1..];
        Ok(text)
    };
    let mut out = Vec::new();
    loop {
        let size = String::from_utf8(line(&mut bytes)?).map_err(|_| wrong())?;
        let digits = (1..=8).contains(&size.len()) && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = if digits {
            u64::from_str_radix(&size, 16).map_err(|_| wrong())?
        } else {
            return Err(wrong());
        };
        if out.len() as u64 + size > BODY_BYTES_MAX {
            return Err("large".into());
        }
        if size > 0 {
            let (data, rest) = bytes.split_at_checked(size as usize).ok_or_else(cut)?;
            out.extend_from_slice(data);
            bytes = rest;
        }
        if !line(&mut bytes)?.is_empty() {
            return Err(wrong());
        }
        if size == 0 {
            return Ok((out, bytes.to_vec()));
        }
    }
}

#[test]
fn fuzz_http_body() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let seeds: [&[u8]; 4] = [
        b"3\r\nabc\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        b"0\r\n\r\n",
        b"5;x=y\r\nabcde\r\n0\r\nTrailer: x\r\n\r\n",
        b"00000003\r\nabc\r\n40\r\nabc",
    ];
    let words: [&[u8]; 8] =
        [b"\r\n", b"0\r\n\r\n", b"1\r\n", b"ffffffff\r\n", b"\n", b"+1", b"0x1\r\n", b"\r\n\r\n"];
    fuzz::with_words("http-body", &seeds, &words, |bytes, dice| {
        let length = dice.below(70) as u64;
        let (pieces, halves) = (dice.pieces(bytes, 12), dice.pieces(bytes, 40));
        let read = runtime.block_on(through(pieces, Framing::Chunked));
        assert_eq!(read, chunked(bytes));
        let plain = runtime.block_on(through(halves, Framing::Length(length)));
        let taken = bytes.split_at_checked(length as usize);
        let want = match taken {
            _ if length > BODY_BYTES_MAX => Err("large".to_owned()),
            Some((body, rest)) => Ok((body.to_vec(), rest.to_vec())),
            None => Err("cut".to_owned()),
        };
        assert_eq!(plain, want);
        let sizes = read.map(|(body, rest)| (body.len(), rest.is_empty()));
        fuzz::outcome(format!("{sizes:?}"))
    });
}
