//! The truth table: for each wall of a backend, what enforces it and what the probes say. Pure.

use super::catalogue::Wall;
use super::judge::{Finding, Verdict};
use super::outside::Backend;
use sandbox::Mode;
use serde::Serialize;

/// One wall of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Name of the wall.
    pub wall: &'static str,
    /// What enforces it.
    pub enforced_by: &'static str,
    /// How many probes looked.
    pub probes: usize,
    /// How many found it to hold.
    pub held: usize,
    /// How many found nothing to wall off on this machine.
    pub absent: usize,
    /// Probes that are known not to hold here, each with the reason.
    pub not_enforced: Vec<(String, String)>,
    /// Probes that found it broken.
    pub broken: Vec<String>,
}

impl Row {
    /// What was measured, in words.
    #[must_use]
    pub fn measured(&self) -> String {
        let mut text = match (self.probes, self.held + self.absent) {
            (0, _) => return "not measured".to_owned(),
            (all, fine) if all == fine => format!("held, {all} probes"),
            (all, fine) => format!("{fine} of {all} probes held"),
        };
        if !self.not_enforced.is_empty() {
            let names: Vec<&str> = self.not_enforced.iter().map(|(n, _)| n.as_str()).collect();
            text.push_str(&format!("; not enforced: {}", names.join(", ")));
        }
        if !self.broken.is_empty() {
            text.push_str(&format!("; BROKEN: {}", self.broken.join(", ")));
        }
        text
    }
}

/// A column of the table: one backend with one privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Board {
    /// The backend.
    pub backend: &'static str,
    /// `root` or `plain user`.
    pub privilege: &'static str,
    /// Its walls, in the order of reports.
    pub rows: Vec<Row>,
}

impl Board {
    /// Adds findings up by wall. Walls that nobody looked at say so.
    #[must_use]
    pub fn of(backend: &dyn Backend, findings: &[Finding]) -> Self {
        let privilege = match backend.mode() {
            Mode::Root => "root",
            Mode::User => "plain user",
        };
        let row = |wall: Wall| row(wall, backend.enforced_by(wall), findings);
        Self { backend: backend.name(), privilege, rows: Wall::ALL.into_iter().map(row).collect() }
    }
}

fn row(wall: Wall, enforced_by: &'static str, findings: &[Finding]) -> Row {
    let own: Vec<&Finding> = findings.iter().filter(|f| f.wall == wall.name()).collect();
    let count = |verdict: Verdict| own.iter().filter(|f| f.verdict == verdict).count();
    let of = |verdict: Verdict| own.iter().filter(move |f| f.verdict == verdict);
    let gap = |f: &&&Finding| (f.probe.to_owned(), f.gap.clone().unwrap_or_default());
    Row {
        wall: wall.name(),
        enforced_by,
        probes: own.len(),
        held: count(Verdict::Held),
        absent: count(Verdict::Absent),
        not_enforced: of(Verdict::Open).map(|f| gap(&f)).collect(),
        broken: of(Verdict::Broken).map(|f| f.probe.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walls::judge::{Answer, Sighting, judge_all};
    use crate::walls::{Engine, Native, catalogue};

    const SPECIFICATION: &str = include_str!("../../../../SPECIFICATION.md");

    fn findings(gaps: &[(&'static str, String)]) -> Vec<Finding> {
        let held = |p: &catalogue::Probe| Sighting {
            probe: p.name.to_owned(),
            answer: Answer::Absent("a test".into()),
            micros: 0,
        };
        let seen: Vec<Sighting> =
            catalogue::all().filter(|p| p.name != "groups-none").map(held).collect();
        judge_all(catalogue::all(), &seen, gaps)
    }

    #[test]
    fn a_row_says_what_holds_what_is_open_and_what_is_broken() {
        let open = row(Wall::Privileges, "x", &findings(&[("groups-none", "why".into())]));
        assert!(open.measured().ends_with("; not enforced: groups-none"), "{}", open.measured());
        assert_eq!(open.not_enforced, [("groups-none".to_owned(), "why".to_owned())]);
        let broken = row(Wall::Privileges, "x", &findings(&[]));
        assert!(broken.measured().ends_with("; BROKEN: groups-none"), "{}", broken.measured());
        let whole = row(Wall::Mounts, "x", &findings(&[]));
        assert_eq!(whole.measured(), format!("held, {} probes", whole.probes));
        assert_eq!(row(Wall::Mounts, "x", &[]).measured(), "not measured");
    }

    /// The committed table is of this catalogue: `cargo xtask walls` writes it from a run.
    #[test]
    fn the_table_of_the_specification_is_of_these_probes() {
        let findings = findings(&[]);
        let missing = |enforces: fn(Wall) -> &'static str| -> Vec<String> {
            let heading = |wall: Wall| {
                let probes = row(wall, "", &findings).probes;
                format!("| {} | {} | {probes} |", wall.name(), enforces(wall))
            };
            let stands = |row: &String| SPECIFICATION.lines().any(|l| l.starts_with(row.as_str()));
            Wall::ALL.into_iter().map(heading).filter(|row| !stands(row)).collect()
        };
        assert_eq!(missing(Native::enforces), [""; 0], "run `cargo xtask walls`");
        // Containers have a table of their own, whole, unless no engine was there.
        let contained = missing(Engine::enforces);
        let none = contained.len() == Wall::ALL.len();
        let told = SPECIFICATION.contains("\nNot run: docker");
        assert!(contained.is_empty() || (none && told), "run `cargo xtask walls`: {contained:?}");
    }
}
