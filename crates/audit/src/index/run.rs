//! One file of an index: a sorted list of terms, and for each the records that have it.
//!
//! ```text
//! header (128) ‖ postings ‖ blocks of terms ‖ top
//! top: first and last time of every 4,096 records; first term, place and CRC of every block
//! block: up to 64 × (u16 length ‖ term ‖ u64 place ‖ u32 bytes ‖ u32 records ‖ u32 CRC)
//! postings of a term: the numbers of its records, each as the distance from the one before, LEB128
//! ```
//!
//! 1. Little-endian. Whatever is read is checked first: the top when the file is opened, a block or
//!    postings when they are used. A run that fails is no run.
//! 2. Numbers count from the run's first record.

use super::terms::Terms;
use crate::disk::{create_anew, open_file};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"nclidx01";
const HEADER_BYTES: usize = 128;
/// Terms in a block: one read finds any of them.
const BLOCK_TERMS: usize = 64;
/// Records whose times stand together.
pub(crate) const TIME_RECORDS: u64 = 4_096;
/// Largest top that is read: for a million records of a million sessions it has two megabytes.
const TOP_BYTES_MAX: u64 = 64 << 20;

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// First record and number of records by a run's name.
pub(crate) fn numbers(path: &Path) -> Option<(u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".idx")?;
    let (first, count) = name.split_once('-')?;
    let numbers = (u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(count, 16).ok()?);
    (numbers.1 > 0 && name == run_name(numbers.0, numbers.1)).then_some(numbers)
}

fn run_name(first: u64, count: u64) -> String {
    format!("{first:016x}-{count:08x}")
}

/// Numbers of records that have a term, as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Postings {
    bytes: Vec<u8>,
    count: u32,
    /// The last number and one more, so that the first distance is from 0.
    next: u32,
}

impl Postings {
    fn push(&mut self, number: u32) {
        let mut rest = number - self.next;
        while rest >= 0x80 {
            self.bytes.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
        (self.next, self.count) = (number + 1, self.count + 1);
    }
}

fn unpack(bytes: &[u8], count: u32) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::with_capacity((count as usize).min(bytes.len()));
    let (mut next, mut value, mut shift) = (0u32, 0u32, 0);
    for byte in bytes {
        if shift > 28 {
            return Err(bad("a number in an index is too long"));
        }
        value |= u32::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let number = next.checked_add(value).ok_or_else(|| bad("a number is too large"))?;
            numbers.push(number);
            next = number.checked_add(1).ok_or_else(|| bad("a number is too large"))?;
            (value, shift) = (0, 0);
        }
    }
    if shift != 0 || numbers.len() != count as usize {
        return Err(bad("the numbers in an index do not come out even"));
    }
    Ok(numbers)
}

/// A run under way.
pub(crate) struct Builder {
    first: u64,
    count: u32,
    terms: HashMap<Vec<u8>, Postings>,
    times: Vec<(u64, u64)>,
}

impl Builder {
    pub(crate) fn new(first: u64) -> Self {
        Self { first, count: 0, terms: HashMap::new(), times: Vec::new() }
    }

    /// One that goes on where a run ends.
    pub(crate) fn from_run(run: &Run) -> io::Result<Self> {
        let mut made = Self::new(run.first);
        // A run has at most 2^20 records and a whole bundle more.
        made.count = run.count as u32;
        made.times.clone_from(&run.times);
        for block in &run.blocks {
            for term in run.block(block)? {
                let bytes = run.postings_bytes(&term)?;
                let next = unpack(&bytes, term.count)?.last().map_or(0, |n| n + 1);
                made.terms.insert(term.text, Postings { bytes, count: term.count, next });
            }
        }
        Ok(made)
    }

    pub(crate) fn count(&self) -> u64 {
        u64::from(self.count)
    }

    pub(crate) fn push(&mut self, terms: &Terms) {
        let number = self.count;
        self.count += 1;
        for term in terms.all() {
            match self.terms.get_mut(&term) {
                Some(postings) => postings.push(number),
                None => self.terms.entry(term).or_default().push(number),
            }
        }
        if u64::from(number).is_multiple_of(TIME_RECORDS) {
            self.times.push((u64::MAX, 0));
        }
        if let Some((from, to)) = self.times.last_mut() {
            (*from, *to) = ((*from).min(terms.time_ms), (*to).max(terms.time_ms));
        }
    }

