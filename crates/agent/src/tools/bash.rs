//! `bash`: a command in its own process group, with a time limit and a bounded output.
//!
//! Invariants:
//! 1. When a foreground command ends, for whatever reason, its whole process group is killed
//!    before its leader is reaped, so that the group's id cannot have been given to another.
//! 2. Cancelling kills the group at once.
//! 3. stdout and stderr are one pipe: the order is the order of writing.

use super::output::HeadTail;
use super::{Args, MAX_OUTPUT_BYTES, Outcome, Scene};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Time limit where none is given.
const DEFAULT_TIMEOUT_MS: u64 = 120_000;
/// Longest time limit; what takes longer belongs in the background.
const MAX_TIMEOUT_MS: u64 = 600_000;
/// How often a running command is looked at while it prints nothing.
const POLL: Duration = Duration::from_millis(50);
/// How long output is still read after the command's end: what left its process group may hold
/// the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(300);
/// Background commands running at once.
const MAX_JOBS: usize = 16;

/// Background commands still running, by their process group.
#[derive(Default)]
pub(crate) struct Jobs {
    state: Arc<Mutex<JobState>>,
}

#[derive(Default)]
struct JobState {
    started: u64,
    running: Vec<Pid>,
}

impl Jobs {
    /// Kills every background command; for the agent's end.
    pub(crate) fn kill_all(&self) {
        for group in &self.state.lock().unwrap_or_else(PoisonError::into_inner).running {
            let _ = kill_process_group(*group, Signal::KILL);
        }
    }
}

/// `bash`
pub(super) fn run(scene: &Scene<'_>, args: &Args<'_>) -> Result<Outcome, String> {
    let command = args.text("command")?;
    let timeout = args.number("timeout_ms", DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS)?.max(1);
    if command.contains('\0') {
        return Err("\"command\" holds a NUL character".to_owned());
    }
    if args.flag("background")? {
        return background(scene, command);
    }
    let because = |e: io::Error| format!("the command could not be started: {e}");
    let (reader, writer) = io::pipe().map_err(because)?;
    let twin = writer.try_clone().map_err(because)?;
    let child = spawn(scene, command, writer.into(), twin.into()).map_err(because)?;
    let group = group_of(&child);
    let killer = scene.cancel.on_cancel(move || {
        let _ = kill_process_group(group, Signal::KILL);
    });
    let mut output = HeadTail::new(MAX_OUTPUT_BYTES);
    let deadline = Instant::now() + Duration::from_millis(timeout);
    let ending = watch(scene, group, reader, &mut output, deadline);
    drop(killer);
    reap(child);
    Ok(report(ending, output, timeout))
}

fn group_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Starts the shell. Each writer is gone from this process when the call returns.
fn spawn(scene: &Scene<'_>, command: &str, out: Stdio, err: Stdio) -> io::Result<Child> {
    let shell = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"]
        .into_iter()
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.is_file()))
        .unwrap_or("/bin/sh");
    Command::new(shell)
        .arg("-c")
        .arg(command)
        .current_dir(scene.cwd)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn()
}

fn reap(mut child: Child) {
    let _ = child.wait();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Exited(i32),
    Killed(i32),
    TimedOut,
    Cancelled,
}

/// Reads the output until the command ends, then kills what it left behind. The leader stays
/// unreaped (`WNOWAIT`), which keeps its process group's id its own.
fn watch(
    scene: &Scene<'_>,
    group: Pid,
    reader: PipeReader,
    output: &mut HeadTail,
    deadline: Instant,
) -> Ending {
    let mut pipe = Some(reader);
    let ending = loop {
        if let Some(ending) = ended(group) {
            break ending;
        }
        if scene.cancel.is_cancelled() {
            break Ending::Cancelled;
        }
        let now = Instant::now();
        if now >= deadline {
            break Ending::TimedOut;
        }
        let pause = POLL.min(deadline - now);
        match &mut pipe {
            None => thread::sleep(pause.min(Duration::from_millis(5))),
            Some(open) => {
                if !read_some(open, output, pause) {
                    pipe = None;
                }
            }
        }
    };
    let _ = kill_process_group(group, Signal::KILL);
    let until = Instant::now() + DRAIN;
    while let Some(open) = &mut pipe {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || !read_some(open, output, left) {
            break;
        }
    }
    if scene.cancel.is_cancelled() { Ending::Cancelled } else { ending }
}

