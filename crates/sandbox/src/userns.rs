//! What keeps a plain user from making user namespaces here, and the exact remedy.
//!
//! Pipeline: three switches and an AppArmor label, read ─► `Switches` ─► the one that blocks.

use crate::doctor::{Check, Status, check};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The profile as it is shipped, for the usual places.
const PROFILE: &str = include_str!("../apparmor/nanoclaw");
/// Where [`PROFILE`] says to which program it applies.
const USUAL_PLACES: &str = "/usr{,/local}/bin/nanoclaw";
/// The name by which the kernel shows that the profile applies.
const PROFILE_NAME: &str = "nanoclaw";

/// A switch that is off, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    found: &'static str,
    remedy: &'static str,
}

const NONE_AT_ALL: Block = Block {
    found: "user.max_user_namespaces is 0: nobody may make user namespaces",
    remedy: "sudo sysctl -w user.max_user_namespaces=15000 (to keep it: echo \
             'user.max_user_namespaces = 15000' | sudo tee /etc/sysctl.d/60-nanoclaw.conf)",
};
/// A switch of Debian's and its children's kernels.
const ROOT_ONLY: Block = Block {
    found: "kernel.unprivileged_userns_clone is 0: only root may make user namespaces",
    remedy: "sudo sysctl -w kernel.unprivileged_userns_clone=1 (to keep it: echo \
             'kernel.unprivileged_userns_clone = 1' | sudo tee /etc/sysctl.d/60-nanoclaw.conf)",
};
/// Ubuntu 23.10 and later.
const BY_PROFILE: Block = Block {
    found: "kernel.apparmor_restrict_unprivileged_userns is 1: only programs with an AppArmor \
            profile that says `userns,` get user namespaces that are of use",
    remedy: "nanoclaw doctor --apparmor | sudo tee /etc/apparmor.d/nanoclaw && sudo \
             apparmor_parser -r /etc/apparmor.d/nanoclaw (for this program alone; with the switch \
             at 0 every program gets them)",
};

const UNKNOWN: &str = "allow user namespaces to this user; in a container, run it with its default \
                       seccomp profile relaxed or run nanoclaw on the host";

/// The switches as they stand.
#[derive(Debug, Clone, Default)]
struct Switches {
    max: Option<String>,
    clone: Option<String>,
    apparmor: Option<String>,
    /// The AppArmor profile of this process.
    label: Option<String>,
}

impl Switches {
    fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok().map(|t| t.trim().to_owned());
        let label = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"];
        Self {
            max: text("/proc/sys/user/max_user_namespaces"),
            clone: text("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor: text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            label: label.into_iter().find_map(text),
        }
    }

    /// The kernel shows `nanoclaw (unconfined)`.
    fn has_profile(&self) -> bool {
        self.label.as_deref().and_then(|l| l.split_whitespace().next()) == Some(PROFILE_NAME)
    }

    fn block(&self) -> Option<Block> {
        let is = |switch: &Option<String>, value| switch.as_deref() == Some(value);
        match self {
            s if is(&s.max, "0") => Some(NONE_AT_ALL),
            s if is(&s.clone, "0") => Some(ROOT_ONLY),
            s if is(&s.apparmor, "1") && !s.has_profile() => Some(BY_PROFILE),
            _ => None,
        }
    }

    fn check(&self, works: bool) -> Check {
        const NAME: &str = "user namespaces";
        match (self.block(), works) {
            (Some(block), false) => check(NAME, Status::Missing, block.found, block.remedy),
            (Some(block), true) => {
                let found = format!("{}; this process gets them all the same", block.found);
                check(NAME, Status::Ok, found, "")
            }
            (None, _) if self.has_profile() => {
                check(NAME, Status::Ok, "granted by the AppArmor profile nanoclaw", "")
            }
            (None, _) => check(NAME, Status::Ok, "no switch of this machine forbids them", ""),
        }
    }
}

