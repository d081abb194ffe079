//! Second stage: an agent file, this machine and the command line → the grants of a session.

use crate::agent_file::{AgentFile, Instructions, Runtime};
use crate::canonical;
use crate::config::Config;
use crate::describe;
use crate::error::{Place, PolicyError, Problem};
use crate::mounts::{self, MountContext};
use crate::reader::At;
use crate::sandbox_section::{self, Machine};
use model::{
    AgentName, Backend, Budget, Effect, EgressRule, ImageRef, Limit, Limits, Mount, Strictness,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What resolving needs beside the file.
#[derive(Debug, Clone, Copy)]
pub struct ResolveContext<'a> {
    /// For `~` and for what no mount may show.
    pub mounts: MountContext<'a>,
    /// The models there are; `None` leaves the model's name unchecked.
    pub config: Option<&'a Config>,
    /// The text of [`AgentFile::instructions_file`], read by the caller.
    pub instructions: Option<&'a str>,
}

/// What the command line adds to an agent's grants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Additions {
    /// `--mount`, with the argument as it is shown in errors.
    pub mounts: Vec<Mount>,
    /// `--allow`.
    pub egress: Vec<EgressRule>,
    /// `--env`.
    pub env: BTreeMap<String, String>,
    /// `--memory`, in bytes; as hard as `limits` says.
    pub memory: Option<u64>,
    /// `--limits`: how hard every limit must be, in place of what the file says.
    pub limits: Option<Strictness>,
    /// `--timeout`.
    pub timeout: Option<Duration>,
}

/// Everything a session of this agent has. What is not here, it does not have. As it is kept from
/// one session to the next ([`crate::Kept`]) it is without what it is told, and without words and
/// bytes that follow from the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedAgent {
    /// Its name.
    pub name: AgentName,
    /// One line about it.
    pub description: String,
    /// What runs.
    pub runtime: Runtime,
    /// A `[models.*]` of `nanoclaw.toml`; `None` means that the file names none.
    pub model: Option<String>,
    /// What it is told, if anything.
    #[serde(skip)]
    pub instructions: Option<String>,
    /// What makes its sandbox.
    pub backend: Backend,
    /// The image that is its sandbox's root file system; without one it is the host's `/usr`. For
    /// the native backend only.
    pub image: Option<ImageRef>,
    /// The limits of its sandbox.
    pub limits: Limits,
    /// How long one turn may take.
    pub turn_timeout: Duration,
    /// Whether the kernel reports what it executes and which connections it is refused.
    pub witness: bool,
    /// Whether the walls of each of its sandboxes are tried from inside before it is handed over.
    pub probe_on_start: bool,
    /// Folders, in the order written.
    pub mounts: Vec<Mount>,
    /// Hosts, in the order written.
    pub egress: Vec<EgressRule>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The tools it is offered, by name: [`crate::sandbox_tools`] for the built-in agent, which
    /// whoever starts it must pass on, and [`crate::host_tools`] for its door.
    pub tools: BTreeSet<String>,
    /// What model providers may run or fetch themselves for its requests, by the names of
    /// [`crate::PROVIDER_TOOLS`]. No egress rule sees what their servers reach.
    pub provider_tools: BTreeSet<String>,
    /// Secrets whose bytes are written to the agent's standard input (`deliver = "stdin"`). The
    /// agent's memory and its children can then hold them.
    pub stdin_secrets: BTreeSet<String>,
    /// What it may spend on models.
    pub budget: Budget,
    /// One readable line a grant; those that begin with [`crate::LOUD`] are to be shown in red.
    /// Values of environment variables do not appear.
    #[serde(skip)]
    pub grants_text: Vec<String>,
    /// Canonical JSON (RFC 8785) of all of the above but `grants_text`; its digest stands in
    /// the log.
    #[serde(skip)]
    pub policy_bytes: Vec<u8>,
}

