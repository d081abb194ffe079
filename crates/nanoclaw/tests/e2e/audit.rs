//! `audit verify | show | tail`, and what happens when there is no writing to the log.

use crate::lab::{Lab, Ran, files_below, finish, is_root, snapshot, wait_until};
use regex::Regex;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use testkit::Rng;

both!(
    an_untouched_log_is_intact,
    any_flipped_byte_is_found_and_named,
    a_shortened_log_is_found,
    verify_needs_nothing_but_the_folder,
    what_says_nothing_about_the_log_has_codes_of_its_own,
    a_folder_without_a_log_is_no_damaged_log,
    show_reads_as_a_story,
    show_of_one_session_and_of_one_that_is_not_there,
    tail_prints_the_newest_and_follows,
    where_nothing_can_be_written_nothing_runs,
    where_the_disk_is_full_nothing_runs,
);

/// Some records: a few runs, a refusal among them. Ends when the recorder is gone.
fn some_log(lab: &Lab) -> PathBuf {
    for script in ["echo one", "exit 3", "bash -c 'echo > /dev/tcp/127.0.0.1/3128'"] {
        lab.sh(&[], script);
    }
    quiet(lab);
    lab.home().join("audit")
}

/// Waits until no process of this home is left, so that nothing writes any more.
fn quiet(lab: &Lab) {
    let home = lab.home().display().to_string();
    wait_until("the recorder is gone", || crate::lab::processes_with(&home).is_empty());
}

fn verify(lab: &Lab, dir: &Path) -> Ran {
    finish(
        {
            let mut command = lab.nanoclaw(["audit", "verify"]);
            command.arg(dir);
            command
        },
        b"",
    )
}

fn a_folder_without_a_log_is_no_damaged_log(lab: &Lab) {
    let dir = some_log(lab);
    let said = verify(lab, &lab.home()).failed(3);
    let home = lab.home().display().to_string();
    let meant = "error: there is no log in HOME\n  help: did you mean HOME/audit?\n";
    assert_eq!(said.replace(&home, "HOME"), meant);
    let empty = lab.folder(&lab.person().join("empty"));
    let said = verify(lab, &empty).failed(3);
    assert!(said.contains("there is no log in"), "{said}");
    // A log of which anything is left is not excused.
    for file in ["vkey", "checkpoint"] {
        fs::remove_file(dir.join(file)).unwrap();
        assert!(verify(lab, &dir).failed(5).contains("NOT intact"));
    }
}

fn an_untouched_log_is_intact(lab: &Lab) {
    some_log(lab);
    let said = lab.run(["audit", "verify"]).ok();
    assert!(said.starts_with("intact: "), "{said}");
    let json = lab.run(["audit", "verify", "--json"]).ok();
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["verified"], true, "{json}");
    assert_eq!(report["unsigned_records"], 0, "{json}");
    assert_eq!(report["unsigned_bytes"], 0, "{json}");
    // As many as there are lines of the story.
    let lines = lab.story().lines().count();
    assert_eq!(report["records"], lines, "{json}");
    // With the key that somebody wrote down, and with somebody else's.
    let key = report["vkey"].as_str().unwrap();
    lab.run(["audit", "verify", "--vkey", key]).ok();
    let other = Lab::mine("other");
    other.sh(&[], "true").ok();
    let other = other.run(["audit", "verify", "--json"]).ok();
    let other: serde_json::Value = serde_json::from_str(&other).unwrap();
    let said = lab.run(["audit", "verify", "--vkey", other["vkey"].as_str().unwrap()]).failed(5);
    assert!(said.contains("it is not the verifier key that was given"), "{said}");
}

/// What verification is about: not the recorder's own key and lock.
fn covered(dir: &Path) -> Vec<PathBuf> {
    let mut files = files_below(dir);
    files.retain(|f| !["private", "work"].iter().any(|own| f.starts_with(dir.join(own))));
    files
}

