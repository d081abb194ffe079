//! `login | logout`: subscriptions in place of keys. The gateway fetches the tokens, seals and
//! renews them; this side shows an address and carries back what a person gets there.
//!
//! ```text
//! terms, agreed to ─► address ─► any browser ─┬─ loopback ─┐
//!                                             └─ pasted ───┴─► code ─► gateway ─► vault
//! ```

use crate::commands::secret;
use crate::failure::{Context, Failure, Kind, Result};
use crate::home::Home;
use crate::product::{self, Product};
use crate::ui::{self, harmless};
use crate::watch::{Asking, Watch};
use crate::{args::LoginArgs, terminal, world};
use audit::story::utc;
use gateway::SecretBytes;
use model::{
    AgentName, Body, Durability, LoginConfig, LoginProvider, Record, RecordSink, RecordSinkExt as _,
};
use policy::Config;
use serde_json::json;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// How long a person may take.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long a browser may take to say what it wants.
const BROWSER_TIME: Duration = Duration::from_secs(5);
/// Longest answer looked at, of a person or a browser.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// How often a wrong paste may be tried again.
const PASTES_MAX: usize = 5;

/// What is known of the providers' terms; docs/subscriptions.md has more, with its date.
fn terms(provider: LoginProvider) -> &'static str {
    match provider {
        LoginProvider::Claude => {
            "Anthropic's published terms (as of 2026) leave subscriptions (Free, Pro, Max)\n\
             to its own programs, Claude Code and claude.ai; other programs, the Agent SDK\n\
             among them, are to use a key of the Console. NanoClaw can keep the token of an\n\
             unmodified Claude Code that runs in its sandbox. Whether your plan permits that\n\
             is between you and Anthropic, which may refuse it or close the account.\n\
             A key is the safe way: `nanoclaw secret set anthropic`."
        }
        LoginProvider::ChatGpt => {
            "OpenAI documents \"Sign in with ChatGPT\" for open-source programs that run on\n\
             your own machine (as of 2026, a preview for eligible plans): you register this\n\
             installation as an agent of yours, and its requests count against your plan.\n\
             NanoClaw uses that way, under its own name. OpenAI's terms apply and may change.\n\
             A key is the other way: `nanoclaw secret set openai`."
        }
    }
}

/// Logs in; without a name, shows who is logged in.
pub(crate) fn login(home: Home, args: &LoginArgs) -> Result<u8> {
    let Some(name) = &args.name else { return list(&home, args.json) };
    let config = product::load_config(&home)?;
    let login = named(&config, name)?;
    let agents = args.agent.iter().map(|name| AgentName::parse(name).map_err(Failure::usage));
    let agents: Vec<AgentName> = agents.collect::<Result<_>>()?;
    let hosts = hosts(&config, &login);
    agree(&login, args)?;
    if login.client_id.is_none() {
        return paste(&home, &login, &hosts, &agents, args.json);
    }
    // Makes the key pair that the gateway seals to, should there be none yet.
    secret::sealer(&home)?;
    let product = Product::open(home, "login", Watch::new(Asking::Nobody))?;
    let done = walk(&product, &login, &hosts, &agents, args.json);
    product.close();
    let (expires_ms, renewable) = done?;
    if args.json {
        let value = json!({"event": "done", "login": login.name, "expires_ms": expires_ms,
            "renewable": renewable, "hosts": hosts});
        ui::json_line(&value.to_string());
        return Ok(0);
    }
    let until = match (renewable, expires_ms) {
        (true, _) => "and is renewed by the gateway".to_owned(),
        (false, Some(end)) => format!("until {}", utc(end)),
        (false, None) => "until the provider ends it".to_owned(),
    };
    ui::line(format!(
        "The login {} is sealed {until}; it serves {}.",
        login.name,
        hosts.join(", ")
    ));
    Ok(0)
}

fn named(config: &Config, name: &str) -> Result<LoginConfig> {
    if let Some(login) = config.logins.get(name) {
        return Ok(login.clone());
    }
    let built_in = LoginProvider::ALL.into_iter().find(|p| p.name() == name);
    built_in.map(|provider| LoginConfig::built_in(name, provider)).ok_or_else(|| {
        let cause = format!("there is no login {name:?}");
        Failure::new(Kind::Missing, cause)
            .remedy("write claude, chatgpt, or the NAME of a [logins.NAME] in nanoclaw.toml")
    })
}

