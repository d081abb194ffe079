//! What a program inside says on standard error: read to its end, only the last of it kept.

use std::fs::File;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much is kept for the person to read, bytes.
const LAST_WORDS_BYTES: usize = 2_048;
/// How long the last of it may take to be read, once the program is gone.
const READ_TIME: Duration = Duration::from_millis(500);
/// How often is looked whether it was.
const TICK: Duration = Duration::from_millis(2);

/// The last words of a program.
pub(crate) struct Words {
    kept: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Words {
    /// Reads until the end, however much it is.
    pub(crate) fn read(mut stderr: File) -> Self {
        let kept = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&kept);
        let reader = std::thread::spawn(move || {
            let mut piece = [0_u8; 1_024];
            while let Ok(n @ 1..) = stderr.read(&mut piece) {
                let mut text = to.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&piece[..n]));
                let excess = text.len().saturating_sub(LAST_WORDS_BYTES);
                let cut = (excess..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
                text.drain(..cut);
            }
        });
        Self { kept, reader }
    }

    /// What was read so far.
    pub(crate) fn so_far(&self) -> String {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of it, for a program that is gone.
    pub(crate) fn whole(&self) -> String {
        let until = Instant::now() + READ_TIME;
        while !self.reader.is_finished() && Instant::now() < until {
            std::thread::sleep(TICK);
        }
        self.so_far()
    }
}
