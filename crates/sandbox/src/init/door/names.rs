//! Which name has which loopback address, and what the gateway said of it.
//!
//! Invariants:
//! 1. A name keeps its address as long as it is used: one is given to another name only after an
//!    hour without a lookup or a connection, for programs keep addresses far longer than they may.
//! 2. Bounded: [`NAMES_MAX`] names with an address, [`REFUSED_MAX`] without.
//! 3. Pure: the caller brings the time.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Names with an address at a time. A browser session touches some hundred.
const NAMES_MAX: usize = 4_096;
/// Refused names remembered: enough to spare the gateway a program that tries again and again;
/// one that tries ever new names gains nothing by being remembered.
const REFUSED_MAX: usize = 256;
/// How long the gateway's word holds. A rule that was taken back still refuses the connection.
const FRESH: Duration = Duration::from_secs(30);
/// An address unused for so long may get another name.
const IDLE: Duration = Duration::from_secs(3_600);
/// 127.64.0.0/10: far from the addresses that people give their own servers.
const BASE: u32 = 0x7f40_0000;
/// Last bytes 0 and 255 are left out: some programs take them for networks and broadcasts.
const HOSTS: u32 = 254;

#[derive(Debug)]
struct Named {
    name: Box<str>,
    /// The gateway permitted it then.
    asked: Instant,
    /// It was looked up or dialled then.
    used: Instant,
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It has this address.
    Address(Ipv4Addr),
    /// The gateway refused it a short while ago.
    Refused,
    /// The gateway must be asked.
    Nothing,
}

/// All names of this sandbox.
#[derive(Debug, Default)]
pub(super) struct Names {
    named: Vec<Named>,
    refused: VecDeque<(Box<str>, Instant)>,
}

fn address(slot: usize) -> Ipv4Addr {
    let slot = u32::try_from(slot).unwrap_or(0);
    Ipv4Addr::from_bits(BASE + (slot / HOSTS) * 256 + slot % HOSTS + 1)
}

fn slot(address: Ipv4Addr) -> Option<usize> {
    let offset = address.to_bits().checked_sub(BASE)?;
    let (block, host) = (offset / 256, offset % 256);
    (1..=HOSTS).contains(&host).then(|| (block * HOSTS + host - 1) as usize)
}

impl Names {
    fn find(&mut self, name: &str) -> Option<(usize, &mut Named)> {
        // Comparing lengths first makes this some microseconds for a full table.
        self.named.iter_mut().enumerate().find(|(_, n)| *n.name == *name)
    }

    /// What can be said without asking.
    pub(super) fn look(&mut self, name: &str, now: Instant) -> Known {
        if let Some((slot, named)) = self.find(name)
            && now.duration_since(named.asked) < FRESH
        {
            named.used = now;
            return Known::Address(address(slot));
        }
        let fresh = |at: &Instant| now.duration_since(*at) < FRESH;
        if self.refused.iter().any(|(n, at)| **n == *name && fresh(at)) {
            return Known::Refused;
        }
        Known::Nothing
    }

    /// The gateway permits it: its address, or `None` when every address is in use.
    pub(super) fn permit(&mut self, name: &str, now: Instant) -> Option<Ipv4Addr> {
        self.refused.retain(|(n, _)| **n != *name);
        if let Some((slot, named)) = self.find(name) {
            (named.asked, named.used) = (now, now);
            return Some(address(slot));
        }
        let new = Named { name: name.into(), asked: now, used: now };
        if self.named.len() < NAMES_MAX {
            self.named.push(new);
            return Some(address(self.named.len() - 1));
        }
        let (slot, oldest) = self.named.iter_mut().enumerate().min_by_key(|(_, n)| n.used)?;
        (now.duration_since(oldest.used) >= IDLE).then(|| {
            *oldest = new;
            address(slot)
        })
    }

    /// The gateway refuses it. An address that it has stays its own and leads nowhere.
    pub(super) fn refuse(&mut self, name: &str, now: Instant) {
        self.refused.retain(|(n, at)| **n != *name && now.duration_since(*at) < FRESH);
        if self.refused.len() >= REFUSED_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back((name.into(), now));
    }

    /// The name that was dialled.
    pub(super) fn dialled(&mut self, address: Ipv4Addr, now: Instant) -> Option<&str> {
        let named = self.named.get_mut(slot(address)?)?;
        named.used = now;
        Some(&named.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_address_of_its_own_below_127_64() {
        let (mut names, now) = (Names::default(), Instant::now());
        let mut seen = std::collections::HashSet::new();
        for number in 0..NAMES_MAX {
            let name = format!("h{number}.example.org");
            let address = names.permit(&name, now).unwrap();
            assert!(seen.insert(address), "{address} twice");
            assert!(address.octets()[0] == 127 && (64..128).contains(&address.octets()[1]));
            assert_eq!(names.dialled(address, now), Some(&*name));
            assert_eq!(names.look(&name, now), Known::Address(address));
        }
        for outside in ["127.0.0.1", "127.64.0.0", "127.64.0.255", "127.127.0.1", "1.2.3.4"] {
            assert_eq!(names.dialled(outside.parse().unwrap(), now), None, "{outside}");
        }
    }

    #[test]
    fn an_address_changes_its_name_only_after_an_hour_of_rest() {
        let (mut names, start) = (Names::default(), Instant::now());
        let first = names.permit("h0.example.org", start).unwrap();
        let second = names.permit("h1.example.org", start).unwrap();
        for number in 2..NAMES_MAX {
            names.permit(&format!("h{number}.example.org"), start).unwrap();
        }
        let later = start + IDLE;
        assert!(names.permit("new.example.org", later - Duration::from_secs(1)).is_none());
        names.dialled(first, later);
        assert_eq!(names.permit("new.example.org", later), Some(second), "the first is in use");
        assert_eq!(names.dialled(second, later), Some("new.example.org"));
        assert_eq!(names.look("h1.example.org", later), Known::Nothing);
    }

    #[test]
    fn the_gateways_word_holds_for_half_a_minute_and_refusals_are_bounded() {
        let (mut names, start) = (Names::default(), Instant::now());
        let address = names.permit("a.example.org", start).unwrap();
        assert_eq!(names.look("a.example.org", start + FRESH), Known::Nothing);
        assert_eq!(names.permit("a.example.org", start + FRESH), Some(address));
        names.refuse("b.example.org", start);
        assert_eq!(names.look("b.example.org", start), Known::Refused);
        assert_eq!(names.look("b.example.org", start + FRESH), Known::Nothing);
        for number in 0..10_000 {
            names.refuse(&format!("t{number}.example.net"), start);
        }
        assert_eq!(names.refused.len(), REFUSED_MAX);
        assert_eq!(names.look("b.example.org", start), Known::Nothing);
        names.permit("t9999.example.net", start).unwrap();
        assert!(matches!(names.look("t9999.example.net", start), Known::Address(_)));
    }
}
