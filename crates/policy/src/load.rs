//! The edge: reads files and resolves symlinks, then hands over to the pure part.
//!
//! ```text
//! path ─► open (no symlink at the end, regular, not writable by others, ≤ 256 KiB, UTF-8) ─► text
//! ```

use crate::error::{Place, PolicyError, Problem};
use crate::mounts::{MountContext, check_source, parse_source};
use crate::reader::FILE_BYTES_MAX;
use crate::{Additions, AgentFile, Config, Machine, ResolveContext, ResolvedAgent};
use model::{AgentName, McpProgram, McpReach, McpServer, Mount};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Permission bit: writable by everybody.
const WORLD_WRITABLE: u32 = 0o002;

fn unreadable(path: &Path, why: String, remedy: &str) -> PolicyError {
    Problem::Unreadable { why, remedy: remedy.to_owned() }
        .at(&Place::Whole(path.display().to_string()))
}

/// Reads a file that people write. `Ok(None)` if there is none.
///
/// # Errors
/// If it is not a regular file, is writable by everybody, is larger than 256 KiB, is not UTF-8 or
/// cannot be read.
pub fn read_text(path: &Path) -> Result<Option<String>, PolicyError> {
    use rustix::fs::{Mode, OFlags};
    // NONBLOCK: a FIFO put there must not hang the start; the type is checked on the descriptor.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(e) => {
            let remedy = "check the path and its permissions";
            return Err(unreadable(path, format!("cannot be opened: {e}"), remedy));
        }
    };
    let io = |e: std::io::Error| unreadable(path, format!("cannot be read: {e}"), "check the disk");
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(unreadable(path, "is not a regular file".into(), "put a text file there"));
    }
    if meta.mode() & WORLD_WRITABLE != 0 {
        let why = "is writable by every user, so anyone could have written the grants".into();
        let remedy = format!("run `chmod o-w {}`", path.display());
        return Err(unreadable(path, why, &remedy));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(unreadable(path, "is larger than 256 KiB".into(), "shorten it"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            let why = format!("is not UTF-8 (first bad byte at offset {at})");
            Err(unreadable(path, why, "save it as UTF-8"))
        }
    }
}

/// Reads `nanoclaw.toml` of a configuration folder; an absent file is an empty configuration.
///
/// # Errors
/// As [`read_text`] and [`Config::parse`].
pub fn config(dir: &Path) -> Result<Config, PolicyError> {
    match read_text(&dir.join("nanoclaw.toml"))? {
        Some(text) => Config::parse("nanoclaw.toml", &text),
        None => Ok(Config::default()),
    }
}

/// The names of the agents that have a file, sorted. Files whose stem is no agent name are left
/// out; an absent folder has none.
#[must_use]
pub fn agent_names(dir: &Path) -> Vec<AgentName> {
    let Ok(entries) = std::fs::read_dir(dir.join("agents")) else { return Vec::new() };
    let name = |entry: std::fs::DirEntry| {
        let file = entry.file_name();
        AgentName::parse(file.to_str()?.strip_suffix(".toml")?).ok()
    };
    let mut names: Vec<AgentName> = entries.flatten().filter_map(name).collect();
    names.sort();
    names
}

/// Reads, parses and resolves `agents/NAME.toml` of a configuration folder, instructions file
/// included, and pins its mounts. `Ok(None)` if there is no such file.
///
/// # Errors
/// As [`read_text`], [`AgentFile::parse`], [`AgentFile::fits`], [`AgentFile::resolve`] and
/// [`pin_mounts`].
pub fn agent(
    dir: &Path,
    name: &AgentName,
    mounts: MountContext<'_>,
    config: Option<&Config>,
    additions: &Additions,
) -> Result<Option<ResolvedAgent>, PolicyError> {
    let shown = format!("agents/{name}.toml");
    let Some(text) = read_text(&dir.join(&shown))? else { return Ok(None) };
    let file = AgentFile::parse(&shown, &text)?;
    file.fits(&machine(dir))?;
    let instructions = match file.instructions_file() {
        Some(beside) => read_text(&dir.join("agents").join(beside))?,
        None => None,
    };
    let context = ResolveContext { mounts, config, instructions: instructions.as_deref() };
    let mut agent = file.resolve(name, &context, additions)?;
    pin_mounts(&mut agent, &mounts)?;
    Ok(Some(agent))
}

/// The machine's memory, and the file system that `dir`, and with it the sessions, lie on. What
/// cannot be asked is not known, and refuses nothing.
fn machine(dir: &Path) -> Machine {
    let info = rustix::system::sysinfo();
    let disk = rustix::fs::statvfs(dir).ok();
    Machine {
        memory_bytes: Some(info.totalram.saturating_mul(info.mem_unit.into())),
        disk_bytes: disk.map(|found| found.f_blocks.saturating_mul(found.f_frsize)),
    }
}

/// Replaces every mount's source by its real path, and judges that again: a symlink to `~/.ssh`
/// is `~/.ssh`.
///
/// # Errors
/// If a source does not exist, or its real path may not be granted.
pub fn pin_mounts(
    agent: &mut ResolvedAgent,
    context: &MountContext<'_>,
) -> Result<(), PolicyError> {
    for mount in &mut agent.mounts {
        pin(mount, context)?;
    }
    agent.seal();
    Ok(())
}

/// The program behind a server of tools, with folders that exist and may be granted; `None` for a
/// server at an address.
///
/// # Errors
/// As [`pin_mounts`].
pub fn program(
    server: &McpServer,
    context: &MountContext<'_>,
) -> Result<Option<McpProgram>, PolicyError> {
    let McpReach::Stdio(program) = &server.reach else { return Ok(None) };
    let mut program = program.as_ref().clone();
    let place = Place::Whole(format!("nanoclaw.toml, [mcp.{}]", server.name));
    for mount in &mut program.mounts {
        let written = mount.source.to_string_lossy();
        mount.source = parse_source(&written, context).map_err(|p| p.at(&place))?;
        pin(mount, context)?;
    }
    Ok(Some(program))
}

fn pin(mount: &mut Mount, context: &MountContext<'_>) -> Result<(), PolicyError> {
    let real = mount.source.canonicalize().map_err(|e| {
        let remedy = "create it, or remove the mount";
        unreadable(&mount.source, format!("cannot be mounted: {e}"), remedy)
    })?;
    // The home and the state may themselves be reached by symlinks; compare real with real.
    let real_of = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let home = real_of(context.home);
    let protected: Vec<_> = context.protected.iter().map(|p| real_of(p)).collect();
    let real_context = MountContext { home: &home, protected: &protected };
    check_source(&real, &real_context).map_err(|why| {
        let why = format!("leads to {}, which {why}", real.display());
        unreadable(&mount.source, why, "name the one folder that the agent needs")
    })?;
    mount.source = real;
    Ok(())
}
