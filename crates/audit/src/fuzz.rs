//! Every format of the log under mutation: the recorder's socket, the write-ahead file, entries,
//! bundles and tile names, checkpoints and keys.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::cosign::{WitnessKey, WitnessSigner};
use crate::entry::{Entry, Uids, decode, encode};
use crate::http::{Url, parse_request, parse_response};
use crate::merkle::{Hash, inclusion_proof, leaf_hash, subtree_root};
use crate::note::{Checkpoint, Signer, Verifier};
use crate::proof::Proof;
use crate::tiles::{TileName, push_entry, split_bundle};
use crate::wal::{Batch, Frame, FrameReader, Replayed, Wal};
use crate::wire::{self, Frames, FromClient, FromRecorder, Hello, Malformed};
use crate::witness::AddCheckpoint;
use model::{Body, Durability, Record, RecordError};
use std::collections::VecDeque;
use std::io::{self, Read};
use testkit::fuzz;

/// A stream that comes in these pieces.
struct Pieces<'a>(VecDeque<&'a [u8]>);

impl<'a> Pieces<'a> {
    fn new(pieces: Vec<&'a [u8]>) -> Self {
        Self(pieces.into())
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.0.pop_front() else { return Ok(0) };
        let (now, later) = piece.split_at(piece.len().min(buffer.len()));
        buffer[..now.len()].copy_from_slice(now);
        if !later.is_empty() {
            self.0.push_front(later);
        }
        Ok(now.len())
    }
}

fn record(text: &str) -> Record {
    let body = Body::ClientLost { pid: 7, role: text.into() };
    Record { time_ms: 1_700_000_000_000, session: None, agent: None, turn: None, body }
}

/// The frames of a stream, and how it ended.
fn frames(source: impl Read) -> (Vec<Vec<u8>>, Result<(), io::ErrorKind>) {
    let (mut frames, mut found) = (Frames::new(source), Vec::new());
    loop {
        match frames.next_frame() {
            Ok(Some(frame)) => found.push(frame.to_vec()),
            Ok(None) => return (found, Ok(())),
            Err(e) => return (found, Err(e.kind())),
        }
    }
}

/// What is understood as a client's is written again as the same, if it is no broken record.
fn client_again(message: FromClient) -> u64 {
    let mut out = Vec::new();
    match &message {
        FromClient::Hello(hello) => wire::push_hello(&mut out, hello),
        FromClient::Submit { id, durability, record: Ok(record) } => {
            wire::push_submit(&mut out, *id, *durability, record).unwrap();
        }
        FromClient::Submit { record: Err(_), .. } => return 1,
        FromClient::Rotate { id } => wire::push_rotate(&mut out, *id),
        FromClient::Bye => wire::push_bye(&mut out),
    }
    assert_eq!(wire::parse_client(&out[4..]), Ok(message));
    2
}

fn recorder_again(message: FromRecorder) -> u64 {
    let mut out = Vec::new();
    match &message {
        FromRecorder::Welcome => wire::push_welcome(&mut out),
        FromRecorder::Written { id, index, count } => {
            let last = u64::from(*count);
            assert!(id.checked_add(last).is_some() && index.checked_add(last).is_some());
            return 3;
        }
        FromRecorder::Refused { id, error } => wire::push_refused(&mut out, *id, error.clone()),
    }
    assert_eq!(wire::parse_recorder(&out[4..]), Ok(message));
    4
}

