//! Folders that are granted: `--workspace`, `--mount`, and what must never be granted.

use crate::lab::{Lab, Ran, finish, is_root, snapshot};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

both!(
    files_of_a_workspace_keep_their_owner,
    a_virtualenv_of_the_workspace_works,
    node_modules_of_the_workspace_work,
    a_read_only_mount_refuses_writes,
    a_writable_mount_takes_writes,
    a_relative_mount_is_meant_from_here,
    an_agent_file_grants_its_mounts,
    what_must_not_be_mounted_is_refused,
    a_link_to_what_must_not_be_mounted_is_refused,
    a_folder_that_hides_what_is_in_it_is_refused,
    what_the_whole_host_runs_is_granted_for_reading_only,
    keys_below_a_grant_are_covered_and_told,
);

/// Owner and contents of what a command leaves in a workspace that belongs to `uid`.
fn work_in(lab: &Lab, dir: &Path, uid: u32) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("given"), "given\n").unwrap();
    for path in [dir.to_owned(), dir.join("given")] {
        chown(path, Some(uid), Some(uid)).unwrap();
    }
    fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
    let script = "cat given; stat -c %U:%G . given; echo made > made; echo more >> given; \
                  mkdir deep && echo x > deep/file && chmod 755 deep && mv given moved";
    let ran = lab.sh(&["--workspace", dir.to_str().unwrap()], script);
    assert_eq!(ran.ok(), "given\nagent:agent\nagent:agent\n", "of uid {uid}");
    assert_eq!(fs::read_to_string(dir.join("moved")).unwrap(), "given\nmore\n");
    for left in ["", "made", "deep", "deep/file", "moved"] {
        let meta = fs::metadata(dir.join(left)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (uid, uid), "{left:?} of uid {uid}");
    }
}

fn files_of_a_workspace_keep_their_owner(lab: &Lab) {
    let own = lab.ids().0;
    work_in(lab, &lab.person().join("own"), own);
    if lab.is_root() {
        for other in [1_000, 54_321] {
            work_in(lab, &lab.person().join(other.to_string()), other);
        }
    }
}

/// A folder outside of `/tmp`, which inside is the sandbox's own. Removed when dropped.
struct Project(PathBuf);

