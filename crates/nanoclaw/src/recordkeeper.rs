//! `__recorder`: the process that alone writes the log and signs it, behind walls of its own.
//!
//! ```text
//! exec ─► nothing inherited ─► folders, socket ─► walls, measured ─► log opened ─► ready ─► serve
//! ```
//!
//! 1. The walls stand before the log's key is read and before anybody is heard.
//! 2. It reads and writes below the log's folder alone, recovery and evidence included; beside it,
//!    it may make and remove a socket in the folder of sockets. It has no network.

use crate::commands::reading;
use audit::recorder::{Place, prepare, recorder_run};
use sandbox::role::{RoleWalls, confine, detach};
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

/// `argv[3]` of the recorder process, after `--home DIR`.
pub(crate) const ROLE: &str = "__recorder";

/// Runs the recorder of a home until its last client has gone.
///
/// With `prune BEFORE_MS` it removes old records instead, and ends.
pub(crate) fn main(home: &str, words: &[String]) -> ExitCode {
    if detach().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(ready) = io::stdout().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let home = Path::new(home);
    if let [word, before_ms] = words
        && word == reading::PRUNE
    {
        return match walled(home) {
            Ok(_place) => reading::prune_role(home, before_ms),
            Err(e) => {
                drop(writeln!(io::stdout(), "{}", e.to_string().replace('\n', " ")));
                ExitCode::FAILURE
            }
        };
    }
    // Read before the walls, which leave nothing of the home but the log. Of a file that cannot be
    // read nobody knows what it says: texts are then kept where they can be erased.
    let private = policy::load::config(home).map_or(true, |config| config.texts_beside);
    match walled(home) {
        Ok(place) => recorder_run(home, place.with_private_texts(private), ready),
        Err(e) => {
            // The starter may be gone; then nobody needs to hear it.
            drop(writeln!(File::from(ready), "{}", e.to_string().replace('\n', " ")));
            ExitCode::FAILURE
        }
    }
}

fn walled(home: &Path) -> Result<Place, Box<dyn Error>> {
    let place = prepare(home)?;
    confine(&RoleWalls {
        read: Vec::new(),
        keep: vec![audit::log_dir(home), audit::key_dir(home)],
        sockets: vec![home.join("run")],
        connect: false,
        forbidden: vec![
            home.to_owned(),
            home.join("vault"),
            home.join("gateway"),
            home.join("store.db"),
            home.join("sessions"),
        ],
    })?;
    Ok(place)
}
