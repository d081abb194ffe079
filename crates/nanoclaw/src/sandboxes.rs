//! From grants to a `SandboxSpec`: environment, folders, door.

use crate::home::SessionDirs;
use model::{
    AgentName, Backend, Command, DoorSpec, Effect, EgressRule, McpProgram, Mount, Network, RootFs,
    SandboxSpec, SessionId, Workspace,
};
use policy::ResolvedAgent;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The door's port on the sandbox's loopback. It is the sandbox's own loopback, so it collides
/// with nothing; the number is the customary one for proxies.
pub(crate) const DOOR_PORT: u16 = 3128;
/// Where programs are looked up inside.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Home inside.
pub(crate) const HOME_INSIDE: &str = "/home/agent";
/// Workspace inside.
pub(crate) const WORKSPACE_INSIDE: &str = "/workspace";

/// Below the home folder: the system's certificate authorities and the gateway's own, in one file.
const BUNDLE: &str = "gateway/trust.pem";
/// What programs are told of the certificates to trust, as far as they do not look where their
/// system has them. Node (and with it npm) and Deno add these to their own; the others replace.
const TRUST_VARIABLES: [&str; 10] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
    "DENO_CERT",
];

/// The certificates that sandboxes trust, once the gateway has written them.
pub(crate) fn bundle(home: &Path) -> Option<PathBuf> {
    Some(home.join(BUNDLE)).filter(|p| p.is_file())
}

/// What stands where programs insist on a key. It opens nothing.
pub(crate) fn placeholder(session: &SessionId) -> String {
    format!("nanoclaw-placeholder-{session}")
}

/// What a sandbox is made from.
pub(crate) struct Parts<'a> {
    pub(crate) session: &'a SessionId,
    pub(crate) agent: &'a ResolvedAgent,
    pub(crate) rootfs: RootFs,
    pub(crate) dirs: &'a SessionDirs,
    /// A folder of the user's in place of the session's own workspace.
    pub(crate) workspace: Option<&'a Path>,
    pub(crate) door: PathBuf,
    /// The certificates to trust; see [`bundle`].
    pub(crate) trust: Option<PathBuf>,
    pub(crate) command: Command,
    pub(crate) env: BTreeMap<String, String>,
}

/// The finished description.
pub(crate) fn spec(parts: Parts<'_>) -> SandboxSpec {
    let workspace = match parts.workspace {
        Some(folder) => Workspace::User(folder.to_owned()),
        None => Workspace::Session(parts.dirs.workspace.clone()),
    };
    let mut env = base_env(parts.session, parts.workspace);
    env.extend(door_env(parts.trust.is_some()));
    env.extend(parts.agent.env.clone());
    env.extend(parts.env);
    SandboxSpec {
        session: parts.session.clone(),
        agent: parts.agent.name.clone(),
        backend: parts.agent.backend.clone(),
        rootfs: parts.rootfs,
        workspace,
        home: parts.dirs.home.clone(),
        mounts: parts.agent.mounts.iter().map(Mount::clone).collect(),
        network: Network::Door(DoorSpec {
            socket: parts.door,
            port: DOOR_PORT,
            ports: ports(&parts.agent.egress),
            trust: parts.trust,
        }),
        env,
        probe: Vec::new(),
        command: parts.command,
        cwd: PathBuf::from(WORKSPACE_INSIDE),
        limits: parts.agent.limits.clone(),
        witness: parts.agent.witness,
    }
}

/// What the sandbox of a server of tools is made from.
pub(crate) struct ServerParts<'a> {
    pub(crate) session: &'a SessionId,
    pub(crate) agent: &'a AgentName,
    pub(crate) program: &'a McpProgram,
    /// Its own, not the session's.
    pub(crate) dirs: &'a SessionDirs,
    /// A door of its own, if it may reach anything.
    pub(crate) door: Option<PathBuf>,
    /// The certificates to trust behind that door; see [`bundle`].
    pub(crate) trust: Option<PathBuf>,
}

/// The finished description of a server's sandbox: nothing but what its `[mcp.NAME]` grants.
pub(crate) fn server_spec(parts: ServerParts<'_>) -> SandboxSpec {
    let program = parts.program;
    let mut env = plain_env(SEARCH_PATH.to_owned());
    let network = match parts.door {
        None => Network::None,
        Some(socket) => {
            env.extend(door_env(parts.trust.is_some()));
            let ports = ports(&program.egress);
            Network::Door(DoorSpec { socket, port: DOOR_PORT, ports, trust: parts.trust })
        }
    };
    env.extend(program.env.clone());
    SandboxSpec {
        session: parts.session.clone(),
        agent: parts.agent.clone(),
        backend: Backend::Native,
        rootfs: RootFs::HostUsr,
        workspace: Workspace::Session(parts.dirs.workspace.clone()),
        home: parts.dirs.home.clone(),
        mounts: program.mounts.clone(),
        network,
        env,
        probe: Vec::new(),
        command: Command::Program(program.command.clone()),
        cwd: PathBuf::from(WORKSPACE_INSIDE),
        limits: program.limits.clone(),
        // Its table has no word against it.
        witness: true,
    }
}