fn any_flipped_byte_is_found_and_named(lab: &Lab) {
    let mut random = Rng::from_env();
    let dir = some_log(lab);
    let files = covered(&dir);
    assert!(files.len() >= 5, "{files:?}");
    for n in 0..30 {
        // Every file at least once, then by chance.
        let file = files.get(n).or_else(|| random.pick(&files)).unwrap();
        let whole = fs::read(file).unwrap();
        let at = random.below(whole.len());
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << random.below(8);
        fs::write(file, &bytes).unwrap();
        let said = verify(lab, &dir).failed(5);
        fs::write(file, &whole).unwrap();
        let named = format!("the log is NOT intact: {} at byte ", file.display());
        let place = format!("bit of byte {at} of {}", file.display());
        let (_, rest) = said.split_once(&named).unwrap_or_else(|| panic!("{place}: {said}"));
        let byte: usize = rest.split_once(':').unwrap().0.parse().unwrap();
        // Where a signature does not fit, nobody can tell which byte of the signed was changed.
        assert!(byte <= at || file.ends_with("checkpoint"), "{place}: {said}");
    }
    assert!(verify(lab, &dir).status.success());
}

fn a_shortened_log_is_found(lab: &Lab) {
    let dir = some_log(lab);
    let newest = lab.story().lines().count().to_string();
    for file in covered(&dir) {
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        let said = verify(lab, &dir).failed(5);
        assert!(said.contains(&file.display().to_string()), "{}: {said}", file.display());
        fs::remove_file(&file).unwrap();
        // Only an older partial tile may be missing (tlog-tiles: it is superseded).
        let superseded = file.display().to_string().contains(".p/") && !file.ends_with(&newest);
        let ran = verify(lab, &dir);
        assert!(superseded || ran.code() == 5, "{}: {ran}", file.display());
        fs::write(&file, &whole).unwrap();
    }
    assert!(verify(lab, &dir).status.success());
}

fn verify_needs_nothing_but_the_folder(lab: &Lab) {
    let dir = some_log(lab);
    // Elsewhere, read-only, without a home, by the binary alone.
    let elsewhere = lab.folder(&lab.person().join("elsewhere"));
    let copy = elsewhere.join("log");
    finish(
        {
            let mut copying = lab.command("cp");
            copying.arg("-r").args([&dir, &copy]);
            copying
        },
        b"",
    )
    .ok();
    fs::remove_dir_all(copy.join("private")).unwrap();
    let binary = elsewhere.join("verifier");
    fs::copy(lab.binary(), &binary).unwrap();
    fs::remove_dir_all(lab.home()).unwrap();
    let mut command = lab.command(&binary);
    command.args(["audit", "verify"]).arg(&copy).env_remove("HOME").env_remove("NANOCLAW_HOME");
    let said = finish(command, b"").ok();
    assert!(said.starts_with("intact: "), "{said}");
    assert!(!lab.home().exists(), "verifying made something");
}

/// 5 is for a log that is not what was signed, and for nothing else.
fn what_says_nothing_about_the_log_has_codes_of_its_own(lab: &Lab) {
    let dir = some_log(lab);
    let said = lab.run(["audit", "verify", "--vkey", "nonsense"]).failed(2);
    assert!(said.contains("--key is no verifier key"), "{said}");
    let json = lab.run(["audit", "verify", "--vkey", "nonsense", "--json"]);
    assert_eq!(json.code(), 2, "{json}");
    assert!(json.out().contains("\"sort\":\"bad_key\""), "{json}");
    lab.run(["audit", "verify", "nowhere"]).failed(3);
    // Not readable; root reads everything, so for root it is a folder where a file should be.
    let key = dir.join("vkey");
    let whole = fs::read(&key).unwrap();
    if lab.is_root() {
        fs::remove_file(&key).unwrap();
        fs::create_dir(&key).unwrap();
    } else {
        fs::set_permissions(&key, PermissionsExt::from_mode(0o0)).unwrap();
    }
    let ran = verify(lab, &dir);
    if !lab.is_root() {
        let said = ran.failed(7);
        assert!(said.contains("vkey") && said.contains("cannot be read"), "{said}");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o0)).unwrap();
        let ran = verify(lab, &dir);
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).unwrap();
        ran.failed(7);
        return;
    }
    // A log in which a folder stands for a file is not one that was signed.
    assert!(matches!(ran.code(), 5 | 7), "{ran}");
    fs::remove_dir(&key).unwrap();
    fs::write(&key, whole).unwrap();
}

