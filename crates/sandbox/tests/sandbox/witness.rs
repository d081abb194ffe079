//! What the kernel reports of a sandbox, whatever the program says.

use crate::Test;
use crate::lab::Lab;
use model::{Backend, SandboxSpec};
use nanoclaw_sandbox::{
    Ended, Execution, Operation, OperationCounts, Operations, Outcome, Pipes, Refusal, Sandbox,
    Stdio,
};
use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("every_execution_is_reported_with_what_was_passed", executions),
    ("what_runs_afterwards_is_read_back", images),
    ("connections_outward_are_refused_and_reported", connections),
    ("the_loopback_and_unix_sockets_are_nobodys_business", loopback),
    ("a_program_that_rewrites_its_arguments_shows_why_they_are_marked", race),
    ("a_full_queue_refuses_executions_and_says_how_many", full),
    ("an_undumpable_process_is_read_all_the_same", undumpable),
    ("nobody_inside_can_take_the_place_of_the_witness", own_listener),
    ("signals_do_not_double_or_break_an_execution", signals),
    ("without_a_witness_nothing_is_reported", off),
    ("sandboxes_are_reported_apart", apart),
];

/// A sandbox that is being witnessed, with what was reported so far.
pub(crate) struct Witnessed {
    pub(crate) sandbox: Sandbox,
    pub(crate) pipes: Option<Pipes>,
    pub(crate) taker: JoinHandle<Vec<Operation>>,
}

pub(crate) fn start(
    lab: &Lab,
    spec: &SandboxSpec,
    take: impl FnOnce(&Operations) + Send + 'static,
) -> Witnessed {
    let mut spec = spec.clone();
    spec.witness = true;
    let (stdio, pipes) = Stdio::piped().unwrap();
    let mut prepared = lab.spawner.prepare(&spec, stdio).unwrap();
    let operations = prepared.operations().expect("the spec wants them");
    assert!(prepared.operations().is_none(), "they are given once");
    let taker = std::thread::spawn(move || {
        take(&operations);
        let mut all = Vec::new();
        while let Some(batch) = operations.next_batch() {
            operations.taken(&batch);
            all.extend(batch);
        }
        all
    });
    Witnessed { sandbox: prepared.start().unwrap(), pipes: Some(pipes), taker }
}

impl Witnessed {
    /// What it printed, and all reports; it must have ended well.
    pub(crate) fn end(mut self) -> (String, Ended, Vec<Operation>) {
        let mut pipes = self.pipes.take().unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        pipes.stdout.read_to_string(&mut out).unwrap();
        pipes.stderr.read_to_string(&mut err).unwrap();
        let ended = self.sandbox.wait();
        assert_eq!(ended.outcome, Outcome::Exited(0), "{out}{err}");
        (out, ended, self.taker.join().unwrap())
    }
}

fn witness(lab: &Lab, spec: &SandboxSpec) -> (String, Ended, Vec<Operation>) {
    start(lab, spec, |_| ()).end()
}

pub(crate) fn executed(all: &[Operation]) -> Vec<&Execution> {
    let mut found = Vec::new();
    for operation in all {
        if let Operation::Executed(execution) = operation {
            found.push(execution);
        }
    }
    found
}

fn refused(all: &[Operation]) -> Vec<&Refusal> {
    let mut found = Vec::new();
    for operation in all {
        if let Operation::Refused(refusal) = operation {
            found.push(refusal);
        }
    }
    found
}

fn seen(all: &[Operation], number: u64) -> Result<String, String> {
    let of = |o: &Operation| match o {
        Operation::Image(image) if image.number == number => Some(image.seen.clone()),
        _ => None,
    };
    let mut images: Vec<_> = all.iter().filter_map(of).collect();
    assert_eq!(images.len(), 1, "each execution has one image: {all:#?}");
    images.remove(0)
}

