//! A disk in memory that does what disks may do: it forgets, tears and reorders what was not
//! synced, and fails.
//!
//! ```text
//! a file = what is read now, what is on the platter, the writes between      a name: the same
//! sync: the writes, or the names of that folder, reach the platter
//! power cut: of the writes and names between, any subset survives, in sectors; the rest never was
//! ```
//!
//! 1. After a sync that fails, the writes it was for are gone from the platter for good, although
//!    they can still be read: the next sync has nothing to do and succeeds (ext4, XFS and Btrfs;
//!    Rebello et al., ATC'20).
//! 2. A write that fails may have been done in part.
//! 3. A killed process loses nothing that it wrote; only a power cut does.

use nanoclaw_audit::disk::{Appender, Disk, Held, Listed};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use testkit::Rng;

/// What a power cut can tear a write into.
const SECTOR: usize = 512;

/// What goes wrong, and it does at a call that the plan names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power is cut.
    Power,
    /// The process is killed.
    Kill,
    /// This call fails: `EIO`.
    Io,
    /// This call and every one after it that needs room: `ENOSPC`.
    Full,
    /// This call and every one after it that writes: `EROFS`.
    ReadOnly,
    /// The kernel fails to write something back; it is told with the next sync.
    Silent,
}

#[derive(Debug, Clone)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default, Clone)]
struct File {
    now: Vec<u8>,
    platter: Vec<u8>,
    between: Vec<Change>,
    /// A write back failed, and nobody was told yet.
    failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(usize),
    Folder,
}

/// A change of names: what is gone, and what is there in its place.
#[derive(Debug, Clone)]
struct Naming {
    gone: Option<PathBuf>,
    made: Option<(PathBuf, Node)>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<File>,
    names: BTreeMap<PathBuf, Node>,
    platter: BTreeMap<PathBuf, Node>,
    between: Vec<Naming>,
    locked: BTreeSet<PathBuf>,
    rng: Option<Rng>,
    plan: Option<(u64, Fault)>,
    /// What stays wrong until it is mended.
    lasting: Option<Fault>,
    down: bool,
    failed: bool,
    /// A call was made to fail since the last start.
    wrong: bool,
    calls: u64,
    trace: Vec<String>,
    heads: Vec<Vec<u8>>,
}

/// The disk; a clone is the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Simulated(Arc<Mutex<State>>);

