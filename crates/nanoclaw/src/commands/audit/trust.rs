//! Keys as they are given: as text, or in a file.

use crate::args::Trust;
use crate::failure::{Failure, Result};
use audit::cosign::{Quorum, WitnessKey};
use audit::note::Verifier;
use std::path::Path;

/// Longest file that a key is looked for in, bytes.
const KEY_FILE_BYTES_MAX: u64 = 4 << 10;

/// How a key is written.
const FORM: &str = "it reads NAME+HASH+KEY, as the file `vkey` of the log's folder has it";

/// The text of a key that was given as such or as a file.
pub(crate) fn key_text(given: &str) -> Result<String> {
    // A key has two plus signs and a hash between them; a file of such a name is `./name`.
    if given.splitn(3, '+').count() == 3 {
        return Ok(given.trim().to_owned());
    }
    match audit::source::read_file(Path::new(given), KEY_FILE_BYTES_MAX) {
        Ok(Some(bytes)) => Ok(String::from_utf8_lossy(&bytes).trim().to_owned()),
        // Then it was meant as a key, and is told what is wrong with it.
        Ok(None) => Ok(given.to_owned()),
        Err(e) => Err(super::failed(&e)),
    }
}

/// The key of a log.
pub(crate) fn log_key(given: &str, option: &str) -> Result<Verifier> {
    Verifier::parse(&key_text(given)?)
        .map_err(|e| Failure::usage(format!("{option} is no verifier key: {e}")).remedy(FORM))
}

impl Trust {
    /// The log's key, if one was given.
    pub(crate) fn log(&self) -> Result<Option<Verifier>> {
        self.key.as_deref().map(|given| log_key(given, "--key")).transpose()
    }

    /// The log's key, which is needed here.
    pub(crate) fn needed(&self, what: &str) -> Result<Verifier> {
        self.log()?.ok_or_else(|| {
            Failure::usage(format!("{what} is verified against a key, and none was given"))
                .remedy("--key KEY: the log's own, from somewhere that a forger does not reach")
        })
    }

    /// The witnesses.
    pub(crate) fn witnesses(&self) -> Result<Quorum> {
        let key = |given: &String| {
            WitnessKey::parse(&key_text(given)?).map_err(|e| {
                Failure::usage(format!("--witness is no witness' key: {e}"))
                    .remedy("it reads NAME+HASH+KEY, as `witness key` prints it")
            })
        };
        let keys = self.witness.iter().map(key).collect::<Result<Vec<_>>>()?;
        let needed = self.quorum.unwrap_or(keys.len());
        Quorum::new(keys, needed).map_err(Failure::usage)
    }
}
