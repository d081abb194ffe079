//! One run of the simulation: some lives of a log on a disk that fails, each ended in its own way,
//! and what must hold whatever happened.

use crate::disk::{Fault, Simulated};
use model::{Body, Durability, Record, RecordError};
use nanoclaw_audit::disk::SharedDisk;
use nanoclaw_audit::entry::{Entry, Uids, encode};
use nanoclaw_audit::log::{Log, OpenError, Options};
use nanoclaw_audit::merkle::{
    Hash, consistency_proof, empty_root, leaf_hash, subtree_root, verify_consistency,
};
use nanoclaw_audit::note::Checkpoint;
use nanoclaw_audit::tiler::SignAfter;
use nanoclaw_audit::verify_dir;
use nanoclaw_audit::wal::FrameReader;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use testkit::{Rng, TempDir};

const DIR: &str = "/home/audit";

/// What one run did, for the sum of all.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) lives: u64,
    pub(crate) acknowledged: u64,
    pub(crate) faults: u64,
    pub(crate) power_cuts: u64,
    pub(crate) refused: u64,
    pub(crate) rotations: u64,
    pub(crate) torn: u64,
}

struct Run {
    disk: Simulated,
    rng: Rng,
    /// What was submitted, by index; what a crash took is cut off again.
    truth: Vec<Vec<u8>>,
    /// So many were acknowledged as durable.
    durable: usize,
    uids: Uids,
    done: Done,
}

/// One run.
///
/// # Errors
/// What did not hold.
pub(crate) fn run(seed: u64) -> Result<Done, String> {
    let mut rng = Rng::new(seed);
    let disk = Simulated::new(rng.next_u64());
    let (truth, uids) = (Vec::new(), Uids::new(seed));
    let mut run = Run { disk: disk.clone(), rng, truth, durable: 0, uids, done: Done::default() };
    let lives = 2 + run.rng.below(4);
    let result = (0..lives).try_for_each(|_| run.live()).and_then(|()| run.last());
    match result {
        Ok(()) => Ok(run.done),
        Err(why) => Err(format!("{why}\nwhat was done last:\n{}", disk.trace())),
    }
}

impl Run {
    fn below(&mut self, n: usize) -> usize {
        self.rng.below(n)
    }

    fn open(&mut self) -> Result<Log, OpenError> {
        let quiet = Duration::from_secs(if self.below(4) == 0 { 0 } else { 60 });
        let options = Options {
            segment_bytes: [200, 3_000, 20_000][self.below(3)],
            checked_bytes: [0, 2_000, 1 << 20][self.below(3)],
            sign_after: SignAfter { quiet, at_most: quiet },
        };
        let disk: SharedDisk = Arc::new(self.disk.clone());
        Log::open_on(&disk, Path::new(DIR), options)
    }

    fn live(&mut self) -> Result<(), String> {
        self.done.lives += 1;
        let faults = [
            Fault::Power,
            Fault::Power,
            Fault::Kill,
            Fault::Io,
            Fault::Io,
            Fault::Full,
            Fault::ReadOnly,
            Fault::Silent,
        ];
        let (fault, spread) = (faults[self.below(8)], [10, 60, 300][self.below(3)]);
        if self.below(6) > 0 {
            let at = 1 + self.below(spread) as u64;
            self.disk.plan(at, fault);
            self.done.faults += 1;
        }
        match self.open() {
            Ok(log) => {
                self.recovered(&log)?;
                self.work(&log)?;
                // Sometimes it is closed in order, which may fail too; sometimes it is just gone.
                if self.below(3) == 0 {
                    self.disk.stop();
                }
                drop(log);
            }
            Err(error) if !self.disk.went_wrong() => return Err(format!("refused: {error}")),
            Err(OpenError::Mismatch { what, .. }) => {
                return Err(format!("called tampered what was a crash: {what}"));
            }
            Err(_) => self.done.refused += 1,
        }
        let power = self.below(2) == 0;
        self.done.power_cuts += u64::from(power);
        self.disk.start_again(power);
        Ok(())
    }

    /// What an opened log has is what was submitted, nothing acknowledged missing, and no head that
    /// anybody may have seen is of another history.
    fn recovered(&mut self, log: &Log) -> Result<(), String> {
        let found = usize::try_from(log.recovered().records).unwrap();
        self.done.torn += u64::from(log.recovered().torn_bytes > 0);
        if found < self.durable {
            return Err(format!("{} were acknowledged, {found} are there", self.durable));
        }
        let entries = self.entries();
        if entries.len() < found || entries[..found] != self.truth[..found.min(self.truth.len())] {
            return Err(format!("the {found} records there are not those that were submitted"));
        }
        self.truth.truncate(found);
        self.heads_fit().map(drop)
    }

    /// The entries as they can be read now.
    fn entries(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for bytes in self.disk.contents(&Path::new(DIR).join("wal")) {
            let mut frames = FrameReader::new(&bytes[..], 0, all.len() as u64);
            while let Ok(Some(frame)) = frames.next_frame().unwrap() {
                all.push(frame.bytes.to_vec());
            }
        }
        all
    }

    fn heads_fit(&self) -> Result<Option<Checkpoint>, String> {
        let leaves: Vec<Hash> = self.truth.iter().map(|entry| leaf_hash(entry)).collect();
        let mut newest: Option<Checkpoint> = None;
        for note in self.disk.heads() {
            let text = String::from_utf8_lossy(&note).into_owned();
            let text = text.split_inclusive("\n\n").next().unwrap_or_default();
            let head = Checkpoint::parse(text.strip_suffix('\n').unwrap_or(text));
            let head = head.map_err(|e| format!("a head that is none was seen: {e}"))?;
            let size = usize::try_from(head.size).unwrap();
            if size > leaves.len() {
                return Err(format!("a head over {size} was seen, {} are there", leaves.len()));
            }
            let root = if size == 0 { empty_root() } else { subtree_root(&leaves[..size]) };
            if root != head.root {
                return Err(format!("a head over {size} was seen that is of another history"));
            }
            newest = newest.filter(|n| n.size >= head.size).or(Some(head));
        }
        Ok(newest)
    }