/// A story without what changes from run to run and from machine to machine.
fn general(lab: &Lab, story: &str) -> String {
    let mut text = story.replace(&lab.person().display().to_string(), "PERSON");
    for (pattern, word) in [
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", "TIME"),
        (r"s[0-9a-f]{11}-[0-9a-f]{8}", "SESSION"),
        (r"policy [0-9a-f]{12}", "policy HASH"),
        (r", now [0-9a-f]{12}", ", now HASH"),
        (r"Limits: .*", "Limits: …"),
        (r"\d+ inside, \d+ outside", "N inside, N outside"),
        (r"\d+ system calls", "N system calls"),
        (r"ABI \d+(, tried and refused: [a-z, ]+(; [a-z, -]+)?)?", "ABI N"),
        (
            r"\d+ ms of CPU, at most \d+ bytes of memory[^.]*\.",
            "N ms of CPU, at most N bytes of memory.",
        ),
        (r"recorder \S+ \(", "recorder VERSION ("),
        (r"version \S+", "version V"),
        (r"\bpid \d+", "pid N"),
        (r"\b([Pp])rocess \d+", "${1}rocess N"),
        (r"\(execution \d+", "(execution N"),
        (r"/usr/\S*python3[\d.]*", "PYTHON"),
        (r"\d+ (door_\w+|kernel_\w+)", "N $1"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, word).into_owned();
    }
    text
}

fn show_reads_as_a_story(lab: &Lab) {
    lab.folder(&lab.person().join("notes"));
    let script = "import urllib.request\ntry:\n  urllib.request.urlopen('http://example.com/')\n\
                  except OSError as e:\n  print(e)\nraise SystemExit(3)";
    let grants = ["run", "--mount", "~/notes:/mnt/notes:ro", "--allow", "example.org"];
    let mut command = lab.nanoclaw(grants);
    command.args(["--env", "COLOUR=blue", "--timeout", "1min", "--", "python3", "-c", script]);
    let ran = finish(command, b"");
    assert_eq!((ran.code(), ran.out().as_str()), (3, "HTTP Error 403: Forbidden\n"), "{ran}");
    quiet(lab);
    snapshot(&format!("story-{}", lab.mode()), &general(lab, &lab.story()));
}

fn show_of_one_session_and_of_one_that_is_not_there(lab: &Lab) {
    let none = lab.run(["audit", "show"]);
    assert!(none.err().contains("No session is on record in this home yet"), "{none}");
    lab.sh(&[], "echo first").ok();
    lab.sh(&[], "echo second").ok();
    let newest = lab.run(["audit", "show"]).ok();
    assert!(newest.contains("echo second") && !newest.contains("echo first"), "{newest}");
    let first = lab.story();
    let first = first.lines().find(|l| l.contains("echo first")).unwrap();
    let session = first.split(['(', ')']).nth(1).unwrap();
    let shown = lab.run(["audit", "show", session]).ok();
    assert!(shown.contains("echo first") && !shown.contains("echo second"), "{shown}");
    // In short unless everything is wanted; what was left out is said.
    let short = lab.run(["audit", "show", session]);
    assert!(!short.out().contains("Walls:") && short.err().contains(" more records"), "{short}");
    // One of the lines says that the agent had no session before.
    assert!(short.out().lines().count() < 7, "{short}");
    let full = lab.run(["audit", "show", session, "--all"]).ok();
    assert!(full.contains("Walls:") && !full.contains("echo second"), "{full}");
    let said = lab.run(["audit", "show", "s00000000000-00000000"]).failed(3);
    assert!(said.contains("is not in the log"), "{said}");
}

