//! `[sandbox]`: what the box is and how large.

use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys::{self, Keys};
use crate::reader::{At, Section};
use crate::units::{format_size, parse_duration, parse_size};
use model::{ImageRef, Limit, Limits, Strictness};
use std::time::Duration;

/// How long a turn may take when nothing is written.
pub const DEFAULT_TURN_TIMEOUT: Duration = Duration::from_secs(600);

/// Least memory: below it a shell with one child is killed at random.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Least room on the disk: two empty folders take some KiB of it, and a shell's history the next.
const DISK_BYTES_MIN: u64 = 1 << 20;

/// Least processes: init, a shell, a pipeline.
const PIDS_MIN: i64 = 4;

/// Most processes: the kernel's own PID_MAX_LIMIT on 64 bits.
const PIDS_MAX: i64 = 4_194_304;

/// Least descriptors: the three standard ones, a listener and room to load a program.
const OPEN_FILES_MIN: i64 = 16;

/// Most descriptors: `fs.nr_open` as shipped.
const OPEN_FILES_MAX: i64 = 1_048_576;

/// Least and most CPUs.
const CPUS: std::ops::RangeInclusive<f64> = 0.01..=1024.0;

/// What `[sandbox]` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxSection {
    /// The image that is its root file system; without one it is the host's `/usr`.
    pub(crate) image: Option<ImageRef>,
    pub(crate) limits: Limits,
    /// How hard what is written must be; the command line's limits obey it too.
    pub(crate) strictness: Strictness,
    pub(crate) turn_timeout: Duration,
    /// Whether the kernel reports what it executes and which connections it is refused.
    pub(crate) witness: bool,
    pub(crate) probe_on_start: bool,
    /// Sizes as they were written, for [`fits`].
    pub(crate) sizes: Vec<WrittenSize>,
}

/// A size that the machine must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrittenSize {
    key: &'static str,
    of: Store,
    bytes: At<u64>,
}

/// What a size is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Memory,
    Disk,
}

/// How large this machine is, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// Memory that the kernel has, without swap, bytes.
    pub memory_bytes: Option<u64>,
    /// The whole file system that sessions are kept on, bytes.
    pub disk_bytes: Option<u64>,
}

/// Refuses a written size that is more than the whole machine: it would limit nothing.
pub(crate) fn fits(sizes: &[WrittenSize], machine: &Machine) -> Result<(), PolicyError> {
    for WrittenSize { key, of, bytes: At { place, value } } in sizes {
        let (has, what) = match of {
            Store::Memory => (machine.memory_bytes, "memory of this machine"),
            Store::Disk => (machine.disk_bytes, "file system that sessions are kept on"),
        };
        if let Some(has) = has.filter(|has| value > has) {
            let (wanted, has) = (format_size(*value), format_size(has));
            let why = format!("is {wanted}, more than the whole {what} ({has})");
            return Err(too_large(key, why, place));
        }
    }
    Ok(())
}

fn too_large(key: &str, why: String, place: &Place) -> PolicyError {
    Problem::bad(key, why, "write a size that leaves room for others").at(place)
}

impl Default for SandboxSection {
    fn default() -> Self {
        Self {
            image: None,
            limits: Limits::default(),
            strictness: Strictness::Required,
            turn_timeout: DEFAULT_TURN_TIMEOUT,
            witness: true,
            probe_on_start: false,
            sizes: Vec::new(),
        }
    }
}

/// Memory from text, with its least value.
pub(crate) fn parse_memory_bytes(text: &str) -> Result<u64, Problem> {
    let bytes = parse_size("memory", text)?;
    if bytes < MEMORY_BYTES_MIN {
        let why = format!("is {}: too little to run a shell", quote(text));
        return Err(Problem::bad("memory", why, "write at least \"16MiB\""));
    }
    Ok(bytes)
}

/// Room on the disk from text, with its least value.
fn parse_disk(text: &str) -> Result<u64, Problem> {
    let bytes = parse_size("disk", text)?;
    if bytes < DISK_BYTES_MIN {
        let why = format!("is {}: too little to work in", quote(text));
        return Err(Problem::bad("disk", why, "write at least \"1MiB\""));
    }
    Ok(bytes)
}

/// `[sandbox]` of an agent file.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<SandboxSection, PolicyError> {
    read_with(top, &keys::SANDBOX)
}

/// The limits of a sandbox for something other than an agent: a table with fewer keys.
pub(crate) fn read_limits(top: &Section<'_, '_>, keys: &Keys) -> Result<Limits, PolicyError> {
    read_with(top, keys).map(|section| section.limits)
}

