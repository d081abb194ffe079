//! `[mcp.NAME]` of `nanoclaw.toml`: servers of tools that agents may be granted, tool by tool.

use crate::config::secret_name;
use crate::credential::known_form;
use crate::error::{PolicyError, Problem, quote};
use crate::keys::Keys;
use crate::reader::Section;
use crate::tools_section::is_server_name;
use model::{HostName, McpReach, McpServer};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The keys of one server.
pub(crate) const MCP: Keys = Keys { known: &["url", "secret", "private", "command"], later: &[] };

/// Most arguments of a command.
const COMMAND_ARGS_MAX: usize = 256;

const URL: &str = "url = \"https://tools.example.org/mcp\"";
const COMMAND: &str = "command = [\"python3\", \"/opt/tracker/server.py\"]";

/// Reads every server.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<BTreeMap<String, McpServer>, PolicyError> {
    let mut all = BTreeMap::new();
    for (name, section) in top.named("mcp", &MCP)? {
        if !is_server_name(&name.value) {
            let why = format!("{} is not a server's name", quote(&name.value));
            let remedy = "use 1 to 32 lower-case letters, digits and inner '-', not \"nanoclaw\"";
            return Err(Problem::bad("[mcp]", why, remedy).at(&name.place));
        }
        let server = McpServer { name: name.value.clone(), reach: read_reach(&section)? };
        all.insert(name.value, server);
    }
    Ok(all)
}

fn read_reach(section: &Section<'_, '_>) -> Result<McpReach, PolicyError> {
    let private = section.boolean("private", "private = true")?;
    let is_private = private.as_ref().is_some_and(|at| at.value);
    let url = section.parsed("url", URL, |text| check_url("url", text, is_private))?;
    let secret = section.parsed("secret", "secret = \"tracker\"", secret_name)?;
    let command = section.strings("command", COMMAND)?;
    match (url, command) {
        (Some(url), None) => {
            let secret = secret.map(|at| at.value);
            Ok(McpReach::Http { url: url.value, secret, private: is_private })
        }
        (None, Some(command)) => {
            let only_url =
                |key: &str| Problem::bad(key, "has a meaning only beside url", "remove it");
            if let Some(at) = secret {
                return Err(only_url("secret").at(&at.place));
            }
            if let Some(at) = private {
                return Err(only_url("private").at(&at.place));
            }
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
            let command = command.value.into_iter().map(|at| at.value).collect();
            Ok(McpReach::Stdio { command })
        }
        (Some(url), Some(_)) => {
            let remedy = "keep url or command";
            Err(Problem::bad("url", "stands beside command", remedy).at(&url.place))
        }
        (None, None) => Err(section.missing("url", URL)),
    }
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
    use model::McpReach;

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
        assert_eq!(parse("command = [\"python3\", \"s.py\"]"), Ok(McpReach::Stdio { command }));
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
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for name in ["a_b", "A", "nanoclaw", "-a", "a-", "\"a b\""] {
            let text = format!("schema = 1\n[mcp.{name}]\ncommand = [\"x\"]\n");
            assert!(Config::parse("nanoclaw.toml", &text).is_err(), "{name}");
        }
    }
}
