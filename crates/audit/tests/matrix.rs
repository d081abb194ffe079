//! The tamper matrix of SPECIFICATION.md, cell by cell.
#![allow(clippy::unwrap_used)]

mod attacks;
mod common;

use attacks::Row;

/// Nobody can notice these from a copy of the files, and only a witness notices the first five.
/// Of the last two nobody has signed anything.
const BY_A_WITNESS_ALONE: [&str; 5] = [
    "an older signed head put back",
    "the whole log put back from a copy",
    "history rewritten with the stolen key",
    "forked with the stolen key, and longer",
    "the clock set back a day",
];
const BY_NOBODY: [&str; 2] = [
    "records cut off before a head covered them",
    "a record forged behind the head, which the next start signs",
];

/// What needs no key to be noticed, though the attacker has none either.
const BY_THE_FILES: [&str; 9] = [
    "a bit of a record flipped",
    "a bit of a leaf tile flipped",
    "a bit of an upper tile flipped",
    "a bit of a bundle flipped",
    "the first segment, tile and bundle pruned",
    "a record of more than 65,535 bytes put in",
    "two writers: a number given twice",
    "a tile of another log put in",
    "the salt of a private text exchanged",
];

#[test]
fn each_attack_is_noticed_by_whom_it_is_promised_and_by_nobody_else() {
    let folder = common::Temp::new("matrix");
    let rows = attacks::run(&folder.0);
    assert_eq!(rows.len(), 28);
    for Row { attack, chain, checkpoint, witness } in rows {
        let nobody = BY_NOBODY.contains(&attack);
        let witnessed = BY_A_WITNESS_ALONE.contains(&attack);
        assert_eq!(chain, BY_THE_FILES.contains(&attack), "the files, {attack}");
        assert_eq!(checkpoint, !nobody && !witnessed, "the key, {attack}");
        assert_eq!(witness, !nobody, "the witness, {attack}");
    }
}