fn read_with(top: &Section<'_, '_>, keys: &Keys) -> Result<SandboxSection, PolicyError> {
    let mut result = SandboxSection::default();
    let Some(section) = top.section("sandbox", keys)? else { return Ok(result) };
    one_of(&section, "backend", "native", &["docker", "podman", "apple", "kubernetes"])?;
    result.image = read_rootfs(&section)?;
    let strictness = read_strictness(&section)?;
    result.strictness = strictness;
    let set = |limit: &mut Limit, found: Option<u64>| {
        if let Some(value) = found {
            *limit = Limit { value, strictness };
        }
    };
    let limits = &mut result.limits;
    let memory = section.parsed("memory", "memory = \"1GiB\"", parse_memory_bytes)?;
    set(&mut limits.memory_bytes, memory.as_ref().map(|at| at.value));
    set(&mut limits.cpu_milli, read_cpus(&section)?);
    let pids = section.integer_in("pids", "pids = 256", PIDS_MIN..=PIDS_MAX)?;
    set(&mut limits.pids, pids.map(|at| at.value));
    let size = |key: &'static str, example| section.parsed(key, example, |t| parse_size(key, t));
    if let Some(at) = size("file_size", "file_size = \"2GiB\"")? {
        limits.file_bytes = at.value;
    }
    let tmp = size("tmp", "tmp = \"256MiB\"")?;
    limits.tmp_bytes = tmp.as_ref().map_or(limits.tmp_bytes, |at| at.value);
    let disk = section.parsed("disk", "disk = \"10GiB\"", parse_disk)?;
    limits.disk_bytes = disk.as_ref().map(|at| at.value);
    for (key, of, found) in [
        ("memory", Store::Memory, memory),
        ("tmp", Store::Memory, tmp),
        ("disk", Store::Disk, disk),
    ] {
        result.sizes.extend(found.map(|bytes| WrittenSize { key, of, bytes }));
    }
    let range = OPEN_FILES_MIN..=OPEN_FILES_MAX;
    if let Some(at) = section.integer_in("open_files", "open_files = 4096", range)? {
        limits.open_files = at.value;
    }
    let timeout = section.parsed("turn_timeout", "turn_timeout = \"10min\"", |text| {
        parse_duration("turn_timeout", text)
    })?;
    if let Some(at) = timeout {
        result.turn_timeout = at.value;
    }
    let wall = section
        .parsed("wall_time", "wall_time = \"8h\"", |text| parse_duration("wall_time", text))?;
    let millis = |at: At<Duration>| u64::try_from(at.value.as_millis()).unwrap_or(u64::MAX);
    limits.wall_ms = wall.map(millis);
    result.witness = read_witness(&section)?;
    let probe = section.boolean("probe_on_start", "probe_on_start = true")?;
    result.probe_on_start = probe.is_some_and(|at| at.value);
    Ok(result)
}

/// An image is pinned by the digest of its manifest: a name alone may mean another one tomorrow.
fn read_rootfs(section: &Section<'_, '_>) -> Result<Option<ImageRef>, PolicyError> {
    let found = section.parsed("rootfs", "rootfs = \"host-usr\"", |text| match text {
        "host-usr" => Ok(None),
        _ => match text.strip_prefix("image:").map(ImageRef::parse) {
            Some(Ok(image)) => Ok(Some(image)),
            Some(Err(e)) => Err(Problem::bad(
                "rootfs",
                format!("names the image {}, which {}", quote(&e.value), e.why),
                "write \"image:NAME@sha256:DIGEST\" as `nanoclaw image list` shows it",
            )),
            None => Err(Problem::bad(
                "rootfs",
                format!("is {}", quote(text)),
                "write \"host-usr\" or \"image:NAME@sha256:DIGEST\"",
            )),
        },
    })?;
    Ok(found.and_then(|at| at.value))
}

/// A key with one accepted value; values of the schema without a mechanism are refused by name.
pub(crate) fn one_of(
    section: &Section<'_, '_>,
    key: &'static str,
    only: &str,
    later: &[&str],
) -> Result<(), PolicyError> {
    let example = format!("{key} = {only:?}");
    section.parsed(key, &example, |text| {
        if text == only {
            return Ok(());
        }
        let known = |l: &str| text == l || (l.ends_with(':') && text.starts_with(l));
        if later.iter().any(|l| known(l)) {
            return Err(Problem::NotEnforced { what: format!("{key} = {}", quote(text)) });
        }
        Err(Problem::bad(key, format!("is {}", quote(text)), format!("write `{example}`")))
    })?;
    Ok(())
}

/// Written limits are required to be hard, unless the file says `limits = "fallback"`.
fn read_strictness(section: &Section<'_, '_>) -> Result<Strictness, PolicyError> {
    let found = section.parsed("limits", "limits = \"fallback\"", |text| match text {
        "fallback" => Ok(Strictness::Fallback),
        "required" => Ok(Strictness::Required),
        other => Err(Problem::bad(
            "limits",
            format!("is {}", quote(other)),
            "write \"required\" (the default) or \"fallback\"",
        )),
    })?;
    Ok(found.map_or(Strictness::Required, |at| at.value))
}

/// What is executed is on record unless the file says `witness = "off"`.
fn read_witness(section: &Section<'_, '_>) -> Result<bool, PolicyError> {
    let found = section.parsed("witness", "witness = \"on\"", |text| match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(Problem::bad(
            "witness",
            format!("is {}", quote(other)),
            "write \"on\" (the default) or \"off\"",
        )),
    })?;
    Ok(found.is_none_or(|at| at.value))
}

fn read_cpus(section: &Section<'_, '_>) -> Result<Option<u64>, PolicyError> {
    let Some(At { place, value }) = section.number("cpus", "cpus = 1.0")? else { return Ok(None) };
    if !CPUS.contains(&value) {
        let problem = Problem::bad("cpus", "is outside 0.01 to 1024", "write e.g. `cpus = 1.0`");
        return Err(problem.at(&place));
    }
    // In range, so between 10 and 1,024,000.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(Some((value * 1000.0).round() as u64))
}
