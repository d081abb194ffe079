//! What one agent file makes possible that another does not, in words.
//!
//! ```text
//! rules ─► atoms (one method, one path) ─► is each covered by the other file? ─► gained, lost
//! ```
//!
//! 1. Nothing that becomes possible is missed: what is not surely covered is reported. The reverse
//!    may happen: two files that mean the same in a way that is hard to see differ here.
//! 2. A deny rule that goes, and a question that is no longer asked, count as gained.

use crate::agent_file::Runtime;
use crate::budget::format_usd;
use crate::describe;
use crate::egress_section::{overlap, ports_overlap};
use crate::path::Pattern;
use crate::resolve::ResolvedAgent;
use crate::units::{format_duration, format_size};
use model::{Access, AskTerms, Backend, Effect, EgressRule, HostPattern, Mount, Sight, Strictness};
use std::collections::BTreeSet;
use std::path::Path as FilePath;

/// The difference between two agents, one line each; lines that begin with [`crate::LOUD`] are to
/// be shown in red.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// What becomes possible.
    pub gained: Vec<String>,
    /// What is no longer possible.
    pub lost: Vec<String>,
}

impl Diff {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty()
    }
}

/// Compares what two agents may do.
#[must_use]
pub fn diff(old: &ResolvedAgent, new: &ResolvedAgent) -> Diff {
    Diff { gained: gained(old, new), lost: gained(new, old) }
}

/// What `new` can do that `old` cannot.
pub(crate) fn gained(old: &ResolvedAgent, new: &ResolvedAgent) -> Vec<String> {
    let mut lines = egress(&old.egress, &new.egress);
    lines.extend(
        new.mounts
            .iter()
            .filter(|mount| !old.mounts.iter().any(|other| shows(other, mount)))
            .map(crate::mounts::describe),
    );
    let names = |what: &str, old: &BTreeSet<String>, new: &BTreeSet<String>| -> Vec<String> {
        new.difference(old).map(|name| format!("{what} {name}")).collect()
    };
    lines.extend(names("tool", &old.tools, &new.tools));
    if old.probe_on_start && !new.probe_on_start {
        lines.push("sandboxes start without having their walls tried from inside".to_owned());
    }
    let provided = new.provider_tools.difference(&old.provider_tools);
    lines.extend(provided.map(|tool| describe::provider_tool(tool)));
    lines.extend(
        new.stdin_secrets.difference(&old.stdin_secrets).map(|name| {
            format!("{}secret {name} is HANDED TO THE AGENT on its stdin", crate::LOUD)
        }),
    );
    lines.extend((old.witness && !new.witness).then(describe::unwitnessed));
    for (name, value) in &new.env {
        match old.env.get(name) {
            None => lines.push(format!("environment variable {name}")),
            Some(other) if other != value => {
                lines.push(format!("environment variable {name} with another value"));
            }
            Some(_) => {}
        }
    }
    if new.runtime != old.runtime {
        lines.push(match &new.runtime {
            Runtime::Builtin => "runs the built-in agent".to_owned(),
            Runtime::Command(argv) => format!("runs {}", argv.join(" ").escape_debug()),
        });
    }
    if let Some(model) = new.model.as_ref().filter(|_| new.model != old.model) {
        lines.push(format!("model {model}"));
    }
    if new.image != old.image {
        match &new.image {
            Some(image) => lines.push(describe::image(image)),
            // What an engine's root is stands in the line of the backend.
            None if new.backend != Backend::Native => {}
            None => lines.push("root file system: the host's /usr, read-only".to_owned()),
        }
    }
    if new.backend != old.backend {
        let native = || "sandbox by NanoClaw itself (native)".to_owned();
        lines.push(describe::backend(&new.backend).unwrap_or_else(native));
    }
    lines.extend(limits(old, new));
    lines
}

/// Whether `wide` shows and permits all that `mount` does.
fn shows(wide: &Mount, mount: &Mount) -> bool {
    let below = |inner: &FilePath, outer: &FilePath| inner.starts_with(outer);
    below(&mount.source, &wide.source)
        && (mount.access == Access::Read || wide.access == Access::Write)
}

