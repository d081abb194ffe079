//! A terminal for the binary, and a person before it.

use crate::lab::{BINARY, Lab, Out, WATCHDOG};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long something may take to appear on the screen.
const PATIENCE: Duration = Duration::from_secs(20);

type Screen = Arc<(Mutex<Vec<u8>>, Condvar)>;

/// The binary on a terminal of its own, which is also its controlling terminal.
pub(crate) struct Pty {
    child: Child,
    keys: Option<File>,
    screen: Screen,
    read: usize,
}

impl Pty {
    /// Starts it; `None` (after saying so) where there is no `setsid` to give it the terminal.
    pub(crate) fn start(lab: &Lab, args: &[&str]) -> Option<Self> {
        let setsid = testkit::need("setsid")?;
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let size = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("its size");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let name = name.to_str().expect("a path");
        let slave = || -> Stdio {
            let file = File::options().read(true).write(true).open(name).expect("its other end");
            Stdio::from(OwnedFd::from(file))
        };
        let mut command = Command::new(setsid);
        lab.surround(&mut command);
        command.env("TERM", "xterm").arg("--ctty").arg(BINARY);
        command.arg("--home").arg(lab.home()).args(args);
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn().expect("the binary starts");
        drop(command); // holds our copies of the other end
        let keys = File::from(master);
        let screen = Screen::default();
        let (mut eyes, shown) = (keys.try_clone().expect("a copy"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut piece = [0_u8; 4096];
            // Ends with EIO when the other end has closed.
            while let Ok(n @ 1..) = eyes.read(&mut piece) {
                shown.0.lock().unwrap().extend_from_slice(&piece[..n]);
                shown.1.notify_all();
            }
        });
        Some(Self { child, keys: Some(keys), screen, read: 0 })
    }

    /// Types.
    pub(crate) fn keys(&mut self, keys: &str) {
        self.keys.as_mut().expect("open").write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits for the prompt, types a line, presses Enter.
    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) {
        self.expect("you> ");
        self.keys(text);
        self.keys("\r");
    }

    /// Waits until `what` appears behind what was already read; returns all up to it.
    #[track_caller]
    pub(crate) fn expect(&mut self, what: &str) -> String {
        let begun = Instant::now();
        let mut bytes = self.screen.0.lock().unwrap();
        loop {
            let fresh = &bytes[self.read..];
            if let Some(at) = fresh.windows(what.len()).position(|w| w == what.as_bytes()) {
                let end = at + what.len();
                let text = String::from_utf8_lossy(&fresh[..end]).into_owned();
                self.read += end;
                return text;
            }
            let shown = String::from_utf8_lossy(fresh).into_owned();
            assert!(begun.elapsed() < PATIENCE, "{what:?} does not appear in {shown:?}");
            bytes = self.screen.1.wait_timeout(bytes, Duration::from_millis(100)).unwrap().0;
        }
    }

    /// Everything shown from the start.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.0.lock().unwrap()).into_owned()
    }

    /// The terminal is closed, as when a window is.
    pub(crate) fn hang_up(&mut self) {
        // The reading thread has a copy; the session hears of it from the terminal's foreground
        // group instead, as with a connection that is cut.
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let group = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process_group(group, rustix::process::Signal::HUP).expect("there");
        self.keys = None;
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Out {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(begun.elapsed() < WATCHDOG, "still there: {:?}", self.shown());
            std::thread::sleep(Duration::from_millis(5));
        };
        Out { status, stdout: self.shown(), stderr: String::new(), took: begun.elapsed() }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Most have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
