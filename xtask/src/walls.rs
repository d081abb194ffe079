//! `cargo xtask walls`: the truth table of SPECIFICATION.md, written from a run of every probe.
//!
//! ```text
//! nanoclaw sandbox probe --json, as root, as a plain user ─┬► columns ─► tables between two marks
//! --backend docker, podman, each by an engine of our own ──┘
//! ```
//!
//! Invariants:
//! 1. Nothing stands in the tables that no run has shown; a broken wall is written as such, and
//!    what was not run is named.
//! 2. The same walls give the same text: no time, kernel or count of what is absent stands in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::only_flags;
use crate::product::{Profile, build_binary};
use crate::repo::{Failure, Outcome, Repo, at, host_target, step, warn};
use crate::setup;
use engine_daemon::{ENGINES, EngineDaemon};

// The tests start their engines with the same code. The crate around it would bring a C build.
#[allow(unreachable_pub)]
#[path = "../../testkit/src/engine_daemon.rs"]
mod engine_daemon;

const DOCUMENT: &str = "SPECIFICATION.md";
const BEGIN: &str = "<!-- walls: begin (cargo xtask walls) -->\n";
const END: &str = "<!-- walls: end -->\n";
/// The account of the plain user; the sandbox's own tests make the same.
const PLAIN_USER: &str = "nanoclaw-test";

/// `cargo xtask walls [--check]`.
pub(crate) fn walls(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &["--check"])?;
    let target = host_target();
    setup::for_building(repo, &target)?;
    let binary = build_binary(repo, &target, Profile::Ci)?;
    let found = runs(&binary)?;
    let path = repo.root.join(DOCUMENT);
    let old = fs::read_to_string(&path).map_err(at(&path))?;
    let new = replaced(&old, &tables(&found)?)?;
    if arguments.is_empty() {
        return fs::write(&path, new).map_err(at(&path));
    }
    if old == new {
        return Ok(());
    }
    Err(Failure::new(format!("the walls of {DOCUMENT} are not those of this run: `xtask walls`")))
}

/// What the probes said.
#[derive(Debug, Default)]
struct Found {
    runs: Vec<Value>,
    /// What was not run, each with the reason.
    missing: Vec<String>,
}

/// What the probes say, as the user of this command and, if that is root, as a plain one and in
/// containers.
fn runs(binary: &Path) -> Outcome<Found> {
    let folder = std::env::temp_dir().join(format!("nanoclaw-walls-{}", std::process::id()));
    fs::create_dir(&folder).map_err(at(&folder))?;
    let found = all_runs(binary, &folder);
    // A copy of the program in the temporary folder harms nobody.
    drop(fs::remove_dir_all(&folder));
    found
}

fn all_runs(binary: &Path, folder: &Path) -> Outcome<Found> {
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    let program = folder.join("nanoclaw");
    fs::copy(binary, &program).map_err(at(&program))?;
    open(folder).and_then(|()| open(&program)).map_err(at(folder))?;
    step("nanoclaw sandbox probe");
    let mut found = Found::default();
    found.runs.push(run(Command::new(&program), folder.join("own"), "native")?);
    if found.runs.iter().any(|run| run["privilege"] != "root") {
        warn("not root: the columns of root, docker and podman are missing");
        found.missing.extend(ENGINES.map(|(name, _)| format!("{name} (starting it needs root)")));
        return Ok(found);
    }
    let home = folder.join("plain");
    fs::create_dir(&home).map_err(at(&home))?;
    let owned = Command::new("chown").arg(PLAIN_USER).arg(&home).status();
    if !owned.is_ok_and(|status| status.success()) {
        return Err(Failure::new(format!("no account {PLAIN_USER}: `useradd -m {PLAIN_USER}`")));
    }
    step("nanoclaw sandbox probe, as a plain user");
    let mut plain = Command::new("setpriv");
    plain.args(["--reuid", PLAIN_USER, "--regid", PLAIN_USER, "--init-groups", "--"]);
    plain.arg(&program).current_dir("/");
    found.runs.push(run(plain, home, "native")?);
    for (name, engine) in ENGINES {
        match contained(&program, folder, name, engine)? {
            Ok(run) => found.runs.push(run),
            Err(why) => found.missing.push(format!("{name} ({why})")),
        }
    }
    Ok(found)
}

/// What the probes say in containers of that engine; the reason where there is none to ask.
fn contained(
    program: &Path,
    folder: &Path,
    name: &str,
    engine: &str,
) -> Outcome<Result<Value, String>> {
    let Some(path) = EngineDaemon::find(engine) else {
        return Ok(Err(format!("{engine} is not installed")));
    };
    let _daemon = match EngineDaemon::start(name, &path) {
        Ok(daemon) => daemon,
        Err(error) => {
            warn(error);
            return Ok(Err(format!("{engine} could not be started")));
        }
    };
    step(format!("nanoclaw sandbox probe --backend {name}"));
    let socket = format!("unix://{}", EngineDaemon::socket(name).display());
    let mut command = Command::new(program);
    command.env("DOCKER_HOST", &socket).env("CONTAINER_HOST", &socket);
    run(command, folder.join(name), name).map(Ok)
}

