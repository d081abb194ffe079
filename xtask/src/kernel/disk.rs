//! The two files that the guest boots from: an initramfs with the modules of the root disk, and the
//! root disk.
//!
//! ```text
//! packages' tree + accounts + /matrix (product, tests, guest.sh) ─► mke2fs -d ─► root.ext4
//! busybox + init.sh + modules in the order of what they need ─► cpio ─► initrd
//! ```
//!
//! The root is a disk and not the initramfs: a root that is one cannot be left by `pivot_root`, and
//! before Linux 6.3 no memory file system can be id-mapped (mount_setattr(2)).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::fetch::Pieces;
use crate::repo::{Failure, Outcome, Repo, at, capture, run};

/// What the root disk needs; ext4 asks for `crc32c` without naming a module.
const MODULES: &[&str] = &["crc32c_generic", "virtio_pci", "virtio_blk", "ext4"];
const BUSYBOX: &str = "/bin/busybox";
/// The plain user of the guest, as `guest.sh` and the tests call it.
const ACCOUNT: &str = "nanoclaw-test";
/// Room on the disk beside the files, for what the tests write.
const ROOM_MIB: u64 = 600;

/// A file of the guest's root that no package brings.
const FILES: &[(&str, &str)] = &[
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/hostname", "matrix\n"),
];

/// Makes the initramfs.
pub(super) fn initrd(repo: &Repo, pieces: &Pieces, place: &Path) -> Outcome<PathBuf> {
    let folder = fresh(&place.join("initrd.d"))?;
    for name in ["bin", "modules"] {
        fs::create_dir(folder.join(name)).map_err(at(&folder))?;
    }
    let copy = |from: &Path, to: &str| fs::copy(from, folder.join(to)).map(drop).map_err(at(from));
    copy(Path::new(BUSYBOX), "bin/busybox")?;
    executable(&folder.join("init"), include_str!("init.sh"))?;
    let mut order = String::new();
    for module in in_order(&pieces.modules, MODULES)? {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        copy(&module, &format!("modules/{name}"))?;
        order.push_str(&format!("{name}\n"));
    }
    let list = folder.join("modules/order");
    fs::write(&list, order).map_err(at(&list))?;
    let file = place.join("initrd");
    let out = fs::File::create(&file).map_err(at(&file))?;
    let mut cpio = repo.command("sh");
    cpio.args(["-c", "find . | cpio --quiet -o -H newc"]).current_dir(&folder).stdout(out);
    run(&mut cpio)?;
    Ok(file)
}

/// Makes the root disk, with these programs in `/matrix`.
pub(super) fn root(
    repo: &Repo,
    pieces: &Pieces,
    programs: &[(&str, &Path)],
    place: &Path,
) -> Outcome<PathBuf> {
    let tree = &pieces.tree;
    let matrix = fresh(&tree.join("matrix"))?;
    executable(&matrix.join("guest.sh"), include_str!("guest.sh"))?;
    for (name, program) in programs {
        let to = matrix.join(name);
        fs::copy(program, &to).map_err(at(program))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).map_err(at(&to))?;
    }
    fs::copy(BUSYBOX, tree.join("usr/bin/busybox")).map_err(at(Path::new(BUSYBOX)))?;
    settle(tree)?;
    let disk = place.join("root.ext4");
    if disk.exists() {
        fs::remove_file(&disk).map_err(at(&disk))?;
    }
    let size = format!("{}M", mebibytes(repo, tree)? + ROOM_MIB);
    // Without a journal: nobody reads this disk after a crash.
    let options = ["-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"];
    let mut command = as_owner(repo, "mke2fs")?;
    command.args(options).arg(tree).arg(&disk).arg(size);
    run(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    Ok(disk)
}

