//! `sandbox plan`: the walls of an agent's sandbox as an ordered list, before anything runs.

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::product;
use crate::sandboxes::{self, Parts};
use crate::scribe::sha256_hex;
use crate::ui;
use model::{Command, SessionId};
use policy::{Additions, Runtime};
use sandbox::HostFacts;
use std::os::unix::net::UnixListener;

pub(crate) fn run(home: &Home, agent: Option<&str>, as_json: bool) -> Result<u8> {
    let config = product::load_config(home)?;
    let name = crate::agent_name(agent, &config)?;
    let agent = product::resolve_agent(home, &config, &name, &Additions::default())?;
    // A session that does not exist, so that two plans of one agent are equal.
    let session = SessionId::parse("plan").map_err(Failure::other)?;
    let dirs = home.session(&session)?;
    let command = match &agent.runtime {
        Runtime::Builtin => Command::Builtin(vec!["__agent".into()]),
        Runtime::Command(argv) => Command::Program(argv.clone()),
    };
    // The door of a real session is there before its plan is made; this one stands in its place.
    let door = home.door(&session)?;
    // A killed `plan` may have left one.
    drop(std::fs::remove_file(&door));
    let standing = UnixListener::bind(&door).context(door.display())?;
    let spec = sandboxes::spec(Parts {
        session: &session,
        agent: &agent,
        dirs: &dirs,
        workspace: None,
        door: door.clone(),
        trust: sandboxes::bundle(home.path()),
        command,
        env: std::collections::BTreeMap::new(),
    });
    let facts = HostFacts::gather(vec![home.path().to_owned()]);
    let sources = sandbox::check(&spec, &facts)
        .map_err(|e| Failure::new(Kind::Usage, e.cause).remedy(e.remedy))?;
    let plan = sandbox::plan(&spec, &facts, &sources);
    drop(standing);
    std::fs::remove_file(&door).context(door.display())?;
    if as_json {
        ui::line(String::from_utf8_lossy(&plan.sha256_input()));
    } else {
        ui::out(&ui::harmless(&plan.to_string()));
        ui::line(format!("plan sha256 {}", sha256_hex(&plan.sha256_input()).0));
    }
    Ok(0)
}