/// One run; a broken wall is a result, not a failure of ours.
fn run(mut command: Command, home: PathBuf, backend: &str) -> Outcome<Value> {
    const BROKEN: i32 = 6;
    command.arg("--home").arg(home).args(["sandbox", "probe", "--json"]);
    command.args(["--backend", backend]);
    let output = command.output().map_err(|e| Failure::new(format!("the probes: {e}")))?;
    if !output.status.success() && output.status.code() != Some(BROKEN) {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new(format!("the probes ended with {}: {said}", output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| Failure::new(format!("the probes printed no JSON: {e}")))
}

/// The tables, what was not run, and what is not enforced where, in Markdown. What enforces a wall
/// is one thing in native sandboxes and another in containers: each has a table.
fn tables(found: &Found) -> Outcome<String> {
    let (native, contained): (Vec<&Value>, Vec<&Value>) =
        found.runs.iter().partition(|run| run["backend"] == "native");
    let mut out = table(&native)?;
    if !contained.is_empty() {
        out.push_str(&format!("\n{}", table(&contained)?));
    }
    if !found.missing.is_empty() {
        out.push_str(&format!("\nNot run: {}.\n", found.missing.join(", ")));
    }
    let gaps: Vec<String> = found.runs.iter().flat_map(|run| gaps(&title(run), run)).collect();
    if !gaps.is_empty() {
        out.push_str(&format!("\nNot enforced, and why:\n\n{}\n", gaps.join("\n")));
    }
    Ok(out)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn title(run: &Value) -> String {
    format!("{}, {}", text(&run["backend"]), text(&run["privilege"]))
}

/// One table, a column a run.
fn table(runs: &[&Value]) -> Outcome<String> {
    let mut out = "| wall | enforced by | probes |".to_owned();
    runs.iter().for_each(|run| out.push_str(&format!(" {} |", title(run))));
    out.push_str(&format!("\n|---|---|---|{}\n", "---|".repeat(runs.len())));
    let first = runs.first().and_then(|run| run["walls"].as_array());
    let first = first.ok_or_else(|| Failure::new("a run without walls"))?;
    for (row, wall) in first.iter().enumerate() {
        let (name, by) = (text(&wall["wall"]), text(&wall["enforced_by"]));
        out.push_str(&format!("| {name} | {by} | {} |", wall["probes"]));
        for run in runs {
            out.push_str(&format!(" {} |", cell(&run["walls"][row])));
        }
        out.push('\n');
    }
    Ok(out)
}

fn cell(wall: &Value) -> String {
    let list = |key: &str| wall[key].as_array().cloned().unwrap_or_default();
    let names = |all: &[Value], of: fn(&Value) -> &Value| {
        let name = |v: &Value| of(v).as_str().unwrap_or("?").to_owned();
        all.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let (broken, open) = (list("broken"), list("not_enforced"));
    let mut text = if broken.is_empty() {
        "held".to_owned()
    } else {
        format!("**BROKEN**: {}", names(&broken, |v| v))
    };
    if !open.is_empty() {
        text.push_str(&format!("; **not enforced**: {}", names(&open, |v| &v[0])));
    }
    text
}

/// One table row a gap, for lists are promises in this document.
fn gaps(title: &str, run: &Value) -> Vec<String> {
    let walls = run["walls"].as_array().cloned().unwrap_or_default();
    let of = |wall: &Value| wall["not_enforced"].as_array().cloned().unwrap_or_default();
    let line = |gap: &Value| {
        let word = |n: usize| gap[n].as_str().unwrap_or_default().to_owned();
        format!("`{}` ({title}): {}.\\", word(0), word(1))
    };
    walls.iter().flat_map(of).map(|gap| line(&gap)).collect()
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

    fn run(backend: &str, privilege: &str, broken: &[&str], open: &[[&str; 2]]) -> Value {
        let by = if backend == "native" { "x" } else { "y" };
        let wall = json!({"wall": "mounts", "enforced_by": by, "probes": 3, "broken": broken,
            "not_enforced": open});
        json!({"backend": backend, "privilege": privilege, "walls": [wall]})
    }

    #[test]
    fn a_table_says_what_holds_what_does_not_and_why() {
        let gap = ["some-probe", "there is a reason"];
        let plain = run("native", "plain user", &["bad"], &[gap]);
        let runs = vec![run("native", "root", &[], &[]), plain];
        let text = tables(&Found { runs, missing: Vec::new() }).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| wall | enforced by | probes | native, root | native, plain user |");
        assert_eq!(
            lines[2],
            "| mounts | x | 3 | held | **BROKEN**: bad; **not enforced**: some-probe |"
        );
        assert!(
            text.ends_with("`some-probe` (native, plain user): there is a reason.\\\n"),
            "{text}"
        );
        assert!(tables(&Found { runs: vec![json!({})], missing: Vec::new() }).is_err());
    }

    #[test]
    fn containers_have_a_table_of_their_own_and_what_was_not_run_is_named() {
        let gap = ["some-probe", "an engine's way"];
        let runs = vec![run("native", "root", &[], &[]), run("docker", "root", &[], &[gap])];
        let missing = vec!["podman (podman is not installed)".to_owned()];
        let text = tables(&Found { runs, missing }).unwrap();
        let wanted = "| wall | enforced by | probes | native, root |\n|---|---|---|---|\n\
            | mounts | x | 3 | held |\n\n\
            | wall | enforced by | probes | docker, root |\n|---|---|---|---|\n\
            | mounts | y | 3 | held; **not enforced**: some-probe |\n\n\
            Not run: podman (podman is not installed).\n\n\
            Not enforced, and why:\n\n\
            `some-probe` (docker, root): an engine's way.\\\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn only_what_stands_between_the_marks_is_written() {
        let document = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&document, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(replaced("no marks", "new").is_err());
    }
}
