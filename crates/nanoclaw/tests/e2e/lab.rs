//! An installation to try things in: a home, a person's folder, the binary, a clean environment.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use testkit::TempDir;

/// Longest life of a program started by a test: a hundred times what they take.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// How often a waiting test looks again.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// How long the recorder of a home may take to leave after its last client.
const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// Where programs of the machine are.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The ordinary user, made when it is not there.
const USER: &str = "nanoclaw-test";

/// Used where no user can be made: an id that nothing on the machine has.
const USER_ID_WITHOUT_NAME: u32 = 60_606;

/// Makes two tests of each function that takes a `&Lab`: one as whoever runs the tests, one as an
/// ordinary user.
macro_rules! both {
    ($($test:ident),* $(,)?) => {
        $(mod $test {
            #[test]
            fn as_myself() {
                super::$test(&$crate::lab::Lab::mine(stringify!($test)));
            }

            #[test]
            fn as_plain_user() {
                if let Some(lab) = $crate::lab::Lab::plain(stringify!($test)) {
                    super::$test(&lab);
                }
            }
        })*
    };
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One installation, removed when dropped.
pub(crate) struct Lab {
    dir: TempDir,
    user: Option<(u32, u32)>,
}

impl Lab {
    /// As whoever runs the tests.
    pub(crate) fn mine(name: &str) -> Self {
        Self::new(name, None)
    }

    /// As an ordinary user. `None` where the tests do not run as root: then [`Lab::mine`] is one.
    pub(crate) fn plain(name: &str) -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED {name}: not root, so as_myself is the ordinary user already");
            return None;
        }
        testkit::need("setpriv")?;
        Some(Self::new(name, Some(ordinary_user())))
    }

    fn new(name: &str, user: Option<(u32, u32)>) -> Self {
        // Sockets below the home have short paths only.
        let short: String = name.chars().take(8).collect();
        let lab = Self { dir: TempDir::new(&short).unwrap(), user };
        fs::set_permissions(lab.dir.path(), Permissions::from_mode(0o755)).unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_nanoclaw"));
        if fs::hard_link(binary, lab.binary()).is_err() {
            fs::copy(binary, lab.binary()).unwrap();
        }
        lab.folder(&lab.person());
        lab.folder(&lab.home());
        for own in [lab.person(), lab.home()] {
            fs::set_permissions(own, Permissions::from_mode(0o700)).unwrap();
        }
        lab
    }

    /// Whether NanoClaw runs as root here.
    pub(crate) fn is_root(&self) -> bool {
        is_root() && self.user.is_none()
    }

    /// "root" or "user", for names of snapshots.
    pub(crate) fn mode(&self) -> &'static str {
        if self.is_root() { "root" } else { "user" }
    }

    /// Uid and gid that NanoClaw runs with.
    pub(crate) fn ids(&self) -> (u32, u32) {
        let own = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        self.user.unwrap_or_else(own)
    }

    /// The binary, where everybody may run it.
    pub(crate) fn binary(&self) -> PathBuf {
        self.dir.join("nanoclaw")
    }

    /// `$HOME`.
    pub(crate) fn person(&self) -> PathBuf {
        self.dir.join("p")
    }

    /// `$NANOCLAW_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join("h")
    }

    /// Makes a folder that belongs to the user.
    pub(crate) fn folder(&self, path: &Path) -> PathBuf {
        fs::create_dir_all(path).unwrap();
        self.own(path);
        path.to_owned()
    }

    /// Makes a file that belongs to the user.
    pub(crate) fn file(&self, path: &Path, text: &str) -> PathBuf {
        self.folder(path.parent().unwrap());
        fs::write(path, text).unwrap();
        self.own(path);
        path.to_owned()
    }

    /// Gives a file or folder to the user.
    pub(crate) fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.user {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        }
    }

    /// `program`, as the user, in the person's folder, with nothing in its environment but the
    /// search path, `HOME` and `NANOCLAW_HOME`.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some((uid, gid)) => {
                let mut wrapped = Command::new("setpriv");
                wrapped.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
                wrapped.args(["--clear-groups", "--"]).arg(program);
                wrapped
            }
        };
        command.env_clear().env("PATH", SEARCH_PATH).env("HOME", self.person());
        command.env("NANOCLAW_HOME", self.home()).current_dir(self.person());
        command
    }

    /// `nanoclaw ARGS…`, not started yet.
    pub(crate) fn nanoclaw<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = self.command(self.binary());
        command.args(args);
        command
    }

    /// Runs `nanoclaw ARGS…` to its end, without input.
    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Ran {
        finish(self.nanoclaw(args), b"")
    }

    /// Runs `nanoclaw run -- ARGS…` to its end, without input.
    pub(crate) fn inside<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, argv: I) -> Ran {
        let mut command = self.nanoclaw(["run", "--"]);
        command.args(argv);
        finish(command, b"")
    }

    /// Runs `nanoclaw run FLAGS… -- sh -c SCRIPT` to its end, without input.
    pub(crate) fn sh(&self, flags: &[&str], script: &str) -> Ran {
        let mut command = self.nanoclaw(["run"]);
        command.args(flags).args(["--", "sh", "-c", script]);
        finish(command, b"")
    }

    /// `audit show --all` must succeed; its text.
    pub(crate) fn story(&self) -> String {
        self.run(["audit", "show", "--all"]).ok()
    }
}

