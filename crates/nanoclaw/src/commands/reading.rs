//! `audit search | stats | export | erase | prune | backup | schema`.

mod backup;
mod erase;
mod export;
mod prune;
mod search;
mod when;

pub(crate) use prune::{WORD as PRUNE, role as prune_role};

use super::audit::{failed, unread};
use crate::args::{ReadingCommand, Which};
use crate::failure::{Failure, Result};
use crate::home::Home;
use crate::ui;
use audit::index::Query;
use audit::payload::Scope;
use std::io::IsTerminal;

pub(crate) fn run(home: impl FnOnce() -> Result<Home>, command: &ReadingCommand) -> Result<u8> {
    match command {
        ReadingCommand::Search { which, count, no_index, rebuild, json } => {
            let how = search::How { by_index: !no_index, rebuild: *rebuild, as_json: *json };
            search::search(&home()?.audit(), &query(which)?, *count, &how)
        }
        ReadingCommand::Stats { which, json } => {
            search::stats(&home()?.audit(), &query(which)?, *json)
        }
        ReadingCommand::Export { format, which } => {
            export::export(&home()?.audit(), *format, &query(which)?)
        }
        ReadingCommand::Erase { records, session, before, unnamed, yes, json } => {
            let scope = match unnamed {
                true => Scope::Unnamed,
                false => erase::scope(records, session.as_deref(), before.as_deref())?,
            };
            erase::erase(&home()?, &scope, *yes, *json)
        }
        ReadingCommand::Prune { before, yes, json } => {
            prune::prune(&home()?, when::parse(before)?, *yes, *json)
        }
        ReadingCommand::Backup { dir, json } => backup::backup(&home()?.audit(), dir, *json),
        ReadingCommand::Schema { table } => {
            ui::out(&if *table { audit::catalogue::page() } else { audit::schema::text() });
            Ok(0)
        }
    }
}

fn query(which: &Which) -> Result<Query> {
    Ok(Query {
        session: which.session.clone(),
        agent: which.agent.clone(),
        user: which.user.clone(),
        kind: which.kind.clone(),
        host: which.host.clone(),
        file: which.file.clone(),
        from_ms: which.since.as_deref().map(when::parse).transpose()?,
        to_ms: which.until.as_deref().map(when::parse).transpose()?,
    })
}

/// Asks a person; `false` unless the answer is yes.
fn agreed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let cause = "nobody can be asked: standard input is not a terminal";
        return Err(Failure::usage(cause).remedy("read what would be done, then add --yes"));
    }
    ui::out(&format!("{question} [y/N] "));
    ui::flush();
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    read.map_err(|e| Failure::other(format!("the terminal: {e}")))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