fn executions(lab: &Lab) {
    let script = "cd /tmp && /usr/bin/env LANG=C printf '%s' 'two words' >/dev/null; \
                  /no/such/file; \
                  exec /usr/bin/python3 -c 'print(7)' '' end";
    let (out, ended, all) = witness(lab, &lab.sh(script));
    assert_eq!(out, "7\n");
    let found = executed(&all);
    let paths: Vec<&str> = found.iter().map(|e| e.path.as_str()).collect();
    for path in ["/bin/sh", "/usr/bin/env", "/no/such/file", "/usr/bin/python3"] {
        assert!(paths.contains(&path), "{path} is not in {paths:?}");
    }
    let env = found.iter().find(|e| e.path == "/usr/bin/env").unwrap();
    assert_eq!(env.argv, ["/usr/bin/env", "LANG=C", "printf", "%s", "two words"]);
    assert_eq!(env.cwd.as_deref(), Some("/tmp"));
    let python = found.iter().find(|e| e.path.ends_with("python3")).unwrap();
    assert_eq!(python.argv, ["/usr/bin/python3", "-c", "print(7)", "", "end"]);
    for one in &found {
        assert!(one.whole && one.unread.is_none() && one.pid > 1, "{one:?}");
    }
    let numbers: Vec<u64> = found.iter().map(|e| e.number).collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
    let executions = found.len() as u64;
    let counts = OperationCounts { executions, refusals: 0, lost: 0 };
    assert_eq!(ended.operations, Some(counts));
    // The first program's shell became python: one process, as it has it itself.
    let shell = found.iter().find(|e| e.path == "/bin/sh").unwrap();
    assert_eq!(python.pid, shell.pid);
}

fn images(lab: &Lab) {
    let script = "ln -s /usr/bin/sleep /tmp/nap; /tmp/nap 0.3; /no/such/file; \
                  cp /usr/bin/sleep /tmp/gone; \
                  (sleep 0.2; rm /tmp/gone) & /tmp/gone 0.5; wait";
    let (_, _, all) = witness(lab, &lab.sh(script));
    let of = |path: &str| {
        let one = executed(&all).into_iter().find(|e| e.path == path);
        seen(&all, one.unwrap_or_else(|| panic!("{path}: {all:#?}")).number)
    };
    let sleep = std::fs::canonicalize("/usr/bin/sleep").unwrap();
    assert_eq!(of("/tmp/nap").as_deref(), Ok(sleep.to_str().unwrap()), "where the link leads");
    assert_eq!(of("/tmp/gone").as_deref(), Ok("/tmp/gone"));
    assert!(of("/no/such/file").is_err(), "{:?}", of("/no/such/file"));
    let shell = executed(&all)[0].number;
    let dash = std::fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(seen(&all, shell).as_deref(), Ok(dash.to_str().unwrap()));
    // Each has exactly one, whether it was seen or not.
    for one in executed(&all) {
        let _ = seen(&all, one.number);
    }
}

const CONNECT: &str = "
import errno, socket
def tried(what):
    try: what(); print('through')
    except OSError as e: print(errno.errorcode[e.errno])
def dial(family, kind, address):
    s = socket.socket(family, kind)
    s.settimeout(2)
    tried(lambda: s.connect(address))
dial(socket.AF_INET, socket.SOCK_STREAM, ('192.0.2.1', 443))
dial(socket.AF_INET, socket.SOCK_DGRAM, ('192.0.2.2', 53))
dial(socket.AF_INET6, socket.SOCK_STREAM, ('2001:db8::1', 443))
for family, kind in ((17, 3), (2, 3), (10, 3), (16, 3), (40, 1)):
    tried(lambda: socket.socket(family, kind, 12 if family == 16 else 0))
";

