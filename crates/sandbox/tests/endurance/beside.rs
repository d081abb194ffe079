//! Another session beside the one under test: it shows what of it could have been changed.

use crate::lab::Lab;
use nanoclaw_sandbox::{Pipes, Sandbox, Stdio};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The last line of what it says.
const END: &str = "end of state\n";
/// Longest wait for it to say something.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most that it says at once, bytes.
const SAID_MAX: usize = 1 << 20;
/// Shows everything of this session that outlives a moment, whenever it is asked.
const SCRIPT: &str = "
umask 077
for place in /workspace /tmp /home/agent /dev/shm; do echo note > $place/note; done
state() {
  id; uname -n; umask; ulimit -a
  ls -lAnR --full-time /workspace /tmp /home/agent /dev/shm /var/tmp
  cat /workspace/note /tmp/note /home/agent/note /dev/shm/note
  cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg
  cat /proc/self/mountinfo /proc/net/fib_trie /etc/hostname
  grep -E '^(SigPnd|SigIgn|ShdPnd|Cap|Seccomp|NoNew|Cpus_allowed_list|Uid|Gid)' /proc/$$/status
  echo 'end of state'
}
while read -r _; do state; done
";

/// A session that goes on while something else happens.
pub(crate) struct Beside {
    pub(crate) sandbox: Sandbox,
    /// Where its workspace lies on the host.
    pub(crate) workspace: PathBuf,
    pipes: Pipes,
}

impl Beside {
    pub(crate) fn start(lab: &Lab) -> Self {
        let spec = lab.sh(SCRIPT);
        let model::Workspace::Session(workspace) = &spec.workspace else { unreachable!() };
        let workspace = workspace.clone();
        let (stdio, pipes) = Stdio::piped().unwrap();
        let sandbox = lab.spawner.prepare(&spec, stdio).unwrap().start().unwrap();
        Self { sandbox, workspace, pipes }
    }

    /// What it shows of itself; what is not a whole answer is one as well, and another one.
    pub(crate) fn state(&mut self) -> String {
        if self.pipes.stdin.write_all(b"state\n").is_err() {
            return "it is gone".into();
        }
        let (mut said, mut piece) = (Vec::new(), [0; 4096]);
        let end = Instant::now() + PATIENCE;
        while said.len() < SAID_MAX && !said.ends_with(END.as_bytes()) {
            let left = end.saturating_duration_since(Instant::now());
            match readable(&self.pipes.stdout, left).then(|| self.pipes.stdout.read(&mut piece)) {
                Some(Ok(count @ 1..)) => said.extend_from_slice(&piece[..count]),
                _ => break,
            }
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// Whether something can be read, or the end has come, before the time is over.
fn readable(from: &std::fs::File, limit: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let time = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&time)).is_ok_and(|count| count > 0)
}
