//! Files of `/proc`: short, made anew by each look, and in part in the words of whoever is looked
//! at.

use rustix::fs::{Mode, OFlags, open};
use std::io;

/// Nearly all have their whole text in one read of this size; each read costs the kernel's making
/// of it again.
const READ_BYTES: usize = 4_096;

/// The text of one. A process names itself as it likes, in bytes that need be no UTF-8: those
/// stand as U+FFFD, for what cannot be read would be what cannot be watched.
///
/// # Errors
/// Those of the kernel: `ENOENT` or `ESRCH` for a process that is gone.
pub(crate) fn text(path: &str) -> io::Result<String> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (mut bytes, mut read) = (Vec::new(), [0; READ_BYTES]);
    loop {
        match rustix::io::read(&file, &mut read) {
            Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(n) => bytes.extend_from_slice(&read[..n]),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
