//! Our tree against RFC 6962 as `ct-merkle` has it.
#![allow(clippy::unwrap_used)]

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use nanoclaw_audit::merkle::{
    Hash, TileTree, consistency_proof, inclusion_proof, leaf_hash, verify_consistency,
    verify_inclusion,
};
use sha2::Sha256;

fn entries(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("entry {i}").into_bytes()).collect()
}

#[test]
fn roots_and_proofs_are_those_of_a_foreign_library() {
    let entries = entries(600);
    let leaves: Vec<Hash> = entries.iter().map(|e| leaf_hash(e)).collect();
    let mut foreign = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let (mut ours, mut full) = (TileTree::default(), Vec::new());
    let mut roots = vec![ours.root()];
    for (i, entry) in entries.iter().enumerate() {
        foreign.push(entry.clone());
        ours.push(leaves[i], &mut full);
        let root = foreign.root();
        assert_eq!(ours.root().as_slice(), root.as_bytes().as_slice(), "size {}", i + 1);
        roots.push(ours.root());
        let (size, index) = (i as u64 + 1, (i as u64 * 7) % (i as u64 + 1));
        let proof = inclusion_proof(&leaves[..=i], index, size).unwrap().unwrap();
        let theirs = foreign.prove_inclusion(index as usize);
        assert_eq!(proof.as_flattened(), theirs.as_bytes());
        assert!(verify_inclusion(&leaves[index as usize], index, size, &proof, &ours.root()));
        assert!(!verify_inclusion(&[1; 32], index, size, &proof, &ours.root()));
    }
    assert_eq!(full.len(), 2);
    for new in [1u64, 2, 3, 255, 256, 257, 512, 600] {
        for old in 1..=new {
            let proof = consistency_proof(&leaves[..new as usize], old, new).unwrap().unwrap();
            let (a, b) = (&roots[old as usize], &roots[new as usize]);
            assert!(verify_consistency(old, a, new, b, &proof), "{old} {new}");
            if old < new {
                assert!(!verify_consistency(old, b, new, a, &proof), "{old} {new}");
            }
        }
    }
    let theirs = foreign.prove_consistency(600 - 257);
    let ours = consistency_proof(&leaves[..], 257, 600).unwrap().unwrap();
    assert_eq!(ours.as_flattened(), theirs.as_bytes());
}

#[test]
fn a_tile_at_once_is_the_same_as_its_leaves() {
    let leaves: Vec<Hash> = entries(70_000).iter().map(|e| leaf_hash(e)).collect();
    let (mut one, mut many) = (TileTree::default(), TileTree::default());
    let (mut full_one, mut full_many) = (Vec::new(), Vec::new());
    for leaf in &leaves {
        one.push(*leaf, &mut full_one);
    }
    for chunk in leaves.chunks(256) {
        if chunk.len() == 256 {
            let root = nanoclaw_audit::merkle::subtree_root(chunk);
            assert!(many.push_tile(chunk.to_vec(), root, &mut full_many));
        } else {
            chunk.iter().for_each(|leaf| many.push(*leaf, &mut full_many));
        }
    }
    assert_eq!(one.root(), many.root());
    assert_eq!(full_one, full_many);
    assert!(!many.push_tile(vec![[0; 32]; 256], [0; 32], &mut full_many));
}
