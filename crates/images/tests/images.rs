//! What is imported is what is there, and stays so.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use common::{FILE, Lab, Tar, gzip, layout, zstd};
use model::{ImageName, ImageRef};
use nanoclaw_images::{Error, ErrorKind, Event, Image, Limits, Store, Unwatched, Watch};
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn name(text: &str) -> ImageName {
    ImageName::parse(text).unwrap()
}

fn reference(image: &Image) -> ImageRef {
    ImageRef::parse(&image.reference()).unwrap()
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap()
}

#[test]
fn layers_are_applied_in_order_with_whiteouts() {
    let lab = Lab::new("layers");
    let base = Tar::default()
        .dir("etc")
        .file("etc/a", "1")
        .file("etc/b", "1")
        .dir("opt/old")
        .file("opt/old/x", "1")
        .file("opt/kept", "1")
        .dir("swap")
        .file("swap/inner", "1")
        .file("file", "1")
        .file("twice", "first")
        .file("twice", "second");
    let next = Tar::default()
        .with("etc/.wh.a", FILE, "")
        .file("etc/b", "2")
        .dir("opt")
        .file("opt/new", "2")
        .with("opt/.wh..wh..opq", FILE, "")
        .with("missing/.wh.nothing", FILE, "")
        .file("swap", "now a file")
        .dir("file")
        .file("file/inner", "now a folder")
        .hard_link("hard", "etc/b")
        .symlink("soft", "etc/b");
    let last = Tar::default().file("etc/a", "3").file("etc/own", "3").with("etc/.wh.own", FILE, "");
    let root = lab.layers(vec![base, next, last]).unwrap();
    assert_eq!(read(&root, "etc/a"), "3");
    assert_eq!(read(&root, "etc/b"), "2");
    // A whiteout hides what lower layers brought, not what its own layer did.
    assert_eq!(read(&root, "etc/own"), "3");
    assert_eq!(read(&root, "opt/new"), "2");
    assert!(!root.join("opt/old").exists() && !root.join("opt/kept").exists());
    assert!(!root.join("missing").exists());
    assert_eq!(read(&root, "swap"), "now a file");
    assert_eq!(read(&root, "file/inner"), "now a folder");
    assert_eq!(read(&root, "twice"), "second");
    assert_eq!(fs::read_link(root.join("soft")).unwrap(), Path::new("etc/b"));
    let inode = |file: &str| fs::metadata(root.join(file)).unwrap().ino();
    assert_eq!(inode("hard"), inode("etc/b"));
    assert!(!root.join("etc/.wh.a").exists());
}

