//! The totals of a session against the kernel's: they agree whatever a program does, and what it
//! tries past the door shows in them.

use crate::lab::{Lab, Ran};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

both!(
    the_gateways_totals_are_the_kernels,
    answers_that_are_left_unread_are_no_disagreement,
    a_session_that_is_killed_has_totals_too,
    what_goes_nowhere_is_counted,
    the_doors_socket_takes_nobody_but_the_relay,
);

/// Records of a kind in the newest session.
pub(crate) fn records(lab: &Lab, kind: &str) -> Vec<Value> {
    let text = lab.run(["audit", "show", "--json"]).ok();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let bodies = all.map(|entry| entry["unmapped"].clone());
    bodies.filter(|body| body["kind"] == kind).collect()
}

/// The totals of the newest session, which agree.
fn totals(lab: &Lab) -> impl Fn(&str) -> u64 {
    assert_eq!(records(lab, "totals_disagree"), Vec::<Value>::new());
    let closed = records(lab, "session_closed").pop().expect("the session ended");
    let counts = closed["counts"].clone();
    let of =
        move |name: &str| counts[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counts}"));
    assert_eq!(of("totals_compared"), 4);
    assert_eq!(of("kernel_door_up"), of("door_up") + of("door_unread"));
    assert!(of("kernel_door_down") <= of("door_down"));
    assert_eq!(of("kernel_other_packets"), 0);
    of
}

/// A few clients as they come: one asks for names, one is polite, one is refused while it still
/// sends, some talk at once, some leave without reading, some are there when the program ends.
const CLIENTS: &str = "
import socket, sys, threading, time
def dial():
    return socket.create_connection(('127.0.0.1', 3128), 5)
def ask(s, body=b'', n=0):
    s.sendall(b'POST http://example.com/x HTTP/1.1\\r\\nHost: example.com\\r\\n'
              b'Content-Length: %d\\r\\n\\r\\n' % (n or len(body)) + body)
for name in ['example.com', 'example.org']:
    try: socket.getaddrinfo(name, 443)
    except OSError: pass
polite = dial(); ask(polite, b'hello'); polite.shutdown(1)
while polite.recv(65536): pass
def pour():
    s = dial()
    try: ask(s, b'x' * (3 << 20))
    except OSError: pass
    s.close()
threads = [threading.Thread(target=pour) for _ in range(6)]
[t.start() for t in threads]
[t.join() for t in threads]
rude = dial(); ask(rude, b'y' * 100); rude.close()
kept = [dial() for _ in range(20)]
for i, s in enumerate(kept): ask(s, b'z' * i, 1000)
time.sleep(0.5)
print('done')
";

fn the_gateways_totals_are_the_kernels(lab: &Lab) {
    for _ in 0..3 {
        assert!(lab.inside(["python3", "-c", CLIENTS]).ok().contains("done"));
        let of = totals(lab);
        assert!(of("door_connections") >= 28, "{}", of("door_connections"));
        assert!(of("kernel_door_up") > 100_000 && of("kernel_door_down") > 500);
        assert!(of("kernel_loopback") > of("kernel_door_up"), "with the packets' heads");
    }
    lab.inside(["true"]).ok();
    let of = totals(lab);
    assert_eq!((of("kernel_door_up"), of("kernel_door_down"), of("kernel_loopback")), (0, 0, 0));
}

/// More than the buffers between a server and its reader take.
const PAGE_BYTES: usize = 8 << 20;
const PAGES: usize = 60;

/// A server of one long page, for as long as the tests run.
fn long_pages() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever leaves in the middle is what this is about.
            std::thread::spawn(move || send_page(stream));
        }
    });
    port
}

fn send_page(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = BufReader::new(stream.try_clone()?).lines();
    while head.next().is_some_and(|line| line.is_ok_and(|l| !l.is_empty())) {}
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {PAGE_BYTES}\r\n\r\n")?;
    stream.write_all(&vec![b'p'; PAGE_BYTES])
}