fn limits(old: &ResolvedAgent, new: &ResolvedAgent) -> Vec<String> {
    let mut lines = Vec::new();
    let mut more = |what: &str, old: u64, new: u64, show: &dyn Fn(u64) -> String| {
        if new > old {
            lines.push(format!("{what} up to {}, beyond {}", show(new), show(old)));
        }
    };
    let plain = |n: u64| n.to_string();
    let (o, n) = (&old.limits, &new.limits);
    more("memory", o.memory_bytes.value, n.memory_bytes.value, &format_size);
    more("CPUs", o.cpu_milli.value, n.cpu_milli.value, &describe::format_cpus);
    more("processes", o.pids.value, n.pids.value, &plain);
    more("files", o.file_bytes, n.file_bytes, &format_size);
    more("open files", o.open_files, n.open_files, &plain);
    more("/tmp", o.tmp_bytes, n.tmp_bytes, &format_size);
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let time = |ms| format_duration(std::time::Duration::from_millis(ms));
    more("one turn", ms(old.turn_timeout), ms(new.turn_timeout), &time);
    let soft = |l: &model::Limit| l.strictness == Strictness::Fallback;
    for (what, old, new) in [
        ("memory", &o.memory_bytes, &n.memory_bytes),
        ("CPUs", &o.cpu_milli, &n.cpu_milli),
        ("processes", &o.pids, &n.pids),
    ] {
        if soft(new) && !soft(old) {
            lines
                .push(format!("the limit of {what} may be held by something weaker than a cgroup"));
        }
    }
    type Show = fn(u64) -> String;
    let mut spend = |what: &str, old: Option<u64>, new: Option<u64>, show: Show| match (old, new) {
        (Some(old), Some(new)) if new > old => {
            lines.push(format!("{what} up to {}, beyond {}", show(new), show(old)));
        }
        (Some(old), None) => {
            lines.push(format!("{what} without limit, beyond {}", show(old)));
        }
        _ => {}
    };
    spend("disk", o.disk_bytes, n.disk_bytes, format_size);
    spend("each sandbox's time", o.wall_ms, n.wall_ms, |ms| {
        format_duration(std::time::Duration::from_millis(ms))
    });
    let (o, n) = (&old.budget, &new.budget);
    spend("models a day", o.micro_usd_per_day, n.micro_usd_per_day, format_usd);
    spend("models a turn", o.micro_usd_per_turn, n.micro_usd_per_turn, format_usd);
    spend("tokens a day", o.tokens_per_day, n.tokens_per_day, |n| n.to_string());
    lines
}

/// What the rules `new` let through, or no longer stop, compared with `old`.
fn egress(old: &[EgressRule], new: &[EgressRule]) -> Vec<String> {
    let having = |rules: &[EgressRule], effect| -> Vec<EgressRule> {
        rules.iter().filter(|r| r.effect == effect).flat_map(atoms).collect()
    };
    let mut lines = Vec::new();
    for atom in having(new, Effect::Allow).into_iter().chain(having(new, Effect::Ask)) {
        if !old.iter().any(|rule| grants(rule, &atom)) {
            lines.push(newly(old, &atom));
        }
    }
    let denies = having(new, Effect::Deny);
    for atom in having(old, Effect::Deny) {
        let kept = denies.iter().any(|rule| stops(rule, &atom));
        let matters = new.iter().any(|r| r.effect != Effect::Deny && meets(r, &atom));
        if !kept && matters {
            let line = format!("{} is no longer denied", destination(&atom));
            lines.push(line);
        }
    }
    for atom in having(old, Effect::Ask) {
        let kept = new.iter().any(|rule| {
            let asks = rule.effect == Effect::Ask && rule.ask == atom.ask;
            (asks || rule.effect == Effect::Deny) && stops(rule, &atom)
        });
        let matters = new.iter().any(|r| r.effect == Effect::Allow && meets(r, &atom));
        if !kept && matters {
            lines.push(format!("{} without asking as before", destination(&atom)));
        }
    }
    let mut seen = BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines
}

/// A rule as rules with one method and one path each (or all of them).
fn atoms(rule: &EgressRule) -> Vec<EgressRule> {
    fn each<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
        if items.is_empty() {
            return vec![Vec::new()];
        }
        items.iter().map(|item| vec![item.clone()]).collect()
    }
    let mut all = Vec::new();
    for methods in each(&rule.methods) {
        for paths in each(&rule.paths) {
            let mut atom = EgressRule { methods: methods.clone(), paths, ..rule.clone() };
            atom.websocket &= atom.opens_websockets();
            all.push(atom);
        }
    }
    all
}

/// Whether the hosts of `atom` are all hosts of `rule`.
fn covers_hosts(rule: &HostPattern, atom: &HostPattern) -> bool {
    match atom {
        HostPattern::Exact(name) => rule.covers(name),
        HostPattern::Below(base) => {
            rule == atom || (matches!(rule, HostPattern::Below(_)) && rule.covers(base))
        }
    }
}

