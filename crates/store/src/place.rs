//! Where the database may live: a folder of one's own, on a local file system.

use crate::error::StoreError;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Anything for group or others.
const NOT_PRIVATE: u32 = 0o077;

/// File systems (magic numbers of statfs(2)) on which WAL is unsafe: locks or shared memory do
/// not reach the other side.
const UNSAFE_FILE_SYSTEMS: [(u32, &str); 15] = [
    (0x6969, "a network file system (NFS)"),
    (0x517B, "a network file system (SMB)"),
    (0xFE53_4D42, "a network file system (SMB)"),
    (0xFF53_4D42, "a network file system (CIFS)"),
    (0x0102_1997, "a folder shared with a virtual machine (9p)"),
    (0x6573_5546, "a FUSE file system (virtiofs and network mounts among them)"),
    (0x786F_4256, "a folder shared with a virtual machine (vboxsf)"),
    (0xBACB_ACBC, "a folder shared with a virtual machine (vmhgfs)"),
    (0x5346_414F, "a network file system (AFS)"),
    (0x6B41_4653, "a network file system (kAFS)"),
    (0x00C3_6400, "a network file system (Ceph)"),
    (0x7375_7245, "a network file system (Coda)"),
    (0x0BD0_0BD0, "a network file system (Lustre)"),
    (0x7461_636F, "a cluster file system (OCFS2)"),
    (0x0116_1970, "a cluster file system (GFS2)"),
];

/// What a file system with this magic number is, if the database may not live on it.
pub(crate) fn unsafe_kind(magic: u32) -> Option<&'static str> {
    UNSAFE_FILE_SYSTEMS.iter().find(|(m, _)| *m == magic).map(|(_, kind)| *kind)
}

/// Makes the folder (0700) and the file (0600) if they are not there, and judges both.
pub(crate) fn prepare(file: &Path) -> Result<(), StoreError> {
    let dir = file.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let access = |path: &Path, action| {
        let path = path.to_path_buf();
        move |cause| StoreError::Access { path, action, cause }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(access(dir, "make the folder"))?;
    let meta = dir.metadata().map_err(access(dir, "look at the folder"))?;
    if meta.mode() & NOT_PRIVATE != 0 {
        let remedy = format!("run `chmod 700 {}`", dir.display());
        let why = "other users can look into this folder, which holds private messages";
        return Err(StoreError::Unsafe { path: dir.to_path_buf(), why, remedy });
    }
    let stat = rustix::fs::statfs(dir)
        .map_err(|e| access(dir, "look at the file system")(std::io::Error::from(e)))?;
    // Magic numbers have 32 bits; the field is wider on some platforms and signed on others.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    if let Some(kind) = unsafe_kind(stat.f_type as u32) {
        return Err(StoreError::FileSystem { path: dir.to_path_buf(), kind });
    }
    prepare_file(file)
}

/// SQLite would create the file with the umask's mode; -wal and -shm take over the file's own.
fn prepare_file(file: &Path) -> Result<(), StoreError> {
    match file.symlink_metadata() {
        Ok(meta) => {
            let bad =
                |why, remedy| Err(StoreError::Unsafe { path: file.to_path_buf(), why, remedy });
            if !meta.is_file() {
                return bad("this is not a regular file", "move it away".into());
            }
            if meta.mode() & NOT_PRIVATE != 0 {
                let remedy = format!("run `chmod 600 {}`", file.display());
                return bad("other users can read this file, which holds private messages", remedy);
            }
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
            match made {
                Ok(_) => Ok(()),
                // Another process was faster: it made the same file.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                Err(cause) => Err(StoreError::Access {
                    path: file.to_path_buf(),
                    action: "make the database",
                    cause,
                }),
            }
        }
        Err(cause) => Err(StoreError::Access {
            path: file.to_path_buf(),
            action: "look at the database",
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::unsafe_kind;

    #[test]
    fn shared_and_network_file_systems_are_refused_and_local_ones_are_not() {
        for bad in [0x6969, 0x0102_1997, 0x6573_5546, 0xFE53_4D42] {
            assert!(unsafe_kind(bad).is_some(), "{bad:#x}");
        }
        // ext4, btrfs, xfs, tmpfs, overlayfs, zfs
        for good in [0xEF53, 0x9123_683E, 0x5846_5342, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1] {
            assert!(unsafe_kind(good).is_none(), "{good:#x}");
        }
    }
}
