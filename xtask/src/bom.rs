//! The bill of materials (CycloneDX 1.6, JSON) and the licence texts of what the binary links.
//!
//! ```text
//! cargo tree (what is linked) + cargo metadata (what it is) + Cargo.lock (digests) ─► JSON, texts
//! ```
//!
//! Invariants:
//! 1. Only what is linked for the target: no build scripts, no proc-macros, no tests.
//! 2. The same checkout gives the same bytes: sorted, and the one moment is the release's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::repo::{Failure, Outcome, Repo, at, capture};

/// A linked crate.
#[derive(Debug, Clone)]
struct Part {
    name: String,
    version: String,
    licence: String,
    /// Of the package file in the registry; none for our own.
    checksum: Option<String>,
    folder: PathBuf,
    /// The `bom-ref`s of what it links itself.
    links: BTreeSet<String>,
}

impl Part {
    /// Its name in the bill; for a crate of the registry also its package URL.
    fn reference(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

/// The parts of the product, sorted by name and version.
#[derive(Debug)]
pub(crate) struct Parts(Vec<Part>);

impl Parts {
    /// Asks cargo what the product links for `target`.
    pub(crate) fn of_product(repo: &Repo, target: &str) -> Outcome<Self> {
        let tree = ["tree", "--locked", "-p", "nanoclaw", "--target", target, "--prefix", "none"];
        let kinds = ["--edges", "normal,no-proc-macro", "--no-dedupe", "--format", "{p}"];
        let linked = linked_names(&capture(repo.cargo(&tree).args(kinds))?);
        let metadata =
            ["metadata", "--locked", "--format-version", "1", "--filter-platform", target];
        let metadata: Value = serde_json::from_str(&capture(&mut repo.cargo(&metadata))?)
            .map_err(|error| Failure::new(format!("cargo metadata: {error}")))?;
        let lock = repo.root.join("Cargo.lock");
        let checksums = checksums(&fs::read_to_string(&lock).map_err(at(&lock))?);
        Ok(Self(parts(&metadata, &linked, &checksums)))
    }

    /// The bill; `serial` is 32 hex digits, `moment` in seconds since 1970.
    pub(crate) fn bill(&self, version: &str, serial: &str, moment: u64) -> Outcome<String> {
        let component = |part: &Part| {
            let mut json = json!({
                "type": "library",
                "bom-ref": part.reference(),
                "name": part.name,
                "version": part.version,
            });
            if !part.licence.is_empty() {
                // SPDX writes OR where old manifests wrote a slash.
                let expression = part.licence.replace('/', " OR ");
                json["licenses"] = json!([{ "expression": expression }]);
            }
            if let Some(checksum) = &part.checksum {
                json["purl"] = json!(part.reference());
                json["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            json
        };
        let (product, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|part| part.name == "nanoclaw");
        let mut subject = product.first().map(|part| component(part)).unwrap_or_default();
        subject["type"] = json!("application");
        let links =
            self.0.iter().map(|part| json!({ "ref": part.reference(), "dependsOn": part.links }));
        let bill = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": format!("urn:uuid:{}", uuid(serial)?),
            "version": 1,
            "metadata": {
                "timestamp": utc(moment),
                "component": subject,
                "tools": { "components": [
                    { "type": "application", "name": "nanoclaw-xtask", "version": version },
                ] },
            },
            "components": others.into_iter().map(component).collect::<Vec<_>>(),
            "dependencies": links.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&bill)
            .map(|text| text + "\n")
            .map_err(|error| Failure::new(format!("bill of materials: {error}")))
    }

    /// The licence texts that the linked crates ship, equal texts once.
    pub(crate) fn licence_texts(&self) -> Outcome<String> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for part in self.0.iter().filter(|part| part.checksum.is_some()) {
            for text in texts_in(&part.folder)? {
                let user = format!("{} {} ({})", part.name, part.version, part.licence);
                users.entry(text).or_default().push(user);
            }
        }
        let mut sections: Vec<(Vec<String>, String)> =
            users.into_iter().map(|(text, users)| (users, text)).collect();
        sections.sort();
        let mut page =
            String::from("NanoClaw links the crates below, each under its own licence.\n");
        for (users, text) in sections {
            page.push_str(&format!("\n{}\n{}\n\n{}\n", "=".repeat(78), users.join("\n"), text));
        }
        Ok(page)
    }
}

/// `(name, version)` of each line of `cargo tree --format {p}`.
fn linked_names(tree: &str) -> BTreeSet<(String, String)> {
    tree.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(" v")?;
            Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
        })
        .collect()
}