impl Project {
    fn new(lab: &Lab, name: &str) -> Self {
        let base = if is_root() {
            PathBuf::from("/srv")
        } else {
            std::env::var_os("HOME").map(PathBuf::from).unwrap()
        };
        let leaf = format!("nanoclaw-test-{name}-{}-{}", lab.mode(), std::process::id());
        Self(lab.folder(&base.join(leaf)))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // A folder that cannot be removed says in its name where it came from.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn a_virtualenv_of_the_workspace_works(lab: &Lab) {
    let project = Project::new(lab, "venv");
    let mut make = lab.command("/usr/bin/python3");
    make.args(["-m", "venv", "--without-pip"]).arg(project.0.join(".venv"));
    finish(make, b"").ok();
    let site = finish(
        {
            let mut ask = lab.command(project.0.join(".venv/bin/python"));
            ask.args(["-c", "import site; print(site.getsitepackages()[0])"]);
            ask
        },
        b"",
    );
    let site = PathBuf::from(site.ok().trim());
    lab.file(&site.join("greeting.py"), "def say():\n    print('hello from the virtualenv')\n");
    let script = lab.file(
        &project.0.join(".venv/bin/greet"),
        &format!("#!{}/.venv/bin/python\nimport greeting\ngreeting.say()\n", project.0.display()),
    );
    fs::set_permissions(script, PermissionsExt::from_mode(0o755)).unwrap();
    let hello = "hello from the virtualenv\n";
    let flags = ["--workspace", project.0.to_str().unwrap()];
    // By the interpreter on PATH, by the console script on PATH, whose first line has the host's
    // path, and by that path.
    assert_eq!(lab.sh(&flags, "python -c 'import greeting; greeting.say()'").ok(), hello);
    assert_eq!(lab.sh(&flags, "greet").ok(), hello);
    assert_eq!(lab.sh(&flags, &format!("{}/.venv/bin/greet", project.0.display())).ok(), hello);
    assert_eq!(lab.sh(&flags, "echo $VIRTUAL_ENV").ok(), "/workspace/.venv\n");
    // `.` is the current folder.
    let mut here = lab.nanoclaw(["run", "--workspace", ".", "--", "greet"]);
    here.current_dir(&project.0);
    assert_eq!(finish(here, b"").ok(), hello);
}

fn node_modules_of_the_workspace_work(lab: &Lab) {
    if testkit::need("node").is_none() {
        return;
    }
    let project = lab.person().join("project");
    let module = project.join("node_modules/greeting/index.js");
    lab.file(&module, "module.exports = () => console.log('hello from node_modules');\n");
    let tool = project.join("node_modules/.bin/greet");
    let tool = lab.file(&tool, "#!/usr/bin/env node\nrequire('greeting')();\n");
    fs::set_permissions(tool, PermissionsExt::from_mode(0o755)).unwrap();
    let flags = ["--workspace", project.to_str().unwrap()];
    assert_eq!(lab.sh(&flags, "greet").ok(), "hello from node_modules\n");
    let said = lab.sh(&flags, "node -e \"require('greeting')()\"").ok();
    assert_eq!(said, "hello from node_modules\n");
}

/// A folder `notes` with one file in it.
fn notes(lab: &Lab) -> PathBuf {
    let notes = lab.person().join("notes");
    lab.file(&notes.join("a"), "one\n");
    notes
}

fn a_read_only_mount_refuses_writes(lab: &Lab) {
    let notes = notes(lab);
    let grant = format!("{}:/mnt/notes:ro", notes.display());
    let attempts =
        ["echo x > a", "echo x > b", "rm a", "mv a c", "mkdir d", "chmod 777 a", "touch a"];
    for attempt in attempts {
        let ran = lab.sh(&["--mount", &grant], &format!("cd /mnt/notes && cat a && {attempt}"));
        assert_ne!(ran.code(), 0, "{attempt}: {ran}");
        assert_eq!(ran.out(), "one\n", "{attempt}: {ran}");
        assert!(ran.err().contains("Read-only file system"), "{attempt}: {ran}");
    }
    assert_eq!(fs::read_to_string(notes.join("a")).unwrap(), "one\n");
    assert_eq!(fs::read_dir(&notes).unwrap().count(), 1);
}

fn a_writable_mount_takes_writes(lab: &Lab) {
    let notes = notes(lab);
    let grant = format!("{}:/mnt/notes:rw", notes.display());
    lab.sh(&["--mount", &grant], "cd /mnt/notes && echo two >> a && echo new > b").ok();
    assert_eq!(fs::read_to_string(notes.join("a")).unwrap(), "one\ntwo\n");
    assert_eq!(fs::metadata(notes.join("b")).unwrap().uid(), lab.ids().0);
    let story = lab.story();
    let granted = format!("mount {} at /mnt/notes, read and write", notes.display());
    assert!(story.contains(&granted), "{story}");
}

fn a_relative_mount_is_meant_from_here(lab: &Lab) {
    notes(lab);
    assert_eq!(lab.sh(&["--mount", "notes:/mnt/n:ro"], "cat /mnt/n/a").ok(), "one\n");
    assert_eq!(lab.sh(&["--mount", "./notes:/mnt/n:ro"], "cat /mnt/n/a").ok(), "one\n");
    assert_eq!(lab.sh(&["--mount", "~/notes:/mnt/n:ro"], "cat /mnt/n/a").ok(), "one\n");
}

fn an_agent_file_grants_its_mounts(lab: &Lab) {
    notes(lab);
    let text = "schema = 1\n[[mounts]]\nsource = \"~/notes\"\ntarget = \"/mnt/notes\"\n\
                access = \"read\"\n";
    lab.file(&lab.home().join("agents/reader.toml"), text);
    assert_eq!(lab.sh(&["--agent", "reader"], "cat /mnt/notes/a").ok(), "one\n");
    assert_ne!(lab.sh(&["--agent", "reader"], "echo x > /mnt/notes/a").code(), 0);
    // Not without it.
    assert_ne!(lab.sh(&[], "cat /mnt/notes/a").code(), 0);
}

/// The refusal of one mount, with the paths of this run made general. Nothing was started.
fn refused(lab: &Lab, source: &str, target: &str) -> String {
    let ran: Ran = lab.sh(&["--mount", &format!("{source}:{target}:ro")], "echo ran");
    assert_eq!(ran.out(), "", "{source}: {ran}");
    let said = ran.failed(2);
    said.replace(&lab.home().display().to_string(), "HOME")
        .replace(&lab.person().display().to_string(), "PERSON")
}

fn what_must_not_be_mounted_is_refused(lab: &Lab) {
    for secret in [".ssh", ".aws", ".gnupg", "work/.docker"] {
        lab.file(&lab.person().join(secret).join("config"), "secret\n");
    }
    let person = lab.person().display().to_string();
    let home = lab.home().display().to_string();
    let inner = format!("{home}/agents");
    lab.folder(Path::new(&inner));
    let parent = lab.person().parent().unwrap().display().to_string();
    let mut all = String::new();
    for source in [
        "/",
        "~",
        &person,
        "~/.ssh",
        "~/.aws",
        "~/.gnupg/config",
        "~/work/.docker",
        &home,
        &inner,
        "/proc",
        "/sys",
        "/dev",
        "/etc",
        "/run",
        "/var/run",
        "/tmp/../etc",
        "relative/../x",
    ] {
        all.push_str(&refused(lab, source, "/mnt/x"));
    }
    // What holds all of it.
    all.push_str(&refused(lab, &parent, "/mnt/x").replace(&parent, "PARENT"));
    lab.folder(&lab.person().join("fine"));
    for target in ["/", "/etc/x", "/usr/bin", "/proc", "/workspace", "/workspace/x", "/run/x", "x"]
    {
        all.push_str(&refused(lab, "~/fine", target));
    }
    snapshot("mounts-refused", &all);
}

fn a_link_to_what_must_not_be_mounted_is_refused(lab: &Lab) {
    lab.file(&lab.person().join(".ssh/id"), "secret\n");
    let link = lab.person().join("harmless");
    std::os::unix::fs::symlink(lab.person().join(".ssh"), &link).unwrap();
    let through = lab.sh(&["--mount", &format!("{}:/mnt/x:ro", link.display())], "cat /mnt/x/id");
    assert_eq!(through.out(), "", "{through}");
    assert_eq!(through.code(), 2, "{through}");
    // The whole state through a link, too.
    let state = lab.person().join("state");
    std::os::unix::fs::symlink(lab.home(), &state).unwrap();
    let through = lab.sh(&["--mount", &format!("{}:/mnt/x:ro", state.display())], "ls /mnt/x");
    assert_eq!((through.out().as_str(), through.code()), ("", 2), "{through}");
}

/// A folder of another user that may be entered but not listed: a socket in it would be reached
/// by whoever knows its name, and no search finds it.
fn what_the_whole_host_runs_is_granted_for_reading_only(lab: &Lab) {
    let lib = Path::new("/usr/lib").canonicalize().unwrap();
    let lib = lib.display();
    let read = lab.run(["run", "--mount", &format!("{lib}:/mnt/x:ro"), "--", "ls", "/mnt/x"]);
    assert!(!read.ok().is_empty());
    for grant in [
        vec!["--mount".to_owned(), format!("{lib}:/mnt/x:rw")],
        vec!["--workspace".to_owned(), "/usr/bin".to_owned()],
    ] {
        let mut args = vec!["run".to_owned()];
        args.extend(grant);
        args.extend(["--", "true"].map(str::to_owned));
        let said = lab.run(&args).failed(2);
        assert!(said.contains("which the whole host runs"), "{said}");
    }
}

fn keys_below_a_grant_are_covered_and_told(lab: &Lab) {
    let notes = notes(lab);
    lab.file(&notes.join(".env"), "KEY=real\n");
    lab.file(&notes.join("deep/.env.local"), "KEY=real\n");
    let flags = ["--workspace", notes.to_str().unwrap()];
    let ran = lab.sh(&flags, "cat a .env deep/.env.local; grep -r real . || true");
    let told = "nanoclaw: /workspace/.env and 1 more may hold keys and is empty inside\n";
    assert_eq!(ran.err(), told, "{ran}");
    assert_eq!(ran.ok(), "one\n");
    let text = "schema = 1\n[[mounts]]\nsource = \"~/notes\"\ntarget = \"/mnt/notes\"\n\
                access = \"read\"\n";
    lab.file(&lab.home().join("agents/reader.toml"), text);
    let plan = lab.run(["sandbox", "plan", "reader"]).ok();
    assert!(plan.contains("cover /mnt/notes/deep/.env.local with an empty file"), "{plan}");
    assert_eq!(fs::read_to_string(notes.join(".env")).unwrap(), "KEY=real\n");
}

fn a_folder_that_hides_what_is_in_it_is_refused(lab: &Lab) {
    let notes = notes(lab);
    let hiding = lab.folder(&notes.join("hiding"));
    let set = |mode| fs::set_permissions(&hiding, PermissionsExt::from_mode(mode)).unwrap();
    let grant = format!("{}:/mnt/notes:ro", notes.display());
    let ask = || lab.sh(&["--mount", &grant], "cat /mnt/notes/a");
    set(0o111);
    if lab.is_root() {
        // Root looks into every folder, and finds nothing here.
        assert_eq!(ask().ok(), "one\n");
        return;
    }
    let refused = |ran: Ran| {
        assert_eq!(ran.out(), "", "{ran}");
        let said = ran.failed(2);
        assert!(said.contains("notes/hiding") && said.contains("cannot be searched"), "{said}");
        assert!(said.contains("chmod u+r"), "{said}");
    };
    // One's own could be opened up from inside, so its mode does not matter.
    refused(ask());
    set(0o000);
    refused(ask());
    if is_root() {
        chown(&hiding, Some(0), Some(0)).unwrap();
        set(0o711);
        refused(ask());
        // Shut to the sandbox as it is to the search, so there is nothing to find.
        set(0o700);
        assert_eq!(ask().ok(), "one\n");
    }
    set(0o755);
}
