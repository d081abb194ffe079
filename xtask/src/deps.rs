//! `cargo xtask deps`: who may depend on whom, one crypto library, and allowed licences.
//!
//! ```text
//! cargo metadata ─► edges ─► table below        cargo tree ─► banned crates, licences (deny.toml)
//! ```
//!
//! Invariants:
//! 1. A crate that is not in the table fails: a new crate says first what it may know.
//! 2. The code map of ARCHITECTURE.md says the same; a change here without one there fails.

use std::fs;

use serde_json::Value;

use crate::only_flags;
use crate::repo::{Failure, Outcome, Repo, at, capture, host_target, step};
use crate::{licences, setup};

/// Each crate and the crates of ours it may know. Arrows point down to `model`; `testkit` may be a
/// dev-dependency of every crate.
const TABLE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("policy", &["model"]),
    ("store", &["model"]),
    ("audit", &["model"]),
    ("apple", &["model"]),
    ("sandbox", &["model", "apple"]),
    ("images", &["model"]),
    ("agent", &["model"]),
    ("gateway", &["model", "policy"]),
    ("orchestrator", &["model", "policy", "store", "audit"]),
    ("assess", &["model", "sandbox"]),
    (
        "nanoclaw",
        &[
            "model",
            "policy",
            "store",
            "audit",
            "apple",
            "sandbox",
            "images",
            "gateway",
            "agent",
            "orchestrator",
            "assess",
        ],
    ),
    ("testkit", &["model"]),
    ("xtask", &[]),
];

/// Crates that must not be linked, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "a second TLS provider makes rustls panic at its first use: use aws-lc-rs"),
    ("openssl-sys", "a second TLS library, linked from the system: use rustls"),
    ("native-tls", "a second TLS library, linked from the system: use rustls"),
];

/// A dependency between two crates of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    dev: bool,
}

/// `cargo xtask deps [--table]`.
pub(crate) fn deps(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &["--table"])?;
    if !arguments.is_empty() {
        TABLE.iter().for_each(|row| println!("{:<13} {}", row.0, row_text(row)));
        return Ok(());
    }
    step("deps: directions, crypto library, licences");
    let metadata = metadata(repo)?;
    let mut findings = wrong_edges(&names(&metadata), &edges(&metadata));
    let path = repo.root.join("ARCHITECTURE.md");
    let architecture = fs::read_to_string(&path).map_err(at(&path))?;
    findings.extend(unquoted_rows(&architecture));
    let linked = linked(repo, &host_target())?;
    findings.extend(banned(&linked));
    findings.extend(licences::not_allowed(&linked, &licences::allowed(repo)?));
    findings.iter().for_each(|finding| println!("{finding}"));
    match findings.len() {
        0 => Ok(()),
        count => {
            Err(Failure::new(format!("{count} wrong dependencies; `deps --table` shows rows")))
        }
    }
}

/// What cargo knows of the workspace's own crates.
fn metadata(repo: &Repo) -> Outcome<Value> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--locked"];
    let text = capture(&mut repo.cargo(&arguments))?;
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("cargo metadata: {error}")))
}

/// `nanoclaw-policy` is `policy` in the table.
fn short(name: &str) -> &str {
    name.strip_prefix("nanoclaw-").unwrap_or(name)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn names(metadata: &Value) -> Vec<String> {
    let name = |package: &Value| package["name"].as_str().map(|name| short(name).to_owned());
    packages(metadata).filter_map(name).collect()
}

/// The edges between crates that have a path in the workspace.
fn edges(metadata: &Value) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in packages(metadata) {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|dependency| dependency["path"].is_string()) {
            if let (Some(from), Some(to)) = (package["name"].as_str(), dependency["name"].as_str())
            {
                let dev = dependency["kind"].as_str() == Some("dev");
                edges.push(Edge { from: short(from).to_owned(), to: short(to).to_owned(), dev });
            }
        }
    }
    edges
}

fn wrong_edges(names: &[String], edges: &[Edge]) -> Vec<String> {
    let row = |name: &str| TABLE.iter().find(|(crate_name, _)| *crate_name == name);
    let unknown = names.iter().filter(|name| row(name).is_none()).map(|name| {
        format!(
            "{name}: not in the table of xtask/src/deps.rs: add its row, there and in \
                 ARCHITECTURE.md"
        )
    });
    let wrong = edges.iter().filter(|edge| {
        let allowed = row(&edge.from).is_some_and(|(_, to)| to.contains(&edge.to.as_str()));
        let test_help = edge.dev && edge.to == "testkit";
        // A crate's own dev-dependency on itself turns features on for its tests.
        let itself = edge.dev && edge.from == edge.to;
        !(allowed || test_help || itself)
    });
    let wrong = wrong.map(|edge| {
        let kind = if edge.dev { "dev-dependency" } else { "dependency" };
        format!("{} → {}: a {kind} that the table does not allow", edge.from, edge.to)
    });
    unknown.chain(wrong).collect()
}

/// What the code map of ARCHITECTURE.md says a crate knows.
fn row_text((name, to): &(&str, &[&str])) -> String {
    match to.len() {
        0 => "nothing".to_owned(),
        _ if *name == "nanoclaw" => "all of them".to_owned(),
        _ => to.join(", "),
    }
}

