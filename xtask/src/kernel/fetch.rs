//! What the guest is made of, from Debian's archive: a kernel and the packages of a small system.
//!
//! ```text
//! apt-get download ─► *.deb ─► dpkg-deb -x ─► kernel's payload ─► vmlinux
//!                                         └─► modules; tree of the root file system
//! ```
//!
//! Invariants:
//! 1. Nothing is installed and no script of a package runs.
//! 2. What is in the cache is used as it is; what is half there is made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::repo::{Failure, Outcome, Repo, at, capture, run, step};

/// Depends on the kernel of the day, whose name changes with every security update.
const META: &str = "linux-image-cloud-amd64";
/// How that kernel's package begins in Debian 12.
const KERNEL: &str = "linux-image-6.1.";
/// What the guest's root file system is made of; lines with `#` are not.
const PACKAGES: &str = include_str!("packages.txt");

/// What was fetched, unpacked.
pub(super) struct Pieces {
    /// The kernel as an ELF file: QEMU enters it at once, where a compressed one takes a second.
    pub(super) vmlinux: PathBuf,
    /// The kernel's own release, as `uname -r` will say it.
    pub(super) release: String,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
    /// The packages' files, as one tree.
    pub(super) tree: PathBuf,
}

/// The pieces, from the cache in `place` or fetched into it.
pub(super) fn pieces(repo: &Repo, place: &Path) -> Outcome<Pieces> {
    let stamp = place.join("fetched.txt");
    let (kernel, tree) = (place.join("kernel"), place.join("tree"));
    if fs::read_to_string(&stamp).is_ok_and(|old| old == PACKAGES) {
        return found(place, &kernel, tree);
    }
    for old in [&kernel, &tree, &place.join("debs")] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(at(old))?;
        }
    }
    fs::create_dir_all(place).map_err(at(place))?;
    let image = kernel_package(repo)?;
    step(format!("the guest's system: {image} and {} packages, from apt", packages().count()));
    unpack(repo, &download(repo, &place.join("debs/kernel"), &[&image])?, &kernel)?;
    merged_usr(&tree)?;
    let all: Vec<&str> = packages().collect();
    unpack(repo, &download(repo, &place.join("debs/tree"), &all)?, &tree)?;
    decompress(repo, &kernel, &place.join("vmlinux"))?;
    let found = found(place, &kernel, tree)?;
    fs::write(&stamp, PACKAGES).map_err(at(&stamp))?;
    Ok(found)
}

fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.lines().filter(|line| !line.starts_with('#') && !line.is_empty())
}

fn found(place: &Path, kernel: &Path, tree: PathBuf) -> Outcome<Pieces> {
    let modules = only_entry(&kernel.join("lib/modules"))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Pieces { vmlinux: place.join("vmlinux"), release, modules, tree })
}

fn only_entry(folder: &Path) -> Outcome<PathBuf> {
    let mut entries = fs::read_dir(folder).map_err(at(folder))?.flatten();
    match (entries.next(), entries.next()) {
        (Some(one), None) => Ok(one.path()),
        _ => Err(Failure::new(format!("{}: not exactly one entry", folder.display()))),
    }
}

/// The package of today's kernel, which must be Debian 12's.
fn kernel_package(repo: &Repo) -> Outcome<String> {
    let said = capture(repo.command("apt-cache").args(["depends", META]))?;
    let names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = names.map(str::to_owned).find(|name| name.starts_with(KERNEL));
    name.ok_or_else(|| {
        Failure::new(format!(
            "apt knows no {KERNEL}… by way of {META}: add Debian 12 (bookworm) to \
             /etc/apt/sources.list.d and run apt-get update"
        ))
    })
}

/// Downloads packages into a folder of their own.
fn download(repo: &Repo, folder: &Path, packages: &[&str]) -> Outcome<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut apt = repo.command("apt-get");
    // Without the first, apt warns that its own user cannot write here.
    apt.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(packages);
    apt.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    run(&mut apt).map_err(|failure| {
        Failure::new(format!("{failure}\n       `apt-get update` first, if the lists are old"))
    })?;
    let mut all: Vec<PathBuf> =
        fs::read_dir(folder).map_err(at(folder))?.flatten().map(|entry| entry.path()).collect();
    all.sort();
    if all.len() == packages.len() {
        return Ok(all);
    }
    let (wanted, got) = (packages.len(), all.len());
    Err(Failure::new(format!("{}: {got} packages came, not {wanted}", folder.display())))
}

