//! Every probe in the open place that the catalogue names: there it must trip.

use crate::place::{Place, me};
use nanoclaw_assess::walls::{
    Answer, Open, Other, Probe, Verdict, When, all, judge, probe_on_start,
};
use std::process::Command;
use testkit::need;

/// What came of trying.
enum Tried {
    Saw(Answer),
    /// This machine is not open enough.
    Cannot(String),
}
use Tried::{Cannot, Saw};

/// Namespaces of its own with every capability in them.
const CAPABLE: &[&str] = &[
    "unshare",
    "-Urmuinpf",
    "--cgroup",
    "--mount-proc",
    "--kill-child",
    "--propagation",
    "private",
];
/// A network of its own with an interface, a route and permission to ping.
const NETWORK: &str = "(ip link add v0 type veth peer name v1 || ip link add v0 type dummy) \
    2>/dev/null; ip link set lo up && ip route add default dev lo; \
    echo 0 0 > /proc/sys/net/ipv4/ping_group_range; exec \"$@\"";
/// The other session beside the probe, with things of both in one set of namespaces. `$1` is this
/// program, `$2` what the other has, `$3` the probe, `$4` the bait.
const BESIDE: &str = "mkfifo in && \"$1\" __walls-other \"$2\" < in > out & other=$!
    while [ ! -p in ]; do sleep 0.01; done; exec 3> in
    while [ ! -s out ]; do sleep 0.01; done; echo go >&3
    while [ $(wc -l < out) -lt 2 ]; do sleep 0.01; done
    port=$(sed -n 's/.*\"tcp_port\":\\([0-9]*\\).*/\\1/p' out)
    bait=$(printf %s \"$4\" | sed \"s/\\\"tcp_port\\\":0/\\\"tcp_port\\\":$port/;s/\\\"pid\\\":0/\\\"pid\\\":$other/\")
    \"$1\" __walls one \"$3\" \"$bait\"; exec 3>&-; wait";

pub(crate) fn every_probe_trips_in_its_open_place() {
    let mut wrong = Vec::new();
    for probe in all().filter(|p| p.when != When::Outside) {
        let name = probe.name;
        match tried(probe) {
            Saw(Answer::Absent(why)) => println!("  {name}: nothing to wall off: {why}"),
            // The processor's own refusal: this kernel has no 32-bit entry.
            Saw(Answer::Signal(libc::SIGSEGV)) if name == "i386-killed" => {
                println!("  {name}: nothing to wall off: the kernel has no such entry");
            }
            // A host whose own folder is empty has nothing to cover.
            Saw(Answer::Held(seen)) if seen == "a folder with 0 entries" => {
                println!("  {name}: nothing to wall off: {seen}");
            }
            Saw(answer) => {
                let tripped = judge(probe.expect, &answer) == Verdict::Broken;
                println!("  {name}: {}: {answer:?}", if tripped { "tripped" } else { "HELD" });
                if !tripped || matches!(answer, Answer::Failed(_)) {
                    wrong.push(format!("{name} ({}): {answer:?}", probe.open.words()));
                }
            }
            Cannot(why) if std::env::var_os("CI").is_some() && is_root() => {
                wrong.push(format!("{name} cannot be tried, and CI does not skip: {why}"));
            }
            Cannot(why) => println!("  SKIPPED {name}: {why}"),
        }
    }
    assert!(wrong.is_empty(), "{} probes are vacuous here:\n{}", wrong.len(), wrong.join("\n"));
}

/// The quick battery on the bare host, judged as a session's would be: refused.
pub(crate) fn a_host_without_walls_is_refused() {
    let place = Place::make("bare");
    let mut words = place.words("unused");
    words.splice(2..4, ["quick".to_owned()]);
    // In mounts of its own, whatever a probe may do one day: this is the machine that tests run on.
    let own = if is_root() { "-m" } else { "-Urm" };
    let mut command = Command::new("unshare");
    let output = command.args([own, "--propagation", "private"]).args(&words).output();
    let output = output.expect("it starts");
    let report = sandbox::Report {
        walls: Vec::new(),
        limits: Vec::new(),
        plan: sandbox::Plan { steps: Vec::new() },
        pid: 1,
        probes: Some(String::from_utf8_lossy(&output.stdout).into_owned()),
    };
    let findings = probe_on_start(&report, &[]);
    let broken = findings.iter().filter(|f| f.verdict == Verdict::Broken).count();
    // Some trip as root only, some in places that are staged.
    assert!(broken > findings.len() / 3, "{broken} of {}", findings.len());
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn tried(probe: &Probe) -> Tried {
    let place = Place::make(probe.name);
    if probe.name == "cpu-share" {
        return share(&place, probe);
    }
    match (probe.open, probe.name) {
        (Open::Root, _) if !is_root() => Cannot("it needs the host's root".into()),
        (Open::Root, "groups-none") => within(&place, &["setpriv", "--groups", "1,2"], probe),
        (Open::Plain | Open::Root, _) => direct(&place, probe),
        (Open::Capable, _) => within(&place, CAPABLE, probe),
        (Open::Staged, _) => staged(place, probe),
    }
}

fn direct(place: &Place, probe: &Probe) -> Tried {
    answered(place.run(&place.words(probe.name)))
}

/// A machine that is busy with something else gives less than a CPU: the best of some tries counts.
fn share(place: &Place, probe: &Probe) -> Tried {
    const TRIES: usize = 5;
    let mut tries = (0..TRIES).map(|_| direct(place, probe));
    let most = tries.find(|t| matches!(t, Saw(Answer::Tripped(_))));
    most.unwrap_or_else(|| Cannot(format!("no CPU to spare in {TRIES} tries")))
}

fn answered(result: Result<Answer, String>) -> Tried {
    Saw(result.unwrap_or_else(Answer::Failed))
}

/// The probe under a tool, if the tool is there and may do it.
fn within(place: &Place, tool: &[&str], probe: &Probe) -> Tried {
    if need(tool[0]).is_none() {
        return Cannot(format!("{} is missing", tool[0]));
    }
    let allowed = Command::new(tool[0]).args(&tool[1..]).arg("true").output().expect("it starts");
    if !allowed.status.success() {
        return Cannot(String::from_utf8_lossy(&allowed.stderr).trim().to_owned());
    }
    let mut words: Vec<String> = tool.iter().map(|w| (*w).to_owned()).collect();
    words.extend(place.words(probe.name));
    answered(place.run(&words))
}

/// The probe after a piece of shell, which ends with `exec "$@"`.
fn by_shell(place: &Place, tool: &[&str], script: &str, probe: &Probe) -> Tried {
    let mut all = tool.to_vec();
    all.extend(["sh", "-c", script, "sh"]);
    within(place, &all, probe)
}

fn staged(mut place: Place, probe: &Probe) -> Tried {
    match probe.name {
        "ipc-empty" => {
            let script = "ipcmk -M 4096 > /dev/null && exec \"$@\"";
            by_shell(&place, &["unshare", "-Uri"], script, probe)
        }
        "net-interfaces" | "net-routes" | "icmp" => {
            by_shell(&place, &["unshare", "-Urn"], NETWORK, probe)
        }
        "caps-zero-inheritable" | "caps-zero-ambient" => {
            let set = ["--inh-caps", "+chown", "--ambient-caps", "+chown"];
            let tool = [&["unshare", "-Ur", "setpriv"][..], &set].concat();
            within(&place, &tool, probe)
        }
        "core-limit" | "core-dump" | "core-limit-raise-denied" => {
            by_shell(&place, &[], "ulimit -c unlimited && exec \"$@\"", probe)
        }
        "fd-inheritance" => by_shell(&place, &[], "exec 9< /dev/null; exec \"$@\"", probe),
        "controlling-terminal" => on_a_terminal(&place, probe),
        "host-loopback-6" if place.bait.tcp6_port == 0 => Cannot("this host has no IPv6".into()),
        "far-address-6" if place.bait.tcp6_port == 0 => Cannot("this host has no IPv6".into()),
        "init-ptrace" | "init-pidfd-getfd" if !is_root() && restricted() => {
            Cannot("kernel.yama.ptrace_scope restricts tracing".into())
        }
        "door-passed" => beside(&mut place, probe, true),
        name if name.starts_with("other-session") => beside(&mut place, probe, false),
        _ => direct(&place, probe),
    }
}

fn restricted() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    !matches!(scope.trim(), "" | "0")
}

/// As the leader of a terminal, which script(1) makes.
fn on_a_terminal(place: &Place, probe: &Probe) -> Tried {
    if need("script").is_none() {
        return Cannot("script is missing".into());
    }
    let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    let line = place.words(probe.name).iter().map(quoted).collect::<Vec<_>>().join(" ");
    let words = ["script", "-qec", &line, "/dev/null"].map(str::to_owned);
    answered(place.run(&words))
}

/// With the other session's things in the same namespaces.
fn beside(place: &mut Place, probe: &Probe, shared: bool) -> Tried {
    let folder = place.dir.path().display().to_string();
    let name = format!("{}-beside", place.bait.abstract_name);
    let other = Other {
        name: name.clone(),
        workspace: folder.clone(),
        shm_key: 4_711,
        uid_map: format!("0 {} 1", rustix::process::geteuid().as_raw()),
        shared: if shared { folder } else { String::new() },
        ..Other::default()
    };
    place.bait.other = other.clone();
    let tool = ["unshare", "-Uri", "--propagation", "unchanged", "true"];
    let allowed = Command::new(tool[0]).args(&tool[1..]).output();
    if !allowed.is_ok_and(|o| o.status.success()) {
        return Cannot("no user namespace can be made".into());
    }
    let bait = serde_json::to_string(&place.bait).expect("JSON");
    let other = serde_json::to_string(&other).expect("JSON");
    let own = me().display().to_string();
    let mut words: Vec<String> =
        ["unshare", "-Uri", "sh", "-c", BESIDE, "sh"].map(str::to_owned).into();
    words.extend([own, other, probe.name.to_owned(), bait]);
    let tried = answered(place.run(&words));
    for folder in ["/tmp", "/dev/shm"] {
        // Where it could not be made there is nothing to remove.
        drop(std::fs::remove_file(format!("{folder}/{name}")));
    }
    tried
}
