//! Frames and descriptors out of a stream, for both sides.
//!
//! The kernel delivers a descriptor with the first byte it was sent with and never joins what
//! carries different ones, so descriptors come in the order of the frames they belong to.

use super::wire::FRAME_BYTES_MAX;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Read at once, bytes.
const PIECE: usize = 16 << 10;
/// Descriptors that one receive can bring.
const FDS_AT_ONCE: usize = 4;
/// Descriptors that may wait for their frames.
const FDS_WAITING_MAX: usize = 8;
/// A buffer that a large frame made is given back above this size.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Bytes and descriptors that came and are not taken yet.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    fds: VecDeque<OwnedFd>,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Inbox {
    /// One receive; how many bytes came, 0 at the end.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.compact();
        let old = self.bytes.len();
        self.bytes.resize(old + PIECE, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_AT_ONCE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::io::retry_on_intr(|| {
            let mut slices = [IoSliceMut::new(&mut self.bytes[old..])];
            rustix::net::recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let n = got.as_ref().map_or(0, |g| g.bytes.min(PIECE));
        self.bytes.truncate(old + n);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.fds.extend(rights);
            }
        }
        let got = got?;
        if got.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_WAITING_MAX {
            return Err(invalid("too many descriptors at once"));
        }
        Ok(n)
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
            if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES_MAX {
                self.bytes = Vec::new();
            }
        }
    }

    /// The next whole frame without its length, if it is there.
    pub(crate) fn frame(&mut self) -> io::Result<Option<&[u8]>> {
        let rest = &self.bytes[self.start..];
        let Some((len, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 || len > FRAME_BYTES_MAX {
            return Err(invalid("a frame has an impossible length"));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let from = self.start + 4;
        self.start = from + len;
        Ok(Some(&self.bytes[from..from + len]))
    }

    /// The descriptor of the frame just taken; it must have come.
    pub(crate) fn descriptor(&mut self) -> io::Result<OwnedFd> {
        self.fds.pop_front().ok_or_else(|| invalid("a message without its descriptor"))
    }

    /// Whether descriptors are here that no frame at hand explains.
    pub(crate) fn strays(&self) -> bool {
        self.start == self.bytes.len() && !self.fds.is_empty()
    }
}

/// Sends a whole frame, its descriptor with the first byte. The socket must block.
pub(crate) fn send(socket: impl AsFd, frame: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let (mut rest, mut with) = (frame, fd);
    while !rest.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = with.take().into_iter().collect();
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        let n = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&socket, &[IoSlice::new(rest)], &mut ancillary, flags)
        })?;
        rest = &rest[n.min(rest.len())..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::wire::{FromGateway, Reply, ToGateway, decode, encode};
    use super::*;
    use std::os::unix::net::UnixStream;
    use testkit::fuzz;

    /// Seeds: one of every kind of message a hostile client might start from.
    fn seeds() -> Vec<u8> {
        let turn = Some(model::TurnId::parse("t1").expect("an id"));
        let messages = [
            ToGateway::Hello { protocol: 1, role: "test".into() },
            ToGateway::SetTurn { id: 1, door: 2, turn },
            ToGateway::CloseDoor { id: 3, door: 4 },
            ToGateway::Deliver { id: 5, door: 6, secret: "name".into() },
            ToGateway::Ping { id: u64::MAX },
        ];
        let mut bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).expect("fits")).collect();
        let reply = FromGateway::Reply { id: 1, reply: Reply::Refused { why: "x".into() } };
        bytes.extend(encode(&reply).expect("fits"));
        bytes
    }

    /// The frames of a stream that comes in these pieces, and how it ended.
    fn frames(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
        let (mut inbox, mut found) = (Inbox::default(), Vec::new());
        for piece in pieces {
            inbox.compact();
            inbox.bytes.extend_from_slice(piece);
            loop {
                match inbox.frame() {
                    Ok(Some(frame)) => found.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(_) => return (found, false),
                }
            }
        }
        (found, true)
    }

    /// What is understood says the same when it is written and read again.
    fn said_again<T: serde::Serialize + serde::de::DeserializeOwned>(frame: &[u8]) -> bool {
        let Ok(message) = decode::<T>(frame) else { return false };
        let bytes = encode(&message).expect("what came in goes out");
        let again = decode::<T>(&bytes[4..]).expect("ours");
        assert_eq!(encode(&again).expect("fits"), bytes);
        true
    }

    #[test]
    fn fuzz_control_frames() {
        let good = seeds();
        let single: Vec<&[u8]> = vec![&good, &good[..40]];
        let words: [&[u8]; 5] = [b"\0\0\0", b"\"id\":", b"null", b"\"hello\"", b"\"ping\""];
        fuzz::with_words("control-frames", &single, &words, |bytes, dice| {
            let (found, clean) = frames(&[bytes]);
            assert_eq!(frames(&dice.pieces(bytes, 30)), (found.clone(), clean));
            assert!(found.iter().map(|frame| frame.len() + 4).sum::<usize>() <= bytes.len());
            let understood = |frame: &Vec<u8>| {
                (said_again::<ToGateway>(frame), said_again::<FromGateway>(frame))
            };
            fuzz::outcome((clean, found.iter().map(understood).collect::<Vec<_>>()))
        });
    }

    #[test]
    fn a_descriptor_comes_with_its_frame_however_the_bytes_are_cut() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (pipe, _end) = std::io::pipe().expect("a pipe");
        let first = encode(&ToGateway::Ping { id: 1 }).expect("fits");
        let second =
            encode(&ToGateway::Deliver { id: 2, door: 1, secret: "s".into() }).expect("fits");
        send(&ours, &first, None).expect("sent");
        send(&ours, &second[..3], Some(pipe.as_fd())).expect("sent");
        send(&ours, &second[3..], None).expect("sent");
        drop(ours);
        let mut inbox = Inbox::default();
        let mut found = Vec::new();
        while inbox.receive(&theirs).expect("received") > 0 {
            while let Some(frame) = inbox.frame().expect("a frame") {
                let message: ToGateway = decode(frame).expect("a message");
                let fds = message.descriptors();
                for _ in 0..fds {
                    inbox.descriptor().expect("its descriptor");
                }
                found.push(fds);
            }
        }
        assert_eq!((found, inbox.strays()), (vec![0, 1], false));
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_it_is_waited_for() {
        let bytes = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec();
        let mut inbox = Inbox { bytes, ..Inbox::default() };
        assert_eq!(inbox.frame().expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }
}
