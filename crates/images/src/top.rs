//! Whether what a sandbox is told of an image one by one is little enough to be told.
//!
//! A sandbox shows the root of an image, and the folders in which it has something of its own, name
//! by name, and is told all of it at once. Better refused here than at the first start.

use crate::error::{Error, ErrorKind, Result, shown};
use crate::limits::{TOP_BYTES_MAX, TOP_FOLDERS};
use crate::unpack::{folder, list};
use rustix::fs::readlinkat;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// Refuses a tree whose names and links' targets at the top are too long together.
pub(crate) fn bounded(top: &OwnedFd) -> Result<()> {
    let mut bytes = told(top, "/")?;
    for name in TOP_FOLDERS {
        match folder(top, name) {
            Ok(dir) => bytes = bytes.saturating_add(told(&dir, name)?),
            // A link there is told itself, and is among those of the root.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(e) => return Err(Error::disk(format!("/{name}"), e)),
        }
    }
    if bytes <= TOP_BYTES_MAX {
        return Ok(());
    }
    let cause = format!(
        "the names and the targets of links in the image's root, /{} have {bytes} bytes, over \
         {TOP_BYTES_MAX}",
        TOP_FOLDERS.join(", /")
    );
    let remedy = "nothing was stored; shorten the targets, or move what is there into folders";
    Err(Error::new(ErrorKind::Refused, cause, remedy))
}

/// Bytes of a folder's names, and of its links' targets.
fn told(dir: &OwnedFd, path: &str) -> Result<u64> {
    let mut bytes: u64 = 0;
    for name in list(dir.as_fd()).map_err(|e| Error::disk(path, e))? {
        bytes = bytes.saturating_add(written(name.to_bytes()));
        match readlinkat(dir, &name, Vec::new()) {
            Ok(target) => bytes = bytes.saturating_add(written(target.to_bytes())),
            // No link.
            Err(Errno::INVAL) => {}
            Err(e) => return Err(Error::disk(shown(name.to_bytes()), e)),
        }
    }
    Ok(bytes)
}

/// Bytes of a text in JSON (RFC 8259 §7).
fn written(text: &[u8]) -> u64 {
    let one = |byte: &u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(one).sum()
}
