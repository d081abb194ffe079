//! Verification of a log's public part alone: head, tiles and bundles, from wherever they are.
//!
//! ```text
//! key ─► checkpoint ─► bundles, one after the other ─► leaves ─► tiles, compared ─► root, compared
//! ```
//!
//! 1. Every record under the head is read, and the tree over them must be the signed one.
//! 2. Every hash tile of that tree must be what the records make of it. The hashes of records that
//!    were pruned, on record, take their place.
//! 3. Memory does not grow with the log. Partial tiles of other heads are not looked for: a server
//!    has no list of what it has.
//! 4. Any key of the log will do ([`crate::chain`]).

use crate::chain::{Chain, follow};
use crate::cosign::{Cosigner, Quorum};
use crate::epoch::announcement;
use crate::finding::{Finding, finding};
use crate::merkle::{FullTile, Hash, TILE_WIDTH, TileTree, leaf_hash};
use crate::note::{Checkpoint, Verifier};
use crate::prune;
use crate::source::{Source, checkpoint, tile, tile_of, tile_there};
use crate::tiles::{Kind, TileName, split_bundle};
use std::time::Instant;

/// The public part of a log that is whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Scanned {
    /// The signed head.
    pub checkpoint: Checkpoint,
    /// Who signs now.
    pub vkey: String,
    /// Number of the first record that is there, rounded to bundles; of those before it, which were
    /// pruned on record, only the hashes were checked.
    pub first: u64,
    /// The trusted witnesses that saw that head.
    pub cosigned: Vec<Cosigner>,
    /// How long it took.
    pub seconds: f64,
}

/// Checks all that a source has against `key`.
///
/// # Errors
/// The first thing that is wrong.
pub fn scan(source: &dyn Source, key: &Verifier, quorum: &Quorum) -> Result<Scanned, Finding> {
    let begun = Instant::now();
    let note = checkpoint(source)?;
    let place = source.place("checkpoint");
    let (chain, head) = follow(source, &note, key)?;
    let cosigned =
        quorum.cosigners(&note).map_err(|e| finding(&place, e.offset(), e.to_string()))?;
    let mut records = Records::default();
    let mut tree = TileTree::default();
    let mut full = Vec::new();
    while tree.size() < head.size {
        records.bundle(source, &mut tree, head.size, &mut full)?;
        for tile in full.drain(..) {
            compare(source, &tile)?;
        }
    }
    records.check(source, &chain, &head)?;
    let parts: Vec<FullTile> = tree
        .partial_tiles()
        .map(|(level, index, hashes)| FullTile { level, index, hashes: hashes.to_vec() })
        .collect();
    for part in &parts {
        compare(source, part)?;
    }
    if tree.root() != head.root {
        let what = "its records make another tree than the one that was signed";
        return Err(finding(source.place("tile"), 0, what));
    }
    let (vkey, first) = (chain.current().vkey(), records.first);
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Scanned { checkpoint: head, vkey, first, cosigned, seconds })
}

/// What the records say that concerns the whole of them.
#[derive(Default)]
struct Records {
    /// The first that is there, and the first that has to be, by what is on record.
    first: u64,
    pruned_to: u64,
    /// Keys that they announce: index, old key, new key.
    announced: Vec<(u64, (String, String))>,
}

impl Records {
    /// Takes the next bundle in, or its hashes where it was pruned.
    fn bundle(
        &mut self,
        source: &dyn Source,
        tree: &mut TileTree,
        size: u64,
        full: &mut Vec<FullTile>,
    ) -> Result<(), Finding> {
        let name = tile_of(Kind::Entries, tree.size(), size);
        let place = || source.place(&name.path());
        let missing = || finding(place(), 0, "it is missing");
        let Some(bytes) = tile_there(source, name)? else {
            // Whole bundles go, and none goes that has an older one before it.
            if self.first < tree.size() || usize::from(name.width) < TILE_WIDTH {
                return Err(missing());
            }
            let hashes = tile(source, TileName { kind: Kind::Hashes(0), ..name })?;
            hashes.as_chunks::<32>().0.iter().for_each(|leaf| tree.push(*leaf, full));
            self.first = tree.size();
            return Ok(());
        };
        let entries = split_bundle(&bytes).filter(|e| e.len() == usize::from(name.width));
        let entries = entries.ok_or_else(|| finding(place(), 0, "it does not come out even"))?;
        for entry in entries {
            self.announced.extend(announcement(entry).map(|keys| (tree.size(), keys)));
            self.pruned_to = self.pruned_to.max(prune::announced(entry).unwrap_or(0));
            tree.push(leaf_hash(entry), full);
        }
        Ok(())
    }