    fn work(&mut self, log: &Log) -> Result<(), String> {
        for _ in 0..1 + self.below(6) {
            let ok = match self.below(8) {
                0 => log.sign().is_ok(),
                1 => self.rotate(log)?,
                _ => self.batch(log)?,
            };
            if !ok {
                // Nothing is taken after a failure.
                let entry = Entry::from_bytes(b"late".to_vec()).unwrap();
                let (tell, told) = mpsc::channel();
                log.submit(&entry, Durability::Ordered, Box::new(move |r| tell.send(r).unwrap()));
                let answer = told.recv().unwrap();
                if !matches!(answer, Err(RecordError::Disk { .. })) {
                    return Err(format!("taken after a failure: {answer:?}"));
                }
                break;
            }
        }
        Ok(())
    }

    fn batch(&mut self, log: &Log) -> Result<bool, String> {
        let (tell, told) = mpsc::channel();
        let most = [4, 90][self.below(2)];
        let (first, count) = (self.truth.len(), 1 + self.below(most));
        for n in first..first + count {
            let padding = "x".repeat(self.below(200));
            let bytes = format!("{{\"n\":{n},\"p\":\"{padding}\",\"r\":{}}}", self.rng.next_u64());
            let ordered = self.below(3) == 0;
            let how = if ordered { Durability::Ordered } else { Durability::Durable };
            let tell = tell.clone();
            let entry = Entry::from_bytes(bytes.into_bytes()).unwrap();
            log.submit(&entry, how, Box::new(move |r| tell.send((n, ordered, r)).unwrap()));
            self.truth.push(entry.into_bytes());
        }
        drop(tell);
        let (mut failed, mut last) = (usize::MAX, None);
        for (n, ordered, answer) in told {
            match answer {
                Ok(index) if index != n as u64 => return Err(format!("{n} got index {index}")),
                Ok(_) => {
                    self.done.acknowledged += 1;
                    if !ordered {
                        last = last.max(Some(n));
                        self.durable = self.durable.max(n + 1);
                    }
                }
                Err(_) => failed = failed.min(n),
            }
        }
        match last {
            Some(last) if last > failed => Err(format!("{last} is there, but {failed} is not")),
            _ => Ok(failed == usize::MAX),
        }
    }

    fn rotate(&mut self, log: &Log) -> Result<bool, String> {
        let Ok((old_vkey, new_vkey)) = log.prepare_key() else { return Ok(true) };
        let body = Body::KeyAnnounced { old_vkey, new_vkey: new_vkey.clone() };
        let record = Record { time_ms: 7, session: None, agent: None, turn: None, body };
        let entry = encode(&record, &self.uids.next(7)).unwrap();
        let (tell, told) = mpsc::channel();
        log.submit(&entry, Durability::Durable, Box::new(move |r| tell.send(r).unwrap()));
        self.truth.push(entry.into_bytes());
        if told.recv().unwrap().is_err() {
            return Ok(false);
        }
        self.durable = self.truth.len();
        if log.sign().is_err() {
            return Ok(false);
        }
        self.done.rotations += 1;
        let vkey = log.verifier().vkey();
        if vkey == new_vkey { Ok(true) } else { Err(format!("signed on with {vkey}")) }
    }

    /// The disk is in order: the log opens, goes on, and a stranger finds it whole.
    fn last(&mut self) -> Result<(), String> {
        self.disk.mend();
        let log = self.open().map_err(|e| format!("refused on a disk in order: {e}"))?;
        self.recovered(&log)?;
        let seen = self.heads_fit()?;
        if !self.batch(&log)? {
            return Err("it does not go on".to_owned());
        }
        let head = log.sign().map_err(|e| e.to_string())?;
        if let Some(seen) = seen.filter(|seen| seen.size > 0) {
            let leaves: Vec<Hash> = self.truth.iter().map(|entry| leaf_hash(entry)).collect();
            let Ok(proof) = consistency_proof(leaves.as_slice(), seen.size, head.size);
            let proof = proof.unwrap_or_default();
            if !verify_consistency(seen.size, &seen.root, head.size, &head.root, &proof) {
                return Err("the last head does not follow from the last one seen".to_owned());
            }
        }
        log.close().map_err(|e| e.to_string())?;
        self.heads_fit()?;
        let copy = TempDir::new("crash").map_err(|e| e.to_string())?;
        self.disk.copy_to(Path::new(DIR), copy.path());
        let report = verify_dir(copy.path(), None).map_err(|f| format!("not whole: {f}"))?;
        let unsigned = (report.unsigned_records, report.unsigned_bytes);
        if report.records != self.truth.len() as u64 || unsigned != (0, 0) {
            return Err(format!("{} of {} verified", report.records, self.truth.len()));
        }
        Ok(())
    }
}

impl Done {
    /// Adds another run's.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { lives, acknowledged, faults, power_cuts, refused, rotations, torn } = other;
        self.lives += lives;
        self.acknowledged += acknowledged;
        self.faults += faults;
        self.power_cuts += power_cuts;
        self.refused += refused;
        self.rotations += rotations;
        self.torn += torn;
    }
}