/// Reads the beginning of each page and waits with the rest in its socket's buffers, until what
/// came is there; then leaves, with every other connection shut for writing.
const UNREAD: &str = "
import socket, sys, time
port, pages = int(sys.argv[1]), int(sys.argv[2])
kept = []
for i in range(pages):
    s = socket.create_connection(('127.0.0.1', 3128), 5)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.sendall(b'GET http://localhost:%d/%d HTTP/1.1\\r\\nHost: localhost:%d\\r\\n\\r\\n'
              % (port, i, port))
    kept.append(s)
for s in kept: assert s.recv(1000).startswith(b'HTTP/1.1 200 ')
time.sleep(3)
for s in kept[::2]: s.shutdown(1)
print('left')
";

fn answers_that_are_left_unread_are_no_disagreement(lab: &Lab) {
    let port = long_pages();
    let text =
        format!("schema = 1\n[[egress]]\nhost = \"localhost\"\nport = {port}\nprivate = true\n");
    lab.file(&lab.home().join("agents/reader.toml"), &text);
    let (port, pages) = (port.to_string(), PAGES.to_string());
    let program = ["python3", "-c", UNREAD, &port, &pages];
    let ran = lab.run(["run", "--agent", "reader", "--"].into_iter().chain(program));
    assert!(ran.ok().contains("left"));
    let of = totals(lab);
    let (down, crossed) = (of("kernel_door_down"), of("kernel_loopback"));
    // More than any allowance for the relay's own buffers could explain.
    let unread = 100 << 10;
    assert!(down > crossed + unread * PAGES as u64, "{down} came, {crossed} was passed on");
}

fn a_session_that_is_killed_has_totals_too(lab: &Lab) {
    let stays = format!(
        "{CLIENTS}\nimport signal, time\nsignal.signal(15, lambda *_: 0)\n\
                         while True: time.sleep(1)"
    );
    let ran: Ran = lab.run(["run", "--timeout", "4s", "--", "python3", "-c", &stays]);
    assert_eq!(ran.code(), 124, "{ran}");
    // How far it came by then is the machine's matter.
    assert!(totals(lab)("kernel_door_up") > 0);
}

const NOWHERE: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5):
    try: s.sendto(b'into the void', ('192.0.2.1', 53))
    except OSError as e: print(e.errno)
for _ in range(3): s.sendto(b'nobody listens', ('127.0.0.1', 9))
";

fn what_goes_nowhere_is_counted(lab: &Lab) {
    assert_eq!(lab.inside(["python3", "-c", NOWHERE]).ok(), "101\n".repeat(5));
    let of = totals(lab);
    assert!(of("kernel_unroutable") >= 5, "{}", of("kernel_unroutable"));
    assert!(of("kernel_udp_datagrams") >= 3, "{}", of("kernel_udp_datagrams"));
    let story = lab.story();
    assert!(story.contains("kernel_unroutable"), "{story}");
    // An idle session has none.
    lab.inside(["true"]).ok();
    let of = totals(lab);
    assert_eq!((of("kernel_unroutable"), of("kernel_udp_datagrams")), (0, 0));
}

const PAST_THE_RELAY: &str = "
import socket
request = (b'GET http://example.com/ HTTP/1.1\\r\\nHost: example.com\\r\\n'
           b'Connection: close\\r\\n\\r\\n')
def answer(s):
    s.sendall(request)
    out = b''
    while piece := s.recv(65536): out += piece
    return out.decode().split('\\r\\n\\r\\n')[1]
print('through', answer(socket.create_connection(('127.0.0.1', 3128), 5)))
for _ in range(3):
    s = socket.socket(socket.AF_UNIX)
    s.connect('/run/nanoclaw/door.sock')
    try: print('past', answer(s))
    except OSError as e: print('past', e)
";

fn the_doors_socket_takes_nobody_but_the_relay(lab: &Lab) {
    let said = lab.inside(["python3", "-c", PAST_THE_RELAY]).ok();
    assert!(said.contains("through nanoclaw refused this: example.com"), "the reference: {said}");
    assert_eq!(said.matches("past ").count(), 3, "{said}");
    assert!(!said.contains("past nanoclaw refused this: example.com"), "{said}");
    let refused = records(lab, "egress_refused");
    let past = refused.iter().filter(|r| r["rule"] == "door").count();
    assert_eq!(past, 1, "once for all of them: {refused:?}");
    assert_eq!(totals(lab)("refused"), 4);
}
