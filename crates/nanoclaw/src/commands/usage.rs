//! `usage`: what the models cost, from the gateway's ledger. Needs no gateway.

use crate::args::UsageBy;
use crate::failure::{Failure, Kind, Result};
use crate::home::Home;
use crate::ui;
use gateway::usage::{LedgerError, Total, totals, usd};
use serde_json::json;
use std::collections::BTreeMap;

/// Adds the ledger up and prints it.
pub(crate) fn run(home: &Home, by: UsageBy, as_json: bool) -> Result<u8> {
    let all = totals(&home.path().join("gateway")).map_err(failure)?;
    let groups = grouped(all, by);
    if as_json {
        for (name, total) in &groups {
            ui::json_line(&as_value(name, total, by).to_string());
        }
        return Ok(0);
    }
    if groups.is_empty() {
        ui::note("No model was asked yet.");
        return Ok(0);
    }
    ui::out(&table(&groups, by));
    Ok(0)
}

fn failure(error: LedgerError) -> Failure {
    Failure::new(Kind::Other, error)
}

fn name_of(total: &Total, by: UsageBy) -> String {
    match by {
        UsageBy::Day => total.day.clone(),
        UsageBy::Agent => total.agent.to_string(),
        UsageBy::Session => total.session.to_string(),
        UsageBy::Model => total.model.clone(),
    }
}

fn grouped(all: Vec<Total>, by: UsageBy) -> BTreeMap<String, Total> {
    let mut groups: BTreeMap<String, Total> = BTreeMap::new();
    for total in all {
        match groups.get_mut(&name_of(&total, by)) {
            Some(group) => group.add(&total),
            None => drop(groups.insert(name_of(&total, by), total)),
        }
    }
    groups
}

fn key(by: UsageBy) -> &'static str {
    match by {
        UsageBy::Day => "day",
        UsageBy::Agent => "agent",
        UsageBy::Session => "session",
        UsageBy::Model => "model",
    }
}

fn as_value(name: &str, total: &Total, by: UsageBy) -> serde_json::Value {
    let usage = &total.usage;
    let mut value = json!({
        "calls": total.calls, "input_tokens": usage.input, "cached_tokens": usage.cache_read,
        "cache_write_tokens": usage.cache_write, "output_tokens": usage.output,
        "micro_usd": total.micro_usd, "unpriced_calls": total.unpriced,
        "estimated_calls": total.estimated,
    });
    value[key(by)] = json!(name);
    value
}

fn table(groups: &BTreeMap<String, Total>, by: UsageBy) -> String {
    let width = groups.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(8);
    let mut text = format!(
        "{:width$} {:>7} {:>12} {:>12} {:>12} {:>11}\n",
        key(by),
        "calls",
        "input",
        "cached",
        "output",
        "cost"
    );
    let (mut unpriced, mut estimated) = (0, 0);
    for (name, total) in groups {
        let usage = &total.usage;
        let name = ui::harmless(name);
        let (cached, input) = (usage.cache_read, usage.input.saturating_add(usage.cache_write));
        text.push_str(&format!(
            "{name:width$} {:>7} {input:>12} {cached:>12} {:>12} {:>11}\n",
            total.calls,
            usage.output,
            usd(total.micro_usd),
        ));
        unpriced += total.unpriced;
        estimated += total.estimated;
    }
    if unpriced > 0 {
        text.push_str(&format!(
            "{unpriced} calls went to models without [models.NAME.price] and are not in the cost\n"
        ));
    }
    if estimated > 0 {
        text.push_str(&format!(
            "{estimated} calls are estimates, for their answers brought no counts\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::usage::Usage;
    use model::{AgentName, SessionId};

    fn total(agent: &str, model: &str, micro_usd: u64, unpriced: u64) -> Total {
        Total {
            day: "2026-01-31".into(),
            agent: AgentName::parse(agent).expect("a name"),
            session: SessionId::parse("s1").expect("an id"),
            turn: None,
            model: model.into(),
            calls: 2,
            usage: Usage { input: 10, cache_read: 5, cache_write: 1, output: 7 },
            micro_usd,
            unpriced,
            estimated: 0,
        }
    }

    #[test]
    fn totals_are_added_up_by_what_is_asked() {
        let all = vec![total("a", "m", 1_500_000, 0), total("b", "m", 20_000, 0)];
        let by_model = grouped(all.clone(), UsageBy::Model);
        assert_eq!(
            table(&by_model, UsageBy::Model),
            "model      calls        input       cached       output        cost\n\
             m              4           22           10           14       $1.52\n"
        );
        let by_agent = grouped(all, UsageBy::Agent);
        let value = as_value("b", &by_agent["b"], UsageBy::Agent);
        assert_eq!(
            (value["agent"].as_str(), value["micro_usd"].as_u64()),
            (Some("b"), Some(20_000))
        );
    }

    #[test]
    fn what_the_cost_leaves_out_is_said() {
        let text = table(&grouped(vec![total("a", "m", 0, 2)], UsageBy::Day), UsageBy::Day);
        assert!(text.contains("2 calls went to models without"), "{text}");
    }
}
