//! One step at a time.

use super::door::Door;
use super::failed;
use super::mounts::Root;
use crate::error::{StartError, StartErrorKind as Kind};
use crate::landlock::Felt;
use crate::step::{Owner, Step};
use crate::sys;
use crate::wire::{self, Job, Order};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// What is built so far.
pub(super) struct Machine<'l> {
    /// To the spawner.
    line: &'l OwnedFd,
    /// The session's uid on the host in root mode, 0 in plain-user mode.
    identity: u32,
    caller: (u32, u32),
    mappings: HashMap<Owner, OwnedFd>,
    root: Option<Root>,
    /// The program of system calls, until it is loaded.
    filter: Option<OwnedFd>,
    /// An engine made the walls around this process, and started it.
    contained: bool,
    pub(super) door: Option<Door>,
    /// Where reported calls are answered: goes over the line with the next word, and stays nowhere
    /// here.
    pub(super) listener: Option<OwnedFd>,
    /// What was seen inside.
    pub(super) places: Vec<wire::Place>,
    /// What can be seen and should not be.
    pub(super) shown: Vec<String>,
    /// What Landlock refused when it was tried.
    pub(super) felt: Option<Felt>,
}

impl<'l> Machine<'l> {
    pub(super) fn new(line: &'l OwnedFd, filter: OwnedFd, contained: bool) -> Self {
        rustix::process::umask(rustix::fs::Mode::empty());
        Self {
            line,
            identity: 0,
            caller: (0, 0),
            mappings: HashMap::new(),
            root: None,
            filter: Some(filter),
            contained,
            door: None,
            listener: None,
            places: Vec::new(),
            shown: Vec::new(),
            felt: None,
        }
    }

    /// Takes over a job's numbers and, when they came, the standard streams and mappings.
    pub(super) fn take(&mut self, job: &Job, fds: Vec<OwnedFd>) -> io::Result<()> {
        let mut fds = fds.into_iter();
        self.identity = job.identity;
        self.caller = job.caller;
        if let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) {
            sys::replace_streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
        }
        self.mappings = job.mappings.iter().copied().zip(fds).collect();
        Ok(())
    }

    fn root(&self) -> Result<&Root, StartError> {
        self.root.as_ref().ok_or_else(|| failed(Kind::Mount, "the plan", "has no root yet"))
    }

    fn door(&mut self) -> io::Result<&mut Door> {
        self.door.as_mut().ok_or_else(|| io::Error::other("the plan has no door yet"))
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), StartError> {
        let kind = kind_of(step);
        let tell = |e: io::Error| explain(kind, step, &e);
        match step {
            Step::Root { bytes, inodes } => {
                self.root = Some(Root::new(*bytes, *inodes).map_err(tell)?);
                Ok(())
            }
            Step::Listen { port, door } => {
                self.door = Some(Door::open(door, *port).map_err(tell)?);
                Ok(())
            }
            Step::Names => self.door().and_then(Door::answer_names).map_err(tell),
            Step::DoorPort { port } => self.door().and_then(|d| d.bind_port(*port)).map_err(tell),
            Step::Seccomp { witness, .. } => {
                let filter = self.filter.take().ok_or_else(twice);
                self.listener = filter.and_then(|f| load_filter(f, *witness)).map_err(tell)?;
                Ok(())
            }
            Step::Landlock { abi, write, devices, scopes } => {
                let streams = [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()]
                    .map(|fd| fd.try_clone_to_owned());
                let streams: Vec<OwnedFd> = streams.into_iter().flatten().collect();
                let terminals: Vec<_> = streams
                    .iter()
                    .map(AsFd::as_fd)
                    .filter(|fd| rustix::termios::isatty(fd))
                    .collect();
                let felt = crate::landlock::restrict(*abi, write, devices, *scopes, &terminals);
                self.felt = Some(felt.map_err(|e| tell(io::Error::other(e)))?);
                Ok(())
            }
            Step::Look { places, hidden } => {
                self.places = super::measure::places(places).map_err(tell)?;
                self.shown = super::measure::shown(hidden);
                Ok(())
            }
            step => self.plain(step).map_err(tell),
        }
    }

    fn plain(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::JoinGroups { .. } => self.join(),
            Step::MapCaller { inside } => super::identity::map_caller(*inside, self.caller),
            Step::PrivateMounts => super::mounts::make_private(),
            Step::Bind(bind) | Step::Trust(bind) => {
                let mapping =
                    match bind.owner {
                        None => None,
                        Some(owner) => Some(self.mappings.get(&owner).ok_or_else(|| {
                            io::Error::other("no user namespace maps this owner")
                        })?),
                    };
                let recursive = !bind.strict || self.identity == 0;
                self.tree()?.bind(bind, mapping, recursive)
            }
            Step::Become { inside } => super::identity::become_session(self.identity, *inside),
            Step::Scratch { bytes, inodes, places } => {
                self.tree()?.scratch(*bytes, *inodes, places, self.identity)
            }
            Step::HostName { name } => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Loopback => {
                let flags = SocketFlags::CLOEXEC;
                let any = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
                sys::bring_up(any, "lo")
            }
            Step::GroupNamespace => sys::unshare(libc::CLONE_NEWCGROUP),
            Step::ResourceLimit { name, value } => super::identity::limit(name, *value),
            Step::DropCapabilities => super::identity::drop_capabilities(),
            Step::NoNewPrivileges => Ok(rustix::thread::set_no_new_privs(true)?),
            Step::Verify => super::identity::seal(!self.contained),
            Step::Namespaces { .. } => Ok(()),
            mount => self.tree()?.step(mount),
        }
    }

    /// The spawner makes the groups while this process starts; it says when they are there.
    fn join(&self) -> io::Result<()> {
        let mut buffer = vec![0; wire::ORDER_MAX];
        match wire::receive::<Order>(self.line, &mut buffer)? {
            Some((Order::Join(files), _)) => files.iter().try_for_each(|f| fs::write(f, "0")),
            _ => Err(io::Error::other("the spawner named no control group")),
        }
    }

    fn tree(&self) -> io::Result<&Root> {
        self.root().map_err(|e| io::Error::other(e.cause))
    }
}