/// The switch that stands in the way of user namespaces here, and how to turn it.
pub(crate) fn remedy() -> &'static str {
    Switches::read().block().map_or(UNKNOWN, |block| block.remedy)
}

/// What doctor says of them to a plain user; `works`: a whole sandbox could be made.
pub(crate) fn inspect(works: bool) -> Check {
    Switches::read().check(works)
}

/// The AppArmor profile for the program at `path`.
///
/// # Errors
/// With what to do, where the path has letters that mean something in a profile.
pub fn apparmor_profile(path: &Path) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match path.to_str() {
        Some(text) if path.is_absolute() && text.chars().all(plain) => {
            Ok(PROFILE.replace(USUAL_PLACES, text))
        }
        _ => Err(format!("{path:?} cannot stand in a profile; install it in /usr/local/bin")),
    }
}

/// Whether root alone can change what stands at `path`: the file and every folder above it.
#[must_use]
pub fn is_roots_alone(path: &Path) -> bool {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    path.ancestors().all(|part| {
        fs::symlink_metadata(part).is_ok_and(|meta| {
            meta.uid() == 0 && !meta.is_symlink() && meta.mode() & OTHERS_MAY_WRITE == 0
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(switch: &str, value: &str, label: Option<&str>) -> Switches {
        let mut all = Switches { label: label.map(str::to_owned), ..Switches::default() };
        let place = match switch {
            "max" => &mut all.max,
            "clone" => &mut all.clone,
            _ => &mut all.apparmor,
        };
        *place = Some(value.to_owned());
        all
    }

    #[test]
    fn each_switch_is_named_with_its_remedy() {
        for (switch, off, on, name, does) in [
            (
                "max",
                "0",
                "96343",
                "user.max_user_namespaces",
                "sysctl -w user.max_user_namespaces=",
            ),
            ("clone", "0", "1", "kernel.unprivileged_userns_clone", "userns_clone=1"),
            ("apparmor", "1", "0", "apparmor_restrict", "apparmor_parser -r /etc/apparmor.d/nan"),
        ] {
            let missing = set(switch, off, None).check(false);
            assert_eq!(missing.status, Status::Missing, "{switch}");
            assert!(missing.found.contains(name) && missing.remedy.contains(does), "{missing:?}");
            // What was tried counts for more than what a switch says.
            assert_eq!(set(switch, off, None).check(true).status, Status::Ok, "{switch}");
            assert_eq!(set(switch, on, None).check(false).status, Status::Ok, "{switch}");
        }
    }

    #[test]
    fn our_own_profile_and_no_other_lifts_apparmors_switch() {
        let with = |label| set("apparmor", "1", Some(label)).check(false).status;
        assert_eq!(with("nanoclaw (unconfined)"), Status::Ok);
        for other in ["unconfined", "nanoclaw-else (unconfined)", "firefox (enforce)", ""] {
            assert_eq!(with(other), Status::Missing, "{other}");
        }
    }

    #[test]
    fn the_profile_names_one_program_and_grants_one_thing() {
        let text = apparmor_profile(Path::new("/opt/x/nanoclaw")).unwrap();
        let rules: Vec<&str> =
            text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
        assert_eq!(
            rules,
            [
                "abi <abi/4.0>,",
                "include <tunables/global>",
                "profile nanoclaw /opt/x/nanoclaw flags=(unconfined) {",
                "  userns,",
                "  include if exists <local/nanoclaw>",
                "}",
            ]
        );
        for odd in ["relative", "/a b/nanoclaw", "/a*/n", "/a{b}/n", "/a\"/n", "/a\n/n"] {
            assert!(apparmor_profile(Path::new(odd)).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_place_that_others_can_change_is_told() {
        assert!(!is_roots_alone(&std::env::temp_dir().join("nanoclaw")));
        assert!(!is_roots_alone(Path::new("/nowhere/at/all")));
        let usr = Path::new("/usr/bin").canonicalize().unwrap();
        assert!(is_roots_alone(&usr), "{usr:?}");
    }
}