/// Hosts of the models that name it; the provider's own where there is none yet.
fn hosts(config: &Config, login: &LoginConfig) -> Vec<String> {
    let own = |m: &&model::ModelConfig| m.login.as_ref().is_some_and(|l| l.name == login.name);
    let models = config.models.values().filter(own);
    let mut hosts: Vec<String> = models.filter_map(|m| secret::host(&m.base_url)).collect();
    if hosts.is_empty() {
        hosts.extend(secret::host(login.provider.base_url()));
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Shows the terms and has a person agree, now or by flag.
fn agree(login: &LoginConfig, args: &LoginArgs) -> Result<()> {
    let terms = terms(login.provider);
    if args.json {
        let value = json!({"event": "terms", "provider": login.provider.name(), "text": terms});
        ui::json_line(&value.to_string());
    } else {
        ui::note(terms);
    }
    if args.accept_terms {
        return Ok(());
    }
    if args.json || !std::io::stdin().is_terminal() {
        return Err(Failure::usage("nobody can be asked whether the terms permit this")
            .remedy("read them, then say --accept-terms"));
    }
    ui::out("May you use your subscription so, and do you want to? [y/N] ");
    ui::flush();
    let mut line = String::new();
    std::io::stdin().lock().take(64).read_line(&mut line).context("the terminal")?;
    if matches!(line.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::other("not agreed").remedy("nothing was done"))
}

/// Takes a token that the provider's own program made.
fn paste(
    home: &Home,
    login: &LoginConfig,
    hosts: &[String],
    agents: &[AgentName],
    as_json: bool,
) -> Result<u8> {
    let sealer = secret::sealer(home)?;
    let own = match login.provider {
        LoginProvider::Claude => "`claude setup-token`",
        LoginProvider::ChatGpt => "the provider",
    };
    let token = terminal::read_secret(&format!("Token made by {own} (not shown): "))?;
    let token = SecretBytes::new(token);
    record(home, &login.name, "a person gave a token", hosts)?;
    sealer.set_login(&login.name, token, hosts, agents, world::now_ms()).map_err(Failure::usage)?;
    if as_json {
        let value = json!({"event": "done", "login": login.name, "expires_ms": null,
            "renewable": false, "hosts": hosts});
        ui::json_line(&value.to_string());
    } else {
        let serves = hosts.join(", ");
        ui::line(format!(
            "The login {} is sealed; it serves {serves} until it runs out.",
            login.name
        ));
    }
    Ok(0)
}

/// What is about to change, durably on record.
fn record(home: &Home, login: &str, change: &str, hosts: &[String]) -> Result<()> {
    let recorder = product::recorder(home, "login")?;
    let body = Body::LoginChanged {
        login: login.to_owned(),
        change: change.to_owned(),
        hosts: hosts.to_vec(),
    };
    let record = Record { time_ms: world::now_ms(), session: None, agent: None, turn: None, body };
    let sink: &dyn RecordSink = &recorder;
    sink.append(record, Durability::Durable).map_err(|e| {
        Failure::new(Kind::Audit, format!("it cannot be put on record: {e}"))
            .remedy("nothing was changed")
    })?;
    recorder.close();
    Ok(())
}

/// Where a code came from.
enum Came {
    /// The browser was sent here with it.
    Browser(String),
    /// A line of standard input.
    Line(String),
    /// Standard input has ended.
    End,
}

fn walk(
    product: &Product,
    login: &LoginConfig,
    hosts: &[String],
    agents: &[AgentName],
    as_json: bool,
) -> Result<(Option<u64>, bool)> {
    let url = product.gateway.begin_login(login, hosts, agents).map_err(Failure::other)?;
    let (to, from) = channel();
    let listening = listen(login, &url, to.clone());
    if as_json {
        let value = json!({"event": "open", "url": url, "listening": listening});
        ui::json_line(&value.to_string());
    } else {
        ui::note("\nOpen this address in a browser, on any machine, and agree there:\n");
        ui::line(&url);
        let then = if listening {
            "\nA browser on this machine comes back by itself. From another one, paste the address \
             it was sent to, or the code it shows:"
        } else {
            "\nThen paste the address the browser was sent to, or the code it shows:"
        };
        ui::note(then);
    }
    ui::flush();
    read_lines(to)?;
    let mut pastes = 0;
    loop {
        let late = || Failure::other("nobody came back from the browser in time");
        let came = from.recv_timeout(PATIENCE).map_err(|_| late())?;
        let (pasted, again) = match came {
            Came::Browser(query) => (query, false),
            Came::Line(line) => {
                pastes += 1;
                (line, std::io::stdin().is_terminal() && pastes < PASTES_MAX)
            }
            Came::End if listening => continue,
            Came::End => return Err(Failure::usage("standard input ended without a code")),
        };
        match product.gateway.finish_login(&pasted) {
            Ok(done) => return Ok(done),
            Err(e) if again => ui::note(format!("{}; try again:", harmless(&e.to_string()))),
            Err(e) => {
                let name = &login.name;
                let why = format!("the login {name}: {}", harmless(&e.to_string()));
                return Err(Failure::other(why)
                    .remedy(format!("nothing was changed; `nanoclaw login {name}` starts anew")));
            }
        }
    }
}

/// Lines of standard input, on a thread of its own: it may never end.
fn read_lines(to: Sender<Came>) -> Result<()> {
    let reading = move || {
        loop {
            let mut line = String::new();
            let read = std::io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut line);
            let came = match read {
                Ok(1..) if line.trim().is_empty() => continue,
                Ok(1..) => Came::Line(line),
                Ok(0) | Err(_) => Came::End,
            };
            let end = matches!(came, Came::End);
            if to.send(came).is_err() || end {
                return;
            }
        }
    };
    std::thread::Builder::new().name("paste".into()).spawn(reading).context("a thread")?;
    Ok(())
}

/// Listens where the browser is sent to, if that is this machine. Whether it does.
fn listen(login: &LoginConfig, url: &str, to: Sender<Came>) -> bool {
    let Some(rest) = login.redirect_url.strip_prefix("http://") else { return false };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    let Ok(port) = port.parse::<u16>() else { return false };
    if !matches!(host, "localhost" | "127.0.0.1") {
        return false;
    }
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else { return false };
    let state = url.split(['?', '&']).find(|pair| pair.starts_with("state="));
    let (state, path) = (state.unwrap_or("state=").to_owned(), path.to_owned());
    let answering = move || {
        for stream in listener.incoming().flatten() {
            if let Some(query) = answer(&stream, &path, &state)
                && to.send(Came::Browser(query)).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new().name("browser".into()).spawn(answering).is_ok()
}

/// Answers a browser; the query, when it is the one that was waited for.
fn answer(mut stream: &TcpStream, path: &str, state: &str) -> Option<String> {
    stream.set_read_timeout(Some(BROWSER_TIME)).ok()?;
    stream.set_write_timeout(Some(BROWSER_TIME)).ok()?;
    let mut line = String::new();
    std::io::BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line).ok()?;
    let target = line.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
    let query = target.and_then(|target| target.split_once('?'));
    let query = query.filter(|(its, query)| *its == path && query.split('&').any(|p| p == state));
    let (status, text) = match query {
        Some(_) => ("200 OK", "Thank you. Go back to the terminal; this page can be closed.\n"),
        None => ("404 Not Found", "Nothing is here.\n"),
    };
    let head = "content-type: text/plain; charset=utf-8\r\nconnection: close";
    let length = text.len();
    let said = format!("HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {length}\r\n\r\n{text}");
    // Whether the browser shows it changes nothing.
    let _ = stream.write_all(said.as_bytes());
    query.map(|(_, query)| query.to_owned())
}

/// Forgets a login.
pub(crate) fn logout(home: &Home, name: &str, as_json: bool) -> Result<u8> {
    let sealer = secret::sealer(home)?;
    let known = sealer.logins().map_err(Failure::other)?;
    let Some(known) = known.iter().find(|login| login.name == name) else {
        return Err(Failure::new(Kind::Missing, format!("nobody is logged in as {name:?}"))
            .remedy("`nanoclaw login` shows the logins there are"));
    };
    record(home, name, "removed", &known.hosts)?;
    sealer.remove_login(name).map_err(Failure::other)?;
    if as_json {
        ui::json_line(&json!({"event": "removed", "login": name}).to_string());
    } else {
        ui::line(format!("The login {name} is forgotten here."));
        ui::note("The provider was not told: its own settings end what it has granted.");
    }
    Ok(0)
}

fn list(home: &Home, as_json: bool) -> Result<u8> {
    let all = secret::sealer(home)?.logins().map_err(Failure::other)?;
    if !as_json && all.is_empty() {
        ui::note("Nobody is logged in. `nanoclaw login claude` or `nanoclaw login chatgpt` does.");
    }
    for login in all {
        let agents: Vec<&str> = login.agents.iter().map(AgentName::as_str).collect();
        if as_json {
            let value = json!({"login": login.name, "hosts": login.hosts, "agents": agents,
                "renewed_ms": login.created_ms});
            ui::json_line(&value.to_string());
            continue;
        }
        let whom = if agents.is_empty() { "every agent".to_owned() } else { agents.join(", ") };
        let (hosts, date) = (login.hosts.join(", "), utc(login.created_ms));
        ui::line(format!("{:12}  {hosts}  {whom}  renewed {date}", login.name));
    }
    Ok(0)
}
