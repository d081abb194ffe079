#![allow(clippy::unwrap_used)]
use super::*;
use crate::engine::api::HostConfig;
use crate::engine::fitness;
use crate::secrets::Mask;
use crate::step::Bind;
use crate::wire::Place;
use model::Limit;

const OWNER: Owner = Owner { uid: 1001, gid: 1001 };

fn container() -> Container {
    let bind = |source: &str, target: &str, read_only| Bind {
        source: source.into(),
        target: target.into(),
        read_only,
        devices: false,
        strict: true,
        owner: None,
    };
    Container {
        engine: "docker".into(),
        image: None,
        runtime: None,
        identity: OWNER,
        host_name: "sandbox".into(),
        memory_bytes: 1 << 30,
        cpu_milli: 1_000,
        pids: 256,
        open_files: 4_096,
        first_port: 53,
        skeleton: Vec::new(),
        files: vec![("/etc/hosts".into(), String::new())],
        binds: vec![bind("/w", "/workspace", false), bind("/n", "/mnt/notes", true)],
        masks: vec![Mask { path: "/workspace/.env".into(), directory: false }],
        scratch: Vec::new(),
        hidden: vec!["/sys".into()],
        read_only: Vec::new(),
    }
}

fn facts() -> Facts {
    Facts {
        kind: fitness::Kind::Docker,
        title: "docker 20.10.24".into(),
        rootless: false,
        remaps: false,
        labels: false,
        shares_group_names: false,
        runtimes: vec!["runc".into()],
        default_runtime: "runc".into(),
    }
}

const STATUS: &str = "Name:\tnanoclaw\nUid:\t1001\t1001\t1001\t1001\nGid:\t1001\t1001\t1001\t1001\n\
    Groups:\t1001 \nNSpid:\t4711\t1\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
    CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
    NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
const DEVICES: &str = "Inter-|\n face |\n    lo:  0 0\n";

/// Everything as it should be.
struct World {
    container: Container,
    facts: Facts,
    inspected: Inspected,
    status: String,
    devices: String,
    inside: Measured,
    files: Files,
}

impl World {
    fn good() -> Self {
        let place =
            |path: &str, inode, read_only| Place { path: path.into(), file: (1, inode), read_only };
        let names = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
        let mut namespaces: Vec<(String, u64)> =
            names.iter().zip(100..).map(|(n, i)| ((*n).to_owned(), i)).collect();
        namespaces.push(("user".into(), 7));
        Self {
            container: container(),
            facts: facts(),
            inspected: Inspected {
                image: "sha256:ab".into(),
                host_config: HostConfig {
                    network_mode: "none".into(),
                    readonly_rootfs: true,
                    ipc_mode: "private".into(),
                    ..HostConfig::default()
                },
                mounts: Some(vec![MountPoint {
                    kind: "bind".into(),
                    destination: "/workspace".into(),
                }]),
                ..Inspected::default()
            },
            status: STATUS.into(),
            devices: DEVICES.into(),
            inside: Measured {
                namespaces,
                root_read_only: true,
                places: vec![
                    place("/workspace", 5, false),
                    place("/mnt/notes", 6, true),
                    place("/workspace/.env", 8, true),
                ],
                felt: Some(crate::landlock::tests::confined()),
                limits: [("fsize", 2 << 30), ("nofile", 4_096), ("core", 0)]
                    .map(|(n, v)| (n.to_owned(), v))
                    .into(),
                ..Measured::default()
            },
            files: [("/workspace", 5), ("/mnt/notes", 6), ("/workspace/.env", 8)]
                .map(|(path, inode)| (path.to_owned(), (1, inode)))
                .into(),
        }
    }