impl Drop for Lab {
    /// A recorder that is just leaving would put files into a folder that is being removed.
    fn drop(&mut self) {
        let home = self.home().display().to_string();
        let deadline = Instant::now() + LEAVE_GRACE;
        while !processes_with(&home).is_empty() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
    }
}

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ran {
    /// Exit code; a signal is no exit.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self}"))
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Must have succeeded; its standard output.
    pub(crate) fn ok(&self) -> String {
        assert!(self.status.success(), "{self}");
        self.out()
    }

    /// Must have ended with this code; its standard error.
    pub(crate) fn failed(&self, code: i32) -> String {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self.err()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.out(), self.err())
    }
}

/// A started program, its streams being read; killed when it outlives the watchdog or is dropped.
pub(crate) struct Running {
    child: Child,
    begun: Instant,
    stdout: Option<Drain>,
    stderr: Option<Drain>,
}

/// A stream being read.
struct Drain {
    read: Arc<Mutex<Vec<u8>>>,
    thread: thread::JoinHandle<()>,
}

/// Starts a program; its standard input is `/dev/null` unless the command says otherwise.
pub(crate) fn start(mut command: Command) -> Running {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    Running { child, begun: Instant::now(), stdout, stderr }
}

fn drain(mut stream: impl Read + Send + 'static) -> Drain {
    let read = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&read);
    let thread = thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        // What could be read is what is judged.
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..n]);
        }
    });
    Drain { read, thread }
}

impl Drain {
    fn so_far(&self) -> Vec<u8> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Running {
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ran {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.begun.elapsed() > WATCHDOG {
                drop(self.child.kill());
                panic!("did not end within {WATCHDOG:?}");
            }
            thread::sleep(TICK);
        };
        let read = |drain: Option<Drain>| {
            let drain = drain.unwrap();
            wait_until("the streams are closed", || drain.thread.is_finished());
            drain.so_far()
        };
        Ran { status, stdout: read(self.stdout.take()), stderr: read(self.stderr.take()) }
    }

    /// Standard output so far.
    pub(crate) fn output(&self) -> String {
        let so_far = self.stdout.as_ref().map(Drain::so_far).unwrap_or_default();
        String::from_utf8_lossy(&so_far).into_owned()
    }

    /// Waits until standard output has this text in it.
    pub(crate) fn wait_for_output(&self, text: &str) {
        let has = |drain: &Drain| String::from_utf8_lossy(&drain.so_far()).contains(text);
        wait_until(text, || self.stdout.as_ref().is_some_and(has));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `wait` there is nothing left to kill; then these do nothing.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs to the end with `input` on standard input.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ran {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let mut running = start(command);
    let feeder = running.child.stdin.take().map(|mut stdin| {
        let input = input.to_owned();
        // A program that does not read its input closes the pipe.
        thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let ran = running.wait();
    if let Some(feeder) = feeder {
        feeder.join().unwrap();
    }
    ran
}

/// Looks again and again until it is so; fails the test when it is not in time.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {WATCHDOG:?} in vain until {what}");
        thread::sleep(TICK);
    }
}

/// Uid and gid of the ordinary user.
fn ordinary_user() -> (u32, u32) {
    static USER_IDS: OnceLock<(u32, u32)> = OnceLock::new();
    *USER_IDS.get_or_init(|| {
        // Fails when it is there already; what counts is what /etc/passwd says afterwards.
        let useradd = Command::new("useradd")
            .args(["--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh", USER])
            .output();
        drop(useradd);
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|l| l.starts_with(&format!("{USER}:")));
        let id = |n: usize| line.and_then(|l| l.split(':').nth(n)).and_then(|v| v.parse().ok());
        id(2).zip(id(3)).unwrap_or((USER_ID_WITHOUT_NAME, USER_ID_WITHOUT_NAME))
    })
}

/// Processes on this machine that have `marker` in their arguments.
pub(crate) fn processes_with(marker: &str) -> Vec<i32> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let marked = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(marker)
    };
    numbers.filter(marked).collect()
}

/// Every file below `dir`, in order.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut to_do = vec![dir.to_owned()];
    while let Some(dir) = to_do.pop() {
        // A folder of a session that is just ending may go away meanwhile.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type().unwrap() {
                t if t.is_dir() => to_do.push(entry.path()),
                t if t.is_file() => all.push(entry.path()),
                _ => {}
            }
        }
    }
    all.sort();
    all
}

/// Compares with `tests/snapshots/NAME.txt`; with `NANOCLAW_BLESS=1` in the environment writes it.
pub(crate) fn snapshot(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    let path = path.with_extension("txt");
    if std::env::var_os("NANOCLAW_BLESS").is_some() {
        // Several tests may write at once; each writes its own file.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
        return;
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        known == found,
        "{} differs; look at it, then NANOCLAW_BLESS=1 takes it over\n--- known\n{known}\n\
         --- found\n{found}",
        path.display()
    );
}
