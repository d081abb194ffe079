//! What a WebSocket's server says, without the frames around it (RFC 6455 §5.2), looked through
//! for secrets. Pure.
//!
//! ```text
//! bytes ─► header · payload ─► data of all messages as one text ─► found? cut
//!                           └► pings, pongs, closes as another ─► found? cut
//! ```
//!
//! 1. Where one frame ends and the next begins makes no difference to the search.
//! 2. What is no frame that a server may send without extensions is not passed on.

use crate::mask::Masker;
use std::io;

/// Longest header without a mask: two bytes, and eight of length.
const HEADER_BYTES_MAX: usize = 10;
/// Longest payload of a control frame (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// Looks at everything that comes from the server of one WebSocket.
pub(super) struct Watch {
    data: Masker,
    control: Masker,
    header: Vec<u8>,
    /// Of the payload, what is still to come, and whether its frame is one of control.
    left: u64,
    in_control: bool,
}

impl Watch {
    /// Two maskers of the same secrets.
    pub(super) fn new(data: Masker, control: Masker) -> Self {
        let header = Vec::with_capacity(HEADER_BYTES_MAX);
        Self { data, control, header, left: 0, in_control: false }
    }

    /// Whether `bytes` may go on.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((&first, after)) = bytes.split_first() {
            if self.left == 0 {
                bytes = after;
                self.header.push(first);
                if let Some((control, length)) = read(&self.header)? {
                    self.header.clear();
                    (self.in_control, self.left) = (control, length);
                }
                continue;
            }
            let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(size);
            let masker = if self.in_control { &mut self.control } else { &mut self.data };
            masker.feed(payload);
            // Frames cannot be masked; of a secret in pieces less than half may have passed.
            if masker.found() || masker.nearly_found() {
                return Err(io::Error::other("the server gave a secret back"));
            }
            self.left -= size as u64;
            bytes = rest;
        }
        Ok(())
    }
}

/// Reads the header of a frame, once it is there: whether it is one of control, and its length.
fn read(header: &[u8]) -> io::Result<Option<(bool, u64)>> {
    let bad = |why: &str| {
        let why = format!("the server sent {why}, in which a secret could not be seen");
        Err(io::Error::other(why))
    };
    let [first, second, longer @ ..] = header else { return Ok(None) };
    let control = match first & 0x0f {
        0..=2 => false,
        8..=10 => true,
        _ => return bad("a frame of an unknown kind"),
    };
    if first & 0x70 != 0 {
        return bad("a frame of an extension");
    }
    if second & 0x80 != 0 {
        return bad("a masked frame");
    }
    let wanted = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if longer.len() < wanted {
        return Ok(None);
    }
    let whole = longer.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let length = if wanted == 0 { u64::from(second & 0x7f) } else { whole };
    if length > i64::MAX as u64 || (control && length > CONTROL_BYTES_MAX) {
        return bad("a frame that is too long");
    }
    Ok(Some((control, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"test-key-not-real";

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            n @ 0..126 => out.push(n as u8),
            n @ 126..65_536 => {
                out.push(126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    /// How many bytes passed, in pieces of this size, and why no more.
    fn passed(bytes: &[u8], size: usize) -> (usize, String) {
        let mut watch = Watch::new(Masker::new(Some(SECRET)), Masker::new(Some(SECRET)));
        let mut passed = 0;
        for piece in bytes.chunks(size) {
            if let Err(e) = watch.see(piece) {
                return (passed, e.to_string());
            }
            passed += piece.len();
        }
        (passed, String::new())
    }

    #[test]
    fn a_secret_is_found_across_frames_messages_and_between_pings() {
        let pieces = |of: usize, first: u8, more: u8, between: &[u8]| -> Vec<u8> {
            let frames = SECRET.chunks(of).enumerate();
            let frames = frames.map(|(n, p)| frame(if n == 0 { first } else { more }, p));
            frames.flat_map(|f| [f, between.to_vec()].concat()).collect()
        };
        for bytes in [
            frame(0x81, SECRET),
            frame(0x82, &[&[0; 70_000][..], SECRET].concat()),
            pieces(6, 0x81, 0x81, b""),
            pieces(6, 0x01, 0x00, b""),
            pieces(1, 0x02, 0x02, &frame(0x89, b"ping")),
            pieces(3, 0x02, 0x82, &frame(0x81, b"")),
            pieces(6, 0x89, 0x8a, &frame(0x81, &[b'-'; 300])),
        ] {
            for size in [1, 7, bytes.len()] {
                let (n, why) = passed(&bytes, size);
                assert!(why.contains("gave a secret back"), "{size}: {n} of {}", bytes.len());
            }
        }
        let (n, _) = passed(&pieces(6, 0x81, 0x81, b""), 1);
        assert!(n < 2 * 2 + 9, "{n}: half of it passed");
    }

    #[test]
    fn frames_without_a_secret_pass_and_what_is_no_frame_does_not() {
        let many = [
            frame(0x81, b"hello"),
            frame(0x01, &[b'x'; 126]),
            frame(0x89, b""),
            frame(0x80, &vec![b'y'; 70_000]),
            frame(0x82, b""),
            frame(0x88, b"\x03\xe8bye"),
        ];
        let bytes = many.concat();
        for size in [1, 5, bytes.len()] {
            assert_eq!(passed(&bytes, size), (bytes.len(), String::new()));
        }
        for bad in [
            &b"\xc1\x01x"[..],
            b"\x83\x01x",
            b"\x8b\x01x",
            b"\x81\x85mask-----",
            b"\x89\x7e\x00\x7e",
            b"\x82\x7f\x80\0\0\0\0\0\0\0",
            SECRET,
        ] {
            let (n, why) = passed(bad, 1);
            assert!(n < bad.len() && why.contains("could not be seen"), "{bad:?}");
        }
    }
}