#[test]
fn fuzz_audit_frames() {
    let mut good = Vec::new();
    wire::push_hello(&mut good, &Hello { protocol: 3, pid: 2, role: "test".into() });
    for durability in [Durability::Ordered, Durability::Durable] {
        wire::push_submit(&mut good, 5, durability, &record("x")).unwrap();
    }
    wire::push_rotate(&mut good, 6);
    wire::push_bye(&mut good);
    let mut answers = Vec::new();
    wire::push_welcome(&mut answers);
    wire::push_written(&mut answers, &[(7, 9), (8, 10), (20, 4)]);
    wire::push_refused(&mut answers, 8, RecordError::Gone { cause: "x".into() });
    let words: [&[u8]; 5] = [b"\0\0\0", b"\"role\":", b"null", b"\xff\xff\xff\xff", b"A"];
    fuzz::with_words("audit-frames", &[&good, &answers], &words, |bytes, dice| {
        let whole = frames(bytes);
        assert_eq!(frames(Pieces::new(dice.pieces(bytes, 30))), whole);
        assert!(whole.0.iter().map(|frame| frame.len() + 4).sum::<usize>() <= bytes.len());
        let said = |frame: &Vec<u8>| {
            let known = |m: Malformed| format!("{m:?}").len() as u64;
            let client = wire::parse_client(frame).map_or_else(known, client_again);
            (client, wire::parse_recorder(frame).map_or_else(known, recorder_again))
        };
        let said: Vec<_> = whole.0.iter().map(said).collect();
        fuzz::outcome((said, whole.1))
    });
}

/// The frames of a segment that can be read, and what stands in the way of more.
fn replayed(source: impl Read) -> (Vec<(u64, Vec<u8>)>, String, u64) {
    let mut reader = FrameReader::new(source, 0, 0);
    let mut found = Vec::new();
    loop {
        match reader.next_frame().unwrap() {
            Ok(Some(Frame { seq, bytes })) => found.push((seq, bytes.to_vec())),
            Ok(None) => return (found, String::new(), reader.offset()),
            Err(bad) => return (found, format!("{bad:?}"), reader.offset()),
        }
    }
}

/// A segment of four records, as the log writes it.
fn segment() -> Vec<u8> {
    let dir = testkit::TempDir::new("fuzz-wal").unwrap();
    std::fs::create_dir(dir.join("wal")).unwrap();
    let (disk, empty) = (std::sync::Arc::new(crate::disk::Real) as _, Replayed::default());
    let mut wal = Wal::resume(&disk, dir.path(), &empty, 1 << 20).unwrap();
    for text in ["a", "bcd", "{\"e\":1}", "f"] {
        let mut batch = Batch::default();
        batch.push(&Entry::from_bytes(text.into()).unwrap());
        wal.append(&mut batch).unwrap();
        wal.sync().unwrap();
    }
    std::fs::read(crate::wal::segment_path(dir.path(), 0)).unwrap()
}

#[test]
fn fuzz_audit_log() {
    let good = segment();
    let (records, end, _) = replayed(&good[..]);
    assert_eq!((records.len(), &*end), (4, ""));
    let mut bundle = Vec::new();
    records.iter().for_each(|(_, bytes)| push_entry(&mut bundle, bytes));
    let uid = Uids::new(1).next(1_700_000_000_000);
    let entry = encode(&record("é\u{fb33}\u{1f600}"), &uid).unwrap().into_bytes();
    let words: [&[u8]; 6] =
        [b"\x80", b"\"unmapped\":{", b"\"kind\":", b"null", b"\0\x01", b"\"turn\":\"t\","];
    fuzz::with_words("audit-log", &[&good, &bundle, &entry], &words, |bytes, dice| {
        let whole = replayed(bytes);
        assert_eq!(replayed(Pieces::new(dice.pieces(bytes, 50))), whole);
        // Nobody here knows how to forge a checksum: what is read was written.
        assert!(whole.0.iter().all(|(_, b)| records.iter().any(|(_, r)| r == b)));
        let again = |entries: Vec<&[u8]>| {
            let mut again = Vec::new();
            entries.iter().for_each(|entry| push_entry(&mut again, entry));
            assert_eq!(again, bytes);
            entries.len().min(9)
        };
        let said: String = match decode(bytes) {
            Err(e) => e.why.chars().take(24).collect(),
            Ok(read) => {
                // Numbers beyond 2^53 are refused; all else comes back as it went in.
                if let Ok(written) = encode(&read, &uid) {
                    assert_eq!(decode(written.bytes()).as_ref(), Ok(&read));
                    let value: serde_json::Value = serde_json::from_slice(written.bytes()).unwrap();
                    let foreign = serde_json_canonicalizer::to_vec(&value).unwrap();
                    assert_eq!(written.bytes(), foreign);
                }
                read.body.kind().to_owned()
            }
        };
        fuzz::outcome((whole.0.len(), whole.1, split_bundle(bytes).map(again), said))
    });
}

