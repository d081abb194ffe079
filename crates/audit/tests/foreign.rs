//! Verifiers that nobody here wrote accept our files, and refuse them when changed.
#![allow(clippy::unwrap_used)]

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{Temp, entry, make_log};
use nanoclaw_audit::cosign::WitnessSigner;
use nanoclaw_audit::merkle::{consistency_proof, inclusion_proof};
use nanoclaw_audit::note::Verifier;
use nanoclaw_audit::proof::make;
use nanoclaw_audit::tiles::{Kind, TileName, TileNodes, split_bundle};
use nanoclaw_audit::{Log, log::Options};
use signed_note::{Note, StandardVerifier, VerifierList};
use std::fs;
use std::path::{Path, PathBuf};
use tlog_tiles::{
    Checkpoint, Error, Hash, HashReader, Tile, TileHashReader, TileReader, check_record,
    check_tree, prove_record, prove_tree, record_hash, stored_hash_index,
};

/// Reads our folder for the foreign reader, which has Go's path layout with the height in it.
struct Folder(PathBuf);

impl TileReader for Folder {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let path = |t: &Tile| self.0.join(t.path().replacen("tile/8/", "tile/", 1));
        Ok(tiles.iter().map(|t| fs::read(path(t)).unwrap()).collect())
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

fn foreign_checkpoint(dir: &Path) -> Option<Checkpoint> {
    let vkey = fs::read_to_string(dir.join("vkey")).unwrap();
    let verifier = StandardVerifier::new(vkey.trim_end()).unwrap();
    let note = Note::from_bytes(&fs::read(dir.join("checkpoint")).unwrap()).unwrap();
    note.verify(&VerifierList::new(vec![Box::new(verifier)])).ok()?;
    Some(Checkpoint::from_bytes(note.text()).unwrap())
}

#[test]
fn checkpoint_tiles_entries_and_proofs_are_accepted() {
    const N: u64 = 66_000; // Three tile levels, partial ones in each.
    let dir = Temp::new("foreign");
    make_log(&dir.0, N as usize);
    let checkpoint = foreign_checkpoint(&dir.0).unwrap();
    assert_eq!(checkpoint.size(), N);
    let folder = Folder(dir.0.clone());
    let reader = TileHashReader::new(N, *checkpoint.hash(), &folder);
    let ours = TileNodes::new(&dir.0, N);
    for index in [0, 255, 256, 65_535, 65_536, N - 1] {
        let hash = reader.read_hashes(&[stored_hash_index(0, index)]).unwrap()[0];
        let width = (N - (index & !255)).min(256) as u16;
        let name = TileName { kind: Kind::Entries, index: index / 256, width };
        let bundle = fs::read(dir.0.join(name.path())).unwrap();
        let found = split_bundle(&bundle).unwrap()[(index % 256) as usize].to_vec();
        assert_eq!(found, entry(index as usize));
        assert_eq!(record_hash(&found), hash);
        let proof = inclusion_proof(&ours, index, N).unwrap().unwrap();
        let proof: Vec<Hash> = proof.into_iter().map(Hash).collect();
        assert_eq!(proof, prove_record(N, index, &reader).unwrap());
        check_record(&proof, N, *checkpoint.hash(), index, hash).unwrap();
    }
    for old in [1, 255, 256, 300, 65_536, 65_999] {
        let proof = consistency_proof(&ours, old, N).unwrap().unwrap();
        let proof: Vec<Hash> = proof.into_iter().map(Hash).collect();
        assert_eq!(proof, prove_tree(N, old, &reader).unwrap());
        let old_root = tlog_tiles::tree_hash(old, &reader).unwrap();
        check_tree(&proof, N, *checkpoint.hash(), old, old_root).unwrap();
    }
    // A proof from a changed tile (its third hash, sibling of record 3) is refused, and the foreign
    // note a changed size.
    let tile = dir.0.join("tile/0/000");
    let mut bytes = fs::read(&tile).unwrap();
    bytes[77] ^= 1;
    fs::write(&tile, bytes).unwrap();
    let proven = prove_record(N, 3, &reader)
        .and_then(|p| check_record(&p, N, *checkpoint.hash(), 3, record_hash(&entry(3))));
    assert!(proven.is_err());
    let text = fs::read_to_string(dir.0.join("checkpoint")).unwrap();
    fs::write(dir.0.join("checkpoint"), text.replacen("66000", "66001", 1)).unwrap();
    assert!(foreign_checkpoint(&dir.0).is_none());
}

#[test]
fn a_foreign_signature_beside_ours_is_kept_out_of_the_way() {
    let dir = Temp::new("cosigned");
    make_log(&dir.0, 3);
    let vkey = fs::read_to_string(dir.0.join("vkey")).unwrap();
    let verifier = Verifier::parse(vkey.trim_end()).unwrap();
    let mut note = fs::read_to_string(dir.0.join("checkpoint")).unwrap();
    note.push_str("\u{2014} witness.example/w AAAAAAAAAAAAAAAA\n");
    assert_eq!(verifier.open(note.as_bytes()).unwrap().size, 3);
    for bad in ["", "\n\n", "x\n\n", "a\n1\n\n\u{2014} ", "\u{2014} a b\n"] {
        assert!(verifier.open(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn a_cosigned_proof_file_is_read_and_accepted_without_our_code() {
    let dir = Temp::new("foreign-proof");
    make_log(&dir.0, 300);
    let vkey = fs::read_to_string(dir.0.join("vkey")).unwrap();
    let key = Verifier::parse(vkey.trim_end()).unwrap();
    let note = fs::read_to_string(dir.0.join("checkpoint")).unwrap();
    let witness = WitnessSigner::from_seed("w.example/1", [2; 32]).unwrap();
    let text = &note[..=note.find("\n\n").unwrap()];
    let cosigned = format!("{note}{}", witness.cosign(text, 1_790_000_000));
    let source = nanoclaw_audit::source::Folder(dir.0.clone());
    let proof = make(&source, &key, cosigned.as_bytes(), 257).unwrap().text();
    // By the words of the format alone.
    let (head, note) = proof.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("c2sp.org/tlog-proof@v1"));
    let record = STANDARD.decode(lines.next().unwrap().strip_prefix("extra ").unwrap()).unwrap();
    assert_eq!((record.as_slice(), lines.next()), (&entry(257)[..], Some("index 257")));
    let hash = |line| Hash(STANDARD.decode(line).unwrap().try_into().unwrap());
    let path: Vec<Hash> = lines.map(hash).collect();
    let note = Note::from_bytes(note.as_bytes()).unwrap();
    let verifier = StandardVerifier::new(vkey.trim_end()).unwrap();
    note.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
    let checkpoint = Checkpoint::from_bytes(note.text()).unwrap();
    let check = |record: &[u8]| {
        let (size, root) = (checkpoint.size(), *checkpoint.hash());
        check_record(&path, size, root, 257, record_hash(record))
    };
    check(&record).unwrap();
    assert!(check(&entry(258)).is_err());
}

#[test]
fn our_public_key_is_what_the_foreign_library_makes_of_our_private_one() {
    let dir = Temp::new("keys");
    Log::open_with(&dir.0, Options::default()).unwrap().close().unwrap();
    let key = fs::read_to_string(dir.0.join("private/key")).unwrap();
    let signer = signed_note::StandardSigner::new(key.trim_end()).unwrap();
    let vkey = fs::read_to_string(dir.0.join("vkey")).unwrap();
    assert!(vkey.starts_with(signed_note::Signer::name(&signer)));
    let mode = std::os::unix::fs::PermissionsExt::mode;
    let of = |name: &str| mode(&fs::metadata(dir.0.join(name)).unwrap().permissions()) & 0o777;
    assert_eq!((of("private"), of("private/key")), (0o700, 0o600));
}