/// Waits at most `pause` for output; `false` at its end.
fn read_some(pipe: &mut PipeReader, output: &mut HeadTail, pause: Duration) -> bool {
    let timeout = Timespec::try_from(pause).ok();
    let ready = poll(&mut [PollFd::new(&*pipe, PollFlags::IN)], timeout.as_ref());
    match ready {
        Ok(0) | Err(rustix::io::Errno::INTR) => true,
        Err(_) => false,
        Ok(_) => {
            let mut buffer = [0_u8; 8 << 10];
            match pipe.read(&mut buffer) {
                Ok(0) => false,
                Ok(count) => {
                    output.push(&buffer[..count]);
                    true
                }
                Err(e) => e.kind() == io::ErrorKind::Interrupted,
            }
        }
    }
}

fn ended(leader: Pid) -> Option<Ending> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(leader), options).ok().flatten()?;
    Some(ending_of(&status))
}

fn ending_of(status: &WaitIdStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, signal) => Ending::Killed(signal.unwrap_or(0)),
    }
}

fn report(ending: Ending, output: HeadTail, timeout: u64) -> Outcome {
    let bytes = output.total();
    let mut text = output.text();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    match ending {
        Ending::Exited(0) if text.is_empty() => text.push_str("[no output]\n"),
        Ending::Exited(0) => {}
        Ending::Exited(code) => text.push_str(&format!("[exit code {code}]\n")),
        Ending::Killed(signal) => text.push_str(&format!("[killed by signal {signal}]\n")),
        Ending::TimedOut => text.push_str(&format!(
            "[killed: it ran longer than {timeout} ms; use timeout_ms or background]\n"
        )),
        Ending::Cancelled => text.push_str("[killed: the turn was cancelled]\n"),
    }
    Outcome { ok: ending == Ending::Exited(0), text, bytes }
}

fn background(scene: &Scene<'_>, command: &str) -> Result<Outcome, String> {
    let because = |e: io::Error| format!("the command could not be started: {e}");
    let mut state = scene.jobs.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.running.len() >= MAX_JOBS {
        return Err(format!("{MAX_JOBS} background commands are running; end one with kill first"));
    }
    fs::create_dir_all(scene.logs).map_err(because)?;
    state.started += 1;
    let id = format!("job-{}-{}", std::process::id(), state.started);
    let log = scene.logs.join(format!("{id}.log"));
    let options = || OpenOptions::new().create(true).append(true).open(&log);
    let (out, err, note) =
        (options().map_err(because)?, options().map_err(because)?, options().map_err(because)?);
    let child = spawn(scene, command, out.into(), err.into()).map_err(because)?;
    let group = group_of(&child);
    state.running.push(group);
    let shared = Arc::clone(&scene.jobs.state);
    thread::Builder::new()
        .name(id.clone())
        .stack_size(64 << 10)
        .spawn(move || see_off(child, group, note, &shared))
        .map_err(because)?;
    Ok(Outcome::ok(format!(
        "started {id} as process group {group}; its output goes to {log}, which ends with a line \
         [ended: …] when it is done; stop it with kill -- -{group}\n",
        group = group.as_raw_nonzero(),
        log = log.display()
    )))
}

/// Waits for a background command and notes its end in its log.
fn see_off(mut child: Child, group: Pid, mut log: File, state: &Mutex<JobState>) {
    let _ = waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    // Out of the list before the id can be another's.
    state.lock().unwrap_or_else(PoisonError::into_inner).running.retain(|pid| *pid != group);
    if let Ok(status) = child.wait() {
        let _ = writeln!(log, "[ended: {status}]");
    }
}
