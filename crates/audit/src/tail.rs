//! What the committer has made durable, read back from the write-ahead log for the tiles.
//!
//! ```text
//! wal/*.wal ─ frames up to the durable number ─► each(bytes)
//! ```
//!
//! 1. What is signed is what the file says, not what memory said: every frame is checked again.
//! 2. However far the tiles lag behind in a rush, memory holds one read buffer.

use crate::wal::{FrameReader, Replayed, segment_path};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Reads on where the last reading ended.
pub(crate) struct Tail {
    dir: PathBuf,
    path: PathBuf,
    frames: FrameReader<File>,
}

impl Tail {
    /// After everything `replayed` (torn bytes cut already, the first segment made).
    pub(crate) fn new(dir: &Path, replayed: &Replayed) -> io::Result<Self> {
        let (path, offset) = match &replayed.last {
            Some((segment, end)) => (segment.path.clone(), *end),
            None => (segment_path(dir, replayed.next), 0),
        };
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self {
            dir: dir.to_owned(),
            path,
            frames: FrameReader::new(file, offset, replayed.next),
        })
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
            let next = segment_path(&self.dir, due);
            if next == self.path {
                return Err(self.lost("a written record is not there"));
            }
            self.frames = FrameReader::new(File::open(&next)?, 0, due);
            self.path = next;
        }
        Ok(())
    }

    fn lost(&self, why: &str) -> io::Error {
        let (path, at) = (self.path.display(), self.frames.offset());
        io::Error::other(format!("{path} does not read back as written, at byte {at}: {why}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::wal::{Batch, HEADER_BYTES, Wal, replay};
    use std::fs;

    #[test]
    fn it_reads_over_segments_as_far_as_it_may_and_notices_a_changed_byte() {
        let dir = std::env::temp_dir().join(format!("audit-tail-{}", std::process::id()));
        fs::create_dir_all(dir.join("wal")).unwrap();
        let found = replay(&dir, |_| {}).unwrap();
        let mut wal = Wal::resume(&dir, &found, 40).unwrap();
        let mut tail = Tail::new(&dir, &found).unwrap();
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
