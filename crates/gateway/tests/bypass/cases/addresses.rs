//! Addresses: in place of names, behind names, and changed after they were judged.

use super::{plain, ruled, says, secret};
use crate::lab::Due::{Held, Refused};
use crate::lab::Trip::{Dialled, Evil, Mark};
use crate::lab::{Attack, Case, Lab, Setup};
use crate::world::{GOOD, Ports};
use std::sync::Arc;

/// `CONNECT` to an address in some spelling.
macro_rules! literal {
    ($name:literal, $to:literal, $dialled:literal) => {
        literal!($name, $to, $dialled, "http: ")
    };
    ($name:literal, $to:literal, $dialled:literal, $due:literal) => {
        says(
            $name,
            plain,
            concat!(
                "CONNECT ",
                $to,
                ":{P} HTTP/1.1\r\nHost: ",
                $to,
                ":{P}\r\n\r\n",
                "GET /{MARK} HTTP/1.1\r\nHost: ",
                $to,
                ":{P}\r\n\r\n"
            ),
            Dialled($dialled),
            Refused($due),
        )
    };
}

const BOTH: &str = "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n";

/// The permitted name means `$ip`, in a rule that is private or not.
macro_rules! means {
    ($name:literal, [$($ip:literal),+], $private:literal, $dialled:literal, $due:literal) => {
        says(
            $name,
            |ports| {
                let mut setup = ruled(ports, |rule| rule.private = $private);
                setup.names = vec![("good.test", vec![vec![$($ip),+]])];
                setup.control = None;
                setup
            },
            BOTH,
            Dialled($dialled),
            Refused($due),
        )
    };
}

