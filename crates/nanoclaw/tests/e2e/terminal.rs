//! `run -t`: a terminal for the command, under a terminal of the test's.

use crate::lab::{Lab, Ran, TICK, WATCHDOG, wait_until};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

both!(
    the_command_has_a_terminal_of_the_users_size,
    a_change_of_size_reaches_the_command,
    control_c_reaches_the_command_as_a_key,
    the_terminal_is_put_back_as_it_was,
    without_t_a_terminal_is_copied_not_handed_over,
    a_signal_at_a_hidden_question_gives_the_echo_back,
);

/// How long what a program wrote at its end may take to the reader's thread.
const AFTER_ITS_END: Duration = Duration::from_secs(5);

/// A terminal with a program in it.
pub(crate) struct Desk {
    master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
    begun: Instant,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Desk {
    pub(crate) fn start(mut command: Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave: OwnedFd =
            File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap().into();
        tcsetwinsize(&master, size(33, 77)).unwrap();
        let end = || slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm");
        let child = command.spawn().unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (File::from(master.try_clone().unwrap()), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut piece = [0; 4_096];
            // Ends with an error (EIO) when the last slave is closed.
            while let Ok(n @ 1..) = from.read(&mut piece) {
                to.lock().unwrap().extend_from_slice(&piece[..n]);
            }
        });
        Self { master: master.into(), slave, shown, child, begun: Instant::now() }
    }

    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).replace("\r\n", "\n")
    }

    pub(crate) fn wait_for(&mut self, text: &str) {
        while !self.shown().contains(text) {
            let late = self.begun.elapsed() > WATCHDOG;
            // What it wrote last is shown a moment after it has ended.
            let ended = self.child.try_wait().unwrap();
            if late || ended.is_some() {
                std::thread::sleep(AFTER_ITS_END);
                let shown = self.shown();
                assert!(shown.contains(text), "{text:?} is not in {shown:?}, {ended:?}");
            }
            std::thread::sleep(TICK);
        }
    }

    pub(crate) fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// What Ctrl-C is to a program whose terminal this is.
    pub(crate) fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    pub(crate) fn wait(mut self) -> (Ran, OwnedFd) {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.begun.elapsed() > WATCHDOG {
                drop(self.child.kill());
                panic!("did not end within {WATCHDOG:?}: {:?}", self.shown());
            }
            std::thread::sleep(TICK);
        };
        let ran = Ran { status, stdout: self.shown().into_bytes(), stderr: Vec::new() };
        (ran, self.slave.try_clone().unwrap())
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // After `wait` there is nothing left to kill; then these do nothing.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn the_command_has_a_terminal_of_the_users_size(lab: &Lab) {
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM; \
                  echo by its name > /dev/tty; exit 5";
    let mut desk = Desk::start(lab.nanoclaw(["run", "-t", "--", "sh", "-c", script]));
    desk.wait_for("by its name");
    let (ran, _) = desk.wait();
    assert_eq!(ran.out(), "33 77\nxterm\nby its name\n", "{ran}");
    assert_eq!(ran.code(), 5, "{ran}");
}

fn a_change_of_size_reaches_the_command(lab: &Lab) {
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done";
    let mut desk = Desk::start(lab.nanoclaw(["run", "-t", "--", "sh", "-c", script]));
    desk.wait_for("ready");
    tcsetwinsize(&desk.master, size(44, 155)).unwrap();
    // The terminal is not the test program's own, so nobody is signalled by the kernel.
    let pid = rustix::process::Pid::from_child(&desk.child);
    rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    desk.wait_for("44 155");
    let (ran, _) = desk.wait();
    assert_eq!(ran.code(), 0, "{ran}");
}

fn control_c_reaches_the_command_as_a_key(lab: &Lab) {
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.02; done";
    let mut desk = Desk::start(lab.nanoclaw(["run", "-t", "--", "sh", "-c", script]));
    desk.wait_for("ready");
    desk.type_in("\x03");
    desk.wait_for("interrupted");
    let (ran, _) = desk.wait();
    assert_eq!(ran.code(), 9, "{ran}");
}

fn the_terminal_is_put_back_as_it_was(lab: &Lab) {
    let script = "echo ready; read line; echo \"got $line\"";
    let mut desk = Desk::start(lab.nanoclaw(["run", "-t", "--", "sh", "-c", script]));
    let before = |desk: &Desk| format!("{:?}", tcgetattr(&desk.slave).unwrap().local_modes);
    desk.wait_for("ready");
    let during = before(&desk);
    desk.type_in("hello\r");
    desk.wait_for("got hello");
    let (ran, slave) = desk.wait();
    assert_eq!(ran.code(), 0, "{ran}");
    let after = format!("{:?}", tcgetattr(&slave).unwrap().local_modes);
    assert!(!during.contains("ICANON") && after.contains("ICANON"), "{during} then {after}");
    assert!(!during.contains("ECHO ") && after.contains("ECHO"), "{during} then {after}");
}

fn without_t_a_terminal_is_copied_not_handed_over(lab: &Lab) {
    // A program that has the user's terminal could type into it (TIOCSTI) after it is gone.
    let script = "for n in 0 1 2; do test -t $n && echo terminal $n; done; read x; echo \"got $x\"";
    let mut desk = Desk::start(lab.nanoclaw(["run", "--", "sh", "-c", script]));
    desk.type_in("hello\r");
    desk.wait_for("got hello");
    let (ran, _) = desk.wait();
    assert!(!ran.out().contains("terminal"), "{ran}");
    assert_eq!(ran.code(), 0, "{ran}");
}

fn a_signal_at_a_hidden_question_gives_the_echo_back(lab: &Lab) {
    use rustix::process::Signal;
    let echo = |slave: &OwnedFd| tcgetattr(slave).unwrap().local_modes.contains(LocalModes::ECHO);
    let set: &[&str] = &["secret", "set", "x", "--host", "a.example"];
    let login: &[&str] = &["login", "claude", "--accept-terms"];
    for (args, signal, code) in
        [(set, Signal::INT, 130), (set, Signal::TERM, 143), (login, Signal::INT, 130)]
    {
        let mut desk = Desk::start(lab.nanoclaw(args));
        desk.wait_for("(not shown)");
        wait_until("nothing typed is shown", || !echo(&desk.slave));
        rustix::process::kill_process(rustix::process::Pid::from_child(&desk.child), signal)
            .unwrap();
        let (ran, slave) = desk.wait();
        assert!(echo(&slave), "{args:?}: {ran}");
        assert_eq!(ran.code(), code, "{args:?}: {ran}");
    }
}
