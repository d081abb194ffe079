//! DNS messages (RFC 1035 §4, RFC 6891): a strict reader of questions, a writer of answers.
//!
//! Pipeline: packet ─► `read` ─► `Query` ─► `Query::answer` ─► packet.
//!
//! Invariants:
//! 1. Pure and total: any bytes give a query, a refusal to send back, or silence; nothing is read
//!    beyond the packet and nothing is allocated before its bounds were checked.
//! 2. What is sent back repeats only the asker's own question, never other bytes of the packet.

use model::HostName;
use std::net::Ipv4Addr;

/// Largest question read: the size that resolvers offer (DNS flag day 2020); a real one with
/// every option stays below 400.
pub(super) const PACKET_MAX: usize = 1_232;
/// RFC 1035 §4.1.1.
const HEADER: usize = 12;
/// RFC 1035 §2.3.4, with length bytes and the root.
const NAME_MAX: usize = 255;
/// Type and class after the name.
const TAIL: usize = 4;
/// Seconds an answer may be kept; as long as the gateway's word is kept here.
const TTL: u32 = 30;

/// Bits of the second header word.
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;

const TYPE_A: u16 = 1;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;

/// RFC 1035 §4.1.1 and RFC 6891: what became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Understood; the answer may be empty.
    Fine = 0,
    /// Not a message.
    Malformed = 1,
    /// It cannot be found out now.
    Failure = 2,
    /// There is no such name.
    NoName = 3,
    /// A kind of message that this server does not know.
    Unknown = 4,
    /// A class that nothing is answered for.
    Refused = 5,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    id: u16,
    /// The asker's flags that an answer repeats.
    flags: u16,
    /// Name, type and class as they came, to be repeated.
    question: Box<[u8]>,
    /// The asker speaks EDNS.
    edns: bool,
    /// An address of IPv4 is asked for; of everything else there is none.
    pub(super) wants_address: bool,
    /// The name, when it can be a host's.
    pub(super) name: Option<HostName>,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Query(Query),
    /// Nothing to look up; send this back.
    Reply(Vec<u8>),
    /// No question at all: an answer, or less than a header. Two servers that answered answers
    /// would never end.
    Silence,
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    packet.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes)
}

/// Reads one packet.
pub(super) fn read(packet: &[u8]) -> Read {
    let (Some(id), Some(flags)) = (word(packet, 0), word(packet, 2)) else { return Read::Silence };
    if packet.len() < HEADER || flags & RESPONSE != 0 {
        return Read::Silence;
    }
    let kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    let reply = |code| Read::Reply(header(id, kept, code, [0; 3]));
    if flags & OPCODE != 0 {
        return reply(Code::Unknown);
    }
    let Some(query) = question(packet, id, flags, kept) else { return reply(Code::Malformed) };
    match query.question.get(query.question.len().saturating_sub(2)..) {
        Some(class) if class == CLASS_IN.to_be_bytes() => Read::Query(query),
        _ => Read::Reply(query.answer(Code::Refused, None)),
    }
}

/// One question, at most one EDNS record, and nothing else.
fn question(packet: &[u8], id: u16, flags: u16, kept: u16) -> Option<Query> {
    let counts = [4, 6, 8, 10].map(|at| word(packet, at));
    let [Some(1), Some(0), Some(0), Some(additional @ 0..=1)] = counts else { return None };
    if flags & TRUNCATED != 0 || packet.len() > PACKET_MAX {
        return None;
    }
    let end = name_end(packet)?;
    let question = packet.get(HEADER..end + TAIL)?;
    let kind = word(packet, end)?;
    let edns = additional == 1;
    let rest = packet.get(end + TAIL..)?;
    if edns {
        options(rest)?
    } else if rest.is_empty() {
    } else {
        return None;
    }
    Some(Query {
        id,
        flags: kept,
        edns,
        wants_address: kind == TYPE_A,
        name: host(packet.get(HEADER..end)?),
        question: question.into(),
    })
}

/// Where the name of the question ends, its root byte included.
fn name_end(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        match length {
            0 => break,
            // Two high bits: a pointer (nothing comes before a question that one could point
            // to) or a kind of label that was never used.
            64.. => return None,
            _ => at += length,
        }
        if at - HEADER > NAME_MAX {
            return None;
        }
    }
    (at - HEADER <= NAME_MAX).then_some(at)
}

/// The name, if it can be a host's: others exist nowhere. A dot inside a label would make one
/// name look like another.
fn host(mut wire: &[u8]) -> Option<HostName> {
    let mut text = String::with_capacity(wire.len());
    while let Some((&length, rest)) = wire.split_first()
        && length > 0
    {
        let (label, rest) = rest.split_at_checked(length.into())?;
        if !text.is_empty() {
            text.push('.');
        }
        if !label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') {
            return None;
        }
        text.extend(label.iter().copied().map(char::from));
        wire = rest;
    }
    HostName::parse(&text).ok()
}

/// Exactly one OPT record: root, type, size, flags, its data, the end (RFC 6891 §6.1.2).
fn options(rest: &[u8]) -> Option<()> {
    const FIXED: usize = 11;
    let version = *rest.get(6)?;
    let length = usize::from(word(rest, 9)?);
    let right = *rest.first()? == 0 && word(rest, 1)? == TYPE_OPT && version == 0;
    (right && rest.len() == FIXED + length).then_some(())
}

fn header(id: u16, flags: u16, code: Code, counts: [u16; 3]) -> Vec<u8> {
    let flags = flags | RESPONSE | RECURSION_AVAILABLE | code as u16;
    let [questions, answers, additional] = counts;
    [id, flags, questions, answers, 0, additional].iter().flat_map(|w| w.to_be_bytes()).collect()
}

impl Query {
    /// The answer: the question again, the address if there is one and it was asked for.
    pub(super) fn answer(&self, code: Code, address: Option<Ipv4Addr>) -> Vec<u8> {
        let address = address.filter(|_| self.wants_address);
        let counts = [1, address.is_some().into(), self.edns.into()];
        let mut out = header(self.id, self.flags, code, counts);
        out.extend_from_slice(&self.question);
        if let Some(address) = address {
            // The name as a pointer to the question's.
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&TYPE_A.to_be_bytes());
            out.extend_from_slice(&CLASS_IN.to_be_bytes());
            out.extend_from_slice(&TTL.to_be_bytes());
            out.extend_from_slice(&[0, 4]);
            out.extend_from_slice(&address.octets());
        }
        if self.edns {
            out.push(0);
            out.extend_from_slice(&TYPE_OPT.to_be_bytes());
            out.extend_from_slice(&(PACKET_MAX as u16).to_be_bytes());
            out.extend_from_slice(&[0; 6]);
        }
        out
    }
}

#[cfg(test)]
mod tests;
