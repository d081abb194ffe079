//! A container engine of Debian's packages with a data folder of its own: nothing of the engine
//! that a machine may have, and nothing of its network, is touched. It needs root.
//!
//! Standard library only: `xtask` includes this very file.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Engines as agent files name them, each with the program that is started.
pub const ENGINES: [(&str, &str); 2] = [("docker", "dockerd"), ("podman", "podman")];
/// Until it listens: dockerd takes a second, and many on a busy machine.
const START_TIME: Duration = Duration::from_secs(60);
/// Until it has ended after it was asked to.
const END_TIME: Duration = Duration::from_secs(20);
/// Between two looks.
const TICK: Duration = Duration::from_millis(50);

/// An engine of our own, ended and removed when dropped.
#[derive(Debug)]
pub struct EngineDaemon {
    child: Child,
    dir: PathBuf,
}

impl EngineDaemon {
    /// Where its program is, also if it is not on `PATH`.
    #[must_use]
    pub fn find(program: &str) -> Option<PathBuf> {
        let folders = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        folders.iter().map(|f| Path::new(f).join(program)).find(|p| p.is_file())
    }

    /// The socket of the one of that name that this process has started.
    #[must_use]
    pub fn socket(name: &str) -> PathBuf {
        folder(name).join("engine.sock")
    }

    /// Starts one, once a name and process; the kernel ends it with the thread that started it.
    ///
    /// # Errors
    /// When it cannot be started or does not listen in time, with what it logged.
    pub fn start(name: &str, program: &Path) -> io::Result<Self> {
        let dir = folder(name);
        fs::create_dir_all(&dir)?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = command(name, program, &dir);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut this = Self { child: command.spawn()?, dir };
        let until = Instant::now() + START_TIME;
        while UnixStream::connect(Self::socket(name)).is_err() {
            let ended = this.child.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                let log = fs::read_to_string(this.dir.join("log")).unwrap_or_default();
                let why = format!("{name} did not start ({ended:?}):\n{log}");
                return Err(io::Error::other(why));
            }
            std::thread::sleep(TICK);
        }
        Ok(this)
    }
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nc-{name}-{}", std::process::id()))
}

fn command(name: &str, program: &Path, dir: &Path) -> Command {
    let at = |leaf: &str| dir.join(leaf).display().to_string();
    let socket = format!("unix://{}", EngineDaemon::socket(name).display());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]);
    if name == "docker" {
        command.arg(program).args(["--data-root", &at("data"), "--exec-root", &at("exec")]);
        command.args(["--pidfile", &at("pid"), "--host", &socket, "--bridge=none"]);
        // Nothing of this machine's own network is touched.
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    } else {
        // Its runtime wants no control group of v2 that has controllers beside those of v1.
        let script = "mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified; \
                      exec \"$@\"";
        command.args(["unshare", "--mount", "sh", "-c", script, "sh"]).arg(program);
        command.args(["--root", &at("data"), "--runroot", &at("run"), "--tmpdir", &at("tmp")]);
        command.args(["system", "service", "--time=0", &socket]);
    }
    command
}

impl Drop for EngineDaemon {
    fn drop(&mut self) {
        // It may have ended already.
        drop(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status());
        let until = Instant::now() + END_TIME;
        while self.child.try_wait().is_ok_and(|s| s.is_none()) && Instant::now() < until {
            std::thread::sleep(TICK);
        }
        drop(self.child.kill());
        drop(self.child.wait());
        self.clear();
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl EngineDaemon {
    /// An engine that was killed leaves its containers' keepers and mounts behind: all that have
    /// this one's own folder in their name.
    fn clear(&self) {
        let own = format!("{}/", self.dir.display());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = command.split('\0');
            // Tests that are told of the engine's socket have its folder in their words too.
            let keeper = words.next().is_some_and(|w| w.contains("containerd-shim"));
            if keeper && words.any(|word| word.starts_with(&own)) {
                drop(Command::new("kill").args(["-KILL", &pid]).status());
            }
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        let places: Vec<&str> = places.filter(|place| place.starts_with(&own)).collect();
        // The last was mounted on what came before.
        for place in places.iter().rev() {
            drop(Command::new("umount").args(["--lazy", place]).status());
        }
    }
}