    /// What is missing was pruned on record, and the keys are those that were announced.
    fn check(&self, source: &dyn Source, chain: &Chain, head: &Checkpoint) -> Result<(), Finding> {
        if self.first > self.pruned_to {
            let what = format!(
                "the records before {} are not there, and no pruning is on record",
                self.first
            );
            return Err(finding(source.place("tile/entries"), 0, what));
        }
        let place = source.place("checkpoint");
        if !chain.0.past.is_empty() {
            let fits = chain.0.check(&self.announced, head.size);
            return fits.map_err(|(file, why)| finding(file.unwrap_or(place), 0, why));
        }
        // A copy without the epochs, under the newest key. The key before it may sign up to the
        // record that announces that.
        let Some((index, (old, new))) = self.announced.last() else { return Ok(()) };
        let key = chain.current().vkey();
        if key == *new || (key == *old && index + 1 == head.size) {
            return Ok(());
        }
        let what = format!("record {index} announces another key than the one that signed it");
        Err(finding(place, 0, what))
    }
}

fn compare(source: &dyn Source, should: &FullTile) -> Result<(), Finding> {
    let width = should.hashes.len().min(TILE_WIDTH) as u16;
    let name = TileName { kind: Kind::Hashes(should.level), index: should.index, width };
    let found = tile(source, name)?;
    let ours: &[u8] = should.hashes.as_flattened();
    match found.iter().zip(ours).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let what = format!("it differs from the {width} records that it is derived from");
            Err(finding(source.place(&name.path()), at as u64, what))
        }
    }
}

/// What two signed heads of one log say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relation {
    /// The same head.
    Same,
    /// The second continues the first; the hashes prove it (RFC 6962 §2.1.2).
    Continues(Vec<Hash>),
    /// The second is shorter: the log was rolled back, or the heads were given the wrong way round.
    RolledBack,
    /// Both are signed, and no log can have had both: it was forked or rewritten. The words say how
    /// that shows.
    Forked(String),
}

/// Holds two heads of one log against each other, with the tiles of `newer`'s log, or of any log
/// that has `newer`.
///
/// # Errors
/// When a tile that the proof needs cannot be had.
pub fn relate(
    older: &Checkpoint,
    newer: &Checkpoint,
    tiles: &dyn Source,
) -> Result<Relation, Finding> {
    if older.size == newer.size {
        return Ok(match older.root == newer.root {
            true => Relation::Same,
            false => Relation::Forked("the two have one size and different roots".into()),
        });
    }
    if older.size > newer.size {
        return Ok(Relation::RolledBack);
    }
    if older.size == 0 {
        // The empty tree is the beginning of every log.
        return Ok(match older.root == crate::merkle::empty_root() {
            true => Relation::Continues(Vec::new()),
            false => Relation::Forked("a head of no records has a root of its own".into()),
        });
    }
    let nodes = crate::source::SourceNodes::new(tiles, newer.size);
    let proof = crate::merkle::consistency_proof(&nodes, older.size, newer.size)?;
    let proof = proof.unwrap_or_default();
    let fits =
        crate::merkle::verify_consistency(older.size, &older.root, newer.size, &newer.root, &proof);
    Ok(match fits {
        true => Relation::Continues(proof),
        false => Relation::Forked(format!(
            "no proof leads from the {} records of the first to the {} of the second",
            older.size, newer.size
        )),
    })
}
