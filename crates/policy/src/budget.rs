//! `[budget]` and `[[secrets]]`: what the agent may spend, and what it is handed.

use crate::agent_file::Runtime;
use crate::config::{Config, secret_name};
use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys;
use crate::reader::{At, Section};
use model::{Budget, ModelApi, ModelConfig};
use std::collections::BTreeSet;

/// Most dollars that make sense as a limit; beyond it is a typing error.
const USD_MAX: f64 = 1_000_000.0;

/// Most tokens that make sense as a limit.
const TOKENS_MAX: i64 = 1_000_000_000_000;

/// Millionths of a dollar for people: `2.50 USD`, `0.000001 USD`.
#[must_use]
pub fn format_usd(micro: u64) -> String {
    let (whole, rest) = (micro / 1_000_000, micro % 1_000_000);
    let digits = format!("{rest:06}");
    let cents = digits.trim_end_matches('0');
    format!("{whole}.{cents:0<2} USD")
}

/// Where a budget in USD stands, if there is one.
pub(crate) fn usd_place(top: &Section<'_, '_>) -> Result<Option<Place>, PolicyError> {
    let Some(section) = top.section("budget", &keys::BUDGET)? else { return Ok(None) };
    Ok(section.place_of("usd_per_day").or_else(|| section.place_of("usd_per_turn")))
}

/// A budget in USD can be kept only where every model that may answer has a price. A script costs
/// nothing.
pub(crate) fn require_prices(
    usd: &Place,
    model: Option<&str>,
    config: &Config,
) -> Result<(), PolicyError> {
    // As sessions have it: the model that is named, or the only one.
    let first = match model {
        Some(name) => config.models.get(name),
        None if config.models.len() == 1 => config.models.values().next(),
        None => None,
    };
    let all = first.map(|first| config.models_for(first)).unwrap_or_default();
    let costs = |m: &&ModelConfig| m.price.is_none() && m.api != ModelApi::Script;
    let Some(model) = all.iter().find(costs) else { return Ok(()) };
    let name = &model.name;
    let why = format!("is in USD, and the model {name:?} has no price");
    let remedy = format!(
        "write [models.{name}.price] with input and output (USD per million tokens; zeros for a \
         model that costs nothing) in nanoclaw.toml, or use tokens_per_day"
    );
    Err(Problem::bad("the budget", why, remedy).at(usd))
}

/// Reads `[budget]`.
pub(crate) fn read_budget(top: &Section<'_, '_>) -> Result<Budget, PolicyError> {
    let Some(section) = top.section("budget", &keys::BUDGET)? else { return Ok(Budget::default()) };
    let tokens =
        section.integer_in("tokens_per_day", "tokens_per_day = 1000000", 1..=TOKENS_MAX)?;
    let budget = Budget {
        micro_usd_per_day: read_usd(&section, "usd_per_day", "usd_per_day = 2.0")?,
        micro_usd_per_turn: read_usd(&section, "usd_per_turn", "usd_per_turn = 0.5")?,
        tokens_per_day: tokens.map(|at| at.value),
    };
    if !budget.is_limited() {
        return Err(section.missing("usd_per_day", "usd_per_day = 2.0"));
    }
    Ok(budget)
}

fn read_usd(
    section: &Section<'_, '_>,
    key: &'static str,
    example: &str,
) -> Result<Option<u64>, PolicyError> {
    let Some(At { place, value }) = section.number(key, example)? else { return Ok(None) };
    let micro = (value * 1e6).round();
    if !(1.0..=USD_MAX * 1e6).contains(&micro) {
        let why = "is not an amount from 0.000001 to 1000000";
        return Err(Problem::bad(key, why, format!("write e.g. `{example}`")).at(&place));
    }
    // In range, so between 1 and 10^12.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(Some(micro as u64))
}

/// Reads `[[secrets]]`: the secrets whose bytes the agent gets on its standard input.
pub(crate) fn read_secrets(
    top: &Section<'_, '_>,
    runtime: &Runtime,
) -> Result<BTreeSet<String>, PolicyError> {
    const NAME: &str = "name = \"agent-key\"";
    const DELIVER: &str = "deliver = \"stdin\"";
    let mut all = BTreeSet::new();
    for section in top.list("secrets", &keys::SECRET)? {
        let name = section.parsed("name", NAME, secret_name)?;
        let name = name.ok_or_else(|| section.missing("name", NAME))?;
        let deliver = section.parsed("deliver", DELIVER, |text| match text {
            "stdin" => Ok(()),
            other => Err(Problem::bad(
                "deliver",
                format!("is {}", quote(other)),
                "write \"stdin\", or let the gateway use the secret: `secret` in [[egress]]",
            )),
        })?;
        deliver.ok_or_else(|| section.missing("deliver", DELIVER))?;
        if *runtime == Runtime::Builtin {
            let why = "hands a secret to the built-in agent, which has no use for one";
            let remedy = "let the gateway use it: `secret` in [[egress]]";
            return Err(Problem::bad("[[secrets]]", why, remedy).at(&section.place));
        }
        if !all.insert(name.value.clone()) {
            let why = format!("{} is there already", quote(&name.value));
            return Err(Problem::bad("name", why, "keep one of the two").at(&name.place));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dollars_are_shown_as_people_write_them() {
        for (micro, want) in [
            (2_000_000, "2.00 USD"),
            (500_000, "0.50 USD"),
            (1, "0.000001 USD"),
            (1_234_500, "1.2345 USD"),
        ] {
            assert_eq!(super::format_usd(micro), want);
        }
    }
}
