//! Manifests against what was really done, against hostile trees, and at every bound.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::names::{escaped, hex, shown};
use super::picture::Picture;
use super::{Bounds, Left, Looked, Manifests, Mount, Place, contents, look};
use model::{FileAct, FileChange, MountSeen};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::{Rng, TempDir};

const WIDE: Bounds =
    Bounds { entries: 1 << 20, bytes: 1 << 30, time: Duration::from_secs(600), listed: 1 << 20 };

fn start(dir: &Path, bounds: Bounds) -> (Manifests, Looked) {
    start_on(dir, bounds, true)
}

/// Whatever file system the tests run on.
fn start_on(dir: &Path, bounds: Bounds, notes_mapped: bool) -> (Manifests, Looked) {
    let place = Ok(Place::open(dir).unwrap().noting(notes_mapped));
    let mount = Mount { inside: "/mnt/x".into(), place, last: Picture::default() };
    let mut all = Manifests { mounts: vec![mount] };
    let looked = all.each(bounds, Mount::first);
    (all, looked)
}

fn only(looked: &Looked) -> (&MountSeen, &[FileChange]) {
    let [(seen, changes)] = &looked.mounts[..] else { panic!("{looked:?}") };
    (seen, changes)
}

/// `created a file 3`, in order.
fn told(looked: &Looked) -> Vec<String> {
    let line = |c: &FileChange| format!("{} {} {} {}", c.act.name(), c.path, c.sort, c.bytes);
    only(looked).1.iter().map(line).collect()
}

/// Long enough that what was done before does not count as fresh.
fn settle() {
    std::thread::sleep(Duration::from_millis(40));
}

