//! A place to make sandboxes in.

use model::{
    AgentName, Backend, Command, DoorSpec, Limits, Network, RootFs, SandboxSpec, SessionId,
    Workspace,
};
use nanoclaw_sandbox::{
    Ended, EngineOptions, Mode, Outcome, Spawner, SpawnerOptions, StartError, Stdio,
};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) spawner: Spawner,
    /// What makes its sandboxes.
    pub(crate) backend: Backend,
    count: AtomicU32,
}

pub(crate) struct Done {
    pub(crate) ended: Ended,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.ended.outcome, Outcome::Exited(0), "stderr: {}", self.err);
        self.out
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A door to the socket at `socket`, with these ports.
pub(crate) fn door(socket: PathBuf, ports: &[u16]) -> Network {
    if socket.exists() {
        // As the gateway does it.
        set_mode(&socket, 0o666);
    }
    Network::Door(DoorSpec { socket, port: 8080, ports: ports.to_vec(), trust: None })
}

impl Lab {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, Backend::Native, EngineOptions::default())
    }

    /// With an engine at its socket.
    pub(crate) fn with(name: &str, backend: Backend, engines: EngineOptions) -> Self {
        let dir = std::env::temp_dir().join(format!("nanoclaw-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("state")).unwrap();
        let private = vec![dir.join("state")];
        let options = SpawnerOptions { private, engines, ..SpawnerOptions::default() };
        let spawner = Spawner::launch(options).unwrap();
        Self { dir, spawner, backend, count: AtomicU32::new(0) }
    }

    /// Whether its sandboxes are made by our own spawner.
    pub(crate) fn native(&self) -> bool {
        self.backend == Backend::Native
    }

    /// Whether this is the number of a first program. A container's first process was the engine's
    /// runtime, a program of several threads, before it became ours: their numbers are used up.
    pub(crate) fn first_number(&self, number: &str) -> bool {
        number == "2" || !self.native() && number.parse::<u32>().is_ok_and(|n| (3..64).contains(&n))
    }

    pub(crate) fn root(&self) -> bool {
        self.spawner.facts().mode == Mode::Root
    }

    /// A fresh session that runs `sh -c script`.
    pub(crate) fn sh(&self, script: &str) -> SandboxSpec {
        self.spec(&["/bin/sh", "-c", script])
    }

    pub(crate) fn spec(&self, argv: &[&str]) -> SandboxSpec {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let state = self.dir.join("state").join(format!("s{number}"));
        for part in ["home", "workspace"] {
            std::fs::create_dir_all(state.join(part)).unwrap();
        }
        SandboxSpec {
            session: SessionId::parse(&format!("s{number}")).unwrap(),
            agent: AgentName::parse("tester").unwrap(),
            backend: self.backend.clone(),
            rootfs: RootFs::HostUsr,
            workspace: Workspace::Session(state.join("workspace")),
            home: state.join("home"),
            mounts: Vec::new(),
            network: Network::None,
            env: BTreeMap::from([
                ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
                ("HOME".into(), "/home/agent".into()),
            ]),
            probe: Vec::new(),
            command: Command::Program(argv.iter().map(|a| (*a).to_owned()).collect()),
            cwd: "/workspace".into(),
            limits: Limits::default(),
            witness: false,
        }
    }

    pub(crate) fn run(&self, spec: &SandboxSpec) -> Done {
        self.feed(spec, b"")
    }

    pub(crate) fn feed(&self, spec: &SandboxSpec, input: &[u8]) -> Done {
        let (stdio, mut pipes) = Stdio::piped().unwrap();
        let sandbox = self.spawner.prepare(spec, stdio).unwrap().start().unwrap();
        let mut stdin = pipes.stdin;
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            pipes.stderr.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut out = Vec::new();
        pipes.stdout.read_to_end(&mut out).unwrap();
        writer.join().unwrap();
        let ended = sandbox.wait();
        let out = String::from_utf8_lossy(&out).into_owned();
        Done { ended, out, err: errors.join().unwrap() }
    }

    /// Standard output of a script that must succeed.
    pub(crate) fn out(&self, script: &str) -> String {
        self.run(&self.sh(script)).ok()
    }

    pub(crate) fn refused(&self, spec: &SandboxSpec) -> StartError {
        match self.spawner.prepare(spec, Stdio::null().unwrap()) {
            Ok(p) => panic!("it was not refused: {:?}", p.report().walls),
            Err(e) => e,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // As root everything can be removed; a plain user's sandboxes made files of that user.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