/// First this machine, then the metadata service.
fn rebinding(ports: Ports) -> Setup {
    let mut setup = plain(ports);
    setup.names = vec![("good.test", vec![vec![GOOD], vec!["169.254.169.254"]])];
    setup.says = |_| vec![b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\nbye".to_vec(), Vec::new()];
    setup.control = None;
    setup
}

/// A secret for a name that means another machine.
fn secret_elsewhere(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.names = vec![("good.test", vec![vec!["10.0.0.1"]])];
    setup.control = None;
    setup
}

pub(super) const CASES: &[Case] = &[
    literal!("address: IPv4", "127.0.0.2", "127.0.0.2"),
    literal!("address: IPv4, decimal", "2130706434", "127.0.0.2"),
    literal!("address: IPv4, octal", "0177.0.0.02", "127.0.0.2"),
    literal!("address: IPv4, octal in one", "017700000002", "127.0.0.2"),
    literal!("address: IPv4, hexadecimal", "0x7f000002", "127.0.0.2"),
    literal!("address: IPv4, hexadecimal parts", "0x7f.0x0.0x0.0x2", "127.0.0.2"),
    literal!("address: IPv4, mixed bases", "0x7f.0.02", "127.0.0.2"),
    literal!("address: IPv4, short", "127.2", "127.0.0.2"),
    literal!("address: IPv4, trailing dot", "127.0.0.2.", "127.0.0.2"),
    literal!("address: 0.0.0.0", "0.0.0.0", "0.0.0.0"),
    literal!("address: metadata", "169.254.169.254", "169.254.169.254"),
    literal!("address: metadata, decimal", "2852039166", "169.254.169.254"),
    literal!("address: IPv6 loopback", "[::1]", "::1"),
    literal!("address: IPv6 unspecified", "[::]", "::"),
    literal!("address: IPv4-mapped", "[::ffff:127.0.0.2]", "::ffff:127.0.0.2"),
    literal!("address: IPv4-mapped, hexadecimal", "[::ffff:7f00:2]", "::ffff:127.0.0.2"),
    literal!("address: with a zone", "[fe80::1%25eth0]", "fe80::1"),
    literal!("address: NAT64", "[64:ff9b::7f00:2]", "64:ff9b::7f00:2"),
    literal!("address: 6to4", "[2002:7f00:2::]", "2002:7f00:2::"),
    literal!("address: unique local", "[fd00:ec2::254]", "fd00:ec2::254"),
    says(
        "address: in an absolute target",
        plain,
        "GET http://127.0.0.2:{P}/{MARK} HTTP/1.1\r\nHost: 127.0.0.2:{P}\r\n\r\n",
        Mark,
        Refused("http: "),
    ),
    means!("name means: loopback", ["127.0.0.2"], false, "127.0.0.2", "loopback"),
    means!("name means: all of loopback", ["127.8.9.1"], false, "127.8.9.1", "loopback"),
    means!("name means: a private network", ["10.0.0.1"], false, "10.0.0.1", "private network"),
    means!("name means: 172.16/12", ["172.31.0.1"], false, "172.31.0.1", "private network"),
    means!("name means: 192.168/16", ["192.168.1.1"], false, "192.168.1.1", "private network"),
    means!("name means: carrier-grade NAT", ["100.64.0.1"], false, "100.64.0.1", "carrier-grade"),
    means!("name means: link-local", ["169.254.1.1"], false, "169.254.1.1", "link-local"),
    means!("name means: EKS pod", ["169.254.170.23"], true, "169.254.170.23", "metadata"),
    means!("name means: EKS pod, IPv6", ["fd00:ec2::23"], true, "fd00:ec2::23", "metadata"),
    means!("name means: Scaleway", ["169.254.42.42"], true, "169.254.42.42", "metadata"),
    means!("name means: Tencent", ["169.254.0.23"], true, "169.254.0.23", "metadata"),
    means!(
        "name means: Oracle",
        ["fd00:c1::a9fe:a9fe"],
        true,
        "fd00:c1::a9fe:a9fe",
        "a cloud metadata"
    ),
    means!(
        "in clear: a public address at a port of TLS",
        ["93.184.216.34"],
        false,
        "93.184.216.34",
        "without TLS"
    ),
    means!(
        "in clear: a public address behind a private rule",
        ["127.0.0.1", "93.184.216.34"],
        true,
        "93.184.216.34",
        "without TLS"
    ),
    means!("name means: metadata", ["169.254.169.254"], true, "169.254.169.254", "metadata"),
    means!(
        "name means: metadata of a second cloud",
        ["100.100.100.200"],
        true,
        "100.100.100.200",
        "metadata"
    ),
    means!("name means: unspecified", ["0.0.0.0"], true, "0.0.0.0", "unspecified"),
    means!("name means: broadcast", ["255.255.255.255"], true, "255.255.255.255", "broadcast"),
    means!("name means: multicast", ["224.0.0.251"], true, "224.0.0.251", "multicast"),
    means!("name means: IPv6 loopback", ["::1"], false, "::1", "loopback"),
    means!("name means: IPv6 unspecified", ["::"], true, "::", "unspecified"),
    means!(
        "name means: mapped loopback",
        ["::ffff:127.0.0.2"],
        false,
        "::ffff:127.0.0.2",
        "loopback"
    ),
    means!(
        "name means: mapped metadata",
        ["::ffff:169.254.169.254"],
        true,
        "::ffff:169.254.169.254",
        "metadata"
    ),
    means!("name means: IPv4-compatible", ["::127.0.0.2"], true, "::7f00:2", "compatible"),
    means!(
        "name means: NAT64 of metadata",
        ["64:ff9b::a9fe:a9fe"],
        true,
        "64:ff9b::a9fe:a9fe",
        "metadata"
    ),
    means!(
        "name means: NAT64 of loopback",
        ["64:ff9b::7f00:2"],
        false,
        "64:ff9b::7f00:2",
        "loopback"
    ),
    means!(
        "name means: 6to4 of a private network",
        ["2002:a00:1::"],
        false,
        "2002:a00:1::",
        "private network"
    ),
    means!(
        "name means: Teredo of loopback",
        ["2001:0:1:2:3:4:80ff:fffd"],
        false,
        "2001:0:1:2:3:4:80ff:fffd",
        "loopback"
    ),
    means!("name means: IPv6 link-local", ["fe80::1"], false, "fe80::1", "link-local"),
    means!("name means: unique local", ["fd12:3456::1"], false, "fd12:3456::1", "private network"),
    means!(
        "name means: public and private",
        ["93.184.216.34", "127.0.0.2"],
        false,
        "127.0.0.2",
        "loopback"
    ),
    means!(
        "name means: private before public",
        ["10.0.0.1", "127.0.0.2"],
        false,
        "127.0.0.2",
        "private network"
    ),
    Case {
        name: "rebinding: between the check and the connection",
        setup: rebinding,
        attack: Attack::Says(
            "CONNECT good.test:{P} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n\
             GET /x HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        ),
        trip: Dialled("169.254.169.254"),
        due: Held("the address that was judged is the one that was dialled"),
    },
    Case {
        name: "rebinding: between two requests",
        setup: rebinding,
        attack: Attack::Does(|lab| Box::pin(twice(lab))),
        trip: Dialled("169.254.169.254"),
        due: Refused("metadata"),
    },
    says(
        "secret: to a name that means another machine, in clear",
        secret_elsewhere,
        BOTH,
        Evil("{KEY}"),
        Refused("without TLS"),
    ),
];

async fn twice(lab: Arc<Lab>) {
    lab.say("GET http://good.test:{P}/1 HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n").await;
    lab.answered(1).await;
    lab.say("GET http://good.test:{P}/2 HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n").await;
}