#[test]
fn what_was_done_is_told_with_size_and_digest_and_nothing_else() {
    let temp = TempDir::new("manifest").unwrap();
    let dir = temp.path();
    for name in ["kept", "grown", "gone", "open"] {
        fs::write(dir.join(name), "one").unwrap();
    }
    fs::create_dir_all(dir.join("old/inner")).unwrap();
    fs::write(dir.join("old/inner/f"), "x").unwrap();
    settle();
    let (mut manifests, first) = start(dir, WIDE);
    assert_eq!((only(&first).0.looked_at, only(&first).1.len(), first.read_bytes), (7, 0, 0));
    fs::write(dir.join("grown"), "more").unwrap();
    fs::remove_file(dir.join("gone")).unwrap();
    fs::set_permissions(dir.join("open"), fs::Permissions::from_mode(0o4777)).unwrap();
    fs::rename(dir.join("old"), dir.join("new")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    symlink("/etc/passwd", dir.join("link")).unwrap();
    let looked = manifests.next(false, WIDE);
    let wanted = [
        "created empty folder 0",
        "deleted gone file 3",
        "changed grown file 4",
        "created link link 11",
        "created new folder 0",
        "created new/inner folder 0",
        "created new/inner/f file 1",
        "deleted old folder 0",
        "deleted old/inner folder 0",
        "deleted old/inner/f file 1",
        "changed open file 3",
    ];
    assert_eq!(told(&looked), wanted);
    let (seen, changes) = only(&looked);
    assert_eq!((seen.created, seen.changed, seen.deleted, seen.missed), (5, 2, 4, 0));
    let digest = |text: &str| Some(hex(&audit::merkle::sha256(text.as_bytes())));
    assert_eq!(changes[2].sha256, digest("more"));
    assert_eq!(changes[3].sha256, digest("/etc/passwd"), "what it says, not where it leads");
    assert_eq!(changes[10].mode, "4777");
    assert_eq!(told(&manifests.next(false, WIDE)), Vec::<String>::new(), "once");
}

#[test]
fn a_change_that_hides_its_size_and_time_is_told() {
    let temp = TempDir::new("manifest").unwrap();
    let file = temp.path().join("f");
    fs::write(&file, "one").unwrap();
    let before = fs::metadata(&file).unwrap();
    settle();
    let (mut manifests, _) = start(temp.path(), WIDE);
    fs::write(&file, "two").unwrap();
    fs::File::open(&file).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(&file).unwrap();
    assert_eq!((after.len(), after.mtime_nsec()), (before.len(), before.mtime_nsec()));
    assert_eq!(told(&manifests.next(false, WIDE)), ["changed f file 3"]);
}

#[test]
fn changes_within_one_tick_of_the_clock_are_told() {
    let temp = TempDir::new("manifest").unwrap();
    let file = temp.path().join("f");
    for round in 0..200_u32 {
        fs::write(&file, format!("{round:08}")).unwrap();
        let (mut manifests, _) = start(temp.path(), WIDE);
        fs::write(&file, format!("{:08}", round + 1_000)).unwrap();
        assert_eq!(told(&manifests.next(false, WIDE)), ["changed f file 8"], "round {round}");
        fs::write(&file, format!("{:08}", round + 2_000)).unwrap();
        assert_eq!(told(&manifests.next(false, WIDE)), ["changed f file 8"], "round {round}");
    }
    // On a kernel with finer clocks the times would have told it, so as if they had not.
    settle();
    let (mut manifests, _) = start(temp.path(), WIDE);
    for (settled, wanted) in [(false, &["changed f file 8"][..]), (true, &[])] {
        let entry = manifests.mounts[0].last.entries.get_mut(&b"f"[..]).unwrap();
        (entry.settled, entry.digest) = (settled, Some([7; 32]));
        assert_eq!(told(&manifests.next(false, WIDE)), wanted);
    }
}

#[test]
fn what_changed_before_is_read_again_at_the_end() {
    let temp = TempDir::new("manifest").unwrap();
    fs::write(temp.path().join("f"), "one").unwrap();
    settle();
    let (mut manifests, _) = start(temp.path(), WIDE);
    fs::write(temp.path().join("f"), "two").unwrap();
    settle();
    assert_eq!(told(&manifests.next(false, WIDE)), ["changed f file 3"]);
    // As if a program that has it mapped had written without the kernel's noting it.
    let path: &[u8] = b"f";
    let entry = manifests.mounts[0].last.entries.get_mut(path).unwrap();
    entry.digest = Some([7; 32]);
    assert_eq!(manifests.next(false, WIDE).read_bytes, 0, "not while it runs");
    let last = manifests.next(true, WIDE);
    assert_eq!((told(&last), last.read_bytes), (vec!["changed f file 3".to_owned()], 3));
}

#[test]
fn where_mapped_writes_are_not_noted_everything_is_read_before_and_after() {
    let temp = TempDir::new("manifest").unwrap();
    for name in ["a", "b", "c"] {
        fs::write(temp.path().join(name), vec![b'x'; 60]).unwrap();
    }
    settle();
    let (mut manifests, first) = start_on(temp.path(), WIDE, false);
    assert_eq!((first.read_bytes, only(&first).0.unread), (180, 0));
    // As if a program had written through a mapping: nothing is noted.
    let path: &[u8] = b"b";
    manifests.mounts[0].last.entries.get_mut(path).unwrap().digest = Some([7; 32]);
    assert_eq!(manifests.next(false, WIDE).read_bytes, 0, "not while it runs");
    let last = manifests.next(true, WIDE);
    assert_eq!((told(&last), last.read_bytes), (vec!["changed b file 60".to_owned()], 180));
    // What the bounds kept from being read, before or after, is counted.
    let tight = Bounds { bytes: 100, ..WIDE };
    let (mut manifests, first) = start_on(temp.path(), tight, false);
    assert_eq!((first.read_bytes, only(&first).0.unread), (60, 2));
    let last = manifests.next(true, WIDE);
    assert_eq!((last.read_bytes, only(&last).0.unread), (60, 2), "there is nothing to compare");
    let (mut manifests, _) = start_on(temp.path(), WIDE, false);
    assert_eq!(only(&manifests.next(true, tight)).0.unread, 2);
}

#[test]
fn only_file_systems_that_are_known_to_note_mapped_writes_are_trusted() {
    // ext4, xfs, btrfs, f2fs
    for noting in [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010] {
        assert!(look::notes_mapped(noting), "{noting:#x}");
    }
    // tmpfs, ramfs, overlay, fuse, nfs, 9p, zfs
    for other in
        [0x0102_1994, 0x8584_58F6, 0x794C_7630, 0x6573_5546, 0x6969, 0x0102_1997, 0x2FC1_2FC1]
    {
        assert!(!look::notes_mapped(other), "{other:#x}");
    }
}

#[test]
fn nothing_outside_is_looked_at_and_nothing_waits() {
    let temp = TempDir::new("manifest").unwrap();
    let (inside, outside) = (temp.path().join("in"), temp.path().join("out"));
    fs::create_dir_all(inside.join("d")).unwrap();
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("secret"), "not to be read").unwrap();
    settle();
    let (mut manifests, _) = start(&inside, WIDE);
    symlink(&outside, inside.join("out")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    fs::remove_dir(inside.join("d")).unwrap();
    symlink(&outside, inside.join("d")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, inside.join("pipe"), fifo, mode, 0).unwrap();
    let looked = manifests.next(true, WIDE);
    let names: Vec<&str> = only(&looked).1.iter().map(|c| &*c.path).collect();
    assert_eq!(names, ["d", "out", "pipe", "up"]);
    assert_eq!(only(&looked).1[2].sort, "pipe");
    assert_eq!(looked.read_bytes, 0, "no file was read");
    // A mount whose path has a link in it is not opened.
    let through = inside.join("out/deep");
    let (_, first) = Manifests::start(vec![("/mnt/x".into(), through)], WIDE);
    let (seen, _) = only(&first);
    assert_eq!((seen.looked_at, seen.missed), (0, 1), "{seen:?}");
}

/// Whoever swaps a folder for a link between a look and the reading gains nothing by it.
#[test]
fn a_link_on_the_way_is_not_followed_when_a_file_is_read() {
    let temp = TempDir::new("manifest").unwrap();
    let (inside, outside) = (temp.path().join("in"), temp.path().join("out"));
    for dir in [&inside, &outside] {
        fs::create_dir_all(dir.join("d")).unwrap();
        fs::write(dir.join("d/f"), "contents").unwrap();
    }
    let wanted = Place::open(&outside).unwrap();
    let seen = look::look(&wanted, &mut Left::new(WIDE)).entries.remove(&b"d/f"[..]).unwrap();
    assert!(contents(&wanted, b"d/f", &seen, &mut Left::new(WIDE)).is_ok(), "the reference");
    fs::remove_dir_all(inside.join("d")).unwrap();
    symlink(outside.join("d"), inside.join("d")).unwrap();
    symlink(outside.join("d/f"), inside.join("f")).unwrap();
    let place = Place::open(&inside).unwrap();
    for path in [&b"d/f"[..], b"f", b"../out/d/f"] {
        let read = contents(&place, path, &seen, &mut Left::new(WIDE));
        assert!(read.is_err(), "{path:?}: {read:?}");
    }
}

#[test]
fn names_of_any_bytes_stay_apart_and_show_nothing_hidden() {
    let mut rng = Rng::from_env();
    let mut known: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..rng.below(6))
            .map(|_| *rng.pick(b"\\x0a\n\x1b\xff\xc3\xa9e\"\x7f\xe2\x80\xae").unwrap())
            .collect();
        let text = escaped(&bytes);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        if let Some(other) = known.insert(text.clone(), bytes.clone()) {
            assert_eq!(other, bytes, "two names are shown as {text:?}");
        }
    }
    assert_eq!(escaped(b"a\\b\xff\n\xc3\xa9"), "a\\x5cb\\xff\\x0a\u{e9}");
    let (long, other) = (vec![b'\n'; 3_000], vec![b'\n'; 3_001]);
    assert!(shown(&long).len() <= model::MAX_INLINE_BYTES);
    assert_ne!(shown(&long), shown(&other), "the digest tells them apart");
}