impl AgentFile {
    /// Resolves the file for this machine, with what the command line adds.
    ///
    /// # Errors
    /// For mounts that may not be granted or overlap, unknown models, and duplicate grants.
    pub fn resolve(
        &self,
        name: &AgentName,
        context: &ResolveContext<'_>,
        additions: &Additions,
    ) -> Result<ResolvedAgent, PolicyError> {
        if let (Some(config), Some(model)) = (context.config, &self.model) {
            config.require_model(model)?;
        }
        if let Some(config) = context.config {
            crate::tools_section::require_servers(&self.tools, config, &self.file)?;
            if let Some(usd) = &self.budget_in_usd {
                let model = self.model.as_ref().map(|at| at.value.as_str());
                crate::budget::require_prices(usd, model, config)?;
            }
        }
        let mut agent = ResolvedAgent {
            name: name.clone(),
            description: self.description.clone(),
            runtime: self.runtime.clone(),
            model: self.model.as_ref().map(|at| at.value.clone()),
            instructions: self.instructions_text(context)?,
            backend: self.sandbox.backend.clone(),
            image: self.sandbox.image.clone(),
            limits: self.sandbox.limits.clone(),
            turn_timeout: self.sandbox.turn_timeout,
            witness: self.sandbox.witness,
            probe_on_start: self.sandbox.probe_on_start,
            mounts: self.resolve_mounts(&context.mounts, &additions.mounts)?,
            egress: self.egress.clone(),
            env: self.env.clone(),
            tools: self.tools.clone(),
            provider_tools: self.provider_tools.clone(),
            stdin_secrets: self.stdin_secrets.clone(),
            budget: self.budget,
            grants_text: Vec::new(),
            policy_bytes: Vec::new(),
        };
        for rule in &additions.egress {
            // A rule of the file for the whole destination stands: it may say `private` or
            // `tunnel`, which no argument can. Where the file grants a part, the argument adds
            // the rest.
            let whole = |r: &EgressRule| {
                let same = r.effect == Effect::Allow && r.host == rule.host && r.port == rule.port;
                same && r.methods.is_empty() && r.paths.is_empty()
            };
            if !agent.egress.iter().any(whole) {
                agent.egress.push(rule.clone());
            }
        }
        let places: Vec<Place> =
            agent.egress.iter().map(|rule| Place::Argument(rule.id.clone())).collect();
        crate::egress_section::check_ports(agent.egress.iter().zip(&places))?;
        agent.env.extend(additions.env.clone());
        self.add_limits(&mut agent.limits, additions);
        if let Some(timeout) = additions.timeout {
            agent.turn_timeout = timeout;
        }
        agent.seal();
        Ok(agent)
    }

    /// A limit of the command line is as hard as the file wants its own to be, unless `--limits`
    /// says how hard all of them are.
    fn add_limits(&self, limits: &mut Limits, additions: &Additions) {
        if let Some(value) = additions.memory {
            limits.memory_bytes = Limit { value, strictness: self.sandbox.strictness };
        }
        if let Some(strictness) = additions.limits {
            for limit in [&mut limits.memory_bytes, &mut limits.cpu_milli, &mut limits.pids] {
                limit.strictness = strictness;
            }
        }
    }

    fn instructions_text(&self, ctx: &ResolveContext<'_>) -> Result<Option<String>, PolicyError> {
        match &self.instructions {
            None => Ok(None),
            Some(At { value: Instructions::Text(text), .. }) => Ok(Some(text.clone())),
            Some(At { place, value: Instructions::File(name) }) => match ctx.instructions {
                Some(text) => match crate::credential::known_form(text) {
                    Some(why) => Err(Problem::Credential { name: name.clone(), why }.at(place)),
                    None => Ok(Some(text.to_owned())),
                },
                None => {
                    let why = format!("names {name:?}, which was not read");
                    Err(Problem::bad("instructions", why, "put it beside the agent file").at(place))
                }
            },
        }
    }

    fn resolve_mounts(
        &self,
        context: &MountContext<'_>,
        added: &[Mount],
    ) -> Result<Vec<Mount>, PolicyError> {
        let mut all = Vec::new();
        for written in &self.mounts {
            let source = mounts::parse_source(&written.source.value, context)
                .map_err(|p| p.at(&written.source.place))?;
            let target = written.target.value.clone();
            let mount = Mount { source, target, access: written.access };
            all.push((written.target.place.clone(), mount));
        }
        for mount in added {
            let shown = format!("--mount …:{}", mount.target.display());
            all.push((Place::Argument(shown), mount.clone()));
        }
        mounts::check_overlap(&all)?;
        Ok(all.into_iter().map(|(_, mount)| mount).collect())
    }

