//! `cargo xtask tamper`: the tamper matrix of SPECIFICATION.md, written from a run of every attack.
//!
//! ```text
//! crates/audit/examples/tamper.rs ─► attacks on a real log ─► who noticed ─► table in the document
//! ```
//!
//! Nothing stands in the table that no run has shown; a "no" is written as such.

use std::fs;

use serde_json::Value;

use crate::only_flags;
use crate::product::Profile;
use crate::repo::{Failure, Outcome, Repo, at, capture, host_target, step};
use crate::setup;

const DOCUMENT: &str = "SPECIFICATION.md";
const BEGIN: &str = "<!-- tamper: begin (cargo xtask tamper) -->\n";
const END: &str = "<!-- tamper: end -->\n";

/// `cargo xtask tamper [--check]`.
pub(crate) fn tamper(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &["--check"])?;
    let target = host_target();
    setup::for_building(repo, &target)?;
    step("every attack on a real log");
    let mut run = repo.cargo(&["run", "--locked", "--quiet", "-p", "nanoclaw-audit"]);
    run.args(["--profile", Profile::Ci.name(), "--target", &target, "--example", "tamper"]);
    let rows = serde_json::from_str(&capture(&mut run)?)
        .map_err(|e| Failure::new(format!("the attacks printed no JSON: {e}")))?;
    let path = repo.root.join(DOCUMENT);
    let old = fs::read_to_string(&path).map_err(at(&path))?;
    let new = replaced(&old, &table(&rows)?)?;
    if arguments.is_empty() {
        return fs::write(&path, new).map_err(at(&path));
    }
    if old == new {
        return Ok(());
    }
    Err(Failure::new(format!("the matrix of {DOCUMENT} is not that of this run: `xtask tamper`")))
}

/// The table in Markdown.
fn table(rows: &Value) -> Outcome<String> {
    let bad = || Failure::new("a row of the attacks is not understood");
    let mut out = "| attack | chain | checkpoint | witness |\n|---|---|---|---|\n".to_owned();
    let rows = rows.as_array().filter(|rows| !rows.is_empty()).ok_or_else(bad)?;
    for row in rows {
        let cell = |key: &str| match row[key].as_bool() {
            Some(true) => Ok("detected"),
            Some(false) => Ok("**no**"),
            None => Err(bad()),
        };
        let attack = row["attack"].as_str().ok_or_else(bad)?;
        let (chain, checkpoint, witness) = (cell("chain")?, cell("checkpoint")?, cell("witness")?);
        out.push_str(&format!("| {attack} | {chain} | {checkpoint} | {witness} |\n"));
    }
    Ok(out)
}

/// The document with another table between the marks.
fn replaced(document: &str, table: &str) -> Outcome<String> {
    let missing = || Failure::new(format!("{DOCUMENT} has no `{}`", BEGIN.trim()));
    let (before, rest) = document.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod unit {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_no_is_written_as_such_and_what_is_not_understood_is_refused() {
        let row = json!({"attack": "a", "chain": false, "checkpoint": true, "witness": true});
        let text = table(&json!([row])).unwrap();
        assert!(text.ends_with("| a | **no** | detected | detected |\n"), "{text}");
        assert!(table(&json!([])).is_err());
        assert!(table(&json!([{"attack": "a", "chain": "yes"}])).is_err());
    }

    #[test]
    fn only_what_stands_between_the_marks_is_written() {
        let document = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&document, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(replaced("no marks", "new").is_err());
    }
}
