//! What the program is asked for, word by word.
//!
//! Pipeline: spec + what is of this one start only ─► `Container` ─► arguments of `create`.
//!
//! Invariants:
//! 1. Pure. Every wall is asked for by name, also where it is the program's default.
//! 2. The machine shows exactly what the spec grants, each at its own path of the host, so that the
//!    spec means the same on both sides; and two things of ours: the line and the guest's program.
//! 3. What its grammar cannot say is refused, never bent: it splits mounts at `:` and labels at
//!    `=`, and sizes whole processors and mebibytes only.
//!
//! Source: apple/container, `docs/command-reference.md`, `Parser.swift`, `Flags.swift`.

use crate::error::{Error, ErrorKind};
use model::{Access, Backend, Network, RootFs, SandboxSpec, Workspace};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the guest's program stands inside.
pub const PROGRAM_INSIDE: &str = "/nanoclaw/init";
/// Its first argument there; the second is the path of the line.
pub const GUEST_ROLE: &str = "__guest";
/// Where the line stands inside: short, for a socket's address has little room.
const LINE_INSIDE: &str = "/nanoclaw/line";

/// What the guest's kernel and our own processes in it need beside the session, mebibytes. The
/// session's own limit is held by control groups inside.
const OVERHEAD_MIB: u64 = 256;
const MIB: u64 = 1 << 20;
/// Longest name of a container, characters: it becomes a host name (hostname(7)).
const NAME_MAX: usize = 63;
/// Folders of the guest itself: what is shown over them would be another system.
const GUESTS_OWN: [&str; 12] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/boot",
    "/nanoclaw",
];

/// Something of the host's that the machine shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host; a folder, a file, or a socket that is relayed.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
    /// It cannot be written.
    pub read_only: bool,
}

/// What differs from start to start.
#[derive(Debug, Clone)]
pub struct Occasion {
    /// The container's name, which is its id.
    pub name: String,
    /// The socket of the line, on the host.
    pub line: PathBuf,
    /// The guest's program, on the host.
    pub program: PathBuf,
    /// Whose it is.
    pub labels: BTreeMap<String, String>,
    /// The program is to have a terminal.
    pub terminal: bool,
}

/// Everything that is asked for. Always also: no network, no name server, a read-only root, and
/// removal when it stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name and id.
    pub name: String,
    /// The image, `name@sha256:…`.
    pub image: String,
    /// Processors of the machine.
    pub cpus: u64,
    /// Memory of the machine.
    pub memory_mib: u64,
    /// What it shows of the host.
    pub mounts: Vec<Mount>,
    /// Whose it is.
    pub labels: BTreeMap<String, String>,
    /// The program has a terminal.
    pub terminal: bool,
}

fn refuse(cause: impl Into<String>, remedy: &str) -> Error {
    Error::new(ErrorKind::Spec, cause, remedy)
}

impl Container {
    /// What this spec needs.
    ///
    /// # Errors
    /// When the program cannot be asked for it.
    pub fn of(spec: &SandboxSpec, occasion: &Occasion) -> Result<Self, Error> {
        let image = image(spec)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let name = &occasion.name;
        let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !first || !name.chars().all(plain) || !(2..=NAME_MAX).contains(&name.len()) {
            return Err(refuse(format!("{name:?} is no name of a container"), DEFECT));
        }
        if let Some((key, _)) = occasion.labels.iter().find(|(k, v)| !label_fits(k, v)) {
            return Err(refuse(format!("the label {key:?} cannot be passed"), DEFECT));
        }
        let mut mounts = shown(spec);
        for (source, target, read_only) in
            [(&occasion.program, PROGRAM_INSIDE, true), (&occasion.line, LINE_INSIDE, false)]
        {
            mounts.push(Mount { source: source.clone(), target: target.into(), read_only });
        }
        for mount in &mounts {
            mount.fits()?;
        }
        let limits = &spec.limits;
        Ok(Self {
            name: name.clone(),
            image,
            cpus: limits.cpu_milli.value.div_ceil(1_000).max(1),
            memory_mib: limits.memory_bytes.value.div_ceil(MIB) + OVERHEAD_MIB,
            mounts,
            labels: occasion.labels.clone(),
            terminal: occasion.terminal,
        })
    }

    /// The arguments behind the program's name.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut all: Vec<String> = vec!["create".to_owned()];
        let mut add = |words: &[&str]| all.extend(words.iter().map(|w| (*w).to_owned()));
        add(&["--name", &self.name, "--rm", "--interactive"]);
        if self.terminal {
            add(&["--tty"]);
        }
        // The guest's first process makes namespaces and mounts; what it runs has no capability.
        add(&["--network", "none", "--no-dns", "--read-only", "--cap-add", "ALL"]);
        add(&["--user", "0:0", "--workdir", "/", "--os", "linux"]);
        add(&["--cpus", &self.cpus.to_string()]);
        add(&["--memory", &format!("{}M", self.memory_mib)]);
        for (key, value) in &self.labels {
            add(&["--label", &format!("{key}={value}")]);
        }
        for mount in &self.mounts {
            add(&["--volume", &mount.word()]);
        }
        add(&["--progress", "none", "--entrypoint", PROGRAM_INSIDE, &self.image]);
        all.extend(self.command());
        all
    }

    /// What the guest's program is told.
    #[must_use]
    pub fn command(&self) -> [String; 2] {
        [GUEST_ROLE.to_owned(), LINE_INSIDE.to_owned()]
    }
}

