//! Greetings built byte by byte: what is understood, what is refused, and that nothing panics.

use super::*;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

fn sized(width: usize, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[4 - width..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), sized(2, content)].concat()
}

fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|(kind, name)| [vec![*kind], sized(2, name)].concat()).collect();
    extension(0, &sized(2, &list))
}

fn alpn(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| sized(1, name)).collect();
    extension(0x10, &sized(2, &list))
}

/// The whole handshake message.
fn hello(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(sized(1, &[9; 32]));
    body.extend(sized(2, &[0x13, 0x01, 0x13, 0x02]));
    body.extend(sized(1, &[0]));
    if let Some(extensions) = extensions {
        body.extend(sized(2, &extensions.concat()));
    }
    [vec![1], sized(3, &body)].concat()
}

fn records(message: &[u8], fragment: usize) -> Vec<u8> {
    message.chunks(fragment).flat_map(|f| [vec![22, 3, 1], sized(2, f)].concat()).collect()
}

fn usual() -> Vec<u8> {
    hello(Some(&[
        extension(0x0a0a, &[]),
        sni(&[(0, b"API.Example.org")]),
        alpn(&[b"h2", b"http/1.1"]),
        extension(43, &sized(1, &[3, 4, 3, 3])),
    ]))
}

fn look(bytes: &[u8]) -> Result<Option<First>, SniffError> {
    Sniffer::default().look(bytes)
}

fn told(bytes: &[u8]) -> Hello {
    match look(bytes) {
        Ok(Some(First::Tls(hello))) => hello,
        other => panic!("{other:?}"),
    }
}

/// Gives a few bytes a read and may fail at the end.
struct Pieces<'a> {
    left: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let (now, later) = self.left.split_at(self.size.min(self.left.len()).min(buf.remaining()));
        buf.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

fn read(bytes: &[u8], size: usize) -> (Result<First, SniffError>, BytesMut) {
    let mut already = BytesMut::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = runtime.block_on(first(&mut Pieces { left: bytes, size }, &mut already));
    (found, already)
}

#[test]
fn a_greeting_is_understood_in_any_fragments_and_any_reads() {
    let expected = told(&records(&usual(), 16_000));
    assert_eq!(expected.server_name.as_ref().map(HostName::as_str), Some("api.example.org"));
    assert_eq!(
        (expected.ech, &expected.alpn[..]),
        (false, &[b"h2".to_vec(), b"http/1.1".into()][..])
    );
    for fragment in [1, 2, 3, 5, 7, 50, 1000] {
        let mut bytes = records(&usual(), fragment);
        for size in [1, 2, 3, 100, 5000] {
            let (found, already) = read(&bytes, size);
            assert_eq!(found, Ok(First::Tls(expected.clone())), "{fragment} {size}");
            assert!(bytes.starts_with(&already));
        }
        // What comes behind it stays, whole.
        bytes.extend(b"early data");
        let (found, already) = read(&bytes, 100_000);
        assert!(found.is_ok() && already.len() <= BYTES_MAX && bytes.starts_with(&already));
        for cut in 1..bytes.len() - 10 {
            assert_eq!(look(&bytes[..cut]), Ok(None), "{fragment} {cut}");
        }
        assert_eq!(read(&bytes[..40], 7).0, Err(SniffError::Cut));
    }
    let without = told(&records(&hello(None), 100));
    assert_eq!(without, Hello { server_name: None, ech: false, alpn: vec![] });
    assert_eq!(told(&records(&hello(Some(&[])), 100)), without);
}

#[test]
fn any_sign_of_an_encrypted_hello_is_told() {
    for kind in [0xfe0d, 0xfd00, 0xfe0a, 0xffce] {
        let bytes = records(&hello(Some(&[sni(&[(0, b"a.org")]), extension(kind, &[0; 40])])), 99);
        assert!(told(&bytes).ech, "{kind:x}");
        let empty = records(&hello(Some(&[extension(kind, &[])])), 99);
        assert!(told(&empty).ech, "{kind:x}");
    }
}

#[test]
fn what_a_server_could_read_otherwise_is_refused() {
    let ok = (0, &b"a.org"[..]);
    let refused: &[&[Vec<u8>]] = &[
        &[sni(&[])],
        &[sni(&[ok, (0, b"b.org")])],
        &[sni(&[ok, (1, b"b.org")])],
        &[sni(&[(1, b"a.org")])],
        &[sni(&[ok]), sni(&[ok])],
        &[extension(43, &[]), extension(43, &[])],
        &[extension(0xfe0d, &[]), extension(0xfe0d, &[])],
        &[sni(&[(0, b"")])],
        &[sni(&[(0, b"a.org.")])],
        &[sni(&[(0, b"1.2.3.4")])],
        &[sni(&[(0, b"a.org\0.evil.example")])],
        &[sni(&[(0, b"a.org:443")])],
        &[sni(&[(0, b"\xff\xfe")])],
        &[sni(&[(0, "b\u{fc}cher.example".as_bytes())])],
        &[extension(0, &[])],
        &[extension(0, &[0, 4, 0, 0, 1, b'a', 9])],
        &[extension(0, &[0, 5, 0, 0, 1, b'a'])],
        &[alpn(&[])],
        &[alpn(&[b""])],
        &[extension(0x10, &[0, 3, 2, b'h'])],
        &[vec![0, 43, 0, 9, 1]],
        &[vec![0]],
    ];
    for (at, extensions) in refused.iter().enumerate() {
        let bytes = records(&hello(Some(extensions)), 16_000);
        assert!(matches!(look(&bytes), Err(SniffError::Malformed { .. })), "{at}: {bytes:?}");
    }
    let many: Vec<Vec<u8>> = (1000..1300).map(|kind| extension(kind, &[])).collect();
    assert!(look(&records(&hello(Some(&many)), 16_000)).is_err());
}

