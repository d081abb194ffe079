//! What a provider does itself at a request's word: granted by name, or refused. Pure.
//!
//! A web search, a page that the provider fetches, code that it runs: all of it carries data to
//! places that no egress rule names, so none of it is open unless the agent file says so. Nor is
//! a way to be served that costs more than the price by which budgets are kept.

use crate::door::DoorState;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The rule under which refusals stand in the record.
pub(crate) const RULE: &str = "provider-tools";

/// Betas of Anthropic's that open such a thing, by how they begin.
const BETAS: [(&str, &str); 7] = [
    ("mcp-client-", "mcp"),
    ("web-search-", "web_search"),
    ("web-fetch-", "urls"),
    ("code-execution-", "code_execution"),
    ("skills-", "code_execution"),
    ("files-api-", "file_search"),
    ("fast-mode-", "premium"),
];

/// Why these are not all granted.
pub(crate) fn refused(door: &DoorState, wanted: &BTreeSet<&'static str>) -> Option<String> {
    let missing: Vec<&str> =
        wanted.iter().copied().filter(|tool| !door.provider_tools.contains(*tool)).collect();
    let quoted: Vec<String> = missing.iter().map(|tool| format!("{tool:?}")).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "nothing was sent: the request wants its provider to do what no egress rule sees, or \
             at another price than the one in nanoclaw.toml (provider tools: {}), and this agent \
             is not granted that; leave it out of the request, \
             or write provider = [{}] under [tools] of agents/{}.toml",
            missing.join(", "),
            quoted.join(", "),
            door.scribe.agent
        )
    })
}

/// The value of `anthropic-beta` without what is not granted. A client lists every beta it knows,
/// so the list alone is no reason to refuse.
pub(crate) fn granted_betas<'a>(value: &'a str, granted: &BTreeSet<String>) -> Cow<'a, str> {
    let may = |beta: &str| {
        let beta = beta.trim().to_ascii_lowercase();
        let opens = BETAS.iter().find(|(start, _)| beta.starts_with(start));
        opens.is_none_or(|(_, tool)| granted.contains(*tool))
    };
    if value.split(',').all(may) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(
        value.split(',').filter(|beta| may(beta)).map(str::trim).collect::<Vec<_>>().join(","),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn betas_that_open_something_need_its_grant() {
        let none = BTreeSet::new();
        assert_eq!(granted_betas("context-1m, x-2025", &none), "context-1m, x-2025");
        assert_eq!(
            granted_betas("a-1,MCP-client-2025-04-04, web-fetch-2025-09-10,b", &none),
            "a-1,b"
        );
        let some = BTreeSet::from(["urls".to_owned()]);
        assert_eq!(granted_betas("mcp-client-2,web-fetch-1", &some), "web-fetch-1");
        assert_eq!(granted_betas("mcp-client-2", &none), "");
        assert!(BETAS.iter().all(|(_, tool)| policy::PROVIDER_TOOLS.contains(tool)));
    }
}