    fn walls(&self) -> Result<Vec<WallState>, StartError> {
        let spec = crate::engine::tests::spec();
        let host: Vec<(String, u64)> = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"]
            .iter()
            .map(|n| ((*n).to_owned(), 7))
            .collect();
        let demand = Demand {
            container: &self.container,
            spec: &spec,
            facts: &self.facts,
            owner: OWNER,
            files: &self.files,
            host: &host,
            landlock: 7,
            image: "sha256:ab",
        };
        let outside = Outside::parse(&self.status, &self.devices);
        let (inspected, inside) = (&self.inspected, &self.inside);
        walls(&demand, &Found { inspected, outside: &outside, inside })
    }
}

#[test]
fn what_was_measured_is_reported() {
    let walls = World::good().walls().unwrap();
    let state = |name: &str| walls.iter().find(|w| w.wall == name).unwrap().state.clone();
    assert_eq!(state("engine"), "docker 20.10.24, runtime runc");
    assert_eq!(state("namespaces"), "mnt, pid, net, ipc, uts, cgroup");
    assert_eq!(state("uid"), "1001:1001 inside, 1001 outside, the caller's own");
    assert!(state("seccomp").ends_with("filters loaded: 2"));
    assert!(state("landlock").starts_with("ABI 7, tried and refused: writing"));
}

#[test]
fn whether_operations_are_witnessed_is_said_in_every_report() {
    let state = |reads| witness(reads).state;
    assert!(state(None).starts_with("off"), "{}", state(None));
    for reads in [true, false] {
        let said = state(Some(reads));
        assert!(said.starts_with("executions and refused connections"), "{said}");
        assert!(said.contains("engine's filter, which reports nothing"), "{said}");
        assert_eq!(said.contains("closed to us"), !reads, "{said}");
    }
}

