//! The native backend, as a battery sees it.

use super::{Backend, Boxed, Count, Running};
use crate::walls::Wall;
use model::SandboxSpec;
use sandbox::{
    Ended, Mode, Owner, Prepared, Report, Sandbox, Spawner, SpawnerOptions, StartError, Stdio,
};
use std::path::PathBuf;
use std::time::Duration;

/// Sandboxes of the native backend.
#[derive(Debug)]
pub struct Native {
    spawner: Spawner,
    private: Vec<PathBuf>,
}

impl Native {
    /// Starts a spawner of its own. `private` are the folders that no grant may show.
    ///
    /// # Errors
    /// When no spawner can be started.
    pub fn launch(private: Vec<PathBuf>) -> Result<Self, StartError> {
        let options = SpawnerOptions { private: private.clone(), ..SpawnerOptions::default() };
        // Without sandboxes made ahead: what stands can be counted.
        Ok(Self { spawner: Spawner::launch_without_spares(options)?, private })
    }

    /// What enforces a wall here, in words.
    #[must_use]
    pub const fn enforces(wall: Wall) -> &'static str {
        match wall {
            Wall::Namespaces => "seven namespaces of its own, seccomp",
            Wall::Mounts => "private root by pivot_root, read-only binds, seccomp",
            Wall::Files => "private root, masked /proc, Landlock, seccomp",
            Wall::SystemCalls => "seccomp allow-list",
            Wall::Sockets => "network namespace with loopback only, seccomp",
            Wall::Privileges => "empty capability sets, no_new_privs, one mapped uid",
            Wall::Inheritance => "close_range, environment from empty, setsid",
            Wall::Init => "hidepid, not dumpable, seccomp, PID namespace",
            Wall::Limits => "cgroups where there are any, rlimits, tmpfs sizes",
            Wall::Sessions => "namespaces and a root of each one's own",
            Wall::Lifecycle => "PID namespace, parent-death signal, cgroup removal",
        }
    }
}

impl Backend for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn makes(&self) -> model::Backend {
        model::Backend::Native
    }

    fn mode(&self) -> Mode {
        self.spawner.facts().mode
    }

    fn enforced_by(&self, wall: Wall) -> &'static str {
        Self::enforces(wall)
    }

    fn prepare(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Boxed>, StartError> {
        Ok(Box::new(self.spawner.prepare(spec, stdio)?))
    }

    fn settle(&self, _: &SandboxSpec) -> Result<(), StartError> {
        Ok(())
    }

    fn another(&self) -> Result<Box<dyn Backend>, StartError> {
        Ok(Box::new(Self::launch(self.private.clone())?))
    }

    fn writer(&self) -> Option<Owner> {
        None
    }

    fn keeper(&self, first: u32) -> Option<u32> {
        // The parent of the first process (proc_pid_stat(5): state, then ppid).
        let stat = std::fs::read_to_string(format!("/proc/{first}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    }

    fn groups(&self, first: u32) -> Option<Count> {
        let keeper = self.keeper(first)?;
        Some(Box::new(move || sandbox::groups_of(keeper)))
    }

    fn tidy(&self) {
        sandbox::sweep();
    }
}

impl Boxed for Prepared {
    fn report(&self) -> &Report {
        self.report()
    }

    fn start(mut self: Box<Self>) -> Result<Box<dyn Running>, StartError> {
        if let Some(operations) = self.operations() {
            // They are no session's: taken, so that there is room, and kept nowhere.
            std::thread::spawn(move || {
                while let Some(batch) = operations.next_batch() {
                    operations.taken(&batch);
                }
            });
        }
        Ok(Box::new((*self).start()?))
    }
}

impl Running for Sandbox {
    fn wait_timeout(&self, limit: Duration) -> Option<Ended> {
        self.wait_timeout(limit)
    }

    fn kill(&self) -> Result<(), StartError> {
        self.kill()
    }
}
