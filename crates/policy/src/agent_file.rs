//! `agents/<name>.toml`: one agent and its grants, as written and checked, before the machine it
//! will run on is known.

use crate::budget;
use crate::credential::known_form;
use crate::egress_section;
use crate::environment;
use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys;
use crate::mounts::{WrittenMount, parse_access, parse_target};
use crate::reader::{At, Section, Source};
use crate::sandbox_section::{self, SandboxSection, one_of};
use crate::tools_section;
use model::{Budget, EgressRule};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The tools of the built-in agent, all of which act inside the sandbox only.
pub const BUILTIN_TOOLS: [&str; 6] =
    ["bash", "read_file", "write_file", "edit_file", "glob", "grep"];

/// Runtimes of the schema that this version cannot run by name.
const RUNTIMES_LATER: [&str; 6] = ["claude-code", "codex", "opencode", "gemini", "openclaw", "acp"];

/// Longest description, characters: one line of a list.
const DESCRIPTION_CHARS_MAX: usize = 200;

/// Most arguments of a command.
const COMMAND_ARGS_MAX: usize = 256;

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// The agent that NanoClaw brings.
    Builtin,
    /// Any program; the first item is looked up in the sandbox's PATH.
    Command(Vec<String>),
}

/// What the agent is told about its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instructions {
    /// The text itself.
    Text(String),
    /// A file beside the agent file: a plain file name.
    File(String),
}

/// One agent file, checked. [`AgentFile::resolve`] turns it into grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFile {
    pub(crate) file: String,
    pub(crate) description: String,
    pub(crate) runtime: Runtime,
    pub(crate) model: Option<At<String>>,
    pub(crate) instructions: Option<At<Instructions>>,
    pub(crate) sandbox: SandboxSection,
    pub(crate) mounts: Vec<WrittenMount>,
    pub(crate) egress: Vec<EgressRule>,
    pub(crate) stdin_secrets: BTreeSet<String>,
    pub(crate) budget: Budget,
    /// Where it is in USD.
    pub(crate) budget_in_usd: Option<Place>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) tools: BTreeSet<String>,
    pub(crate) provider_tools: BTreeSet<String>,
}

impl AgentFile {
    /// The agent that exists without a file: the built-in runtime, every tool of its own, and no
    /// grant at all.
    #[must_use]
    pub fn builtin_default() -> Self {
        Self {
            file: "the built-in default agent".to_owned(),
            description: "The built-in agent; it may touch only its own workspace".to_owned(),
            runtime: Runtime::Builtin,
            model: None,
            instructions: None,
            sandbox: SandboxSection::default(),
            mounts: Vec::new(),
            egress: Vec::new(),
            stdin_secrets: BTreeSet::new(),
            budget: Budget::default(),
            budget_in_usd: None,
            env: BTreeMap::new(),
            tools: tools_section::all(),
            provider_tools: BTreeSet::new(),
        }
    }

    /// Parses the text of an agent file; `file` is how errors and rule ids call it, e.g.
    /// `agents/triage.toml`.
    ///
    /// # Errors
    /// With file, line and column, for everything that is not exactly understood, and for every
    /// rule that this version cannot enforce.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyError> {
        let source = Source { file, text };
        let root = source.parse()?;
        let top = Section::top(&source, &root, &keys::AGENT)?;
        one_of(&top, "workspace", "session", &["agent"])?;
        let model = top.string("model", "model = \"claude\"")?;
        let runtime = read_runtime(&top)?;
        Ok(Self {
            file: file.to_owned(),
            description: read_description(&top)?,
            stdin_secrets: budget::read_secrets(&top, &runtime)?,
            runtime,
            model: model.map(|at| At { place: at.place, value: at.value.to_owned() }),
            instructions: read_instructions(&top)?,
            sandbox: sandbox_section::read(&top)?,
            mounts: read_mounts(&top)?,
            egress: egress_section::read(&top)?,
            budget: budget::read_budget(&top)?,
            budget_in_usd: budget::usd_place(&top)?,
            env: read_env(&top)?,
            tools: tools_section::read(&top)?,
            provider_tools: tools_section::read_provider(&top)?,
        })
    }

    /// The file that holds the instructions, if they stand in one.
    #[must_use]
    pub fn instructions_file(&self) -> Option<&str> {
        match &self.instructions {
            Some(At { value: Instructions::File(name), .. }) => Some(name),
            _ => None,
        }
    }
}

/// Prose and command lines are shown to the model or to other programs: no key may stand there.
pub(crate) fn no_credential(key: &str, text: &str) -> Result<(), Problem> {
    match known_form(text) {
        Some(why) => Err(Problem::Credential { name: key.to_owned(), why }),
        None => Ok(()),
    }
}

