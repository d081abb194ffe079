//! Archives that were made to do harm: each refused or made harmless, and nothing outside touched.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{DIR, FILE, Lab, SYM, Tar, gzip, layout, zstd};
use nanoclaw_images::{Digest, ErrorKind, Limits, Unwatched};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

#[test]
fn names_that_climb_out_are_refused() {
    let lab = Lab::new("climb");
    for name in ["../canary", "a/../../canary", "..", "a/.."] {
        lab.refused(&Tar::default().dir("a").file(name, "dead").end(), "climbs out");
    }
    lab.refused(&Tar::default().file("x", "").hard_link("y", "../../canary").end(), "climbs out");
    lab.refused(
        &Tar::default().file("a\0b/c", "x").pax(&[("path", "a\0b")]).file("x", "").end(),
        "zero byte",
    );
}

#[test]
fn absolute_names_are_the_trees_own() {
    let lab = Lab::new("absolute");
    let canary = lab.dir.path().join("canary").display().to_string();
    let root = lab.plain(Tar::default().file(&canary, "inside").file("/etc/passwd", "inside"));
    assert_eq!(fs::read_to_string(root.join("etc/passwd")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(root.join(&canary[1..])).unwrap(), "inside");
    assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
}

#[test]
fn links_lead_nowhere_outside() {
    let lab = Lab::new("links");
    let out = lab.dir.path().display().to_string();
    let before = lab.files();
    // Through a link to the host, by an absolute and by a climbing target, directly and in a chain.
    let climbing = format!("{}{out}", "../".repeat(10));
    let tar = Tar::default()
        .symlink("a", &out)
        .file("a/canary", "dead")
        .symlink("b", &climbing)
        .file("b/canary2", "dead")
        .symlink("c", "b")
        .file("c/deep/er", "dead")
        .file("etc/x", "1")
        .symlink("file", "/canary")
        .file("file", "a file in the link's place");
    let root = lab.plain(tar);
    assert_eq!(fs::read_to_string(lab.dir.path().join("canary")).unwrap(), "alive");
    assert!(!lab.dir.path().join("canary2").exists() && !lab.dir.path().join("deep").exists());
    let inside = root.join(&out[1..]);
    assert_eq!(fs::read_to_string(inside.join("canary")).unwrap(), "dead");
    assert_eq!(fs::read_to_string(inside.join("deep/er")).unwrap(), "dead");
    assert!(fs::symlink_metadata(root.join("file")).unwrap().is_file());
    assert!(before.is_empty() || before.iter().all(|p| p.starts_with(&out)));
    // A circle of links is refused, not followed for ever.
    let circle = Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", "");
    lab.refused_after(&circle.end(), "too many links");
    // No hard link to a file of the host, by name or through a link.
    let through = Tar::default().symlink("a", &out).hard_link("b", "a/canary");
    lab.refused_after(&through.end(), "leads nowhere");
    lab.refused_after(&Tar::default().hard_link("b", "/etc/hostname").end(), "leads nowhere");
    lab.refused_after(&Tar::default().dir("d").hard_link("b", "d").end(), "leads to no file");
}

impl Lab {
    /// As `refused`, of a file or folder that is there, within these limits.
    fn refused_by(&self, path: &Path, limits: &Limits, words: &str) {
        let before = self.files();
        let error = self.store.import(path, None, limits, &Unwatched).unwrap_err();
        assert!(error.cause.contains(words), "{error}");
        self.untouched(&before);
    }

    /// As `refused`, in a store that holds something already.
    fn refused_after(&self, bytes: &[u8], words: &str) {
        self.refused(bytes, words);
    }
}

#[test]
fn a_link_swapped_for_a_folder_between_entries_is_not_written_through() {
    let lab = Lab::new("swap");
    let out = lab.dir.path().display().to_string();
    // The folder is used (and remembered), becomes a link to outside, and is used again.
    let tar = Tar::default()
        .dir("d")
        .file("d/one", "1")
        .symlink("d", &out)
        .file("d/canary", "dead")
        .dir("d")
        .file("d/two", "2");
    let root = lab.plain(tar);
    assert_eq!(fs::read_to_string(lab.dir.path().join("canary")).unwrap(), "alive");
    assert_eq!(fs::read_to_string(root.join("d/two")).unwrap(), "2");
    assert!(!root.join("d/one").exists());
    assert_eq!(fs::read_to_string(root.join(&out[1..]).join("canary")).unwrap(), "dead");
    // The same over layers.
    let lower = Tar::default().symlink("etc", &out);
    let root = lab.layers(vec![lower, Tar::default().file("etc/canary", "dead")]).unwrap();
    assert_eq!(fs::read_to_string(lab.dir.path().join("canary")).unwrap(), "alive");
    assert!(root.join(&out[1..]).join("canary").exists());
}

#[test]
fn devices_are_left_out_and_privileged_bits_dropped() {
    let lab = Lab::new("devices");
    let mut tar = Tar::default().file_mode("su", "x", 0o4755).file_mode("t", "x", 0o2755);
    for (name, kind) in [("dev/mem", b'3'), ("dev/sda", b'4'), ("run/pipe", b'6')] {
        tar.header(name.as_bytes(), kind, 0o666, 0, b"");
    }
    tar.header(b"tmp", DIR, 0o1777, 0, b"");
    tar.header(b"locked", DIR, 0o000, 0, b"");
    let tar = tar.pax(&[("SCHILY.xattr.security.capability", "x")]).file_mode("locked/f", "x", 0);
    let image = lab.import(&lab.archive("d.tar", &tar.end())).unwrap();
    let root = lab.root(&image);
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("su"), mode("t"), mode("tmp")), (0o755, 0o755, 0o777));
    assert_eq!((mode("locked"), mode("locked/f")), (0o700, 0o400));
    assert!(!root.join("dev").exists() && !root.join("run").exists());
    assert_eq!(fs::metadata(root.join("su")).unwrap().uid(), own_uid());
    let report = image.report;
    assert_eq!((report.devices, report.mode_bits, report.attributes), (3, 3, 1));
}