/// Whether host, port, method and path of `atom` are all within `rule`.
fn stops(rule: &EgressRule, atom: &EgressRule) -> bool {
    let path = |outer: &[model::PathPattern], inner: &model::PathPattern| {
        let inner_read = Pattern::read(inner.as_str());
        outer.iter().any(|outer| {
            let outer_read = Pattern::read(outer.as_str());
            match (&outer_read, &inner_read) {
                (Some(outer), Some(inner)) => outer.includes(inner),
                _ => outer == inner,
            }
        })
    };
    covers_hosts(&rule.host, &atom.host)
        && (rule.port.is_none() || rule.port == atom.port)
        && (rule.methods.is_empty()
            || (!atom.methods.is_empty() && atom.methods.iter().all(|m| rule.methods.contains(m))))
        && (rule.paths.is_empty()
            || (!atom.paths.is_empty() && atom.paths.iter().all(|p| path(&rule.paths, p))))
}

/// Whether `rule` permits all that `atom` does, on terms at least as free.
fn grants(rule: &EgressRule, atom: &EgressRule) -> bool {
    let effect = match (rule.effect, atom.effect) {
        (Effect::Allow, _) => true,
        (Effect::Ask, Effect::Ask) => same_asked(rule.ask.as_ref(), atom.ask.as_ref()),
        _ => false,
    };
    let at_least = |rule: Option<u64>, atom: Option<u64>| match (rule, atom) {
        (None, _) => true,
        (Some(rule), Some(atom)) => atom <= rule,
        (Some(_), None) => false,
    };
    let (r, a) = (&rule.limits, &atom.limits);
    effect
        && stops(rule, atom)
        && rule.sight == atom.sight
        && (rule.private || !atom.private)
        && (rule.own_credentials || !atom.own_credentials)
        && (rule.websocket || !atom.websocket)
        && (rule.clear || !atom.clear)
        && (atom.secret.is_none() || rule.secret == atom.secret)
        && at_least(r.max_request, a.max_request)
        && at_least(r.max_upload_per_day, a.max_upload_per_day)
        && at_least(r.max_per_minute.map(u64::from), a.max_per_minute.map(u64::from))
}

/// Whether the same people are asked; a longer wait grants nothing.
fn same_asked(old: Option<&AskTerms>, new: Option<&AskTerms>) -> bool {
    old.map(|t| &t.by) == new.map(|t| &t.by)
}

/// Whether some request may be meant by both.
fn meets(a: &EgressRule, b: &EgressRule) -> bool {
    let method = a.methods.is_empty()
        || b.methods.is_empty()
        || a.methods.iter().any(|m| b.methods.iter().any(|n| n.eq_ignore_ascii_case(m)));
    overlap(&a.host, &b.host) && ports_overlap(a.port, b.port) && method
}

/// `GET a.org:443 /repos/**`.
fn destination(rule: &EgressRule) -> String {
    let port = rule.port.map_or_else(|| " at every port".to_owned(), |p| format!(":{p}"));
    let methods =
        if rule.methods.is_empty() { "every method".into() } else { rule.methods.join(", ") };
    let paths: Vec<&str> = rule.paths.iter().map(|p| p.as_str()).collect();
    let paths = if paths.is_empty() { String::new() } else { format!(" {}", paths.join(" or ")) };
    format!("{methods} at {}{port}{paths}", rule.host)
}

/// A grant that was not there, and what about it is new.
fn newly(old: &[EgressRule], atom: &EgressRule) -> String {
    let permits = |r: &&EgressRule| r.effect != Effect::Deny;
    let whole = || old.iter().filter(permits).filter(|r| stops(r, atom));
    let line = describe::rule(atom);
    let what = if let Some(rule) = whole().next() {
        changed(rule, atom)
    } else if old
        .iter()
        .filter(permits)
        .any(|r| r.port == atom.port && overlap(&r.host, &atom.host))
    {
        "more of a host that was reached in part"
    } else if old.iter().filter(permits).any(|r| overlap(&r.host, &atom.host)) {
        "a new port"
    } else {
        "a new host"
    };
    format!("{line}: {what}")
}

/// What is freer in `atom` than in `rule`, which speaks of the same requests.
fn changed(rule: &EgressRule, atom: &EgressRule) -> &'static str {
    if rule.effect == Effect::Ask && atom.effect == Effect::Allow {
        "nobody is asked any more"
    } else if rule.sight != atom.sight {
        match atom.sight {
            Sight::Intercept => "it was a tunnel",
            Sight::Tunnel | Sight::Tcp => "it was looked into",
        }
    } else if atom.secret.is_some() && rule.secret != atom.secret {
        "a secret is used there"
    } else if atom.own_credentials && !rule.own_credentials {
        "the agent's own credentials may go there"
    } else if atom.websocket && !rule.websocket {
        "WebSockets may be opened there, which nobody looks into"
    } else if atom.clear && !rule.clear {
        "it may go there without TLS"
    } else if atom.private && !rule.private {
        "private addresses may be reached"
    } else if rule.ask != atom.ask {
        "others are asked"
    } else {
        "more may be sent"
    }
}