fn unpack(repo: &Repo, debs: &[PathBuf], to: &Path) -> Outcome {
    fs::create_dir_all(to).map_err(at(to))?;
    debs.iter().try_for_each(|deb| run(repo.command("dpkg-deb").arg("-x").arg(deb).arg(to)))
}

/// `/bin`, `/lib` and so on as links, before the packages that still have files there: they are
/// unpacked through the links.
fn merged_usr(tree: &Path) -> Outcome {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let folder = tree.join("usr").join(name);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let link = tree.join(name);
        std::os::unix::fs::symlink(format!("usr/{name}"), &link).map_err(at(&link))?;
    }
    Ok(())
}

/// Takes the kernel out of its image.
fn decompress(repo: &Repo, kernel: &Path, to: &Path) -> Outcome {
    let boot = kernel.join("boot");
    let names = fs::read_dir(&boot).map_err(at(&boot))?.flatten().map(|entry| entry.path());
    let is_image = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    };
    let image = names.into_iter().find(is_image);
    let image = image.ok_or_else(|| Failure::new(format!("{}: no vmlinuz", boot.display())))?;
    let bytes = fs::read(&image).map_err(at(&image))?;
    let odd = || Failure::new(format!("{}: not a compressed x86 kernel", image.display()));
    let payload = payload(&bytes).ok_or_else(odd)?;
    let tool = tool_of(payload).ok_or_else(odd)?;
    let packed = to.with_extension("packed");
    fs::write(&packed, payload).map_err(at(&packed))?;
    let file = fs::File::create(to).map_err(at(to))?;
    run(repo.command(tool).args(["-d", "-c"]).arg(&packed).stdout(file))?;
    fs::remove_file(&packed).map_err(at(&packed))
}

/// The compressed kernel within a bzImage. Fields: Documentation/x86/boot.rst.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    const SECTOR: usize = 512;
    /// The build appends the unpacked size, which is no part of the stream.
    const SIZE: usize = 4;
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    (image.get(MAGIC..MAGIC.checked_add(4)?)? == b"HdrS").then_some(())?;
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * SECTOR;
    let begin = setup.checked_add(word(PAYLOAD_OFFSET)?)?;
    let length = word(PAYLOAD_LENGTH)?.checked_sub(SIZE)?;
    image.get(begin..begin.checked_add(length)?)
}

/// Which program unpacks it.
fn tool_of(payload: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 3] =
        [(b"\x02\x21\x4c\x18", "lz4"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
    kinds.into_iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, tool)| tool)
}

#[cfg(test)]
mod unit {
    use super::*;

    /// An image with one setup sector, whose payload lies eight bytes behind the setup.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1_024 + 8];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 8;
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image.extend(b"something behind it");
        image
    }

    #[test]
    fn the_payload_is_what_the_header_says_without_its_size() {
        let whole = image(b"\x02\x21\x4c\x18packed\x00\x01\x02\x03");
        let found = payload(&whole).unwrap();
        assert_eq!(found, b"\x02\x21\x4c\x18packed");
        assert_eq!(tool_of(found), Some("lz4"));
        assert_eq!(tool_of(b"MZ and so on"), None);
    }

    #[test]
    fn an_image_that_is_none_is_refused() {
        let whole = image(b"\x02\x21\x4c\x18packed\x00\x01\x02\x03");
        assert!(payload(&[]).is_none());
        assert!(payload(&whole[..1_040]).is_none(), "cut short");
        let mut other = whole.clone();
        other[0x202] = b'X';
        assert!(payload(&other).is_none(), "no magic");
        let mut far = whole.clone();
        far[0x24b] = 0xff;
        assert!(payload(&far).is_none(), "outside");
        let mut small = whole;
        small[0x24c..0x250].copy_from_slice(&2u32.to_le_bytes());
        assert!(payload(&small).is_none(), "no room for its size");
    }

    #[test]
    fn every_package_is_named_once() {
        let mut all: Vec<&str> = packages().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.contains(&"libc6") && all.iter().all(|name| !name.contains(' ')));
    }
}