fn connections(lab: &Lab) {
    let (out, ended, all) = witness(lab, &lab.spec(&["python3", "-c", CONNECT]));
    let said: Vec<&str> = out.lines().collect();
    assert_eq!(said, [vec!["ENETUNREACH"; 3], vec!["EPERM"; 5]].concat());
    let found: Vec<(&str, &str, &str, bool)> = refused(&all)
        .into_iter()
        .map(|r| (r.call.as_str(), r.target.as_str(), r.errno.as_str(), r.racy))
        .collect();
    let connect = |target| ("connect", target, "ENETUNREACH", true);
    let socket = |target| ("socket", target, "EPERM", false);
    let mut wanted = vec![
        connect("192.0.2.1:443"),
        connect("192.0.2.2:53"),
        connect("[2001:db8::1]:443"),
        socket("AF_PACKET, raw"),
        socket("AF_INET, raw"),
        socket("AF_INET6, raw"),
        socket("AF_NETLINK, raw"),
        socket("AF_VSOCK, stream"),
    ];
    if lab.backend != Backend::Native {
        // An engine's own filter refuses these, and ours never hears of them.
        wanted.retain(|(call, ..)| *call == "connect");
    }
    assert_eq!(found, wanted);
    let network = ended.traffic.and_then(|t| t.network);
    let unroutable = network.map_or(0, |n| n.unroutable);
    assert_eq!(unroutable, 0, "none came as far as the routing table");
    assert_eq!(ended.operations.map(|o| o.refusals), Some(wanted.len() as u64));
}

const LOOPBACK: &str = "
import os, socket
server = socket.create_server(('127.0.0.1', 4000))
socket.create_connection(('127.0.0.1', 4000)).close()
try: server6 = socket.create_server(('::1', 4001), family=socket.AF_INET6)
except OSError: server6 = None  # a kernel without IPv6
if server6: socket.create_connection(('::1', 4001)).close()
any = socket.socket(); any.connect(('0.0.0.0', 4000))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.connect(('127.0.0.1', 9))
unix = socket.socket(socket.AF_UNIX); unix.bind('/tmp/s'); unix.listen()
socket.socket(socket.AF_UNIX).connect('/tmp/s')
print('all')
";

fn loopback(lab: &Lab) {
    let (out, _, all) = witness(lab, &lab.spec(&["python3", "-c", LOOPBACK]));
    assert_eq!(out, "all\n");
    assert!(refused(&all).is_empty(), "{all:#?}");
}

/// One thread executes the same program over and over in a child, for which it changes an argument
/// from another thread meanwhile. What was passed and what arrived are compared.
const RACE: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile char *word; /* or the compiler leaves out what is overwritten at once */
static volatile int stop;
static void *rewrite(void *arg) {
    (void)arg;
    while (!stop) { *word = 't'; *word = 'w'; }
    return 0;
}
int main(int argc, char **argv) {
    if (argc > 1) { printf("%s\n", argv[1]); return 0; }
    char *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    word = strcpy(shared, "tame");
    pthread_t thread;
    pthread_create(&thread, 0, rewrite, 0);
    for (int i = 0; i < 300; i++) {
        fflush(stdout);
        if (fork() == 0) {
            char *args[] = {"race", shared, 0};
            execv("/proc/self/exe", args);
            return 1;
        }
        wait(0);
    }
    stop = 1;
    return 0;
}
"#;

fn race(lab: &Lab) {
    /// On a machine whose CPUs are all busy both threads can take turns for a whole round.
    const ROUNDS: usize = 20;
    let Some(program) = compiled(lab, "race", RACE) else { return };
    let mut spec = lab.spec(&["/mnt/race"]);
    spec.mounts.push(program);
    for round in 1..=ROUNDS {
        let differ = raced(lab, &spec);
        println!("  {differ} of 300 executions had another argument than was reported");
        // This is why the arguments are marked: what the kernel took was not what stood there.
        if differ > 0 {
            return;
        }
        println!("  round {round}: the race was not lost");
    }
    panic!("the race was never lost in {ROUNDS} rounds");
}

/// How many executions had another argument than was reported.
fn raced(lab: &Lab, spec: &SandboxSpec) -> usize {
    let (out, _, all) = witness(lab, spec);
    let arrived: Vec<&str> = out.lines().collect();
    let passed: Vec<&str> = executed(&all)
        .into_iter()
        .filter(|e| e.path == "/proc/self/exe")
        .map(|e| e.argv.get(1).map_or("", String::as_str))
        .collect();
    assert_eq!((arrived.len(), passed.len()), (300, 300));
    // The image was told from outside, and cannot be raced.
    let of = |o: &Operation| match o {
        Operation::Image(image) => image.seen.clone().ok(),
        _ => None,
    };
    assert!(all.iter().filter_map(of).all(|image| image == "/mnt/race"), "{all:#?}");
    passed.iter().zip(&arrived).filter(|(p, a)| p != a).count()
}

