//! The line between host and guest: messages on a stream, for a relayed socket keeps no packets
//! apart and passes no descriptors.
//!
//! A frame is its length in four bytes, big-endian, then so many bytes. A length beyond
//! [`FRAME_MAX`], and an end within a frame, are errors.

use std::io::{self, Read, Write};

/// Longest message, bytes: above what the sandbox's own protocol permits for one (192 KiB).
pub const FRAME_MAX: usize = 256 << 10;

/// Writes one message.
///
/// # Errors
/// When it is too long, or what lies below fails.
pub fn write(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).ok().filter(|_| message.len() <= FRAME_MAX);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    // At once, so that two writers on two handles do not mix their halves.
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one message; `None` at an end between two.
///
/// # Errors
/// When it is too long or cut short, or what lies below fails.
pub fn read(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(length.get_mut(have..).unwrap_or_default()) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message)?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Gives one byte at a time, as a relay may.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let wanted = buffer.len().min(1);
            self.0.read(buffer.get_mut(..wanted).unwrap_or_default())
        }
    }

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        for message in [&b"one"[..], b"", b"three"] {
            write(&mut bytes, message).unwrap();
        }
        let mut slow = Slow(&bytes);
        assert_eq!(read(&mut slow).unwrap().unwrap(), b"one");
        assert_eq!(read(&mut slow).unwrap().unwrap(), b"");
        assert_eq!(read(&mut slow).unwrap().unwrap(), b"three");
        assert_eq!(read(&mut slow).unwrap(), None);
    }

    #[test]
    fn what_is_cut_or_too_long_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"whole").unwrap();
        for end in 1..bytes.len() {
            assert!(read(&mut &bytes[..end]).is_err(), "{end}");
        }
        assert!(read(&mut &[0xff, 0xff, 0xff, 0xff, 0][..]).is_err());
        assert!(write(&mut Vec::new(), &vec![0; FRAME_MAX + 1]).is_err());
        write(&mut Vec::new(), &vec![0; FRAME_MAX]).unwrap();
    }
}