#[test]
fn fuzz_audit_notes() {
    let signer = Signer::from_seed("log.example/x", [7; 32]).unwrap();
    let verifier = signer.verifier();
    let root = [9; 32];
    let note = signer.sign(1234, root);
    let witnessed = format!("{note}\u{2014} witness.example/w AAAAAAAAAAAA\n");
    let text = Checkpoint { origin: "log.example/x".into(), size: 1234, root }.text();
    let (vkey, skey) = (verifier.vkey(), signer.skey());
    let tile = "tile/entries/x001/x234/067.p/12";
    let seeds = [&*note, &*witnessed, &*text, &*vkey, &*skey, tile, "tile/0/x001/067"];
    let seeds: Vec<&[u8]> = seeds.iter().map(|s| s.as_bytes()).collect();
    let words: [&[u8]; 6] = ["\n\n", "\u{2014} ", "+", "=", "x000/", ".p/256"].map(str::as_bytes);
    fuzz::with_words("audit-notes", &seeds, &words, |bytes, _| {
        let opened = verifier.open(bytes);
        if let Ok(checkpoint) = &opened {
            assert_eq!((checkpoint.size, checkpoint.root), (1234, root), "a forged head");
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return 1 };
        // One spelling a value: what is read is written as it stood.
        let checkpoint = Checkpoint::parse(text);
        assert!(checkpoint.as_ref().is_ok_and(|c| c.text() == text) || checkpoint.is_err());
        let key = Verifier::parse(text);
        assert!(key.as_ref().is_ok_and(|key| key.vkey() == text) || key.is_err());
        let secret = Signer::parse(text);
        assert!(secret.as_ref().is_ok_and(|key| key.skey() == text) || secret.is_err());
        let tile = TileName::parse(text);
        assert!(tile.is_none_or(|tile| tile.path() == text));
        let of = |e: &crate::note::NoteError| (std::mem::discriminant(e), e.to_string().len());
        let errors = (opened.as_ref().err().map(of), checkpoint.as_ref().err().map(of));
        fuzz::outcome((
            errors,
            key.as_ref().err().map(of),
            secret.as_ref().err().map(of),
            tile.is_some(),
        ))
    });
}

/// A log of five records, its key, and the proof of the fourth.
fn proven() -> (Signer, Proof) {
    let signer = Signer::from_seed("log.example/x", [7; 32]).unwrap();
    let leaves: Vec<Hash> = (0..5_u8).map(|n| leaf_hash(&[n; 9])).collect();
    let path = inclusion_proof(&leaves[..], 3, 5).unwrap().unwrap();
    let checkpoint = signer.sign(5, subtree_root(&leaves));
    let proof = Proof { extra: Some(vec![3; 9]), index: 3, path, checkpoint };
    (signer, proof)
}

