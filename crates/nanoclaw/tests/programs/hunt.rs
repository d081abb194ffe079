//! The search for a secret: its bytes, as they are and as programs write bytes down.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::bytes::{Regex, RegexBuilder};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much is looked at in one go.
const PIECE: usize = 1 << 20;
/// A memory mapping of more is one that reserves addresses, and is sparse: nothing here has one
/// that is also readable.
const REGION_MAX: u64 = 4 << 30;
/// One pattern of all needles, some of a few hundred bytes.
const PATTERN_BYTES_MAX: usize = 16 << 20;

/// What is searched for.
pub(crate) struct Hunt {
    needles: Regex,
    longest: usize,
}

impl Hunt {
    pub(crate) fn for_value(value: &str) -> Self {
        let needles = needles(value);
        let longest = needles.iter().map(Vec::len).max().unwrap();
        let any: Vec<String> = needles.iter().map(|needle| literal(needle)).collect();
        let mut builder = RegexBuilder::new(&any.join("|"));
        let needles = builder.unicode(false).size_limit(PATTERN_BYTES_MAX).build().unwrap();
        Self { needles, longest }
    }

    /// What of it stands in these bytes.
    pub(crate) fn within(&self, bytes: &[u8]) -> Option<String> {
        self.needles.find(bytes).map(|m| String::from_utf8_lossy(m.as_bytes()).into_owned())
    }

    /// Searches a file, in pieces.
    pub(crate) fn file(&self, path: &Path) -> io::Result<Option<String>> {
        self.span(&File::open(path)?, 0, u64::MAX).map(|(found, _)| found)
    }

    /// Searches `from..to`; also how many bytes were there.
    fn span(&self, file: &File, from: u64, to: u64) -> io::Result<(Option<String>, u64)> {
        let mut piece = vec![0; PIECE + self.longest];
        let (mut at, mut kept, mut seen) = (from, 0, 0);
        loop {
            let room = usize::try_from(to - at).unwrap_or(PIECE).min(PIECE);
            let n = match file.read_at(&mut piece[kept..kept + room], at) {
                Ok(0) => return Ok((None, seen)),
                Ok(n) => n,
                Err(e) if seen == 0 => return Err(e),
                // Of a region whose end cannot be read, the beginning was searched.
                Err(_) => return Ok((None, seen)),
            };
            if let Some(found) = self.within(&piece[..kept + n]) {
                return Ok((Some(found), seen));
            }
            (at, seen) = (at + n as u64, seen + n as u64);
            let keep = (kept + n).min(self.longest);
            piece.copy_within(kept + n - keep..kept + n, 0);
            kept = keep;
        }
    }

    /// Searches every readable region of a process's memory: where it was found, and how many
    /// bytes could be read. A process that has gone has no memory.
    pub(crate) fn memory(&self, pid: i32) -> (Option<String>, u64) {
        let place = format!("/proc/{pid}");
        let Ok(maps) = std::fs::read_to_string(format!("{place}/maps")) else { return (None, 0) };
        let Ok(memory) = File::open(format!("{place}/mem")) else { return (None, 0) };
        let mut all = 0;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let range = words.next().and_then(|w| w.split_once('-'));
            let Some((from, to)) = range else { continue };
            let number = |digits| u64::from_str_radix(digits, 16).unwrap_or(0);
            let (from, to) = (number(from), number(to));
            let readable = words.next().is_some_and(|rights| rights.starts_with('r'));
            if !readable || to - from > REGION_MAX || line.ends_with("[vsyscall]") {
                continue;
            }
            // Pages beyond a file's end, and the kernel's own, cannot be read.
            let Ok((found, seen)) = self.span(&memory, from, to) else { continue };
            all += seen;
            if let Some(found) = found {
                return (Some(format!("{found:?} in {line}")), all);
            }
        }
        (None, all)
    }
}

/// The value in every form that is searched for.
fn needles(value: &str) -> Vec<Vec<u8>> {
    let bytes = value.as_bytes();
    let hex = |upper: bool, prefix: &str| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = match upper {
                true => write!(text, "{prefix}{byte:02X}"),
                false => write!(text, "{prefix}{byte:02x}"),
            };
            text
        })
    };
    let escaped = |upper: bool| {
        bytes.iter().fold(String::new(), |mut text, &byte| {
            let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            let _ = match (plain, upper) {
                (true, _) => write!(text, "{}", char::from(byte)),
                (_, true) => write!(text, "%{byte:02X}"),
                (_, false) => write!(text, "%{byte:02x}"),
            };
            text
        })
    };
    let mut all = vec![
        bytes.to_vec(),
        bytes.iter().rev().copied().collect(),
        value.encode_utf16().flat_map(u16::to_le_bytes).collect(),
    ];
    let mut texts = vec![hex(false, ""), hex(true, ""), hex(false, "%"), hex(true, "%")];
    texts.extend([escaped(false), escaped(true), hex(false, "\\x")]);
    // Base64 depends on what stands before: three ways, without the characters at both ends that
    // also tell of the neighbours.
    for shift in 0..3 {
        let shifted = [&[0; 2][..shift], bytes].concat();
        let whole = (bytes.len() + shift) / 3 * 3 - shift;
        let skip = [0, 2, 3][shift];
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            texts.push(engine.encode(&shifted[..shift + whole])[skip..].to_owned());
        }
    }
    all.extend(texts.into_iter().map(String::into_bytes));
    all.sort();
    all.dedup();
    all
}

/// A pattern that matches exactly these bytes.
fn literal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "\\x{byte:02x}");
        text
    })
}

#[test]
fn every_form_of_a_value_is_found() {
    let value = "test-key/not+real=0123";
    let hunt = Hunt::for_value(value);
    let base64 = |before: &str| STANDARD_NO_PAD.encode(format!("{before}{value}, and more"));
    for text in [
        format!("Bearer {value}\r\n"),
        value.chars().rev().collect(),
        base64(""),
        base64("u"),
        base64("user:"),
        base64("us"),
        "746573742d6b65792f6e6f742b7265616c3d30313233".to_owned(),
        "q=test-key%2Fnot%2Breal%3D0123".to_owned(),
    ] {
        assert!(hunt.within(text.as_bytes()).is_some(), "{text}");
        let mut long = vec![b'x'; PIECE - 3];
        long.extend_from_slice(text.as_bytes());
        let file = testkit::TempDir::new("hunt").unwrap();
        std::fs::write(file.join("f"), &long).unwrap();
        assert!(hunt.file(&file.join("f")).unwrap().is_some(), "{text} across two pieces");
    }
    assert_eq!(hunt.within(b"test-key/not+real=012 and nothing else"), None);
}
