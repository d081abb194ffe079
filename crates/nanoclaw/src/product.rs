//! Everything put together, in numbered steps, and taken apart in the opposite order.

use crate::failure::{Failure, Kind, Result};
use crate::gatekeeper;
use crate::home::Home;
use crate::servers::{Servers, Starter};
use crate::watch::Watch;
use gateway::control::{ControlClient, Programs, Settings, Tracked, Watcher};
use model::{AgentName, McpProgram, McpServer, ModelConfig, RecordSink};
use policy::{Additions, AgentFile, Config, MountContext, ResolveContext, ResolvedAgent, load};
use sandbox::{EngineOptions, Spawner, SpawnerOptions, StartError, StartErrorKind};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The parts every command that runs agents needs.
pub(crate) struct Product {
    pub(crate) home: Home,
    pub(crate) config: Config,
    recorder: Arc<audit::Client>,
    pub(crate) sink: Arc<Tracked>,
    pub(crate) servers: Arc<Servers>,
    pub(crate) gateway: ControlClient,
    pub(crate) watch: Arc<Watch>,
    pub(crate) spawner: Spawner,
    _cosigning: Option<crate::cosigning::Running>,
}

impl Product {
    /// Puts it together; `role` is how this process is named in the log, `watch` hears the gateway.
    pub(crate) fn open(home: Home, role: &str, watch: Watch) -> Result<Self> {
        // 1. What people wrote.
        let config = load_config(&home)?;
        for warning in &config.warnings {
            crate::ui::note(format!("warning: {}: {}", warning.place, warning.text));
        }
        if let Some(place) = config.vault_key {
            gateway::vault::check_place(home.path(), place).map_err(vault_failure)?;
        }
        crate::run::sweep(&home);
        // 2. The spawner, before anything that a sandbox must not inherit.
        let options = SpawnerOptions {
            private: vec![home.path().to_owned()],
            engines: EngineOptions::of(home.path().join("run/engine")),
            ..SpawnerOptions::default()
        };
        let spawner = Spawner::launch(options).map_err(start_failure)?;
        // 3. The recorder, for nothing happens without a record.
        let recorder = Arc::new(recorder(&home, role)?);
        let sink = Arc::new(Tracked::new(Arc::clone(&recorder) as Arc<dyn RecordSink>));
        // Who puts its heads before the witnesses, if any are named; nothing waits for it.
        let cosigning = crate::cosigning::start(&home, &config, sink.as_ref())?;
        // 4. Who starts servers of tools, when the gateway asks for one.
        let servers = Servers::new(home.clone(), spawner.clone(), Arc::clone(&sink));
        let servers = Arc::new(servers);
        // 5. The gateway, a process of its own: secrets are opened there and never here.
        let watch = Arc::new(watch);
        let starter = Arc::new(Starter(Arc::clone(&servers)));
        let gateway = gateway(&home, role, Arc::clone(&watch) as Arc<dyn Watcher>, starter)?;
        Ok(Self {
            home,
            config,
            recorder,
            sink,
            servers,
            gateway,
            watch,
            spawner,
            _cosigning: cosigning,
        })
    }

    /// Takes leave of the recorder, so that the log does not say this process was lost. Threads
    /// that wait for signals or questions hold the product until the process is gone.
    pub(crate) fn close(&self) {
        self.recorder.close();
    }

    /// As the records' writers want it.
    pub(crate) fn records(&self) -> Arc<dyn RecordSink> {
        Arc::clone(&self.sink) as Arc<dyn RecordSink>
    }

    /// The grants of an agent: its file's, or those of the built-in default.
    pub(crate) fn agent(&self, name: &AgentName, more: &Additions) -> Result<ResolvedAgent> {
        resolve_agent(&self.home, &self.config, name, more)
    }

    /// The model an agent uses, if any is configured.
    pub(crate) fn model_of(&self, agent: &ResolvedAgent) -> Result<Option<ModelConfig>> {
        model_of(&self.config, agent)
    }
}

/// Reads `nanoclaw.toml`.
pub(crate) fn load_config(home: &Home) -> Result<Config> {
    let read = load::config(home.path());
    let mut config = read.map_err(|e| Failure::usage(e).remedy("nothing was started"))?;
    for model in config.models.values_mut() {
        // A script is named from the folder that the file stands in.
        model.script = model.script.take().map(|path| home.path().join(path));
    }
    Ok(config)
}

/// A vault that does not do, as people meet it.
pub(crate) fn vault_failure(error: gateway::VaultError) -> Failure {
    Failure::new(Kind::Protection, format!("the vault: {error}"))
}

/// Connects to the recorder of the home, starting it if need be.
pub(crate) fn recorder(home: &Home, role: &str) -> Result<audit::Client> {
    let path = home.path();
    let start = || {
        let args = [OsStr::new("--home"), path.as_os_str(), OsStr::new(crate::recordkeeper::ROLE)];
        audit::start_recorder(Path::new("/proc/self/exe"), &args)
    };
    audit::Client::connect(path, role, start).map_err(|e| {
        Failure::new(Kind::Audit, format!("the audit log cannot be opened: {e}")).remedy(format!(
            "nothing was started, for nothing goes unrecorded; see `nanoclaw audit verify {}`",
            home.audit().display()
        ))
    })
}

