//! Whom a sandbox can talk to, tried.

use super::tools::{call, either, error, name, nothing, of, seen, text};
use super::{Act, Ground};
use crate::walls::Answer;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, ipproto, recv, send, sendmsg, socket_with,
};
use sandbox::probe;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub(super) const ACTS: &[(&str, Act)] = &[
    ("net-interfaces", |_| either(interfaces())),
    ("net-routes", |_| either(routes())),
    ("host-loopback", |g| tcp(&format!("127.0.0.1:{}", g.bait.tcp_port))),
    ("host-loopback-6", |g| tcp(&format!("[::1]:{}", g.bait.tcp6_port.max(1)))),
    ("host-loopback-udp", |g| udp(&format!("127.0.0.1:{}", g.bait.udp_port))),
    ("far-address", |g| tcp(&g.bait.far)),
    ("far-address-6", |g| tcp(&g.bait.far6)),
    ("far-address-udp", |g| udp(&g.bait.far)),
    ("cloud-metadata", |g| tcp(&g.bait.metadata)),
    ("icmp", |_| made(AddressFamily::INET, SocketType::DGRAM, ipproto::ICMP)),
    ("raw-socket", |_| made(AddressFamily::INET, SocketType::RAW, ipproto::ICMP)),
    ("raw-socket-6", |_| made(AddressFamily::INET6, SocketType::RAW, ipproto::ICMPV6)),
    ("socket-families", |_| families()),
    ("netlink-route-write", |_| change_interface()),
    ("so-mark", |_| mark()),
    ("host-abstract-socket", |g| abstract_socket(&g.bait.abstract_name)),
    ("host-socket", |g| of("it was reached", UnixStream::connect(&g.bait.socket))),
    ("container-sockets", |g| orders(&g.bait.orders)),
    ("door-direct", door_direct),
    ("door-passed", door_passed),
];

/// How long an answer may take before a packet counts as sent.
const ANSWER_TIME: Duration = Duration::from_millis(400);

fn interfaces() -> Result<Answer, Answer> {
    let table = text("/proc/self/net/dev")?;
    let names = table.lines().skip(2).filter_map(|l| l.split(':').next());
    let found: Vec<String> = names.map(|n| n.trim().to_owned()).filter(|n| n != "lo").collect();
    Ok(nothing(&found, "lo only"))
}

fn routes() -> Result<Answer, Answer> {
    let first = |l: &str| l.split_whitespace().next().unwrap_or_default().to_owned();
    let last = |l: &str| l.split_whitespace().last().unwrap_or_default().to_owned();
    let mut found: Vec<String> = text("/proc/self/net/route")?.lines().skip(1).map(first).collect();
    // A kernel without IPv6 has no such table.
    let six = std::fs::read_to_string("/proc/self/net/ipv6_route").unwrap_or_default();
    found.extend(six.lines().map(last).filter(|device| device != "lo"));
    Ok(nothing(&found, "none"))
}

fn parsed(address: &str) -> Result<SocketAddr, Answer> {
    address.parse().map_err(|_| Answer::Failed(format!("{address:?} is no address")))
}

pub(super) fn tcp(address: &str) -> Answer {
    let address = match parsed(address) {
        Ok(address) => address,
        Err(failed) => return failed,
    };
    match TcpStream::connect_timeout(&address, ANSWER_TIME) {
        Ok(_) => Answer::Done(format!("{address} was reached")),
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
            Answer::Done("no answer in time: a packet left".into())
        }
        Err(e) => error(&e),
    }
}

fn udp(address: &str) -> Answer {
    let address = match parsed(address) {
        Ok(address) => address,
        Err(failed) => return failed,
    };
    let send = || -> io::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(address)?;
        socket.send(b"probe")?;
        socket.set_read_timeout(Some(ANSWER_TIME))?;
        match socket.recv(&mut [0; 16]) {
            // Nobody said that nobody is there.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map(drop),
        }
    };
    of("a datagram was sent", send())
}

fn made(family: AddressFamily, kind: SocketType, protocol: Protocol) -> Answer {
    of("the socket was made", socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol)))
}

/// Every family but those that programs need: `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`.
fn families() -> Answer {
    const LAST: usize = 45;
    const NEEDED: [usize; 4] = [1, 2, 10, 16];
    const DATAGRAM: usize = 2;
    for family in (0..=LAST).filter(|f| !NEEDED.contains(f)) {
        match probe::raw(libc::SYS_socket, [family, DATAGRAM, 0, 0, 0, 0]) {
            Err(libc::EPERM) => {}
            Err(_) => return Answer::Tripped(format!("family {family} came to the kernel")),
            Ok(_) => return Answer::Tripped(format!("a socket of family {family} was made")),
        }
    }
    Answer::Held(format!("families 0 to {LAST} but four, each refused"))
}