#[test]
fn fuzz_audit_proofs() {
    let (signer, proof) = proven();
    let witness = WitnessSigner::from_seed("w.example/1", [6; 32]).unwrap();
    let quorum = crate::cosign::Quorum::new(vec![witness.key().clone()], 1).unwrap();
    let text = &proof.checkpoint[..=proof.checkpoint.find("\n\n").unwrap()];
    let line = witness.cosign(text, 1_790_000_000);
    let note = format!("{}{line}", proof.checkpoint);
    let whole = Proof { checkpoint: note.clone(), ..proof.clone() }.text();
    let bare = Proof { extra: None, ..proof.clone() }.text();
    let request = AddCheckpoint { old: 2, proof: proof.path.clone(), note: note.clone() }.text();
    let (vkey, skey) = (witness.key().vkey(), witness.skey());
    let seeds = [&*whole, &*bare, &*request, &*note, &*line, &*vkey, &*skey];
    let seeds: Vec<&[u8]> = seeds.iter().map(|s| s.as_bytes()).collect();
    let words: [&[u8]; 6] =
        ["\n\n", "\u{2014} ", "extra ", "index 3", "old ", "="].map(str::as_bytes);
    fuzz::with_words("audit-proofs", &seeds, &words, |bytes, _| {
        let parsed = Proof::parse(bytes);
        let verdict = parsed.as_ref().ok().map(|parsed| {
            assert_eq!(parsed.text().as_bytes(), bytes, "two spellings of a proof");
            let proven = parsed.verify(signer.verifier(), &quorum, None);
            if let Ok(proven) = &proven {
                assert_eq!((proven.index, &proven.entry[..]), (3, &[3; 9][..]), "a forged record");
            }
            proven.map(|p| p.cosigned.len()).map_err(|e| e.to_string().len())
        });
        let request = AddCheckpoint::parse(bytes);
        assert!(request.as_ref().is_ok_and(|r| r.text().as_bytes() == bytes) || request.is_err());
        let cosigned = witness.key().cosigned(bytes);
        assert!(!matches!(cosigned, Ok(Some(time)) if time != 1_790_000_000), "a forged time");
        let Ok(said) = std::str::from_utf8(bytes) else { return 1 };
        let own = witness.key().own_line(text, said);
        assert!(own.as_ref().is_ok_and(|(own, _)| *own == line) || own.is_err(), "a forged line");
        let key = WitnessKey::parse(said);
        assert!(key.as_ref().is_ok_and(|key| key.vkey() == said) || key.is_err());
        let secret = WitnessSigner::parse(said);
        assert!(secret.as_ref().is_ok_and(|key| key.skey() == said) || secret.is_err());
        let malformed = parsed.err().map(|e| std::mem::discriminant(&e));
        fuzz::outcome((malformed.is_some(), verdict, request.err(), own.is_ok(), key.is_ok()))
    });
}

#[test]
fn fuzz_audit_http() {
    let get = "GET /tile/0/x001/067.p/12 HTTP/1.1\r\nHost: h\r\nConnection: close, x\r\n\r\n";
    let post = "POST /add-checkpoint HTTP/1.0\r\nContent-Length: 12\r\n\r\n";
    let answer = "HTTP/1.1 409 Conflict\r\nContent-Type: text/x.tlog.size\r\n\
                  Transfer-Encoding: chunked\r\n\r\n";
    let url = "https://[::1]:8443/a/b";
    let seeds = [get, post, answer, url, "http://w.example"].map(str::as_bytes);
    let words: [&[u8]; 7] =
        [b"\r\n", b"Content-Length: 1\r\n", b"\n", b"\0", b" HTTP/1.1", b"..", b"gzip"];
    fuzz::with_words("audit-http", &seeds, &words, |bytes, dice| {
        let request = parse_request(bytes);
        if let Ok(request) = &request {
            assert!(request.path.starts_with('/') && request.path.is_ascii());
            // Whatever a path says, only the name of a tile leads to a file.
            let name = TileName::parse(request.path.trim_start_matches('/'));
            assert!(name.is_none_or(|name| !name.path().contains("..")));
        }
        let response = parse_response(bytes);
        assert!(
            response.as_ref().is_ok_and(|r| (200..600).contains(&r.status)) || response.is_err()
        );
        let mut rest = Vec::new();
        let head = crate::http::read_head(&mut Pieces::new(dice.pieces(bytes, 20)), &mut rest);
        if let Ok(Some(head)) = &head {
            assert!(head.ends_with(b"\r\n\r\n") && bytes.starts_with(head));
        }
        let url = std::str::from_utf8(bytes).ok().map(Url::parse);
        if let Some(Ok(url)) = &url {
            assert_eq!(Url::parse(&url.below("x")).map(|u| u.host), Ok(url.host.clone()));
        }
        let kinds = (
            request.map(|r| r.keep_alive),
            response.map(|r| r.framing == crate::http::Framing::Chunked),
        );
        fuzz::outcome((
            kinds,
            head.map(|h| h.is_some()).map_err(|e| e.kind()),
            url.map(|u| u.is_ok()),
        ))
    });
}