const DEFECT: &str = "report this defect";

/// It is cut at every `=` into at most three pieces, and three are refused.
fn label_fits(key: &str, value: &str) -> bool {
    let plain = |text: &str| !text.is_empty() && !text.contains(['=', '\n', '\0']);
    plain(key) && plain(value)
}

/// The image: by name and digest, for a digest alone cannot be asked for.
fn image(spec: &SandboxSpec) -> Result<String, Error> {
    let remedy = "write engine_image = \"name@sha256:…\", as `container image inspect` shows it";
    if let RootFs::Image { image, .. } = &spec.rootfs {
        let cause = format!("apple does not use the image {image} of NanoClaw's own store");
        return Err(refuse(cause, remedy));
    }
    let Backend::Apple(choice) = &spec.backend else {
        return Err(refuse("the sandbox is of another backend", DEFECT));
    };
    if choice.runtime.is_some() {
        return Err(refuse("apple takes no runtime by name", "leave `engine_runtime` out"));
    }
    match &choice.image {
        Some(image) if image.contains("@sha256:") && !image.starts_with(['-', '@']) => {
            Ok(image.clone())
        }
        Some(_) => Err(refuse("the image is named by its digest alone", remedy)),
        None => Err(refuse("this machine has no Linux to show, and no image is named", remedy)),
    }
}

fn same(path: &Path, read_only: bool) -> Mount {
    Mount { source: path.to_owned(), target: path.to_owned(), read_only }
}

/// What a spec grants. The guest's own plan puts each where it belongs in the sandbox.
fn shown(spec: &SandboxSpec) -> Vec<Mount> {
    let (Workspace::Session(workspace) | Workspace::User(workspace)) = &spec.workspace;
    let mut all = vec![same(&spec.home, false), same(workspace, false)];
    all.extend(spec.mounts.iter().map(|m| same(&m.source, m.access == Access::Read)));
    if let Network::Door(door) = &spec.network {
        all.push(same(&door.socket, false));
        all.extend(door.trust.iter().map(|trust| same(trust, true)));
    }
    // A folder that is granted twice is shown once, writable if either is.
    let mut once: Vec<Mount> = Vec::new();
    for mount in all {
        match once.iter_mut().find(|m| m.source == mount.source) {
            Some(known) => known.read_only &= mount.read_only,
            None => once.push(mount),
        }
    }
    once
}

impl Mount {
    /// As `--volume` takes it.
    fn word(&self) -> String {
        let option = if self.read_only { ":ro" } else { "" };
        format!("{}:{}{option}", self.source.display(), self.target.display())
    }

    fn fits(&self) -> Result<(), Error> {
        let Self { source, target, .. } = self;
        for path in [source, target] {
            let odd = |c: char| c == ':' || c.is_control();
            let plain = path.to_str().is_some_and(|text| !text.contains(odd));
            if !path.is_absolute() || !plain {
                let cause = format!("{path:?} cannot be shown: container splits paths at a colon");
                return Err(refuse(cause, "rename the folder, or grant another"));
            }
        }
        let over = |own: &&&str| target.starts_with(own) || Path::new(own).starts_with(target);
        match GUESTS_OWN.iter().find(over) {
            Some(own) if !is_ours(target) => {
                let cause = format!("{target:?} would cover {own} of the virtual machine");
                Err(refuse(cause, "grant a folder elsewhere, e.g. below /Users"))
            }
            _ => Ok(()),
        }
    }
}