fn set(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Bytes(at, new) => set(bytes, *at, new),
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

fn name(names: &mut BTreeMap<PathBuf, Node>, naming: &Naming) {
    if let Some(gone) = &naming.gone {
        names.remove(gone);
    }
    if let Some((path, node)) = &naming.made {
        names.insert(path.clone(), *node);
    }
}

fn error(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(match fault {
        Fault::Full => 28,
        Fault::ReadOnly => 30,
        _ => 5,
    })
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(2)
}

impl State {
    fn below(&mut self, n: usize) -> usize {
        self.rng.as_mut().map_or(0, |rng| rng.below(n.max(1)))
    }

    /// Counts a call that changes something; what goes wrong with it, if anything does.
    fn call(&mut self, what: &str, path: &Path, room: bool) -> Result<(), Fault> {
        if self.down {
            return Err(Fault::Power);
        }
        self.calls += 1;
        let line = format!("{} {what} {}", self.calls, path.display());
        self.trace.push(line);
        match self.lasting {
            Some(Fault::Full) if !room => {}
            Some(fault) => return Err(fault),
            None => {}
        }
        let Some((at, fault)) = self.plan else { return Ok(()) };
        if self.calls < at {
            return Ok(());
        }
        self.plan = None;
        self.trace.push(format!("  {fault:?}"));
        match fault {
            Fault::Power | Fault::Kill => self.down = true,
            Fault::Full if !room => {
                self.plan = Some((self.calls + 1, fault));
                return Ok(());
            }
            Fault::Full | Fault::ReadOnly => self.lasting = Some(fault),
            Fault::Silent => {
                self.write_back_fails();
                return Ok(());
            }
            Fault::Io => {}
        }
        self.wrong = true;
        Err(fault)
    }

    fn write_back_fails(&mut self) {
        let dirty: Vec<usize> =
            (0..self.files.len()).filter(|i| !self.files[*i].between.is_empty()).collect();
        if !dirty.is_empty() {
            let file = dirty[self.below(dirty.len())];
            self.lose(file);
            self.files[file].failed = true;
            self.failed = true;
        }
    }

    /// What a failed sync leaves: some of the writes on the platter, none of them to be written.
    fn lose(&mut self, file: usize) {
        let between = std::mem::take(&mut self.files[file].between);
        for change in between {
            if self.below(3) == 0 {
                apply(&mut self.files[file].platter, &change);
            }
        }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(file)) => Ok(*file),
            _ => Err(missing()),
        }
    }

    fn change(&mut self, file: usize, change: Change) {
        apply(&mut self.files[file].now, &change);
        self.files[file].between.push(change);
    }

    fn rename_things(&mut self, naming: Naming) {
        name(&mut self.names, &naming);
        self.between.push(naming);
    }

    fn folder_there(&self, path: &Path) -> io::Result<()> {
        match path.parent().map(|parent| self.names.get(parent)) {
            Some(Some(Node::Folder)) => Ok(()),
            _ => Err(missing()),
        }
    }

    fn make_file(&mut self, path: &Path) -> io::Result<usize> {
        if let Ok(file) = self.file(path) {
            return Ok(file);
        }
        self.folder_there(path)?;
        self.files.push(File::default());
        let file = self.files.len() - 1;
        self.rename_things(Naming { gone: None, made: Some((path.to_owned(), Node::File(file))) });
        Ok(file)
    }

    fn sync_file(&mut self, file: usize) {
        for change in std::mem::take(&mut self.files[file].between) {
            apply(&mut self.files[file].platter, &change);
        }
    }

    /// Names of this folder; of all with `None`.
    fn sync_names(&mut self, folder: Option<&Path>) {
        let within = |path: Option<&Path>| path.and_then(Path::parent) == folder;
        for naming in std::mem::take(&mut self.between) {
            let made = naming.made.as_ref().map(|(path, _)| path.as_path());
            if folder.is_none() || within(naming.gone.as_deref()) || within(made) {
                name(&mut self.platter, &naming);
                // What made the name that is gone came before: it cannot come back by itself.
                self.between.retain(|n| match (&n.made, &naming.gone) {
                    (Some((made, _)), Some(gone)) => made != gone,
                    _ => true,
                });
            } else {
                self.between.push(naming);
            }
        }
    }

    /// One change as a power cut leaves it: whole, in sectors, as zeros, or not at all.
    fn torn(&mut self, bytes: &mut Vec<u8>, change: &Change) {
        let Change::Bytes(at, new) = change else { return apply(bytes, change) };
        let (mut from, how) = (0, self.below(4));
        while from < new.len() {
            let to = (from + SECTOR - (at + from) % SECTOR).min(new.len());
            match (how, self.below(2)) {
                (0, _) | (1, 0) => set(bytes, at + from, &new[from..to]),
                // The length grew, and its bytes did not come: never where there were some.
                (2, 0) if bytes.len() <= at + from => set(bytes, at + from, &vec![0; to - from]),
                (3, 0) => return set(bytes, at + from, &new[from..to]),
                _ => {}
            }
            from = to;
        }
    }

    /// Which of `n` things in order survive.
    fn survivors(&mut self, n: usize) -> Vec<bool> {
        match self.below(5) {
            0 => vec![false; n],
            1 => vec![true; n],
            2 => {
                let first = self.below(n + 1);
                (0..n).map(|i| i < first).collect()
            }
            _ => (0..n).map(|_| self.below(2) == 0).collect(),
        }
    }

    fn power_cut(&mut self) {
        let between = std::mem::take(&mut self.between);
        let keep = self.survivors(between.len());
        for (naming, _) in between.iter().zip(keep).filter(|(_, keep)| *keep) {
            name(&mut self.platter, naming);
        }
        let there = self.platter.clone();
        let is_there = |path: &Path| {
            path.ancestors().skip(1).all(|p| p == Path::new("/") || there.contains_key(p))
        };
        self.platter.retain(|path, _| is_there(path));
        self.names = self.platter.clone();
        for file in 0..self.files.len() {
            let mut bytes = std::mem::take(&mut self.files[file].platter);
            let between = std::mem::take(&mut self.files[file].between);
            let keep = self.survivors(between.len());
            for (change, _) in between.iter().zip(keep).filter(|(_, keep)| *keep) {
                self.torn(&mut bytes, change);
            }
            let now = bytes.clone();
            self.files[file] = File { now, platter: bytes, between: Vec::new(), failed: false };
        }
        self.failed = false;
    }
}