#[test]
fn hostile_names_are_told_as_they_are() {
    let temp = TempDir::new("manifest").unwrap();
    let (mut manifests, _) = start(temp.path(), WIDE);
    let names: [&[u8]; 4] = [b"\xff\xfe", b"new\nline", b"\x1b[2K", b"\\x41"];
    for name in names {
        fs::write(temp.path().join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let mut found: Vec<String> =
        only(&manifests.next(false, WIDE)).1.iter().map(|c| c.path.clone()).collect();
    let mut wanted: Vec<String> = names.iter().map(|n| escaped(n)).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn what_is_not_looked_at_is_said_and_neither_made_up_nor_lost() {
    let temp = TempDir::new("manifest").unwrap();
    let dir = temp.path();
    for folder in ["a", "b"] {
        fs::create_dir(dir.join(folder)).unwrap();
        for file in 0..10 {
            fs::write(dir.join(folder).join(file.to_string()), "x").unwrap();
        }
    }
    settle();
    let tight = Bounds { entries: 15, ..WIDE };
    let (mut manifests, first) = start(dir, WIDE);
    assert_eq!(only(&first).0.missed, 0);
    fs::write(dir.join("b/late"), "x").unwrap();
    fs::remove_file(dir.join("b/0")).unwrap();
    fs::write(dir.join("a/1"), "other").unwrap();
    let looked = manifests.next(false, tight);
    assert_eq!(told(&looked), ["changed a/1 file 5"], "b was not looked at");
    let (seen, _) = only(&looked);
    assert_eq!(seen.missed_first, ["b: there are more than 15 entries"]);
    // With more room everything is there, once.
    assert_eq!(told(&manifests.next(false, WIDE)), ["deleted b/0 file 1", "created b/late file 1"]);
    // What was not looked at before the program ran is not said to be new.
    let (mut manifests, first) = start(dir, tight);
    assert_eq!(only(&first).0.missed, 1);
    let looked = manifests.next(false, WIDE);
    assert_eq!((told(&looked).len(), only(&looked).0.missed), (0, 0));
}

#[test]
fn bytes_lists_and_time_have_ends_that_are_said() {
    let temp = TempDir::new("manifest").unwrap();
    let (mut manifests, _) = start(temp.path(), WIDE);
    for name in ["a", "b", "c"] {
        fs::write(temp.path().join(name), vec![b'x'; 60]).unwrap();
    }
    let looked = manifests.next(false, Bounds { bytes: 100, listed: 2, ..WIDE });
    let (seen, changes) = only(&looked);
    assert_eq!((seen.created, seen.unlisted, changes.len(), looked.read_bytes), (3, 1, 2, 60));
    assert!(changes[0].sha256.is_some() && changes[1].sha256.is_none());
    assert_eq!(seen.unread, 2, "one that is named, and one that had just changed");
    let why = changes[1].unread.as_deref().unwrap();
    assert_eq!(why, "more than 100 bytes would be read in all");
    let looked = manifests.next(false, Bounds { time: Duration::ZERO, ..WIDE });
    assert_eq!(only(&looked).0.missed_first, [".: there was no time left of 0 ms"]);
    assert_eq!(told(&looked), Vec::<String>::new());
}

#[test]
fn a_path_deeper_than_the_kernel_takes_is_said() {
    let temp = TempDir::new("manifest").unwrap();
    let mut here = rustix::fs::open(
        temp.path(),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let name = "d".repeat(200);
    for _ in 0..40 {
        rustix::fs::mkdirat(&here, &*name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        here = rustix::fs::openat(&here, &*name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    let (_, first) = start(temp.path(), WIDE);
    let (seen, _) = only(&first);
    assert_eq!(seen.missed, 1, "{seen:?}");
    assert!(seen.missed_first[0].ends_with("its path is longer than 3800 bytes"), "{seen:?}");
}

#[test]
fn a_single_file_can_be_a_mount() {
    let temp = TempDir::new("manifest").unwrap();
    let file = temp.path().join("f");
    fs::write(&file, "one").unwrap();
    settle();
    let (mut manifests, first) = start(&file, WIDE);
    assert_eq!(only(&first).0.looked_at, 1);
    fs::write(&file, "more").unwrap();
    let looked = manifests.next(false, WIDE);
    assert_eq!(told(&looked), ["changed  file 4"]);
    assert_eq!(only(&looked).1[0].sha256, Some(hex(&audit::merkle::sha256(b"more"))));
}

/// Somebody who works against the look while it goes on; afterwards the last look has what is.
#[test]
fn a_racing_program_breaks_nothing_and_the_last_look_is_right() {
    let temp = TempDir::new("manifest").unwrap();
    let dir = temp.path().to_owned();
    let (mut manifests, _) = start(&dir, WIDE);
    let stop = Arc::new(AtomicBool::new(false));
    let (until, at) = (Arc::clone(&stop), dir.clone());
    let racer = std::thread::spawn(move || {
        let mut rng = Rng::new(7);
        while !until.load(Ordering::Relaxed) {
            act(&at, &mut rng);
        }
    });
    let mut model: BTreeMap<String, FileChange> = BTreeMap::new();
    for _ in 0..200 {
        replay(&mut model, &manifests.next(false, WIDE));
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    replay(&mut model, &manifests.next(true, WIDE));
    assert_eq!(names_of(&model), there(&dir));
    for (path, change) in model.iter().filter(|(_, c)| c.sort == "file") {
        let bytes = fs::read(dir.join(path)).unwrap();
        assert_eq!(change.sha256, Some(hex(&audit::merkle::sha256(&bytes))), "{path}");
    }
}

/// Whatever is done, manifests put together give what is there.
#[test]
fn any_history_is_told_so_that_it_can_be_replayed() {
    let mut rng = Rng::from_env();
    for _ in 0..40 {
        let temp = TempDir::new("manifest").unwrap();
        let (mut manifests, _) = start(temp.path(), WIDE);
        let mut model = BTreeMap::new();
        for _ in 0..10 {
            for _ in 0..rng.below(12) {
                act(temp.path(), &mut rng);
            }
            let looked = manifests.next(false, WIDE);
            for change in only(&looked).1 {
                let known: bool = model.contains_key(&change.path);
                assert_eq!(known, change.act != FileAct::Created, "{change:?}");
            }
            replay(&mut model, &looked);
            assert_eq!(names_of(&model), there(temp.path()));
            for (path, change) in model.iter().filter(|(_, c)| c.sort == "file") {
                let bytes = fs::read(temp.path().join(path)).unwrap();
                assert_eq!(change.sha256, Some(hex(&audit::merkle::sha256(&bytes))), "{path}");
            }
        }
    }
}

/// One thing that a program may do; it may fail.
fn act(dir: &Path, rng: &mut Rng) {
    let path = |rng: &mut Rng| -> PathBuf {
        let depth = 1 + rng.below(3);
        let name = |rng: &mut Rng| (b'a' + rng.below(4) as u8) as char;
        (0..depth).fold(dir.to_owned(), |at, _| at.join(name(rng).to_string()))
    };
    let (one, other) = (path(rng), path(rng));
    match rng.below(7) {
        0 | 1 => drop(fs::write(&one, rng.next_u64().to_le_bytes())),
        2 => drop(fs::create_dir(&one)),
        3 => drop(fs::remove_dir_all(&one)),
        4 => drop(fs::remove_file(&one)),
        5 => drop(fs::rename(&one, &other)),
        _ => drop(symlink("/", &one)),
    }
}

fn replay(model: &mut BTreeMap<String, FileChange>, looked: &Looked) {
    let (seen, changes) = only(looked);
    assert_eq!(seen.unlisted, 0);
    for change in changes {
        match change.act {
            FileAct::Deleted => drop(model.remove(&change.path)),
            _ => drop(model.insert(change.path.clone(), change.clone())),
        }
    }
}

fn names_of(model: &BTreeMap<String, FileChange>) -> Vec<String> {
    // The mount itself was there before.
    model.keys().filter(|path| !path.is_empty()).cloned().collect()
}

/// Every name below, in order, by the standard library.
fn there(dir: &Path) -> Vec<String> {
    let (mut all, mut due) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = due.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                due.push(path.clone());
            }
            let name = path.strip_prefix(dir).unwrap().to_owned().into_os_string().into_vec();
            all.push(escaped(&name));
        }
    }
    all.sort();
    all
}
