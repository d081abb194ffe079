//! Apple's `container` as its documentation describes it, for machines that are no Mac: a program
//! that knows the grammar, keeps books, and can misbehave.
//!
//! ```text
//! dir/container ─► the test's own binary ─► container_main ─► plan of the test, else as it should
//! ```
//!
//! 1. Every argument is held against the documented grammar (apple/container,
//!    `docs/command-reference.md`, `Parser.swift`); what it does not know ends with status 64.
//! 2. "Starting" a machine runs its first program as it is, without any machine around it; what is
//!    shown at its own path is there anyway, and other places are put back to where they came from.
//! 3. Every call is kept, for the test to look at.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// What ArgumentParser ends with when it does not understand (sysexits(3): `EX_USAGE`).
const USAGE: u8 = 64;
/// Options of `create` without a value, as documented.
const FLAGS: [&str; 10] = [
    "--interactive",
    "--tty",
    "--rm",
    "--remove",
    "--no-dns",
    "--read-only",
    "--ssh",
    "--rosetta",
    "--virtualization",
    "--init",
];
/// Options of `create` with a value, as documented.
const VALUES: [&str; 26] = [
    "--env",
    "--env-file",
    "--gid",
    "--user",
    "--uid",
    "--workdir",
    "--cpus",
    "--memory",
    "--arch",
    "--cidfile",
    "--dns",
    "--dns-domain",
    "--entrypoint",
    "--kernel",
    "--label",
    "--mount",
    "--name",
    "--network",
    "--os",
    "--publish",
    "--platform",
    "--publish-socket",
    "--tmpfs",
    "--volume",
    "--cap-add",
    "--progress",
];

/// What one command is to do instead of what it should.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ContainerAct {
    /// Print this and end with this status.
    Print(String, u8),
    /// Print without end.
    Flood,
    /// Wait so many milliseconds, then do as it should.
    Slow(u64),
    /// Die of a signal.
    Crash,
}

/// The program, and what it did.
#[derive(Debug)]
pub struct FakeContainer {
    dir: PathBuf,
}

impl FakeContainer {
    /// Makes `dir/container`, a link to `image`, whose `main` calls [`container_main`] when it is
    /// started under that name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn install(dir: &Path, image: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("made"))?;
        std::os::unix::fs::symlink(image, dir.join("container"))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Its path.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.dir.join("container")
    }

    /// Has the command whose first word this is do something else.
    ///
    /// # Errors
    /// If that cannot be noted.
    pub fn plan(&self, command: &str, act: &ContainerAct) -> io::Result<()> {
        fs::write(self.dir.join(format!("plan-{command}")), serde_json::to_vec(act)?)
    }

    /// Has `inspect` lie: this value at this place (RFC 6901) of every container.
    ///
    /// # Errors
    /// If that cannot be noted.
    pub fn lie(&self, place: &str, value: &Value) -> io::Result<()> {
        fs::write(self.dir.join("lie"), serde_json::to_vec(&json!([place, value]))?)
    }

    /// What it was asked so far, the program's name left out.
    #[must_use]
    pub fn calls(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The containers there are.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        made(&self.dir).iter().filter_map(|c| Some(c["id"].as_str()?.to_owned())).collect()
    }

    /// Puts a stopped container with these labels into its books.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn put(&self, name: &str, labels: &Value) -> io::Result<()> {
        let made = json!({ "id": name, "status": { "state": "stopped", "networks": [] },
            "configuration": { "id": name, "labels": labels } });
        keep(&self.dir, name, &made)
    }
}

/// Entry point of a test's binary that was started as `container`.
#[must_use]
pub fn container_main() -> ExitCode {
    let mut words = std::env::args();
    let own = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.collect();
    let Some(dir) = own.parent() else { return ExitCode::from(USAGE) };
    match serve(dir, &words) {
        Ok(status) => ExitCode::from(status),
        Err(what) => {
            // Whoever asked may have gone.
            let _ = writeln!(io::stderr(), "Error: {what}");
            ExitCode::from(USAGE)
        }
    }
}

type Answer<T = u8> = Result<T, String>;

