//! `ClientHello` (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2): bytes → who is called, or a refusal. Pure.
//!
//! Strict, because a server behind us may read the same bytes otherwise: every length must fit
//! exactly, no extension may come twice, the server name must be one plain host name.

use super::sniff::{Hello, SniffError};
use model::HostName;

const SERVER_NAME: u16 = 0x0000;
const ALPN: u16 = 0x0010;
/// Encrypted ClientHello (RFC 9849: 0xfe0d, and 0xfd00 inside of it), its drafts and its
/// forerunner. Some clients send 0xfe0d without meaning it (GREASE); nobody else can tell.
const ENCRYPTED: &[u16] =
    &[0xFE0D, 0xFD00, 0xFE08, 0xFE09, 0xFE0A, 0xFE0B, 0xFE0C, 0xFF02, 0xFF03, 0xFFCE];
/// `name_type` of a host name (RFC 6066 §3).
const HOST_NAME: u8 = 0;
const RANDOM_BYTES: usize = 32;
const SESSION_ID_BYTES_MAX: usize = 32;
/// The real ones number below 100; GREASE adds a few.
const EXTENSIONS_MAX: usize = 256;
/// Protocol names in one offer; two are usual.
const PROTOCOLS_MAX: usize = 64;

fn bad<T>(why: &'static str) -> Result<T, SniffError> {
    Err(SniffError::Malformed { why })
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SniffError> {
        let Some((front, rest)) = self.0.split_at_checked(count) else {
            return bad("a length in it reaches beyond its end");
        };
        self.0 = rest;
        Ok(front)
    }

    fn u8(&mut self) -> Result<u8, SniffError> {
        Ok(self.take(1)?.iter().fold(0, |_, &b| b))
    }

    fn u16(&mut self) -> Result<u16, SniffError> {
        Ok(self.take(2)?.iter().fold(0, |n, &b| n << 8 | u16::from(b)))
    }

    /// A part that begins with its length in one byte.
    fn short(&mut self) -> Result<&'a [u8], SniffError> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    /// A part that begins with its length in two bytes.
    fn long(&mut self) -> Result<&'a [u8], SniffError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn end(&self, why: &'static str) -> Result<(), SniffError> {
        if self.0.is_empty() { Ok(()) } else { bad(why) }
    }
}

/// Parses the body of a `ClientHello`, without its four bytes of type and length.
pub(super) fn parse(body: &[u8]) -> Result<Hello, SniffError> {
    let mut bytes = Bytes(body);
    if bytes.u16()? >> 8 != 3 {
        return bad("its version is not TLS");
    }
    bytes.take(RANDOM_BYTES)?;
    if bytes.short()?.len() > SESSION_ID_BYTES_MAX {
        return bad("its session id is longer than 32 bytes");
    }
    let suites = bytes.long()?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return bad("its list of cipher suites is empty or cut");
    }
    if !bytes.short()?.contains(&0) {
        return bad("it does not offer to go uncompressed");
    }
    let mut hello = Hello { server_name: None, ech: false, alpn: Vec::new() };
    if bytes.0.is_empty() {
        return Ok(hello); // TLS 1.2 allows a hello without extensions.
    }
    let list = bytes.long()?;
    bytes.end("something follows its extensions")?;
    extensions(list, &mut hello)?;
    Ok(hello)
}

fn extensions(list: &[u8], hello: &mut Hello) -> Result<(), SniffError> {
    let mut list = Bytes(list);
    let mut seen: Vec<u16> = Vec::new();
    while !list.0.is_empty() {
        let (kind, content) = (list.u16()?, list.long()?);
        if seen.contains(&kind) {
            return bad("an extension comes twice");
        }
        if seen.len() == EXTENSIONS_MAX {
            return bad("it has too many extensions");
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(content)?),
            ALPN => hello.alpn = protocols(content)?,
            _ => hello.ech |= ENCRYPTED.contains(&kind),
        }
    }
    Ok(())
}

/// RFC 6066 §3: a list of names, of which we take exactly one, and that a host name.
fn server_name(content: &[u8]) -> Result<HostName, SniffError> {
    let mut content = Bytes(content);
    let mut names = Bytes(content.long()?);
    content.end("something follows its list of server names")?;
    if names.u8()? != HOST_NAME {
        return bad("its server name is not a host name");
    }
    let name = names.long()?;
    names.end("it has more than one server name")?;
    // "without a trailing dot", and never an address (RFC 6066 §3).
    let text = std::str::from_utf8(name).ok().filter(|text| !text.ends_with('.'));
    match text.map(HostName::parse) {
        Some(Ok(name)) => Ok(name),
        _ => bad("its server name is not a plain host name"),
    }
}

/// RFC 7301 §3.1.
fn protocols(content: &[u8]) -> Result<Vec<Vec<u8>>, SniffError> {
    let mut content = Bytes(content);
    let mut list = Bytes(content.long()?);
    content.end("something follows its list of protocols")?;
    let mut all = Vec::new();
    while !list.0.is_empty() {
        let name = list.short()?;
        if name.is_empty() || all.len() == PROTOCOLS_MAX {
            return bad("a protocol it offers has no name, or it offers too many");
        }
        all.push(name.to_vec());
    }
    if all.is_empty() { bad("its list of protocols is empty") } else { Ok(all) }
}