/// `RTM_NEWLINK` for an interface that there is not: who may change interfaces hears that
/// (rtnetlink(7)).
fn change_interface() -> Answer {
    const NO_INTERFACE: i32 = i32::MAX;
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(16_u16.to_ne_bytes()); // RTM_NEWLINK
    message.extend(5_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_ACK
    message.extend(1_u32.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(NO_INTERFACE.to_ne_bytes());
    message.extend([0; 8]);
    let ask = || -> rustix::io::Result<i32> {
        let kind = SocketType::RAW;
        let flags = SocketFlags::CLOEXEC;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
        send(&socket, &message, SendFlags::empty())?;
        let mut answer = [0_u8; 1_024];
        let (_, length) = recv(&socket, &mut answer, RecvFlags::empty())?;
        // `nlmsgerr` follows the header of 16 bytes: a negative error number, or 0.
        let code = answer.get(16..20).filter(|_| length >= 20);
        let code: Option<[u8; 4]> = code.and_then(|c| c.try_into().ok());
        Ok(code.map_or(0, i32::from_ne_bytes))
    };
    match ask() {
        Ok(0) => Answer::Done("it was changed".into()),
        Ok(code) => Answer::Errno(-code),
        Err(e) => Answer::Failed(format!("the kernel was not heard: {}", name(e))),
    }
}

fn mark() -> Answer {
    const SOL_SOCKET: usize = 1;
    const SO_MARK: usize = 36;
    let socket = match UdpSocket::bind(("127.0.0.1", 0)) {
        Ok(socket) => socket,
        Err(e) => return Answer::Failed(e.to_string()),
    };
    let fd = usize::try_from(socket.as_raw_fd()).unwrap_or(usize::MAX);
    let value = 1_u32.to_ne_bytes();
    let args = [fd, SOL_SOCKET, SO_MARK, value.as_ptr().addr(), value.len(), 0];
    call(libc::SYS_setsockopt, args)
}

pub(super) fn abstract_socket(name: &str) -> Answer {
    if name.is_empty() {
        return Answer::Failed("no name was told".into());
    }
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
    of("it was reached", address.and_then(|a| UnixStream::connect_addr(&a)))
}

/// Sockets that are there at all, whoever may use them.
fn orders(paths: &[String]) -> Answer {
    let there = |path: &&String| {
        let reached = UnixStream::connect(path);
        !reached.is_err_and(|e| {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        })
    };
    let found: Vec<String> = paths.iter().filter(there).cloned().collect();
    nothing(&found, &format!("{} places, none is there", paths.len()))
}

/// Says something and returns what is answered before the end.
pub(super) fn heard(mut stream: impl Read + Write) -> String {
    let mut answer = Vec::new();
    // A connection that is cut off is one that nobody answers.
    let _ = stream.write_all(b"?\n").and_then(|()| stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).trim().to_owned()
}

/// By way of init somebody answers; at the same door, without init, nobody.
fn door_direct(ground: &Ground) -> Answer {
    let bait = &ground.bait;
    if bait.door.is_empty() {
        return Answer::Absent("this sandbox has no door".into());
    }
    if bait.door_port != 0 {
        let relayed = TcpStream::connect(("127.0.0.1", bait.door_port)).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER_TIME))?;
            Ok(heard(stream))
        });
        if !relayed.is_ok_and(|said| !said.is_empty()) {
            return Answer::Failed("not even init reaches the door".into());
        }
    }
    match UnixStream::connect(&bait.door) {
        Err(e) => error(&e),
        Ok(stream) => {
            drop(stream.set_read_timeout(Some(ANSWER_TIME)));
            let answer = heard(stream);
            seen(answer.is_empty(), if answer.is_empty() { "no answer" } else { "an answer" })
        }
    }
}

/// Connects to the door and hands the connection to another session through a shared folder; that
/// one says what it heard.
fn door_passed(ground: &Ground) -> Answer {
    let bait = &ground.bait;
    if bait.door.is_empty() || bait.other.shared.is_empty() {
        return Answer::Absent("there is no door, or no shared folder".into());
    }
    let pass = || -> io::Result<String> {
        let door = OwnedFd::from(UnixStream::connect(&bait.door)?);
        let mut other = UnixStream::connect(format!("{}/passing", bait.other.shared))?;
        other.set_read_timeout(Some(ANSWER_TIME * 2))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [door.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&other, &[IoSlice::new(b"?")], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut answer = String::new();
        other.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match pass() {
        Ok(answer) if answer.trim() == "nobody" => Answer::Held("no answer there either".into()),
        Ok(answer) => Answer::Tripped(format!("the other session heard {answer:?}")),
        Err(e) => error(&e),
    }
}
