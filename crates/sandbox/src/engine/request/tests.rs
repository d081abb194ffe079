#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::facts::{HostEntry, HostFacts, Ladder, Mode};
use crate::step::Step;
use model::{
    Access, AgentName, Backend, Command, DoorSpec, EngineChoice, Limits, Mount, Network, RootFs,
    SandboxSpec, SessionId, Workspace,
};

fn spec() -> SandboxSpec {
    SandboxSpec {
        session: SessionId::parse("s1").unwrap(),
        agent: AgentName::parse("triage").unwrap(),
        backend: Backend::Docker(EngineChoice { image: None, runtime: Some("crun".into()) }),
        rootfs: RootFs::HostUsr,
        workspace: Workspace::User("/home/me/project".into()),
        home: "/state/s1/home".into(),
        mounts: vec![Mount {
            source: "/home/me/notes".into(),
            target: "/mnt/notes".into(),
            access: Access::Read,
        }],
        network: Network::Door(DoorSpec {
            socket: "/state/door.sock".into(),
            port: 3128,
            ports: vec![443],
            trust: None,
        }),
        env: [("PATH".to_owned(), "/usr/bin".to_owned())].into(),
        probe: vec!["__probe".into()],
        command: Command::Program(vec!["sh".into()]),
        cwd: "/workspace".into(),
        limits: Limits::default(),
        witness: true,
    }
}

fn host() -> HostFacts {
    HostFacts {
        mode: Mode::Root,
        root: vec![HostEntry::Link("/bin".into(), "usr/bin".into())],
        etc: vec![HostEntry::Tree("/etc/ssl/certs".into())],
        bundles: Vec::new(),
        proc_masks: vec![("/proc/kcore".into(), false)],
        proc_read_only: vec!["/proc/sys".into()],
        binary: Some("/opt/nanoclaw".into()),
        landlock_abi: 7,
        ladder: Ladder::NONE,
        homes: Vec::new(),
        private: Vec::new(),
    }
}

fn facts(kind: Kind) -> Facts {
    Facts {
        kind,
        title: "an engine".into(),
        rootless: false,
        remaps: false,
        labels: false,
        shares_group_names: false,
        runtimes: vec!["crun".into()],
        default_runtime: "runc".into(),
    }
}

fn occasion() -> Occasion {
    Occasion {
        image: "sha256:ab".into(),
        line: "/state/run/l1".into(),
        files: (0..7).map(|n| PathBuf::from(format!("/state/run/f{n}"))).collect(),
        covers: ["/state/run/nothing".into(), "/state/run/cover".into()],
        profile: ("/state/run/seccomp.json".into(), "{\"p\":1}".into()),
        labels: BTreeMap::from([("io.nanoclaw.session".to_owned(), "s1".to_owned())]),
        hard: Ceiling { files: 20_000, processes: 9_000 },
    }
}

fn plan(spec: &SandboxSpec) -> crate::Plan {
    crate::plan(spec, &host(), &crate::Sources::default())
}

fn container(plan: &crate::Plan) -> Container {
    match plan.steps.first() {
        Some(Step::Container(container)) => (**container).clone(),
        other => panic!("{other:?}"),
    }
}

fn asked(kind: &Facts) -> Value {
    body(&container(&plan(&spec())), kind, &occasion())
}

