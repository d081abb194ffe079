//! `secret set | rotate | list | remove`: this side can only seal; opening is the gateway's.

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::{product, terminal, ui, world};
use gateway::{Sealer, SecretBytes, SecretInfo};
use serde_json::json;

/// Milliseconds of a minute, an hour and a day.
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn sealer(home: &Home) -> Result<Sealer> {
    Sealer::open_or_create(home.path())
        .map_err(|e| Failure::new(Kind::Protection, format!("the vault: {e}")))
}

pub(crate) fn set(home: &Home, name: &str, hosts: &[String], agents: &[String]) -> Result<u8> {
    let hosts = if hosts.is_empty() { hosts_of_models(home, name)? } else { hosts.to_vec() };
    if hosts.is_empty() {
        let cause = format!("no model in nanoclaw.toml uses the secret {name:?}");
        return Err(Failure::usage(cause).remedy(format!(
            "say where it may be used: `nanoclaw secret set {name} --host api.example.com`,\n\
             or write the model first, with `secret = \"{name}\"`"
        )));
    }
    let value = terminal::read_secret(&format!("Value of {name} (not shown): "))?;
    sealer(home)?
        .set_for(name, SecretBytes::new(value), &hosts, agents, world::now_ms())
        .map_err(Failure::usage)?;
    let whom = match agents {
        [] => String::new(),
        agents => format!(" for {}", agents.join(", ")),
    };
    ui::line(format!("{name} is sealed; the gateway may use it at {}{whom}.", hosts.join(", ")));
    Ok(0)
}

/// Hosts and agents are shown before the new value is asked for: only the gateway could tell
/// whether somebody has edited them, so the user is the one who looks.
pub(crate) fn rotate(home: &Home, name: &str) -> Result<u8> {
    let sealer = sealer(home)?;
    let Some(shown) = sealer.info(name).map_err(Failure::usage)? else {
        let set = format!("`nanoclaw secret set {name} --host HOST` stores a new one");
        let remedy = format!("{set}; `nanoclaw secret list` shows what there is");
        return Err(missing(name).remedy(remedy));
    };
    let places = format!("{} for {}", shown.hosts.join(", "), whom(&shown));
    ui::note(format!("The new value of {name} will be used at {places}."));
    let value = terminal::read_secret(&format!("New value of {name} (not shown): "))?;
    let value = SecretBytes::new(value);
    sealer.rotate(&shown, value, world::now_ms()).map_err(Failure::usage)?;
    ui::line(format!("{name} is rotated; the gateway uses the new value from now on."));
    Ok(0)
}

fn whom(secret: &SecretInfo) -> String {
    if secret.agents.is_empty() {
        return "every agent whose file names it".to_owned();
    }
    let names: Vec<&str> = secret.agents.iter().map(model::AgentName::as_str).collect();
    names.join(", ")
}

fn missing(name: &str) -> Failure {
    Failure::new(Kind::Missing, format!("there is no secret {name:?}"))
        .remedy("`nanoclaw secret list` shows what there is")
}

/// Hosts of the models that name the secret; for two well-known names also without any model.
fn hosts_of_models(home: &Home, name: &str) -> Result<Vec<String>> {
    let config = product::load_config(home)?;
    let mut hosts: Vec<String> = config
        .models
        .values()
        .filter(|m| m.secret.as_deref() == Some(name))
        .filter_map(|m| host(&m.base_url))
        .collect();
    if hosts.is_empty() {
        let known = match name {
            "anthropic" => Some("api.anthropic.com"),
            "openai" => Some("api.openai.com"),
            _ => None,
        };
        hosts.extend(known.map(str::to_owned));
    }
    hosts.sort();
    hosts.dedup();
    Ok(hosts)
}

fn host(base_url: &str) -> Option<String> {
    let rest = base_url.split_once("://")?.1;
    let authority = rest.split('/').next()?;
    if let Some(v6) = authority.strip_prefix('[') {
        return v6.split(']').next().map(str::to_owned);
    }
    authority.split(':').next().map(str::to_owned)
}

pub(crate) fn list(home: &Home, as_json: bool) -> Result<u8> {
    let all = sealer(home)?.list().context("the vault")?;
    if as_json {
        let values: Vec<_> = all
            .iter()
            .map(|s| {
                json!({"name": s.name, "hosts": s.hosts, "agents": s.agents,
                    "created_ms": s.created_ms, "age_s": age_ms(s) / 1_000})
            })
            .collect();
        ui::line(json!(values).to_string());
        return Ok(0);
    }
    if all.is_empty() {
        ui::note("No secrets. `nanoclaw secret set NAME` stores one.");
    }
    for secret in all {
        let (hosts, whom) = (secret.hosts.join(", "), whom(&secret));
        let (date, age) = (audit::story::utc(secret.created_ms), age(age_ms(&secret)));
        ui::line(format!("{:20}  {hosts}  {whom}  since {date} ({age})", secret.name));
    }
    Ok(0)
}

pub(crate) fn remove(home: &Home, name: &str) -> Result<u8> {
    if sealer(home)?.remove(name).map_err(Failure::usage)? {
        ui::line(format!("{name} is removed."));
        return Ok(0);
    }
    Err(missing(name))
}

/// How long its value has served, by this machine's clock.
fn age_ms(secret: &SecretInfo) -> u64 {
    world::now_ms().saturating_sub(secret.created_ms)
}

fn age(ms: u64) -> String {
    let (count, unit) = match ms {
        DAY.. => (ms / DAY, "day"),
        HOUR.. => (ms / HOUR, "hour"),
        _ => (ms / MINUTE, "minute"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_said_in_its_largest_unit() {
        for (ms, said) in [
            (0, "0 minutes"),
            (MINUTE, "1 minute"),
            (HOUR - 1, "59 minutes"),
            (HOUR, "1 hour"),
            (DAY - 1, "23 hours"),
            (40 * DAY, "40 days"),
        ] {
            assert_eq!(age(ms), said);
        }
    }
}
