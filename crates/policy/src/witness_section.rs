//! `[witnesses.NAME]` and `witness_quorum` of `nanoclaw.toml`: who countersigns the heads of the
//! record, and how many of them must.

use crate::error::{PolicyError, Problem, quote};
use crate::keys::Keys;
use crate::mcp_section::check_url;
use crate::reader::Section;

/// The keys of one witness.
pub(crate) const WITNESS: Keys = Keys { known: &["url", "key"], later: &[] };

const URL: &str = "url = \"https://witness.example/w1\"";
const KEY: &str = "key = \"witness.example/w1+1a2b3c4d+BAAA…\"";

/// Witnesses that may be named: what the format of such policies asks for.
pub const WITNESSES_MAX: usize = 32;

/// One witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// What it is called here.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Its verifier key, `NAME+HASH+KEY`.
    pub key: String,
}

/// All of them, and how many must have signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witnesses {
    /// In the order of their names.
    pub all: Vec<Witness>,
    /// All, unless something else is written.
    pub quorum: usize,
}

/// Reads them.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<Witnesses, PolicyError> {
    let mut all = Vec::new();
    for (name, section) in top.named("witnesses", &WITNESS)? {
        if all.len() == WITNESSES_MAX {
            let why = format!("has more than {WITNESSES_MAX} witnesses");
            return Err(Problem::bad("[witnesses]", why, "name fewer").at(&name.place));
        }
        let url = section.parsed("url", URL, |text| check_url("url", text, true))?;
        let url = url.ok_or_else(|| section.missing("url", URL))?.value;
        let key = section.parsed("key", KEY, |text| {
            let parts = text.splitn(3, '+').filter(|part| !part.is_empty()).count();
            if parts == 3 {
                return Ok(text.to_owned());
            }
            let why = format!("is {}, which is no witness' key", quote(text));
            Err(Problem::bad("key", why, "write the line that `nanoclaw witness key` prints"))
        })?;
        let key = key.ok_or_else(|| section.missing("key", KEY))?.value;
        all.push(Witness { name: name.value, url, key });
    }
    let most = all.len() as i64;
    let written = top.integer("witness_quorum", "witness_quorum = 1")?;
    let quorum = match written {
        Some(at) if !(1..=most).contains(&at.value) => {
            let why = format!("is {}, and {most} witnesses are named", at.value);
            let remedy = "write a number from 1 to that of [witnesses.NAME] tables";
            return Err(Problem::bad("witness_quorum", why, remedy).at(&at.place));
        }
        Some(at) => usize::try_from(at.value).unwrap_or(all.len()),
        None => all.len(),
    };
    Ok(Witnesses { all, quorum })
}

#[cfg(test)]
mod unit {
    use crate::Config;

    const ONE: &str = "[witnesses.a]\nurl = \"https://w.example/1\"\nkey = \"w+1a2b3c4d+BAAA\"\n";

    fn parse(text: &str) -> Result<Config, crate::PolicyError> {
        Config::parse("nanoclaw.toml", &format!("schema = 1\n{text}"))
    }

    #[test]
    fn witnesses_are_read_with_their_quorum_and_nonsense_is_refused_with_its_place() {
        let config = parse(ONE).unwrap();
        assert_eq!((config.witnesses.all.len(), config.witnesses.quorum), (1, 1));
        assert_eq!(config.witnesses.all[0].url, "https://w.example/1");
        assert_eq!(parse("").unwrap().witnesses.quorum, 0);
        for bad in [
            format!("witness_quorum = 2\n{ONE}"),
            format!("witness_quorum = 0\n{ONE}"),
            "witness_quorum = 1\n".to_owned(),
            ONE.replace("https", "gopher"),
            ONE.replace("w+1a2b3c4d+BAAA", "secret"),
            "[witnesses.a]\nurl = \"https://w.example/1\"\n".to_owned(),
            format!("{ONE}name = \"x\"\n"),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
