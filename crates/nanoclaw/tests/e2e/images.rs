//! Images as root file systems: stored, pinned, run in, refused when they are not what they were.

use crate::lab::{Lab, Ran, finish, start, wait_until};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

both!(
    programs_run_in_an_image,
    an_image_cannot_take_the_sandboxes_own_places,
    the_walls_around_an_image_are_tried_before_it_is_handed_over,
    a_missing_or_changed_image_starts_nothing,
    an_image_in_use_is_not_removed,
    hostile_archives_are_refused_with_a_remedy,
);

/// A root file system made of one static program.
fn system(lab: &Lab, name: &str) -> Option<PathBuf> {
    let busybox = testkit::need("busybox")?;
    let root = lab.person().join(name);
    for dir in ["bin", "etc/ssl/certs", "usr/bin", "opt/tools", "root", "var/lib/x", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for tool in ["sh", "ls", "cat", "id", "stat", "touch", "sleep", "test", "mount", "true"] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    for (file, text) in [
        ("etc/os-release", "ID=made-by-test\n"),
        ("etc/passwd", "intruder:x:1000:1000::/:/bin/sh\n"),
        ("etc/ssl/certs/ca-certificates.crt", "the image's own\n"),
        ("opt/tools/suid", "x"),
        ("opt/tools/closed", "readable by its owner\n"),
        ("tmp/left", "the image's own"),
    ] {
        fs::write(root.join(file), text).unwrap();
    }
    for (file, mode) in [("opt/tools/suid", 0o6755), ("opt/tools/closed", 0o600)] {
        fs::set_permissions(root.join(file), PermissionsExt::from_mode(mode)).unwrap();
    }
    // The importer must be able to read what it imports.
    let mut give = std::process::Command::new("chown");
    let (uid, gid) = lab.ids();
    give.arg("-hR").arg(format!("{uid}:{gid}")).arg(&root);
    finish(give, b"").ok();
    Some(root)
}

/// Imports it and writes an agent that has it; what the agent file says.
fn stored(lab: &Lab, root: &Path, name: &str) -> String {
    let told = lab.run(["image", "import", root.to_str().unwrap(), "--name", name, "--json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&told).unwrap();
    let rootfs = value["rootfs"].as_str().unwrap().to_owned();
    agent(lab, &rootfs);
    rootfs
}

fn agent(lab: &Lab, rootfs: &str) {
    let text = format!("schema = 1\n[sandbox]\nrootfs = \"{rootfs}\"\n");
    lab.file(&lab.home().join("agents/boxed.toml"), &text);
}

fn boxed(lab: &Lab, script: &str) -> Ran {
    lab.sh(&["--agent", "boxed"], script)
}

fn tree(lab: &Lab, rootfs: &str) -> PathBuf {
    let digest = rootfs.rsplit(':').next().unwrap();
    lab.home().join("images/trees").join(digest).join("root")
}

fn programs_run_in_an_image(lab: &Lab) {
    let Some(root) = system(lab, "tiny") else { return };
    let rootfs = stored(lab, &root, "tiny:1");
    assert_eq!(
        boxed(lab, "cat /etc/os-release; id -u; echo $0").ok(),
        "ID=made-by-test\n1000\nsh\n"
    );
    // Nothing of the host's system, and nothing that the sandbox puts in its place, is the image's.
    let look = "test -e /usr/bin/env || echo no-host; cat /etc/passwd; ls -A /tmp; \
                test -c /dev/null && echo device; cat /etc/ssl/certs/ca-certificates.crt";
    let seen = boxed(lab, look).ok();
    assert!(seen.starts_with("no-host\n") && seen.contains("\nagent:x:1000:1000:"), "{seen}");
    assert!(!seen.contains("intruder") && !seen.contains("left"), "{seen}");
    assert!(seen.contains("device") && seen.contains("BEGIN CERTIFICATE"), "{seen}");
    assert!(!seen.contains("the image's own"), "{seen}");
    // All of it belongs to the agent's user, without privileged bits, and cannot be written.
    let owners = boxed(lab, "stat -c '%u:%g %a' /opt/tools/suid /bin; cat /opt/tools/closed").ok();
    assert_eq!(owners, "1000:1000 755\n1000:1000 755\nreadable by its owner\n");
    for place in ["/x", "/bin/x", "/etc/x", "/opt/tools/suid", "/root/x", "/var/lib/x/y"] {
        let ran = boxed(lab, &format!("echo evil > {place}; echo $?"));
        assert!(ran.err().contains("ead-only file system"), "{place}: {ran}");
    }
    boxed(lab, "touch /tmp/a /var/tmp/a ~/a /workspace/a /dev/shm/a").ok();
    assert_eq!(fs::read_to_string(tree(lab, &rootfs).join("opt/tools/suid")).unwrap(), "x");
    // What it ran in is on record, and the plan shows it.
    let story = lab.run(["audit", "show", "--all", "--json"]).ok();
    let grant = format!("root file system: the image {}, read-only", &rootfs["image:".len()..]);
    assert!(story.contains(&grant), "{story}");
    let plan = lab.run(["sandbox", "plan", "boxed"]).ok();
    let bound = format!("bind {}/bin at /bin (ro,nosuid,nodev", tree(lab, &rootfs).display());
    assert!(plan.contains(&bound), "{plan}");
    assert!(!plan.contains("bind /usr at"), "{plan}");
    let listed = lab.run(["image", "list"]).ok();
    assert!(listed.contains(&format!("rootfs = \"{rootfs}\"")), "{listed}");
}

fn an_image_cannot_take_the_sandboxes_own_places(lab: &Lab) {
    let Some(root) = system(lab, "odd") else { return };
    fs::remove_dir_all(root.join("tmp")).unwrap();
    fs::remove_dir_all(root.join("var")).unwrap();
    // Links and files where the sandbox has folders, and a link in the place of a mount's parent.
    for (place, to) in [("tmp", "/"), ("var", "/etc"), ("home", "/"), ("run", "bin"), ("mnt", "/")]
    {
        symlink(to, root.join(place)).unwrap();
    }
    for file in ["workspace", "proc", "dev"] {
        fs::write(root.join(file), "the image's own").unwrap();
    }
    fs::remove_file(root.join("etc/passwd")).unwrap();
    symlink("/workspace/passwd", root.join("etc/passwd")).unwrap();
    stored(lab, &root, "odd");
    let notes = lab.folder(&lab.person().join("notes"));
    lab.file(&notes.join("note"), "granted\n");
    let mount = format!("{}:/mnt/notes:ro", notes.display());
    let script = "cat /mnt/notes/note; cat /proc/self/comm; test -c /dev/null && cat /etc/passwd; \
                  touch /tmp/x /var/tmp/x /workspace/x ~/x && ls -A /tmp";
    let seen = lab.sh(&["--agent", "boxed", "--mount", &mount], script).ok();
    assert!(seen.starts_with("granted\ncat\nroot:x:0:0:"), "{seen}");
    assert!(seen.ends_with("\nx\n"), "{seen}");
}

fn the_walls_around_an_image_are_tried_before_it_is_handed_over(lab: &Lab) {
    let Some(root) = system(lab, "tiny") else { return };
    fs::create_dir(root.join("srv")).unwrap();
    let rootfs = stored(lab, &root, "tiny:1");
    let text = format!("schema = 1\n[sandbox]\nrootfs = \"{rootfs}\"\nprobe_on_start = true\n");
    lab.file(&lab.home().join("agents/boxed.toml"), &text);
    let seen = boxed(lab, "ls -d /srv /opt/tools").ok();
    assert_eq!(seen, "/opt/tools\n/srv\n");
    let story = lab.run(["audit", "show", "--all"]).ok();
    assert!(story.contains("0 of ") && story.contains("probes found a wall broken"), "{story}");
}

fn a_missing_or_changed_image_starts_nothing(lab: &Lab) {
    let Some(root) = system(lab, "tiny") else { return };
    let rootfs = stored(lab, &root, "tiny:1");
    boxed(lab, "true").ok();
    let sessions = || lab.story().matches("The sandbox ended").count();
    let before = sessions();
    let tool = tree(lab, &rootfs).join("bin/busybox");
    let mut bytes = fs::read(&tool).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&tool, bytes).unwrap();
    let said = boxed(lab, "echo ran").failed(4);
    assert!(said.contains("the stored image was changed"), "{said}");
    assert!(said.contains("help: nothing was started; `nanoclaw image remove`"), "{said}");
    // Importing the same again mends it.
    assert_eq!(stored(lab, &root, "tiny:1"), rootfs);
    boxed(lab, "true").ok();
    // Another image under the pinned name is not what was pinned.
    fs::write(root.join("etc/os-release"), "ID=other\n").unwrap();
    let other = stored(lab, &root, "tiny:1");
    assert_ne!(other, rootfs);
    agent(lab, &rootfs);
    let said = boxed(lab, "echo ran").failed(3);
    assert!(said.contains("as the agent file pins it") && said.contains("image list"), "{said}");
    lab.run(["image", "remove", "tiny:1"]).ok();
    let said = boxed(lab, "echo ran").failed(3);
    assert!(said.contains("there is no image tiny:1"), "{said}");
    agent(lab, "image:tiny:1");
    let said = boxed(lab, "echo ran").failed(2);
    assert!(said.contains("has no digest"), "{said}");
    assert_eq!(sessions(), before + 1);
    let left: Vec<_> = fs::read_dir(lab.home().join("images/trees")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn an_image_in_use_is_not_removed(lab: &Lab) {
    let Some(root) = system(lab, "tiny") else { return };
    stored(lab, &root, "tiny:1");
    let flag = lab.folder(&lab.person().join("shared"));
    let mount = format!("{}:/mnt/shared:rw", flag.display());
    let script = "touch /mnt/shared/up; sleep 40";
    let args = ["run", "--agent", "boxed", "--mount", &mount, "--", "sh", "-c", script];
    let running = start(lab.nanoclaw(args));
    wait_until("the sandbox runs", || flag.join("up").exists());
    let said = lab.run(["image", "remove", "tiny:1"]).failed(1);
    assert!(said.contains("a sandbox is using the image tiny:1"), "{said}");
    // A second one shares it.
    boxed(lab, "true").ok();
    running.signal(rustix::process::Signal::TERM);
    running.wait();
    lab.run(["image", "remove", "tiny:1"]).ok();
}

fn hostile_archives_are_refused_with_a_remedy(lab: &Lab) {
    if testkit::need("tar").is_none() {
        return;
    }
    let archive = lab.person().join("climb.tar");
    let mut tar = lab.command("tar");
    tar.args(["--absolute-names", "--transform", "s,^.*$,../../climbed,", "-cf"]);
    tar.arg(&archive).arg("/etc/hostname");
    finish(tar, b"").ok();
    let said = lab.run(["image", "import", archive.to_str().unwrap()]).failed(4);
    assert!(said.contains("climbs out with '..'") && said.contains("help:"), "{said}");
    assert!(!lab.home().join("climbed").exists() && !lab.person().join("climbed").exists());
    let said = lab.run(["image", "import", "/no/such/file"]).failed(3);
    assert!(said.contains("/no/such/file"), "{said}");
    assert_eq!(lab.run(["image", "list", "--json"]).ok(), "");
}
