//! The plan as people see it, and what its hash depends on.
#![allow(clippy::unwrap_used)]

use model::{
    Access, AgentName, Backend, Command, DoorSpec, EngineChoice, ImageRef, Limits, Mount, Network,
    RootFs, SandboxSpec, SessionId, Workspace,
};
use nanoclaw_sandbox::{
    HostEntry, HostFacts, Ladder, Mask, Mode, Owner, Rung, Sources, SpecErrorKind, check, plan,
};
use std::path::PathBuf;

fn facts(mode: Mode) -> HostFacts {
    HostFacts {
        mode,
        root: vec![HostEntry::Link("/bin".into(), "usr/bin".into())],
        etc: ["/etc/alternatives", "/etc/ssl/certs"].map(|p| HostEntry::Tree(p.into())).into(),
        bundles: vec!["/etc/ssl/certs/ca-certificates.crt".into()],
        proc_masks: vec![("/proc/kcore".into(), false)],
        proc_read_only: vec!["/proc/sys".into()],
        binary: Some("/usr/bin/nanoclaw".into()),
        landlock_abi: 7,
        ladder: match mode {
            Mode::Root => Ladder { memory: Rung::V1, cpu: Rung::V1, pids: Rung::V1 },
            Mode::User => Ladder::NONE,
        },
        homes: vec!["/home/u".into()],
        private: vec!["/var/lib/nanoclaw".into()],
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        session: SessionId::parse("s1").unwrap(),
        agent: AgentName::parse("triage").unwrap(),
        backend: Backend::Native,
        rootfs: RootFs::HostUsr,
        workspace: Workspace::User("/home/u/project".into()),
        home: "/state/home".into(),
        mounts: vec![Mount {
            source: "/srv/notes".into(),
            target: "/mnt/notes".into(),
            access: Access::Read,
        }],
        network: Network::Door(DoorSpec {
            socket: "/state/door".into(),
            port: 8080,
            ports: vec![80, 443],
            trust: Some("/state/trust.pem".into()),
        }),
        env: [("HOME".to_owned(), "/home/agent".to_owned())].into(),
        probe: Vec::new(),
        command: Command::Program(vec!["bash".into(), "-l".into()]),
        cwd: "/workspace".into(),
        limits: Limits::default(),
        witness: true,
    }
}

fn sources() -> Sources {
    let owner = Owner { uid: 1001, gid: 1001 };
    ["/home/u/project", "/state/home", "/srv/notes", "/state/door", "/state/trust.pem"]
        .map(|p| (PathBuf::from(p), owner))
        .into()
}

#[test]
fn printed_plan_of_root_mode() {
    let text = plan(&spec(), &facts(Mode::Root), &sources()).to_string();
    assert_eq!(text, include_str!("snapshots/plan-root.txt"), "{text}");
}

#[test]
fn an_image_of_our_own_store_is_for_the_native_backend() {
    let image = ImageRef::parse(&format!("debian@sha256:{}", "ab".repeat(32))).unwrap();
    let rootfs = RootFs::Image { image, tree: "/state/tree".into() };
    for backend in [Backend::Docker, Backend::Podman] {
        let backend = backend(EngineChoice::default());
        let spec = SandboxSpec { backend, rootfs: rootfs.clone(), ..spec() };
        let error = check(&spec, &facts(Mode::User)).unwrap_err();
        assert_eq!(error.kind, SpecErrorKind::Backend);
        assert!(error.remedy.contains("engine_image"), "{error}");
    }
}

#[test]
fn printed_plan_of_user_mode() {
    let text = plan(&spec(), &facts(Mode::User), &sources()).to_string();
    assert_eq!(text, include_str!("snapshots/plan-user.txt"), "{text}");
}

#[test]
fn what_is_covered_stands_after_what_is_granted() {
    let mut sources = sources();
    let mask = |path: &str, directory| Mask { path: path.into(), directory };
    sources.masks = vec![mask("/mnt/notes/.env", false), mask("/workspace/.ssh", true)];
    let text = plan(&spec(), &facts(Mode::User), &sources).to_string();
    let line = |part: &str| text.lines().position(|l| l.contains(part)).unwrap();
    let file = line("cover /mnt/notes/.env with an empty file: it may hold keys");
    let folder = line("cover /workspace/.ssh with an empty folder: it may hold keys");
    assert!(line("bind /srv/notes at") < file && file < folder && folder < line("pivot_root"));
    assert!(line("file /run/nanoclaw/masked (0 bytes)") < file);
}

#[test]
fn the_hash_input_follows_the_spec_and_nothing_else() {
    let facts = facts(Mode::Root);
    let input = |spec: &SandboxSpec| plan(spec, &facts, &sources()).sha256_input();
    assert_eq!(input(&spec()), input(&spec()));
    let mut changed = spec();
    changed.env.insert("HOME".into(), "/elsewhere".into());
    assert_ne!(input(&spec()), input(&changed));
    let back: nanoclaw_sandbox::Plan = serde_json::from_slice(&input(&spec())).unwrap();
    assert_eq!(back, plan(&spec(), &facts, &sources()));
}