/// A C program as a mount below `/mnt`.
pub(crate) fn compiled(lab: &Lab, name: &str, source: &str) -> Option<model::Mount> {
    let Some(cc) = testkit::need("cc") else {
        println!("SKIPPED: there is no C compiler");
        return None;
    };
    let (file, program) = (lab.dir.join(format!("{name}.c")), lab.dir.join(name));
    std::fs::write(&file, source).unwrap();
    let mut cc = std::process::Command::new(cc);
    let status = cc.args(["-O1", "-pthread", "-o"]).arg(&program).arg(&file).status().unwrap();
    assert!(status.success());
    let target = std::path::Path::new("/mnt").join(name);
    Some(model::Mount { source: program, target, access: model::Access::Read })
}

const MANY: &str = "
import errno, os
ran = refused = 0
for _ in range(700):
    pid = os.fork()
    if pid == 0:
        try: os.execv('/bin/true', ['true'])
        except OSError as e: os._exit(100 if e.errno == errno.EAGAIN else 101)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0: ran += 1
    elif status == 100: refused += 1
    else: print('odd', status)
print(ran, refused)
input()
os.execv('/bin/true', ['true'])
";

fn full(lab: &Lab) {
    let (go, wait) = mpsc::channel::<()>();
    // Nobody takes anything until the program has tried all.
    let mut witnessed = start(lab, &lab.spec(&["python3", "-c", MANY]), move |_| {
        wait.recv().unwrap();
    });
    let pipes = witnessed.pipes.as_mut().unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        pipes.stdout.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (ran, lost) = line.trim().split_once(' ').unwrap();
    let (ran, lost): (u64, u64) = (ran.parse().unwrap(), lost.parse().unwrap());
    assert_eq!(ran + lost, 700);
    // A window of 512 reports, two an execution, and that of python itself.
    assert!((200..=256).contains(&ran), "{ran}");
    // Others are not held up by it, and the spawner answers.
    assert_eq!(lab.out("echo meanwhile"), "meanwhile\n");
    assert!(witnessed.sandbox.usage().is_ok());
    go.send(()).unwrap();
    std::thread::sleep(testkit::patience(Duration::from_millis(200)));
    witnessed.pipes.as_mut().unwrap().stdin.write_all(b"\n").unwrap();
    let (_, ended, all) = witnessed.end();
    let gaps = all.iter().filter_map(|o| match o {
        Operation::Lost { count, .. } => Some(*count),
        _ => None,
    });
    assert_eq!(gaps.sum::<u64>(), lost, "as many as the program was refused");
    let counts = ended.operations.unwrap();
    assert_eq!((counts.lost, counts.executions), (lost, executed(&all).len() as u64));
    // Afterwards there is room again.
    let last = executed(&all).pop().unwrap();
    assert_eq!(last.path, "/bin/true");
    let at = |wanted: &dyn Fn(&Operation) -> bool| all.iter().rposition(wanted).unwrap();
    let gap = at(&|o| matches!(o, Operation::Lost { .. }));
    assert!(gap < at(&|o| matches!(o, Operation::Executed(_))), "told before what came after it");
}

const UNDUMPABLE: &str = "
import ctypes, os, socket
PR_SET_DUMPABLE = 4
assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
try: socket.socket().connect(('192.0.2.7', 1))
except OSError: pass
os.execv('/bin/echo', ['echo', 'hidden?'])
";

fn undumpable(lab: &Lab) {
    let (out, _, all) = witness(lab, &lab.spec(&["python3", "-c", UNDUMPABLE]));
    assert_eq!(out, "hidden?\n");
    let echo = executed(&all).into_iter().find(|e| e.path == "/bin/echo").expect("reported");
    assert_eq!(
        (echo.argv.as_slice(), echo.unread.as_deref()),
        (&["echo".into(), "hidden?".into()][..], None)
    );
    assert_eq!(refused(&all)[0].target, "192.0.2.7:1");
}

