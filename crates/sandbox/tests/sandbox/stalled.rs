//! A program that stands in its own way, on purpose: what the kernel reports of it cannot be read,
//! and nobody but itself waits for it.
//!
//! One thread holds the lock of the program's address space (`mmap_lock`) for half a minute: it
//! changes the protection of many pages beside processes that take its CPU. Another thread asks
//! for executions meanwhile. The program says itself when the lock is let go, and no test here
//! looks at a clock: what happens before that word did not wait for the lock.

use crate::Test;
use crate::lab::Lab;
use crate::lifecycle::{gone, soon};
use crate::witness::{Witnessed, compiled, executed, start};
use model::SandboxSpec;
use nanoclaw_sandbox::{Operation, Outcome};
use std::io::Read;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_stalled_process_holds_up_nobody_and_executes_nothing", neighbours),
    ("a_stalled_process_ends_with_its_time", time),
    ("a_stalled_process_ends_with_its_spawner", spawner),
];

/// On a machine that is busy the lock can be let go too soon, or be had too late.
const ROUNDS: u32 = 3;

/// Arguments: how many processes take the CPU. It says `ready`, `held`, what became of two
/// executions and two connections, `done`; and `free` once the lock is let go.
const STALL: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#define FILE_BYTES (64UL << 20)
#define MAPPINGS 1000UL
#define STEP 20UL
#define ALONE 0.25 /* seconds of CPU that one change of all pages takes */
static char *base;
static size_t bytes;
static volatile int stage; /* 1: mapped, 2: about to hold the lock, 3: has let it go */
static volatile int go;

