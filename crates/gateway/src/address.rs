//! Which addresses a sandbox may be connected to. Pure; the ranges are those of the IANA
//! special-purpose registries (RFC 6890 and successors).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forbidden {
    /// The range's name for people.
    pub(crate) range: &'static str,
    /// Whether `private = true` in the rule opens it.
    pub(crate) opens: bool,
}

const fn closed(range: &'static str) -> Option<Forbidden> {
    Some(Forbidden { range, opens: false })
}

const fn private(range: &'static str) -> Option<Forbidden> {
    Some(Forbidden { range, opens: true })
}

/// Judges one resolved address. Cloud metadata stays closed even to private rules: it hands out
/// the machine's own credentials.
pub(crate) fn forbidden(address: IpAddr) -> Option<Forbidden> {
    match address {
        IpAddr::V4(v4) => forbidden_v4(v4),
        IpAddr::V6(v6) => forbidden_v6(v6),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<Forbidden> {
    match address.octets() {
        // AWS, GCP, Azure, DigitalOcean, Hetzner; ECS tasks; EKS pods; Scaleway; Tencent; Alibaba;
        // Azure's wire server
        [169, 254, 169, 254]
        | [169, 254, 170, 2 | 23]
        | [169, 254, 42, 42]
        | [169, 254, 0, 23]
        | [100, 100, 100, 200]
        | [168, 63, 129, 16] => closed("a cloud metadata address"),
        [0, ..] => closed("the unspecified network"),
        [127, ..] => private("loopback"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => private("a private network"),
        [169, 254, ..] => private("link-local"),
        [100, 64..=127, ..] => private("carrier-grade NAT"),
        [192, 0, 0, _] => closed("IETF protocol assignments"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => closed("documentation"),
        [192, 88, 99, _] => closed("the 6to4 relay network"),
        [198, 18..=19, ..] => closed("benchmarking"),
        [224..=239, ..] => closed("multicast"),
        [240..=255, ..] => closed("reserved or broadcast"),
        _ => None,
    }
}

fn forbidden_v6(address: Ipv6Addr) -> Option<Forbidden> {
    let s = address.segments();
    if address.is_unspecified() {
        return closed("the unspecified address");
    }
    if address.is_loopback() {
        return private("loopback");
    }
    match s {
        // ::ffff:a.b.c.d mapped, ::a.b.c.d compatible (RFC 4291 §2.5.5)
        [0, 0, 0, 0, 0, 0xffff, ..] => forbidden_v4(embedded(s[6], s[7])),
        [0, 0, 0, 0, 0, 0, ..] => closed("IPv4-compatible IPv6"),
        [0, 0, 0, 0, 0xffff, 0, ..] => closed("IPv4-translated IPv6"),
        // NAT64 (RFC 6052): judged by what is inside; its local-use prefix is a private matter
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => forbidden_v4(embedded(s[6], s[7])),
        [0x64, 0xff9b, 1, ..] => closed("local-use NAT64"),
        // 6to4 (RFC 3056) and Teredo (RFC 4380, inverted bits)
        [0x2002, ..] => forbidden_v4(embedded(s[1], s[2])).or(closed("6to4")),
        [0x2001, 0, ..] => forbidden_v4(embedded(!s[6], !s[7])).or(closed("Teredo")),
        // AWS, and its EKS pods; GCP; Scaleway; Oracle; Linode; OpenStack
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254 | 0x0023]
        | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254]
        | [0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042]
        | [0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
        | [0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1]
        | [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe] => closed("a cloud metadata address"),
        [0xfc00..=0xfdff, ..] => private("a private network"),
        [0xfe80..=0xfebf, ..] => private("link-local"),
        [0xfec0..=0xfeff, ..] => private("site-local"),
        [0xff00..=0xffff, ..] => closed("multicast"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => closed("documentation"),
        [0x2001, 2, 0, ..] => closed("benchmarking"),
        [0x2001, 0x10..=0x2f, ..] => closed("ORCHID identifiers"),
        [0x0100, 0, 0, 0, ..] => closed("discard-only"),
        [0x5f00, ..] => closed("segment routing"),
        [0x2000..=0x3fff, ..] => None,
        _ => closed("outside global unicast"),
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use super::forbidden;

    #[test]
    fn public_addresses_pass_and_every_special_range_does_not() {
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert_eq!(forbidden(public.parse().expect("address")), None, "{public}");
        }
        // (address, whether private = true opens it)
        for (special, opens) in [
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", true),
            ("127.255.0.1", true),
            ("10.0.0.1", true),
            ("172.16.0.1", true),
            ("172.31.255.255", true),
            ("192.168.1.1", true),
            ("169.254.1.1", true),
            ("169.254.169.254", false),
            ("169.254.170.2", false),
            ("169.254.170.23", false),
            ("::ffff:169.254.170.23", false),
            ("169.254.42.42", false),
            ("169.254.42.43", true),
            ("169.254.0.23", false),
            ("::ffff:169.254.42.42", false),
            ("fd00:42::42", false),
            ("fd00:42::43", true),
            ("fd00:c1::a9fe:a9fe", false),
            ("fd00:a9fe:a9fe::1", false),
            ("fe80::a9fe:a9fe", false),
            ("100.64.0.1", true),
            ("100.100.100.200", false),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("192.88.99.1", false),
            ("198.18.0.1", false),
            ("198.19.255.1", false),
            ("224.0.0.1", false),
            ("239.1.1.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("::ffff:169.254.169.254", false),
            ("::127.0.0.1", false),
            ("::ffff:0:7f00:1", false),
            ("64:ff9b::7f00:1", true),
            ("64:ff9b::a9fe:a9fe", false),
            ("64:ff9b:1::1", false),
            ("2002:7f00:1::", true),
            ("2002:c0a8:101::1", true),
            ("2002:808:808::", false),
            ("2001:0:1:2:3:4:80ff:fffe", true),
            ("2001::1", false),
            ("fc00::1", true),
            ("fd12:3456::1", true),
            ("fd00:ec2::254", false),
            ("fd00:ec2::23", false),
            ("fd20:ce::254", false),
            ("fd00:ec2::24", true),
            ("fe80::1", true),
            ("fec0::1", true),
            ("ff02::1", false),
            ("2001:db8::1", false),
            ("3fff::1", false),
            ("2001:2::1", false),
            ("2001:20::1", false),
            ("100::1", false),
            ("5f00::1", false),
            ("4000::1", false),
        ] {
            let found = forbidden(special.parse().expect("address"));
            assert_eq!(found.map(|f| f.opens), Some(opens), "{special}");
        }
    }
}
