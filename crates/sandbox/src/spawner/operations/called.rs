//! What a reported call means: pure, but for the memory it is given to read.
//!
//! ```text
//! number, arguments, memory ─► Called ─┬─ Execute ─► reported, then let go on
//!                                      ├─ Refuse ──► answered with an errno, reported
//!                                      ├─ Late ────► what it names did not come: errno, counted
//!                                      └─ Pass ────► let go on: loopback, Unix, what is none
//! ```
//!
//! 1. Nothing is permitted because of what stands in memory. Executions are let go on whatever they
//!    are; a connection that is let go on is judged again by the kernel, in whose network namespace
//!    no way leads out. What changes after the look can escape the record, never the wall, and the
//!    kernel counts it (`NetworkCounts::unroutable`).
//! 2. A call that this module does not know is refused.

use super::memory::{self, List, Memory, Near, Text, Unread};
use crate::operation::{ARGV_BYTES_MAX, ARGV_MAX, PATH_BYTES_MAX};
use libc::c_long;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest address that is looked at: `struct sockaddr_in6`.
const ADDRESS_BYTES: usize = 28;
/// The longest that the kernel takes (`struct sockaddr_storage`); longer ones it refuses itself.
const ADDRESS_BYTES_MAX: u64 = 128;
/// The type of a socket, without its flags.
const SOCKET_TYPES: i32 = 0xf;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// Report, then let go on.
    Execute(Asked),
    /// Report and answer with this error.
    Refuse { call: &'static str, target: String, errno: Refused, racy: bool },
    /// Let go on, for it does not lead out.
    Pass,
    /// Let go on, for the kernel will not let it out; what it was could not be read, for this
    /// reason.
    Unjudged(String),
    /// Refuse, for what it is did not come in time, for this reason: it may be had later.
    Late(&'static str),
}

/// How a refused call is answered: as the kernel would without us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// No way leads there.
    Unreachable,
    /// Not for this one.
    NotPermitted,
    /// Not a call we know.
    Unknown,
}

impl Refused {
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Unreachable => libc::ENETUNREACH,
            Self::NotPermitted => libc::EPERM,
            Self::Unknown => libc::ENOSYS,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "ENETUNREACH",
            Self::NotPermitted => "EPERM",
            Self::Unknown => "ENOSYS",
        }
    }
}

/// An execution as it was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// The descriptor that the path begins at, if it does.
    pub(super) from: Option<i32>,
    pub(super) path: Text,
    pub(super) argv: List,
    /// What could not be read, and why.
    pub(super) unread: Option<String>,
}

/// Reads what a call means. `None` when it waits no more.
pub(super) fn called(number: c_long, arguments: &[u64; 6], memory: &impl Memory) -> Option<Called> {
    let [first, second, third, ..] = *arguments;
    match number {
        libc::SYS_execve => execute(None, first, second, memory),
        // Arguments of 32 bits: what stands above them does not count.
        libc::SYS_execveat => execute(Some(first as i32), second, third, memory),
        libc::SYS_connect => connect(second, third, memory),
        libc::SYS_socket => {
            let target = kind_of_socket(first as i32, second as i32);
            Some(Called::Refuse {
                call: "socket",
                target,
                errno: Refused::NotPermitted,
                racy: false,
            })
        }
        other => Some(Called::Refuse {
            call: "system call",
            target: other.to_string(),
            errno: Refused::Unknown,
            racy: false,
        }),
    }
}

fn execute(from: Option<i32>, path: u64, argv: u64, memory: &impl Memory) -> Option<Called> {
    match asked(from, path, argv, memory) {
        Ok(asked) => Some(Called::Execute(asked)),
        Err(Unread::Late(why)) => Some(Called::Late(why)),
        Err(_) => None,
    }
}

/// What is asked for, as far as it can be read; no more when the call waits no more, or what it
/// names is late.
fn asked(from: Option<i32>, path: u64, argv: u64, memory: &impl Memory) -> Result<Asked, Unread> {
    let mut unread = Vec::new();
    let memory = &Near::of(memory, &[path, argv]);
    let path = memory::text(memory, path, PATH_BYTES_MAX);
    let path: Text = or_said("the path", path, &mut unread)?;
    let argv = memory::list(memory, argv, ARGV_MAX, ARGV_BYTES_MAX);
    let argv: List = or_said("the arguments", argv, &mut unread)?;
    let relative = !path.bytes.starts_with(b"/");
    let from = from.filter(|fd| relative && *fd != libc::AT_FDCWD);
    let unread = (!unread.is_empty()).then(|| unread.join("; "));
    Ok(Asked { from, path, argv, unread })
}

/// What was read, or nothing and why.
fn or_said<T: Default>(
    what: &str,
    read: Result<T, Unread>,
    said: &mut Vec<String>,
) -> Result<T, Unread> {
    let why = match read {
        Err(Unread::Nowhere) => "a bad address".to_owned(),
        Err(Unread::Closed(why)) => why,
        found_or_over => return found_or_over,
    };
    said.push(format!("{what}: {why}"));
    Ok(T::default())
}

