//! `witness key | serve | submit`.

use super::audit::{log_key, walls_for_serving};
use crate::failure::{Context, Failure, Kind, Result};
use crate::fetch::Dialer;
use crate::home::Home;
use crate::ui::{self, Paint};
use crate::world::{now_ms, random_bytes};
use audit::cosign::WitnessSigner;
use audit::http::{Limits, Service};
use audit::witness::keeper::{Keeper, KeeperError};
use audit::witness::{Outcome, Round};
use serde_json::{Value, json};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest key file read, bytes.
const KEY_FILE_BYTES_MAX: u64 = 4 << 10;

/// Makes a witness' key, or reads the one that is there, and prints its public half.
pub(crate) fn key(name: &str, file: &Path, as_json: bool) -> Result<u8> {
    let there = file.try_exists().context(file.display())?;
    let signer = if there {
        let signer = read_key(file)?;
        if signer.key().name() != name {
            let cause = format!("{} is the key of {}", file.display(), signer.key().name());
            return Err(Failure::usage(cause).remedy("name another file"));
        }
        signer
    } else {
        let signer = WitnessSigner::from_seed(name, random_bytes()).map_err(Failure::usage)?;
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
        let written = made.and_then(|mut made| {
            made.write_all(format!("{}\n", signer.skey()).as_bytes())?;
            made.sync_all()
        });
        written.context(format!("{} cannot be written", file.display()))?;
        signer
    };
    let vkey = signer.key().vkey();
    let said = json!({"file": file.display().to_string(), "vkey": vkey, "made": !there});
    ui::line(if as_json { said.to_string() } else { vkey });
    Ok(0)
}

fn read_key(file: &Path) -> Result<WitnessSigner> {
    let found = audit::source::read_file(file, KEY_FILE_BYTES_MAX);
    let found = found.map_err(|e| Failure::new(Kind::Unreadable, e))?;
    let bytes = found.ok_or_else(|| {
        Failure::new(Kind::Missing, format!("there is no key in {}", file.display()))
            .remedy(format!("nanoclaw witness key NAME {}", file.display()))
    })?;
    WitnessSigner::parse(String::from_utf8_lossy(&bytes).trim_end())
        .map_err(|e| Failure::usage(format!("{}: {e}", file.display())))
}

/// Is a witness until it is stopped.
pub(crate) fn serve(
    state: &Path,
    key: &Path,
    logs: &[String],
    listen: SocketAddr,
    as_json: bool,
) -> Result<u8> {
    let signer = read_key(key)?;
    let logs = logs.iter().map(|log| log_key(log, "--log")).collect::<Result<Vec<_>>>()?;
    let origins: Vec<String> = logs.iter().map(|log| log.name().to_owned()).collect();
    let state: PathBuf = std::path::absolute(state).context("the folder")?;
    DirBuilder::new().recursive(true).mode(0o700).create(&state).context(state.display())?;
    let listener = TcpListener::bind(listen).context(format!("listening on {listen}"))?;
    let address = listener.local_addr().context("the address")?;
    walls_for_serving(Vec::new(), vec![state.clone()])?;
    let keeper = Keeper::open(&state, signer, logs, || now_ms() / 1_000).map_err(|e| match e {
        KeeperError::Changed(_) => Failure::new(Kind::Audit, e),
        KeeperError::OtherKey { .. } => Failure::usage(e).remedy("--log OLDKEY --log NEWKEY"),
        e => Failure::other(e),
    })?;
    let (vkey, url) = (keeper.key().vkey(), format!("http://{address}"));
    if as_json {
        ui::line(json!({"url": url, "vkey": vkey, "logs": origins}).to_string());
    } else {
        ui::line(format!("{url}/add-checkpoint signs as {vkey}\n  for {}", origins.join(", ")));
    }
    ui::flush();
    let service: Arc<dyn Service> = Arc::new(keeper);
    audit::http::run(&listener, &service, Limits::default()).context("serving")?;
    Ok(0)
}

/// One round with the witnesses of `nanoclaw.toml`.
pub(crate) fn submit(home: &Home, as_json: bool) -> Result<u8> {
    let config = crate::product::load_config(home)?;
    let Some(policy) = crate::cosigning::policy(&config)? else {
        return Err(Failure::new(Kind::Missing, "nanoclaw.toml names no witnesses").remedy(
            "[witnesses.NAME] with url = \"https://…\" and key = \"…\" (see docs/transparency.md)",
        ));
    };
    let round = audit::witness::round(&home.audit(), &policy, &Dialer::default());
    let round = round.map_err(|e| Failure::new(Kind::Audit, e))?.ok_or_else(|| {
        Failure::new(Kind::Missing, "there is no signed log in this home yet")
            .remedy("`nanoclaw run -- true` writes one")
    })?;
    // The next session has it on record, and warns no more of what is mended.
    let folder = home.audit().join(audit::witness::FOLDER);
    crate::cosigning::came_to(&folder, &round).context("what the round came to")?;
    if as_json {
        ui::json_line(&round_json(&round).to_string());
    } else {
        ui::out(&round_text(&round));
    }
    let contradicted = round.said.iter().any(|(_, o)| matches!(o, Outcome::Contradicts(_)));
    Ok(match (contradicted, round.reached()) {
        (true, _) => Kind::Audit.exit_code(),
        (_, true) => 0,
        _ => Kind::Other.exit_code(),
    })
}

fn round_json(round: &Round) -> Value {
    let said = |(name, outcome): &(String, Outcome)| match outcome {
        Outcome::Cosigned(_, time) => json!({"witness": name, "said": "cosigned", "time": time}),
        Outcome::Contradicts(why) => {
            json!({"witness": name, "said": "contradicts", "why": why})
        }
        Outcome::Refused(why) => json!({"witness": name, "said": "refused", "why": why}),
        Outcome::Unreachable(why) => json!({"witness": name, "said": "unreachable", "why": why}),
    };
    let said: Vec<Value> = round.said.iter().map(said).collect();
    json!({"records": round.size, "needed": round.needed, "reached": round.reached(),
        "witnesses": said})
}

fn round_text(round: &Round) -> String {
    let paint = Paint::auto();
    let mut text = format!(
        "{} of {} needed witnesses have signed the head of {} records\n",
        round.cosigned().len(),
        round.needed,
        round.size
    );
    for (name, outcome) in &round.said {
        let word = match outcome {
            Outcome::Cosigned(..) => paint.green("signed"),
            Outcome::Contradicts(why) => format!("{}: {why}", paint.red("CONTRADICTS")),
            Outcome::Refused(why) => format!("refused: {why}"),
            Outcome::Unreachable(why) => format!("not reached: {why}"),
        };
        text.push_str(&format!("  {name}  {}\n", word));
    }
    text
}
