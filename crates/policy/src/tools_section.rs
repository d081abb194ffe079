//! `[tools]` of an agent file: which tools it has, each by name.
//!
//! ```text
//! allow = ["bash", "web_fetch", "tracker/search"] ─► sandbox tools  (act inside)
//!                                                └─► host tools     (act outside, by the gateway)
//! ```
//!
//! 1. Without the section an agent has its own tools, which act inside the sandbox, and none of the
//!    host's.
//! 2. A server's tools are named one by one: what it adds later is not granted by that.

use crate::agent_file::BUILTIN_TOOLS;
use crate::config::Config;
use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys::{self, nearest};
use crate::reader::{At, Section};
use model::{HostTools, ToolGrant};
use std::collections::BTreeSet;

/// The tools of the host that NanoClaw brings itself.
pub const HOST_TOOLS: [&str; 1] = ["web_fetch"];

/// Most tools of one agent: a longer list is not read by models any more.
const TOOLS_MAX: usize = 512;
/// Longest name of a server's tool (MCP 2025-11-25, tool names).
const TOOL_CHARS_MAX: usize = 128;

/// Every tool that acts inside the sandbox only.
pub(crate) fn all() -> BTreeSet<String> {
    BUILTIN_TOOLS.iter().map(|t| (*t).to_owned()).collect()
}

/// Reads the section.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<BTreeSet<String>, PolicyError> {
    let example = "allow = [\"bash\", \"read_file\"]";
    let Some(section) = top.section("tools", &keys::TOOLS)? else { return Ok(all()) };
    let allow = section.strings("allow", example)?;
    let allow = allow.ok_or_else(|| section.missing("allow", "allow = [\"bash\"]"))?;
    if allow.value.len() > TOOLS_MAX {
        let problem = Problem::bad("allow", "names more than 512 tools", "name fewer");
        return Err(problem.at(&allow.place));
    }
    let mut tools = BTreeSet::new();
    for At { place, value } in allow.value {
        check(&value).map_err(|p| p.at(&place))?;
        tools.insert(value);
    }
    Ok(tools)
}

fn check(tool: &str) -> Result<(), Problem> {
    let known = || BUILTIN_TOOLS.into_iter().chain(HOST_TOOLS);
    if known().any(|name| name == tool) {
        return Ok(());
    }
    if let Some((server, name)) = tool.split_once('/') {
        return check_server_tool(tool, server, name);
    }
    if let Some(near) = nearest(tool, known()) {
        let why = format!("names the unknown tool {}", quote(tool));
        return Err(Problem::bad("allow", why, format!("did you mean {near:?}?")));
    }
    Err(Problem::NotEnforced { what: format!("tool {}", quote(tool)) })
}

fn check_server_tool(tool: &str, server: &str, name: &str) -> Result<(), Problem> {
    if name.contains('*') {
        let why = format!("has {}, but no pattern grants tools", quote(tool));
        let remedy = "name each tool; `nanoclaw mcp list` shows what there is";
        return Err(Problem::bad("allow", why, remedy));
    }
    let fits = is_server_name(server)
        && (1..=TOOL_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if fits {
        return Ok(());
    }
    let why = format!("has {}, which is not SERVER/TOOL", quote(tool));
    let remedy = "write the NAME of a [mcp.NAME] of nanoclaw.toml, '/', and the tool's own name";
    Err(Problem::bad("allow", why, remedy))
}

/// Names of servers are parts of tool names, records and command lines: lower-case letters, digits,
/// inner '-', and not the name of our own tools' server.
pub(crate) fn is_server_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name != ToolGrant::OWN
}

/// The tools of `allow` that act inside the sandbox.
#[must_use]
pub fn sandbox_tools(allow: &BTreeSet<String>) -> Vec<&str> {
    allow.iter().map(String::as_str).filter(|tool| BUILTIN_TOOLS.contains(tool)).collect()
}

/// The tools of `allow` that act outside, with the servers they come from. The approved
/// descriptions are still to be filled in.
#[must_use]
pub fn host_tools(allow: &BTreeSet<String>, config: &Config) -> HostTools {
    let grant = |tool: &String| {
        if HOST_TOOLS.contains(&tool.as_str()) {
            let server = ToolGrant::OWN.to_owned();
            return Some(ToolGrant { server, tool: tool.clone(), pin: None });
        }
        let (server, tool) = tool.split_once('/')?;
        Some(ToolGrant { server: server.to_owned(), tool: tool.to_owned(), pin: None })
    };
    let grants: Vec<ToolGrant> = allow.iter().filter_map(grant).collect();
    let named = |server: &str| grants.iter().any(|grant| grant.server == server);
    let servers = config.mcp.values().filter(|s| named(&s.name)).cloned().collect();
    HostTools { grants, servers }
}

/// Whether any tool of `allow` acts outside.
#[must_use]
pub fn has_host_tools(allow: &BTreeSet<String>) -> bool {
    allow.iter().any(|tool| !BUILTIN_TOOLS.contains(&tool.as_str()))
}

/// Every server that `allow` names must be there.
pub(crate) fn require_servers(
    allow: &BTreeSet<String>,
    config: &Config,
    file: &str,
) -> Result<(), PolicyError> {
    for tool in allow {
        let Some((server, _)) = tool.split_once('/') else { continue };
        if config.mcp.contains_key(server) {
            continue;
        }
        let why = format!("names {}, but nanoclaw.toml has no [mcp.{server}]", quote(tool));
        let remedy = match nearest(server, config.mcp.keys().map(String::as_str)) {
            Some(near) => format!("did you mean \"{near}/…\"?"),
            None => "add the server to nanoclaw.toml, or remove the tool".to_owned(),
        };
        return Err(Problem::bad("[tools] allow", why, remedy).at(&Place::Whole(file.to_owned())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check, host_tools, sandbox_tools};
    use crate::Config;

    #[test]
    fn tools_are_named_one_by_one() {
        for good in ["bash", "web_fetch", "tracker/search", "a-1/X_y.z-"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "bsh",
            "web_fetsh",
            "tracker/*",
            "tracker/find_*",
            "*/search",
            "*",
            "tracker/",
            "/search",
            "Tracker/x",
            "a_b/x",
            "-a/x",
            "nanoclaw/web_fetch",
            "a/b/c",
            "a/b c",
            "a/é",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("tracker/*").is_err_and(|p| p.to_string().contains("name each tool")));
    }

    #[test]
    fn what_acts_outside_is_told_apart() {
        let text =
            "schema = 1\n[mcp.a]\nurl = \"https://a.example/mcp\"\n[mcp.b]\ncommand = [\"b\"]\n";
        let config = Config::parse("nanoclaw.toml", text).expect("valid");
        let allow = ["bash", "web_fetch", "a/t", "a/u"].map(str::to_owned).into();
        assert_eq!(sandbox_tools(&allow), ["bash"]);
        let tools = host_tools(&allow, &config);
        let names: Vec<String> = tools.grants.iter().map(|g| g.offered_name()).collect();
        assert_eq!(names, ["a__t", "a__u", "web_fetch"]);
        assert_eq!(tools.servers.len(), 1, "b is not granted");
    }
}