fn own_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

#[test]
fn what_is_not_understood_is_refused() {
    let lab = Lab::new("strange");
    let mut sparse = Tar::default();
    sparse.header(b"huge", b'S', 0o644, 1 << 40, b"");
    lab.refused(&sparse.end(), "sparse");
    let pax = [("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9223372036854775807")];
    lab.refused(&Tar::default().pax(&pax).file("huge", "x").end(), "sparse");
    lab.refused(&Tar::default().with("x", b'Z', "").end(), "unknown kind");
    let mut wrong = Tar::default().file("x", "y").end();
    wrong[0] = b'z';
    lab.refused(&wrong, "wrong checksum");
    let whole = Tar::default().file("x", &"y".repeat(5_000)).end();
    for cut in [100, 700, 3_000] {
        lab.refused(&whole[..cut], "cut off");
    }
    lab.refused(b"no archive at all, only words", "cut off");
    lab.refused(&[0; 4096], "empty, or no tar");
    lab.refused(&gzip(b"not a tar"), "cut off");
    let mut broken = gzip(&whole);
    broken.truncate(40);
    lab.refused(&broken, "cannot be read");
    let mut negative = Tar::default();
    negative.header(b"x", FILE, 0o644, 0, b"");
    negative.0[124..136].copy_from_slice(&[0xff; 12]);
    negative.0[148..156].copy_from_slice(b"        ");
    let sum: u32 = negative.0[..512].iter().map(|b| u32::from(*b)).sum();
    negative.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    lab.refused(&negative.end(), "bad size");
    lab.refused(&Tar::default().with(".wh.", FILE, "").end(), "names no file");
    lab.refused(&Tar::default().with("a/.wh...", FILE, "").end(), "names no file");
}

