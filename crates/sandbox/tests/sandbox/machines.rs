//! Virtual machines of Apple's `container`, made by a program that knows its grammar and puts no
//! machine around what it runs: the walls inside are real ones, the machine is not.

use crate::Test;
use crate::lab::{Done, Lab, door};
use crate::lifecycle::soon;
use model::{Access, Backend, EngineChoice, Mount, SandboxSpec};
use nanoclaw_sandbox::{
    AppleOptions, EngineOptions, Operation, Outcome, Spawner, SpawnerOptions, StartError,
    StartErrorKind as Kind, Stdio,
};
use serde_json::json;
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use testkit::{ContainerAct, FakeContainer, good_versions};

pub(crate) const TESTS: &[Test] = &[
    ("a_sandbox_in_a_machine_is_as_a_native_one", runs),
    ("what_a_machine_executes_is_reported_over_its_line", reports),
    ("orders_reach_into_a_machine", orders),
    ("a_machine_ends_with_its_handle_and_its_guest", ends),
    ("a_program_of_apple_that_misbehaves_is_refused", misbehaves),
    ("what_a_machine_is_said_to_be_is_held_against_the_request", lies),
    ("a_machine_is_asked_for_as_documented_and_nothing_is_pulled", asked),
    ("machines_of_dead_processes_are_removed_and_no_others", orphans),
    ("without_a_program_of_apple_the_backend_is_refused", absent),
];

/// How long one question may take here.
const PATIENCE: Duration = Duration::from_secs(5);
/// signal(7).
const SIGTERM: i32 = 15;

struct Rig {
    fake: FakeContainer,
    spawner: Spawner,
    folder: PathBuf,
}

/// A program of its own for each, below this name.
fn rig(lab: &Lab, name: &str) -> Rig {
    let own = std::env::current_exe().unwrap();
    let fake = FakeContainer::install(&lab.dir.join(name), &own).unwrap();
    let patience = testkit::patience(PATIENCE);
    let apple = AppleOptions { program: fake.program(), patience, ..AppleOptions::of(own) };
    let folder = lab.dir.join(format!("{name}-e"));
    let engines = EngineOptions { apple: Some(apple), ..EngineOptions::of(folder.clone()) };
    let private = vec![lab.dir.join("state")];
    let options = SpawnerOptions { private, engines, ..SpawnerOptions::default() };
    Rig { fake, spawner: Spawner::launch(options).unwrap(), folder }
}

fn machine(spec: SandboxSpec, name: &str) -> SandboxSpec {
    let image = Some(format!("{name}@sha256:{}", "0".repeat(64)));
    SandboxSpec { backend: Backend::Apple(EngineChoice { image, runtime: None }), ..spec }
}

impl Rig {
    fn run(&self, spec: &SandboxSpec) -> Done {
        let (stdio, mut pipes) = Stdio::piped().unwrap();
        let sandbox = self.spawner.prepare(spec, stdio).unwrap().start().unwrap();
        drop(pipes.stdin);
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            pipes.stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut out = String::new();
        pipes.stdout.read_to_string(&mut out).unwrap();
        Done { ended: sandbox.wait(), out, err: errors.join().unwrap() }
    }

    fn refused(&self, spec: &SandboxSpec) -> StartError {
        let refused = self.spawner.prepare(spec, Stdio::null().unwrap());
        let error = match refused {
            Ok(p) => panic!("it was not refused: {:?}", p.report().walls),
            Err(error) => error,
        };
        assert_eq!(self.fake.containers(), [""; 0], "a container is left: {error}");
        error
    }

    /// No container, and no line in the folder of this process.
    fn nothing_is_left(&self) {
        assert!(soon(|| self.fake.containers().is_empty()), "{:?}", self.fake.containers());
        for entry in std::fs::read_dir(&self.folder).unwrap().flatten() {
            let lines = std::fs::read_dir(entry.path()).unwrap().flatten();
            let lines = lines.filter(|e| e.file_name().to_string_lossy().starts_with("line-"));
            assert_eq!(lines.count(), 0);
        }
    }
}

fn runs(lab: &Lab) {
    let rig = rig(lab, "c");
    let granted = lab.dir.join("granted");
    std::fs::create_dir_all(&granted).unwrap();
    std::fs::write(granted.join("note"), "read me\n").unwrap();
    let socket = lab.dir.join("d");
    let _listener = UnixListener::bind(&socket).unwrap();
    let script = "cat /mnt/a/note; touch /mnt/a/x || echo kept; id -u; cat /proc/self/comm >&2; \
                  grep CapEff /proc/self/status; ls /sys; exit 7";
    let mut spec = machine(lab.sh(script), "debian");
    spec.mounts.push(Mount {
        source: granted.clone(),
        target: "/mnt/a".into(),
        access: Access::Read,
    });
    spec.network = door(socket, &[443]);
    let done = rig.run(&spec);
    assert_eq!(done.ended.outcome, Outcome::Exited(7), "{}", done.err);
    let mut lines = done.out.lines();
    assert_eq!((lines.next(), lines.next()), (Some("read me"), Some("kept")), "{}", done.out);
    assert!(done.out.contains("CapEff:\t0000000000000000"), "{}", done.out);
    assert!(done.err.contains("cat\n"), "{}", done.err);
    assert!(!granted.join("x").exists());
    rig.nothing_is_left();
    // The report is the guest's own, and says so.
    let prepared = rig.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
    let walls = &prepared.report().walls;
    assert!(walls[0].wall == "virtual machine" && walls[0].state.contains("nothing outside"));
    assert!(walls.iter().any(|w| w.wall == "seccomp"), "{walls:?}");
    drop(prepared);
    rig.nothing_is_left();
}