fn twice() -> io::Error {
    io::Error::other("the plan loads a filter twice")
}

/// Loads one of the filters that came with the first process: the file is shared, so it is read by
/// position. The descriptor of one that reports is returned. From here to its being taken over at
/// the other end of the line nothing may be called that is reported, for nobody would answer.
fn load_filter(file: OwnedFd, witness: bool) -> io::Result<Option<OwnedFd>> {
    let file = fs::File::from(file);
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    let program = crate::seccomp::decode(&bytes, witness);
    if witness {
        return sys::load_reporting_filter(&program).map(Some);
    }
    sys::load_filter(&program).map(|()| None)
}

fn kind_of(step: &Step) -> Kind {
    match step {
        Step::Namespaces { .. } | Step::GroupNamespace => Kind::Namespaces,
        Step::MapCaller { .. }
        | Step::Become { .. }
        | Step::DropCapabilities
        | Step::NoNewPrivileges
        | Step::ResourceLimit { .. } => Kind::Identity,
        Step::JoinGroups { .. } => Kind::Cgroup,
        Step::Landlock { .. } => Kind::Landlock,
        Step::Seccomp { .. } => Kind::Seccomp,
        Step::Listen { .. } | Step::Names | Step::DoorPort { .. } | Step::Loopback => Kind::Door,
        Step::Verify | Step::Look { .. } => Kind::Verification,
        Step::Container(_) => Kind::Engine,
        Step::Bind(bind) | Step::Trust(bind) if bind.owner.is_some() => Kind::IdMap,
        _ => Kind::Mount,
    }
}

/// Cause and remedy of a step's failure.
fn explain(kind: Kind, step: &Step, e: &io::Error) -> StartError {
    let cause = format!("{step}: {e}");
    let errno = e.raw_os_error();
    let remedy = match (step, errno) {
        (Step::MapCaller { .. }, _) => crate::userns::remedy(),
        (Step::Become { .. }, _) => crate::userns::remedy(),
        (Step::Proc, Some(libc::EPERM)) => {
            "the /proc of this container is masked: run it with an unmasked /proc (docker: \
             --security-opt systempaths=unconfined) or run nanoclaw on the host"
        }
        (Step::Bind(bind) | Step::Trust(bind), Some(libc::EINVAL)) if bind.owner.is_some() => {
            "the file system of this folder cannot be id-mapped: move it to ext4, xfs, btrfs or \
             (Linux 6.3) tmpfs, or run nanoclaw as the plain user who owns it"
        }
        (Step::Bind(_) | Step::Trust(_), Some(libc::ELOOP)) => {
            "name the real path, without symbolic links"
        }
        (Step::Mask(_), _) => "it changed while the sandbox was made: start it again",
        (Step::Landlock { .. }, _) => crate::doctor::LANDLOCK_REMEDY,
        (Step::Seccomp { witness: true, .. }, Some(libc::EBUSY)) => {
            "nanoclaw itself runs under a filter that reports (some container engines have one): \
             run it outside, or write `[sandbox] witness = \"off\"`"
        }
        (Step::Seccomp { .. }, _) => crate::doctor::SECCOMP_REMEDY,
        _ => "run `nanoclaw doctor` to see what this machine lacks",
    };
    StartError::new(kind, cause, remedy)
}
