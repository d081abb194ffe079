//! Whom a sandbox can talk to.

use super::{Expect::*, Open::*, Probe, Wall::Sockets, When::*, row};
use libc::{EACCES, EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED, ENETUNREACH, ENOENT, EPERM};

const NO: super::Expect = Refused(&[EPERM]);
const NOBODY: super::Expect = Refused(&[ECONNREFUSED]);
const NOBODY_6: super::Expect = Refused(&[ECONNREFUSED, EADDRNOTAVAIL, EAFNOSUPPORT]);
const NO_WAY: super::Expect = Refused(&[ENETUNREACH]);
const NO_WAY_6: super::Expect = Refused(&[ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT]);

/// A family or protocol that the filter refuses.
const fn family(name: &'static str, act: &'static str) -> Probe {
    row(name, Sockets, act, NO, Plain, Inside)
}

/// Somebody who listens outside.
const fn nobody(name: &'static str, act: &'static str, expect: super::Expect) -> Probe {
    row(name, Sockets, act, expect, Staged, Inside)
}

pub(super) const SOCKETS: &[Probe] = &[
    row(
        "net-interfaces",
        Sockets,
        "find an interface beside loopback",
        Seen("lo only"),
        Staged,
        Start,
    ),
    row("net-routes", Sockets, "find a route", Seen("none beside loopback's"), Staged, Start),
    nobody("host-loopback", "reach a server on the host's loopback", NOBODY),
    nobody("host-loopback-6", "the same over IPv6", NOBODY_6),
    nobody("host-loopback-udp", "the same with a datagram", NOBODY),
    nobody("far-address", "reach an address out there", NO_WAY),
    nobody("far-address-6", "the same over IPv6", NO_WAY_6),
    nobody("far-address-udp", "the same with a datagram", NO_WAY),
    nobody("cloud-metadata", "ask a cloud for the machine's credentials", NO_WAY),
    nobody("icmp", "send a ping", Refused(&[EACCES, EPERM])),
    row("raw-socket", Sockets, "make up packets (SOCK_RAW)", NO, Capable, Inside),
    row("raw-socket-6", Sockets, "make up packets of IPv6", NO, Capable, Inside),
    row("af-packet", Sockets, "listen to the wire (AF_PACKET)", NO, Capable, Start),
    row("af-vsock", Sockets, "speak to the hypervisor (AF_VSOCK)", NO, Plain, Start),
    family("af-alg", "use the kernel's ciphers (AF_ALG)"),
    row("netlink-audit", Sockets, "speak to the kernel's audit", NO, Plain, Start),
    family("netlink-uevent", "hear of devices"),
    family("netlink-netfilter", "speak to the packet filter"),
    family("netlink-generic", "speak generic netlink"),
    family("netlink-sock-diag", "list sockets of the machine"),
    family("netlink-xfrm", "change IPsec"),
    family("socket-high-bits", "hide a family below bits the kernel ignores"),
    family("socketpair-families", "a pair of another family than AF_UNIX"),
    row(
        "socket-families",
        Sockets,
        "every other family, one after the other",
        Seen("each refused"),
        Plain,
        Start,
    ),
    row("netlink-route-write", Sockets, "change an interface", NO, Capable, Inside),
    row("so-mark", Sockets, "mark packets to go round rules", NO, Capable, Inside),
    nobody(
        "host-abstract-socket",
        "reach an abstract socket of the host",
        Refused(&[ECONNREFUSED, EPERM]),
    ),
    nobody("host-socket", "reach a socket of the host by its path", Refused(&[ENOENT])),
    nobody(
        "container-sockets",
        "give orders to a container engine or the init system",
        Seen("none is there"),
    ),
    nobody(
        "door-direct",
        "speak at the door itself, as somebody else than init",
        Seen("nobody answers"),
    ),
    nobody(
        "door-passed",
        "hand a connection to the door to another session",
        Seen("nobody answers there"),
    ),
];
