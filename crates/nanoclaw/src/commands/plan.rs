//! `sandbox plan`: the walls of an agent's sandbox as an ordered list, before anything runs.

use crate::failure::{Context, Failure, Kind, Result};
use crate::home::{Home, SessionDirs};
use crate::sandboxes::{self, Parts};
use crate::scribe::sha256_hex;
use crate::ui;
use crate::{probing, product};
use model::{Command, SessionId};
use policy::{Additions, Runtime};
use sandbox::HostFacts;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

pub(crate) fn run(home: &Home, agent: Option<&str>, as_json: bool) -> Result<u8> {
    let config = product::load_config(home)?;
    let name = crate::agent_name(agent, &config)?;
    let agent = product::resolve_agent(home, &config, &name, &Additions::default())?;
    // A session that does not exist, so that two plans of one agent are equal.
    let session = SessionId::parse("plan").map_err(Failure::other)?;
    let root = crate::rootfs::Root::of(home, &agent)?;
    let standing = Standing::make(home, &session)?;
    let command = match &agent.runtime {
        Runtime::Builtin => Command::Builtin(vec!["__agent".into()]),
        Runtime::Command(argv) => Command::Program(argv.clone()),
    };
    let mut spec = sandboxes::spec(Parts {
        session: &session,
        agent: &agent,
        rootfs: root.fs(),
        dirs: &standing.dirs,
        workspace: None,
        door: standing.door.clone(),
        trust: sandboxes::bundle(home.path()),
        command,
        env: std::collections::BTreeMap::new(),
    });
    probing::ask(&agent, &mut spec)?;
    let facts = HostFacts::gather(vec![home.path().to_owned()]);
    let sources = sandbox::check(&spec, &facts)
        .map_err(|e| Failure::new(Kind::Usage, e.cause).remedy(e.remedy))?;
    let plan = sandbox::plan(&spec, &facts, &sources);
    drop(standing);
    if as_json {
        ui::line(String::from_utf8_lossy(&plan.sha256_input()));
    } else {
        ui::out(&ui::harmless(&plan.to_string()));
        ui::line(format!("plan sha256 {}", sha256_hex(&plan.sha256_input()).0));
    }
    Ok(0)
}

/// What a real session has before its plan is made, standing in its place: folders and a door.
/// All of it is gone again when this is dropped.
struct Standing {
    dirs: SessionDirs,
    door: PathBuf,
    _listener: UnixListener,
    /// One plan at a time, for all use the same names.
    _lock: File,
}

impl Standing {
    fn make(home: &Home, session: &SessionId) -> Result<Self> {
        let door = home.door(session)?;
        let path = home.path().join("run/plan.lock");
        let lock = File::create(&path).context(path.display())?;
        lock.lock().context(path.display())?;
        // A killed `plan` may have left one.
        drop(std::fs::remove_file(&door));
        let listener = UnixListener::bind(&door).context(door.display())?;
        let dirs = home.session(session)?;
        Ok(Self { dirs, door, _listener: listener, _lock: lock })
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let root = self.dirs.home.parent().map(Path::to_owned);
        drop(std::fs::remove_file(&self.door));
        // They are empty. What cannot be removed is in nobody's way: no session has this name.
        for dir in [Some(self.dirs.workspace.clone()), Some(self.dirs.home.clone()), root] {
            drop(dir.map(std::fs::remove_dir));
        }
    }
}