fn tail_prints_the_newest_and_follows(lab: &Lab) {
    some_log(lab);
    let json = lab.run(["audit", "tail", "-n", "3", "--json"]).ok();
    assert_eq!(json.lines().count(), 3, "{json}");
    for line in json.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry.is_object(), "{line}");
    }
    let all = lab.story();
    let last: Vec<&str> = all.lines().rev().take(3).collect();
    let tail = lab.run(["audit", "tail", "-n", "3"]).ok();
    assert!(tail.lines().rev().eq(last), "{tail}\n{all}");
    // As records come.
    let follower = crate::lab::start(lab.nanoclaw(["audit", "tail", "-n", "1", "-f"]));
    lab.sh(&[], "echo while-it-follows").ok();
    follower.wait_for_output("while-it-follows");
    follower.signal(rustix::process::Signal::TERM);
}

/// Nothing may run here; the command would leave a file.
fn nothing_runs(lab: &Lab) -> String {
    refused(lab).expect("nothing runs")
}

/// What a run that did nothing said; `None` when it ran.
fn refused(lab: &Lab) -> Option<String> {
    let work = lab.folder(&lab.person().join("work"));
    let marker = work.join("marker");
    let ran = lab.sh(&["--workspace", work.to_str().unwrap()], "echo ran; echo x > marker");
    if fs::remove_file(&marker).is_ok() {
        return None;
    }
    assert_eq!(ran.out(), "", "{ran}");
    Some(ran.failed(5).replace(&lab.home().display().to_string(), "HOME"))
}

fn where_nothing_can_be_written_nothing_runs(lab: &Lab) {
    if lab.is_root() {
        // Root may write everywhere: a file stands where the folder would be.
        fs::write(lab.home().join("audit"), "in the way").unwrap();
        return snapshot("log-in-the-way", &nothing_runs(lab));
    }
    let dir = some_log(lab);
    let make = |mode| {
        for path in [dir.clone(), dir.join("wal"), dir.join("tile"), dir.join("private")] {
            fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        for file in files_below(&dir.join("wal")) {
            fs::set_permissions(file, PermissionsExt::from_mode(mode & 0o666)).unwrap();
        }
    };
    make(0o500);
    snapshot("log-not-writable", &nothing_runs(lab));
    make(0o700);
    assert_eq!(lab.sh(&[], "echo works again").ok(), "works again\n");
}

/// A small file system, taken away when dropped.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still in use goes when it is not any more.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn where_the_disk_is_full_nothing_runs(lab: &Lab) {
    if !is_root() {
        eprintln!("SKIPPED where_the_disk_is_full_nothing_runs: only root can mount a small disk");
        return;
    }
    let dir = lab.folder(&lab.home().join("audit"));
    let (uid, gid) = lab.ids();
    let data = std::ffi::CString::new(format!("size=512k,mode=0700,uid={uid},gid={gid}")).unwrap();
    let flags = rustix::mount::MountFlags::NOSUID;
    rustix::mount::mount("tmpfs", &dir, "tmpfs", flags, data.as_c_str()).unwrap();
    let _disk = SmallDisk(dir.clone());
    some_log(lab);
    let filler = dir.join("filler");
    // Ends with an error when the disk is full.
    drop(fs::write(&filler, vec![0; 512 << 10]));
    // A few more records fit into the log's last page, and a write that failed gives some back.
    let more = dir.join("filler-2");
    let filled = |_| {
        drop(fs::write(&more, vec![0; 512 << 10]));
        refused(lab)
    };
    let said = (0..20).find_map(filled).expect("the disk fills");
    quiet(lab);
    // Whether opening or writing fails first is as the last page has it.
    let full = said.contains("No space left on device") && said.contains("nothing was started");
    assert!(full, "{said}");
    for file in [&filler, &more] {
        fs::remove_file(file).unwrap();
    }
    // With room again it goes on, and nothing of what was recorded is lost.
    assert_eq!(lab.sh(&[], "echo works again").ok(), "works again\n");
    quiet(lab);
    assert!(verify(lab, &dir).ok().starts_with("intact: "));
    assert!(lab.story().contains("echo one"));
}
