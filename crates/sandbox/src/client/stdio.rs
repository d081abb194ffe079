//! The standard streams of a sandbox.

use std::os::fd::OwnedFd;

/// The three standard streams a program gets; it gets no other descriptor. When stdin is a
/// terminal it becomes the program's controlling terminal: pass the slave of a pty of your own,
/// never the user's terminal itself. In root mode it becomes the session uid's, for else
/// `/dev/stdout` could not be opened inside.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// The other ends of piped streams.
#[derive(Debug)]
pub struct Pipes {
    /// Write here what the program reads.
    pub stdin: std::fs::File,
    /// What it writes to standard output.
    pub stdout: std::fs::File,
    /// What it writes to standard error.
    pub stderr: std::fs::File,
}

impl Stdio {
    /// Nothing to read, output thrown away.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn null() -> std::io::Result<Self> {
        let open = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        Ok(Self { stdin: open()?.into(), stdout: open()?.into(), stderr: open()?.into() })
    }

    /// Three pipes.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn piped() -> std::io::Result<(Self, Pipes)> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let ((in_read, in_write), (out_read, out_write)) = (pipe()?, pipe()?);
        let (err_read, err_write) = pipe()?;
        let pipes =
            Pipes { stdin: in_write.into(), stdout: out_read.into(), stderr: err_read.into() };
        Ok((Self { stdin: in_read, stdout: out_write, stderr: err_write }, pipes))
    }

    /// All three on one terminal: the slave side of a pty.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn terminal(slave: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { stdin: slave.try_clone()?, stdout: slave.try_clone()?, stderr: slave })
    }
}
