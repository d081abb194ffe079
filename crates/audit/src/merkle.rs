//! RFC 6962 tree hashing: leaves, nodes, a growing tree kept as tiles, and both kinds of proof.
//!
//! ```text
//! entry bytes ─► leaf_hash ─► TileTree (right edge only) ─► root
//!                                  └─► finished tiles ─► tiles.rs      Nodes ─► proofs
//! ```
//!
//! 1. `leaf = SHA-256(0x00 ‖ bytes)`, `node = SHA-256(0x01 ‖ left ‖ right)`; the two prefixes keep
//!    a node from passing for a leaf (RFC 6962 §2.1).
//! 2. The memory of a tree is its right edge: at most 255 hashes a tile level, whatever its size.
//! 3. Proofs read only complete subtrees, so a reader of tiles needs nothing else.

use aws_lc_rs::digest;

/// A SHA-256.
pub type Hash = [u8; 32];

/// Hashes in a full tile: C2SP tlog-tiles fixes the height of a tile at 8.
pub const TILE_WIDTH: usize = 256;

/// Tile levels a log can have: with 7 it holds 2^56 leaves, and no shift by a level overflows.
const TILE_LEVELS_MAX: usize = 7;

/// Entries shorter than this, which nearly all are, get hashed from a copy behind their prefix.
const LEAF_BLOCK_BYTES: usize = 1_025;

/// Hash of an entry as a leaf.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    // One call over one block: a streaming context takes memory from the heap for every hash.
    let mut block = [0; LEAF_BLOCK_BYTES];
    if let Some(place) = block.get_mut(1..=entry.len()) {
        place.copy_from_slice(entry);
        return sha256(&block[..=entry.len()]);
    }
    let mut ctx = digest::Context::new(&digest::SHA256);
    ctx.update(&[0]);
    ctx.update(entry);
    to_hash(&ctx.finish())
}

/// Hash of an inner node.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut block = [0u8; 65];
    block[0] = 1;
    block[1..33].copy_from_slice(left);
    block[33..].copy_from_slice(right);
    sha256(&block)
}

/// Plain SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Hash {
    to_hash(&digest::digest(&digest::SHA256, bytes))
}

fn to_hash(d: &digest::Digest) -> Hash {
    let mut h = [0; 32];
    h.copy_from_slice(d.as_ref());
    h
}

/// Root of the empty tree.
#[must_use]
pub fn empty_root() -> Hash {
    sha256(b"")
}

/// Root over `hashes`, any number of them, as RFC 6962's MTH splits them.
#[must_use]
pub fn subtree_root(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(split_point(hashes.len() as u64) as usize);
            node_hash(&subtree_root(left), &subtree_root(right))
        }
    }
}

/// Largest power of two strictly below `n` (`n` at least 2).
fn split_point(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// A tile that has just become full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullTile {
    /// Tile level: 0 holds leaf hashes.
    pub level: u8,
    /// Position among the tiles of its level.
    pub index: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
}

/// A growing tree: the right-most, unfinished tile of each level.
#[derive(Debug, Clone, Default)]
pub struct TileTree {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

impl TileTree {
    /// A tree of `size` leaves whose unfinished tiles are these, lowest level first.
    pub(crate) fn restore(size: u64, levels: Vec<Vec<Hash>>) -> Self {
        Self { size, levels }
    }

    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf hash and hands over every tile that it completes, lowest level first.
    pub fn push(&mut self, leaf: Hash, full: &mut Vec<FullTile>) {
        self.size += 1;
        self.push_at(0, leaf, full);
    }

    /// Adds 256 leaves at once, of which only the tile is known. Only on a tile boundary: returns
    /// `false`, and does nothing, elsewhere or when `hashes` is not a full tile.
    pub fn push_tile(&mut self, hashes: Vec<Hash>, root: Hash, full: &mut Vec<FullTile>) -> bool {
        if !self.size.is_multiple_of(TILE_WIDTH as u64) || hashes.len() != TILE_WIDTH {
            return false;
        }
        let index = self.size / TILE_WIDTH as u64;
        self.size += TILE_WIDTH as u64;
        full.push(FullTile { level: 0, index, hashes });
        self.push_at(1, root, full);
        true
    }

    fn push_at(&mut self, level: usize, hash: Hash, full: &mut Vec<FullTile>) {
        let (mut level, mut hash) = (level, hash);
        while level < TILE_LEVELS_MAX {
            while self.levels.len() <= level {
                self.levels.push(Vec::with_capacity(TILE_WIDTH));
            }
            self.levels[level].push(hash);
            if self.levels[level].len() < TILE_WIDTH {
                return;
            }
            let hashes = std::mem::replace(&mut self.levels[level], Vec::with_capacity(TILE_WIDTH));
            hash = subtree_root(&hashes);
            let index = (self.size >> (8 * (level + 1))) - 1;
            full.push(FullTile { level: level as u8, index, hashes });
            level += 1;
        }
    }

