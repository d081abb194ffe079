//! One installation in a folder of its own, and the binary to use it with.

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use testkit::{FakeModel, Options, TempDir};

/// No command in these tests may take longer.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);
/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_nanoclaw");
/// What stands in the vault where a provider's key would.
pub(crate) const KEY: &str = "test-key-not-real";

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Out {
    /// The exit code; 128 + N for signal N, as shells count.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails with everything that was printed unless the exit code is this one.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self:#?}");
        self
    }

    /// Standard output as JSON lines, each of which must be valid.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).expect("every line is JSON");
        self.stdout.lines().map(parse).collect()
    }
}

/// A running command, killed when dropped.
pub(crate) struct Running {
    child: Child,
    pipes: [Receiver<String>; 2],
    begun: Instant,
}

impl Running {
    pub(crate) fn start(mut command: Command, input: &[u8]) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input).expect("standard input is read");
        drop(stdin);
        let out = drained(child.stdout.take().expect("piped"));
        let err = drained(child.stderr.take().expect("piped"));
        Self { child, pipes: [out, err], begun: Instant::now() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), signal).expect("it is still there");
    }

    /// Waits for the end of the process and of its output.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Out {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            if self.begun.elapsed() > WATCHDOG {
                self.child.kill().expect("our child");
                let [out, err] = &self.pipes;
                let said = |pipe: &Receiver<String>| pipe.recv_timeout(Duration::from_secs(2));
                panic!("still running after {WATCHDOG:?}: {:?} {:?}", said(out), said(err));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = self.begun.elapsed();
        // A process left behind that holds the pipes would keep them open for ever.
        let text = |pipe: &Receiver<String>| {
            pipe.recv_timeout(Duration::from_secs(5)).expect("nobody holds the output open")
        };
        Out { status, stdout: text(&self.pipes[0]), stderr: text(&self.pipes[1]), took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn drained(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (done, text) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        drop(done.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    text
}

/// One installation, removed when dropped.
pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new("talk").expect("a temporary folder");
        let lab = Self { dir };
        for folder in ["h", "h/agents", "u"] {
            let path = lab.dir.join(folder);
            std::fs::DirBuilder::new().mode(0o700).create(path).expect("a folder");
        }
        lab
    }

    /// With a model of that wire format at a server, and the key in the vault.
    pub(crate) fn with_model(api: &str, server: &FakeModel) -> Self {
        let lab = Self::new();
        lab.model(api, &server.base_url());
        lab
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join("h")
    }

    pub(crate) fn path(&self, leaf: &str) -> PathBuf {
        self.dir.join(leaf)
    }

    /// The folder, by which processes of this installation are told from others.
    pub(crate) fn mark(&self) -> String {
        self.dir.path().display().to_string()
    }

    pub(crate) fn config(&self, models: &str) {
        let path = self.home().join("nanoclaw.toml");
        std::fs::write(path, format!("schema = 1\n\n{models}")).expect("written");
    }

    pub(crate) fn agent(&self, name: &str, text: &str) {
        let path = self.home().join(format!("agents/{name}.toml"));
        std::fs::write(path, text).expect("written");
    }

    pub(crate) fn model(&self, api: &str, base_url: &str) {
        self.config(&format!(
            "[models.local]\napi = \"{api}\"\nbase_url = \"{base_url}\"\nmodel = \"fake-model\"\n\
             secret = \"local\"\n"
        ));
        let set = ["secret", "set", "local", "--host", "127.0.0.1"];
        Running::start(self.command(&set), KEY.as_bytes()).wait().expect(0);
    }

    /// A scripted model; returns the script's path.
    pub(crate) fn script(&self, text: &str) -> PathBuf {
        let path = self.home().join("tour.toml");
        std::fs::write(&path, text).expect("written");
        let shown = Value::String(path.display().to_string());
        self.config(&format!("[models.tour]\napi = \"script\"\nscript = {shown}\n"));
        path
    }

    /// The binary with an environment made from empty.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(BINARY), args)
    }

    pub(crate) fn command_of(&self, binary: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(binary);
        self.surround(&mut command);
        command.arg("--home").arg(self.home()).args(args);
        command
    }

    /// The same surroundings for a helper that starts the binary.
    pub(crate) fn surround(&self, command: &mut Command) {
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("HOME", self.dir.join("u")).env("LANG", "C.UTF-8");
        command.current_dir(self.dir.join("u"));
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Out {
        Running::start(self.command(args), b"").wait()
    }

    /// `chat -m TEXT`.
    #[track_caller]
    pub(crate) fn say(&self, text: &str) -> Out {
        self.run(&["chat", "-m", text])
    }

    /// `chat --json -m TEXT`, done: the events.
    #[track_caller]
    pub(crate) fn say_json(&self, text: &str) -> Vec<Value> {
        self.run(&["chat", "--json", "-m", text]).expect(0).events()
    }

    /// The whole log: index and what happened.
    #[track_caller]
    pub(crate) fn log(&self) -> Vec<Value> {
        let out = self.run(&["audit", "show", "--all", "--json"]).expect(0);
        out.events().into_iter().map(|mut entry| entry["unmapped"].take()).collect()
    }

    #[track_caller]
    pub(crate) fn records(&self, kind: &str) -> Vec<Value> {
        self.log().into_iter().filter(|body| body["kind"] == kind).collect()
    }

    /// The log as a stranger sees it.
    #[track_caller]
    pub(crate) fn verify(&self) {
        let out = self.run(&["audit", "verify", "--json"]).expect(0);
        assert_eq!(out.events()[0]["verified"], true, "{out:#?}");
    }

    /// The workspaces of all sessions, oldest first.
    pub(crate) fn workspaces(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home().join("sessions")).expect("sessions");
        let mut all: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).collect();
        all.sort();
        all.into_iter().map(|path| path.join("workspace")).collect()
    }

    /// Asserts that no process of this installation is left, the recorder included.
    #[track_caller]
    pub(crate) fn assert_nobody_left(&self) {
        // A gateway whose starter was killed before it connected waits some seconds for another.
        let left = wait_gone(&self.mark(), Duration::from_secs(20));
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The recorder goes on writing for a moment after its last client; then the folder goes.
        drop(wait_gone(&self.mark(), Duration::from_secs(3)));
    }
}

