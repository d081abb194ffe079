//! Archives and compressed streams under mutation, with sizes at the edge of what a number holds.
#![allow(clippy::unwrap_used)]

use crate::limits::{Limits, Unwatched};
use crate::packing::{self, Packing};
use crate::tar::{Entry, Kind, Reader};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use testkit::fuzz;

/// A stream that comes in these pieces.
struct Pieces<'a>(VecDeque<&'a [u8]>);

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

/// As much of a file as is written behind its header, whatever size that tells.
const BODY_BYTES_MAX: u64 = 1_100;

/// One header with a right checksum, for mutation alone would hardly ever find one.
fn header(kind: u8, size: &[u8], name: &[u8], link: &[u8]) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8], most: usize| {
        let bytes = &bytes[..bytes.len().min(most)];
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, name, 100);
    put(100, b"0000755", 8);
    // A number that is no octal one of eleven digits is written to base 256.
    match std::str::from_utf8(size).ok().and_then(|s| s.parse::<u64>().ok()) {
        Some(n) if n < 1 << 33 => put(124, format!("{n:011o}").as_bytes(), 12),
        Some(n) => put(124, &[&[0x80, 0, 0, 0][..], &n.to_be_bytes()].concat(), 12),
        None => put(124, size, 12),
    }
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, link, 100);
    put(257, b"ustar\x0000", 8);
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A tar from lines: `KIND SIZE NAME LINK`, or `KIND SIZE RECORD…` of the kinds `x` and `g`.
fn archive(lines: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for line in lines.split(|b| *b == b'\n').take(60) {
        let Some((kind, rest)) = line.split_first() else { continue };
        let mut words = rest.split(|b| *b == b' ').skip(1);
        if matches!(kind, b'x' | b'g') {
            // Of the size 0 is the right one written.
            let told = words.next().filter(|size| *size != b"0");
            let mut body = Vec::new();
            for text in words.take(20) {
                let length =
                    (text.len() + 3..).find(|n| n.to_string().len() + text.len() + 2 == *n);
                body.extend(format!("{} ", length.unwrap()).bytes());
                body.extend(text);
                body.push(b'\n');
            }
            let right = body.len().to_string();
            tar.extend(header(*kind, told.unwrap_or(right.as_bytes()), b"pax", b""));
            tar.extend(&body);
        } else {
            let [size, name, link] = [(); 3].map(|()| words.next().unwrap_or_default());
            tar.extend(header(*kind, size, name, link));
            let told = std::str::from_utf8(size).ok().and_then(|s| s.parse().ok()).unwrap_or(0);
            let body = BODY_BYTES_MAX.min(told);
            tar.extend(name.iter().chain(b".").cycle().take(usize::try_from(body).unwrap()));
        }
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}

/// What a reader finds: entries, how many bytes of each could be had, and how it ended.
fn entries(source: impl Read, most: u64) -> (Vec<(Entry, u64)>, String) {
    let (mut reader, mut found) = (Reader::new(source, most), Vec::new());
    loop {
        match reader.next_entry() {
            // Every third one is skipped rather than read.
            Ok(Some(entry)) if found.len() % 3 == 2 => found.push((entry, 0)),
            Ok(Some(entry)) => {
                let bytes = io::copy(&mut reader, &mut io::sink());
                let ended = bytes.as_ref().err().map(|e| format!("{:?}", e.kind()));
                found.push((entry, bytes.unwrap_or(0)));
                if let Some(ended) = ended {
                    return (found, ended);
                }
            }
            Ok(None) => return (found, String::new()),
            Err(e) => return (found, e.cause),
        }
    }
}

#[test]
fn fuzz_image_tar() {
    let seeds: [&[u8]; 7] = [
        b"5 0 usr\n0 5 usr/a\n2 0 l usr\n1 0 h usr/a\n3 0 dev",
        b"x 0 size=18446744073709551615\n0 0 usr/.wh.zz\n0 3 b",
        b"g 0 size=18446744073709551104\n0 0 a\n0 0 b",
        b"0 18446744073709551615 a\n0 1 b",
        b"0 1048576 a\n0 1048577 b",
        b"x 0 path=a/b linkpath=c mtime=1.5 SCHILY.xattr.user.x=1\n0 600 a\nL 3 name\n0 512 x",
        b"x 18446744073709551615\nK 18446744073709551615 l\n5 18446744073709551615 d",
    ];
    let words: [&[u8]; 10] = [
        b"size=18446744073709551615",
        b"size=9223372036854775808",
        b"18446744073709551104",
        b"1048576",
        b"1048577",
        b"mtime=-1",
        b"mtime=18446744073709551615",
        b"\nx 0 ",
        b"\n0 1 f",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    fuzz::with_words("image-tar", &seeds, &words, |bytes, dice| {
        let made = archive(bytes);
        let mut found = Vec::new();
        for (tar, most) in [(&made[..], 1 << 20), (&made[..], u64::MAX), (bytes, u64::MAX)] {
            let whole = entries(tar, most);
            assert_eq!(entries(Pieces(dice.pieces(tar, 700).into()), most), whole);
            for (entry, bytes) in &whole.0 {
                assert!(entry.size <= most && *bytes <= entry.size, "{entry:?}");
                assert!(entry.kind == Kind::File || entry.size == 0, "{entry:?}");
            }
            assert!(whole.0.iter().map(|(_, bytes)| *bytes).sum::<u64>() <= tar.len() as u64);
            // Each entry that was followed by another is there as a whole.
            let complete = whole.0.len().saturating_sub(1);
            let sizes = whole.0[..complete].iter().map(|(entry, _)| u128::from(entry.size));
            assert!(sizes.sum::<u128>() <= tar.len() as u128);
            let kinds: Vec<_> = whole.0.iter().map(|(e, _)| format!("{:?}", e.kind)).collect();
            found.push((kinds.len().min(6), kinds.last().cloned(), whole.1.len()));
        }
        fuzz::outcome(found)
    });
}

/// What came of a stream: how much, how it ended, and what it left of the limits.
fn unpacked(source: impl Read, limits: &Limits) -> (u64, bool, Packing, Limits) {
    let mut opened = packing::open(source, limits, &Unwatched).unwrap();
    let ended = io::copy(&mut opened.bytes, &mut io::sink()).is_ok();
    (opened.unpacked.bytes(), ended, opened.packing, opened.rest(limits))
}

#[test]
fn fuzz_image_packing() {
    let text = [b"etc/passwd and so on, ".repeat(40), vec![0; 9_000]].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&text).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Fastest);
    let twice = [&gzip[..], &gzip].concat();
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd].concat();
    let seeds: [&[u8]; 5] = [&gzip, &zstd, &twice, &skipped, &text];
    let words: [&[u8]; 4] =
        [&[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18], &[0xff; 8], &[0x1f, 0x8b, 8, 0]];
    fuzz::with_words("image-packing", &seeds, &words, |bytes, dice| {
        let limits =
            Limits { unpacked_bytes: 60_000, ratio: 20, slack: 5_000, ..Limits::default() };
        let (out, ended, packing, rest) = unpacked(bytes, &limits);
        let most = bytes.len() as u64 * limits.ratio + limits.slack;
        assert!(out <= limits.unpacked_bytes && (packing == Packing::None || out <= most));
        assert_eq!(rest.unpacked_bytes, limits.unpacked_bytes - out);
        assert!(rest.slack <= limits.slack);
        // In pieces the same comes out, where it came to an end.
        let pieces = unpacked(Pieces(dice.pieces(bytes, 500).into()), &limits);
        if ended && pieces.1 && pieces.2 == packing {
            assert_eq!(pieces, (out, ended, packing, rest.clone()));
        }
        // Whatever is left, the next stream takes no more than that.
        let (next, ended_again, _, last) = unpacked(bytes, &rest);
        assert!(next <= rest.unpacked_bytes && last.slack <= rest.slack);
        fuzz::outcome((format!("{packing:?}"), ended, ended_again, fuzz::magnitude(bytes.len())))
    });
}