#[test]
fn records_and_messages_out_of_shape_are_refused() {
    let good = records(&usual(), 16_000);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        look(&bytes)
    };
    // Version of the record, its length, kind of the message, version, session id, suites.
    for (at, to) in [(1, 2), (5, 2), (9, 2), (43, 33), (77, 3), (77, 0), (82, 9)] {
        assert!(changed(at, to).is_err() || changed(at, to) == Ok(None), "{at}");
    }
    assert!(matches!(look(&[22, 3, 1, 0, 0]), Err(SniffError::Malformed { .. })));
    assert!(matches!(look(&[22, 3, 1, 0x40, 1]), Err(SniffError::Malformed { .. })));
    let mut between = records(&usual()[..20], 20);
    between.extend([21, 3, 1, 0, 2, 1, 0]);
    assert!(matches!(look(&between), Err(SniffError::Malformed { .. })));
    let mut followed = usual();
    followed.extend([1, 0, 0, 1, 0]);
    assert!(matches!(look(&records(&followed, 16_000)), Err(SniffError::Malformed { .. })));
    let mut behind = hello(Some(&[]));
    behind.extend([0, 0]);
    behind[3] += 2;
    assert!(matches!(look(&records(&behind, 999)), Err(SniffError::Malformed { .. })));
    let mut compressed = hello(None);
    *compressed.last_mut().unwrap() = 1;
    assert!(matches!(look(&records(&compressed, 999)), Err(SniffError::Malformed { .. })));
}

#[test]
fn what_is_too_long_is_not_waited_for() {
    assert_eq!(look(&[22, 3, 1, 0, 4, 1, 0, 0x40, 1]), Err(SniffError::TooLong));
    let long = hello(Some(&[extension(21, &vec![0; 15_000])]));
    assert!(matches!(read(&records(&long, 16_384), 4096).0, Ok(First::Tls(_))));
    // One byte a record: more wrapping than message.
    let (found, already) = read(&records(&long, 1), 4096);
    assert_eq!(found, Err(SniffError::TooLong));
    assert!(already.len() <= 2 * BYTES_MAX, "{}", already.len());
}

#[test]
fn http_and_other_bytes_are_told_apart() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], First::Http),
        (b"M-SEARCH * HTTP/1.1", First::Http),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", First::Other),
        (b"get / HTTP/1.1", First::Other),
        (b"GET\t/", First::Other),
        (b" GET /", First::Other),
        (b"SSH-2.0-x\r\n", First::Other),
        (b"EHLO\r\n", First::Other),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ /", First::Other),
        (b"\x80\x2e\x01\x03\x01", First::Other),
        (b"\x15\x03\x01\x00\x02\x01\x00", First::Other),
        (b"\x00", First::Other),
    ] {
        for size in [1, 100] {
            let (found, already) = read(bytes, size);
            assert_eq!(found.as_ref(), Ok(&expected), "{bytes:?}");
            assert!(bytes.starts_with(&already));
        }
    }
    assert_eq!(read(b"", 1).0, Ok(First::Closed));
    assert_eq!(read(b"GE", 1).0, Err(SniffError::Cut));
}

/// What every answer must keep to, whatever was sent.
fn check(bytes: &[u8]) {
    let whole = look(bytes);
    // In pieces it says the same, or knows earlier that it is wrong.
    let mut piecemeal = Sniffer::default();
    let mut said = Ok(None);
    for end in (0..=bytes.len()).step_by(1 + bytes.len() / 40).chain([bytes.len()]) {
        said = piecemeal.look(&bytes[..end]);
        if said != Ok(None) {
            break;
        }
    }
    assert_eq!(said, whole, "{bytes:?}");
    if let Ok(Some(First::Tls(Hello { server_name: Some(name), .. }))) = whole {
        let sent = bytes.to_ascii_lowercase();
        let first = name.as_str().as_bytes()[0];
        assert!(sent.contains(&first) && HostName::parse(name.as_str()).is_ok());
    }
}

#[test]
fn fuzz_tls_hello() {
    let mut seeds: Vec<Vec<u8>> =
        [1, 9, 100, 16_000].iter().map(|&fragment| records(&usual(), fragment)).collect();
    seeds.push(records(&hello(Some(&[extension(0xfe0d, &[1; 9]), sni(&[(0, b"a.org")])])), 80));
    seeds.push(b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n".to_vec());
    seeds.push(records(&hello(None), 30));
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    testkit::fuzz::run("tls-hello", &seeds, |bytes, _| {
        check(bytes);
        testkit::fuzz::outcome(format!("{:?}", look(bytes).map(|first| first.is_some())))
    });
}
