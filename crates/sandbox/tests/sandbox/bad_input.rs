//! What must not be asked for is refused, and nothing of it stays: mounts, control groups,
//! processes and folders are counted before and after.

use crate::Test;
use crate::lab::Lab;
use crate::lifecycle::{children, own_spawner, soon};
use model::{Access, Mount, SandboxSpec, Workspace};
use nanoclaw_sandbox::{Mask, SpecErrorKind as Kind, StartErrorKind, Stdio};
use std::path::{Path, PathBuf};

pub(crate) const TESTS: &[Test] = &[
    ("bad_input_is_refused_and_leaves_nothing", bad),
    ("interfaces_of_the_kernel_are_not_granted_wherever_they_are_mounted", interfaces),
    ("what_may_hold_keys_below_a_grant_is_covered", covered),
];

/// All that a start makes.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    mounts: usize,
    spawners_mounts: usize,
    groups: usize,
    processes: usize,
    entries: usize,
}

fn count(lab: &Lab, spawner: u32) -> Counts {
    let mounts = |who: &str| {
        std::fs::read_to_string(format!("/proc/{who}/mountinfo")).map_or(0, |t| t.lines().count())
    };
    Counts {
        mounts: mounts("self"),
        spawners_mounts: mounts(&spawner.to_string()),
        groups: nanoclaw_sandbox::groups_of(spawner),
        processes: children(spawner).len(),
        entries: entries(&lab.dir),
    }
}

fn entries(folder: &Path) -> usize {
    let all = std::fs::read_dir(folder).unwrap().flatten();
    all.map(|e| 1 + if e.file_type().unwrap().is_dir() { entries(&e.path()) } else { 0 }).sum()
}

fn mount(source: PathBuf, target: &str) -> Mount {
    Mount { source, target: target.into(), access: Access::Read }
}

type Change = Box<dyn Fn(&mut SandboxSpec)>;