static void say(const char *word) { write(1, word, strlen(word)); }
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}
static double change(int protection) {
    double from = now();
    mprotect(base, bytes, protection);
    return now() - from;
}
static void *hold(void *unused) {
    int fd = open("/tmp/pages", O_RDWR | O_CREAT, 0600);
    pin(0);
    if (fd < 0 || ftruncate(fd, FILE_BYTES)) say("no file\n");
    base = mmap(0, FILE_BYTES * MAPPINGS, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    double alone = 0;
    while (alone < ALONE && bytes < FILE_BYTES * MAPPINGS) {
        for (size_t i = 0; i < STEP; i++, bytes += FILE_BYTES)
            if (mmap(base + bytes, FILE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED) say("no room\n");
        change(PROT_READ);
        alone = change(PROT_READ | PROT_WRITE);
    }
    stage = 1;
    while (!go) usleep(1000);
    stage = 2;
    change(PROT_READ);
    stage = 3;
    for (;;) pause();
}
static void *watch(void *unused) {
    while (stage < 3) usleep(1000);
    say("free\n");
    for (;;) pause();
}
static void tell(int result) {
    say(result == 0 ? "went on\n" : errno == EAGAIN ? "EAGAIN\n" : errno == ENOENT ? "ENOENT\n"
        : errno == ENETUNREACH ? "ENETUNREACH\n" : errno == ECONNREFUSED ? "ECONNREFUSED\n"
        : "other\n");
}
static void ask(void) {
    static char *const words[] = {"asked", 0};
    static struct sockaddr_in to = {.sin_family = AF_INET};
    tell(execve("/no/such/file", words, 0));
    tell(execve("/no/such/file", words, 0));
    for (int outside = 0; outside < 2; outside++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        to.sin_port = htons(9);
        to.sin_addr.s_addr = htonl(outside ? 0xc0000201 : INADDR_LOOPBACK);
        tell(connect(fd, (struct sockaddr *)&to, sizeof to));
        close(fd);
    }
}
int main(int argc, char **argv) {
    static pthread_t threads[2];
    static pid_t takers[256];
    int many = argc > 1 ? atoi(argv[1]) : 0;
    for (int i = 0; i < many; i++)
        if ((takers[i] = fork()) == 0) {
            pin(0);
            raise(SIGSTOP);
            for (;;);
        }
    pthread_create(&threads[0], 0, hold, 0);
    pthread_create(&threads[1], 0, watch, 0);
    while (stage < 1) usleep(1000);
    /* Once before, for no page may be missing while the lock is held. */
    ask();
    say("ready\n");
    go = 1;
    while (stage < 2) usleep(100);
    usleep(20000);
    for (int i = 0; i < many; i++) kill(takers[i], SIGCONT);
    usleep(20000);
    say("held\n");
    ask();
    say("done\n");
    for (;;) pause();
}
"#;

/// Processes that take the CPU; a sandbox may have 256.
const TAKERS: &str = "120";

/// A sandbox that is to stall; `None` where there is no compiler.
fn spec(lab: &Lab) -> Option<SandboxSpec> {
    let program = compiled(lab, "stall", STALL)?;
    let mut spec = lab.spec(&["/mnt/stall", TAKERS]);
    spec.mounts.push(program);
    // Or the kernel stops those that take the CPU, and not who holds the lock inside it.
    spec.limits.cpu_milli.value = 4_000;
    Some(spec)
}

/// What it prints up to this word, and with it; less when it has ended.
fn up_to(witnessed: &mut Witnessed, word: &str) -> String {
    let (mut said, mut byte) = (Vec::new(), [0]);
    let out = &mut witnessed.pipes.as_mut().unwrap().stdout;
    while !said.ends_with(word.as_bytes()) && out.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

/// What else it printed before its end.
fn rest(witnessed: &mut Witnessed) -> String {
    let mut said = String::new();
    witnessed.pipes.as_mut().unwrap().stdout.read_to_string(&mut said).unwrap();
    said
}

/// Tries it until the lock was held for all of it.
fn in_some_round(round: impl Fn(u32) -> Result<(), String>) {
    for number in 1..=ROUNDS {
        match round(number) {
            Ok(()) => return,
            Err(said) => println!("  round {number}: the lock was let go before the end: {said:?}"),
        }
    }
    panic!("something waited for the lock, {ROUNDS} times");
}

/// Before the lock is held: an execution of nothing, and the two connections.
const BEFORE: &str = "ENOENT\nENOENT\nECONNREFUSED\nENETUNREACH\nready\n";
/// While it is held.
const MEANWHILE: &str = "held\nEAGAIN\nEAGAIN\nEAGAIN\nEAGAIN\ndone\n";

/// Starts one that stalls; what it said when it did not stall to the end.
fn stalled(lab: &Lab, spec: &SandboxSpec) -> Result<Witnessed, String> {
    let mut witnessed = start(lab, spec, |_| ());
    let before = up_to(&mut witnessed, "ready\n");
    let meanwhile = up_to(&mut witnessed, "done\n");
    if before == BEFORE && meanwhile == MEANWHILE {
        return Ok(witnessed);
    }
    let _ = witnessed.sandbox.kill();
    let _ = witnessed.sandbox.wait();
    Err(before + &meanwhile)
}

fn neighbours(lab: &Lab) {
    let Some(spec) = spec(lab) else { return };
    in_some_round(|_| {
        let mut witnessed = stalled(lab, &spec)?;
        // One that executes and is reported, from its start to its end.
        let (out, _, all) = start(lab, &lab.sh("/bin/echo meanwhile"), |_| ()).end();
        assert_eq!(out, "meanwhile\n");
        assert!(executed(&all).iter().any(|e| e.path == "/bin/echo"), "{all:#?}");
        witnessed.sandbox.kill().unwrap();
        let ended = witnessed.sandbox.wait();
        let said = rest(&mut witnessed);
        if said.contains("free") {
            return Err(said);
        }
        assert_eq!(ended.outcome, Outcome::Killed("by request".to_owned()));
        let all = witnessed.taker.join().unwrap();
        let lost = all.iter().filter_map(|o| match o {
            Operation::Lost { count, reason } if reason.contains("in time") => Some(*count),
            _ => None,
        });
        assert_eq!(lost.sum::<u64>(), 4, "two executions, two connections: {all:#?}");
        let counts = ended.operations.unwrap();
        assert_eq!(counts.lost, 4);
        // What was asked for before was let go on, and is on record; after it nothing was.
        let asked = executed(&all).into_iter().filter(|e| e.path == "/no/such/file").count();
        assert_eq!((asked, counts.executions), (2, executed(&all).len() as u64));
        Ok(())
    });
}

fn time(lab: &Lab) {
    let Some(spec) = spec(lab) else { return };
    in_some_round(|number| {
        let mut spec = spec.clone();
        // It takes seconds to come to the lock, and holds it for half a minute.
        let limit = testkit::patience(Duration::from_secs(10)) * number;
        spec.limits.wall_ms = Some(u64::try_from(limit.as_millis()).unwrap());
        let mut witnessed = stalled(lab, &spec)?;
        let ended = witnessed.sandbox.wait();
        let said = rest(&mut witnessed);
        if said.contains("free") {
            return Err(said);
        }
        let Outcome::Killed(why) = &ended.outcome else { panic!("{:?}", ended.outcome) };
        assert!(why.starts_with("its time of"), "{why}");
        Ok(())
    });
}

fn spawner(lab: &Lab) {
    if !lab.native() {
        // A container ends with the product, for which the tests of engines have a process.
        return;
    }
    in_some_round(|number| {
        let own = Lab::new(&format!("stalled-{number}"));
        let Some(spec) = spec(&own) else { return Ok(()) };
        let mut witnessed = stalled(&own, &spec)?;
        let spawner = crate::lifecycle::own_spawner(&own);
        crate::lifecycle::kill(spawner);
        assert!(soon(|| gone(spawner)), "the spawner cannot be killed");
        let said = rest(&mut witnessed);
        if said.contains("free") { Err(said) } else { Ok(()) }
    });
}
