//! `[mcp.NAME]` of `nanoclaw.toml`: servers of tools that agents may be granted, tool by tool.
//!
//! 1. A server that is a program has nothing but what its own table grants: no folder, no host, no
//!    variable by default.
//! 2. Its secrets are the gateway's, put in by its `[[egress]]` rules; it is handed none.

use crate::agent_file::{read_env, read_mounts};
use crate::config::secret_name;
use crate::credential::known_form;
use crate::egress_section;
use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys::Keys;
use crate::mounts::check_overlap;
use crate::reader::{At, Section};
use crate::sandbox_section::read_limits;
use crate::tools_section::is_server_name;
use crate::units::parse_duration;
use model::{HostName, McpProgram, McpReach, McpServer, Mount};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The keys of one server.
pub(crate) const MCP: Keys = Keys {
    known: &[
        "url", "secret", "private", "command", "timeout", "env", "mounts", "sandbox", "egress",
        "deny", "ask",
    ],
    later: &[],
};

/// The keys of a program's box.
pub(crate) const SANDBOX: Keys = Keys {
    known: &["memory", "cpus", "pids", "file_size", "tmp", "disk", "open_files", "limits"],
    later: &[],
};

/// Keys that say something about a server at an address only.
const BESIDE_URL: [&str; 2] = ["secret", "private"];
/// Keys that say something about a program only.
const BESIDE_COMMAND: [&str; 6] = ["env", "mounts", "sandbox", "egress", "deny", "ask"];

/// Most arguments of a command.
const COMMAND_ARGS_MAX: usize = 256;

/// Longest time of one call: agents wait no longer for a tool.
const CALL_TIME_MAX: Duration = Duration::from_secs(120);

const URL: &str = "url = \"https://tools.example.org/mcp\"";
const COMMAND: &str = "command = [\"python3\", \"/mnt/tracker/server.py\"]";

/// Reads every server.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<BTreeMap<String, McpServer>, PolicyError> {
    let mut all = BTreeMap::new();
    for (name, section) in top.named("mcp", &MCP)? {
        if !is_server_name(&name.value) {
            let why = format!("{} is not a server's name", quote(&name.value));
            let remedy = "use 1 to 32 lower-case letters, digits and inner '-', not \"nanoclaw\"";
            return Err(Problem::bad("[mcp]", why, remedy).at(&name.place));
        }
        let (reach, call_ms) = (read_reach(&section)?, read_timeout(&section)?);
        all.insert(name.value.clone(), McpServer { name: name.value, reach, call_ms });
    }
    Ok(all)
}

