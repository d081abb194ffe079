//! NanoClaw: run AI agents you can trust.
//!
//! `main` is the table of contents: inner roles first, for they must not meet a parser of
//! arguments or a runtime; then the commands of people.

mod args;
mod chat;
mod commands;
mod cosigning;
mod crosscheck;
mod demo;
mod failure;
mod fetch;
mod gatekeeper;
mod home;
mod host;
mod manifest;
mod manifests;
mod observers;
mod operations;
mod policies;
mod probing;
mod product;
mod recordkeeper;
mod removal;
mod rootfs;
mod run;
mod sandboxes;
mod scribe;
mod servers;
mod signals;
mod terminal;
mod timer;
mod ui;
mod watch;
mod words;
mod world;

use args::{
    AuditCommand, Cli, Command, ImageCommand, McpCommand, SandboxCommand, SecretCommand,
    WitnessCommand,
};
use assess::walls;
use clap::Parser;
use failure::{Failure, Result};
use home::Home;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match words.first().map(String::as_str) {
        Some(sandbox::SPAWNER_ROLE) => return sandbox::spawner_main(),
        Some(sandbox::INIT_ROLE) => return sandbox::init_main(),
        Some(sandbox::GUEST_ROLE) => return sandbox::guest_main(),
        Some("__agent") => return agent::agent_main(),
        Some(agent::MCP_ROLE) => return agent::mcp_main(),
        Some("__probe") => return assess::probe_main(&words[1..]),
        Some(walls::WALLS_ROLE) => return walls::battery_main(&words[1..]),
        Some(walls::ACCOMPLICE_ROLE) => return walls::accomplice_main(&words[1..]),
        Some(walls::LINGER_ROLE) => return walls::linger_main(&words[1..]),
        Some(walls::KEEPER_ROLE) => return walls::keeper_main(&words[1..]),
        // `--home DIR __recorder` and `--home DIR __gateway`, started by their first clients.
        Some("--home") if words.get(2).is_some_and(|w| w == recordkeeper::ROLE) => {
            return recordkeeper::main(&words[1], &words[3..]);
        }
        Some("--home") if words.get(2).is_some_and(|w| w == gatekeeper::ROLE) => {
            return gatekeeper::main(&words[1]);
        }
        Some("--home") if words.get(2).is_some_and(|w| w == cosigning::ROLE) => {
            return cosigning::main(&words[1]);
        }
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to standard output, which may be full.
            ui::wrote(e.print());
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            return ExitCode::from(ui::finish(code));
        }
    };
    let code = run_command(cli).unwrap_or_else(|failure| {
        ui::flush();
        ui::note(failure.render().trim_end());
        failure.kind.exit_code()
    });
    ExitCode::from(ui::finish(code))
}

fn run_command(cli: Cli) -> Result<u8> {
    let home = || Home::open(cli.home.as_deref());
    match cli.command {
        Command::Demo(args) => demo::run(&home()?, &args),
        Command::Chat(args) => chat::run(home()?, &args),
        Command::Run(args) => run::run(home()?, &args),
        Command::Audit(command) => run_audit(home, command),
        Command::Witness(command) => run_witness(home, command),
        Command::Sandbox(SandboxCommand::Plan { agent, json }) => {
            commands::plan::run(&home()?, agent.as_deref(), json)
        }
        Command::Sandbox(SandboxCommand::Probe(args)) => commands::probe::run(&home()?, &args),
        Command::Image(ImageCommand::Pull { reference, name, plain_http, json }) => {
            commands::image::pull(&home()?, &reference, name.as_deref(), plain_http, json)
        }
        Command::Image(ImageCommand::Import { path, name, json }) => {
            commands::image::import(&home()?, &path, name.as_deref(), json)
        }
        Command::Image(ImageCommand::List { json }) => commands::image::list(&home()?, json),
        Command::Image(ImageCommand::Remove { name, json }) => {
            commands::image::remove(&home()?, &name, json)
        }
        Command::Secret(SecretCommand::Set { name, host, agent }) => {
            commands::secret::set(&home()?, &name, &host, &agent)
        }
        Command::Secret(SecretCommand::Rotate { name }) => {
            commands::secret::rotate(&home()?, &name)
        }
        Command::Secret(SecretCommand::List { json }) => commands::secret::list(&home()?, json),
        Command::Secret(SecretCommand::Remove { name }) => {
            commands::secret::remove(&home()?, &name)
        }
        Command::Login(args) => commands::login::login(home()?, &args),
        Command::Logout { name, json } => commands::login::logout(&home()?, &name, json),
        Command::Mcp(McpCommand::List { name, json }) => {
            commands::mcp::list(home()?, name.as_deref(), json)
        }
        Command::Mcp(McpCommand::Approve { name, yes }) => {
            commands::mcp::approve(home()?, &name, yes)
        }
        Command::Usage { by, json } => commands::usage::run(&home()?, by, json),
        Command::Policy(command) => commands::policy::run(home, &command),
        Command::Doctor { apparmor: true, .. } => commands::doctor::apparmor(),
        Command::Doctor { json, .. } => {
            commands::doctor::run(Home::look(cli.home.as_deref()), json)
        }
        Command::Completions { shell } => commands::manual::completions(shell),
        Command::Man { dir } => commands::manual::pages(&dir),
    }
}

fn run_audit(home: impl FnOnce() -> Result<Home>, command: AuditCommand) -> Result<u8> {
    use commands::audit;
    match command {
        AuditCommand::Verify { target, trust, entry, json } => {
            audit::verify(home, target.as_deref(), &trust, entry.as_deref(), json)
        }
        AuditCommand::Proof { record, out, json } => {
            audit::proof(&home()?, &record, out.as_deref(), json)
        }
        AuditCommand::Receipt { message, out, json } => {
            audit::receipt(&home()?, message.as_deref(), out.as_deref(), json)
        }
        AuditCommand::Consistency { a, b, trust, json } => audit::consistency(&a, &b, &trust, json),
        AuditCommand::Serve { dir, listen, json } => {
            let dir = match dir {
                Some(dir) => dir,
                None => home()?.audit(),
            };
            audit::serve(&dir, listen, json)
        }
        AuditCommand::Show { session, all, json } => {
            audit::show(&home()?, session.as_deref(), all, json)
        }
        AuditCommand::Reading(command) => commands::reading::run(home, &command),
        AuditCommand::RotateKey { json } => audit::rotate_key(&home()?, json),
        AuditCommand::Tail { count, follow, json } => audit::tail(&home()?, count, follow, json),
    }
}

fn run_witness(home: impl FnOnce() -> Result<Home>, command: WitnessCommand) -> Result<u8> {
    use commands::witness;
    match command {
        WitnessCommand::Key { name, file, json } => witness::key(&name, &file, json),
        WitnessCommand::Serve { listen, key, log, state, json } => {
            let state = match state {
                Some(state) => state,
                None => home()?.path().join("witness"),
            };
            witness::serve(&state, &key, &log, listen, json)
        }
        WitnessCommand::Submit { json } => witness::submit(&home()?, json),
    }
}

/// The name of an agent as it was typed.
fn agent_name(given: Option<&str>, config: &policy::Config) -> Result<model::AgentName> {
    match given {
        Some(name) => model::AgentName::parse(name).map_err(Failure::usage),
        None => match &config.default_agent {
            Some(name) => Ok(name.clone()),
            None => model::AgentName::parse(product::DEFAULT_AGENT).map_err(Failure::other),
        },
    }
}