#[test]
fn names_and_links_have_their_limits() {
    let lab = Lab::new("long");
    let long = "d/".repeat(3_000);
    lab.refused(&Tar::default().gnu(b'L', &long).file("x", "").end(), "extended header");
    lab.refused(&Tar::default().pax(&[("path", &long)]).file("x", "").end(), "too long");
    lab.refused(&Tar::default().gnu(b'L', &"d/".repeat(200)).file("x", "").end(), "too deep");
    lab.refused(&Tar::default().gnu(b'L', &"n".repeat(256)).file("x", "").end(), "too long");
    let mut endless = Tar::default();
    for _ in 0..20 {
        endless = endless.pax(&[("path", "x")]);
    }
    lab.refused(&endless.file("x", "").end(), "too many headers");
    let mut large = Tar::default();
    large.header(b"pax", b'x', 0o644, 8 << 30, b"");
    lab.refused(&large.end(), "extended header of 8589934592");
    lab.refused(&Tar::default().with("l", SYM, "").end(), "bad target");
    // Deeper than allowed by way of a link: each entry by itself is short.
    let deep = "d/".repeat(100);
    let tar = Tar::default().gnu(b'L', &format!("{deep}x")).file("x", "");
    let tar = tar.gnu(b'K', &deep).symlink("l", "x").gnu(b'L', &format!("l/{deep}y")).file("y", "");
    lab.refused(&tar.end(), "too many links or folders");
    // What fits is kept, as GNU and as pax write it.
    let name = format!("{}/{}", "n".repeat(200), "m".repeat(200));
    for tar in [Tar::default().gnu(b'L', &name), Tar::default().pax(&[("path", &name)])] {
        assert_eq!(
            fs::read_to_string(lab.plain(tar.file("x", "kept")).join(&name)).unwrap(),
            "kept"
        );
    }
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let lab = Lab::new("bombs");
    let zeros = "\0".repeat(8 << 20);
    let bomb = Tar::default().file("zeros", &zeros).end();
    let small = Limits { slack: 1 << 20, ..Limits::default() };
    for (name, packed) in [("g", gzip(&bomb)), ("z", zstd(&bomb)), ("gg", gzip(&gzip(&bomb)))] {
        let before = lab.files();
        let path = lab.archive(name, &packed);
        let error = lab.store.import(&path, None, &small, &Unwatched).unwrap_err();
        // A compressed archive within a compressed one is not an archive.
        let words = if name == "gg" { "the archive" } else { "decompression bomb" };
        assert!(error.cause.contains(words), "{name}: {error}");
        lab.untouched(&before);
    }
    // Honest runs of zeros pass, in all three forms.
    for packed in [bomb.clone(), gzip(&bomb), zstd(&bomb)] {
        lab.import(&lab.archive("honest.tar", &packed)).unwrap();
    }
    // The sum of all layers counts, and the number of entries, those in between included.
    let total = Limits { unpacked_bytes: 12 << 20, ..Limits::default() };
    let two = layout(&[(gzip(&bomb), bomb.clone()), (zstd(&bomb), bomb.clone())], |_| {});
    let path = lab.archive("two.tar", &two);
    let before = lab.files();
    let error = lab.store.import(&path, None, &total, &Unwatched).unwrap_err();
    assert!(error.cause.contains("\"zeros\" has 8388608 bytes, more than"), "{error}");
    let folders = (0..20).fold(Tar::default(), |tar, at| tar.dir(&at.to_string()));
    let little = Limits { unpacked_bytes: 4 << 10, ..Limits::default() };
    lab.refused_by(&lab.archive("d.tar", &folders.end()), &little, "unpacks to more");
    let few = Limits { entries: 50, ..Limits::default() };
    let many = Tar::default().gnu(b'L', &format!("{}x", "d/".repeat(60))).file("x", "").end();
    let error = lab.store.import(&lab.archive("m.tar", &many), None, &few, &Unwatched).unwrap_err();
    assert!(error.cause.contains("more entries"), "{error}");
    let little = Limits { packed_bytes: 1_000, ..Limits::default() };
    let error = lab.store.import(&path, None, &little, &Unwatched).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    lab.untouched(&before);
}

