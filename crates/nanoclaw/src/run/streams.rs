//! Standard streams of `run`: pipes are handed over; files and terminals never are, they are
//! copied through pipes or, with `-t`, through a terminal of the command's own.

use crate::failure::{Context, Failure, Result};
use crate::terminal::{self, Restore};
use crate::ui;
use crate::watch::Watch;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{tcgetwinsize, tcsetwinsize};
use sandbox::Stdio;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What copies between the user's terminal and the sandbox, before the start.
pub(super) enum Streams {
    /// `-t`: the master side of the command's terminal.
    Terminal(File),
    /// The ends to be copied; `None` where the stream was handed over.
    Pipes { stdin: Option<File>, stdout: Option<File>, stderr: Option<File> },
}

/// The copying, under way.
pub(super) struct Attached {
    master: Option<File>,
    outputs: Vec<JoinHandle<()>>,
    _restore: Option<Restore>,
}

impl Streams {
    /// Decides for each stream. With `tty` the user must be at a terminal.
    /// With `own_input` the command's input is a pipe of ours, whatever the user's is.
    pub(super) fn open(tty: bool, own_input: bool) -> Result<(Stdio, Self)> {
        match (tty, own_input) {
            (true, true) => Err(Failure::usage(
                "with -t a terminal would show the secrets that the agent's file hands over",
            )
            .remedy("leave -t out")),
            (true, false) => Self::terminal(),
            (false, own_input) => Self::piped(own_input),
        }
    }

    fn terminal() -> Result<(Stdio, Self)> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Err(Failure::usage("-t needs a terminal on standard input and output")
                .remedy("leave -t out in scripts"));
        }
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).context("a terminal for the command")?;
        grantpt(&master).context("a terminal for the command")?;
        unlockpt(&master).context("a terminal for the command")?;
        let name = ptsname(&master, Vec::new()).context("a terminal for the command")?;
        let open =
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, open, rustix::fs::Mode::empty())
            .context("a terminal for the command")?;
        let master = File::from(master);
        copy_window(&master);
        let stdio = Stdio::terminal(slave).context("a terminal for the command")?;
        Ok((stdio, Self::Terminal(master)))
    }

    fn piped(own_input: bool) -> Result<(Stdio, Self)> {
        let (stdin, ours_in) = if own_input { piece(true)? } else { side(&io::stdin(), true)? };
        let (stdout, ours_out) = side(&io::stdout(), false)?;
        let (stderr, ours_err) = side(&io::stderr(), false)?;
        let streams = Self::Pipes { stdin: ours_in, stdout: ours_out, stderr: ours_err };
        Ok((Stdio { stdin, stdout, stderr }, streams))
    }

    /// Another descriptor of our end of the command's input.
    pub(super) fn input(&mut self) -> Result<OwnedFd> {
        match self {
            Self::Pipes { stdin: Some(pipe), .. } => {
                Ok(pipe.try_clone().context("the command's input")?.into())
            }
            _ => Err(Failure::other("the command's input is not ours")),
        }
    }

    /// Starts copying; `watch` may take typed lines as answers.
    pub(super) fn attach(self, watch: &Arc<Watch>) -> Result<Attached> {
        match self {
            Self::Terminal(master) => {
                let restore = terminal::raw()?;
                let input = master.try_clone().context("the terminal")?;
                let output = master.try_clone().context("the terminal")?;
                std::thread::spawn(move || drop(copy(io::stdin(), input)));
                let shown = move || ui::wrote(copy(output, io::stdout()));
                let outputs = vec![std::thread::spawn(shown)];
                Ok(Attached { master: Some(master), outputs, _restore: Some(restore) })
            }
            Self::Pipes { stdin, stdout, stderr } => {
                if let Some(pipe) = stdin {
                    let watch = Arc::clone(watch);
                    std::thread::spawn(move || copy_typed(&watch, pipe));
                }
                let mut outputs = Vec::new();
                if let Some(pipe) = stdout {
                    let shown = move || ui::wrote(copy(pipe, io::stdout()));
                    outputs.push(std::thread::spawn(shown));
                }
                if let Some(pipe) = stderr {
                    // Nobody could be told that nobody can be told.
                    outputs.push(std::thread::spawn(move || drop(copy(pipe, io::stderr()))));
                }
                Ok(Attached { master: None, outputs, _restore: None })
            }
        }
    }
}

impl Attached {
    /// The command's terminal, for passing on changes of size.
    pub(super) fn master(&self) -> Option<File> {
        self.master.as_ref().and_then(|m| m.try_clone().ok())
    }

    /// Waits until everything the command wrote has been shown.
    pub(super) fn finish(self) {
        for output in self.outputs {
            // A panicked copier has shown what it could.
            drop(output.join());
        }
    }
}

/// What the sandbox gets for one stream, and our end where it must be copied. Only a pipe is
/// handed over: with an open file the sandbox would have the file, all of it, to rewrite what
/// stood there before or to read what was already consumed; with a terminal, the terminal.
fn side(own: &impl AsFd, input: bool) -> Result<(OwnedFd, Option<File>)> {
    let kind = rustix::fs::fstat(own).context("a standard stream")?.st_mode;
    if rustix::fs::FileType::from_raw_mode(kind) == rustix::fs::FileType::Fifo {
        let given = own.as_fd().try_clone_to_owned().context("a standard stream")?;
        return Ok((given, None));
    }
    piece(input)
}

/// A pipe: the sandbox's end, and ours.
fn piece(input: bool) -> Result<(OwnedFd, Option<File>)> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let (read, write) = rustix::pipe::pipe_with(flags).context("a pipe")?;
    Ok(if input { (read, Some(write.into())) } else { (write, Some(read.into())) })
}

/// Copies until either side ends. A terminal whose other side is closed reads as an error (EIO).
/// The error is that of writing.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut piece = [0_u8; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        to.write_all(&piece[..n])?;
        to.flush()?;
    }
    Ok(())
}

/// As [`copy`], from standard input; what answers a question is not the command's.
fn copy_typed(watch: &Watch, mut to: File) {
    let mut piece = [0_u8; 16 << 10];
    while let Ok(n @ 1..) = io::stdin().read(&mut piece) {
        if !watch.divert(&piece[..n]) && to.write_all(&piece[..n]).is_err() {
            return;
        }
    }
}

/// Gives the command's terminal the size of the user's.
pub(super) fn copy_window(master: &File) {
    if let Ok(size) = tcgetwinsize(io::stdout()) {
        // A size that cannot be set is a cosmetic matter.
        let _ = tcsetwinsize(master, size);
    }
}