fn connect(address: u64, length: u64, memory: &impl Memory) -> Option<Called> {
    // `int addrlen`: what stands above it does not count, and negative ones are refused.
    let length = length & u64::from(u32::MAX);
    if length > ADDRESS_BYTES_MAX {
        return Some(Called::Pass);
    }
    let mut bytes = [0; ADDRESS_BYTES];
    let want = (length as usize).min(ADDRESS_BYTES);
    if want == 0 {
        return Some(Called::Pass);
    }
    match memory.read(&[(address, want)], &mut bytes[..want]) {
        Ok(got) => Some(match outside(&bytes[..got]) {
            Some(target) => Called::Refuse {
                call: "connect",
                target: target.to_string(),
                errno: Refused::Unreachable,
                racy: true,
            },
            None => Called::Pass,
        }),
        Err(Unread::Gone) => None,
        // The kernel will not find it either.
        Err(Unread::Nowhere) => Some(Called::Pass),
        Err(Unread::Closed(why)) => Some(Called::Unjudged(why)),
        Err(Unread::Late(why)) => Some(Called::Late(why)),
    }
}

/// The address, if it is one of the Internet's and not of this machine's own loopback. Linux takes
/// the unspecified address for the loopback.
fn outside(bytes: &[u8]) -> Option<SocketAddr> {
    const INET: u16 = libc::AF_INET as u16;
    const INET6: u16 = libc::AF_INET6 as u16;
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    match u16::from_ne_bytes(*family) {
        INET => {
            let (ip, _) = rest.split_first_chunk::<4>()?;
            let ip = Ipv4Addr::from(*ip);
            (!own(ip)).then(|| SocketAddr::from((ip, port)))
        }
        INET6 => {
            // After the flow label.
            let (ip, _) = rest.get(4..)?.split_first_chunk::<16>()?;
            let ip = Ipv6Addr::from(*ip);
            let inside = match ip.to_ipv4_mapped() {
                Some(ip) => own(ip),
                None => ip.is_loopback() || ip.is_unspecified(),
            };
            (!inside).then(|| SocketAddr::from((ip, port)))
        }
        _ => None,
    }
}