/// SHA-256 by `(name, version)`; the lock file's lines come in this order in every block.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let start = format!("{key} = \"");
        block
            .lines()
            .find_map(|line| line.strip_prefix(&start)?.strip_suffix('"').map(str::to_owned))
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            let key = (value(block, "name")?, value(block, "version")?);
            Some((key, value(block, "checksum")?))
        })
        .collect()
}

fn parts(
    metadata: &Value,
    linked: &BTreeSet<(String, String)>,
    checksums: &BTreeMap<(String, String), String>,
) -> Vec<Part> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut by_id: BTreeMap<String, Part> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let key = (text(&package["name"]), text(&package["version"]));
        if !linked.contains(&key) {
            continue;
        }
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let part = Part {
            checksum: checksums.get(&key).cloned(),
            name: key.0,
            version: key.1,
            licence: text(&package["license"]),
            folder: manifest.parent().map(Path::to_path_buf).unwrap_or_default(),
            links: BTreeSet::new(),
        };
        by_id.insert(text(&package["id"]), part);
    }
    let references: BTreeMap<String, String> =
        by_id.iter().map(|(id, part)| (id.clone(), part.reference())).collect();
    for node in metadata["resolve"]["nodes"].as_array().into_iter().flatten() {
        let Some(part) = by_id.get_mut(&text(&node["id"])) else { continue };
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            let is_linked = kinds.clone().any(|kind| kind["kind"].is_null());
            if let (true, Some(to)) = (is_linked, references.get(&text(&dependency["pkg"]))) {
                part.links.insert(to.clone());
            }
        }
    }
    let mut parts: Vec<Part> = by_id.into_values().collect();
    parts.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    parts
}

/// The licence files at the top of a crate.
fn texts_in(folder: &Path) -> Outcome<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let telling = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];
        if path.is_file() && telling.iter().any(|word| name.starts_with(word)) {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).map_err(at(path))?;
        Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n").trim().to_owned())
    };
    paths.iter().map(read).collect()
}

/// A version 8 UUID (RFC 9562: custom bits) from the first 32 digits of a digest.
fn uuid(digest: &str) -> Outcome<String> {
    let hex = digest.get(..32).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hex = hex.ok_or_else(|| Failure::new("serial number: needs 32 hex digits"))?;
    Ok(format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]))
}

/// RFC 3339 in UTC, by Howard Hinnant's civil-from-days.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_767_225_600), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_serial_number_is_a_uuid_of_version_8() {
        let digest = "0123456789abcdef0123456789abcdef0123";
        assert_eq!(uuid(digest).unwrap(), "01234567-89ab-8def-8123-456789abcdef");
        assert!(uuid("0123").is_err());
    }

    #[test]
    fn only_what_is_linked_is_in_the_bill() {
        let package = |name: &str, version: &str| {
            json!({"id": name, "name": name, "version": version, "license": "MIT/Apache-2.0",
                   "manifest_path": format!("/x/{name}/Cargo.toml")})
        };
        let metadata = json!({
            "packages": [package("nanoclaw", "0.1.0"), package("serde", "1.0.0"), package("cc", "1.2.3")],
            "resolve": {"nodes": [{"id": "nanoclaw", "deps": [
                {"pkg": "serde", "dep_kinds": [{"kind": null}]},
                {"pkg": "cc", "dep_kinds": [{"kind": "build"}]},
            ]}]},
        });
        let linked = linked_names("nanoclaw v0.1.0 (/x/nanoclaw)\nserde v1.0.0\n");
        let lock = "[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nchecksum = \"abcd\"\n";
        let parts = Parts(parts(&metadata, &linked, &checksums(lock)));
        let bill = parts.bill("0.1.0", &"0".repeat(32), 0).unwrap();
        let bill: Value = serde_json::from_str(&bill).unwrap();
        assert_eq!(bill["metadata"]["component"]["name"], "nanoclaw");
        assert_eq!(bill["components"].as_array().unwrap().len(), 1);
        let serde = &bill["components"][0];
        assert_eq!(serde["purl"], "pkg:cargo/serde@1.0.0");
        assert_eq!(serde["hashes"][0]["content"], "abcd");
        assert_eq!(serde["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let links = json!([{"ref": "pkg:cargo/nanoclaw@0.1.0", "dependsOn": ["pkg:cargo/serde@1.0.0"]},
                           {"ref": "pkg:cargo/serde@1.0.0", "dependsOn": []}]);
        assert_eq!(bill["dependencies"], links);
    }
}