fn cases(lab: &Lab) -> Vec<(&'static str, Kind, Change)> {
    let at = |inner: &str| lab.dir.join(inner);
    for folder in ["fine/deep", "more", ".ssh/deep", ".aws", "keyrings", "holds"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    std::fs::write(at("fine/.env"), "KEY=1").unwrap();
    std::os::unix::fs::symlink(at("fine"), at("link")).unwrap();
    let granting = |list: &[(&str, &str)]| -> Change {
        let list: Vec<Mount> =
            list.iter().map(|(source, target)| mount(at(source), target)).collect();
        Box::new(move |spec| spec.mounts = list.clone())
    };
    let workspace = |path: PathBuf| -> Change {
        Box::new(move |spec| spec.workspace = Workspace::User(path.clone()))
    };
    vec![
        ("one target twice", Kind::Overlap, granting(&[("fine", "/mnt/a"), ("more", "/mnt/a")])),
        ("below another", Kind::Overlap, granting(&[("fine", "/mnt/a"), ("more", "/mnt/a/b")])),
        ("above another", Kind::Overlap, granting(&[("fine", "/mnt/a/b"), ("more", "/mnt/a")])),
        ("in the workspace", Kind::Overlap, granting(&[("fine", "/workspace/x")])),
        ("over the home", Kind::Overlap, granting(&[("fine", "/home")])),
        ("in the home", Kind::Overlap, granting(&[("fine", "/home/agent/x")])),
        ("in /tmp", Kind::Overlap, granting(&[("fine", "/tmp/x")])),
        ("in /etc", Kind::Overlap, granting(&[("fine", "/etc/x")])),
        ("missing", Kind::Missing, granting(&[("fine", "/mnt/a"), ("nothing", "/mnt/b")])),
        ("a link", Kind::Symlink, granting(&[("link", "/mnt/a")])),
        ("through a link", Kind::Symlink, granting(&[("link/deep", "/mnt/a")])),
        ("everything", Kind::Secret, granting(&[("/", "/mnt/a")])),
        ("everything as workspace", Kind::Secret, workspace("/".into())),
        (".ssh", Kind::Secret, granting(&[(".ssh", "/mnt/a")])),
        ("below .ssh", Kind::Secret, granting(&[(".ssh/deep", "/mnt/a")])),
        (".aws as workspace", Kind::Secret, workspace(at(".aws"))),
        ("keyrings", Kind::Secret, granting(&[("keyrings", "/mnt/a")])),
        (".env itself", Kind::Secret, granting(&[("fine/.env", "/mnt/a")])),
        // Found last, when the sandbox is built already.
        ("a socket", Kind::Socket, granting(&[("holds", "/mnt/a")])),
        ("no memory", Kind::Limit, Box::new(|s| s.limits.memory_bytes.value = 0)),
        ("no /tmp", Kind::Limit, Box::new(|s| s.limits.tmp_bytes = 0)),
        ("no processes", Kind::Limit, Box::new(|s| s.limits.pids.value = 0)),
        ("no disk", Kind::Limit, Box::new(|s| s.limits.disk_bytes = Some(0))),
        ("no time", Kind::Limit, Box::new(|s| s.limits.wall_ms = Some(0))),
        ("all memory", Kind::Limit, Box::new(|s| s.limits.memory_bytes.value = 1 << 49)),
        ("all of /tmp", Kind::Limit, Box::new(|s| s.limits.tmp_bytes = 1 << 49)),
        ("all of the disk", Kind::Limit, Box::new(|s| s.limits.disk_bytes = Some(1 << 50))),
    ]
}

fn bad(lab: &Lab) {
    let cases = cases(lab);
    let _host = std::os::unix::net::UnixListener::bind(lab.dir.join("holds/socket")).unwrap();
    let spawner = own_spawner(lab);
    let good = lab.sh("echo fine");
    // The spare alone is left of what came before.
    assert!(soon(|| children(spawner).len() == 1), "{:?}", children(spawner));
    let before = count(lab, spawner);
    for (name, kind, change) in cases {
        let mut spec = good.clone();
        change(&mut spec);
        let error = lab.refused(&spec);
        assert_eq!(error.kind, StartErrorKind::Spec(kind), "{name}: {error}");
        assert!(!error.cause.is_empty() && !error.remedy.is_empty(), "{name}: {error}");
        let left = || count(lab, spawner);
        assert!(soon(|| left() == before), "{name}: {:?}, where it was {before:?}", left());
    }
    assert_eq!(lab.run(&good).ok(), "fine\n");
}

/// Taken away again, whatever becomes of the test: what removes the lab's folder must not see it.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn interfaces(lab: &Lab) {
    let at = |inner: &str| lab.dir.join(inner);
    std::fs::create_dir_all(at("grant/an other/sys")).unwrap();
    std::fs::create_dir_all(at("grant/dev")).unwrap();
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        at("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    made.unwrap();
    let refused = |source: &str, kind| {
        let mut spec = lab.sh("true");
        spec.mounts = vec![mount(at(source), "/mnt/x")];
        let error = lab.refused(&spec);
        assert_eq!(error.kind, StartErrorKind::Spec(kind), "{source}: {error}");
        assert!(!error.remedy.is_empty());
        error.cause
    };
    let cause = refused("pipe", Kind::Missing);
    assert!(cause.ends_with("is a FIFO, not a folder or a file"), "{cause}");
    let mut spec = lab.sh("true");
    spec.mounts = vec![mount(at("grant"), "/mnt/x")];
    lab.run(&spec).ok();
    if !lab.root() {
        return;
    }
    for (kind, place) in [("sysfs", "grant/an other/sys"), ("proc", "grant/dev")] {
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount(kind, at(place), kind, none, None).unwrap();
        let _mounted = Mounted(at(place));
        let cause = refused("grant", Kind::Secret);
        assert!(cause.contains(&format!("{place}\", and there {kind}")), "{cause}");
        let cause = refused(place, Kind::Secret);
        assert!(cause.contains(&format!("lies on {kind}, an interface of the kernel")), "{cause}");
        let mut spec = lab.sh("true");
        spec.workspace = Workspace::User(at("grant"));
        assert_eq!(lab.refused(&spec).kind, StartErrorKind::Spec(Kind::Secret));
    }
    lab.run(&spec).ok();
}

fn covered(lab: &Lab) {
    let project = lab.dir.join("project");
    for folder in ["sub", ".ssh"] {
        std::fs::create_dir_all(project.join(folder)).unwrap();
    }
    let keys = [".env", "sub/.env.local", ".ssh/id"];
    for file in keys {
        std::fs::write(project.join(file), "KEY=real\n").unwrap();
    }
    std::fs::write(project.join(".env.example"), "KEY=\n").unwrap();
    let script = "cd $1; cat .env sub/.env.local .env.example; ls -A .ssh\n\
        for act in 'echo x > .env' 'rm .env' 'mv .env y' 'ln .env z' 'mv sub/.env.local q' \
        'touch .ssh/n' 'rmdir .ssh' 'mv .ssh s' 'cp --remove-destination .env.example .env' \
        'cat .ssh/id' 'grep -r real .'; do sh -c \"$act\" 2>/dev/null && echo did $act; done\n\
        mv sub moved 2>/dev/null; cat moved/.env.local 2>/dev/null; wc -c < .env";
    let mut spec = lab.spec(&["/bin/sh", "-c", script, "sh", "/workspace"]);
    spec.workspace = Workspace::User(project.clone());
    let prepared = lab.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
    let told: Vec<Mask> = prepared.report().plan.masks().cloned().collect();
    let in_workspace =
        |inner: &str, directory| Mask { path: format!("/workspace/{inner}"), directory };
    assert_eq!(
        told,
        [
            in_workspace(".env", false),
            in_workspace(".ssh", true),
            in_workspace("sub/.env.local", false)
        ]
    );
    let text = prepared.report().plan.to_string();
    assert!(text.contains("cover /workspace/.env with an empty file: it may hold keys"), "{text}");
    drop(prepared);
    assert_eq!(lab.run(&spec).ok(), "KEY=\n0\n");
    let kept = |inner: &str| std::fs::read_to_string(project.join(inner)).unwrap();
    for file in [".env", "moved/.env.local", ".ssh/id"] {
        assert_eq!(kept(file), "KEY=real\n", "{file}");
    }
    std::fs::rename(project.join("moved"), project.join("sub")).unwrap();
    // A mount the same, and without anything to cover the file is what it is.
    let mut spec = lab.spec(&["/bin/sh", "-c", script, "sh", "/mnt/p"]);
    spec.mounts = vec![mount(project.clone(), "/mnt/p")];
    assert_eq!(lab.run(&spec).ok(), "KEY=\n0\n");
    std::fs::rename(project.join(".env"), project.join("env")).unwrap();
    let mut spec = lab.sh("cat /mnt/p/env");
    spec.mounts = vec![mount(project, "/mnt/p")];
    assert_eq!(lab.run(&spec).ok(), "KEY=real\n");
}