    /// Writes the run and returns its path.
    pub(crate) fn write(self, folder: &Path, last_leaf: [u8; 32]) -> io::Result<PathBuf> {
        let name = run_name(self.first, self.count());
        let (new, path) = (folder.join(format!("{name}.new")), folder.join(format!("{name}.idx")));
        let mut file = BufWriter::new(create_anew(&new)?);
        file.write_all(&[0; HEADER_BYTES])?;
        let mut terms: Vec<(Vec<u8>, Postings)> = self.terms.into_iter().collect();
        terms.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut at = HEADER_BYTES as u64;
        let mut places = Vec::with_capacity(terms.len());
        for (_, postings) in &terms {
            file.write_all(&postings.bytes)?;
            places.push(at);
            at += postings.bytes.len() as u64;
        }
        let mut top = Vec::new();
        for (from, to) in &self.times {
            top.extend(from.to_le_bytes());
            top.extend(to.to_le_bytes());
        }
        for (chunk, places) in terms.chunks(BLOCK_TERMS).zip(places.chunks(BLOCK_TERMS)) {
            let mut block = Vec::new();
            for ((text, postings), place) in chunk.iter().zip(places) {
                block.extend((text.len() as u16).to_le_bytes());
                block.extend(text);
                block.extend(place.to_le_bytes());
                block.extend((postings.bytes.len() as u32).to_le_bytes());
                block.extend(postings.count.to_le_bytes());
                block.extend(crc32c::crc32c(&postings.bytes).to_le_bytes());
            }
            file.write_all(&block)?;
            top.extend((chunk[0].0.len() as u16).to_le_bytes());
            top.extend(&chunk[0].0);
            top.extend(at.to_le_bytes());
            top.extend((block.len() as u32).to_le_bytes());
            top.extend(crc32c::crc32c(&block).to_le_bytes());
            at += block.len() as u64;
        }
        file.write_all(&top)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut header = Vec::from(&MAGIC[..]);
        for number in [self.first, u64::from(self.count), terms.len() as u64, at, top.len() as u64]
        {
            header.extend(number.to_le_bytes());
        }
        header.extend(last_leaf);
        header.extend(crc32c::crc32c(&top).to_le_bytes());
        header.resize(HEADER_BYTES - 4, 0);
        header.extend(crc32c::crc32c(&header).to_le_bytes());
        file.write_all_at(&header, 0)?;
        // Not synced: a torn one fails its checksums and is made again.
        drop(file);
        fs::rename(&new, &path)?;
        Ok(path)
    }
}

/// Where a block of terms lies, and its first term.
#[derive(Debug)]
pub(crate) struct Block {
    first: Vec<u8>,
    at: u64,
    bytes: u32,
    crc: u32,
}

/// A term of a run.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) text: Vec<u8>,
    at: u64,
    bytes: u32,
    /// Records that have it.
    pub(crate) count: u32,
    crc: u32,
}

/// A run as it is read.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    file: File,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) last_leaf: [u8; 32],
    /// First and last time of every [`TIME_RECORDS`] records.
    pub(crate) times: Vec<(u64, u64)>,
    blocks: Vec<Block>,
    length: u64,
}

/// Takes numbers and texts off the front of bytes.
struct Taker<'a>(&'a [u8]);