/// Accounts, links and folders that the packages' scripts would have made.
fn settle(tree: &Path) -> Outcome {
    for folder in ["proc", "sys", "dev", "run", "tmp", "root", "home", "etc", "var/tmp"] {
        let path = tree.join(folder);
        fs::create_dir_all(&path).map_err(at(&path))?;
    }
    let home = tree.join("home").join(ACCOUNT);
    fs::create_dir_all(&home).map_err(at(&home))?;
    let accounts = format!(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n\
         {ACCOUNT}:x:1001:1001::/home/{ACCOUNT}:/bin/sh\n"
    );
    let groups = format!("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n{ACCOUNT}:x:1001:\n");
    let own = [("etc/passwd", &*accounts), ("etc/group", &*groups)];
    for (name, text) in FILES.iter().copied().chain(own) {
        let path = tree.join(name);
        fs::write(&path, text).map_err(at(&path))?;
    }
    for (link, to) in [("usr/bin/awk", "mawk"), ("usr/bin/sh", "dash")] {
        let path = tree.join(link);
        if !path.is_symlink() {
            std::os::unix::fs::symlink(to, &path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// A command whose own files count as root's: as root itself, else in a user namespace.
fn as_owner(repo: &Repo, program: &str) -> Outcome<std::process::Command> {
    let program = ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(program));
    if capture(repo.command("id").arg("-u"))?.trim() == "0" {
        return Ok(repo.command(program));
    }
    let mut command = repo.command("unshare");
    command.arg("--map-root-user").arg(program);
    Ok(command)
}

fn mebibytes(repo: &Repo, tree: &Path) -> Outcome<u64> {
    let said = capture(repo.command("du").args(["-sm"]).arg(tree))?;
    let number = said.split_whitespace().next().and_then(|word| word.parse().ok());
    number.ok_or_else(|| Failure::new(format!("`du` said {said:?}")))
}

fn fresh(folder: &Path) -> Outcome<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(at(folder))?;
    }
    fs::create_dir_all(folder).map_err(at(folder))?;
    Ok(folder.to_owned())
}

fn executable(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(at(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at(path))
}

/// The modules and all they need, each after what it needs. What is built into the kernel is left
/// out.
fn in_order(folder: &Path, wanted: &[&str]) -> Outcome<Vec<PathBuf>> {
    let builtin = folder.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).map_err(at(&builtin))?;
    let mut files = BTreeMap::new();
    gather(&folder.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in wanted {
        add(name, &files, &builtin, &mut order)?;
    }
    Ok(order)
}

/// `-` and `_` are one letter in names of modules (modprobe(8)).
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn gather(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Outcome {
    for entry in fs::read_dir(folder).map_err(at(folder))?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            gather(&path, files)?;
        } else if let Some(name) = name.strip_suffix(".ko") {
            files.insert(plain(name), path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &str,
    order: &mut Vec<PathBuf>,
) -> Outcome {
    let name = plain(name);
    let Some(path) = files.get(&name) else {
        let file = |line: &str| line.rsplit('/').next().map(|f| plain(f.trim_end_matches(".ko")));
        if builtin.lines().any(|line| file(line).as_ref() == Some(&name)) {
            return Ok(());
        }
        return Err(Failure::new(format!("the kernel has no module {name}")));
    };
    if order.contains(path) {
        return Ok(());
    }
    for needed in needs(&fs::read(path).map_err(at(path))?) {
        add(&needed, files, builtin, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The names behind `depends=` in a module's `.modinfo`, which are strings that end with a zero.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|part| part == KEY) else {
        return Vec::new();
    };
    let text = module.get(at + KEY.len()..).unwrap_or_default();
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_builtin_ones_not_at_all() {
        let folder = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let kernel = folder.join("kernel/fs");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(folder.join("modules.builtin"), "kernel/lib/crc-16.ko\n").unwrap();
        let module = |name: &str, needs: &str| {
            let text = format!("ELF…\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(kernel.join(format!("{name}.ko")), text).unwrap();
        };
        module("ext4", "jbd2,mbcache,crc16x");
        module("jbd2", "");
        module("mbcache", "jbd2,crc_16");
        module("crc16x", "");
        let names = |wanted: &[&str]| -> Outcome<Vec<String>> {
            let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
            Ok(in_order(&folder, wanted)?.into_iter().map(name).collect())
        };
        let order = names(&["mbcache", "ext4", "crc_16"]).unwrap();
        assert_eq!(order, ["jbd2", "mbcache", "crc16x", "ext4"]);
        assert!(names(&["xfs"]).unwrap_err().to_string().contains("xfs"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_account_is_the_one_that_the_guest_uses() {
        assert!(include_str!("guest.sh").contains(&format!("user={ACCOUNT}\n")));
    }
}