#[test]
fn documents_that_lie_are_refused() {
    let lab = Lab::new("lies");
    let tar = Tar::default().file("x", "y").end();
    let layer = [(gzip(&tar), tar.clone())];
    let wrong = format!("sha256:{}", "0".repeat(64));
    lab.refused(
        &layout(&layer, |d| d.layers[0]["digest"] = wrong.clone().into()),
        "lacks its file",
    );
    lab.refused(&layout(&layer, |d| d.layers[0]["size"] = 1.into()), "larger than the 1 bytes");
    lab.refused(&layout(&layer, |d| d.layers[0]["size"] = u64::MAX.into()), "more than it may");
    lab.refused(&layout(&layer, |d| d.layers[0]["digest"] = "md5:00".into()), "no SHA-256");
    lab.refused(
        &layout(&layer, |d| d.layers[0]["digest"] = "sha256:../../../../canary".into()),
        "no SHA-256",
    );
    lab.refused(
        &layout(&layer, |d| d.config["rootfs"]["diff_ids"] = vec![wrong.clone()].into()),
        "not the one that the image's configuration names",
    );
    lab.refused(
        &layout(&layer, |d| d.config["rootfs"]["diff_ids"] = serde_json::json!([])),
        "other layers than its manifest",
    );
    lab.refused(&layout(&layer, |d| d.config["architecture"] = "s390x".into()), "\"linux/s390x\"");
    let mut swapped = layout(&layer, |_| {});
    let at = swapped.windows(2).position(|w| w == [0x1f, 0x8b]).unwrap();
    swapped[at + 9] ^= 0xff;
    lab.refused(&swapped, "another digest");
    let many = vec![(tar.clone(), tar.clone()); 129];
    lab.refused(&layout(&many, |_| {}), "129 layers");
}

#[test]
fn sizes_at_the_edge_are_refused() {
    let lab = Lab::new("edge");
    let most = u64::MAX.to_string();
    for name in ["usr/.wh.zz", "plain", "oci-layout"] {
        for size in [&most, "18446744073709551104", "9223372036854775808", "51539607553"] {
            let tar = Tar::default().pax(&[("size", size)]).file(name, "").file("b", "").end();
            lab.refused(&tar, "bytes, more than an image may");
            // In a layer, and as a file of the archive that holds the layers.
            lab.refused(&layout(&[(gzip(&tar), tar.clone())], |_| {}), "more than an image may");
            let good = Tar::default().file("x", "y").end();
            let mut outer = tar[..tar.len() - 1_024].to_vec();
            outer.extend(layout(&[(good.clone(), good)], |_| {}));
            lab.refused(&outer, "more than an image may");
        }
    }
    // A global record counts for every file, a folder's size for nothing.
    let mut global = Tar::default().pax(&[("size", &most)]);
    reflag(&mut global, b'g');
    lab.refused(&global.clone().file("f", "").end(), "more than an image may");
    lab.plain(global.dir("d"));
    // The same in the header's own field, to base 256.
    let mut plain = Tar::default();
    plain.header(b"x", FILE, 0o644, 0, b"");
    plain.0[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &[0xff; 8]].concat());
    reflag(&mut plain, FILE);
    lab.refused(&plain.end(), "more than an image may");
    // Where everything is permitted, the archive is cut off, and no sum wraps.
    let all = Limits {
        packed_bytes: u64::MAX,
        unpacked_bytes: u64::MAX,
        entries: u64::MAX,
        ratio: u64::MAX,
        slack: u64::MAX,
    };
    let tar = Tar::default().pax(&[("size", &most)]).file("usr/.wh.zz", "").file("b", "").end();
    for bytes in [layout(&[(gzip(&tar), tar.clone())], |_| {}), tar] {
        lab.refused_by(&lab.archive("all.tar", &bytes), &all, "cut off");
    }
}

