//! What a manifest costs: looking at a mount, with nothing changed and with some of it.
//!
//! Beside each figure stands its floor, measured in the same run: the standard library's walk with
//! one `lstat` an entry, and a hash of as many bytes from memory. The mount is warm, as it is
//! after a turn.

// A measuring program: what it cannot have, ends it. It has the product's own code, of which it
// uses a part.
#![allow(clippy::expect_used, clippy::print_stdout, dead_code, unused_imports)]

#[path = "../src/manifest/mod.rs"]
mod manifest;

use manifest::{Bounds, Manifests};
use std::fs;
use std::path::Path;
use std::time::Instant;
use testkit::TempDir;

const ROUNDS: usize = 15;
/// Files in a folder, as projects have them.
const WIDTH: usize = 50;
const FILE_BYTES: usize = 4 << 10;
const CHANGED: usize = 100;

fn main() {
    for files in [0, 1_000, 10_000, 90_000] {
        measure(files);
    }
}

fn measure(files: usize) {
    let temp = TempDir::new("bm").expect("folder");
    for n in 0..files {
        let folder = temp.path().join(format!("d{}", n / WIDTH));
        if n % WIDTH == 0 {
            fs::create_dir(&folder).expect("folder");
        }
        fs::write(folder.join(format!("f{n}")), [7; FILE_BYTES]).expect("file");
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    let mounts = || vec![("/mnt/x".to_owned(), temp.path().to_owned())];
    let floor = median(|| assert!(walk(temp.path()) <= 2 * files as u64));
    let first = median(|| drop(Manifests::start(mounts(), Bounds::USUAL)));
    let (mut all, looked) = Manifests::start(mounts(), Bounds::USUAL);
    let (seen, _) = looked.mounts.first().expect("one mount");
    assert_eq!(seen.missed, 0, "all of it is looked at");
    let entries = seen.looked_at;
    let idle = median(|| assert!(all.next(false, Bounds::USUAL).mounts[0].1.is_empty()));
    println!(
        "{entries:6} entries   walk with lstat {floor:7.2} ms   before it runs {first:7.2} ms   \
         nothing changed {idle:7.2} ms   ({:.1} times the walk)",
        idle / floor.max(0.001)
    );
    if files < CHANGED {
        return;
    }
    let mut round = 0_u8;
    let changed = median_of(|| {
        round += 1;
        for n in 0..CHANGED {
            let path = temp.path().join(format!("d{}/f{n}", n / WIDTH));
            fs::write(path, [round; FILE_BYTES]).expect("file");
        }
        let looked = all.next(false, Bounds::USUAL);
        assert_eq!(looked.mounts[0].1.len(), CHANGED);
        looked.took.as_secs_f64() * 1_000.0
    });
    let bytes = vec![7; CHANGED * FILE_BYTES];
    let hash = median(|| assert_ne!(audit::merkle::sha256(&bytes), [0; 32]));
    println!(
        "                 {CHANGED} files of {FILE_BYTES} bytes changed {changed:7.2} ms   \
         hash of as many bytes {hash:.2} ms"
    );
}

/// Milliseconds of an act.
fn median(mut act: impl FnMut()) -> f64 {
    median_of(|| {
        let begun = Instant::now();
        act();
        begun.elapsed().as_secs_f64() * 1_000.0
    })
}

/// The middle of several figures.
fn median_of(measure: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = std::iter::repeat_with(measure).take(ROUNDS).collect();
    all.sort_by(f64::total_cmp);
    all[ROUNDS / 2]
}

fn walk(dir: &Path) -> u64 {
    let (mut count, mut due) = (0, vec![dir.to_owned()]);
    while let Some(folder) = due.pop() {
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            let meta = entry.metadata().expect("entry");
            count += meta.len().min(1);
            if meta.is_dir() {
                due.push(entry.path());
            }
        }
    }
    count
}
