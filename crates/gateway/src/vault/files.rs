//! Files of the vault folder: written whole, private from the first byte, changed by one process
//! at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Mode bits that let anyone but the owner touch a private file.
pub(crate) const OTHERS: u32 = 0o077;

/// The vault's folder in a home.
pub(crate) fn vault_dir(home: &Path) -> PathBuf {
    home.join("vault")
}

/// Creates the folder with mode 0700 if it is missing.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a whole file with mode 0600: temporary name, sync, rename, sync of the folder.
pub(crate) fn write_file(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Held while files of the folder are made or replaced; released when dropped, also by a crash.
pub(crate) struct FolderLock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Waits until no other process or thread changes the folder.
pub(crate) fn lock(dir: &Path) -> io::Result<FolderLock> {
    let path = dir.join("lock");
    let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
    let file = options.open(path)?;
    file.lock()?;
    Ok(FolderLock(file))
}

/// The text of a file of at most `max` bytes and its mode; `None` when it does not exist. A longer
/// file is an error, not a cut text.
pub(crate) fn read_small(path: &Path, max: usize) -> io::Result<Option<(Zeroizing<String>, u32)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    // Full capacity at once: growing would leave copies of a key behind in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(2 * (max + 1)));
    file.take(max as u64 + 1).read_to_string(&mut text)?;
    if text.len() > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than it may be"));
    }
    Ok(Some((text, mode)))
}
