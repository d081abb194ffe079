//! Programs work: streams, status, environment, tools.

use crate::Test;
use crate::lab::Lab;
use model::Command;
use nanoclaw_sandbox::{Outcome, Stdio};
use std::process::ExitCode;

pub(crate) const TESTS: &[Test] = &[
    ("hello", |lab| assert_eq!(lab.out("echo hello"), "hello\n")),
    ("status_passes_through", status),
    ("streams_pass_through", streams),
    ("environment_is_exact", environment),
    ("builtin_runs_the_sealed_image", sealed),
    ("a_probe_runs_before_the_program_and_its_failure_refuses_the_start", probe),
    ("tools_work", tools),
    ("pty_works", pty),
];

/// What the test program does as a sandbox's own image.
pub(crate) fn builtin(args: &[String]) -> ExitCode {
    match args.first().map(String::as_str) {
        // As a probe: says who it is, and can misbehave.
        Some("say") => {
            let id = rustix::process::getpid();
            println!("pid {id}, {:?}", std::env::vars().collect::<Vec<_>>());
            return ExitCode::SUCCESS;
        }
        Some("flood") => loop {
            println!("{}", "x".repeat(1_000));
        },
        _ => {}
    }
    let exe = std::fs::read_link("/proc/self/exe").unwrap();
    println!("{} {args:?}", exe.display());
    ExitCode::from(7)
}

fn status(lab: &Lab) {
    for (script, want) in [
        ("exit 0", Outcome::Exited(0)),
        ("exit 7", Outcome::Exited(7)),
        ("exit 137", Outcome::Exited(137)),
        ("kill -TERM $$", Outcome::Signaled(15)),
        ("kill -KILL $$", Outcome::Signaled(9)),
    ] {
        assert_eq!(lab.run(&lab.sh(script)).ended.outcome, want, "{script}");
    }
    let missing = lab.run(&lab.spec(&["no-such-program"]));
    assert_eq!(missing.ended.outcome, Outcome::Exited(127));
    assert!(missing.err.contains("no-such-program"), "{}", missing.err);
    assert_eq!(lab.run(&lab.spec(&["/etc/passwd"])).ended.outcome, Outcome::Exited(126));
}

fn streams(lab: &Lab) {
    let text = "x".repeat(300_000);
    let done = lab.feed(&lab.sh("cat; echo problem >&2"), text.as_bytes());
    assert_eq!(done.err, "problem\n");
    assert_eq!(done.ok(), text);
    assert_eq!(lab.out("ls /proc/self/fd | wc -l").trim(), "4", "0, 1, 2 and ls's own");
    // A broken pipe kills, as it must: no ignored SIGPIPE is inherited.
    assert_eq!(lab.out("(yes; echo $? >&2) 2>/tmp/s | head -1; cat /tmp/s"), "y\n141\n");
}

fn environment(lab: &Lab) {
    let mut spec = lab.spec(&["/usr/bin/env"]);
    spec.env = [("ONE".to_owned(), "1".to_owned()), ("TWO".to_owned(), "a b".to_owned())].into();
    assert_eq!(lab.run(&spec).ok(), "ONE=1\nTWO=a b\n");
    let spec = lab.sh("cat /proc/1/environ 2>/dev/null | wc -c");
    assert_eq!(lab.run(&spec).ok().trim(), "0");
}

/// What is asked to look at the walls runs in the program's place before it, and speaks to the
/// report alone.
fn probe(lab: &Lab) {
    let asked = |words: &[&str]| {
        let mut spec = lab.sh("echo ran");
        spec.env = [("ONE".to_owned(), "1".to_owned())].into();
        spec.probe = words.iter().map(|w| (*w).to_owned()).collect();
        spec
    };
    let (stdio, mut pipes) = Stdio::piped().unwrap();
    let prepared = lab.spawner.prepare(&asked(&["__builtin", "say"]), stdio).unwrap();
    let said = prepared.report().probes.clone();
    let said = said.unwrap();
    let number = said.strip_prefix("pid ").and_then(|s| s.strip_suffix(", [(\"ONE\", \"1\")]\n"));
    assert!(number.is_some_and(|n| lab.first_number(n)), "{said}");
    let sandbox = prepared.start().unwrap();
    let mut out = String::new();
    std::io::Read::read_to_string(&mut pipes.stdout, &mut out).unwrap();
    assert_eq!(out, "ran\n");
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(0));
    for (words, why) in
        [(["__builtin", "fail"], "wait status 0x700"), (["__builtin", "flood"], "bytes")]
    {
        let error = lab.refused(&asked(&words));
        assert_eq!(error.kind, nanoclaw_sandbox::StartErrorKind::Verification, "{error}");
        assert!(error.cause.contains(why), "{error}");
    }
    let silent = lab.spawner.prepare(&lab.sh("true"), Stdio::null().unwrap()).unwrap();
    assert_eq!(silent.report().probes, None);
}

