//! `run`: programs, streams, exit codes, environment.

use crate::lab::{Lab, finish, snapshot};

both!(
    python_bash_git_and_node_work,
    exit_codes_pass_through,
    a_program_that_is_not_there,
    a_program_of_this_folder_needs_the_folder,
    an_agent_s_own_command_is_run,
    streams_pass_through,
    ten_megabytes_pass_unharmed_both_ways,
    the_environment_is_what_was_granted,
    variables_are_granted_by_name_and_by_value,
    what_looks_like_a_credential_is_refused,
    nothing_of_a_run_stays_behind,
    bad_usage_is_refused_with_code_2,
);

fn python_bash_git_and_node_work(lab: &Lab) {
    assert_eq!(lab.inside(["python3", "-c", "print(6*7)"]).ok(), "42\n");
    let bash = "a=(1 2 3); echo ${#a[@]}; echo a | while read x; do echo $x$x; done; pwd";
    assert_eq!(lab.inside(["bash", "-c", bash]).ok(), "3\naa\n/workspace\n");
    if testkit::need("git").is_some() {
        let script = "git init -q && git config user.name me && git config user.email me@home \
                      && echo hello > a && git add a && git commit -qm first \
                      && git log --format=%s && git status --porcelain";
        assert_eq!(lab.sh(&[], script).ok(), "first\n");
    }
    if testkit::need("node").is_some() {
        let script = "setTimeout(() => console.log([1,2,3].map(x => x * x).join()), 1)";
        assert_eq!(lab.inside(["node", "-e", script]).ok(), "1,4,9\n");
    }
}

fn exit_codes_pass_through(lab: &Lab) {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)] {
        let ran = lab.sh(&[], script);
        assert_eq!(ran.code(), code, "{script}: {ran}");
    }
    let story = lab.story();
    assert!(story.contains("The sandbox ended: exited with status 7"), "{story}");
    assert!(story.contains("signal 9"), "{story}");
}

fn a_program_that_is_not_there(lab: &Lab) {
    let said = lab.inside(["no-such-program"]).failed(127);
    assert_eq!(said, "nanoclaw: \"no-such-program\" is not in this sandbox\n");
}

fn a_program_of_this_folder_needs_the_folder(lab: &Lab) {
    let work = lab.folder(&lab.person().join("work"));
    let script = work.join("sync.sh");
    lab.file(&script, "#!/bin/sh\necho synced\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        let mut command = lab.nanoclaw(["run"]);
        command.args(args).current_dir(&work);
        finish(command, b"")
    };
    let hint = "nanoclaw: /workspace is empty; `--workspace .` shares this folder\n";
    let said = run(&["--", "./sync.sh"]).failed(127);
    assert_eq!(said, format!("nanoclaw: \"./sync.sh\" is not in this sandbox\n{hint}"));
    assert_eq!(run(&["--workspace", ".", "--", "./sync.sh"]).ok(), "synced\n");
    // Where sharing the folder would not help, nothing is said of it.
    for elsewhere in ["./absent.sh", "sync.sh"] {
        let said = run(&["--", elsewhere]).failed(127);
        assert!(!said.contains("--workspace"), "{said}");
    }
}

fn an_agent_s_own_command_is_run(lab: &Lab) {
    let text = "schema = 1\nruntime = \"command\"\ncommand = [\"sh\", \"-c\", \"echo own $0\"]\n";
    lab.file(&lab.home().join("agents/cmd.toml"), text);
    assert_eq!(lab.run(["run", "--agent", "cmd"]).ok(), "own sh\n");
    assert!(lab.story().contains("sh -c echo own"), "{}", lab.story());
    assert_eq!(lab.run(["run", "--agent", "cmd", "--", "echo", "other"]).ok(), "other\n");
    let told = lab.run(["policy", "check", "cmd"]).ok();
    assert!(told.contains("  runs sh -c \"echo own $0\"\n"), "{told}");
}

fn streams_pass_through(lab: &Lab) {
    let ran = finish(lab.nanoclaw(["run", "--", "sh", "-c", "cat; echo to-err >&2"]), b"a\0b\n");
    assert_eq!(ran.stdout, b"a\0b\n");
    assert_eq!(ran.err(), "to-err\n");
    assert_eq!(ran.code(), 0);
    // Without input the command sees its end and does not hang.
    assert_eq!(lab.inside(["wc", "-c"]).ok().trim(), "0");
}