/// Waits until no living process has the mark in its arguments or environment; returns who has.
pub(crate) fn wait_gone(mark: &str, patience: Duration) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let left = marked(mark);
        if left.is_empty() || begun.elapsed() > patience {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Living processes with the mark in their arguments or environment. The dead that wait to be
/// reaped have neither.
pub(crate) fn marked(mark: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let holds = |path: String| {
        let bytes = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        text.contains(mark).then_some(text)
    };
    pids.filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            let text = holds(format!("/proc/{pid}/cmdline"))
                .or_else(|| holds(format!("/proc/{pid}/environ")))?;
            Some(format!("{pid}: {text}"))
        })
        .collect()
}

/// How many living processes are exactly `sleep SECONDS`, wherever they run.
pub(crate) fn sleepers(seconds: &str) -> usize {
    let argv = format!("sleep\0{seconds}\0");
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let cmdline = |e: std::fs::DirEntry| std::fs::read(e.path().join("cmdline")).ok();
    entries.filter_map(cmdline).filter(|text| *text == argv.as_bytes()).count()
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, patience: Duration, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A model server.
pub(crate) fn server(options: Options) -> FakeModel {
    FakeModel::start(options).expect("a server on loopback")
}

/// One that asks for the key.
pub(crate) fn keyed() -> Options {
    Options { require_key: Some(KEY.into()), ..Options::default() }
}

/// What was posted to a model, as JSON.
pub(crate) fn asked(server: &FakeModel) -> Vec<Value> {
    let posts = server.requests().into_iter().filter(|seen| seen.method == "POST");
    posts.map(|seen| serde_json::from_str(&seen.body).expect("JSON")).collect()
}

/// A port on which nobody listens just now, and that no server of another test is given: they get
/// theirs from the kernel, which takes them from 32768 on (`ip_local_port_range`).
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 10_000).expect("small");
    loop {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A copy of the binary where every user can run it, beside a home that belongs to `uid`.
pub(crate) fn copy_for(lab: &Lab, uid: u32) -> PathBuf {
    let binary = lab.path("nanoclaw");
    std::fs::copy(BINARY, &binary).expect("copied");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).expect("mode");
    for folder in ["", "h", "h/agents", "u"] {
        std::os::unix::fs::chown(lab.path(folder), Some(uid), Some(uid)).expect("chown");
    }
    binary
}