fn reports(lab: &Lab) {
    let rig = rig(lab, "c");
    let mut spec = machine(lab.sh("/bin/true; /bin/true; /bin/sleep 1"), "debian");
    spec.witness = true;
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let mut prepared = rig.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap();
        let operations = prepared.operations().unwrap();
        let sandbox = prepared.start().unwrap();
        let mark = sandbox.mark().unwrap();
        assert_eq!(mark, 1);
        let mut seen = Vec::new();
        while let Some(batch) = operations.next_batch() {
            operations.taken(&batch);
            seen.extend(batch);
        }
        let ended = sandbox.wait();
        assert_eq!(ended.outcome, Outcome::Exited(0));
        assert!(seen.contains(&Operation::Mark(1)), "{seen:?}");
        let executed = seen.iter().filter_map(|o| match o {
            Operation::Executed(e) => Some((e.number, e.path.clone())),
            _ => None,
        });
        let executed: Vec<(u64, String)> = executed.collect();
        let trues = executed.iter().filter(|(_, path)| path == "/bin/true").count();
        assert_eq!(trues, 2, "{executed:?}");
        let counted = ended.operations.unwrap();
        assert_eq!(counted.executions, executed.len() as u64, "{counted:?}");
        numbers.extend(executed.into_iter().map(|(number, _)| number));
    }
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "two machines gave one number");
    rig.nothing_is_left();
}

fn orders(lab: &Lab) {
    let rig = rig(lab, "c");
    let start = |script: &str| {
        let (stdio, pipes) = Stdio::piped().unwrap();
        let spec = machine(lab.sh(script), "debian");
        let sandbox = rig.spawner.prepare(&spec, stdio).unwrap().start().unwrap();
        (sandbox, pipes)
    };
    let (sandbox, mut pipes) = start("trap 'echo got; exit 3' TERM; echo on; while :; do :; done");
    let mut first = [0; 3];
    pipes.stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"on\n");
    assert!(sandbox.usage().unwrap().memory_bytes > 0 || !lab.root());
    assert!(sandbox.wait_timeout(Duration::from_millis(50)).is_none());
    sandbox.signal(SIGTERM).unwrap();
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(3));
    let mut rest = String::new();
    pipes.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got\n");
    let (sandbox, _pipes) = start("trap '' TERM; sleep 1000");
    sandbox.kill().unwrap();
    assert!(matches!(sandbox.wait().outcome, Outcome::Killed(_)));
    assert!(sandbox.usage().is_ok(), "its totals are known");
    rig.nothing_is_left();
}