fn sources(body: &Value) -> BTreeMap<String, (String, bool)> {
    let mounts = body["HostConfig"]["Mounts"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    mounts
        .iter()
        .map(|m| (text(&m["Target"]), (text(&m["Source"]), m["ReadOnly"].as_bool().unwrap())))
        .collect()
}

#[test]
fn every_wall_is_asked_for_by_name() {
    let body = asked(&facts(Kind::Docker));
    let config = &body["HostConfig"];
    for (key, value) in [
        ("NetworkMode", json!("none")),
        ("ReadonlyRootfs", json!(true)),
        ("Privileged", json!(false)),
        ("CapAdd", json!([])),
        ("CapDrop", json!(["ALL"])),
        ("SecurityOpt", json!(["no-new-privileges", "seccomp={\"p\":1}"])),
        ("IpcMode", json!("private")),
        ("CgroupnsMode", json!("private")),
        ("Memory", json!(1_u64 << 30)),
        ("MemorySwap", json!(1_u64 << 30)),
        ("CpuQuota", json!(100_000)),
        ("PidsLimit", json!(256)),
        ("MaskedPaths", json!(["/sys", "/proc/kcore"])),
        ("ReadonlyPaths", json!(["/proc/sys"])),
        ("Runtime", json!("crun")),
        (
            "Sysctls",
            json!({
                "net.ipv4.ip_unprivileged_port_start": "53",
                "net.ipv4.ping_group_range": "1 0",
            }),
        ),
        ("AutoRemove", json!(true)),
        ("Init", json!(false)),
        ("Devices", json!([])),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["Ulimits"][0], json!({ "Name": "nofile", "Soft": 4096, "Hard": 4096 }));
    assert_eq!(config["Ulimits"][1]["Hard"], json!(9_000));
    assert_eq!(body["Healthcheck"]["Test"], json!(["NONE"]));
    assert_eq!(body["User"], json!("1879048191:1879048191"));
    let command = ["/run/nanoclaw/nanoclaw", "__sandbox-init", "/run/nanoclaw/line.sock"];
    assert_eq!(body["Entrypoint"], json!(command));
}

#[test]
fn mounts_are_those_of_the_native_plan_and_the_line() {
    let body = asked(&facts(Kind::Docker));
    let found = sources(&body);
    let get = |target: &str| found.get(target).map(|(s, ro)| (s.as_str(), *ro));
    assert_eq!(get("/usr"), Some(("/usr", true)));
    assert_eq!(get("/etc/ssl/certs"), Some(("/etc/ssl/certs", true)));
    assert_eq!(get("/home/agent"), Some(("/state/s1/home", false)));
    assert_eq!(get("/workspace"), Some(("/home/me/project", false)));
    assert_eq!(get("/home/me/project"), Some(("/home/me/project", false)), "its own path too");
    assert_eq!(get("/mnt/notes"), Some(("/home/me/notes", true)));
    assert_eq!(get("/run/nanoclaw/door.sock"), Some(("/state/door.sock", true)));
    assert_eq!(get("/run/nanoclaw/nanoclaw"), Some(("/opt/nanoclaw", true)));
    assert_eq!(get("/run/nanoclaw/line.sock"), Some(("/state/run/l1", true)));
    assert_eq!(get("/etc/resolv.conf").map(|m| m.1), Some(true));
    assert!(!found.keys().any(|t| t.starts_with("/dev")), "{found:?}");
    let all = body["HostConfig"]["Mounts"].as_array().unwrap();
    assert!(all.iter().all(|m| m["BindOptions"]["NonRecursive"] == json!(true)));
}

/// Also at the user's own path: there the native plan has a link, and a container a second mount.
#[test]
fn what_may_hold_keys_is_covered_wherever_it_is_mounted() {
    let mask = |path: &str, directory| Mask { path: path.into(), directory };
    let masks = vec![
        mask("/mnt/notes/.ssh", true),
        mask("/workspace/.env", false),
        mask("/workspace/a/.aws", true),
    ];
    let plan = crate::plan(&spec(), &host(), &crate::Sources { masks, ..Default::default() });
    let found = sources(&body(&container(&plan), &facts(Kind::Docker), &occasion()));
    let (file, folder) =
        (("/state/run/nothing".to_owned(), true), ("/state/run/cover".into(), true));
    for (path, cover) in [
        ("/mnt/notes/.ssh", &folder),
        ("/workspace/.env", &file),
        ("/workspace/a/.aws", &folder),
        ("/home/me/project/.env", &file),
        ("/home/me/project/a/.aws", &folder),
    ] {
        assert_eq!(found.get(path), Some(cover), "{path}");
        assert!(plan.masks().any(|mask| mask.path == path), "{path}");
        assert!(plan.to_string().contains(&format!("cover {path} with an empty")), "{path}");
        let looks = |s: &Step| match s {
            Step::Look { places, .. } => places.iter().any(|place| place == path),
            _ => false,
        };
        assert!(plan.steps.iter().any(looks), "{path} is looked at");
    }
    assert!(!found.contains_key(crate::plan::MASK), "the native cover is no file of a container");
    assert_eq!(plan.masks().count(), 5);
}

#[test]
fn what_is_left_to_do_inside_follows_in_the_native_order() {
    let plan = plan(&spec());
    let name =
        |s: &Step| format!("{s:?}").split([' ', '{', '(']).next().unwrap_or_default().to_owned();
    let names: Vec<String> = plan.steps[1..].iter().map(name).collect();
    let wanted = [
        "Listen",
        "Names",
        "DoorPort",
        "ResourceLimit",
        "ResourceLimit",
        "ResourceLimit",
        "NoNewPrivileges",
        "Landlock",
        "Seccomp",
        "Look",
        "Verify",
        "Probe",
        "Run",
    ];
    assert_eq!(names, wanted);
    assert!(plan.steps.iter().any(|s| matches!(s, Step::Seccomp { witness: true, .. })));
    assert!(!plan.to_string().contains("/state/run"), "nothing of one start is in a plan");
}

#[test]
fn the_private_places_together_are_no_larger_than_the_limit() {
    let container = container(&plan(&spec()));
    let total: u64 = container.scratch.iter().map(|s| s.bytes).sum();
    assert!(total <= Limits::default().tmp_bytes, "{total}");
    let tmpfs = tmpfs(&container, Kind::Docker);
    let told = "rw,exec,nosuid,nodev,size=167772160,mode=1777";
    assert_eq!(tmpfs["/tmp"], json!(format!("{told},nr_inodes=81920")));
    let inodes: u64 = container.scratch.iter().map(|s| s.inodes).sum();
    assert!(inodes <= 131_072, "{inodes}");
    assert_eq!(self::tmpfs(&container, Kind::Podman)["/tmp"], json!(told));
    assert!(!tmpfs.contains_key("/dev/shm") && !tmpfs.contains_key("/run"));
}

#[test]
fn podman_reads_some_fields_in_its_own_way() {
    let body = asked(&facts(Kind::Podman));
    let config = &body["HostConfig"];
    let wanted = ["no-new-privileges", "seccomp=/state/run/seccomp.json", "mask=/sys:/proc/kcore"];
    assert_eq!(config["SecurityOpt"], json!(wanted));
    assert_eq!(config["Tmpfs"]["/run"], json!("rw,exec,nosuid,nodev,size=65536,mode=0755"));
    assert!(config.get("MaskedPaths").is_none() && config.get("UsernsMode").is_none());
}

/// A folder under a place in memory would have its own permissions given to it.
#[test]
fn places_in_memory_hide_no_folder_of_the_root() {
    let container = container(&plan(&spec()));
    let folders: Vec<&str> = container.skeleton.iter().map(|(path, _)| path.as_str()).collect();
    assert!(folders.contains(&"/run/user") && folders.contains(&"/var"), "{folders:?}");
    for place in ["/tmp", "/var/tmp", "/run/user/1000"] {
        assert!(container.scratch.iter().any(|s| s.path == place && s.mode == 0o1777));
        assert!(!folders.contains(&place), "{place}");
    }
}

/// Nothing of what needs a right on a host needs none inside but what the first process binds.
#[test]
fn no_more_ports_are_opened_than_the_first_process_binds() {
    let first = |network: Network| container(&plan(&SandboxSpec { network, ..spec() })).first_port;
    assert_eq!(first(Network::None), 1_024);
    let Network::Door(door) = spec().network else { panic!("it has a door") };
    let ports = |ports: &[u16]| Network::Door(DoorSpec { ports: ports.to_vec(), ..door.clone() });
    assert_eq!(first(ports(&[443])), 53, "names");
    assert_eq!(first(ports(&[443, 22])), 22);
}

#[test]
fn rootless_and_remapping_engines_keep_the_owner_of_files() {
    let me = Owner { uid: 1001, gid: 1002 };
    let podman = Facts { rootless: true, ..facts(Kind::Podman) };
    assert_eq!(asked(&podman)["HostConfig"]["UsernsMode"], json!("keep-id"));
    let sysctls = json!({ "net.ipv4.ip_unprivileged_port_start": "53" });
    assert_eq!(asked(&podman)["HostConfig"]["Sysctls"], sysctls, "ids may be unknown there");
    assert_eq!(inside(me, &podman), me);
    let docker = Facts { rootless: true, ..facts(Kind::Docker) };
    assert_eq!(inside(me, &docker), Owner { uid: 0, gid: 0 });
    let remapped = Facts { remaps: true, ..facts(Kind::Docker) };
    assert_eq!(asked(&remapped)["HostConfig"]["UsernsMode"], json!("host"));
    assert_eq!(inside(me, &remapped), me);
}

#[test]
fn an_image_brings_its_own_files_but_not_the_names_of_the_network() {
    let mut spec = spec();
    let image = format!("sha256:{}", "ab".repeat(32));
    spec.backend = Backend::Podman(EngineChoice { image: Some(image), runtime: None });
    let container = container(&plan(&spec));
    assert!(container.skeleton.is_empty());
    let files: Vec<&str> = container.files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(files, ["/etc/hosts", "/etc/hostname", "/etc/machine-id", "/etc/resolv.conf"]);
    assert!(!container.binds.iter().any(|b| b.target == "/usr"));
}
