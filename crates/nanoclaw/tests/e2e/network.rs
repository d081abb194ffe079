//! The network from inside: there is none but the door, and the door lets nothing through that
//! was not granted.

use crate::lab::{Lab, finish};

use std::net::{Ipv4Addr, TcpListener};
use testkit::{FakeModel, Options};

both!(
    there_is_no_network,
    the_hosts_loopback_is_not_the_sandboxs,
    an_unknown_host_is_refused_and_on_record,
    a_granted_name_that_means_this_machine_is_refused_and_on_record,
    the_door_speaks_to_no_strangers_protocol,
);

/// What connecting gives: the exception's name, or "connected".
const CONNECT: &str = "
import socket, sys
for host, port in [('192.0.2.1', 80), ('1.1.1.1', 53), ('169.254.169.254', 80), ('::1', 80)]:
    try:
        socket.create_connection((host, port), 2)
        print(host, 'connected')
    except OSError as e:
        print(host, type(e).__name__, e.errno)
for kind, family in [('udp', socket.SOCK_DGRAM), ('raw', socket.SOCK_RAW)]:
    try:
        socket.socket(socket.AF_INET, family).sendto(b'x', ('192.0.2.1', 53))
        print(kind, 'sent')
    except OSError as e:
        print(kind, type(e).__name__, e.errno)
try:
    print(socket.getaddrinfo('example.com', 80))
except OSError as e:
    print('name', type(e).__name__)
print(sorted(n for _, n in socket.if_nameindex()))
";

fn there_is_no_network(lab: &Lab) {
    let said = lab.inside(["python3", "-c", CONNECT]).ok();
    assert!(!said.contains("connected") && !said.contains("sent"), "{said}");
    // ENETUNREACH: there is no way out, not merely nobody at the other end.
    for host in ["192.0.2.1", "1.1.1.1", "169.254.169.254"] {
        assert!(said.contains(&format!("{host} OSError 101")), "{said}");
    }
    assert!(said.contains("name gaierror"), "{said}");
    assert!(said.ends_with("['lo']\n"), "{said}");
}

fn the_hosts_loopback_is_not_the_sandboxs(lab: &Lab) {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected");
    let ran = lab.inside(["bash", "-c", &script]);
    assert_ne!(ran.code(), 0, "{ran}");
    assert!(ran.err().contains("Connection refused"), "{ran}");
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "somebody came through");
}

/// Asks for a URL through the door, whatever `NO_PROXY` says; prints status and body.
fn fetch(url: &str) -> String {
    format!("curl -sS --noproxy '' -x http://127.0.0.1:3128 -w '\\n%{{http_code}}\\n' {url}")
}

fn an_unknown_host_is_refused_and_on_record(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let plain = lab.sh(&["--allow", "example.org"], &fetch("http://example.com/x")).ok();
    assert!(plain.contains("nanoclaw refused this: example.com is not among"), "{plain}");
    assert!(plain.ends_with("\n403\n"), "{plain}");
    // A tunnel, too; and not the same host on another port.
    for url in ["https://example.com/", "https://example.org:8443/"] {
        let tunnel = lab.sh(&["--allow", "example.org"], &fetch(url));
        assert_ne!(tunnel.code(), 0, "{tunnel}");
        assert!(tunnel.err().contains("response 403"), "{tunnel}");
    }
    let story = lab.story();
    for refused in [
        "REFUSED http://example.com, GET /x",
        "REFUSED example.com:443",
        "REFUSED example.org:8443",
    ] {
        assert!(story.contains(refused), "{refused} is not in {story}");
    }
    assert!(story.contains("1 refused"), "{story}");
}

fn a_granted_name_that_means_this_machine_is_refused_and_on_record(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let server = FakeModel::start(Options::default()).unwrap();
    let at = server.address();
    let grant = format!("localhost:{}", at.port());
    for url in [format!("http://{grant}/"), format!("https://{grant}/")] {
        let ran = lab.sh(&["--allow", &grant], &fetch(&url));
        let said = format!("{}{}", ran.out(), ran.err());
        assert!(said.contains("403"), "{ran}");
    }
    let story = lab.story();
    assert!(story.contains("which is loopback"), "{story}");
    // An address instead of a name is none of the exact names that can be granted.
    let ran = lab.sh(&["--allow", &format!("127.0.0.1:{}", at.port())], "echo ran");
    if ran.status.success() {
        let url = format!("http://{at}/");
        let said = lab.sh(&["--allow", &at.to_string()], &fetch(&url)).out();
        assert!(said.ends_with("\n403\n"), "{said}");
    } else {
        assert_eq!(ran.code(), 2, "{ran}");
    }
    assert_eq!(server.requests(), [], "the server was reached");
}

/// Sends bytes to the door and prints what comes back.
const RAW: &str = "
import socket, sys
s = socket.create_connection(('127.0.0.1', 3128), 5)
s.sendall(sys.stdin.buffer.read())
s.shutdown(socket.SHUT_WR)
out = b''
while True:
    try:
        piece = s.recv(65536)
    except OSError:
        break
    if not piece:
        break
    out += piece
print(out.decode('latin-1'))
";

fn the_door_speaks_to_no_strangers_protocol(lab: &Lab) {
    let mut long = Vec::from(&b"GET http://example.com/"[..]);
    long.resize(1 << 20, b'a');
    for bytes in [
        &b"\x05\x01\x00"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://u:p@example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\nX: y\r\n\r\n",
        &long,
    ] {
        let ran = finish(lab.nanoclaw(["run", "--", "python3", "-c", RAW]), bytes);
        let said = ran.ok();
        assert!(!said.contains("HTTP/1.1 2") && !said.contains("HTTP/1.1 5"), "{said}");
    }
    // It still stands.
    let mut after = lab.nanoclaw(["run", "--", "python3", "-c", RAW]);
    after.env("NOTHING", "");
    let ran = finish(after, b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert!(ran.ok().contains("HTTP/1.1 403"), "{ran}");
}
