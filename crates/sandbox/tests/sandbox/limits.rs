//! Limits hold.

use crate::Test;
use crate::lab::Lab;
use model::{Limit, Strictness};
use nanoclaw_sandbox::{Outcome, Rung, SpecErrorKind, StartErrorKind};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("fork_bomb_is_stopped", forks),
    ("memory_bomb_is_stopped", memory),
    ("what_ran_out_of_memory_is_told_from_what_was_killed", out_of_memory),
    ("cpu_is_limited", cpu),
    ("file_size_is_limited", file),
    ("shared_memory_counts_wherever_it_is_kept", shared),
    ("memory_that_processes_share_counts_once", once),
    ("queues_of_sockets_are_within_the_memory_limit", sockets),
    ("one_sandbox_leaves_watchers_of_files_to_its_user", watchers),
    ("required_limits_are_hard_or_refused", required),
    ("what_is_kept_on_the_disk_is_counted_and_stopped", disk),
    ("a_deleted_file_that_is_held_open_counts", deleted),
    ("a_session_over_its_disk_limit_does_not_start", full),
    ("a_sandbox_ends_when_its_time_is_over", wall),
    ("what_was_used_is_measured_or_not_said", used),
    ("nobody_inside_sets_limits_of_the_first_process", first_process),
    ("nobody_inside_sets_the_priority_of_the_first_process", first_priority),
];

const MIB: u64 = 1 << 20;

/// The words of an end that nobody asked for.
fn killed(ended: &nanoclaw_sandbox::Ended) -> &str {
    match &ended.outcome {
        Outcome::Killed(why) => why,
        other => panic!("it was not stopped: {other:?}"),
    }
}

fn disk(lab: &Lab) {
    let script = "i=0; while [ $i -lt $1 ]; do head -c 1048576 /dev/zero > f$i; i=$((i+1)); \
                  sleep 0.02; done; echo wrote $i";
    let writes = |count: &str| {
        let mut spec = lab.spec(&["/bin/sh", "-c", script, "sh", count]);
        spec.limits.disk_bytes = Some(8 * MIB);
        spec
    };
    // Below the limit nothing happens, though it is there and on record.
    let spec = writes("4");
    let prepared = lab.spawner.prepare(&spec, nanoclaw_sandbox::Stdio::null().unwrap()).unwrap();
    let state = prepared.report().limits.iter().find(|l| l.limit == "disk").unwrap().clone();
    assert!(state.enforced_by.starts_with("no quota: counted"), "{state:?}");
    drop(prepared);
    let done = lab.run(&spec);
    let kept = done.ended.usage.disk_bytes.unwrap();
    assert!((4 * MIB..6 * MIB).contains(&kept), "{kept}");
    assert_eq!(done.ok(), "wrote 4\n");
    let started = Instant::now();
    let done = lab.run(&writes("2000"));
    assert!(killed(&done.ended).contains("over its limit of 8388608"), "{:?}", done.ended);
    assert!(started.elapsed() < testkit::patience(Duration::from_secs(20)), "{started:?}");
    assert_eq!(done.out, "");
    // Home counts as well.
    let mut home = lab.sh("head -c 20000000 /dev/zero > ~/big; sleep 50");
    home.limits.disk_bytes = Some(8 * MIB);
    assert!(killed(&lab.run(&home).ended).contains("over its limit"), "home");
    // Without the limit nobody counts.
    let free = lab.run(&lab.sh("head -c 20000000 /dev/zero > big"));
    assert_eq!((free.ended.outcome, free.ended.usage.disk_bytes), (Outcome::Exited(0), None));
}

fn deleted(lab: &Lab) {
    let script = "import os,time\nf=open('/workspace/x','wb')\nos.unlink('/workspace/x')\n\
                  f.write(bytes(20<<20))\nf.flush()\ntime.sleep(50)";
    let mut spec = lab.spec(&["python3", "-c", script]);
    spec.limits.disk_bytes = Some(8 * MIB);
    let started = Instant::now();
    assert!(killed(&lab.run(&spec).ended).contains("over its limit"));
    assert!(started.elapsed() < testkit::patience(Duration::from_secs(20)));
}

