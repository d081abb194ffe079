//! Servers that start something once for each byte they read, and say when it has ended: floors,
//! and this very bench with another size. All are started the same way, so that their figures can
//! stand beside each other.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A server and its two ends.
pub(crate) struct Server(Child, ChildStdin, ChildStdout);

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a server starts");
        let (order, heard) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self(child, order, heard)
    }

    /// From the order to the first byte of the program, which says two; the server one, afterwards.
    pub(crate) fn run(&mut self) -> Duration {
        let mut buffer = [0; 3];
        let begun = Instant::now();
        self.1.write_all(b"g").unwrap();
        self.2.read_exact(&mut buffer[..2]).expect("the program writes: see what the server said");
        let time = begun.elapsed();
        self.2.read_exact(&mut buffer[2..]).unwrap();
        time
    }

    /// What a server answers that takes the time itself: microseconds, eight bytes.
    pub(crate) fn ask(&mut self) -> Duration {
        let mut answer = [0; 8];
        self.1.write_all(b"g").unwrap();
        self.2.read_exact(&mut answer).expect("it answers");
        Duration::from_micros(u64::from_le_bytes(answer))
    }

    pub(crate) fn end(self) {
        let Self(mut child, order, _) = self;
        drop(order);
        child.wait().unwrap();
    }
}

/// The floor in C: compiled once, started with and without an overlay.
pub(crate) struct InC {
    program: PathBuf,
    filter: PathBuf,
    groups: Vec<String>,
}

impl InC {
    /// Compiles it into `dir`; `None`, and why, where that cannot be done. `first` is the first
    /// process of a sandbox: the floor makes groups where that one is.
    pub(crate) fn compile(dir: &Path, first: u32) -> Result<Self, String> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/floor/floor.c");
        let (program, filter) = (dir.join("floor-in-c"), dir.join("filter"));
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-static", "-o"]).arg(&program).arg(source);
        let output = compile.output().map_err(|e| format!("no C compiler `cc`: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        fs::write(&filter, nanoclaw_sandbox::floor::filter()).map_err(|e| e.to_string())?;
        Ok(Self { program, filter, groups: groups(first) })
    }

    /// Starts it; `name` tells its groups from those of another.
    pub(crate) fn serve(&self, own: &Path, scratch: &Path, name: &str, overlay: bool) -> Server {
        fs::create_dir_all(scratch).unwrap();
        let mut command = Command::new(&self.program);
        command.arg(own).arg(scratch).arg(&self.filter).arg(if overlay { "1" } else { "0" });
        let pid = std::process::id();
        command.args(self.groups.iter().map(|g| format!("{g}/floor-{name}-{pid}")));
        Server::start(&mut command)
    }
}

/// `KIND:FOLDER` of the groups in which those of a sandbox stand.
fn groups(first: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(path)) = (parts.next(), parts.next()) else { continue };
        let Some((parent, own)) = path.rsplit_once('/') else { continue };
        if !own.starts_with("nanoclaw-") {
            continue;
        }
        let mut add = |kind: &str, mount: &str| {
            let folder = format!("/sys/fs/cgroup{mount}{parent}");
            if Path::new(&folder).is_dir() {
                found.push(format!("{kind}:{folder}"));
            }
        };
        if kinds.is_empty() {
            add("2", "");
        }
        for (name, kind) in [("memory", "m"), ("cpu", "c"), ("pids", "p")] {
            if kinds.split(',').any(|k| k == name) {
                add(kind, &format!("/{name}"));
            }
        }
    }
    found
}

/// A bundle for `runc run`, which starts the same program in a root that has nothing else.
pub(crate) fn bundle(dir: &Path, own: &Path) -> Result<PathBuf, String> {
    let bundle = dir.join("bundle");
    fs::create_dir_all(bundle.join("rootfs")).map_err(|e| e.to_string())?;
    fs::copy(own, bundle.join("rootfs/program")).map_err(|e| e.to_string())?;
    let spec = Command::new("runc").arg("spec").current_dir(&bundle).output();
    let spec = spec.map_err(|_| "not installed".to_owned())?;
    if !spec.status.success() {
        return Err(String::from_utf8_lossy(&spec.stderr).trim().to_owned());
    }
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|e| e.to_string())?;
    let mut config: serde_json::Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    config["process"]["args"] = serde_json::json!(["/program", "__byte"]);
    config["process"]["terminal"] = false.into();
    // Below what this machine's own limit may be: raising one takes a capability.
    config["process"]["rlimits"] = serde_json::json!([]);
    fs::write(&path, config.to_string()).map_err(|e| e.to_string())?;
    Ok(bundle)
}
