//! What this machine can enforce, found by trying.

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Works.
    Ok,
    /// Works in a weaker form, which is named.
    Degraded,
    /// Missing; no sandbox starts without it.
    Missing,
}

/// One thing a sandbox needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// e.g. `user namespace`.
    pub name: String,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

/// Looks at and tries everything a native sandbox needs.
#[must_use]
pub fn inspect() -> Vec<Check> {
    Vec::new()
}

pub(crate) const USER_NAMESPACE_REMEDY: &str = "allow unprivileged user namespaces: on Ubuntu \
    `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0` or install the AppArmor profile; \
    else check user.max_user_namespaces > 0 and kernel.unprivileged_userns_clone = 1";
pub(crate) const LANDLOCK_REMEDY: &str =
    "boot a kernel of 5.13 or later with CONFIG_SECURITY_LANDLOCK=y and `landlock` in lsm=";
pub(crate) const SECCOMP_REMEDY: &str = "use a kernel with CONFIG_SECCOMP_FILTER=y";