#[test]
fn every_form_gives_the_same_tree() {
    let lab = Lab::new("forms");
    let tar =
        Tar::default().dir("bin").file_mode("bin/tool", "#!", 0o755).symlink("sh", "bin/tool");
    let tar = tar.end();
    let mut digests = Vec::new();
    for (file, bytes) in
        [("a.tar", tar.clone()), ("b.tar.gz", gzip(&tar)), ("c.tar.zst", zstd(&tar))]
    {
        let image = lab.import(&lab.archive(file, &bytes)).unwrap();
        assert_eq!(image.name.as_str(), &file[..1]);
        let root = lab.root(&image);
        assert_eq!(read(&root, "bin/tool"), "#!");
        let mode = fs::metadata(root.join("bin/tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::metadata(root.join("bin/tool")).unwrap().mtime(), 1_700_000_000);
        digests.push(image.digest);
    }
    // Two gzip members one after the other, and a zstd frame to be skipped, are one stream.
    let (front, back) = tar.split_at(700);
    let joined = [gzip(front), gzip(back)].concat();
    assert_eq!(read(&lab.root(&lab.import(&lab.archive("j", &joined)).unwrap()), "bin/tool"), "#!");
    let skipped = [vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd(&tar)].concat();
    assert_eq!(
        read(&lab.root(&lab.import(&lab.archive("s", &skipped)).unwrap()), "bin/tool"),
        "#!"
    );
    // The same bytes give the same digest, at another time, under another name.
    let again = lab.store.import(
        &lab.archive("a.tar", &tar),
        Some(&name("team/other:2")),
        &Limits::default(),
        &Unwatched,
    );
    assert_eq!(again.unwrap().digest, digests[0]);
    let named: Vec<String> = lab.store.list().unwrap().iter().map(|i| i.name.to_string()).collect();
    assert_eq!(named, ["a", "b", "c", "j", "s", "team/other:2"]);
}

#[test]
fn a_folder_is_an_image_too() {
    let lab = Lab::new("folder");
    let dir = lab.dir.path().join("my-system");
    fs::create_dir_all(dir.join("usr/bin")).unwrap();
    fs::write(dir.join("usr/bin/tool"), "x").unwrap();
    let long = "l".repeat(180);
    fs::write(dir.join("usr").join(&long), "long").unwrap();
    std::os::unix::fs::symlink("usr/bin", dir.join("bin")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("host")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    let image = lab.import(&dir).unwrap();
    drop(socket);
    assert_eq!(image.name.as_str(), "my-system");
    let root = lab.root(&image);
    assert_eq!(read(&root, "bin/tool"), "x");
    assert_eq!(read(&root.join("usr"), &long), "long");
    // A link is packed as one: nothing of the host comes along.
    assert!(fs::symlink_metadata(root.join("host")).unwrap().is_symlink());
    assert!(!root.join("socket").exists());
    assert_eq!(lab.import(&dir).unwrap().digest, image.digest);
}

#[test]
fn archives_of_docker_save_are_read() {
    let lab = Lab::new("docker");
    let layer = Tar::default().file("etc/x", "from docker").end();
    let layer_text = String::from_utf8(layer.clone()).unwrap();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [nanoclaw_images::Digest::of(&layer).to_string()]},
    });
    let manifest = serde_json::json!([{
        "Config": "c.json", "RepoTags": ["tools:1"], "Layers": ["l1/layer.tar"],
    }]);
    let tar = |manifest: &serde_json::Value| {
        Tar::default()
            .dir("l1")
            .file("l1/layer.tar", &layer_text)
            .file("c.json", &config.to_string())
            .file("manifest.json", &manifest.to_string())
            .end()
    };
    let image = lab.import(&lab.archive("d.tar", &gzip(&tar(&manifest)))).unwrap();
    assert_eq!(image.name.as_str(), "tools:1");
    assert_eq!(read(&lab.root(&image), "etc/x"), "from docker");
    let outside = serde_json::json!([{"Config": "c.json", "Layers": ["../../canary"]}]);
    lab.refused(&tar(&outside), "lacks its file");
    let two = serde_json::json!([manifest[0], manifest[0]]);
    lab.refused(&tar(&two), "more than one image");
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let lab = Lab::new("choice");
    let tar = Tar::default().file("x", "y").end();
    let layers = [(tar.clone(), tar)];
    let other = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", "1".repeat(64)), "size": 5,
        "platform": {"os": "linux", "architecture": "s390x"},
    });
    let image =
        lab.import(&lab.archive("c.tar", &layout(&layers, |d| d.extra.push(other.clone()))));
    assert_eq!(image.unwrap().name.as_str(), "made:1");
    let mut same = other;
    same["platform"] = serde_json::Value::Null;
    same["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "second"});
    let two = lab.archive("t.tar", &layout(&layers, |d| d.extra.push(same.clone())));
    let error = lab.import(&two).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(error.remedy.contains("made:1, second"), "{error}");
    let chosen = lab.store.import(&two, Some(&name("made:1")), &Limits::default(), &Unwatched);
    assert_eq!(chosen.unwrap().name.as_str(), "made:1");
}

