//! The same rules in the words of container engines (OCI runtime specification, `linux.seccomp`;
//! Docker and Podman take this form as a profile).
//!
//! Pipeline: names and rules ─► entries ─► JSON, handed over when a container is made.
//!
//! Invariants:
//! 1. What the profile allows, the filter of a native sandbox allows, and the other way round. A
//!    test compares the two at every boundary of every rule.
//! 2. Only 32 bits of an argument are compared, as there: each condition is a masked comparison.
//! 3. An entry holds at most one condition an argument: runtimes take two as alternatives. "None
//!    of these" is therefore written as the bit patterns of all other numbers.

use super::{Rule, written};
use serde_json::{Value, json};

/// Compared bits.
const ALL_BITS: u32 = u32::MAX;

/// One condition on an argument: those bits of it are that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    argument: u8,
    mask: u32,
    value: u32,
}

/// A call that is allowed when every condition holds.
type Entry = Vec<Test>;

/// The profile as compact JSON; the same bytes each time.
pub(crate) fn profile() -> String {
    let (mut plain, mut missing, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for ((constant, _), rule) in written() {
        let name = constant.trim_start_matches("SYS_");
        match alternatives(rule) {
            None => missing.push(name),
            Some(all) if all.iter().any(Vec::is_empty) => plain.push(name),
            Some(all) => entries.extend(all.iter().map(|tests| entry(name, tests))),
        }
    }
    plain.sort_unstable();
    missing.sort_unstable();
    entries.insert(0, json!({ "names": plain, "action": "SCMP_ACT_ALLOW" }));
    entries.push(json!({
        "names": missing, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS
    }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [ARCHITECTURE],
        "syscalls": entries,
    })
    .to_string()
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";

fn entry(name: &str, tests: &[Test]) -> Value {
    let tests: Vec<Value> = tests
        .iter()
        .map(|t| {
            json!({
                "index": t.argument, "value": t.mask, "valueTwo": t.value,
                "op": "SCMP_CMP_MASKED_EQ"
            })
        })
        .collect();
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": tests })
}

/// When a call is allowed; any alternative will do. `None`: it is answered with `ENOSYS`.
fn alternatives(rule: Rule) -> Option<Vec<Entry>> {
    let is = |argument: u8, value: u32| Test { argument, mask: ALL_BITS, value };
    Some(match rule {
        Rule::Allow => vec![vec![]],
        Rule::NotImplemented => return None,
        Rule::NoBits(argument, mask) => vec![vec![Test { argument, mask, value: 0 }]],
        // One of the bits is another.
        Rule::NotThese(argument, bits, wrong) => (0..u32::BITS)
            .map(|n| 1 << n)
            .filter(|mask| bits & mask != 0)
            .map(|mask| vec![Test { argument, mask, value: !wrong & mask }])
            .collect(),
        Rule::OneOf(argument, values) => values.iter().map(|v| vec![is(argument, *v)]).collect(),
        Rule::NoneOf(argument, values) => others(values, ALL_BITS)
            .into_iter()
            .map(|(mask, value)| vec![Test { argument, mask, value }])
            .collect(),
        Rule::OfOthers(kind) => others(super::FIRST_PROCESS, ALL_BITS)
            .into_iter()
            .map(|(mask, value)| vec![is(0, kind), Test { argument: 1, mask, value }])
            .collect(),
        Rule::Thread => {
            let mask = super::THREAD | super::NEW_NAMESPACES;
            vec![vec![Test { argument: 0, mask, value: super::THREAD }]]
        }
        Rule::Socket => {
            let unix = vec![is(0, libc::AF_UNIX as u32)];
            let route = vec![is(0, libc::AF_NETLINK as u32), is(2, libc::NETLINK_ROUTE as u32)];
            let plain = |family: libc::c_int| {
                others(&super::RAW_KINDS, super::SOCKET_KINDS).into_iter().map(
                    move |(mask, value)| {
                        vec![is(0, family as u32), Test { argument: 1, mask, value }]
                    },
                )
            };
            let internet = plain(libc::AF_INET).chain(plain(libc::AF_INET6));
            [unix, route].into_iter().chain(internet).collect()
        }
        // Reports are our own filter's affair, and no rule that is written here is one of them;
        // without an alternative a call is refused.
        Rule::Reported | Rule::ReportedSocket => vec![],
    })
}

/// Every number of these bits (the lowest ones) but these, as bit patterns (mask and value) that do
/// not overlap: the branches of the binary tree of all numbers that lead to none of them.
fn others(values: &[u32], bits: u32) -> Vec<(u32, u32)> {
    fn branch(
        prefix: u32,
        bit: Option<u32>,
        (values, bits): (&[u32], u32),
        found: &mut Vec<(u32, u32)>,
    ) {
        let mask = bits & bit.map_or(ALL_BITS, |b| ALL_BITS.checked_shl(b + 1).unwrap_or(0));
        if !values.iter().any(|v| v & mask == prefix) {
            found.push((mask, prefix));
        } else if let Some(b) = bit {
            for side in [prefix, prefix | (1 << b)] {
                branch(side, b.checked_sub(1), (values, bits), found);
            }
        }
    }
    let mut found = Vec::new();
    branch(0, bits.checked_ilog2(), (values, bits), &mut found);
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::collections::BTreeSet;

    /// What a profile says of a call, read from its JSON as a runtime reads it.
    fn allows(profile: &Value, name: &str, arguments: [u32; 6]) -> Result<(), i64> {
        let entries = profile["syscalls"].as_array().unwrap();
        for entry in entries {
            if !entry["names"].as_array().unwrap().iter().any(|n| n == name) {
                continue;
            }
            let holds = entry["args"].as_array().into_iter().flatten().all(|test| {
                let number = |key: &str| test[key].as_u64().unwrap();
                let argument = u64::from(arguments[number("index") as usize]);
                argument & number("value") == number("valueTwo")
            });
            if holds {
                return match entry["action"].as_str().unwrap() {
                    "SCMP_ACT_ALLOW" => Ok(()),
                    "SCMP_ACT_ERRNO" => Err(entry["errnoRet"].as_i64().unwrap()),
                    other => panic!("an action {other}"),
                };
            }
        }
        Err(profile["defaultErrnoRet"].as_i64().unwrap())
    }

    /// What the rule itself says.
    fn meant(rule: Rule, a: [u32; 6]) -> Result<(), i64> {
        let at = |i: u8| a[usize::from(i)];
        let yes = match rule {
            Rule::Allow => true,
            Rule::NotImplemented => return Err(38),
            Rule::NoBits(i, bits) => at(i) & bits == 0,
            Rule::NotThese(i, bits, wrong) => at(i) & bits != wrong,
            Rule::OneOf(i, values) => values.contains(&at(i)),
            Rule::NoneOf(i, values) => !values.contains(&at(i)),
            Rule::OfOthers(kind) => at(0) == kind && at(1) != 1,
            Rule::Thread => at(0) & (0x0001_0000 | 0x7e02_0000) == 0x0001_0000,
            Rule::Socket => match at(0) {
                1 => true,
                // SOCK_RAW and SOCK_PACKET, whatever the flags.
                2 | 10 => ![3, 10].contains(&(at(1) & 0xf)),
                family => family == 16 && at(2) == 0,
            },
            Rule::Reported | Rule::ReportedSocket => panic!("no profile reports"),
        };
        if yes { Ok(()) } else { Err(1) }
    }

    #[test]
    fn the_profile_says_of_every_call_what_its_rule_says() {
        let profile: Value = serde_json::from_str(&profile()).unwrap();
        let mut edges: BTreeSet<u32> = [0, 1, 2, 3, 10, 16, 17, 40, u32::MAX].into();
        for bit in 0..32 {
            edges.extend([1 << bit, !(1 << bit)]);
        }
        for (_, rule) in written() {
            if let Rule::OneOf(_, values) | Rule::NoneOf(_, values) = rule {
                for v in values {
                    edges.extend([*v, v.wrapping_add(1), v.wrapping_sub(1), v ^ 0x8000_0000]);
                }
            }
        }
        for ((constant, _), rule) in written() {
            let name = constant.trim_start_matches("SYS_");
            for index in 0..4 {
                for edge in &edges {
                    let mut arguments = [0; 6];
                    arguments[index] = *edge;
                    let (said, want) = (allows(&profile, name, arguments), meant(rule, arguments));
                    assert_eq!(said, want, "{name} with {arguments:?}");
                }
            }
        }
        for (protocol, want) in [(0, Ok(())), (12, Err(1))] {
            assert_eq!(allows(&profile, "socket", [16, 3, protocol, 0, 0, 0]), want);
        }
        for family in [1, 2, 10, 16, 17, 40] {
            for kind in (0..64).chain([0o2_004_001, 0o2_004_003, 0o2_004_012, u32::MAX]) {
                let arguments = [family, kind, 0, 0, 0, 0];
                let want = meant(Rule::Socket, arguments);
                assert_eq!(allows(&profile, "socket", arguments), want, "{arguments:?}");
            }
        }
        assert_eq!(allows(&profile, "mount", [0; 6]), Err(1));
        assert_eq!(allows(&profile, "io_uring_setup", [0; 6]), Err(38));
    }

    #[test]
    fn no_entry_compares_one_argument_twice() {
        for (_, rule) in written() {
            for tests in alternatives(rule).into_iter().flatten() {
                let arguments: BTreeSet<u8> = tests.iter().map(|t| t.argument).collect();
                assert_eq!(arguments.len(), tests.len(), "{tests:?}");
            }
        }
    }

    #[test]
    fn all_other_numbers_are_covered_once() {
        let values = [0x5412, 0x541c, 0x5423, u32::MAX];
        let patterns = others(&values, ALL_BITS);
        let hits = |n: u32| patterns.iter().filter(|(mask, value)| n & mask == *value).count();
        for value in values {
            assert_eq!(hits(value), 0, "{value:#x}");
        }
        for other in [0, 1, 0x5411, 0x5413, 0x541d, 0x8000_5412, u32::MAX - 1] {
            assert_eq!(hits(other), 1, "{other:#x}");
        }
        let covered: u64 = patterns.iter().map(|(mask, _)| 1_u64 << (!mask).count_ones()).sum();
        assert_eq!(covered, (1 << 32) - values.len() as u64);
    }
}
