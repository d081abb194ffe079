//! `audit serve`: the log's public files over HTTP, behind walls.

use crate::failure::{Context, Failure, Kind, Result};
use crate::ui;
use audit::http::{Limits, Service};
use audit::serve::Serve;
use sandbox::role::{RoleWalls, confine};
use serde_json::json;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Serves until it is stopped.
pub(crate) fn serve(dir: &Path, listen: SocketAddr, as_json: bool) -> Result<u8> {
    if !dir.join("checkpoint").exists() {
        let cause = format!("there is no signed log in {}", dir.display());
        return Err(Failure::new(Kind::Missing, cause)
            .remedy("name the folder that holds `checkpoint`: a home's is its `audit`"));
    }
    let listener = TcpListener::bind(listen).context(format!("listening on {listen}"))?;
    let address = listener.local_addr().context("the address")?;
    walls_for_serving(vec![dir.to_owned()], Vec::new())?;
    if as_json {
        ui::line(json!({"url": format!("http://{address}")}).to_string());
    } else {
        ui::line(format!("http://{address}/checkpoint"));
        warn_of(address, "whoever reaches it can read every record");
    }
    ui::flush();
    let service: Arc<dyn Service> = Arc::new(Serve::new(dir));
    audit::http::run(&listener, &service, Limits::default()).context("serving")?;
    Ok(0)
}

/// Says it when others than this machine are let in.
pub(crate) fn warn_of(address: SocketAddr, what: &str) {
    if !address.ip().is_loopback() {
        ui::note(format!("warning: {address} is open to other machines; {what}"));
    }
}

/// What meets strangers' bytes may read and keep only this, start nothing and call nobody. The
/// socket it listens on is open already.
pub(crate) fn walls_for_serving(read: Vec<PathBuf>, keep: Vec<PathBuf>) -> Result<()> {
    let absolute = |all: Vec<PathBuf>| -> Result<Vec<PathBuf>> {
        all.into_iter().map(|path| std::path::absolute(path).context("the folder")).collect()
    };
    let (read, keep) = (absolute(read)?, absolute(keep)?);
    // The key of a log that lies here: what is served is public, that is not.
    let forbidden = read.iter().map(|folder| folder.join("private")).collect();
    let walls = RoleWalls { read, keep, forbidden, ..RoleWalls::default() };
    confine(&walls)
        .map_err(|e| Failure::new(Kind::Protection, e).remedy("nothing was served"))
        .map(drop)
}
