//! What the committer has made durable, read back from the write-ahead log for the tiles.
//!
//! ```text
//! wal/*.wal ─ frames up to the durable number ─► each(bytes)
//! ```
//!
//! 1. What is signed is what the file says, not what memory said: every frame is checked again.
//! 2. However far the tiles lag behind in a rush, memory holds one read buffer.

use crate::disk::SharedDisk;
use crate::wal::{FrameReader, Replayed, Sealed, segment_path};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reads on where the last reading ended.
pub(crate) struct Tail {
    disk: SharedDisk,
    dir: PathBuf,
    first: u64,
    frames: FrameReader<Box<dyn Read + Send>>,
    sealed: Vec<Sealed>,
}

impl Tail {
    /// After everything `replayed` (torn bytes cut already, the first segment made).
    pub(crate) fn new(disk: &SharedDisk, dir: &Path, replayed: &Replayed) -> io::Result<Self> {
        let (first, offset) = match &replayed.last {
            Some((segment, end)) => (segment.first, *end),
            None => (replayed.next, 0),
        };
        let file = disk.reader(&segment_path(dir, first), offset)?;
        Ok(Self {
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            first,
            frames: FrameReader::new(file, offset, replayed.next),
            sealed: Vec::new(),
        })
    }

    /// Segments that were read to their end since this was last asked.
    pub(crate) fn take_sealed(&mut self) -> Vec<Sealed> {
        std::mem::take(&mut self.sealed)
    }

    /// Gives every entry numbered below `until`, all of which are written.
    ///
    /// # Errors
    /// As the system or `each` has it; or when what is there is not what was written.
    pub(crate) fn read(
        &mut self,
        until: u64,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while self.frames.due() < until {
            match self.frames.next_frame()? {
                Ok(Some(frame)) => {
                    each(frame.bytes)?;
                    continue;
                }
                Ok(None) => {}
                Err(why) => return Err(self.lost(&why.to_string())),
            }
            let due = self.frames.due();
            if due == self.first {
                return Err(self.lost("a written record is not there"));
            }
            let next = self.disk.reader(&segment_path(&self.dir, due), 0)?;
            let bytes = self.frames.offset();
            self.sealed.push(Sealed { first: self.first, next: due, bytes });
            self.frames = FrameReader::new(next, 0, due);
            self.first = due;
        }
        Ok(())
    }

    fn lost(&self, why: &str) -> io::Error {
        let (path, at) = (segment_path(&self.dir, self.first), self.frames.offset());
        io::Error::other(format!(
            "{} does not read back as written, at byte {at}: {why}",
            path.display()
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::Real;
    use crate::entry::Entry;
    use crate::wal::{Batch, HEADER_BYTES, Span, Wal, replay};
    use std::fs;

    #[test]
    fn it_reads_over_segments_as_far_as_it_may_and_notices_a_changed_byte() {
        let dir = std::env::temp_dir().join(format!("audit-tail-{}", std::process::id()));
        fs::create_dir_all(dir.join("wal")).unwrap();
        let disk: SharedDisk = Arc::new(Real);
        let found = replay(&*disk, &dir, Span::default(), |_| {}).unwrap();
        let mut wal = Wal::resume(&disk, &dir, &found, 40).unwrap();
        let mut tail = Tail::new(&disk, &dir, &found).unwrap();
        let mut batch = Batch::default();
        for i in 0..10u8 {
            batch.push(&Entry::from_bytes(vec![i; 5]).unwrap());
            wal.append(&mut batch).unwrap();
            wal.sync().unwrap();
            batch.clear(0);
        }
        assert!(crate::wal::segments(&dir).unwrap().len() > 3);
        let mut got = Vec::new();
        let mut take = |bytes: &[u8]| {
            got.push(bytes[0]);
            Ok(())
        };
        tail.read(4, &mut take).unwrap();
        tail.read(4, &mut take).unwrap();
        let changed = segment_path(&dir, 6);
        let mut bytes = fs::read(&changed).unwrap();
        bytes[HEADER_BYTES] ^= 1;
        fs::write(&changed, bytes).unwrap();
        let error = tail.read(10, &mut take).unwrap_err().to_string();
        assert!(error.contains("at byte 0") && error.contains("checksum"), "{error}");
        assert_eq!(got, [0, 1, 2, 3, 4, 5]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
