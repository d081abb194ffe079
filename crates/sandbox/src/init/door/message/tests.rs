use super::*;
use testkit::fuzz::{magnitude, outcome};

fn packet(name: &[&str], kind: u16, class: u16) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&class.to_be_bytes());
    out
}

fn with_edns(mut packet: Vec<u8>, data: &[u8]) -> Vec<u8> {
    packet[11] = 1;
    packet.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0]);
    packet.push(u8::try_from(data.len()).unwrap());
    packet.extend_from_slice(data);
    packet
}

fn query(packet: &[u8]) -> Query {
    match read(packet) {
        Read::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn code(packet: &[u8]) -> u8 {
    match read(packet) {
        Read::Reply(reply) => {
            assert_eq!(reply[..2], packet[..2], "the id is repeated");
            assert!(reply[2] & 0x80 != 0, "it is an answer");
            reply[3] & 0x0f
        }
        other => panic!("{other:?} for {packet:02x?}"),
    }
}

#[test]
fn a_question_is_answered_byte_for_byte() {
    let asked = packet(&["API", "Example", "org"], 1, 1);
    let query = query(&asked);
    assert_eq!(query.name.as_ref().unwrap().as_str(), "api.example.org");
    let answer = query.answer(Code::Fine, Some(Ipv4Addr::new(127, 64, 0, 1)));
    let mut expected = asked.clone();
    expected[2..4].copy_from_slice(&[0x81, 0x80]);
    expected[7] = 1;
    expected.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 127, 64, 0, 1]);
    assert_eq!(answer, expected, "the asker's own spelling is kept");
    let nothing = query.answer(Code::NoName, None);
    assert_eq!((nothing[3], nothing[7], nothing.len()), (0x83, 0, asked.len()));
}

#[test]
fn only_questions_for_an_address_get_one() {
    let address = Some(Ipv4Addr::new(127, 64, 0, 9));
    for kind in [2, 5, 6, 12, 15, 16, 28, 33, 64, 65, 255] {
        let answer = query(&packet(&["a", "example"], kind, 1)).answer(Code::Fine, address);
        assert_eq!((answer[3] & 0x0f, answer[7]), (0, 0), "type {kind}");
    }
}

#[test]
fn edns_is_tolerated_and_answered_in_kind() {
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let answer = query(&with_edns(packet(&["a", "example"], 1, 1), &cookie))
        .answer(Code::Fine, Some(Ipv4Addr::LOCALHOST));
    assert_eq!(answer[11], 1);
    assert_eq!(answer[answer.len() - 11..], [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_is_not_one_plain_question_is_refused() {
    let good = packet(&["a", "example"], 1, 1);
    let changed = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let pointer = [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let long = packet(&[&*"a".repeat(63); 4], 1, 1);
    let longest =
        packet(&[&*"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)], 1, 1);
    assert!(query(&longest).name.is_some(), "255 bytes are a name");
    let mut version = with_edns(good.clone(), b"");
    let at = version.len() - 5;
    version[at] = 1;
    let mut short = with_edns(good.clone(), b"1234");
    short.pop();
    let malformed: Vec<Vec<u8>> = vec![
        changed(5, 0),
        changed(5, 2),
        changed(7, 1),
        changed(9, 1),
        changed(11, 1),
        changed(11, 2),
        changed(2, 0x02),
        changed(12, 64),
        changed(12, 200),
        good[..good.len() - 1].to_vec(),
        good[..14].to_vec(),
        good[..12].to_vec(),
        [&good[..], b"x"].concat(),
        pointer,
        long,
        version,
        short,
        with_edns(good.clone(), &[0; 255][..200]).into_iter().chain([0; 1_100]).collect(),
    ];
    for packet in malformed {
        assert_eq!(code(&packet), 1, "{packet:02x?}");
    }
    assert_eq!(code(&changed(2, 0x28)), 4, "an update is not known here");
    assert_eq!(code(&packet(&["version", "bind"], 16, 3)), 5, "another class");
    for silent in [&good[..11], &changed(2, 0x81)[..], b""] {
        assert_eq!(read(silent), Read::Silence);
    }
}

#[test]
fn names_that_no_host_can_have_are_nobodys() {
    for labels in [
        &["a.b", "example"][..],
        &["a b"],
        &["a/b", "example"],
        &["_dmarc", "example"],
        &["1", "2", "3", "4"],
        &["x\r\nHost:"],
        &["\u{e9}"],
        &[],
    ] {
        assert_eq!(query(&packet(labels, 1, 1)).name, None, "{labels:?}");
    }
}

/// Any bytes: never a panic, never an answer longer than the question and what is added, never
/// bytes of the packet beyond the question.
#[test]
fn fuzz_dns() {
    let seeds = [
        packet(&["api", "example", "org"], 1, 1),
        packet(&["a"], 28, 1),
        with_edns(packet(&["xn--bcher-kva", "example"], 65, 1), &[0, 10, 0, 2, 1, 2]),
        with_edns(packet(&[&"a".repeat(63), &"b".repeat(63)], 1, 1), b""),
        vec![0; 12],
    ];
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    testkit::fuzz::run("dns", &seeds, |bytes, _| match read(bytes) {
        Read::Silence => {
            assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0);
            0
        }
        Read::Reply(reply) => {
            assert!(reply.len() <= 12 + 259 + 11 && reply[..2] == bytes[..2]);
            outcome((1, reply[3], reply.len() > 12))
        }
        Read::Query(query) => {
            let answer = query.answer(Code::Fine, Some(Ipv4Addr::LOCALHOST));
            let question = &query.question;
            assert!(bytes[12..].starts_with(question) && answer[12..].starts_with(question));
            assert!(question.len() <= 259 && answer.len() <= 12 + question.len() + 16 + 11);
            // An answer is never a question: two of these cannot talk to each other.
            assert_eq!(read(&answer), Read::Silence);
            outcome((2, query.name.is_some(), magnitude(question.len()), magnitude(answer.len())))
        }
    });
}
