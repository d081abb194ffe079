//! `mcp list | approve`: servers of tools, and the descriptions a person approved. The servers are
//! asked by the gateway, which alone holds their secrets; one that is a program is started in its
//! sandbox for that.

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::product::{self, Product};
use crate::run::Folders;
use crate::scribe::{Scribe, inline, sha256_hex};
use crate::ui::{self, brief, harmless};
use crate::watch::{Asking, Watch};
use crate::world;
use gateway::control::state_dir;
use gateway::mcp::{Described, Pins};
use model::{AgentName, Body, Durability, HostTools, McpReach, McpServer, SessionId};
use policy::{Config, ResolvedAgent};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _};

/// Width of a description in a list.
const WIDTH: usize = 100;

/// Why a tool is, or is not, offered to agents that name it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Approved,
    New,
    Changed,
}

impl State {
    fn of(pins: &Pins, server: &str, tool: &Described) -> Self {
        match pins.pin(server, &tool.name) {
            None => Self::New,
            Some(pin) if *pin == tool.digest => Self::Approved,
            Some(_) => Self::Changed,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::New => "not approved",
            Self::Changed => "CHANGED",
        }
    }
}

/// What a door of this agent is given: its host tools, with the descriptions that were approved,
/// and programs whose folders exist.
pub(crate) fn tools_of(home: &Home, config: &Config, agent: &ResolvedAgent) -> Result<HostTools> {
    let mut tools = policy::host_tools(&agent.tools, config);
    if !tools.servers.is_empty() {
        pins(home)?.fill(&mut tools);
    }
    for server in &mut tools.servers {
        *server = certain(home, server)?;
    }
    Ok(tools)
}

/// The same server; a program with folders that exist and may be granted.
fn certain(home: &Home, server: &McpServer) -> Result<McpServer> {
    let mut server = server.clone();
    if let Some(program) = product::server_program(home, &server)? {
        server.reach = McpReach::Stdio(Box::new(program));
    }
    Ok(server)
}

/// What a server offers now. A program is started for it, in a session of its own that is on
/// record.
fn describe(product: &Product, server: &McpServer) -> Result<Vec<Described>> {
    let session = SessionId::mint(world::now_ms(), u32::from_le_bytes(world::random_bytes()));
    let agent = AgentName::parse(&format!("mcp-{}", server.name)).map_err(Failure::other)?;
    if matches!(server.reach, McpReach::Http { .. }) {
        return product.gateway.describe_mcp(server, &session, &agent).map_err(Failure::other);
    }
    let server = certain(&product.home, server)?;
    let root = product.home.path().join("sessions").join(session.as_str());
    product.home.session(&session)?;
    let _folders = Folders::claim(root)?;
    let scribe = Scribe { sink: product.records(), session: session.clone(), agent: agent.clone() };
    let unrecorded =
        |e: model::RecordError| Failure::new(Kind::Audit, e).remedy("nothing was started");
    let policy = serde_json::to_vec(&server).map_err(Failure::other)?;
    let opened = Body::SessionOpened {
        resumed: false,
        backend: "native".into(),
        policy_sha256: sha256_hex(&policy),
        grants: policy::server_grants(&server).iter().map(|g| inline(g).to_owned()).collect(),
    };
    scribe.write(None, opened, Durability::Ordered).map_err(unrecorded)?;
    let open = product.servers.open(&session);
    let found = product.gateway.describe_mcp(&server, &session, &agent).map_err(Failure::other);
    open.end();
    let closed = Body::SessionClosed { reason: "looked at".into(), counts: BTreeMap::new() };
    scribe.write(None, closed, Durability::Durable).map_err(unrecorded)?;
    found
}

fn pins(home: &Home) -> Result<Pins> {
    Pins::load(&state_dir(home.path())).map_err(|e| Failure::new(Kind::Protection, e))
}

