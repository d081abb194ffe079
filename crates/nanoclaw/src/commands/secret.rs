//! `secret set | list | remove`: this side can only seal; opening is the gateway's.

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::{product, terminal, ui, world};
use gateway::{Sealer, SecretBytes};
use serde_json::json;

fn sealer(home: &Home) -> Result<Sealer> {
    Sealer::open_or_create(home.path())
        .map_err(|e| Failure::new(Kind::Protection, format!("the vault: {e}")))
}

pub(crate) fn set(home: &Home, name: &str, hosts: &[String]) -> Result<u8> {
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
        .set(name, SecretBytes::new(value), &hosts, world::now_ms())
        .map_err(Failure::usage)?;
    ui::line(format!("{name} is sealed; the gateway may use it at {}.", hosts.join(", ")));
    Ok(0)
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
            .map(|s| json!({"name": s.name, "hosts": s.hosts, "created_ms": s.created_ms}))
            .collect();
        ui::line(json!(values).to_string());
        return Ok(0);
    }
    if all.is_empty() {
        ui::note("No secrets. `nanoclaw secret set NAME` stores one.");
    }
    for secret in all {
        let date = audit::story::utc(secret.created_ms);
        ui::line(format!("{:20}  {}  since {date}", secret.name, secret.hosts.join(", ")));
    }
    Ok(0)
}

pub(crate) fn remove(home: &Home, name: &str) -> Result<u8> {
    if sealer(home)?.remove(name).map_err(Failure::usage)? {
        ui::line(format!("{name} is removed."));
        return Ok(0);
    }
    Err(Failure::new(Kind::Missing, format!("there is no secret {name:?}"))
        .remedy("`nanoclaw secret list` shows what there is"))
}