fn ends(lab: &Lab) {
    let rig = rig(lab, "c");
    let begin = || {
        let spec = machine(lab.sh("sleep 1000"), "debian");
        rig.spawner.prepare(&spec, Stdio::null().unwrap()).unwrap().start().unwrap()
    };
    let sandbox = begin();
    assert_eq!(rig.fake.containers().len(), 1);
    drop(sandbox);
    rig.nothing_is_left();
    // The guest is gone: as if the machine had crashed.
    let sandbox = begin();
    let name = rig.fake.containers().remove(0);
    let file = lab.dir.join("c").join(format!("pid-{name}"));
    let mut pid: Option<i32> = None;
    // It is written while the guest calls already.
    assert!(soon(|| {
        pid = std::fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
        pid.is_some()
    }));
    let pid = rustix::process::Pid::from_raw(pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let begun = Instant::now();
    let Outcome::Killed(why) = sandbox.wait().outcome else { panic!("it was not killed") };
    assert!(why.contains("virtual machine is gone"), "{why}");
    assert!(begun.elapsed() < testkit::patience(Duration::from_secs(10)));
    rig.nothing_is_left();
}

fn misbehaves(lab: &Lab) {
    let print = |text: &str, status| ContainerAct::Print(text.to_owned(), status);
    let old = good_versions("1.0.0").to_string();
    let stopped = json!([good_versions("1.1.0")[0]]).to_string();
    let cases = [
        ("system", print(&old, 0), Kind::Engine, "1.1.0 on"),
        ("system", print(&stopped, 0), Kind::Engine, "does not run"),
        ("system", print("COMPONENT VERSION", 0), Kind::Engine, "not understood"),
        ("system", ContainerAct::Flood, Kind::Engine, "printed over"),
        ("system", ContainerAct::Crash, Kind::Engine, "failed"),
        ("system", ContainerAct::Slow(60_000), Kind::TimeOut, "took over"),
        ("create", print("", 1), Kind::Engine, "failed"),
        ("create", ContainerAct::Crash, Kind::Engine, "failed"),
        ("inspect", print("{\"id\":", 0), Kind::Engine, "not understood"),
        ("inspect", print("[]", 0), Kind::Engine, "0 containers"),
        ("inspect", ContainerAct::Flood, Kind::Engine, "printed over"),
        ("start", print("no", 1), Kind::Engine, "before it called"),
        ("start", ContainerAct::Crash, Kind::Engine, "before it called"),
    ];
    for (number, (command, act, kind, words)) in cases.into_iter().enumerate() {
        let rig = rig(lab, &format!("c{number}"));
        rig.fake.plan(command, &act).unwrap();
        let error = rig.refused(&machine(lab.sh("true"), "debian"));
        assert_eq!(error.kind, kind, "{command} {act:?}: {error}");
        assert!(error.cause.contains(words), "{command} {act:?}: {error}");
        assert!(!error.remedy.is_empty() && error.cause.len() < 1_000, "{error}");
        rig.nothing_is_left();
    }
    // One that boots slowly is waited for.
    let rig = rig(lab, "slow");
    rig.fake.plan("start", &ContainerAct::Slow(1_500)).unwrap();
    assert_eq!(rig.run(&machine(lab.sh("echo up"), "debian")).ok(), "up\n");
}

fn lies(lab: &Lab) {
    for (number, (place, value)) in [
        ("/configuration/networks", json!([{ "network": "default" }])),
        ("/configuration/readOnly", json!(false)),
        ("/configuration/ssh", json!(true)),
        ("/configuration/mounts/0/source", json!("/")),
        ("/configuration/image/descriptor/digest", json!("sha256:other")),
        ("/configuration/publishedSockets", json!(["/tmp/x"])),
    ]
    .into_iter()
    .enumerate()
    {
        let rig = rig(lab, &format!("c{number}"));
        rig.fake.lie(place, &value).unwrap();
        let error = rig.refused(&machine(lab.sh("true"), "debian"));
        assert_eq!(error.kind, Kind::Verification, "{place}: {error}");
        let started = rig.fake.calls().iter().any(|c| c[0] == "start");
        assert!(!started, "{place}: it was started");
    }
}

fn asked(lab: &Lab) {
    let rig = rig(lab, "c");
    rig.run(&machine(lab.sh("true"), "debian")).ok();
    let calls = rig.fake.calls();
    let first: Vec<&str> = calls.iter().map(|c| c[0].as_str()).collect();
    assert_eq!(first[..6], ["system", "list", "image", "create", "inspect", "start"]);
    let create = calls.iter().find(|c| c[0] == "create").unwrap();
    for wall in [["--network", "none"], ["--no-dns", "--read-only"], ["--user", "0:0"]] {
        assert!(create.windows(2).any(|pair| pair == wall), "{wall:?}: {create:?}");
    }
    let error = rig.refused(&machine(lab.sh("true"), "absent"));
    assert!(error.remedy.contains("never pulls"), "{error}");
    let made = rig.fake.calls().iter().filter(|c| c[0] == "create").count();
    assert_eq!(made, 1, "something was made of an image that is not there");
    assert!(!rig.fake.calls().iter().any(|c| c.iter().any(|word| word == "pull")));
    let unnamed =
        SandboxSpec { backend: Backend::Apple(EngineChoice::default()), ..lab.sh("true") };
    assert!(rig.refused(&unnamed).remedy.contains("engine_image"));
}

fn orphans(lab: &Lab) {
    let rig = rig(lab, "c");
    // Another home's, another program's, and one that a dead process of this home left.
    let home = rig.folder.clone();
    std::fs::create_dir_all(&home).unwrap();
    let home = home.canonicalize().unwrap();
    let labels =
        |home: &str| json!({ "io.nanoclaw.home": home, "io.nanoclaw.starter": "00-1-2-3" });
    rig.fake.put("dead", &labels(home.to_str().unwrap())).unwrap();
    rig.fake.put("other-home", &labels("/somewhere/else")).unwrap();
    rig.fake.put("builder", &json!({ "plugin": "builder" })).unwrap();
    rig.run(&machine(lab.sh("true"), "debian")).ok();
    assert!(soon(|| rig.fake.containers() == ["builder", "other-home"]));
    assert!(rig.fake.calls().contains(&["delete", "--force", "dead"].map(str::to_owned).to_vec()));
}

fn absent(lab: &Lab) {
    let spec = machine(lab.sh("true"), "debian");
    let error = lab.refused(&spec);
    assert!(error.cause.contains("macOS only"), "{error}");
    assert!(error.remedy.contains("native"), "{error}");
    // The native backend does not mind.
    lab.run(&lab.sh("true")).ok();
}