impl<'a> Taker<'a> {
    fn some(&mut self, n: usize) -> io::Result<&'a [u8]> {
        let (some, rest) = self.0.split_at_checked(n).ok_or_else(|| bad("an index ends early"))?;
        self.0 = rest;
        Ok(some)
    }

    fn number<const N: usize>(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.some(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn u32(&mut self) -> io::Result<u32> {
        // Four bytes are within 32 bits.
        self.number::<4>().map(|n| n as u32)
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        let n = self.number::<2>()? as usize;
        Ok(self.some(n)?.to_vec())
    }
}

impl Run {
    /// Opens a run; `None` when it is damaged, which is as good as none.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        match Self::parse(path) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            other => other.map(Some),
        }
    }

    fn parse(path: &Path) -> io::Result<Self> {
        let file = open_file(path)?;
        let length = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let (body, crc) = header.split_at(HEADER_BYTES - 4);
        if !body.starts_with(MAGIC) || crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(bad("no index"));
        }
        let mut take = Taker(&body[MAGIC.len()..]);
        let (first, count, terms) = (take.number::<8>()?, take.number::<8>()?, take.number::<8>()?);
        let (top_at, top_bytes) = (take.number::<8>()?, take.number::<8>()?);
        let mut last_leaf = [0; 32];
        last_leaf.copy_from_slice(take.some(32)?);
        let top_crc = take.u32()?;
        if numbers(path) != Some((first, count)) || top_bytes > TOP_BYTES_MAX {
            return Err(bad("not what its name says"));
        }
        let mut top = vec![0; top_bytes as usize];
        file.read_exact_at(&mut top, top_at)?;
        if crc32c::crc32c(&top) != top_crc {
            return Err(bad("its list of terms is damaged"));
        }
        let mut take = Taker(&top);
        let mut times = Vec::new();
        for _ in 0..count.div_ceil(TIME_RECORDS) {
            times.push((take.number::<8>()?, take.number::<8>()?));
        }
        let mut blocks = Vec::new();
        for _ in 0..terms.div_ceil(BLOCK_TERMS as u64) {
            let first = take.text()?;
            let (at, bytes, crc) = (take.number::<8>()?, take.u32()?, take.u32()?);
            blocks.push(Block { first, at, bytes, crc });
        }
        let path = path.to_owned();
        Ok(Self { path, file, first, count, last_leaf, times, blocks, length })
    }

    fn read(&self, at: u64, bytes: u32, crc: u32) -> io::Result<Vec<u8>> {
        if at.checked_add(u64::from(bytes)).is_none_or(|end| end > self.length) {
            return Err(bad("an index points beyond its end"));
        }
        let mut read = vec![0; bytes as usize];
        self.file.read_exact_at(&mut read, at)?;
        if crc32c::crc32c(&read) != crc {
            return Err(bad("a part of an index is damaged"));
        }
        Ok(read)
    }

    fn block(&self, block: &Block) -> io::Result<Vec<Term>> {
        let bytes = self.read(block.at, block.bytes, block.crc)?;
        let (mut take, mut terms) = (Taker(&bytes), Vec::with_capacity(BLOCK_TERMS));
        while !take.0.is_empty() {
            let text = take.text()?;
            let (at, bytes) = (take.number::<8>()?, take.u32()?);
            terms.push(Term { text, at, bytes, count: take.u32()?, crc: take.u32()? });
        }
        Ok(terms)
    }

    fn postings_bytes(&self, term: &Term) -> io::Result<Vec<u8>> {
        self.read(term.at, term.bytes, term.crc)
    }

    /// Numbers of the records that have a term, from the run's first on.
    pub(crate) fn postings(&self, term: &Term) -> io::Result<Vec<u32>> {
        unpack(&self.postings_bytes(term)?, term.count)
    }

    /// The terms that begin with `prefix`, in order.
    pub(crate) fn terms(&self, prefix: &[u8]) -> io::Result<Vec<Term>> {
        // The block before the first that begins behind the prefix may have some too.
        let start = self.blocks.partition_point(|b| b.first.as_slice() < prefix).saturating_sub(1);
        let mut found = Vec::new();
        for block in &self.blocks[start.min(self.blocks.len())..] {
            if block.first.as_slice() > prefix && !block.first.starts_with(prefix) {
                break;
            }
            let of = self.block(block)?.into_iter();
            found.extend(of.filter(|term| term.text.starts_with(prefix)));
        }
        Ok(found)
    }

    /// The very term.
    pub(crate) fn term(&self, text: &[u8]) -> io::Result<Option<Term>> {
        let start = self.blocks.partition_point(|b| b.first.as_slice() <= text);
        let Some(block) = start.checked_sub(1).and_then(|i| self.blocks.get(i)) else {
            return Ok(None);
        };
        Ok(self.block(block)?.into_iter().find(|term| term.text == text))
    }
}