fn read_description(top: &Section<'_, '_>) -> Result<String, PolicyError> {
    let found = top.parsed("description", "description = \"Reads my notes\"", |text| {
        no_credential("description", text)?;
        if text.chars().count() > DESCRIPTION_CHARS_MAX || text.chars().any(char::is_control) {
            let why = "is not one line of at most 200 characters";
            return Err(Problem::bad("description", why, "put longer text into instructions"));
        }
        Ok(text.to_owned())
    })?;
    Ok(found.map(|at| at.value).unwrap_or_default())
}

fn read_runtime(top: &Section<'_, '_>) -> Result<Runtime, PolicyError> {
    let runtime = top.parsed("runtime", "runtime = \"builtin\"", |text| match text {
        "builtin" => Ok(false),
        "command" => Ok(true),
        other if RUNTIMES_LATER.contains(&other) => {
            Err(Problem::NotEnforced { what: format!("runtime = {}", quote(other)) })
        }
        other => Err(Problem::bad(
            "runtime",
            format!("is {}, which is not known", quote(other)),
            "write \"builtin\" or \"command\"",
        )),
    })?;
    let example = "command = [\"python3\", \"/mnt/agent/main.py\"]";
    let command = top.strings("command", example)?;
    let is_command = runtime.is_some_and(|at| at.value);
    let Some(command) = command else {
        return if is_command {
            Err(top.missing("command", example))
        } else {
            Ok(Runtime::Builtin)
        };
    };
    let bad = |why: &str, remedy: &str| Problem::bad("command", why, remedy).at(&command.place);
    if !is_command {
        return Err(bad("is only for runtime = \"command\"", "remove it or set the runtime"));
    }
    if command.value.is_empty() || command.value[0].value.is_empty() {
        return Err(bad("names no program", "write the program first"));
    }
    if command.value.len() > COMMAND_ARGS_MAX {
        return Err(bad("has more than 256 items", "put them into a script"));
    }
    for item in &command.value {
        if item.value.contains('\0') {
            return Err(bad("has a NUL character", "remove it"));
        }
        no_credential("command", &item.value).map_err(|p| p.at(&item.place))?;
    }
    Ok(Runtime::Command(command.value.into_iter().map(|at| at.value).collect()))
}

fn read_instructions(top: &Section<'_, '_>) -> Result<Option<At<Instructions>>, PolicyError> {
    const EXAMPLE: &str = "instructions = \"You triage issues.\"";
    if !top.is_table("instructions") {
        return top.parsed("instructions", EXAMPLE, |text| {
            no_credential("instructions", text)?;
            Ok(Instructions::Text(text.to_owned()))
        });
    }
    let Some(section) = top.section("instructions", &keys::INSTRUCTIONS)? else { return Ok(None) };
    let example = "instructions = { file = \"triage.md\" }";
    let file = section.parsed("file", example, |name| {
        // A plain name: the file lies beside the agent file and nowhere else.
        let plain = !name.is_empty() && !name.starts_with('.') && name.len() <= 255;
        if plain && !name.chars().any(|c| c == '/' || c.is_control()) {
            return Ok(Instructions::File(name.to_owned()));
        }
        let why = format!("is {}, not a plain file name", quote(name));
        Err(Problem::bad("file", why, "put the file beside the agent file and write its name"))
    })?;
    file.ok_or_else(|| section.missing("file", example)).map(Some)
}

/// `[[mounts]]` as written.
pub(crate) fn read_mounts(top: &Section<'_, '_>) -> Result<Vec<WrittenMount>, PolicyError> {
    const SOURCE: &str = "source = \"~/notes\"";
    const TARGET: &str = "target = \"/mnt/notes\"";
    const ACCESS: &str = "access = \"read\"";
    let mut all = Vec::new();
    for section in top.list("mounts", &keys::MOUNT)? {
        let source = section.string("source", SOURCE)?;
        let source = source.ok_or_else(|| section.missing("source", SOURCE))?;
        let target = section.parsed("target", TARGET, parse_target)?;
        let access = section.parsed("access", ACCESS, parse_access)?;
        all.push(WrittenMount {
            source: At { place: source.place, value: source.value.to_owned() },
            target: target.ok_or_else(|| section.missing("target", TARGET))?,
            access: access.ok_or_else(|| section.missing("access", ACCESS))?.value,
        });
    }
    Ok(all)
}

/// `env`, name by name.
pub(crate) fn read_env(top: &Section<'_, '_>) -> Result<BTreeMap<String, String>, PolicyError> {
    let mut all = BTreeMap::new();
    for (name, value) in top.free_strings("env")? {
        environment::check_name(&name.value).map_err(|p| p.at(&name.place))?;
        environment::check_value(&name.value, &value.value).map_err(|p| p.at(&value.place))?;
        all.insert(name.value, value.value);
    }
    Ok(all)
}