fn own(ip: Ipv4Addr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// `AF_PACKET, raw`.
fn kind_of_socket(family: i32, kind: i32) -> String {
    let family = match family {
        libc::AF_INET => "AF_INET".to_owned(),
        libc::AF_INET6 => "AF_INET6".to_owned(),
        libc::AF_NETLINK => "AF_NETLINK".to_owned(),
        libc::AF_PACKET => "AF_PACKET".to_owned(),
        libc::AF_VSOCK => "AF_VSOCK".to_owned(),
        libc::AF_ALG => "AF_ALG".to_owned(),
        libc::AF_BLUETOOTH => "AF_BLUETOOTH".to_owned(),
        libc::AF_CAN => "AF_CAN".to_owned(),
        libc::AF_KEY => "AF_KEY".to_owned(),
        other => format!("address family {other}"),
    };
    let kind = match kind & SOCKET_TYPES {
        libc::SOCK_STREAM => "stream".to_owned(),
        libc::SOCK_DGRAM => "datagram".to_owned(),
        libc::SOCK_RAW => "raw".to_owned(),
        other => format!("type {other}"),
    };
    format!("{family}, {kind}")
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::Pages;
    use super::*;

    const AT: u64 = 0x1000;

    fn v4(address: [u8; 4]) -> Vec<u8> {
        let family = (libc::AF_INET as u16).to_ne_bytes();
        [&family[..], &443_u16.to_be_bytes(), &address, &[0; 8]].concat()
    }

    fn v6(address: &str) -> Vec<u8> {
        let family = (libc::AF_INET6 as u16).to_ne_bytes();
        let ip: Ipv6Addr = address.parse().unwrap();
        [&family[..], &443_u16.to_be_bytes(), &[0; 4], &ip.octets(), &[0; 4]].concat()
    }

    fn target(address: &[u8], length: u64) -> Option<String> {
        let mut pages = Pages::default();
        pages.put(AT, address);
        match called(libc::SYS_connect, &[3, AT, length, 0, 0, 0], &pages).unwrap() {
            Called::Refuse { target, errno, racy, .. } => {
                assert_eq!((errno.name(), racy), ("ENETUNREACH", true));
                Some(target)
            }
            Called::Pass => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_the_own_loopback_is_refused() {
        for (address, outside) in [
            (v4([127, 0, 0, 1]), None),
            (v4([127, 64, 3, 9]), None),
            (v4([0, 0, 0, 0]), None),
            (v4([192, 0, 2, 1]), Some("192.0.2.1:443")),
            (v4([10, 0, 0, 1]), Some("10.0.0.1:443")),
            (v4([255, 255, 255, 255]), Some("255.255.255.255:443")),
            (v6("::1"), None),
            (v6("::"), None),
            (v6("::ffff:127.0.0.1"), None),
            (v6("::ffff:192.0.2.1"), Some("[::ffff:192.0.2.1]:443")),
            (v6("2001:db8::1"), Some("[2001:db8::1]:443")),
            (v6("fe80::1"), Some("[fe80::1]:443")),
        ] {
            let length = address.len() as u64;
            assert_eq!(target(&address, length).as_deref(), outside);
            // A longer length than the address has hides nothing, nor do high bits.
            assert_eq!(target(&address, 128).as_deref(), outside);
            assert_eq!(target(&address, length | 7 << 32).as_deref(), outside);
        }
    }

    #[test]
    fn what_the_kernel_refuses_itself_or_is_no_address_passes() {
        for (address, length) in [
            (v4([192, 0, 2, 1]), 0),
            (v4([192, 0, 2, 1]), 7),
            (v4([192, 0, 2, 1]), 129),
            (v4([192, 0, 2, 1]), u64::from(u32::MAX)),
            (v6("2001:db8::1"), 23),
            ([&[1, 0][..], b"/run/nanoclaw/door.sock\0"].concat(), 26),
            (vec![0; 16], 16),
        ] {
            assert_eq!(target(&address, length), None, "{length}");
        }
        let nothing = Pages::default();
        assert_eq!(called(libc::SYS_connect, &[3, AT, 16, 0, 0, 0], &nothing), Some(Called::Pass));
    }

    #[test]
    fn executions_are_read_and_what_cannot_be_read_is_said() {
        let mut pages = Pages::default();
        pages.put(AT, b"/bin/sh\0sh\0");
        pages.list(0x3000, &[AT + 8, 0]);
        let ask = |number, arguments| match called(number, &arguments, &pages) {
            Some(Called::Execute(asked)) => asked,
            other => panic!("{other:?}"),
        };
        let plain = ask(libc::SYS_execve, [AT, 0x3000, 0, 0, 0, 0]);
        assert_eq!((plain.path.bytes.as_slice(), plain.from), (&b"/bin/sh"[..], None));
        assert_eq!((plain.argv.texts, plain.unread), (vec![b"sh".to_vec()], None));
        let cwd = u64::from(libc::AT_FDCWD.cast_unsigned());
        let absolute = ask(libc::SYS_execveat, [5, AT, 0x3000, 0, 0, 0]);
        let relative = ask(libc::SYS_execveat, [5, AT + 8, 0x3000, 0, 0, 0]);
        let here = ask(libc::SYS_execveat, [cwd, AT + 8, 0x3000, 0, 0, 0]);
        assert_eq!((absolute.from, relative.from, here.from), (None, Some(5), None));
        let broken = ask(libc::SYS_execve, [0x77_0000, 0x88_0000, 0, 0, 0, 0]);
        let said = "the path: a bad address; the arguments: a bad address";
        assert_eq!(broken.unread.as_deref(), Some(said));
    }

    struct Fails(fn() -> Unread);

    impl Memory for Fails {
        fn read(&self, _: &[(u64, usize)], _: &mut [u8]) -> Result<usize, Unread> {
            Err((self.0)())
        }
    }

    #[test]
    fn memory_that_is_closed_is_said_and_a_caller_that_is_gone_is_left() {
        let closed = Fails(|| Unread::Closed("not for you".into()));
        let gone = Fails(|| Unread::Gone);
        let late = Fails(|| Unread::Late("not in time"));
        let arguments = [AT, AT, 16, 0, 0, 0];
        for number in [libc::SYS_execve, libc::SYS_execveat, libc::SYS_connect] {
            assert_eq!(called(number, &arguments, &gone), None);
            // Neither let go on, nor on record as something it is not.
            assert_eq!(called(number, &arguments, &late), Some(Called::Late("not in time")));
        }
        let unjudged = called(libc::SYS_connect, &arguments, &closed);
        assert_eq!(unjudged, Some(Called::Unjudged("not for you".into())));
        let Some(Called::Execute(asked)) = called(libc::SYS_execve, &arguments, &closed) else {
            panic!("it is let go on")
        };
        assert!(asked.unread.unwrap().contains("not for you"));
    }

    #[test]
    fn sockets_that_the_filter_hands_over_and_unknown_calls_are_refused() {
        let nothing = Pages::default();
        for (family, kind, words) in [
            (17, 3, "AF_PACKET, raw"),
            (2, 3 | 0o2_000_000, "AF_INET, raw"),
            (16, 2, "AF_NETLINK, datagram"),
            (99, 9, "address family 99, type 9"),
        ] {
            let answer = called(libc::SYS_socket, &[family, kind, 0, 0, 0, 0], &nothing);
            let Some(Called::Refuse { target, errno, racy: false, .. }) = answer else {
                panic!("{answer:?}")
            };
            assert_eq!((target.as_str(), errno.number()), (words, libc::EPERM));
        }
        let answer = called(libc::SYS_mount, &[0; 6], &nothing);
        assert!(matches!(answer, Some(Called::Refuse { errno: Refused::Unknown, .. })));
    }
}