impl Simulated {
    /// An empty disk with one folder, `/home`.
    pub(crate) fn new(seed: u64) -> Self {
        let home = (PathBuf::from("/home"), Node::Folder);
        let names: BTreeMap<_, _> = [home].into();
        let state =
            State { platter: names.clone(), names, rng: Some(Rng::new(seed)), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From here on: the `n`th call from now goes wrong.
    pub(crate) fn plan(&self, n: u64, fault: Fault) {
        let mut state = self.lock();
        let at = state.calls + n;
        state.plan = Some((at, fault));
    }

    /// The process is gone, and with `power` the machine; starts again, with nothing wrong.
    pub(crate) fn start_again(&self, power: bool) {
        let mut state = self.lock();
        let what = if power { "--- power cut" } else { "--- started again" };
        state.trace.push(what.to_owned());
        assert!(state.locked.is_empty(), "a log is still open");
        if power {
            state.power_cut();
        }
        (state.down, state.plan, state.lasting, state.wrong) = (false, None, None, false);
    }

    /// From here on nothing fails any more, and nothing that failed is told.
    pub(crate) fn mend(&self) {
        let mut state = self.lock();
        state.failed = false;
        state.files.iter_mut().for_each(|file| file.failed = false);
    }

    /// Cuts every call off, as if the process had been killed just now.
    pub(crate) fn stop(&self) {
        self.lock().down = true;
    }

    /// Whether a call was made to fail since it was last started.
    pub(crate) fn went_wrong(&self) -> bool {
        self.lock().wrong
    }

    /// Every content that `checkpoint` ever had: whoever reads may have kept it.
    pub(crate) fn heads(&self) -> Vec<Vec<u8>> {
        self.lock().heads.clone()
    }

    /// What the files of a folder have now, by name, whatever goes wrong.
    pub(crate) fn contents(&self, folder: &Path) -> Vec<Vec<u8>> {
        let state = self.lock();
        let below = state.names.iter().filter(|(name, _)| name.parent() == Some(folder));
        let file = |node: &Node| match node {
            Node::File(file) => Some(state.files[*file].now.clone()),
            Node::Folder => None,
        };
        below.filter_map(|(_, node)| file(node)).collect()
    }

    /// What was done, for whoever looks for the fault.
    pub(crate) fn trace(&self) -> String {
        let state = self.lock();
        let from = state.trace.len().saturating_sub(150);
        state.trace[from..].join("\n")
    }

    /// Writes everything as it is read now to a real folder.
    pub(crate) fn copy_to(&self, from: &Path, to: &Path) {
        let state = self.lock();
        for (path, node) in &state.names {
            let Ok(below) = path.strip_prefix(from) else { continue };
            match node {
                Node::Folder => std::fs::create_dir_all(to.join(below)).unwrap(),
                Node::File(file) => {
                    std::fs::write(to.join(below), &state.files[*file].now).unwrap()
                }
            }
        }
    }
}

struct End(Simulated, usize, PathBuf);

impl Appender for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        let at = state.files[self.1].now.len();
        match state.call("append", &self.2, true) {
            Ok(()) => state.change(self.1, Change::Bytes(at, bytes.to_vec())),
            Err(fault) => {
                let done = state.below(bytes.len() + 1);
                if done > 0 && !matches!(fault, Fault::ReadOnly) {
                    state.change(self.1, Change::Bytes(at, bytes[..done].to_vec()));
                }
                return Err(error(fault));
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_one(self.1, &self.2)
    }
}

struct Lock(Simulated, PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.lock().locked.remove(&self.1);
    }
}

impl Simulated {
    fn sync_one(&self, file: usize, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let result = state.call("sync", path, false);
        let told = std::mem::take(&mut state.files[file].failed);
        match result {
            Ok(()) if !told => {
                state.sync_file(file);
                Ok(())
            }
            Ok(()) => {
                state.wrong = true;
                Err(error(Fault::Io))
            }
            Err(fault) => {
                if fault == Fault::Io {
                    state.lose(file);
                }
                Err(error(fault))
            }
        }
    }
}

impl Disk for Simulated {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        for folder in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
            if state.names.contains_key(folder) {
                continue;
            }
            state.call("folder", folder, true).map_err(error)?;
            let made = Some((folder.to_owned(), Node::Folder));
            state.rename_things(Naming { gone: None, made });
        }
        Ok(())
    }

    fn append(&self, path: &Path, new: bool) -> io::Result<Box<dyn Appender>> {
        let mut state = self.lock();
        if new {
            if state.file(path).is_ok() {
                return Err(io::Error::from_raw_os_error(17));
            }
            state.call("create", path, true).map_err(error)?;
            state.make_file(path)?;
        } else if state.down {
            return Err(error(Fault::Io));
        }
        Ok(Box::new(End(self.clone(), state.file(path)?, path.to_owned())))
    }

    fn reader(&self, path: &Path, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let state = self.lock();
        if state.down {
            return Err(error(Fault::Io));
        }
        let file = state.file(path)?;
        drop(state);
        Ok(Box::new(Reading(self.clone(), file, offset as usize)))
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.files[state.file(path)?].now.len() as u64)
    }

    fn write(&self, path: &Path, bytes: &[u8], _mode: u32) -> io::Result<()> {
        let mut state = self.lock();
        let (result, mut bytes) = (state.call("write", path, true), bytes.to_vec());
        if let Err(fault) = result {
            if fault == Fault::ReadOnly || state.below(3) == 0 {
                return Err(error(fault));
            }
            let kept = state.below(bytes.len() + 1);
            bytes.truncate(kept);
        }
        let file = state.make_file(path)?;
        state.change(file, Change::Length(0));
        if !bytes.is_empty() {
            state.change(file, Change::Bytes(0, bytes));
        }
        result.map_err(error)
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.file(path)?;
        let (result, mut bytes) = (state.call("write at", path, true), bytes.to_vec());
        if result.is_err() {
            let kept = state.below(bytes.len() + 1);
            bytes.truncate(kept);
        }
        if result != Err(Fault::ReadOnly) && !bytes.is_empty() {
            state.change(file, Change::Bytes(offset as usize, bytes));
        }
        result.map_err(error)
    }

    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.file(path)?;
        state.call("cut", path, false).map_err(error)?;
        state.change(file, Change::Length(length as usize));
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        match state.names.get(path).copied() {
            Some(Node::File(file)) => {
                drop(state);
                self.sync_one(file, path)
            }
            Some(Node::Folder) => {
                state.call("sync names", path, false).map_err(error)?;
                state.sync_names(Some(path));
                Ok(())
            }
            None if path == Path::new("/") => Ok(()),
            None => Err(missing()),
        }
    }

    fn sync_all(&self, _held: &Held) -> io::Result<()> {
        let mut state = self.lock();
        let result = state.call("sync all", Path::new("/"), false);
        if result == Err(Fault::Io) {
            state.write_back_fails();
        }
        result.map_err(error)?;
        if std::mem::take(&mut state.failed) {
            state.wrong = true;
            return Err(error(Fault::Io));
        }
        for file in 0..state.files.len() {
            state.sync_file(file);
        }
        state.sync_names(None);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.file(from)?;
        state.folder_there(to)?;
        let result = state.call("rename", to, false);
        // One that fails for the disk may have been done.
        if result.is_ok() || result != Err(Fault::ReadOnly) && state.below(2) == 0 {
            if to.ends_with("checkpoint") {
                let head = state.files[file].now.clone();
                state.heads.push(head);
            }
            let made = Some((to.to_owned(), Node::File(file)));
            state.rename_things(Naming { gone: Some(from.to_owned()), made });
        }
        result.map_err(error)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.file(path)?;
        state.call("remove", path, false).map_err(error)?;
        state.rename_things(Naming { gone: Some(path.to_owned()), made: None });
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.names.keys().any(|name| name != path && name.starts_with(path)) {
            return Err(io::Error::from_raw_os_error(39));
        }
        state.call("remove folder", path, false).map_err(error)?;
        state.rename_things(Naming { gone: Some(path.to_owned()), made: None });
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let state = self.lock();
        if state.names.get(path) != Some(&Node::Folder) {
            return Err(missing());
        }
        let below = state.names.iter().filter(|(name, _)| name.parent() == Some(path));
        Ok(below.map(|(name, node)| (name.clone(), *node == Node::Folder)).collect())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Held>> {
        let mut state = self.lock();
        if state.file(path).is_err() {
            state.call("lock", path, true).map_err(error)?;
            state.make_file(path)?;
        }
        state.failed = false;
        if !state.locked.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(Lock(self.clone(), path.to_owned()))))
    }
}

/// Reads as the file is when it is read, like any descriptor.
struct Reading(Simulated, usize, usize);

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.0.lock();
        if state.down {
            return Err(error(Fault::Io));
        }
        let mut rest = Cursor::new(state.files[self.1].now.get(self.2..).unwrap_or_default());
        let n = rest.read(buffer)?;
        drop(state);
        self.2 += n;
        Ok(n)
    }
}
