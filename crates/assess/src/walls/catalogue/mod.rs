//! Every probe of the walls: its name, the wall it belongs to, what is tried, and what a walled
//! sandbox and an open place answer. Data only.

mod calls;
mod files;
mod privileges;
mod sessions;
mod sockets;
mod spaces;

use super::errno;

/// A group of protections that stand or fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wall {
    /// Worlds of its own: processes, network, names, users, mounts.
    Namespaces,
    /// What is mounted stays as it was mounted.
    Mounts,
    /// Which files there are, and what may be done to them.
    Files,
    /// Which system calls reach the kernel.
    SystemCalls,
    /// Whom it can talk to.
    Sockets,
    /// What it may do as whom.
    Privileges,
    /// What it got from who started it.
    Inheritance,
    /// The sandbox's own first process as a target.
    Init,
    /// How much it can use.
    Limits,
    /// What it sees of another session at the same time.
    Sessions,
    /// That it ends, and leaves nothing.
    Lifecycle,
}

impl Wall {
    /// All, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::Namespaces,
        Self::Mounts,
        Self::Files,
        Self::SystemCalls,
        Self::Sockets,
        Self::Privileges,
        Self::Inheritance,
        Self::Init,
        Self::Limits,
        Self::Sessions,
        Self::Lifecycle,
    ];

    /// As it stands in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Mounts => "mounts",
            Self::Files => "files",
            Self::SystemCalls => "system calls",
            Self::Sockets => "sockets",
            Self::Privileges => "privileges",
            Self::Inheritance => "inheritance",
            Self::Init => "init",
            Self::Limits => "limits",
            Self::Sessions => "sessions",
            Self::Lifecycle => "lifecycle",
        }
    }
}

/// What a walled sandbox answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The call is refused with one of these errors.
    Refused(&'static [i32]),
    /// The process is ended with one of these signals.
    Killed(&'static [i32]),
    /// It comes to an end at the limit: with one of these errors, or one of these signals.
    Bounded {
        /// Errors.
        errnos: &'static [i32],
        /// Signals.
        signals: &'static [i32],
    },
    /// This is seen.
    Seen(&'static str),
}

impl Expect {
    /// In words.
    #[must_use]
    pub fn words(self) -> String {
        let errors = |all: &[i32]| all.iter().map(|c| errno::name(*c)).collect::<Vec<_>>();
        let signals = |all: &[i32]| all.iter().map(|s| format!("signal {s}")).collect::<Vec<_>>();
        match self {
            Self::Refused(all) => errors(all).join(" or "),
            Self::Killed(all) => signals(all).join(" or "),
            Self::Bounded { errnos, signals: s } => {
                [errors(errnos), signals(s)].concat().join(" or ")
            }
            Self::Seen(what) => what.to_owned(),
        }
    }
}

/// In which open place the probe trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Any process of the host.
    Plain,
    /// A process with every capability in namespaces of its own.
    Capable,
    /// The host's root.
    Root,
    /// A process of the host with what is looked for within its reach.
    Staged,
}

impl Open {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Plain => "trips in any process of the host",
            Self::Capable => "trips with every capability in namespaces of its own",
            Self::Root => "trips as the host's root",
            Self::Staged => "trips where what it looks for is within reach",
        }
    }
}

/// When and where it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Inside, also in the quick battery: it needs nothing laid out and leaves nothing behind.
    Start,
    /// Inside, with baits laid out.
    Inside,
    /// Inside a second sandbox, whose limits are made to be reached.
    Tight,
    /// As [`When::Tight`], in one of its own: where the kernel holds no limit for all of a sandbox,
    /// all of it ends at this one.
    Alone,
    /// From outside, by what is left.
    Outside,
}

/// One probe.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Stable name, after the terms of assessments; unique.
    pub name: &'static str,
    /// The wall it belongs to.
    pub wall: Wall,
    /// What is tried, as a person would say it.
    pub act: &'static str,
    /// What a walled sandbox answers.
    pub expect: Expect,
    /// Where it trips.
    pub open: Open,
    /// When it is tried.
    pub when: When,
}

const fn row(
    name: &'static str,
    wall: Wall,
    act: &'static str,
    expect: Expect,
    open: Open,
    when: When,
) -> Probe {
    Probe { name, wall, act, expect, open, when }
}

/// All probes, wall by wall.
pub const CATALOGUE: &[&[Probe]] = &[
    spaces::NAMESPACES,
    spaces::MOUNTS,
    files::FILES,
    calls::CALLS,
    sockets::SOCKETS,
    privileges::PRIVILEGES,
    privileges::INHERITANCE,
    privileges::INIT,
    sessions::LIMITS,
    sessions::SESSIONS,
    sessions::LIFECYCLE,
];

/// Every probe, in the order of reports.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    CATALOGUE.iter().copied().flatten()
}

/// The probe of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Probe> {
    all().find(|p| p.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The least that the battery promises.
    const PROBES_MIN: usize = 100;

    #[test]
    fn there_are_at_least_a_hundred_and_no_name_stands_twice() {
        let names: BTreeSet<&str> = all().map(|p| p.name).collect();
        assert_eq!(names.len(), all().count());
        assert!(names.len() >= PROBES_MIN, "{}", names.len());
        let odd =
            |n: &&&str| !n.bytes().all(|b| b.is_ascii_lowercase() || b"-0123456789".contains(&b));
        assert_eq!(names.iter().find(odd), None);
    }

    #[test]
    fn each_says_what_is_tried_what_holds_and_where_it_trips() {
        for probe in all() {
            assert!(!probe.act.is_empty() && !probe.expect.words().is_empty(), "{}", probe.name);
            assert!(probe.open.words().starts_with("trips"), "{}", probe.name);
            if let Expect::Refused([]) | Expect::Killed([]) = probe.expect {
                panic!("{} expects nothing", probe.name);
            }
        }
    }

    #[test]
    fn every_wall_has_probes_and_the_quick_battery_looks_at_most_of_them() {
        for wall in Wall::ALL {
            assert!(all().any(|p| p.wall == wall), "{}", wall.name());
        }
        let quick: Vec<_> = all().filter(|p| p.when == When::Start).collect();
        assert!((40..=100).contains(&quick.len()), "{}", quick.len());
        let walls: BTreeSet<Wall> = quick.iter().map(|p| p.wall).collect();
        assert!(walls.len() >= 8, "{walls:?}");
    }

    /// Reports group by wall: the rows of one stand together.
    #[test]
    fn the_catalogue_is_in_the_order_of_the_walls() {
        let walls: Vec<Wall> = all().map(|p| p.wall).collect();
        assert!(walls.is_sorted());
    }
}
