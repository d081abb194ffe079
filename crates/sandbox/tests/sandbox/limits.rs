//! Limits hold.

use crate::Test;
use crate::lab::Lab;
use model::{Limit, Strictness};
use nanoclaw_sandbox::{Outcome, Rung, StartErrorKind};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("fork_bomb_is_stopped", forks),
    ("memory_bomb_is_stopped", memory),
    ("what_ran_out_of_memory_is_told_from_what_was_killed", out_of_memory),
    ("cpu_is_limited", cpu),
    ("file_size_is_limited", file),
    ("required_limits_are_hard_or_refused", required),
    ("nobody_inside_sets_limits_of_the_first_process", first_process),
];

fn forks(lab: &Lab) {
    let mut spec = lab.spec(&[
        "python3",
        "-c",
        "import os,time\nn=0\ntry:\n  while True:\n    if os.fork()==0: time.sleep(60)\n    \
         n+=1\nexcept OSError as e: print(n,e.errno)",
    ]);
    spec.limits.pids.value = 20;
    let out = lab.run(&spec).ok();
    let (count, errno) = out.trim().split_once(' ').unwrap();
    assert_eq!(errno, "11", "EAGAIN");
    assert!(count.parse::<u32>().unwrap() <= 19, "{out}");
}

fn memory(lab: &Lab) {
    // Several processes, so that no limit of a single one is what stops it.
    let mut spec = lab.spec(&[
        "python3",
        "-c",
        "import os,time\nfor i in range(4):\n  if os.fork()==0:\n    x=[]\n    \
         while True: x.append(bytearray(1<<20))\nos.wait();os.wait();os.wait();os.wait()\nprint('ended')",
    ]);
    spec.limits.memory_bytes.value = 64 << 20;
    let started = Instant::now();
    let done = lab.run(&spec);
    assert!(started.elapsed() < testkit::patience(Duration::from_secs(20)));
    let usage = done.ended.usage;
    if lab.spawner.facts().ladder.memory == Rung::Fallback {
        // Each child meets RLIMIT_DATA, or the watchdog kills all.
        assert!(
            matches!(done.ended.outcome, Outcome::Exited(0) | Outcome::Killed(_)),
            "{done_:?}",
            done_ = done.ended
        );
    } else {
        assert!(usage.oom_kills > 0, "{usage:?}");
        assert!(usage.peak_memory_bytes <= 64 << 20, "{usage:?}");
    }
}

fn out_of_memory(lab: &Lab) {
    let kill = "kill -9 $$";
    assert_eq!(lab.run(&lab.sh(kill)).ended.outcome, Outcome::Signaled(9));
    let mut spec = lab.spec(&["python3", "-c", "x = bytearray(300 << 20); print('had it all')"]);
    spec.limits.memory_bytes.value = 64 << 20;
    let done = lab.run(&spec);
    assert_eq!(done.out, "");
    if lab.spawner.facts().ladder.memory == Rung::Fallback {
        // RLIMIT_DATA refuses it, and the program gives up by itself.
        assert_eq!(done.ended.outcome, Outcome::Exited(1), "{}", done.err);
        return;
    }
    assert_eq!(done.ended.outcome, Outcome::OutOfMemory, "{:?}", done.ended.usage);
    assert_eq!(done.ended.outcome.to_string(), "killed: it ran out of memory");
}

fn cpu(lab: &Lab) {
    if lab.spawner.facts().ladder.cpu == Rung::Fallback {
        let prepared =
            lab.spawner.prepare(&lab.sh("true"), nanoclaw_sandbox::Stdio::null().unwrap());
        let prepared = prepared.unwrap();
        let cpu = prepared.report().limits.iter().find(|l| l.limit == "cpu").unwrap();
        assert!(cpu.enforced_by.starts_with("nothing"), "said aloud: {cpu:?}");
        return;
    }
    // Without what the start of the interpreter took.
    let script = "import time\np,t=time.process_time(),time.monotonic()\n\
                  while time.monotonic()-t<1: pass\nprint(time.process_time()-p)";
    let mut spec = lab.spec(&["python3", "-c", script]);
    spec.limits.cpu_milli.value = 200;
    let used: f64 = lab.run(&spec).ok().trim().parse().unwrap();
    assert!(used < 0.5, "{used} s in one second");
}

fn file(lab: &Lab) {
    let mut spec = lab.sh("head -c 2000000 /dev/zero > big; stat -c %s big");
    spec.limits.file_bytes = 1_000_000;
    assert_eq!(lab.run(&spec).ok(), "1000000\n");
}

fn required(lab: &Lab) {
    let mut spec = lab.sh("true");
    spec.limits.memory_bytes = Limit { value: 64 << 20, strictness: Strictness::Required };
    if lab.spawner.facts().ladder.memory == Rung::Fallback {
        let error = lab.refused(&spec);
        assert_eq!(error.kind, StartErrorKind::Limit);
        assert!(error.remedy.contains("Delegate"), "{error}");
    } else {
        lab.run(&spec).ok();
    }
}

/// With a limit of no processor time at all the kernel kills it as soon as it has something to do,
/// such as a child to collect.
fn first_process(lab: &Lab) {
    let script = "
import os, resource, time
try:
    resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
    print('limited')
except PermissionError:
    print('refused')
resource.prlimit(os.getpid(), resource.RLIMIT_CORE, (0, 0))
end = time.monotonic() + 0.5
while time.monotonic() < end:
    if os.fork() == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
print('there')
";
    assert_eq!(lab.run(&lab.spec(&["python3", "-c", script])).ok(), "refused\nthere\n");
}