fn ten_megabytes_pass_unharmed_both_ways(lab: &Lab) {
    let mut random = testkit::Rng::from_env();
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.byte()).take(10 << 20).collect();
    let ran = finish(lab.nanoclaw(["run", "--", "cat"]), &bytes);
    assert_eq!(ran.code(), 0, "{}", ran.err());
    assert!(ran.stdout == bytes, "{} of {} bytes came back", ran.stdout.len(), bytes.len());
}

fn the_environment_is_what_was_granted(lab: &Lab) {
    let mut command = lab.nanoclaw(["run", "--env", "GRANTED=yes", "--", "env", "-0"]);
    command.env("NOT_GRANTED", "host-only").env("LD_PRELOAD", "").env("PYTHONPATH", "/nowhere");
    let all = finish(command, b"").ok();
    assert!(!all.contains("host-only"), "{all}");
    let session = lab.story().split("assistant (").nth(1).map(|s| s[..21].to_owned()).unwrap();
    let mut lines: Vec<String> =
        all.split('\0').filter(|l| !l.is_empty()).map(|l| l.replace(&session, "SESSION")).collect();
    lines.sort();
    snapshot("run-environment", &format!("{}\n", lines.join("\n")));
}

fn variables_are_granted_by_name_and_by_value(lab: &Lab) {
    let script = "echo \"$BY_NAME,$BY_VALUE,$EMPTY,${OTHER-unset}\"";
    let flags = ["--env", "BY_NAME", "--env", "BY_VALUE=a=b c", "--env", "EMPTY="];
    let mut command = lab.nanoclaw(["run"]);
    command.args(flags).args(["--", "sh", "-c", script]);
    command.env("BY_NAME", "from outside").env("OTHER", "x");
    assert_eq!(finish(command, b"").ok(), "from outside,a=b c,,unset\n");
    let said = lab.sh(&["--env", "NOT_THERE"], "true").failed(2);
    snapshot("run-env-not-set", &said);
}

fn what_looks_like_a_credential_is_refused(lab: &Lab) {
    // As a value, and by name from the caller's environment; the value is never repeated.
    let value = "test-key-not-real";
    let said = lab.sh(&["--env", &format!("API_KEY={value}")], "true").failed(2);
    assert!(!said.contains(value), "{said}");
    snapshot("run-env-credential", &said);
    let mut command = lab.nanoclaw(["run", "--env", "API_KEY", "--", "true"]);
    command.env("API_KEY", value);
    assert_eq!(finish(command, b"").failed(2), said);
    // Nothing was started, so nothing is on record.
    assert!(!lab.home().join("audit").exists());
}

fn nothing_of_a_run_stays_behind(lab: &Lab) {
    lab.sh(&[], "echo x > /workspace/a; echo x > ~/b; echo x > /tmp/c").ok();
    let left = lab.sh(&[], "ls -A /workspace ~ /tmp").ok();
    assert_eq!(left, "/home/agent:\n\n/tmp:\n\n/workspace:\n");
    for empty in ["sessions", "run/doors"] {
        let dir = lab.home().join(empty);
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn bad_usage_is_refused_with_code_2(lab: &Lab) {
    for (name, args) in [
        ("run-without-command", &["run"][..]),
        ("run-unknown-flag", &["run", "--no-such-flag", "--", "true"]),
        ("run-bad-memory", &["run", "--memory", "lots", "--", "true"]),
        ("run-bad-timeout", &["run", "--timeout", "5 parsecs", "--", "true"]),
        ("run-bad-mount", &["run", "--mount", "/usr", "--", "true"]),
        ("run-bad-allow", &["run", "--allow", "*.example.org", "--", "true"]),
        ("run-workspace-missing", &["run", "--workspace", "/no/such/folder", "--", "true"]),
        ("run-tty-without-terminal", &["run", "-t", "--", "true"]),
        ("unknown-command", &["rnu", "--", "true"]),
    ] {
        snapshot(name, &lab.run(args).failed(2));
    }
    let said = lab.run(["run", "--agent", "nobody", "--", "true"]).failed(3);
    let home = lab.home();
    snapshot("run-unknown-agent", &said.replace(&home.display().to_string(), "HOME"));
}
