//! The kernel's own file systems, wherever they are mounted: none is granted.
//!
//! Pipeline: grants ─► `/proc/self/mountinfo` ─► the mount each lies on, and all below it ─► none
//! of these kinds.
//!
//! A path says nothing of what is mounted there, and a grant brings what is mounted below it. The
//! kinds go by name, not by `statfs`: devtmpfs has the magic number of tmpfs.

use crate::error::{SpecError, SpecErrorKind as Kind};
use model::{SandboxSpec, Workspace};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Kinds that show or change the machine or its processes and hold nobody's files, by the names
/// that `/proc/filesystems` has.
const INTERFACES: [&str; 33] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "cpuset",
    "devtmpfs",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "apparmorfs",
    "bpf",
    "configfs",
    "pstore",
    "efivarfs",
    "fusectl",
    "mqueue",
    "binfmt_misc",
    "nsfs",
    "pidfs",
    "resctrl",
    "rpc_pipefs",
    "nfsd",
    "functionfs",
    "gadgetfs",
    "binder",
    "xenfs",
    "usbfs",
    "openpromfs",
    "spufs",
    "hugetlbfs",
];

/// Refuses a grant that lies on one of them or holds one.
///
/// # Errors
/// The first that does, and what cannot be told.
pub(crate) fn refuse(spec: &SandboxSpec) -> Result<(), SpecError> {
    let workspace = match &spec.workspace {
        Workspace::User(path) => Some(path.as_path()),
        Workspace::Session(_) => None,
    };
    let granted = spec.mounts.iter().map(|m| m.source.as_path()).chain(workspace);
    let mut granted = granted.peekable();
    if granted.peek().is_none() {
        return Ok(());
    }
    let unknown = |path: &Path, e: &dyn std::fmt::Display| {
        let cause = format!("what is mounted at {path:?} cannot be told: {e}");
        SpecError::new(Kind::Missing, cause, "mount /proc, or grant another folder")
    };
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(table).map_err(|e| unknown(table, &e))?;
    let mounts = parse(&text);
    for path in granted {
        // What is missing is told by whoever looks at it.
        let Ok(stat) = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID) else {
            continue;
        };
        let here = mounts.iter().find(|m| m.id == stat.stx_mnt_id);
        let here = here.ok_or_else(|| unknown(path, &"its mount is not listed"))?;
        let below = mounts.iter().filter(|m| m.point.starts_with(path));
        if let Some(mount) = std::iter::once(here).chain(below).find(|m| m.is_interface()) {
            return Err(refused(path, mount));
        }
    }
    Ok(())
}

fn refused(path: &Path, mount: &Mount) -> SpecError {
    let Mount { point, kind, .. } = mount;
    let cause = if path.starts_with(point) {
        format!("the source {path:?} lies on {kind}, an interface of the kernel")
    } else {
        format!("the source {path:?} holds {point:?}, and there {kind}, an interface of the kernel")
    };
    let remedy = "grant a folder of files without it, or unmount it there";
    SpecError::new(Kind::Secret, cause, remedy)
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    point: PathBuf,
    kind: String,
}

impl Mount {
    fn is_interface(&self) -> bool {
        INTERFACES.contains(&self.kind.as_str())
    }
}

/// `ID parent device root point options … - kind source options` (proc_pid_mountinfo(5)).
fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut words = line.split(|b| *b == b' ');
        let id = str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let point = PathBuf::from(OsString::from_vec(plain(words.nth(3)?)));
        let kind = words.skip_while(|w| *w != b"-").nth(1)?;
        Some(Mount { id, point, kind: String::from_utf8_lossy(kind).into_owned() })
    };
    table.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Blanks and the like stand there as a backslash and three octal digits.
fn plain(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|d| u8::from_str_radix(str::from_utf8(d).ok()?, 8).ok());
        out.push(code.unwrap_or(*first));
        rest = code.and_then(|_| after.get(3..)).unwrap_or(after);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_with_optional_fields_and_blanks() {
        let table =
            b"36 35 98:0 /mnt1 /mnt2\\040x rw,noatime shared:1 master:2 - ext3 /dev/root rw\n\
            40 36 0:20 / /mnt2/y rw - sysfs sysfs rw\n";
        let mount =
            |id, point: &str, kind: &str| Mount { id, point: point.into(), kind: kind.into() };
        let mounts = parse(table);
        assert_eq!(mounts, [mount(36, "/mnt2 x", "ext3"), mount(40, "/mnt2/y", "sysfs")]);
        assert_eq!(mounts.iter().map(Mount::is_interface).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn what_is_no_code_stays_as_it_is() {
        assert_eq!(plain(br"a\134040\9\"), br"a\040\9\");
    }
}