/// Rows that the code map lacks or tells differently. A row there begins with `name/`; what the
/// crate knows stands in a column of its own, two spaces or more from its neighbours, or last.
fn unquoted_rows(architecture: &str) -> Vec<String> {
    let told = |row: &(&str, &[&str])| {
        let (heading, knows) = (format!("{}/ ", row.0), row_text(row));
        let mut lines = architecture.lines().map(str::trim);
        let is_column = |column: &str| {
            let column = column.trim();
            let column = column.strip_prefix("knows ").unwrap_or(column);
            column == knows || column.ends_with(&format!(" {knows}"))
        };
        lines.any(|line| line.starts_with(&heading) && line.split("  ").any(is_column))
    };
    // This program itself is no part of the product; it may know nothing and need not be told.
    let rows = TABLE.iter().filter(|row| row.0 != "xtask");
    rows.filter(|row| !told(row))
        .map(|row| {
            format!("ARCHITECTURE.md: the code map's row `{}/` must say `{}`", row.0, row_text(row))
        })
        .collect()
}

/// A crate of somebody else's that the product or its tests link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) licence: String,
}

/// Every crate that the workspace and its tests build for `target`, without our own.
fn linked(repo: &Repo, target: &str) -> Outcome<Vec<Linked>> {
    setup::for_building(repo, target)?;
    let arguments = ["tree", "--locked", "--workspace", "--target", target, "--prefix", "none"];
    let text = capture(repo.cargo(&arguments).args(["--no-dedupe", "--format", "{p}\t{l}"]))?;
    Ok(parse_tree(&text))
}

/// Reads lines such as `serde v1.0.228\tMIT OR Apache-2.0`; our own have a path behind the version.
fn parse_tree(text: &str) -> Vec<Linked> {
    let mut all: Vec<Linked> = text
        .lines()
        .filter_map(|line| {
            let (package, licence) = line.split_once('\t')?;
            let (name, version) = package.split_once(" v")?;
            let (version, remark) = version.split_once(' ').unwrap_or((version, ""));
            let ours = remark.contains('/');
            (!ours).then(|| Linked {
                name: name.to_owned(),
                version: version.to_owned(),
                licence: licence.trim().to_owned(),
            })
        })
        .collect();
    all.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    all.dedup();
    all
}

fn banned(linked: &[Linked]) -> Vec<String> {
    let reason = |one: &Linked| BANNED.iter().find(|(name, _)| *name == one.name);
    linked
        .iter()
        .filter_map(|one| reason(one).map(|(name, why)| format!("{name} {}: {why}", one.version)))
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    fn edge(from: &str, to: &str, dev: bool) -> Edge {
        Edge { from: from.to_owned(), to: to.to_owned(), dev }
    }

    #[test]
    fn a_wrong_edge_trips_and_an_allowed_one_does_not() {
        let names = ["sandbox".to_owned(), "policy".to_owned()];
        assert_eq!(wrong_edges(&names, &[edge("sandbox", "model", false)]), [""; 0]);
        let found = wrong_edges(&names, &[edge("sandbox", "policy", false)]);
        assert_eq!(found, ["sandbox → policy: a dependency that the table does not allow"]);
        assert_eq!(wrong_edges(&names, &[edge("sandbox", "testkit", true)]), [""; 0]);
        assert_eq!(wrong_edges(&names, &[edge("sandbox", "testkit", false)]).len(), 1);
        assert_eq!(wrong_edges(&names, &[edge("assess", "nanoclaw", true)]).len(), 1);
    }

    #[test]
    fn a_new_crate_must_have_a_row() {
        let found = wrong_edges(&["channels2".to_owned()], &[]);
        assert!(found[0].starts_with("channels2: not in the table"), "{found:?}");
    }

    #[test]
    fn the_table_has_no_cycle() {
        for (position, (name, to)) in TABLE.iter().enumerate() {
            for other in *to {
                let below = TABLE.iter().position(|(row, _)| row == other);
                assert!(below.is_some_and(|below| below < position), "{name} → {other}");
            }
            // The code map calls the product's row "all of them", so it must be that.
            assert!(*name != "nanoclaw" || to.len() == position);
        }
    }

    #[test]
    fn a_row_that_the_code_map_lacks_trips() {
        let row =
            |row: &(&str, &[&str])| format!("  {}/   what it is   {}\n", row.0, row_text(row));
        let whole: String = TABLE.iter().map(row).collect();
        assert_eq!(unquoted_rows(&whole), [""; 0]);
        let wrong = whole.replace("audit/   what it is   model", "audit/   it is   model, store");
        let wanted = "ARCHITECTURE.md: the code map's row `audit/` must say `model`";
        assert_eq!(unquoted_rows(&wrong), [wanted]);
        let none = whole.replace("policy/ ", "policies/ ");
        assert_eq!(unquoted_rows(&none).len(), 1);
    }

    #[test]
    fn metadata_and_tree_are_read_as_cargo_prints_them() {
        let metadata = serde_json::json!({"packages": [{"name": "nanoclaw-audit", "dependencies": [
            {"name": "nanoclaw-model", "path": "/x", "kind": null},
            {"name": "nanoclaw-testkit", "path": "/x", "kind": "dev"},
            {"name": "serde", "kind": null},
        ]}]});
        assert_eq!(names(&metadata), ["audit"]);
        let wanted = [edge("audit", "model", false), edge("audit", "testkit", true)];
        assert_eq!(edges(&metadata), wanted);
        let tree = "nanoclaw-model v0.1.0 (/x/y)\tMIT\nserde_derive v1.0.2 (proc-macro)\tMIT\n\
                    ring v0.17.14\tApache-2.0 AND ISC\nring v0.17.14\tApache-2.0 AND ISC\n";
        let linked = parse_tree(tree);
        assert_eq!(linked.len(), 2);
        assert_eq!(banned(&linked).len(), 1);
        assert!(banned(&linked)[0].starts_with("ring 0.17.14: "));
    }
}