#[test]
fn a_changed_or_missing_tree_is_not_given_out() {
    let lab = Lab::new("tamper");
    let tar = Tar::default().file("bin/tool", "good").symlink("l", "bin/tool").end();
    let archive = lab.archive("t.tar", &tar);
    let image = lab.import(&archive).unwrap();
    let root = lab.root(&image);
    let give = || lab.store.tree(&reference(&image), &Unwatched).map(|t| t.path().to_owned());
    assert_eq!(give().unwrap(), root);
    let refused = || {
        let error = give().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Changed, "{error}");
        assert!(error.remedy.contains("nanoclaw image remove"), "{error}");
    };
    let tool = root.join("bin/tool");
    let was = fs::metadata(&tool).unwrap().modified().unwrap();
    // Same size, same time: only the time of change tells, and then the bytes.
    fs::write(&tool, "evil").unwrap();
    fs::File::options().write(true).open(&tool).unwrap().set_modified(was).unwrap();
    refused();
    // Put back, it is what it was: the bytes decide.
    fs::write(&tool, "good").unwrap();
    assert_eq!(give().unwrap(), root);
    for spoil in [
        |root: &Path| fs::write(root.join("new"), ""),
        |root: &Path| fs::remove_file(root.join("l")),
        |root: &Path| fs::set_permissions(root.join("bin"), PermissionsExt::from_mode(0o777)),
        |root: &Path| fs::remove_dir_all(root.parent().unwrap()),
    ] {
        spoil(&root).unwrap();
        refused();
        // Importing it again mends it.
        assert_eq!(lab.import(&archive).unwrap().digest, image.digest);
        assert_eq!(give().unwrap(), root);
    }
    // A name that came to mean another image is not what the agent file pins.
    lab.import(&lab.archive("t.tar", &Tar::default().file("x", "other").end())).unwrap();
    let error = give().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Missing);
    assert!(error.cause.contains("as the agent file pins it"), "{error}");
    lab.store.remove(&image.name, &Unwatched).unwrap();
    assert!(give().unwrap_err().cause.contains("there is no image t"));
}

#[test]
fn removing_takes_what_nothing_else_uses() {
    let lab = Lab::new("remove");
    let nothing = lab.files();
    let shared = Tar::default().file("base", &"b".repeat(1_000)).end();
    let own = Tar::default().file("own", "1").end();
    let both = |l: &[&Vec<u8>]| -> Vec<(Vec<u8>, Vec<u8>)> {
        l.iter().map(|t| (gzip(t), (*t).clone())).collect()
    };
    let import = |file: &str, layers: &[&Vec<u8>]| {
        let path = lab.archive(file, &layout(&both(layers), |_| {}));
        lab.store.import(&path, Some(&name(file)), &Limits::default(), &Unwatched).unwrap()
    };
    let one = import("one", &[&shared]);
    let with_one = lab.files();
    let two = import("two", &[&shared, &own]);
    lab.store.remove(&two.name, &Unwatched).unwrap();
    assert_eq!(lab.files(), with_one);
    // Two names of one image: the first removal leaves the second whole.
    let again = import("again", &[&shared]);
    assert_eq!(again.digest, one.digest);
    let used = lab.store.tree(&reference(&again), &Unwatched).unwrap();
    lab.store.remove(&one.name, &Unwatched).unwrap();
    // Held by a sandbox: refused, and nothing is gone.
    let error = lab.store.remove(&again.name, &Unwatched).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InUse);
    assert_eq!(read(used.path(), "base").len(), 1_000);
    drop(used);
    lab.store.remove(&again.name, &Unwatched).unwrap();
    assert_eq!(lab.files(), nothing);
    let error = lab.store.remove(&again.name, &Unwatched).unwrap_err();
    assert_eq!((error.kind, error.remedy.as_str()), (ErrorKind::Missing, "there are: none"));
}

/// Ends the work after so many questions.
struct Impatient(Cell<u32>);

