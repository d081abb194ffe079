//! `[sandbox]`: what the box is and how large.

use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys::{self, Keys};
use crate::reader::{At, Section};
use crate::units::{format_size, parse_duration, parse_size};
use model::{Backend, EngineChoice, ImageRef, Limit, Limits, Strictness};
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
    /// What makes it.
    pub(crate) backend: Backend,
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
            backend: Backend::Native,
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

/// Longest name of an image or runtime: engines take no longer ones.
const ENGINE_NAME_MAX: usize = 255;

/// What an image's digest looks like behind its name.
const DIGEST: &str = "sha256:";

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
    result.backend = read_backend(&section)?;
    result.image = read_rootfs(&section, &result.backend)?;
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
/// Engines have images of their own, and could not be told to use a tree of ours unchanged.
fn read_rootfs(
    section: &Section<'_, '_>,
    backend: &Backend,
) -> Result<Option<ImageRef>, PolicyError> {
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
    match found {
        Some(At { place, value: Some(_) }) if *backend != Backend::Native => {
            let name = backend.name();
            let why = format!("names an image of NanoClaw's own store, which {name} does not use");
            let remedy = format!(
                "name one that {name} has in `engine_image`, or write `backend = \"native\"`"
            );
            Err(Problem::bad("rootfs", why, remedy).at(&place))
        }
        found => Ok(found.and_then(|at| at.value)),
    }
}

/// `backend`, with what only a container engine can be told.
fn read_backend(section: &Section<'_, '_>) -> Result<Backend, PolicyError> {
    let image = section.parsed("engine_image", "engine_image = \"sha256:…\"", engine_image)?;
    let runtime = section.parsed("engine_runtime", "engine_runtime = \"crun\"", engine_runtime)?;
    let told = image.as_ref().or(runtime.as_ref()).map(|at| at.place.clone());
    let choice =
        EngineChoice { image: image.map(|at| at.value), runtime: runtime.map(|at| at.value) };
    let found = section.parsed("backend", "backend = \"native\"", |text| match text {
        "native" => Ok(Backend::Native),
        "docker" => Ok(Backend::Docker(choice.clone())),
        "podman" => Ok(Backend::Podman(choice.clone())),
        "apple" => apple(choice.clone()),
        "kubernetes" => Err(Problem::NotEnforced { what: format!("backend = {}", quote(text)) }),
        _ => Err(Problem::bad(
            "backend",
            format!("is {}", quote(text)),
            "write \"native\", \"docker\" or \"podman\"",
        )),
    })?;
    let backend = found.map_or(Backend::Native, |at| at.value);
    match told {
        Some(place) if backend == Backend::Native => Err(Problem::bad(
            "engine_image and engine_runtime",
            "say nothing to the native backend",
            "remove them, or write `backend = \"docker\"`",
        )
        .at(&place)),
        _ => Ok(backend),
    }
}

/// Apple's `container` makes virtual machines on macOS, and on macOS only.
fn apple(choice: EngineChoice) -> Result<Backend, Problem> {
    if cfg!(target_os = "macos") {
        return Ok(Backend::Apple(choice));
    }
    Err(Problem::bad(
        "backend",
        "is \"apple\", and Apple's container exists on macOS only",
        "write \"native\", \"docker\" or \"podman\" on this machine",
    ))
}

/// An image by digest: a name alone may mean another image tomorrow.
fn engine_image(text: &str) -> Result<String, Problem> {
    let (name, digest) = match text.rsplit_once('@') {
        Some((name, digest)) => (Some(name), digest),
        None => (None, text),
    };
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let digest_ok =
        digest.strip_prefix(DIGEST).is_some_and(|d| d.len() == 64 && d.chars().all(hex));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    let name_ok = name.is_none_or(|n| n.starts_with(|c: char| c.is_ascii_alphanumeric()))
        && name.is_none_or(|n| n.chars().all(plain));
    if digest_ok && name_ok && text.len() <= ENGINE_NAME_MAX {
        return Ok(text.to_owned());
    }
    Err(Problem::bad(
        "engine_image",
        format!("is {}, not an image's digest", quote(text)),
        "write \"sha256:<64 hex digits>\" or \"name@sha256:…\", as `docker image inspect` shows it",
    ))
}

fn engine_runtime(text: &str) -> Result<String, Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && text.chars().all(plain) && text.len() <= ENGINE_NAME_MAX {
        return Ok(text.to_owned());
    }
    let why = format!("is {}, not a runtime's name", quote(text));
    Err(Problem::bad("engine_runtime", why, "write the name the engine knows it by, e.g. \"crun\""))
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
