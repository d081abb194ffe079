use super::*;
use crate::disk::{Appender, Held, Listed, Real, SharedDisk};
use crate::entry::Entry;
use crate::log::Options;
use crate::wal::Sealed;
use std::io::Read;
use std::sync::{Arc, Mutex};
use testkit::TempDir;

/// The operating system's disk, with a note of what is removed and of what is synced.
#[derive(Debug, Default)]
struct Noted(Mutex<Vec<(char, PathBuf)>>);

impl Noted {
    fn note(&self, what: char, path: &Path) {
        self.0.lock().unwrap().push((what, path.to_owned()));
    }
}

impl Disk for Noted {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        Real.create_folder(path)
    }
    fn append(&self, path: &Path, new: bool) -> io::Result<Box<dyn Appender>> {
        Real.append(path, new)
    }
    fn reader(&self, path: &Path, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Real.reader(path, offset)
    }
    fn length(&self, path: &Path) -> io::Result<u64> {
        Real.length(path)
    }
    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        Real.write(path, bytes, mode)
    }
    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Real.write_at(path, offset, bytes)
    }
    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        Real.cut(path, length)
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        self.note('s', path);
        Real.sync(path)
    }
    fn sync_all(&self, held: &Held) -> io::Result<()> {
        Real.sync_all(held)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Real.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note('r', path);
        Real.remove(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        Real.remove_folder(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        Real.list(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Held>> {
        Real.lock(path)
    }
}

/// A log of two segments, the first of which names a text.
fn log_with_a_text(dir: &Path) -> (PathBuf, Vec<Segment>) {
    let digest = "ab".repeat(32);
    let text = payload::place(dir, &digest);
    fs::create_dir_all(text.parent().unwrap()).unwrap();
    fs::write(&text, b"private").unwrap();
    let named = format!(
        "{{\"unmapped\":{{\"payloads\":{{\"t\":{{\"bytes\":7,\"sha256\":\"{digest}\"}}}}}}}}"
    );
    let disk: SharedDisk = Arc::new(Real);
    let options = Options { segment_bytes: 1, ..Options::default() };
    let log = Log::open_on(&disk, dir, options).unwrap();
    for entry in [named.as_bytes(), b"{}"] {
        let (tell, told) = mpsc::channel();
        let entry = Entry::from_bytes(entry.to_vec()).unwrap();
        log.submit(&entry, Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
        told.recv().unwrap().unwrap();
    }
    log.close().unwrap();
    (text, segments(dir).unwrap())
}

fn carried_out(dir: &Path, disk: &Noted, segments: &[Segment]) -> io::Result<()> {
    fs::write(dir.join(INTENT), "1\n").unwrap();
    let sealed = |first| Sealed { first, next: first + 1, bytes: 1 };
    let mut manifest = Manifest { sealed: vec![sealed(0), sealed(1)] };
    assert_eq!(segments.len(), 2);
    finish(disk, dir, &Signer::from_seed("n/1", [1; 32]).unwrap(), &mut manifest, &[1])
}

#[test]
fn a_text_is_gone_for_good_before_the_segment_that_names_it_goes() {
    let temp = TempDir::new("prune-text").unwrap();
    let dir = temp.path();
    let (text, segments) = log_with_a_text(dir);
    let disk = Noted::default();
    carried_out(dir, &disk, &segments).unwrap();
    assert!(!text.exists() && !segments[0].path.exists());
    let done = disk.0.into_inner().unwrap();
    let at = |what, path: &Path| done.iter().position(|(w, p)| (*w, &**p) == (what, path)).unwrap();
    let synced = at('s', text.parent().unwrap());
    assert!(at('r', &text) < synced && synced < at('r', &segments[0].path), "{done:?}");
}

#[test]
fn where_a_text_cannot_be_removed_the_segment_that_names_it_stays() {
    let temp = TempDir::new("prune-stays").unwrap();
    let dir = temp.path();
    let (text, segments) = log_with_a_text(dir);
    // A folder in its place: no file that can be removed.
    fs::remove_file(&text).unwrap();
    fs::create_dir(&text).unwrap();
    assert!(carried_out(dir, &Noted::default(), &segments).is_err());
    assert!(segments[0].path.exists() && dir.join(INTENT).exists());
    fs::remove_dir(&text).unwrap();
    carried_out(dir, &Noted::default(), &segments).unwrap();
    assert!(!segments[0].path.exists());
}