fn sealed(lab: &Lab) {
    let mut spec = lab.sh("");
    spec.command = Command::Builtin(vec!["__builtin".into(), "a".into()]);
    let done = lab.run(&spec);
    assert_eq!(done.ended.outcome, Outcome::Exited(7), "{}", done.err);
    assert!(done.out.contains("memfd:nanoclaw") && done.out.contains("[\"a\"]"), "{}", done.out);
    let done = lab.run(&lab.spec(&[nanoclaw_sandbox::BINARY_INSIDE, "__builtin", "b"]));
    assert_eq!(done.ended.outcome, Outcome::Exited(7), "{}", done.err);
    assert!(done.out.contains("/run/nanoclaw/nanoclaw"), "{}", done.out);
    assert!(lab.out("touch /run/nanoclaw/nanoclaw 2>&1 || true").contains("touch"));
}

fn tools(lab: &Lab) {
    let cases = [
        (
            "python3",
            "python3 -uc 'import threading,subprocess,ssl,sqlite3;\
             t=threading.Thread(target=print,args=(6*7,));t.start();t.join();\
             subprocess.run([\"echo\",\"sub\"])'",
            "42\nsub\n",
        ),
        ("bash", "bash -c 'a=(1 2 3); echo ${#a[@]}; cat <(echo x)'", "3\nx\n"),
        (
            "git",
            "git init -q r && cd r && echo a > f && git add f && \
             git -c user.name=a -c user.email=a@example.org commit -qm one && \
             git log --oneline | wc -l",
            "1\n",
        ),
        (
            "node",
            "node -e 'const {Worker}=require(\"worker_threads\");\
             const c=require(\"child_process\");\
             console.log(process.getuid(),c.execSync(\"echo n\").toString().trim());\
             new Worker(\"console.log(7)\",{eval:true})'",
            "1000 n\n7\n",
        ),
        (
            "gcc",
            "printf '#include <stdio.h>\\nint main(){puts(\"c\");}' > a.c && gcc a.c -o a && ./a",
            "c\n",
        ),
    ];
    for (tool, script, want) in cases {
        let script_found = format!("command -v {tool}");
        let found = std::process::Command::new("sh").args(["-c", &script_found]).output();
        if !found.is_ok_and(|o| o.status.success()) {
            assert_eq!(crate::skip(&format!("tools_work::{tool}"), "not installed"), 0);
            continue;
        }
        assert_eq!(lab.out(script), want, "{tool}");
    }
}

fn pty(lab: &Lab) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
    let spec = lab.sh("test -t 0 && echo tty; echo direct > /dev/tty; echo again > /dev/stdout; \
         python3 -c 'import fcntl;fcntl.ioctl(0,0x5412,b\"x\")' 2>&1 | grep -o 'Errno 1'; \
         exec python3 -c 'import os,signal;signal.signal(signal.SIGWINCH,lambda *a:None);\
         signal.pthread_sigmask(signal.SIG_BLOCK,[signal.SIGWINCH]);print(\"wide?\",flush=True);\
         signal.sigwait([signal.SIGWINCH]);print(*os.get_terminal_size(0))'");
    let stdio = Stdio::terminal(slave).unwrap();
    let sandbox = lab.spawner.prepare(&spec, stdio).unwrap().start().unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    let mut asked = false;
    while let Ok(n) = rustix::io::read(&master, &mut buffer) {
        if n == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..n]);
        if !asked && String::from_utf8_lossy(&text).contains("wide?") {
            asked = true;
            let size =
                rustix::termios::Winsize { ws_row: 7, ws_col: 91, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&master, size).unwrap();
        }
    }
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    // Whoever holds the terminal outside makes it wider, and the program hears of it.
    assert_eq!(text, "tty\ndirect\nagain\nErrno 1\nwide?\n91 7\n");
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(0));
}