/// Prints every server, its tools and their state.
pub(crate) fn list(home: Home, name: Option<&str>, as_json: bool) -> Result<u8> {
    let product = open(home)?;
    let pins = pins(&product.home)?;
    if product.config.mcp.is_empty() {
        ui::note("No servers of tools. Write [mcp.NAME] into nanoclaw.toml.");
    }
    let wanted = match name {
        Some(name) => vec![server(&product.config, name)?],
        None => product.config.mcp.values().collect(),
    };
    let mut failures = 0;
    for server in wanted {
        let found = describe(&product, server);
        if as_json {
            let tools = found.as_ref().map(|tools| as_values(&pins, server, tools));
            let (tools, error) = (tools.ok(), found.as_ref().err().map(|e| e.cause.clone()));
            let grants = policy::server_grants(server);
            let value = json!({"server": server.name, "at": place(server), "grants": grants,
                "tools": tools, "error": error});
            ui::json_line(&value.to_string());
        } else {
            ui::line(format!("{}  {}", server.name, harmless(&place(server))));
            for grant in policy::server_grants(server).iter().skip(1) {
                ui::line(format!("  {}", harmless(grant)));
            }
        }
        match found {
            Ok(tools) if !as_json => show(&pins, server, &tools),
            Ok(_) => {}
            Err(e) => {
                failures += 1;
                let remedy = e.remedy.map(|r| format!(" ({r})")).unwrap_or_default();
                ui::note(format!("  {}", harmless(&format!("{}{remedy}", e.cause))));
            }
        }
    }
    Ok(u8::from(failures > 0))
}

fn show(pins: &Pins, server: &McpServer, tools: &[Described]) {
    for tool in tools {
        let state = State::of(pins, &server.name, tool).word();
        let text = brief(&tool.description, WIDTH);
        ui::line(format!("  {}/{}  [{state}]  {text}", server.name, tool.name));
    }
}

fn as_values(pins: &Pins, server: &McpServer, tools: &[Described]) -> Vec<Value> {
    let value = |tool: &Described| {
        json!({
            "name": format!("{}/{}", server.name, tool.name),
            "state": State::of(pins, &server.name, tool).word(),
            "description": tool.description,
            "sha256": tool.digest,
        })
    };
    tools.iter().map(value).collect()
}

/// Shows what is new or changed, whole, and keeps a person's yes.
pub(crate) fn approve(home: Home, name: &str, yes: bool) -> Result<u8> {
    let product = open(home)?;
    let mut pins = pins(&product.home)?;
    let server = server(&product.config, name)?;
    let tools = describe(&product, server).map_err(|e| {
        let remedy = e.remedy.unwrap_or_else(|| "nothing was approved".into());
        Failure::new(e.kind, format!("the server {name}: {}", harmless(&e.cause))).remedy(remedy)
    })?;
    let is_open = |tool: &&Described| State::of(&pins, name, tool) != State::Approved;
    let open: Vec<&Described> = tools.iter().filter(is_open).collect();
    for tool in &open {
        let state = State::of(&pins, name, tool).word();
        ui::line(format!("{name}/{}  [{state}]", tool.name));
        ui::line(format!("{}\n", harmless(&tool.text())));
    }
    if open.is_empty() {
        ui::line(format!("All {} tools of {name} are approved as they are.", tools.len()));
    } else if !yes && !confirmed(&format!("Approve these {} tools of {name}?", open.len()))? {
        ui::line("Nothing was approved.");
        return Ok(1);
    }
    pins.approve(name, &tools);
    pins.save(&state_dir(product.home.path())).map_err(Failure::other)?;
    if !open.is_empty() {
        ui::line(format!(
            "{} tools of {name} are approved. Sessions that start from now on may use those that \
             their agent file names.",
            tools.len()
        ));
    }
    Ok(0)
}

fn confirmed(question: &str) -> Result<bool> {
    /// Longest answer looked at.
    const ANSWER_BYTES_MAX: u64 = 64;
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage("nobody can be asked, for this is no terminal")
            .remedy("look at `nanoclaw mcp list`, then say --yes"));
    }
    ui::out(&format!("{question} [y/N] "));
    ui::flush();
    let mut line = String::new();
    stdin.lock().take(ANSWER_BYTES_MAX).read_line(&mut line).context("the terminal")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn open(home: Home) -> Result<Product> {
    Product::open(home, "mcp", Watch::new(Asking::Nobody))
}

fn server<'c>(config: &'c Config, name: &str) -> Result<&'c McpServer> {
    config.mcp.get(name).ok_or_else(|| {
        let known: Vec<&str> = config.mcp.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Failure::new(Kind::Missing, format!("nanoclaw.toml has no [mcp.{name}]"))
            .remedy(format!("there are: {known}"))
    })
}

fn place(server: &McpServer) -> String {
    match &server.reach {
        McpReach::Http { url, .. } => url.clone(),
        McpReach::Stdio(program) => program.command.join(" "),
    }
}