#[test]
fn every_difference_refuses_the_start() {
    type Change = fn(&mut World);
    let edit = |w: &mut World, from: &str, to: &str| w.status = w.status.replace(from, to);
    let changes: [(&str, Change); 20] = [
        ("network mode", |w| w.inspected.host_config.network_mode = "bridge".into()),
        ("privileged", |w| w.inspected.host_config.privileged = true),
        ("read-only root", |w| w.inspected.host_config.readonly_rootfs = false),
        ("PID mode", |w| w.inspected.host_config.pid_mode = "host".into()),
        ("IPC mode", |w| w.inspected.host_config.ipc_mode = "container:x".into()),
        ("devices", |w| w.inspected.host_config.devices = Some(vec![serde_json::json!({})])),
        ("image", |w| w.inspected.image = "sha256:cd".into()),
        ("runtime", |w| w.container.runtime = Some("runsc".into())),
        ("nobody asked", |w| {
            let volume = MountPoint { kind: "volume".into(), destination: "/data".into() };
            w.inspected.mounts = Some(vec![volume]);
        }),
        ("net namespace", |w| w.inside.namespaces[2].1 = 7),
        ("cgroup namespace", |w| w.inside.namespaces.retain(|(n, _)| n != "cgroup")),
        ("interfaces", |w| w.devices.push_str("  eth0: 1 2\n")),
        ("the root", |w| w.inside.root_read_only = false),
        ("/workspace", |w| w.inside.places[0].file = (1, 9)),
        ("/mnt/notes", |w| w.inside.places[1].read_only = false),
        ("/mnt/notes", |w| drop(w.inside.places.remove(1))),
        ("/workspace/.env", |w| w.inside.places[2].file = (1, 9)),
        ("/workspace/.env", |w| w.inside.places[2].read_only = false),
        ("Landlock", |w| w.inside.felt = None),
        ("/sys", |w| w.inside.shown.push("/sys".into())),
    ];
    for (what, change) in changes {
        let mut world = World::good();
        change(&mut world);
        let error = world.walls().expect_err(what);
        assert_eq!(error.kind, Kind::Verification);
        assert!(error.cause.contains(what), "{what}: {error}");
    }
    for (what, from, to) in [
        ("CapEff", "CapEff:\t0000000000000000", "CapEff:\t00000000a80425fb"),
        ("NoNewPrivs", "NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ("Seccomp", "Seccomp:\t2", "Seccomp:\t0"),
        ("filters", "filters:\t2", "filters:\t1"),
        ("Uid", "Uid:\t1001", "Uid:\t0"),
        ("Gid", "Gid:\t1001\t1001", "Gid:\t1001\t0"),
        ("groups", "Groups:\t1001", "Groups:\t1001 27"),
        ("PID namespace", "NSpid:\t4711\t1", "NSpid:\t4711"),
    ] {
        let mut world = World::good();
        edit(&mut world, from, to);
        let error = world.walls().expect_err(what);
        assert!(error.cause.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_limit_that_the_kernel_does_not_have_refuses_the_start() {
    let (inside, asked) = (World::good().inside, Limits::default());
    let held = Held {
        memory: Some(1 << 30),
        swap: Some(0),
        cpu_milli: Some(1_000),
        pids: Some(256),
        sockets: Some(Beside::AtMost(128 << 20)),
    };
    let states = limits(&asked, &held, &inside, true).unwrap();
    assert_eq!(states[0].value, "1073741824 bytes");
    let counted = Limits { disk_bytes: Some(1 << 30), wall_ms: Some(700), ..asked.clone() };
    let states = limits(&counted, &held, &inside, true).unwrap();
    let by = |name: &str| &states.iter().find(|s| s.limit == name).unwrap().enforced_by;
    assert!(by("disk").starts_with("no quota: counted"), "{states:?}");
    assert!(by("wall-time").contains("clock"), "{states:?}");
    for worse in [
        Held { memory: None, ..held },
        Held { memory: Some(2 << 30), ..held },
        Held { cpu_milli: None, ..held },
        Held { pids: Some(257), ..held },
    ] {
        let error = limits(&asked, &worse, &inside, true).unwrap_err();
        assert_eq!(error.kind, Kind::Limit, "{worse:?}");
        assert!(error.remedy.contains("Delegate"), "{error}");
    }
    let swapping = Held { swap: None, ..held };
    let said = limits(&asked, &swapping, &inside, true).unwrap();
    assert_eq!((said[1].value.as_str(), said[1].enforced_by.as_str()), ("any", "nothing more"));
    assert_eq!(limits(&asked, &swapping, &inside, false).unwrap()[1].value, "0 bytes");
    let memory = Limit { value: 1 << 30, strictness: Strictness::Required };
    let strict = Limits { memory_bytes: memory, ..asked.clone() };
    assert!(limits(&strict, &swapping, &inside, true).unwrap_err().cause.contains("swap"));
    let queues = |held: &Held| {
        let states = limits(&asked, held, &inside, true).unwrap();
        states.into_iter().find(|s| s.limit == "socket-memory").map(|s| s.value)
    };
    assert_eq!(queues(&held).as_deref(), Some("134217728 bytes beside"));
    assert_eq!(queues(&Held { sockets: None, ..held }), None);
    for open in [Beside::Unlimited, Beside::AtMost(1 << 30)] {
        let open = Held { sockets: Some(open), ..held };
        assert_eq!(queues(&open).as_deref(), Some("any"));
        assert!(limits(&strict, &open, &inside, true).unwrap_err().cause.contains("queues"));
    }
    let mut loose = World::good().inside;
    loose.limits[1].1 = 1 << 20;
    assert!(limits(&asked, &held, &loose, true).unwrap_err().cause.contains("nofile"));
}

/// Only where the engine is known to give none, and then the report says so.
#[test]
fn a_missing_namespace_of_control_groups_is_told() {
    let mut world = World::good();
    world.facts.shares_group_names = true;
    let told = |world: &World| world.walls().unwrap().swap_remove(1).state;
    assert_eq!(told(&world), "mnt, pid, net, ipc, uts, cgroup");
    world.inside.namespaces[5].1 = 7;
    assert_eq!(
        told(&world),
        "mnt, pid, net, ipc, uts; the names of its control groups are the host's"
    );
    world.facts.shares_group_names = false;
    assert!(world.walls().unwrap_err().cause.contains("cgroup namespace"));
}