    /// Whether this machine is as large as the sizes that the file writes.
    ///
    /// # Errors
    /// For the first size that is larger than the whole machine, where it stands.
    pub fn fits(&self, machine: &Machine) -> Result<(), PolicyError> {
        sandbox_section::fits(&self.sandbox.sizes, machine)
    }

    /// How errors and rule ids call the file.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }
}

impl ResolvedAgent {
    /// Recomputes `grants_text` and `policy_bytes`. Call it after changing any other field, e.g.
    /// after [`crate::load::pin_mounts`].
    pub fn seal(&mut self) {
        self.grants_text = describe::grants(self);
        self.policy_bytes = canonical::to_bytes(&self.as_json());
    }

    fn as_json(&self) -> serde_json::Value {
        let limit = |l: &Limit| {
            let required = l.strictness == Strictness::Required;
            serde_json::json!({ "value": l.value, "required": required })
        };
        let mount = |m: &Mount| {
            serde_json::json!({
                "source": m.source.to_string_lossy(),
                "target": m.target.to_string_lossy(),
                "write": m.access == model::Access::Write,
            })
        };
        // Whatever a rule says is covered, also what is added to it one day. Writing a plain
        // structure does not fail; if it did, its `Debug` form would still tell rules apart.
        let rule = |r: &EgressRule| {
            serde_json::to_value(r).unwrap_or_else(|_| serde_json::json!(format!("{r:?}")))
        };
        let runtime = match &self.runtime {
            Runtime::Builtin => serde_json::json!("builtin"),
            Runtime::Command(argv) => serde_json::json!({ "command": argv }),
        };
        let timeout = u64::try_from(self.turn_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut all = serde_json::json!({
            "schema": crate::SCHEMA_VERSION,
            "name": self.name.as_str(),
            "description": self.description,
            "runtime": runtime,
            "model": self.model,
            "instructions": self.instructions,
            "limits": {
                "memory_bytes": limit(&self.limits.memory_bytes),
                "cpu_milli": limit(&self.limits.cpu_milli),
                "pids": limit(&self.limits.pids),
                "file_bytes": self.limits.file_bytes,
                "open_files": self.limits.open_files,
                "tmp_bytes": self.limits.tmp_bytes,
            },
            "turn_timeout_ms": timeout,
            "witness": self.witness,
            "probe_on_start": self.probe_on_start,
            "mounts": self.mounts.iter().map(mount).collect::<Vec<_>>(),
            "egress": self.egress.iter().map(rule).collect::<Vec<_>>(),
            "env": self.env,
            "tools": self.tools,
            "provider_tools": self.provider_tools,
            "stdin_secrets": self.stdin_secrets,
            "budget": {
                "micro_usd_per_day": self.budget.micro_usd_per_day,
                "micro_usd_per_turn": self.budget.micro_usd_per_turn,
                "tokens_per_day": self.budget.tokens_per_day,
            },
        });
        self.add_what_is_not_usual(&mut all);
        all
    }

    /// Left out where it is the default, or not limited, so that digests of agents without it stay
    /// what they were.
    fn add_what_is_not_usual(&self, all: &mut serde_json::Value) {
        if let Some(image) = &self.image {
            all["image"] = serde_json::json!(image.to_string());
        }
        if let Backend::Docker(choice) | Backend::Podman(choice) | Backend::Apple(choice) =
            &self.backend
        {
            all["backend"] = serde_json::json!({
                "engine": self.backend.name(),
                "image": choice.image,
                "runtime": choice.runtime,
            });
        }
        for (key, limit) in
            [("disk_bytes", self.limits.disk_bytes), ("wall_ms", self.limits.wall_ms)]
        {
            if let Some(limit) = limit {
                all["limits"][key] = serde_json::json!(limit);
            }
        }
    }
}
