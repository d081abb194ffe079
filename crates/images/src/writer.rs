//! Changing the store: one at a time, everything by rename.

use crate::digest::{Digest, Hash};
use crate::error::{Error, Result, carried};
use crate::limits::{Event, Watch};
use crate::packing::CHUNK;
use crate::store::Store;
use crate::unpack::{open_top, remove};
use model::ImageName;
use serde::Serialize;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The store's only writer, as long as it lives.
pub(crate) struct Writer<'a> {
    store: &'a Store,
    pub(crate) watch: &'a dyn Watch,
    made: Cell<u64>,
    _lock: File,
}

/// `a/b:1` as a file name. The grammar of names has no `%`.
pub(crate) fn file_name(name: &ImageName) -> String {
    format!("{}.json", name.as_str().replace('/', "%2F"))
}

/// What is on disk by its name survives a power cut.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::disk(path.display(), e))
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(|e| Error::disk(path.display(), e))
}

/// Writes a document beside and puts it in its place.
pub(crate) fn replace(fresh: &Path, place: &Path, value: &impl Serialize) -> Result<()> {
    let bytes =
        serde_json::to_vec(value).map_err(|e| Error::disk(place.display(), io::Error::from(e)))?;
    // One of ours that was killed may have left it.
    drop(fs::remove_file(fresh));
    let mut file = create(fresh)?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(fresh, place)).map_err(|e| {
        drop(fs::remove_file(fresh));
        Error::disk(place.display(), e)
    })?;
    place.parent().map_or(Ok(()), sync_folder)
}

/// Reads a document whole, if it is not too large.
pub(crate) fn read_bounded(from: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|e| carried(&e).unwrap_or_else(|| Error::disk("a document of the image", e)))?;
    if bytes.len() as u64 > most {
        return Err(Error::refused(format!("a document of the image is larger than {most} bytes")));
    }
    Ok(bytes)
}

impl<'a> Writer<'a> {
    /// Waits until nobody else writes, and sweeps up after whoever was killed.
    pub(crate) fn begin(store: &'a Store, watch: &'a dyn Watch) -> Result<Self> {
        let path = store.root.join("lock");
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = opened.map_err(|e| Error::disk(path.display(), e))?;
        if lock.try_lock().is_err() {
            watch.tell(Event::Waiting);
            while lock.try_lock().is_err() {
                if watch.cancelled() {
                    return Err(Error::cancelled());
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        let writer = Self { store, watch, made: Cell::new(0), _lock: lock };
        writer.sweep()?;
        Ok(writer)
    }

    /// A path in `tmp/` where nothing is.
    pub(crate) fn fresh(&self) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.store.root.join("tmp").join(self.made.get().to_string())
    }

    fn sweep(&self) -> Result<()> {
        let tmp = self.store.root.join("tmp");
        let top = open_top(&tmp)?;
        for entry in fs::read_dir(&tmp).map_err(|e| Error::disk(tmp.display(), e))? {
            let name = entry.map_err(|e| Error::disk(tmp.display(), e))?.file_name();
            let name = CString::new(name.as_bytes()).unwrap_or_default();
            remove(&top, &name).map_err(|e| Error::disk(tmp.display(), e))?;
        }
        Ok(())
    }

    /// Moves a finished tree to its place.
    pub(crate) fn publish(&self, from: &Path, to: &Path) -> Result<()> {
        sync_folder(from)?;
        fs::rename(from, to).map_err(|e| Error::disk(to.display(), e))?;
        to.parent().map_or(Ok(()), sync_folder)
    }

    /// Removes a tree: away first, then to pieces.
    pub(crate) fn discard(&self, tree: &Path) -> Result<()> {
        let away = self.fresh();
        fs::rename(tree, &away).map_err(|e| Error::disk(tree.display(), e))?;
        tree.parent().map_or(Ok(()), sync_folder)?;
        self.sweep()
    }

    /// Stores a blob that must be `expected`, when that is known, and no longer than `most`.
    pub(crate) fn blob(
        &self,
        mut from: impl Read,
        expected: Option<&Digest>,
        most: u64,
        what: &str,
    ) -> Result<(Digest, u64)> {
        let path = self.fresh();
        let mut file = create(&path)?;
        let (mut hash, mut bytes) = (Hash::default(), 0);
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.watch.cancelled() {
                return Err(Error::cancelled());
            }
            let n = from.read(&mut buffer).map_err(|e| {
                carried(&e).unwrap_or_else(|| Error::disk(format!("reading {what}"), e))
            })?;
            let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
            bytes += n as u64;
            if bytes > most {
                return Err(Error::refused(format!(
                    "{what} is larger than the {most} bytes it may be"
                )));
            }
            hash.add(part);
            file.write_all(part).map_err(|e| Error::disk("the store of images", e))?;
        }
        let digest = hash.digest();
        if expected.is_some_and(|e| *e != digest) {
            return Err(Error::refused(format!(
                "{what} has another digest than it should: {digest}"
            )));
        }
        file.sync_all().map_err(|e| Error::disk("the store of images", e))?;
        let place = self.store.blob(&digest);
        fs::rename(&path, &place).map_err(|e| Error::disk(place.display(), e))?;
        sync_folder(&self.store.root.join("blobs"))?;
        Ok((digest, bytes))
    }

    /// Stores a document.
    pub(crate) fn document(&self, bytes: &[u8]) -> Result<Digest> {
        let most = bytes.len() as u64;
        self.blob(bytes, None, most, "a document").map(|(digest, _)| digest)
    }

    /// Removes what no name leads to; trees in use stay until the next time. Bytes of blobs.
    pub(crate) fn collect(&self) -> Result<u64> {
        self.sweep()?;
        let (trees, blobs) = self.store.used()?;
        for (name, path) in unnamed(&self.store.root.join("trees"), &trees)? {
            let held = ImageName::parse(&name).ok().map(|n| crate::store::unused(&path, &n));
            if let Some(Ok(lock)) = held {
                self.discard(&path)?;
                drop(lock);
            }
        }
        let mut freed = 0;
        for (_, path) in unnamed(&self.store.root.join("blobs"), &blobs)? {
            freed += fs::metadata(&path).map_or(0, |m| m.len());
            fs::remove_file(&path).map_err(|e| Error::disk(path.display(), e))?;
        }
        Ok(freed)
    }
}

impl Drop for Writer<'_> {
    /// Whatever happened, nothing stays that no name leads to. What cannot be removed now is
    /// removed by the next writer.
    fn drop(&mut self) {
        drop(self.collect());
    }
}

fn unnamed(dir: &Path, named: &BTreeSet<String>) -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::disk(dir.display(), e))? {
        let entry = entry.map_err(|e| Error::disk(dir.display(), e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !named.contains(&name) {
            all.push((name, entry.path()));
        }
    }
    Ok(all)
}
