//! Two sandboxes at once: neither knows that the other is there.

use crate::lab::{Lab, finish, start, wait_until};
use std::collections::BTreeMap;

both!(two_sandboxes_do_not_see_each_other, what_one_changes_of_its_own_the_other_does_not_see,);

/// Puts something everywhere and keeps it there until told to go.
const FIRST: &str = "
import os, socket, sys, time
for place in ['/workspace', '/tmp', '/var/tmp', '/dev/shm', os.environ['HOME']]:
    open(place + '/left-by-first', 'w').write('here')
abstract = socket.socket(socket.AF_UNIX)
abstract.bind('\\0nanoclaw-test-first')
abstract.listen()
named = socket.socket(socket.AF_UNIX)
named.bind('/tmp/first.sock')
named.listen()
tcp = socket.create_server(('127.0.0.1', 5999))
print(*[os.readlink('/proc/self/ns/' + n) for n in sorted(os.listdir('/proc/self/ns'))], flush=True)
open('/mnt/meet/ready', 'w').write('x')
while not os.path.exists('/mnt/meet/go'):
    time.sleep(0.02)
";

/// Looks for all of it.
const SECOND: &str = "
import os, socket
for place in ['/workspace', '/tmp', '/var/tmp', '/dev/shm', os.environ['HOME']]:
    print(place, os.listdir(place))
def reach(family, address):
    try:
        socket.socket(family).connect(address)
        return 'connected'
    except OSError as e:
        return type(e).__name__
print(reach(socket.AF_UNIX, '\\0nanoclaw-test-first'))
print(reach(socket.AF_UNIX, '/tmp/first.sock'))
print(reach(socket.AF_INET, ('127.0.0.1', 5999)))
print('first' in open('/proc/net/unix').read())
# /usr is the machine's own read-only part, the same for all; nothing of a session is in it.
pids = [p for p in os.listdir('/proc') if p.isdigit()]
print(sorted(set(open('/proc/%s/comm' % p).read().strip() for p in pids)))
print(len(os.listdir('/run/nanoclaw')), socket.gethostname())
print(*[os.readlink('/proc/self/ns/' + n) for n in sorted(os.listdir('/proc/self/ns'))])
";

const SEEN_BY_SECOND: &str = "/workspace []
/tmp []
/var/tmp []
/dev/shm []
/home/agent []
ConnectionRefusedError
FileNotFoundError
ConnectionRefusedError
False
['python3']
3 sandbox
";

fn two_sandboxes_do_not_see_each_other(lab: &Lab) {
    let meet = lab.folder(&lab.person().join("meet"));
    let grant = format!("{}:/mnt/meet:rw", meet.display());
    let first = start(lab.nanoclaw(["run", "--mount", &grant, "--", "python3", "-c", FIRST]));
    wait_until("the first is ready", || meet.join("ready").exists());
    let second = lab.inside(["python3", "-c", SECOND]).ok();
    if lab.is_root() {
        assert_eq!(uids_outside(&lab.home().display().to_string()), 1);
    }
    lab.file(&meet.join("go"), "");
    let first = first.wait().ok();
    let (seen, names) = second.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(format!("{seen}\n"), SEEN_BY_SECOND);
    // No namespace is shared; times are the host's for all.
    let by_kind = |text: &str| -> BTreeMap<String, String> {
        let pairs = text.split_whitespace().filter_map(|n| n.split_once(':'));
        pairs.map(|(kind, id)| (kind.to_owned(), id.to_owned())).collect()
    };
    let (first, second) = (by_kind(&first), by_kind(names));
    for kind in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(first[kind], second[kind], "{kind} is shared");
        for inside in [&first[kind], &second[kind]] {
            assert!(!host.display().to_string().contains(inside.as_str()), "{kind} is the host's");
        }
    }
}

/// How many recorders serve a home: all invocations share the one writer of the log.
fn uids_outside(home: &str) -> usize {
    let all = crate::lab::processes_with("__recorder");
    all.into_iter().filter(|pid| crate::lab::processes_with(home).contains(pid)).count()
}

fn what_one_changes_of_its_own_the_other_does_not_see(lab: &Lab) {
    // The sandbox's own places can be filled and changed; the next one starts from nothing.
    let script = "umask 0; mkdir -p ~/.config /tmp/a; echo evil > ~/.bashrc; \
                  echo evil > ~/.config/x; ln -s /workspace /tmp/a/link; echo done";
    assert_eq!(lab.sh(&[], script).ok(), "done\n");
    let list = "ls -A ~ /tmp /workspace";
    assert_eq!(lab.sh(&[], list).ok(), "/home/agent:\n\n/tmp:\n\n/workspace:\n");
    // What is everybody's cannot be changed by anybody.
    for path in ["/", "/usr/bin", "/etc", "/home", "/run", "/var", "/run/nanoclaw"] {
        let command = lab.nanoclaw(["run", "--", "touch", &format!("{path}/x")]);
        let ran = finish(command, b"");
        assert_ne!(ran.code(), 0, "{path}: {ran}");
    }
}