const LISTEN: &str = "
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def load(flags):
    # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
    program = struct.pack('HxxxxxxQ', 1, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(program)
    number = {'x86_64': 317, 'aarch64': 277}[os.uname().machine]
    return libc.syscall(number, 1, flags, buffer), ctypes.get_errno()
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
print(load(SECCOMP_FILTER_FLAG_NEW_LISTENER))
print(load(0)[0], flush=True)
os.execv('/bin/true', ['true', 'seen'])
";

fn own_listener(lab: &Lab) {
    let (out, _, all) = witness(lab, &lab.spec(&["python3", "-c", LISTEN]));
    // EBUSY: there can be one only. A filter of its own that allows everything changes nothing.
    assert_eq!(out, "(-1, 16)\n0\n");
    assert!(executed(&all).iter().any(|e| e.argv == ["true", "seen"]), "{all:#?}");
}

const SIGNALS: &str = "
import os, signal
count = 0
def heard(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, heard)
ok = 0
for n in range(200):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, heard)
        signal.setitimer(signal.ITIMER_REAL, 0.0001 * SLOW, 0.0001 * SLOW)
        while True:
            # Before the call was taken, a handler without SA_RESTART breaks it off.
            try: os.execv('/bin/true', ['true', str(n)])
            except InterruptedError: pass
    ok += os.waitpid(pid, 0)[1] & 0xff in (0, signal.SIGALRM)
print(ok)
";

fn signals(lab: &Lab) {
    // As often as before for what the machine does between two of them.
    let script = format!("SLOW = {}\n{SIGNALS}", testkit::slow());
    let (out, _, all) = witness(lab, &lab.spec(&["python3", "-c", &script]));
    assert_eq!(out, "200\n");
    let mut words: Vec<&str> = executed(&all)
        .into_iter()
        .filter(|e| e.path == "/bin/true")
        .map(|e| e.argv[1].as_str())
        .collect();
    let all = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), 200, "each was reported");
    // A call that a signal broke off before it was taken is made again, and reported again.
    assert!(all < 400, "{all}");
}

fn off(lab: &Lab) {
    let spec = lab.sh("/bin/true; echo ran");
    assert!(!spec.witness);
    let mut prepared = lab.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
    assert!(prepared.operations().is_none());
    let state = |spec: &SandboxSpec| {
        let prepared = lab.spawner.prepare(spec, Stdio::null().unwrap()).unwrap();
        let walls = prepared.report().walls.clone();
        walls.into_iter().find(|w| w.wall == "witness").unwrap().state
    };
    assert!(state(&spec).starts_with("off"), "said aloud: {}", state(&spec));
    let mut on = spec.clone();
    on.witness = true;
    assert!(state(&on).starts_with("executions"), "{}", state(&on));
    drop(prepared);
    let done = lab.run(&spec);
    assert_eq!(done.ended.operations, None);
    // Refused all the same, by the filter and by the network.
    let refused = lab.run(&lab.spec(&["python3", "-c", CONNECT])).ok();
    assert_eq!(refused.lines().count(), 8);
    assert!(!refused.contains("through"), "{refused}");
}

fn apart(lab: &Lab) {
    let begun = Instant::now();
    let all: Vec<Witnessed> = (0..8)
        .map(|n| {
            let script = format!("for i in 1 2 3 4 5 6 7 8 9 10; do /bin/echo box{n} $i; done");
            start(lab, &lab.sh(&script), |_| ())
        })
        .collect();
    for (n, witnessed) in all.into_iter().enumerate() {
        let mark = witnessed.sandbox.mark().unwrap();
        let (out, _, all) = witnessed.end();
        assert_eq!(out.lines().count(), 10);
        let own = format!("box{n}");
        let echoes: Vec<_> = executed(&all).into_iter().filter(|e| e.path == "/bin/echo").collect();
        assert_eq!(echoes.len(), 10, "{all:#?}");
        assert!(echoes.iter().all(|e| e.argv[1] == own), "{echoes:#?}");
        let marks = all.iter().filter(|o| **o == Operation::Mark(mark)).count();
        assert!(marks <= 1, "it may have ended before");
    }
    assert!(begun.elapsed() < testkit::patience(Duration::from_secs(60)));
}