fn read_timeout(section: &Section<'_, '_>) -> Result<Option<u64>, PolicyError> {
    let found = section.parsed("timeout", "timeout = \"30s\"", |text| {
        let time = parse_duration("timeout", text)?;
        if time > CALL_TIME_MAX {
            let why = "is longer than agents wait for a tool";
            return Err(Problem::bad("timeout", why, "write at most \"2min\""));
        }
        Ok(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    })?;
    Ok(found.map(|at| at.value))
}

fn read_reach(section: &Section<'_, '_>) -> Result<McpReach, PolicyError> {
    let private = section.boolean("private", "private = true")?.is_some_and(|at| at.value);
    let url = section.parsed("url", URL, |text| check_url("url", text, private))?;
    let secret = section.parsed("secret", "secret = \"tracker\"", secret_name)?;
    let command = section.strings("command", COMMAND)?;
    match (url, command) {
        (Some(url), None) => {
            only_beside("command", &BESIDE_COMMAND, section)?;
            let secret = secret.map(|at| at.value);
            Ok(McpReach::Http { url: url.value, secret, private })
        }
        (None, Some(command)) => {
            only_beside("url", &BESIDE_URL, section)?;
            read_program(section, command).map(|program| McpReach::Stdio(Box::new(program)))
        }
        (Some(url), Some(_)) => {
            let remedy = "keep url or command";
            Err(Problem::bad("url", "stands beside command", remedy).at(&url.place))
        }
        (None, None) => Err(section.missing("url", URL)),
    }
}

fn only_beside(
    key: &str,
    others: &[&'static str],
    section: &Section<'_, '_>,
) -> Result<(), PolicyError> {
    let found = others.iter().find_map(|other| Some((other, section.place_of(other)?)));
    let Some((other, place)) = found else { return Ok(()) };
    let remedy = match *other {
        "secret" => "remove it; a program's secrets are put in by rules of its [[mcp.NAME.egress]]",
        _ => "remove it",
    };
    Err(Problem::bad(*other, format!("has a meaning only beside {key}"), remedy).at(&place))
}

fn read_program(
    section: &Section<'_, '_>,
    command: At<Vec<At<String>>>,
) -> Result<McpProgram, PolicyError> {
    let problem = |why: &str, remedy: &str| Problem::bad("command", why, remedy);
    if command.value.first().is_none_or(|program| program.value.is_empty()) {
        let problem = problem("names no program", "write the program first");
        return Err(problem.at(&command.place));
    }
    if command.value.len() > COMMAND_ARGS_MAX {
        let problem = problem("has more than 256 items", "put them into a script");
        return Err(problem.at(&command.place));
    }
    for item in &command.value {
        if item.value.contains('\0') {
            return Err(problem("has a NUL character", "remove it").at(&item.place));
        }
        if let Some(why) = known_form(&item.value) {
            let name = "command".to_owned();
            return Err(Problem::Credential { name, why }.at(&item.place));
        }
    }
    Ok(McpProgram {
        command: command.value.into_iter().map(|at| at.value).collect(),
        env: read_env(section)?,
        mounts: read_folders(section)?,
        egress: egress_section::read(section)?,
        limits: read_limits(section, &SANDBOX)?,
    })
}

/// The folders with their sources as written: which home `~` is, only the machine knows, see
/// [`crate::load::server`].
fn read_folders(section: &Section<'_, '_>) -> Result<Vec<Mount>, PolicyError> {
    let written = read_mounts(section)?.into_iter().map(|mount| {
        let source = PathBuf::from(mount.source.value);
        let place: Place = mount.target.place;
        (place, Mount { source, target: mount.target.value, access: mount.access })
    });
    let all: Vec<(Place, Mount)> = written.collect();
    check_overlap(&all)?;
    Ok(all.into_iter().map(|(_, mount)| mount).collect())
}

/// A server's endpoint: https, or plain http to this machine where that is meant.
pub(crate) fn check_url(key: &str, text: &str, private: bool) -> Result<String, Problem> {
    let bad = |why: &str, remedy: &str| Err(Problem::bad(key, why, remedy));
    let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return bad("does not begin with https://", URL),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') || path.contains(['?', '#']) {
        let remedy = "store a token with `nanoclaw secret set NAME` and write secret = \"NAME\"";
        return bad("has a user name, a query or a fragment, where keys are often written", remedy);
    }
    if text.len() > 2_048 || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return bad("is too long or has characters that must be escaped", URL);
    }
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[after_bracket..].find(':') {
        Some(at) => {
            let (host, port) = authority.split_at(after_bracket + at);
            (host, port[1..].parse::<u16>().ok().filter(|p| *p != 0))
        }
        None => (authority, Some(443)),
    };
    if port.is_none() {
        return bad("has a port that is not a number from 1 to 65535", URL);
    }
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let address = literal.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() || literal != host);
    if address.is_none() && HostName::parse(host).is_err() {
        return bad("names no host", URL);
    }
    let here = address.is_some_and(|ip| ip.is_loopback()) || host == "localhost";
    if (address.is_some() || here) && !private {
        return bad("is an address or this machine", "if that is meant, write private = true");
    }
    if !tls && !here {
        return bad("is plain http, which others can read", "use https://");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use model::{McpProgram, McpReach};

    fn parse(section: &str) -> Result<McpReach, String> {
        let text = format!("schema = 1\n[mcp.tracker]\n{section}\n");
        let mut config = Config::parse("nanoclaw.toml", &text).map_err(|e| e.to_string())?;
        Ok(config.mcp.remove("tracker").ok_or("no server")?.reach)
    }

    #[test]
    fn a_server_is_a_url_or_a_command() {
        let url = "https://tools.example.org/mcp".to_owned();
        let secret = Some("tracker".to_owned());
        assert_eq!(
            parse("url = \"https://tools.example.org/mcp\"\nsecret = \"tracker\""),
            Ok(McpReach::Http { url, secret, private: false })
        );
        let command = vec!["python3".to_owned(), "s.py".to_owned()];
        let bare = McpReach::Stdio(Box::new(McpProgram::new(command)));
        assert_eq!(parse("command = [\"python3\", \"s.py\"]"), Ok(bare), "and no grant");
        for good in
            ["http://127.0.0.1:8080/mcp", "http://localhost/", "https://[::1]/", "https://10.0.0.1"]
        {
            assert!(parse(&format!("url = {good:?}\nprivate = true")).is_ok(), "{good}");
            assert!(parse(&format!("url = {good:?}")).is_err(), "{good} without private");
        }
    }

    #[test]
    fn what_is_not_exactly_a_server_is_refused() {
        for bad in [
            "",
            "url = \"tools.example.org\"",
            "url = \"http://tools.example.org/\"",
            "url = \"http://10.0.0.1/\"\nprivate = true",
            "url = \"https://u:p@e.org/\"",
            "url = \"https://e.org/?key=1\"",
            "url = \"https://e.org:0/\"",
            "url = \"https://e.org:99999/\"",
            "url = \"https:///\"",
            "url = \"https://a_b/\"",
            "url = \"https://::1/\"",
            "url = \"https://2130706433/\"",
            "url = \"https://e.org/\"\ncommand = [\"x\"]",
            "url = \"https://e.org/\"\nheaders = 1",
            "command = []",
            "command = [\"\"]",
            "command = \"x\"",
            "command = [\"x\"]\nsecret = \"a\"",
            "command = [\"x\"]\nprivate = true",
            "command = [\"x\"]\ntimeout = \"3min\"",
            "command = [\"x\"]\nenv = { A = 1 }",
            "command = [\"x\"]\nenv = { \"A=B\" = \"1\" }",
            "command = [\"x\"]\n[mcp.tracker.sandbox]\nturn_timeout = \"1min\"",
            "command = [\"x\"]\n[mcp.tracker.sandbox]\ndisk = \"0GiB\"",
            "command = [\"x\"]\n[mcp.tracker.sandbox]\nwall_time = \"1h\"",
            "command = [\"x\"]\n[[mcp.tracker.mounts]]\nsource = \"/a\"\ntarget = \"/usr/a\"",
            "command = [\"x\"]\n[[mcp.tracker.egress]]\nhots = \"e.org\"",
            "command = [\"x\"]\n[[mcp.tracker.secrets]]\nname = \"a\"\ndeliver = \"stdin\"",
            "url = \"https://e.org/\"\nenv = { A = \"1\" }",
            "url = \"https://e.org/\"\n[[mcp.tracker.egress]]\nhost = \"e.org\"",
            "url = \"https://e.org/\"\n[mcp.tracker.sandbox]\nmemory = \"1GiB\"",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for name in ["a_b", "A", "nanoclaw", "-a", "a-", "\"a b\""] {
            let text = format!("schema = 1\n[mcp.{name}]\ncommand = [\"x\"]\n");
            assert!(Config::parse("nanoclaw.toml", &text).is_err(), "{name}");
        }
    }

    #[test]
    fn a_program_has_what_its_table_grants() {
        let text = "command = [\"x\"]\nenv = { LANG = \"C\" }\n[mcp.tracker.sandbox]\npids = 9\n\
            disk = \"1GiB\"\n\
            [[mcp.tracker.mounts]]\nsource = \"~/t\"\ntarget = \"/mnt/t\"\naccess = \"read\"\n\
            [[mcp.tracker.egress]]\nhost = \"api.example.org\"\nsecret = \"tracker\"\n";
        let Ok(McpReach::Stdio(program)) = parse(text) else { panic!("{:?}", parse(text)) };
        assert_eq!(program.env["LANG"], "C");
        assert_eq!((program.limits.pids.value, program.limits.disk_bytes), (9, Some(1 << 30)));
        assert_eq!(program.mounts[0].source.to_str(), Some("~/t"));
        assert_eq!(program.egress[0].id, "nanoclaw.toml:12");
    }

    #[test]
    fn what_looks_like_a_key_is_refused_and_not_repeated() {
        let telling = "command = [\"x\"]\nenv = { API_TOKEN = \"not-a-real-one-at-all\" }";
        let error = parse(telling).expect_err("refused");
        assert!(error.contains("nanoclaw secret set API_TOKEN"), "{error}");
        assert!(!error.contains("not-a-real-one"), "{error}");
        let error = parse("command = [\"x\"]\nsecret = \"a\"").expect_err("refused");
        assert!(error.contains("[[mcp.NAME.egress]]"), "{error}");
    }
}
