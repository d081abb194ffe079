//! What the kernel counted of a sandbox's traffic, read from outside, for comparison with what the
//! gateway says.
//!
//! Pipeline: clone ─► `Witness::of` (counters of its network opened) ─► measured (zero point, and
//! the open counter of what it moves) ─► it stands still (`Witness::look`) ─► end
//! ─► `Witness::traffic`, before it is reaped.
//!
//! Invariants:
//! 1. No process of the sandbox is asked once a program runs in it: the numbers stand in `/proc`,
//!    and the files of the network namespace stay readable here when every process in it is gone.
//!    The zero point and the counter of what it moves come from the first process itself, from
//!    before anything foreign ran: afterwards the file behind `/proc` is root's, and only who has
//!    it open already can read it as an ordinary user. The kernel lets the owner of the sandbox's
//!    user namespace, while the process is there; of an ended one newer kernels show root alone.
//! 2. It is looked at when it moves nothing any more: it said so and waits, or it was stopped.
//! 3. What this kernel does not count, or does not show, is `None`, never zero.

use crate::report::{NetworkCounts, Traffic};
use crate::wire::Moved;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

/// Largest file of counters that is read; the real ones have a few kilobytes.
const COUNTERS_BYTES_MAX: usize = 64 << 10;
/// The one interface of a sandbox.
const LOOPBACK: &str = "lo";
/// In `/proc/net/dev`: bytes and packets received, and packets transmitted.
const RX_BYTES: usize = 0;
const RX_PACKETS: usize = 1;
const TX_PACKETS: usize = 9;

/// The open counters of one sandbox.
#[derive(Debug)]
pub(crate) struct Witness {
    interfaces: Option<File>,
    protocols: Option<File>,
    protocols_v6: Option<File>,
    /// Of the first process' one thread: the process' own file would add what its children moved.
    io: Option<File>,
    zero: Option<Moved>,
    last: Option<Moved>,
}

impl Witness {
    /// Of a sandbox whose first process this is, in a network namespace of its own already.
    pub(crate) fn of(pid: i32) -> Self {
        let open = |name| File::open(format!("/proc/{pid}/net/{name}")).ok();
        Self {
            interfaces: open("dev"),
            protocols: open("snmp"),
            protocols_v6: open("snmp6"),
            io: None,
            zero: None,
            last: None,
        }
    }

    /// From here on its first process reads and writes nothing but the door; `io` is what the
    /// kernel counts of it.
    pub(crate) fn zero(&mut self, moved: Option<Moved>, io: Option<OwnedFd>) {
        (self.zero, self.io) = (moved, io.map(File::from));
    }

    /// Whether there is anything to look at before its end.
    pub(crate) fn watches(&self) -> bool {
        self.zero.is_some() && self.io.is_some()
    }

    /// Keeps what its first process has moved; that moves nothing any more.
    pub(crate) fn look(&mut self) {
        self.last = self.moved().or(self.last);
    }

    fn moved(&self) -> Option<Moved> {
        Moved::parse(&text(self.io.as_ref()?)?)
    }

    /// All counts; the first process must not have been reaped.
    pub(crate) fn traffic(&self) -> Traffic {
        let moved = self.zero.zip(self.moved().or(self.last));
        Traffic {
            door_up: moved.and_then(|(zero, now)| now.written.checked_sub(zero.written)),
            door_down: moved.and_then(|(zero, now)| now.read.checked_sub(zero.read)),
            network: self.network(),
        }
    }

    fn network(&self) -> Option<NetworkCounts> {
        let interfaces = text(self.interfaces.as_ref()?)?;
        let protocols = text(self.protocols.as_ref()?)?;
        // A kernel without IPv6 has no file.
        let v6 = self.protocols_v6.as_ref().and_then(text).unwrap_or_default();
        count(&interfaces, &protocols, &v6)
    }
}