/// Connects to the gateway of the home, starting it if need be.
fn gateway(
    home: &Home,
    role: &str,
    watcher: Arc<dyn Watcher>,
    programs: Arc<dyn Programs>,
) -> Result<ControlClient> {
    let path = home.path().to_owned();
    let start = Box::new(move || gatekeeper::start(&path));
    let (home, role) = (home.path().to_owned(), role.to_owned());
    let settings = Settings { home, role, start, watcher, programs };
    ControlClient::connect(settings).map_err(|e| {
        Failure::new(Kind::Protection, format!("the gateway cannot be started: {e}"))
            .remedy("nothing was started, for nothing goes out but through the gateway")
    })
}

/// Model servers written with `http://` by the user, who thereby asked for it.
pub(crate) fn plain_http_hosts(config: &Config) -> Vec<String> {
    let plain = config.models.values().filter_map(|m| m.base_url.strip_prefix("http://"));
    plain.map(|rest| host_of(rest).to_owned()).collect()
}

fn host_of(rest: &str) -> &str {
    let authority = rest.split('/').next().unwrap_or(rest);
    if authority.starts_with('[') {
        return authority.trim_start_matches('[').split(']').next().unwrap_or(authority);
    }
    authority.split(':').next().unwrap_or(authority)
}

/// The home that `~` stands for.
fn person() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// The program behind a server of tools, with folders that exist and may be granted; `None` for a
/// server at an address.
pub(crate) fn server_program(home: &Home, server: &McpServer) -> Result<Option<McpProgram>> {
    let (person, protected) = (person(), [home.path().to_owned()]);
    let mounts = MountContext { home: &person, protected: &protected };
    load::program(server, &mounts).map_err(Failure::usage)
}

/// Resolves an agent by name; without a file, only `assistant` (the built-in default) exists.
pub(crate) fn resolve_agent(
    home: &Home,
    config: &Config,
    name: &AgentName,
    more: &Additions,
) -> Result<ResolvedAgent> {
    let person = person();
    let protected = [home.path().to_owned()];
    let mounts = MountContext { home: &person, protected: &protected };
    let found = load::agent(home.path(), name, mounts, Some(config), more);
    if let Some(agent) = found.map_err(Failure::usage)? {
        return Ok(agent);
    }
    if name.as_str() != DEFAULT_AGENT {
        let known: Vec<String> =
            load::agent_names(home.path()).iter().map(ToString::to_string).collect();
        let file = home.agents().join(format!("{name}.toml"));
        return Err(Failure::new(Kind::Missing, format!("there is no agent {name}"))
            .remedy(format!("write {}; there are: {}", file.display(), known_agents(&known))));
    }
    let context = ResolveContext { mounts, config: Some(config), instructions: None };
    let mut agent =
        AgentFile::builtin_default().resolve(name, &context, more).map_err(Failure::usage)?;
    load::pin_mounts(&mut agent, &mounts).map_err(Failure::usage)?;
    Ok(agent)
}

/// The agent that exists without a file.
pub(crate) const DEFAULT_AGENT: &str = "assistant";

fn known_agents(known: &[String]) -> String {
    let mut all = vec![DEFAULT_AGENT.to_owned()];
    all.extend(known.iter().filter(|n| n.as_str() != DEFAULT_AGENT).cloned());
    all.join(", ")
}

/// The model an agent's file names, else the only one there is.
pub(crate) fn model_of(config: &Config, agent: &ResolvedAgent) -> Result<Option<ModelConfig>> {
    let models = &config.models;
    match &agent.model {
        Some(name) => Ok(models.get(name).cloned()),
        None if models.len() > 1 => {
            let names: Vec<&str> = models.keys().map(String::as_str).collect();
            let cause = format!("agent {} names no model, and there are several", agent.name);
            Err(Failure::usage(cause).remedy(format!(
                "write `model = \"…\"` in agents/{}.toml; there are: {}",
                agent.name,
                names.join(", ")
            )))
        }
        None => Ok(models.values().next().cloned()),
    }
}

/// A sandbox that could not be started, as people meet it.
pub(crate) fn start_failure(error: StartError) -> Failure {
    let kind = match error.kind {
        StartErrorKind::Spec(_) => Kind::Usage,
        _ => Kind::Protection,
    };
    Failure::new(kind, format!("the sandbox was not started: {}", error.cause)).remedy(error.remedy)
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_host_of_a_base_url() {
        assert_eq!(host_of("127.0.0.1:11434/v1"), "127.0.0.1");
        assert_eq!(host_of("[::1]:80"), "::1");
        assert_eq!(host_of("ollama.lan"), "ollama.lan");
    }
}
