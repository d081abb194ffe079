//! What must not be possible, tried from inside.

use crate::Test;
use crate::lab::{Lab, set_mode};
use model::{Access, Mount, Workspace};
use nanoclaw_sandbox::{SpecErrorKind, StartErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[
    ("host_files_are_out_of_sight", files),
    ("only_its_own_places_are_writable", writable),
    ("host_processes_are_out_of_sight", processes),
    ("network_is_loopback_only", network),
    ("no_privilege_is_left", privileges),
    ("forbidden_calls_are_refused", calls),
    ("report_says_what_was_measured", report),
    ("two_sessions_do_not_meet", two),
    ("user_workspace_keeps_its_owner", user_workspace),
    ("mounts_are_as_granted", mounts),
    ("bad_specs_are_refused", refused),
];

fn files(lab: &Lab) {
    let canary = lab.dir.join("canary");
    std::fs::write(&canary, "host").unwrap();
    set_mode(&canary, 0o644);
    let script = format!("cat {} 2>&1; ls / | tr '\\n' ' '; ls /etc", canary.display());
    let out = lab.out(&script);
    assert!(out.contains("No such file"), "{out}");
    for part in ["boot", "root ", "sys ", "opt", "shadow", "hosts.allow", "srv"] {
        assert!(!out.contains(part), "{part} in {out}");
    }
    assert_eq!(
        lab.out("cat /etc/machine-id; hostname"),
        "00000000000000000000000000000001\nsandbox\n"
    );
    // Leftovers of the host's root would show in the mount table.
    let table = lab.out("cat /proc/self/mountinfo");
    assert!(!table.contains("oldroot") && table.lines().any(|l| l.contains(" / / ro")), "{table}");
}

fn writable(lab: &Lab) {
    let script = "for d in /workspace /home/agent /tmp /var/tmp /dev/shm /run/user/1000; do \
         echo x > $d/f && cat $d/f > /dev/null || echo no $d; done; \
         for d in / /etc /usr /usr/bin /var /run /run/nanoclaw /dev /proc /proc/sys/kernel \
         /home; do \
         (echo x > $d/f) 2>/dev/null && echo yes $d; done; \
         (echo 1 > /proc/sys/kernel/hostname) 2>/dev/null && echo yes hostname; true";
    assert_eq!(lab.out(script), "");
    let mut spec = lab.sh(
        "head -c 20000000 /dev/zero > /tmp/big; head -c 20000000 /dev/zero > /dev/shm/big; true",
    );
    spec.limits.tmp_bytes = 10 << 20;
    let done = lab.run(&spec);
    assert!(done.err.contains("No space left"), "{}", done.err);
}

fn processes(lab: &Lab) {
    let out = lab.out(
        "ls -d /proc/[0-9]* | wc -l; echo $PPID $$; cat /proc/1/maps 2>&1; ls /proc/1/fd 2>&1; true",
    );
    let lines: Vec<&str> = out.lines().collect();
    // The first process, the shell and its pipe, whether or not they are hidden from each other.
    assert!(lines[0].parse::<u32>().unwrap() <= 4, "{out}");
    let own = lines[1].strip_prefix("1 ").unwrap();
    assert!(lab.first_number(own), "{out}");
    assert!(lines[2..].iter().all(|l| l.contains("No such file") || l.contains("denied")), "{out}");
    let pid = std::process::id();
    assert!(lab.out(&format!("kill -0 {pid} 2>&1 || true")).contains("No such process"));
}

fn network(lab: &Lab) {
    assert_eq!(lab.out("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"), "lo\n");
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let script = format!(
        "import socket\nfor a in (('127.0.0.1',{port}),('192.0.2.1',80)):\n \
         s=socket.socket();s.settimeout(2)\n \
         try: s.connect(a);print('reached',a)\n except OSError as e: print(e.errno)\n\
         for f in (17,40,38):\n \
         try: socket.socket(f,socket.SOCK_RAW if f==17 else socket.SOCK_STREAM);print('made',f)\n \
         except OSError as e: print(e.errno)\n"
    );
    assert_eq!(lab.run(&lab.spec(&["python3", "-c", &script])).ok(), "111\n101\n1\n1\n1\n");
}

fn privileges(lab: &Lab) {
    let out = lab.out(
        "grep -E '^(Cap|NoNew|Seccomp:|Uid|Gid|Groups)' /proc/self/status; id -u; ulimit -c; \
         ulimit -Hc",
    );
    for line in out.lines().filter(|l| l.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    for want in ["NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t1000\t1000\t1000\t1000", "\n1000\n0\n0\n"]
    {
        assert!(out.contains(want), "{want} in {out}");
    }
    if lab.root() {
        let mut spec = lab.sh("sleep 5");
        spec.cwd = "/".into();
        let stdio = nanoclaw_sandbox::Stdio::null().unwrap();
        let sandbox = lab.spawner.prepare(&spec, stdio).unwrap();
        let pid = sandbox.report().pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
        assert!(uid.contains("18790481"), "not the host's root: {uid}");
    }
}

fn calls(lab: &Lab) {
    let script = r"
import ctypes,os
l=ctypes.CDLL(None,use_errno=True)
def t(name,*a):
    r=getattr(l,name)(*a)
    print(name, 'DONE' if r>=0 else ctypes.get_errno())
t('mount',b'none',b'/tmp',b'tmpfs',0,None)
t('umount2',b'/workspace',2)
t('unshare',0x10000000)
t('chroot',b'/tmp')
t('ptrace',16,os.getppid(),None,None)
t('personality',0x40000)
t('setns',0,0)
t('swapon',b'/tmp/x',0)
for n,name in ((425,'io_uring_setup'),(435,'clone3'),(437,'openat2')):
    r=l.syscall(n,0,0,0,0); print(name,'DONE' if r>=0 else ctypes.get_errno())
for n,name in ((321,'bpf'),(298,'perf_event_open'),(323,'userfaultfd'),(250,'keyctl'),
    (428,'open_tree'),(310,'process_vm_readv')):
    r=l.syscall(n,0,0,0,0,0,0); print(name,'DONE' if r>=0 else ctypes.get_errno())
open('/tmp/s','w').close()
t('chmod',b'/tmp/s',0o4755)
t('setuid',0)
try: os.mknod('/tmp/d',0o60600,os.makedev(7,0)); print('device DONE')
except OSError as e: print('device',e.errno)
";
    let out = lab.run(&lab.spec(&["python3", "-c", script])).ok();
    let expected = "mount 1\numount2 1\nunshare 1\nchroot 1\nptrace 1\npersonality 1\nsetns 1\n\
         swapon 1\nio_uring_setup 38\nclone3 38\nopenat2 38\nbpf 1\nperf_event_open 1\n\
         userfaultfd 1\nkeyctl 1\nopen_tree 1\nprocess_vm_readv 1\nchmod 1\nsetuid 22\ndevice 1\n";
    assert_eq!(out, expected);
}

fn report(lab: &Lab) {
    let spec = lab.sh("true");
    let prepared = lab.spawner.prepare(&spec, nanoclaw_sandbox::Stdio::null().unwrap()).unwrap();
    let report = prepared.report();
    let walls: Vec<&str> = report.walls.iter().map(|w| w.wall.as_str()).collect();
    for wall in ["namespaces", "root", "uid", "capabilities", "seccomp", "landlock", "network"] {
        assert!(walls.contains(&wall), "{wall} in {walls:?}");
    }
    // Whatever stands in a report stands in the table of walls.
    let known =
        |wall: &str| nanoclaw_sandbox::WALLS.iter().any(|w| w.name.split(',').next() == Some(wall));
    for wall in &walls {
        assert!(known(wall), "{wall} is in no table");
    }
    // The level of Landlock is not what was asked for, but what was felt.
    let level = lab.spawner.facts().landlock_abi;
    let landlock = &report.walls.iter().find(|w| w.wall == "landlock").unwrap().state;
    let mut felt = vec!["writing"];
    felt.extend((level >= 3).then_some("truncating"));
    felt.extend((level >= 6).then_some("abstract sockets outside"));
    let (tried, lacks) = landlock.split_once("; ").unwrap_or((landlock, ""));
    assert_eq!(tried, format!("ABI {level}, tried and refused: {}", felt.join(", ")));
    assert_eq!(lacks.is_empty(), level >= 6, "an older one says what holds the rest: {landlock}");
    let held = |limit: &str| &report.limits.iter().find(|l| l.limit == limit).unwrap().enforced_by;
    let ladder = lab.spawner.facts().ladder;
    assert_eq!(held("pids").contains("cgroup"), ladder.pids != nanoclaw_sandbox::Rung::Fallback);
    assert_eq!(report.plan, {
        let sources = nanoclaw_sandbox::check(&spec, lab.spawner.facts()).unwrap();
        nanoclaw_sandbox::plan(&spec, lab.spawner.facts(), &sources)
    });
}

fn two(lab: &Lab) {
    let mut a = lab.sh("echo secret > /tmp/a; echo secret > /workspace/a; sleep 30 & \
        python3 -c \"import socket,time;s=socket.socket(socket.AF_UNIX);s.bind('\\0meet');\
        s.listen();print('up',flush=True);time.sleep(30)\"");
    a.limits.pids.value = 64;
    let (stdio, mut pipes) = nanoclaw_sandbox::Stdio::piped().unwrap();
    let first = lab.spawner.prepare(&a, stdio).unwrap().start().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(&mut pipes.stdout, &mut up).unwrap();
    let script = "ls /tmp /workspace /dev/shm; ls -d /proc/[0-9]* | wc -l; \
        python3 -c \"import socket;s=socket.socket(socket.AF_UNIX);\
        print(s.connect_ex('\\0meet'))\"; \
        grep -c python /proc/[0-9]*/cmdline | grep -v ':0' | wc -l";
    let out = lab.out(script);
    assert!(!out.contains('a') || !out.contains("\na\n"), "{out}");
    assert!(out.contains("111"), "the name is another's: {out}");
    if lab.root() {
        let b = lab.spawner.prepare(&lab.sh("true"), nanoclaw_sandbox::Stdio::null().unwrap());
        let uid = |r: &nanoclaw_sandbox::Report| {
            r.walls.iter().find(|w| w.wall == "uid").unwrap().state.clone()
        };
        assert_ne!(uid(first.report()), uid(b.unwrap().report()), "each its own uid");
    }
}

fn user_workspace(lab: &Lab) {
    let folder = lab.dir.join("project");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("mine"), "x").unwrap();
    set_mode(&folder, 0o700);
    set_mode(&folder.join("mine"), 0o600);
    let owner = if lab.root() { 4_321 } else { rustix::process::getuid().as_raw() };
    if lab.root() {
        for path in [&folder, &folder.join("mine")] {
            std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
        }
    }
    let mut spec = lab.sh(&format!(
        "stat -c %u mine; cat mine; echo y > made; cd {} && pwd -P && ls | tr '\\n' ' '",
        folder.display()
    ));
    spec.workspace = Workspace::User(folder.clone());
    assert_eq!(lab.run(&spec).ok(), "1000\nx/workspace\nmade mine ");
    assert_eq!(folder.join("made").metadata().unwrap().uid(), owner);
    assert_eq!(folder.metadata().unwrap().uid(), owner);
}

fn mounts(lab: &Lab) {
    for name in ["read", "write"] {
        std::fs::create_dir(lab.dir.join(name)).unwrap();
        std::fs::write(lab.dir.join(name).join("f"), name).unwrap();
    }
    let mut spec = lab.sh(
        "cat /mnt/r/f /mnt/w/f; (echo x > /mnt/r/g) 2>/dev/null && echo BAD; echo new > /mnt/w/g; \
         grep -c ' /mnt/[rw] .*nosuid,nodev' /proc/self/mountinfo",
    );
    let mount = |name: &str, target: &str, access| Mount {
        source: lab.dir.join(name),
        target: target.into(),
        access,
    };
    spec.mounts =
        vec![mount("read", "/mnt/r", Access::Read), mount("write", "/mnt/w", Access::Write)];
    assert_eq!(lab.run(&spec).ok(), "readwrite2\n");
    assert_eq!(std::fs::read_to_string(lab.dir.join("write/g")).unwrap(), "new\n");
}

fn refused(lab: &Lab) {
    std::fs::create_dir_all(lab.dir.join("x/.ssh/deep")).unwrap();
    std::os::unix::fs::symlink("/usr", lab.dir.join("link")).unwrap();
    std::fs::create_dir_all(lab.dir.join("y/deep")).unwrap();
    let _host = std::os::unix::net::UnixListener::bind(lab.dir.join("y/deep/socket")).unwrap();
    let home = std::path::PathBuf::from("/root");
    let cases: Vec<(std::path::PathBuf, &str, SpecErrorKind)> = vec![
        ("/".into(), "/mnt", SpecErrorKind::Secret),
        ("/etc".into(), "/mnt", SpecErrorKind::Secret),
        ("/var".into(), "/mnt", SpecErrorKind::Secret),
        (home, "/mnt", SpecErrorKind::Secret),
        ("/home".into(), "/mnt", SpecErrorKind::Secret),
        (lab.dir.join("x/.ssh"), "/mnt", SpecErrorKind::Secret),
        (lab.dir.join("x/.ssh/deep"), "/mnt", SpecErrorKind::Secret),
        (lab.dir.join("state"), "/mnt", SpecErrorKind::Secret),
        (lab.dir.clone(), "/mnt", SpecErrorKind::Secret),
        (lab.dir.join("state/s0"), "/mnt", SpecErrorKind::Secret),
        (lab.dir.join("link"), "/mnt", SpecErrorKind::Symlink),
        (lab.dir.join("link/bin"), "/mnt", SpecErrorKind::Symlink),
        (lab.dir.join("nothing"), "/mnt", SpecErrorKind::Missing),
        (lab.dir.join("y"), "/mnt", SpecErrorKind::Socket),
        (lab.dir.join("x"), "/usr/local", SpecErrorKind::Overlap),
        (lab.dir.join("x"), "/workspace/x", SpecErrorKind::Overlap),
        (lab.dir.join("x"), "/home", SpecErrorKind::Overlap),
        (lab.dir.join("x"), "/mnt/../etc", SpecErrorKind::Path),
        (lab.dir.join("x"), "mnt", SpecErrorKind::Path),
        (lab.dir.join("x/../x"), "/mnt", SpecErrorKind::Path),
    ];
    for (source, target, kind) in cases {
        let mut spec = lab.sh("true");
        let target = Path::new(target).to_path_buf();
        spec.mounts =
            vec![Mount { source: source.clone(), target: target.clone(), access: Access::Read }];
        let error = lab.refused(&spec);
        assert_eq!(error.kind, StartErrorKind::Spec(kind), "{source:?} at {target:?}: {error}");
        assert!(!error.remedy.is_empty());
    }
    let mut spec = lab.sh("true");
    spec.limits.memory_bytes.value = 0;
    assert_eq!(lab.refused(&spec).kind, StartErrorKind::Spec(SpecErrorKind::Limit));
    let mut spec = lab.sh("true");
    spec.command = model::Command::Program(vec![]);
    assert_eq!(lab.refused(&spec).kind, StartErrorKind::Spec(SpecErrorKind::Command));
    let mut spec = lab.sh("true");
    spec.env.insert("BIG".into(), "x".repeat(400_000));
    assert_eq!(lab.refused(&spec).kind, StartErrorKind::Spec(SpecErrorKind::Size));
}