fn full(lab: &Lab) {
    let mut spec = lab.sh("true");
    spec.limits.disk_bytes = Some(2 * MIB);
    std::fs::write(spec.home.join("kept"), vec![1; 3 << 20]).unwrap();
    let error = lab.refused(&spec);
    assert_eq!(error.kind, StartErrorKind::Spec(SpecErrorKind::Limit));
    assert!(error.cause.contains("over its disk limit of 2097152"), "{error}");
    spec.limits.disk_bytes = Some(8 * MIB);
    lab.run(&spec).ok();
    // More than the whole file system is no limit.
    spec.limits.disk_bytes = Some(1 << 50);
    let error = lab.refused(&spec);
    assert!(error.cause.contains("its file system has"), "{error}");
}

fn wall(lab: &Lab) {
    let mut spec = lab.sh("trap '' TERM; echo on; sleep 50");
    let time = testkit::patience(Duration::from_millis(700));
    spec.limits.wall_ms = Some(u64::try_from(time.as_millis()).unwrap());
    let started = Instant::now();
    let done = lab.run(&spec);
    assert_eq!(killed(&done.ended), format!("its time of {:.3} s is over", time.as_secs_f64()));
    let took = started.elapsed();
    assert!((time..testkit::patience(Duration::from_secs(10))).contains(&took), "{took:?}");
    assert_eq!(done.out, "on\n");
    spec.limits.wall_ms = Some(1_000_000);
    spec.command = lab.sh("echo in time").command;
    assert_eq!(lab.run(&spec).ok(), "in time\n");
}

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

fn used(lab: &Lab) {
    let script = "for i in 1 2 3 4 5 6; do sleep 0.3 & done; python3 -c 'x=b\"y\"*(40<<20)'; wait";
    let usage = lab.run(&lab.sh(script)).ended.usage;
    assert!(usage.cpu_ms > 0 && usage.peak_memory_bytes >= 40 << 20, "{usage:?}");
    // Init, the shell, six sleepers; what no kernel counted is not made up.
    let counted = lab.spawner.facts().ladder.pids != Rung::Fallback && kernel_counts_tasks();
    assert_eq!(usage.peak_pids.is_some(), counted, "{usage:?}");
    assert!(usage.peak_pids.is_none_or(|most| (8..40).contains(&most)), "{usage:?}");
    assert_eq!(usage.disk_bytes, None, "it has no limit, so nobody counted");
}

/// `pids.peak` is there since Linux 6.11.
fn kernel_counts_tasks() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(['.', '-']).map_while(|n| n.trim().parse::<u32>().ok());
    (parts.next().unwrap(), parts.next().unwrap()) >= (6, 11)
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

/// Kept from running, it could not end when it is killed, and what is in it would run on.
fn first_priority(lab: &Lab) {
    let script = "
import os
acts = {
    'policy': lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    'param': lambda pid: os.sched_setparam(pid, os.sched_param(0)),
    'affinity': lambda pid: os.sched_setaffinity(pid, [min(os.sched_getaffinity(0))]),
    'nice': lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 5),
    'user': lambda pid: os.setpriority(os.PRIO_USER, 0, 5) if pid else None,
    'group': lambda pid: os.setpriority(os.PRIO_PGRP, pid, 5) if pid else None,
}
for name, act in acts.items():
    act(0)
    try: act(1)
    except PermissionError: pass
    else: print(name)
print(os.sched_getscheduler(1), os.getpriority(os.PRIO_PROCESS, 1))
";
    let nice = lab.out("cut -d' ' -f19 /proc/self/stat");
    let told = lab.run(&lab.spec(&["python3", "-c", script])).ok();
    assert_eq!(told, format!("0 {nice}"));
}