/// The ports at which anything may be reached, each once.
fn ports(rules: &[EgressRule]) -> Vec<u16> {
    let open = rules.iter().filter(|r| r.effect != Effect::Deny);
    let all: BTreeSet<u16> = open.filter_map(|r| r.port).collect();
    all.into_iter().collect()
}

/// What any program needs.
fn plain_env(path: String) -> BTreeMap<String, String> {
    let pairs = [
        ("PATH", path),
        ("HOME", HOME_INSIDE.to_owned()),
        ("USER", "agent".to_owned()),
        ("LOGNAME", "agent".to_owned()),
        ("SHELL", "/bin/sh".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TMPDIR", "/tmp".to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn door_url() -> String {
    format!("http://127.0.0.1:{DOOR_PORT}")
}

/// Where the door is, for programs that use a proxy, and whom to trust behind it.
fn door_env(trust: bool) -> BTreeMap<String, String> {
    const PROXIES: [&str; 6] =
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let mut env: BTreeMap<String, String> =
        PROXIES.into_iter().map(|name| (name.to_owned(), door_url())).collect();
    for name in ["NO_PROXY", "no_proxy"] {
        env.insert(name.to_owned(), "127.0.0.1,localhost".to_owned());
    }
    if trust {
        let inside = || DoorSpec::TRUST_INSIDE.to_owned();
        env.extend(TRUST_VARIABLES.map(|name| (name.to_owned(), inside())));
    }
    env
}

/// The environment of an agent from empty: what any program needs, and where its models are.
fn base_env(session: &SessionId, workspace: Option<&Path>) -> BTreeMap<String, String> {
    let (door, key) = (door_url(), placeholder(session));
    let mut env = plain_env(search_path(workspace));
    let models = [
        ("ANTHROPIC_BASE_URL", door.clone()),
        ("ANTHROPIC_API_KEY", key.clone()),
        ("OPENAI_BASE_URL", format!("{door}/v1")),
        ("OPENAI_API_BASE", format!("{door}/v1")),
        ("OPENAI_API_KEY", key.clone()),
        ("GOOGLE_GEMINI_BASE_URL", door.clone()),
        ("GEMINI_API_KEY", key.clone()),
        ("NANOCLAW_DOOR_PORT", DOOR_PORT.to_string()),
        // Refusals name this one, whatever the program calls its key.
        ("NANOCLAW_PLACEHOLDER", key),
    ];
    env.extend(models.into_iter().map(|(name, value)| (name.to_owned(), value)));
    if let Some(venv) = workspace.and_then(virtualenv) {
        env.insert("VIRTUAL_ENV".into(), format!("{WORKSPACE_INSIDE}/{venv}"));
    }
    env
}

/// The project's own programs come first, as after `activate` or under `npm run`.
fn search_path(workspace: Option<&Path>) -> String {
    let mut path = String::new();
    if let Some(folder) = workspace {
        if let Some(venv) = virtualenv(folder) {
            path.push_str(&format!("{WORKSPACE_INSIDE}/{venv}/bin:"));
        }
        if folder.join("node_modules/.bin").is_dir() {
            path.push_str(&format!("{WORKSPACE_INSIDE}/node_modules/.bin:"));
        }
    }
    path.push_str(SEARCH_PATH);
    path
}

fn virtualenv(folder: &Path) -> Option<&'static str> {
    [".venv", "venv"].into_iter().find(|name| folder.join(name).join("pyvenv.cfg").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::HostName;

    #[test]
    fn the_ports_are_those_of_rules_that_do_not_deny() {
        let rule = |port, effect| {
            let host = HostName::parse("example.org").expect("valid");
            EgressRule { effect, ..EgressRule::allow("r", host, port) }
        };
        let rules = [
            rule(8_443, Effect::Ask),
            rule(443, Effect::Allow),
            rule(22, Effect::Deny),
            rule(443, Effect::Allow),
            EgressRule { port: None, ..rule(1, Effect::Deny) },
        ];
        assert_eq!(ports(&rules), [443, 8_443]);
        assert!(ports(&[]).is_empty());
    }

    #[test]
    fn every_key_in_the_environment_is_the_placeholder_that_refusals_name() {
        let session = SessionId::parse("s1").expect("valid");
        let env = base_env(&session, None);
        for name in ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "NANOCLAW_PLACEHOLDER"] {
            assert_eq!(env.get(name), Some(&placeholder(&session)), "{name}");
        }
    }
}
