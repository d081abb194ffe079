//! The C compiler and linker of each target.
//!
//! ```text
//! this architecture      ─► musl-gcc (Debian's musl-tools); without it, as below
//! the other architecture ─► zig from a pinned Python package compiles C, rust-lld links
//! ```
//!
//! Invariants:
//! 1. C code for a musl target never sees the headers of another C library.
//! 2. The crt objects and libc that are linked are those of the Rust toolchain, on both ways.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::product::{Profile, build_binary};
use crate::repo::{Failure, Outcome, Repo, at, capture, host_target, on_path, step};
use crate::{only_flags, setup};

/// The targets that a release is made for.
const TARGETS: &[&str] = &["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// Fails, naming the supported ones, when `target` is not a target of this project.
pub(crate) fn supported(target: &str) -> Outcome {
    if TARGETS.contains(&target) {
        return Ok(());
    }
    Err(Failure::new(format!("target `{target}` is not built: one of {}", TARGETS.join(", "))))
}

/// Whether `target` is another architecture than this machine's.
pub(crate) fn is_cross(target: &str) -> bool {
    target != host_target()
}

/// Whether C code for `target` is compiled by zig: for the other architecture, and where nobody
/// could install `musl-gcc`.
pub(crate) fn needs_zig(target: &str) -> bool {
    is_cross(target) || on_path("musl-gcc").is_none()
}

/// The environment that makes cargo and the `cc` crate use the right compiler and linker.
pub(crate) fn toolchain(repo: &Repo, target: &str) -> Outcome<Vec<(String, OsString)>> {
    let name = target.replace('-', "_");
    if !needs_zig(target) {
        // On x86_64 the `cc` crate finds musl-gcc itself; naming it there would only make a plain
        // `cargo build` and this one rebuild each other's C code.
        let found = target.starts_with("x86_64");
        return Ok(if found { vec![] } else { vec![(format!("CC_{name}"), "musl-gcc".into())] });
    }
    let zig = Wrappers::write(repo, target)?;
    Ok(vec![
        (format!("CC_{name}"), zig.cc.into()),
        (format!("AR_{name}"), zig.ar.into()),
        (format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), rust_lld(repo)?.into()),
    ])
}

/// The linker that ships with the Rust toolchain and links for every architecture.
fn rust_lld(repo: &Repo) -> Outcome<PathBuf> {
    let sysroot = capture(repo.command("rustc").args(["--print", "sysroot"]))?;
    let version = capture(repo.command("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or_else(|| Failure::new("`rustc -vV` names no host"))?;
    let linker = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/rust-lld");
    if linker.is_file() {
        return Ok(linker);
    }
    Err(Failure::new(format!("{}: missing; `rustup component add llvm-tools`", linker.display())))
}

/// Two small scripts, for the `cc` crate wants one program for each tool.
struct Wrappers {
    cc: PathBuf,
    ar: PathBuf,
}

impl Wrappers {
    fn write(repo: &Repo, target: &str) -> Outcome<Self> {
        let folder = repo.target_dir.join("zig-wrappers").join(target);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let python = setup::zig_venv(repo).join("bin/python");
        let zig = format!("exec '{}' -m ziglang", python.display());
        let arch = target.split('-').next().unwrap_or_default();
        let (cc, ar) = (folder.join("cc"), folder.join("ar"));
        write_script(&cc, &compiler_script(&zig, arch))?;
        write_script(&ar, &format!("#!/bin/sh\n{zig} ar \"$@\"\n"))?;
        Ok(Self { cc, ar })
    }
}

/// zig wants its own target names: a `--target=` of Rust's spelling is dropped. Its default
/// sanitizer is off, for its runtime is not linked.
fn compiler_script(zig: &str, arch: &str) -> String {
    format!(
        "#!/bin/sh\n\
         for word do\n\
         \x20 shift\n\
         \x20 case \"$word\" in --target=*) ;; *) set -- \"$@\" \"$word\" ;; esac\n\
         done\n\
         {zig} cc -target {arch}-linux-musl -fno-sanitize=all \"$@\"\n"
    )
}

/// Writes an executable file, only when its content differs, so that cargo sees no change.
fn write_script(path: &Path, text: &str) -> Outcome {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(at(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at(path))
}

/// `cargo xtask build-aarch64`: the release binary for 64-bit Arm builds and is one static file.
pub(crate) fn build_aarch64(repo: &Repo, arguments: &[String]) -> Outcome {
    only_flags(arguments, &[])?;
    let target = "aarch64-unknown-linux-musl";
    setup::for_building(repo, target)?;
    let binary = build_binary(repo, target, Profile::Release)?;
    let kind = elf_kind(&binary)?;
    step(format!("{}: {kind}", binary.display()));
    Ok(())
}

/// Reads an ELF header: fails unless it is a 64-bit Arm file without a dynamic loader.
/// Layout: elf(5); `PT_INTERP` is 3, `EM_AARCH64` is 183.
fn elf_kind(path: &Path) -> Outcome<&'static str> {
    const PT_INTERP: u64 = 3;
    const EM_AARCH64: u64 = 183;
    let bytes = fs::read(path).map_err(at(path))?;
    let field = |offset: usize, size: usize| -> Option<u64> {
        let slice = bytes.get(offset..offset.checked_add(size)?)?;
        Some(slice.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let bad = |what: &str| Failure::new(format!("{}: {what}", path.display()));
    let header = || -> Option<(u64, usize, usize, usize)> {
        let start = usize::try_from(field(32, 8)?).ok()?;
        let size = usize::try_from(field(54, 2)?).ok()?;
        let count = usize::try_from(field(56, 2)?).ok()?;
        Some((field(18, 2)?, start, size, count))
    };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(bad("not a 64-bit little-endian ELF file"));
    }
    let (machine, start, size, count) = header().ok_or_else(|| bad("ELF header cut short"))?;
    if machine != EM_AARCH64 {
        return Err(bad("not built for 64-bit Arm"));
    }
    let loader = (0..count).any(|index| field(start + index * size, 4) == Some(PT_INTERP));
    if loader {
        return Err(bad("asks for a dynamic loader: not static"));
    }
    Ok("static, 64-bit Arm")
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_compiler_script_drops_rusts_target_and_keeps_the_rest() {
        let script = compiler_script("exec echo", "aarch64");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, "cc", "--target=aarch64-unknown-linux-musl", "-c", "a b.c"])
            .output()
            .unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        assert_eq!(line, "cc -target aarch64-linux-musl -fno-sanitize=all -c a b.c\n");
    }

    #[test]
    fn this_very_test_binary_is_no_arm_binary() {
        if cfg!(target_arch = "aarch64") {
            return;
        }
        let failure = elf_kind(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(failure.contains("not built for 64-bit Arm"), "{failure}");
    }
}