/// Kinds that no file system bounds. A watchdog sees those that stand without a map of them.
fn shared(lab: &Lab) {
    let fill = "import ctypes, mmap, os, sys, time
c = ctypes.CDLL(None, use_errno=True)
c.shmat.restype = ctypes.c_void_p
size, piece = 300 << 20, bytes(1 << 20)
def memfd():
    fd = os.memfd_create('x')
    for _ in range(size >> 20): os.write(fd, piece)
def anonymous():
    global kept
    kept = mmap.mmap(-1, size)
    for _ in range(size >> 20): kept.write(piece)
def segment():
    at = ctypes.c_void_p(c.shmat(c.shmget(0, ctypes.c_size_t(size), 0o600), None, 0))
    ctypes.memset(at, 1, size)
    c.shmdt(at)
def thread():
    import threading
    memfd()
    threading.Thread(target=lambda: (time.sleep(9), print('held'), sys.stdout.flush())).start()
    c.syscall(60, 0)
globals()[sys.argv[1]]()
time.sleep(9)
print('held')";
    let watched = lab.spawner.facts().ladder.memory == Rung::Fallback && lab.native();
    let kinds = ["memfd", "segment"].into_iter().chain((!watched).then_some("anonymous"));
    // The number of a system call is an architecture's own.
    let more = cfg!(target_arch = "x86_64").then_some("thread");
    for kind in kinds.chain(more) {
        let mut spec = lab.spec(&["python3", "-c", fill, kind]);
        spec.limits.memory_bytes.value = 64 << 20;
        let done = lab.run(&spec);
        assert_eq!(done.out, "", "{kind}: {:?}", done.ended);
        let wanted = if watched {
            Outcome::Killed(nanoclaw_sandbox::OVER_MEMORY.to_owned())
        } else {
            Outcome::OutOfMemory
        };
        assert_eq!(done.ended.outcome, wanted, "{kind}: {}", done.err);
    }
}

fn once(lab: &Lab) {
    let share = "import mmap, os, time
kept, size = mmap.mmap(-1, 40 << 20), 40 << 20
for _ in range(40): kept.write(bytes(1 << 20))
fd = os.memfd_create('x')
os.write(fd, bytes(20 << 20))
file = mmap.mmap(fd, 20 << 20)
for _ in range(8):
    if os.fork() == 0:
        sum(kept[::4096]); sum(file[::4096]); time.sleep(2); os._exit(0)
for _ in range(8): os.wait()
print('went on')";
    let mut spec = lab.spec(&["python3", "-c", share]);
    spec.limits.memory_bytes.value = 160 << 20;
    let done = lab.run(&spec);
    assert_eq!(done.out, "went on\n", "{:?} {}", done.ended, done.err);
}

/// A plain user's sandbox without a control group has no such limit, as the threat model says.
fn sockets(lab: &Lab) {
    if lab.spawner.facts().ladder.memory == Rung::Fallback {
        return;
    }
    let fill = "import socket
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen(200)
kept, total, piece = [], 0, bytes(1 << 16)
for _ in range(150):
    one = socket.create_connection(server.getsockname())
    other, _ = server.accept()
    kept += [one, other]
    for end in (one, other):
        end.setblocking(False)
        try:
            while True: total += end.send(piece)
        except BlockingIOError: pass
        end.setblocking(True)
print(total)";
    let mut spec = lab.spec(&["python3", "-c", fill]);
    spec.limits.memory_bytes = Limit { value: 64 << 20, strictness: Strictness::Required };
    let done = lab.run(&spec);
    // Where they are charged to all memory, that ends it.
    if done.ended.outcome != Outcome::OutOfMemory {
        let held: u64 = done.ok().trim().parse().unwrap();
        println!("    sockets: {} MiB unread", held / MIB);
        assert!(held < 64 * MIB, "{} MiB unread in queues", held / MIB);
    }
}

/// As root every session has a uid of its own, and with it a count of its own.
fn watchers(lab: &Lab) {
    if lab.root() || !lab.native() {
        return;
    }
    let take = "import ctypes
c, n = ctypes.CDLL(None), 0
while c.inotify_init1(0) >= 0: n += 1
print(n)";
    let taken: u32 = lab.run(&lab.spec(&["python3", "-c", take])).ok().trim().parse().unwrap();
    assert!((1..=32).contains(&taken), "{taken}");
}
