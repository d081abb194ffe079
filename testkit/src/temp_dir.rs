//! A folder that goes away with its owner.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A private (0700) folder under the system's temporary one, removed when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one; `name` helps to recognise it.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(name: &str) -> std::io::Result<Self> {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let leaf = format!("nanoclaw-test-{name}-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(leaf);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left behind by an earlier process of the same number.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, leaf: impl AsRef<Path>) -> PathBuf {
        self.0.join(leaf)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing depends on it: the system clears its temporary folder anyway.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