/// The two that stand in our own folder there.
fn is_ours(target: &Path) -> bool {
    [PROGRAM_INSIDE, LINE_INSIDE].iter().any(|own| target == Path::new(own))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::{AgentName, Command, DoorSpec, EngineChoice, Limits, SessionId};

    pub(crate) fn spec() -> SandboxSpec {
        let image = Some(format!("debian@sha256:{}", "0".repeat(64)));
        let mount = |source: &str, access| model::Mount {
            source: source.into(),
            target: "/mnt/a".into(),
            access,
        };
        SandboxSpec {
            session: SessionId::parse("s1").unwrap(),
            agent: AgentName::parse("tester").unwrap(),
            backend: Backend::Apple(EngineChoice { image, runtime: None }),
            rootfs: RootFs::HostUsr,
            workspace: Workspace::User("/Users/me/work".into()),
            home: "/Users/me/.nanoclaw/s1/home".into(),
            mounts: vec![mount("/Users/me/notes", Access::Read)],
            network: Network::Door(DoorSpec {
                socket: "/Users/me/.nanoclaw/s1/door".into(),
                port: 8080,
                ports: vec![443],
                trust: Some("/Users/me/.nanoclaw/s1/trust.pem".into()),
            }),
            env: BTreeMap::new(),
            probe: Vec::new(),
            command: Command::Program(vec!["true".into()]),
            cwd: "/workspace".into(),
            limits: Limits::default(),
            witness: true,
        }
    }

    pub(crate) fn occasion() -> Occasion {
        Occasion {
            name: "nanoclaw-s1-1".into(),
            line: "/Users/me/.nanoclaw/e/line-1".into(),
            program: "/Users/me/.nanoclaw/e/guest".into(),
            labels: BTreeMap::from([("io.nanoclaw.session".into(), "s1".into())]),
            terminal: false,
        }
    }

    fn refused(change: impl FnOnce(&mut SandboxSpec)) -> Error {
        let mut spec = spec();
        change(&mut spec);
        let error = Container::of(&spec, &occasion()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Spec);
        error
    }

    #[test]
    fn every_wall_is_asked_for_by_name_and_nothing_else_is_shown() {
        let mut spec = spec();
        spec.limits.cpu_milli.value = 1_500;
        spec.limits.memory_bytes.value = (100 << 20) + 1;
        let words = Container::of(&spec, &occasion()).unwrap().arguments();
        let image = format!("debian@sha256:{}", "0".repeat(64));
        let expected = "create --name nanoclaw-s1-1 --rm --interactive \
            --network none --no-dns --read-only --cap-add ALL \
            --user 0:0 --workdir / --os linux --cpus 2 --memory 357M \
            --label io.nanoclaw.session=s1 \
            --volume /Users/me/.nanoclaw/s1/home:/Users/me/.nanoclaw/s1/home \
            --volume /Users/me/work:/Users/me/work \
            --volume /Users/me/notes:/Users/me/notes:ro \
            --volume /Users/me/.nanoclaw/s1/door:/Users/me/.nanoclaw/s1/door \
            --volume /Users/me/.nanoclaw/s1/trust.pem:/Users/me/.nanoclaw/s1/trust.pem:ro \
            --volume /Users/me/.nanoclaw/e/guest:/nanoclaw/init:ro \
            --volume /Users/me/.nanoclaw/e/line-1:/nanoclaw/line \
            --progress none --entrypoint /nanoclaw/init";
        let mut expected: Vec<&str> = expected.split_whitespace().collect();
        expected.extend([image.as_str(), "__guest", "/nanoclaw/line"]);
        assert_eq!(words, expected);
        let terminal = Occasion { terminal: true, ..occasion() };
        let words = Container::of(&spec, &terminal).unwrap().arguments();
        assert!(words.contains(&"--tty".to_owned()));
    }

    #[test]
    fn what_the_grammar_cannot_say_is_refused() {
        let colon = refused(|s| s.home = "/Users/a:b".into());
        assert!(colon.cause.contains("colon"), "{colon}");
        for own in ["/usr/share", "/", "/etc", "/nanoclaw", "/nanoclaw/other"] {
            let error = refused(|s| s.mounts[0].source = own.into());
            assert!(error.cause.contains("would cover"), "{own}: {error}");
        }
        let labels = BTreeMap::from([("a".into(), "b=c".into())]);
        let label = Occasion { labels, ..occasion() };
        assert!(Container::of(&spec(), &label).is_err());
        for name in ["", "a", "-rf", "a/b", &"a".repeat(64)] {
            let odd = Occasion { name: name.to_owned(), ..occasion() };
            assert!(Container::of(&spec(), &odd).is_err(), "{name}");
        }
    }

    #[test]
    fn an_image_is_named_with_its_digest_and_no_runtime() {
        let choose = |image: Option<&str>, runtime: Option<&str>| {
            let choice = EngineChoice {
                image: image.map(str::to_owned),
                runtime: runtime.map(str::to_owned),
            };
            refused(move |s| s.backend = Backend::Apple(choice))
        };
        assert!(choose(None, None).cause.contains("no image"));
        assert!(choose(Some("sha256:00"), None).cause.contains("digest alone"));
        assert!(choose(Some("debian:12"), None).remedy.contains("engine_image"));
        assert!(choose(Some("a@sha256:00"), Some("runc")).cause.contains("no runtime"));
        let native = refused(|s| s.backend = Backend::Native);
        assert!(native.cause.contains("another backend"), "{native}");
    }

    #[test]
    fn a_folder_granted_twice_is_shown_once() {
        let mut spec = spec();
        let again = model::Mount { access: Access::Write, ..spec.mounts[0].clone() };
        spec.mounts.push(again);
        let container = Container::of(&spec, &occasion()).unwrap();
        let notes = |m: &&Mount| m.source == Path::new("/Users/me/notes");
        let found: Vec<&Mount> = container.mounts.iter().filter(notes).collect();
        assert_eq!(found.len(), 1);
        assert!(!found[0].read_only);
    }
}