    /// Root of the whole tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut acc: Option<Hash> = None;
        for hashes in &self.levels {
            let mut rest = hashes.as_slice();
            let mut peaks = Vec::new();
            while !rest.is_empty() {
                let width = 1 << (usize::BITS - 1 - rest.len().leading_zeros());
                let (peak, tail) = rest.split_at(width);
                peaks.push(subtree_root(peak));
                rest = tail;
            }
            for peak in peaks.iter().rev() {
                acc = Some(acc.map_or(*peak, |right| node_hash(peak, &right)));
            }
        }
        acc.unwrap_or_else(empty_root)
    }

    /// The unfinished tile of each level that has one: level, tile index, hashes.
    pub fn partial_tiles(&self) -> impl Iterator<Item = (u8, u64, &[Hash])> {
        self.levels
            .iter()
            .enumerate()
            .filter(|(_, h)| !h.is_empty())
            .map(|(level, hashes)| (level as u8, self.size >> (8 * (level + 1)), hashes.as_slice()))
    }
}

/// Where the hash of a complete subtree can be had: `level` 0 are leaves, `index` counts subtrees
/// of that level from the left.
pub trait Nodes {
    /// What can go wrong while reading.
    type Error;
    /// Hash of that subtree.
    ///
    /// # Errors
    /// As the source has it.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// Leaf hashes in memory.
impl Nodes for [Hash] {
    type Error = std::convert::Infallible;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error> {
        let start = (index as usize) << level;
        Ok(subtree_root(&self[start..start + (1usize << level)]))
    }
}

/// Root over leaves `start..start + size`, `start` a multiple of the next power of two of `size`.
fn range_root<N: Nodes + ?Sized>(nodes: &N, start: u64, size: u64) -> Result<Hash, N::Error> {
    if size.is_power_of_two() {
        let level = size.trailing_zeros();
        return nodes.node(level as u8, start >> level);
    }
    let k = split_point(size);
    Ok(node_hash(&range_root(nodes, start, k)?, &range_root(nodes, start + k, size - k)?))
}

/// Proof that leaf `index` is in the tree of `size` (RFC 6962 §2.1.1), leaf's sibling first.
///
/// # Errors
/// As `nodes` has it. `None` when `index` is not below `size`.
pub fn inclusion_proof<N: Nodes + ?Sized>(
    nodes: &N,
    index: u64,
    size: u64,
) -> Result<Option<Vec<Hash>>, N::Error> {
    if index >= size {
        return Ok(None);
    }
    let (mut start, mut width, mut path) = (0, size, Vec::new());
    while width > 1 {
        let k = split_point(width);
        if index - start < k {
            path.push(range_root(nodes, start + k, width - k)?);
            width = k;
        } else {
            path.push(range_root(nodes, start, k)?);
            start += k;
            width -= k;
        }
    }
    path.reverse();
    Ok(Some(path))
}

/// Proof that the tree of `old` leaves is a prefix of the tree of `new` (RFC 6962 §2.1.2).
///
/// # Errors
/// As `nodes` has it. `None` unless `1 <= old <= new`.
pub fn consistency_proof<N: Nodes + ?Sized>(
    nodes: &N,
    old: u64,
    new: u64,
) -> Result<Option<Vec<Hash>>, N::Error> {
    if old == 0 || old > new {
        return Ok(None);
    }
    let (mut start, mut width, mut m, mut whole, mut path) = (0, new, old, true, Vec::new());
    while m < width {
        let k = split_point(width);
        if m <= k {
            path.push(range_root(nodes, start + k, width - k)?);
            width = k;
        } else {
            path.push(range_root(nodes, start, k)?);
            start += k;
            m -= k;
            width -= k;
            whole = false;
        }
    }
    if !whole {
        path.push(range_root(nodes, start, m)?);
    }
    path.reverse();
    Ok(Some(path))
}

/// Checks an inclusion proof (RFC 9162 §2.1.3.2).
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut acc) = (index, size - 1, *leaf);
    for p in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            acc = node_hash(p, &acc);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            acc = node_hash(&acc, p);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && acc == *root
}

/// Checks a consistency proof (RFC 9162 §2.1.4.2).
#[must_use]
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> bool {
    if old == 0 || old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    let whole = old.is_power_of_two();
    let (first, rest) = match (whole, proof.split_first()) {
        (true, _) => (old_root, proof),
        (false, Some((first, rest))) => (first, rest),
        (false, None) => return false,
    };
    let shift = (old - 1).trailing_ones();
    let (mut node, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut from_old, mut from_new) = (*first, *first);
    for p in rest {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            from_old = node_hash(p, &from_old);
            from_new = node_hash(p, &from_new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, p);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == *old_root && from_new == *new_root
}