fn text(file: &File) -> Option<String> {
    let mut bytes = vec![0; COUNTERS_BYTES_MAX];
    let mut got = 0;
    loop {
        let rest = bytes.get_mut(got..)?;
        match file.read_at(rest, got as u64).ok()? {
            0 => break,
            n => got += n,
        }
    }
    bytes.truncate(got);
    String::from_utf8(bytes).ok()
}

fn count(interfaces: &str, v4: &str, v6: &str) -> Option<NetworkCounts> {
    let mut counts = NetworkCounts::default();
    let rows = interfaces.lines().filter_map(|l| l.split_once(':'));
    for (name, row) in rows {
        let row: Vec<u64> = row.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let (bytes, packets) = (*row.get(RX_BYTES)?, *row.get(RX_PACKETS)?);
        if name.trim() == LOOPBACK {
            (counts.loopback_bytes, counts.loopback_packets) = (bytes, packets);
        } else {
            counts.other_packets += packets + *row.get(TX_PACKETS)?;
        }
    }
    let of_v6 = |name: &str| field_v6(v6, name).unwrap_or(0);
    counts.unroutable = column(v4, "Ip", "OutNoRoutes")? + of_v6("Ip6OutNoRoutes");
    counts.udp_datagrams = column(v4, "Udp", "OutDatagrams")? + of_v6("Udp6OutDatagrams");
    counts.icmp_messages = column(v4, "Icmp", "OutMsgs")? + of_v6("Icmp6OutMsgs");
    Some(counts)
}

/// `/proc/net/snmp`: for each protocol a line of names and a line of numbers.
fn column(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let of = |line: &'_ str| line.split_once(':').is_some_and(|(p, _)| p == protocol);
    let mut lines = text.lines().filter(|l| of(l));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|n| n == name)?;
    numbers.split_whitespace().nth(at)?.parse().ok()
}

fn field_v6(text: &str, name: &str) -> Option<u64> {
    let mut rows = text.lines().map(str::split_whitespace);
    rows.find_map(|mut r| if r.next() == Some(name) { r.next()?.parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:     840      10    0    0    0     0          0         0      840      10    0    0
  eth0:       7       2    0    0    0     0          0         0       11       3    0    0
";
    const SNMP: &str = "\
Ip: Forwarding OutNoRoutes ReasmTimeout
Ip: 1 4 0
Icmp: InMsgs OutMsgs
Icmp: 0 2
Udp: InDatagrams NoPorts OutDatagrams
Udp: 1 2 5
";

    #[test]
    fn the_kernels_tables_are_read() {
        let v6 = "Ip6OutNoRoutes                  \t1\nUdp6OutDatagrams \t2\n";
        let counts = count(DEV, SNMP, v6).expect("complete");
        let expected = NetworkCounts {
            loopback_bytes: 840,
            loopback_packets: 10,
            other_packets: 5,
            unroutable: 5,
            udp_datagrams: 7,
            icmp_messages: 2,
        };
        assert_eq!(counts, expected);
        assert_eq!(count(DEV, SNMP, "").map(|c| c.unroutable), Some(4));
    }

    #[test]
    fn what_is_not_there_is_not_zero() {
        assert_eq!(count(DEV, "Ip: Forwarding\nIp: 1\n", ""), None);
        assert_eq!(count(&DEV.replace("840", "x"), SNMP, ""), None);
        let own = Witness::of(std::process::id().cast_signed());
        assert_eq!(own.traffic().door_up, None, "it has no zero point");
    }

    #[test]
    fn the_counters_of_a_process_move_with_what_it_writes() {
        let written = || {
            let text = std::fs::read_to_string("/proc/thread-self/io").expect("shown");
            Moved::parse(&text).expect("counted").written
        };
        let before = written();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        rustix::io::write(&ours, b"counted").expect("written");
        rustix::net::send(&ours, b"not counted", rustix::net::SendFlags::empty()).expect("sent");
        assert_eq!(written() - before, 7);
    }
}