fn odd(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn print(text: &str) -> Answer {
    let _ = writeln!(io::stdout(), "{text}");
    Ok(0)
}

fn refuse(text: &str) -> Answer {
    let _ = writeln!(io::stderr(), "Error: {text}");
    Ok(1)
}

fn serve(dir: &Path, words: &[String]) -> Answer {
    let mut log = fs::File::options().append(true).create(true).open(dir.join("calls"));
    let line = serde_json::to_string(words).map_err(odd)? + "\n";
    log.as_mut().map_err(odd)?.write_all(line.as_bytes()).map_err(odd)?;
    let command = words.first().map(String::as_str).unwrap_or_default();
    if let Ok(plan) = fs::read(dir.join(format!("plan-{command}"))) {
        let act: ContainerAct = serde_json::from_slice(&plan).map_err(odd)?;
        match act {
            ContainerAct::Print(text, status) => return print(&text).map(|_| status),
            ContainerAct::Flood => while io::stdout().write_all(&[b' '; 4_096]).is_ok() {},
            ContainerAct::Slow(ms) => std::thread::sleep(Duration::from_millis(ms)),
            ContainerAct::Crash => std::process::abort(),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["system", "version", "--format", "json"] => print(&good_versions("1.1.0").to_string()),
        ["image", "inspect", image] if image.contains("absent") => refuse("image not found"),
        ["image", "inspect", _] => print("[{}]"),
        ["create", rest @ ..] => {
            let made = create(rest)?;
            let name = made["id"].as_str().unwrap_or_default().to_owned();
            if dir.join("made").join(&name).exists() {
                return refuse("a container of this name exists");
            }
            keep(dir, &name, &made).map_err(odd)?;
            print(&name)
        }
        ["inspect", name] => match found(dir, name) {
            Some(made) => print(&json!([lied(dir, made)]).to_string()),
            None => refuse("container not found"),
        },
        ["list", "--all", "--format", "json"] => print(&json!(made(dir)).to_string()),
        ["start", "--attach", "--interactive", name] => start(dir, name),
        ["delete", "--force", name] => delete(dir, name),
        _ => Err(format!("unexpected arguments {words:?}")),
    }
}

/// What `system version --format json` prints of a program and service of this release.
#[must_use]
pub fn good_versions(release: &str) -> Value {
    json!([
        { "version": release, "buildType": "release", "commit": "0000000", "appName": "container" },
        {
            "version": format!("container-apiserver version {release} (build: release)"),
            "buildType": "release", "commit": "0000000", "appName": "container-apiserver",
        },
    ])
}

fn keep(dir: &Path, name: &str, made: &Value) -> io::Result<()> {
    fs::write(dir.join("made").join(name), serde_json::to_vec(made)?)
}

fn found(dir: &Path, name: &str) -> Option<Value> {
    serde_json::from_slice(&fs::read(dir.join("made").join(name)).ok()?).ok()
}

fn made(dir: &Path) -> Vec<Value> {
    let entries = fs::read_dir(dir.join("made")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names.iter().filter_map(|name| found(dir, name)).collect()
}

fn lied(dir: &Path, mut made: Value) -> Value {
    let lie: Option<(String, Value)> =
        fs::read(dir.join("lie")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    if let Some((place, value)) = lie
        && let Some(at) = made.pointer_mut(&place)
    {
        *at = value;
    }
    made
}

/// The options and the rest, one by one.
fn create(words: &[&str]) -> Answer<Value> {
    let (mut flags, mut values, mut rest) = (Vec::new(), Vec::new(), words.iter().copied());
    let image = loop {
        match rest.next() {
            None => return Err("missing argument '<image>'".into()),
            Some(word) if FLAGS.contains(&word) => flags.push(word),
            Some(word) if VALUES.contains(&word) => {
                let value = rest.next().ok_or_else(|| format!("missing value for {word}"))?;
                check(word, value)?;
                values.push((word, value));
            }
            Some(word) if word.starts_with('-') => return Err(format!("unknown option {word}")),
            Some(word) => break word,
        }
    };
    let all = |name: &str| -> Vec<&str> {
        values.iter().filter(|(n, _)| *n == name).map(|(_, v)| *v).collect()
    };
    let one = |name: &str| all(name).pop();
    let name = one("--name").ok_or("a name is made up")?;
    let labels: serde_json::Map<String, Value> = all("--label")
        .into_iter()
        .filter_map(|l| l.split_once('='))
        .map(|(k, v)| (k.to_owned(), json!(v)))
        .collect();
    let mounts: Vec<Value> = all("--volume").into_iter().map(volume).collect();
    let networks: Vec<Value> = match one("--network") {
        Some("none") => Vec::new(),
        other => vec![json!({ "network": other.unwrap_or("default") })],
    };
    let servers: &[&str] = if flags.contains(&"--no-dns") { &[] } else { &["1.1.1.1"] };
    let digest = image.split_once('@').map_or("sha256:unknown", |(_, digest)| digest);
    let arguments: Vec<&str> = rest.collect();
    Ok(json!({
        "id": name,
        "remove": flags.contains(&"--rm"),
        "status": { "state": "stopped", "networks": [] },
        "configuration": {
            "id": name, "labels": labels, "mounts": mounts, "networks": networks, "sysctls": {},
            "image": { "reference": image, "descriptor": { "digest": digest, "size": 1 } },
            "publishedPorts": all("--publish"), "publishedSockets": all("--publish-socket"),
            "dns": { "nameservers": servers, "options": [], "searchDomains": [] },
            "capAdd": all("--cap-add"), "capDrop": [],
            "initProcess": {
                "executable": one("--entrypoint").unwrap_or("/bin/sh"), "arguments": arguments,
                "terminal": flags.contains(&"--tty"), "environment": [], "workingDirectory": "/",
                "user": { "raw": { "userString": one("--user").unwrap_or("0:0") } },
            },
            "resources": {
                "cpus": one("--cpus").and_then(|n| n.parse::<u64>().ok()).unwrap_or(4),
                "memoryInBytes": one("--memory").and_then(mebibytes).unwrap_or(1_024) << 20,
            },
            "runtimeHandler": "container-runtime-linux",
            "readOnly": flags.contains(&"--read-only"), "ssh": flags.contains(&"--ssh"),
            "virtualization": flags.contains(&"--virtualization"),
            "rosetta": flags.contains(&"--rosetta"), "useInit": flags.contains(&"--init"),
        },
    }))
}

/// Whole mebibytes are all that is used here.
fn mebibytes(text: &str) -> Option<u64> {
    text.strip_suffix('M')?.parse().ok()
}

/// What can be said of one value alone.
fn check(option: &str, value: &str) -> Answer<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let good = match option {
        "--name" => {
            value.len() > 1
                && value.starts_with(|c: char| c.is_ascii_alphanumeric())
                && value.chars().all(plain)
        }
        "--cpus" => value.parse::<u64>().is_ok_and(|n| n > 0),
        "--memory" => mebibytes(value).is_some_and(|n| n > 0),
        // At most three pieces are made, and three are refused.
        "--label" => !value.is_empty() && value.splitn(3, '=').count() < 3,
        "--volume" => volume_is_good(value),
        "--os" => value == "linux",
        "--progress" => ["none", "ansi"].contains(&value),
        "--user" => value.split(':').all(|part| part.parse::<u32>().is_ok()),
        "--workdir" | "--entrypoint" => value.starts_with('/'),
        "--network" => !value.is_empty() && value.chars().all(plain),
        "--cap-add" => value.chars().all(|c| c.is_ascii_uppercase() || c == '_'),
        // Documented, and nothing that we ask for.
        _ => false,
    };
    if good { Ok(()) } else { Err(format!("the value '{value}' is invalid for '{option}'")) }
}

/// `source:target[:options]`, a path on this machine, each piece there.
fn volume_is_good(value: &str) -> bool {
    let parts: Vec<&str> = value.split(':').collect();
    let there = |source: &str| source.starts_with('/') && Path::new(source).exists();
    match parts.as_slice() {
        [source, target] => there(source) && target.starts_with('/'),
        [source, target, "ro"] => there(source) && target.starts_with('/'),
        _ => false,
    }
}

fn volume(value: &str) -> Value {
    let mut parts = value.split(':');
    let (source, destination) = (parts.next(), parts.next());
    json!({ "source": source, "destination": destination, "options": parts.collect::<Vec<_>>(),
        "type": { "virtiofs": {} } })
}

fn pid_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("pid-{name}"))
}

/// Runs the first program; the streams are this process' own.
fn start(dir: &Path, name: &str) -> Answer {
    let Some(made) = found(dir, name) else { return refuse("container not found") };
    let config = &made["configuration"];
    let mounts = config["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let outside = |inside: &str| {
        let mount = mounts.iter().find(|m| m["destination"] == inside);
        mount.and_then(|m| m["source"].as_str()).map(PathBuf::from)
    };
    let process = &config["initProcess"];
    let program = process["executable"].as_str().and_then(outside).ok_or("no such program")?;
    let mut command = Command::new(program);
    command.env_clear();
    for word in process["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        match outside(word) {
            // A socket's address has little room: by its name, from its folder.
            Some(path) => {
                command.current_dir(path.parent().unwrap_or(Path::new("/")));
                command.arg(path.file_name().unwrap_or_default());
            }
            None => {
                command.arg(word);
            }
        }
    }
    let mut child = command.spawn().map_err(odd)?;
    fs::write(pid_file(dir, name), child.id().to_string()).map_err(odd)?;
    let status = child.wait().map_err(odd)?;
    // It may have been deleted meanwhile.
    let _ = fs::remove_file(pid_file(dir, name));
    if made["remove"] == true {
        let _ = fs::remove_file(dir.join("made").join(name));
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(137))
}

fn delete(dir: &Path, name: &str) -> Answer {
    if let Ok(pid) = fs::read_to_string(pid_file(dir, name)) {
        let mut kill = Command::new("kill");
        // One that has just ended needs none.
        let _ = kill.args(["-9", &pid]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = fs::remove_file(pid_file(dir, name));
    }
    match fs::remove_file(dir.join("made").join(name)) {
        Ok(()) => print(name),
        Err(_) => refuse("container not found"),
    }
}