/// Writes the kind and a right checksum into an archive's first header.
fn reflag(tar: &mut Tar, kind: u8) {
    tar.0[156] = kind;
    tar.0[148..156].copy_from_slice(b"        ");
    let sum: u32 = tar.0[..512].iter().map(|b| u32::from(*b)).sum();
    tar.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn a_whiteout_goes_through_no_link_and_hides_nothing_of_its_own_layer() {
    let lab = Lab::new("whiteouts");
    let own = || Tar::default().dir("usr").file("usr/own", "1").symlink("usr/l", "/");
    for hidden in
        ["usr/l/.wh..wh..opq", "usr/l/.wh.usr", "usr/l/usr/.wh..wh..opq", "usr/l/usr/.wh.own"]
    {
        lab.refused(&own().with(hidden, FILE, "").end(), "leads through a link");
        // The place was used a moment before, so that it is remembered.
        let tar = own().file(&hidden.replace(".wh.", ""), "").with(hidden, FILE, "");
        if hidden != "usr/l/.wh.usr" {
            lab.refused(&tar.end(), "leads through a link");
        }
        // And where a lower layer brought the link.
        let error = lab.layers(vec![own(), Tar::default().with(hidden, FILE, "")]).unwrap_err();
        assert!(error.cause.contains("leads through a link"), "{error}");
    }
    // A link itself is hidden by its own name, and what lay behind it stays.
    let root = lab.layers(vec![own(), Tar::default().with("usr/.wh.l", FILE, "")]).unwrap();
    assert!(fs::symlink_metadata(root.join("usr/l")).is_err() && root.join("usr/own").exists());
    // What a layer brought by another way is its own all the same.
    let lower = Tar::default().dir("usr").file("usr/lower", "0").symlink("l", "usr");
    let next = Tar::default()
        .file("l/new", "1")
        .file("l/deep/new", "1")
        .with("usr/.wh.new", FILE, "")
        .with("usr/deep/.wh..wh..opq", FILE, "")
        .with("usr/.wh..wh..opq", FILE, "")
        .file("usr/later", "1")
        .with("usr/.wh..wh..opq", FILE, "");
    let root = lab.layers(vec![lower, next]).unwrap();
    for (file, there) in [("new", true), ("deep/new", true), ("later", true), ("lower", false)] {
        assert_eq!(root.join("usr").join(file).exists(), there, "{file}");
    }
}

#[test]
fn the_way_to_a_place_is_bounded() {
    let lab = Lab::new("steps");
    // Each link leads on to the next one by 1,600 names.
    let mut tar = Tar::default().dir("a");
    for at in 0..39 {
        tar = tar.gnu(b'K', &format!("{}l{}", "a/../".repeat(800), at + 1));
        tar = tar.symlink(&format!("l{at}"), "x");
    }
    let tar = tar.dir("l39");
    lab.refused(&tar.clone().file("l0/f", "").end(), "too many links or folders");
    lab.refused(&tar.clone().file("l38/f", "").end(), "too many links or folders");
    lab.refused(&tar.file("g", "").hard_link("h", "l0/g").end(), "too many links or folders");
    // As many links as the kernel follows, each with as many names as an honest one has, pass.
    let mut tar = Tar::default().dir("a");
    for at in 0..39 {
        tar = tar.symlink(&format!("l{at}"), &format!("{}l{}", "a/../".repeat(9), at + 1));
    }
    let root = lab.plain(tar.dir("l39").file("l0/f", "there"));
    assert_eq!(fs::read_to_string(root.join("l39/f")).unwrap(), "there");
}

#[test]
fn an_image_has_one_slack_not_every_layer() {
    let lab = Lab::new("slack");
    let zeros = "\0".repeat(900 << 10);
    let limits = Limits { slack: 1 << 20, ..Limits::default() };
    let layers = |count: usize, pack: fn(&[u8]) -> Vec<u8>| -> Vec<(Vec<u8>, Vec<u8>)> {
        let tars = (0..count).map(|at| Tar::default().file(&format!("f{at}"), &zeros).end());
        tars.map(|tar| (pack(&tar), tar)).collect()
    };
    for pack in [gzip, zstd] {
        let path = lab.archive("one.tar", &layout(&layers(1, pack), |_| {}));
        lab.store.import(&path, None, &limits, &Unwatched).unwrap();
        let path = lab.archive("eight.tar", &layout(&layers(8, pack), |_| {}));
        lab.refused_by(&path, &limits, "decompression bomb");
    }
    // Layers that are not compressed need none.
    let path = lab.archive("plain.tar", &layout(&layers(8, <[u8]>::to_vec), |_| {}));
    lab.store.import(&path, None, &limits, &Unwatched).unwrap();
    // A compressed archive of compressed layers is held against its own length: the layer's first
    // half is stored, so that its own ratio is an honest one, and shrinks in the archive's.
    let few = Limits { slack: 1 << 20, ratio: 40, ..Limits::default() };
    let front = "0123456789abcdef".repeat(12_500);
    let tar = Tar::default().file("front", &front).file("zeros", &zeros.repeat(4)).end();
    let (stored, packed) = tar.split_at(200_704);
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    std::io::Write::write_all(&mut to, stored).unwrap();
    let layer = [to.finish().unwrap(), gzip(packed)].concat();
    let archive = layout(&[(layer, tar)], |_| {});
    for (name, twice) in [("twice.tar.gz", gzip(&archive)), ("twice.tar.zst", zstd(&archive))] {
        lab.refused_by(&lab.archive(name, &twice), &few, "more than an image may");
    }
    lab.store.import(&lab.archive("honest.tar", &archive), None, &few, &Unwatched).unwrap();
}

#[test]
fn links_at_the_top_are_bounded_together() {
    let lab = Lab::new("top");
    let with = |folder: &str, count: usize, target: &str| {
        (0..count).fold(Tar::default(), |tar, at| {
            tar.gnu(b'K', target).symlink(&format!("{folder}l{at}"), "x")
        })
    };
    let long = "t".repeat(4_000);
    for folder in ["", "etc/", "var/", "home/"] {
        lab.refused(&with(folder, 7, &long).end(), "targets of links in the image's root");
    }
    lab.refused(&with("", 300, &"t".repeat(400)).end(), "targets of links in the image's root");
    lab.plain(with("etc/", 5, &long));
    lab.plain(with("", 300, "usr/lib/x86_64-linux-gnu/libsomething.so"));
    // What a sandbox writes with six letters counts as six.
    lab.refused(&with("", 5, &"\u{1}".repeat(1_000)).end(), "targets of links");
    // Elsewhere there may be as many as there are.
    lab.plain(with("usr/lib/", 20, &long));
}

#[test]
fn a_layout_whose_documents_are_no_files_is_no_root_file_system() {
    let lab = Lab::new("pipes");
    let fifo = |path: &Path| {
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
    };
    let good = lab.dir.path().join("good");
    fs::write(&good, "{}").unwrap();
    for (at, bad) in ["index.json", "oci-layout"].into_iter().enumerate() {
        for kind in ["pipe", "link", "folder", "dangling"] {
            let dir = lab.dir.path().join(format!("layout-{at}-{kind}"));
            fs::create_dir_all(dir.join("etc")).unwrap();
            for name in ["index.json", "oci-layout"].into_iter().filter(|name| *name != bad) {
                fs::write(dir.join(name), "{}").unwrap();
            }
            let place = dir.join(bad);
            match kind {
                "pipe" => fifo(&place),
                "link" => symlink(&good, &place).unwrap(),
                "dangling" => symlink("nowhere", &place).unwrap(),
                _ => fs::create_dir(&place).unwrap(),
            }
            lab.refused_by(&dir, &Limits::default(), &format!("{bad} is no ordinary file"));
        }
    }
    // A blob that is a pipe is not waited for.
    let tar = Tar::default().file("x", "y").end();
    let layer = format!("blobs/sha256/{}", Digest::of(&tar).hex());
    let dir = lab.dir.path().join("unpacked");
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let archive = layout(&[(tar.clone(), tar)], |_| {});
    let mut rest = archive.as_slice();
    while rest[0] != 0 {
        let text = |at: std::ops::Range<usize>| String::from_utf8_lossy(&rest[at]).into_owned();
        let size = usize::from_str_radix(&text(124..135), 8).unwrap();
        fs::write(dir.join(text(0..100).trim_matches('\0')), &rest[512..512 + size]).unwrap();
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    lab.import(&dir).unwrap();
    fs::remove_file(dir.join(&layer)).unwrap();
    fifo(&dir.join(&layer));
    lab.refused_by(&dir, &Limits::default(), "is no ordinary file");
}