impl Watch for Impatient {
    fn tell(&self, _: Event) {}
    fn cancelled(&self) -> bool {
        self.0.set(self.0.get().saturating_sub(1));
        self.0.get() == 0
    }
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let lab = Lab::new("interrupt");
    let mut tar = Tar::default();
    for at in 0..40 {
        tar = tar.file(&format!("d/{at}"), &"x".repeat(20_000));
    }
    let tar = tar.end();
    let path = lab.archive("i.tar", &layout(&[(gzip(&tar), tar.clone())], |_| {}));
    let before = lab.files();
    let mut finished = false;
    // Everywhere in the beginning, then ever more seldom.
    let patience = std::iter::successors(Some(1_u32), |p| Some(p + 1 + p / 4));
    for patience in patience.take(60) {
        let watch = Impatient(Cell::new(patience));
        match lab.store.import(&path, None, &Limits::default(), &watch) {
            Ok(_) => {
                finished = true;
                assert!(patience > 10, "it was never asked");
                break;
            }
            Err(e) => assert_eq!(e.kind, ErrorKind::Cancelled, "{e}"),
        }
        lab.untouched(&before);
    }
    assert!(finished);
}

#[test]
fn what_a_killed_writer_left_is_swept_up() {
    let lab = Lab::new("killed");
    let images = lab.dir.path().join("images");
    fs::create_dir_all(images.join("tmp/7/root/deep")).unwrap();
    fs::write(images.join("tmp/7/root/deep/x"), "x").unwrap();
    fs::set_permissions(images.join("tmp/7/root"), PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(images.join("blobs").join("2".repeat(64)), "half").unwrap();
    fs::create_dir_all(images.join("trees").join("3".repeat(64))).unwrap();
    let image = lab.import(&lab.archive("k.tar", &Tar::default().file("x", "y").end())).unwrap();
    let left: Vec<_> = lab.files();
    assert!(!left.iter().any(|p| p.starts_with(images.join("tmp/7"))), "{left:?}");
    lab.store.remove(&image.name, &Unwatched).unwrap();
    let left = lab.files();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn writers_wait_for_each_other() {
    let lab = Lab::new("writers");
    let root = lab.dir.path().join("images");
    let paths: Vec<_> = (0..4)
        .map(|at| {
            let tar = Tar::default().file("same", "s").file(&format!("f{at}"), "x");
            lab.archive(&format!("w{at}.tar"), &tar.end())
        })
        .collect();
    std::thread::scope(|scope| {
        for path in &paths {
            let root = &root;
            scope.spawn(move || -> Result<(), Error> {
                let store = Store::open(root)?;
                let image = store.import(path, None, &Limits::default(), &Unwatched)?;
                store.tree(&reference(&image), &Unwatched).map(drop)
            });
        }
    });
    assert_eq!(lab.store.list().unwrap().len(), 4);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(full) = testkit::need("mount").filter(|_| is_root()) else {
        eprintln!("SKIPPED a_full_disk_is_said_and_leaves_nothing: needs root to mount a tmpfs");
        return;
    };
    let lab = Lab::new("full");
    let small = lab.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let run = |program: &Path, args: &[&str]| {
        std::process::Command::new(program).args(args).arg(&small).status().unwrap().success()
    };
    assert!(run(&full, &["-t", "tmpfs", "-o", "size=300k", "none"]));
    let store = Store::open(&small.join("images")).unwrap();
    let tar = Tar::default().file("x", &"y".repeat(200_000)).end();
    let path = lab.archive("full.tar", &tar);
    let error = store.import(&path, None, &Limits::default(), &Unwatched).unwrap_err();
    let left: Vec<_> = ["blobs", "trees", "names", "tmp"]
        .iter()
        .flat_map(|d| fs::read_dir(small.join("images").join(d)).unwrap())
        .collect();
    assert!(run(Path::new("umount"), &[]));
    assert_eq!(error.kind, ErrorKind::Disk, "{error}");
    assert!(error.remedy.contains("make room"), "{error}");
    assert!(left.is_empty(), "{left:?}");
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
