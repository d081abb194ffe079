//! Strings and lists in another process' memory, read within bounds.
//!
//! 1. Whatever stands there, at most what the bounds say is read, and nothing panics.
//! 2. No piece crosses a page, so that what lies behind a short string is never needed.

use std::io;

/// Pieces end at multiples of this; no supported kernel has smaller pages.
const PAGE: u64 = 4_096;
/// Read at once of each argument: nearly all are shorter.
const ARGUMENT_PIECE: u64 = 192;
/// Bytes of a pointer.
const POINTER: usize = 8;

/// Why something could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The call waits no more: whatever was read may be another process'.
    Gone,
    /// Nothing is mapped there. The kernel will say so, too.
    Nowhere,
    /// The kernel does not let us, in its words.
    Closed(String),
    /// It did not come in time, or there is nobody to read it.
    Late(&'static str),
}

impl Unread {
    pub(super) fn of(e: &io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::EFAULT) => Self::Nowhere,
            Some(libc::ESRCH) => Self::Gone,
            _ => Self::Closed(e.to_string()),
        }
    }
}

/// The memory of the process that waits.
pub(super) trait Memory {
    /// Reads these pieces (address, length) one after another; the number of bytes before the
    /// first that cannot be read.
    fn read(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> Result<usize, Unread>;
}

/// Bytes up to a NUL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    /// There was more.
    pub(super) cut: bool,
}

/// Memory of which some pages were read already, at once: what a call names mostly stands near each
/// other, and asking another process is what reading costs.
pub(super) struct Near<'a, M> {
    memory: &'a M,
    pages: Vec<(u64, Vec<u8>)>,
}

impl<'a, M: Memory> Near<'a, M> {
    /// Reads the pages in which these addresses lie, up to the first that cannot be read: what is
    /// wrong with that one is told when it is asked for.
    pub(super) fn of(memory: &'a M, addresses: &[u64]) -> Self {
        let mut at: Vec<u64> = addresses.iter().map(|a| a - a % PAGE).collect();
        at.dedup();
        let pieces: Vec<(u64, usize)> = at.iter().map(|at| (*at, PAGE as usize)).collect();
        let mut bytes = vec![0; PAGE as usize * at.len()];
        let whole = memory.read(&pieces, &mut bytes).unwrap_or(0) / PAGE as usize;
        let pages = bytes.chunks(PAGE as usize).map(<[u8]>::to_vec);
        Self { memory, pages: at.into_iter().zip(pages).take(whole).collect() }
    }

    /// A piece, if it lies in a page that was read.
    fn known(&self, (address, len): (u64, usize)) -> Option<&[u8]> {
        let (at, page) = self.pages.iter().find(|(at, _)| *at == address - address % PAGE)?;
        let start = (address - at) as usize;
        page.get(start..start.checked_add(len)?)
    }
}

impl<M: Memory> Memory for Near<'_, M> {
    fn read(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> Result<usize, Unread> {
        let known: Option<Vec<&[u8]>> = pieces.iter().map(|piece| self.known(*piece)).collect();
        let Some(known) = known else { return self.memory.read(pieces, into) };
        let bytes = known.concat();
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

fn to_page_end(address: u64) -> u64 {
    PAGE - address % PAGE
}

/// The string at `address`, at most `max` bytes of it.
pub(super) fn text(memory: &impl Memory, address: u64, max: usize) -> Result<Text, Unread> {
    let (mut bytes, mut at) = (Vec::new(), address);
    loop {
        // One more than wanted: it shows whether the string ends there.
        let room = (max - bytes.len()) as u64 + 1;
        let want = to_page_end(at).min(room) as usize;
        let mut piece = vec![0; want];
        let got = memory.read(&[(at, want)], &mut piece)?;
        if got == 0 {
            return Err(Unread::Nowhere);
        }
        piece.truncate(got);
        if let Some(end) = piece.iter().position(|b| *b == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Ok(Text { bytes, cut: false });
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() > max {
            bytes.truncate(max);
            return Ok(Text { bytes, cut: true });
        }
        at = at.checked_add(got as u64).ok_or(Unread::Nowhere)?;
    }
}

/// Arguments of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct List {
    pub(super) texts: Vec<Vec<u8>>,
    /// There were more, or longer ones.
    pub(super) cut: bool,
}

/// The strings of a null-terminated array of pointers: at most so many, and so many bytes of all.
pub(super) fn list(
    memory: &impl Memory,
    address: u64,
    count_max: usize,
    bytes_max: usize,
) -> Result<List, Unread> {
    let (pointers, mut cut) = pointers(memory, address, count_max)?;
    let pieces: Vec<(u64, usize)> =
        pointers.iter().map(|p| (*p, to_page_end(*p).min(ARGUMENT_PIECE) as usize)).collect();
    let mut all = vec![0; pieces.iter().map(|(_, len)| len).sum()];
    let got = if all.is_empty() { 0 } else { memory.read(&pieces, &mut all)? };
    let (mut texts, mut start, mut left) = (Vec::new(), 0, bytes_max);
    for (pointer, len) in pieces {
        let first = all.get(start..(start + len).min(got)).unwrap_or_default();
        start += len;
        let mut found = match first.iter().position(|b| *b == 0) {
            Some(end) => Text { bytes: first[..end].to_vec(), cut: false },
            None => text(memory, pointer, left)?,
        };
        if found.bytes.len() > left {
            found.bytes.truncate(left);
            found.cut = true;
        }
        left -= found.bytes.len();
        cut |= found.cut;
        texts.push(found.bytes);
        if found.cut {
            break;
        }
    }
    Ok(List { texts, cut })
}

/// The pointers up to the null, and whether there are more than `count_max`.
fn pointers(
    memory: &impl Memory,
    address: u64,
    count_max: usize,
) -> Result<(Vec<u64>, bool), Unread> {
    let mut found = Vec::new();
    if address == 0 {
        // As Linux takes it: no arguments.
        return Ok((found, false));
    }
    let mut at = address;
    loop {
        let want = (count_max + 1 - found.len()) * POINTER;
        let first = (to_page_end(at) as usize).min(want);
        // The next page only where not even one pointer stands in this one.
        let rest = if first < POINTER { (want - first).min(PAGE as usize) } else { 0 };
        let next = at.checked_add(first as u64).ok_or(Unread::Nowhere)?;
        let mut bytes = vec![0; first + rest];
        let pieces = [(at, first), (next, rest)];
        let got = memory.read(&pieces[..1 + usize::from(rest > 0)], &mut bytes)?;
        bytes.truncate(got);
        let (whole, _) = bytes.as_chunks::<POINTER>();
        for pointer in whole.iter().map(|b| u64::from_ne_bytes(*b)) {
            if pointer == 0 {
                return Ok((found, false));
            }
            if found.len() == count_max {
                return Ok((found, true));
            }
            found.push(pointer);
        }
        if whole.is_empty() {
            return Err(Unread::Nowhere);
        }
        at = at.checked_add((whole.len() * POINTER) as u64).ok_or(Unread::Nowhere)?;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Pages by their address.
    #[derive(Default)]
    pub(in super::super) struct Pages(BTreeMap<u64, Vec<u8>>);

    impl Pages {
        pub(in super::super) fn put(&mut self, address: u64, bytes: &[u8]) {
            for (at, byte) in (address..).zip(bytes) {
                let page = self.0.entry(at - at % PAGE).or_insert_with(|| vec![0xff; 4_096]);
                page[(at % PAGE) as usize] = *byte;
            }
        }

        pub(in super::super) fn list(&mut self, at: u64, pointers: &[u64]) {
            let bytes: Vec<u8> = pointers.iter().flat_map(|p| p.to_ne_bytes()).collect();
            self.put(at, &bytes);
        }
    }

    impl Memory for Pages {
        fn read(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> Result<usize, Unread> {
            let mut got = 0;
            for (address, len) in pieces {
                for offset in 0..*len as u64 {
                    let at = address.wrapping_add(offset);
                    let Some(page) = self.0.get(&(at - at % PAGE)) else {
                        return if got == 0 { Err(Unread::Nowhere) } else { Ok(got) };
                    };
                    into[got] = page[(at % PAGE) as usize];
                    got += 1;
                }
            }
            Ok(got)
        }
    }

    /// Counts how often it is read.
    struct Counted(Pages, std::cell::Cell<usize>);

    impl Memory for Counted {
        fn read(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> Result<usize, Unread> {
            self.1.set(self.1.get() + 1);
            self.0.read(pieces, into)
        }
    }

    #[test]
    fn what_stands_near_is_read_once_and_all_else_as_before() {
        let mut pages = Pages::default();
        pages.put(0x1000, b"/bin/sh\0sh\0");
        pages.list(0x2000, &[0x1008, 0x1004, 0]);
        pages.put(0x3000, b"far\0");
        pages.list(0x2100, &[0x1008, 0x3000, 0]);
        let memory = Counted(pages, 0.into());
        let near = Near::of(&memory, &[0x1000, 0x2000]);
        assert_eq!(text(&near, 0x1000, 100), found(b"/bin/sh", false));
        assert_eq!(list(&near, 0x2000, 9, 99), list(&memory.0, 0x2000, 9, 99));
        assert_eq!(memory.1.get(), 1);
        assert_eq!(list(&near, 0x2100, 9, 99), list(&memory.0, 0x2100, 9, 99));
        assert_eq!(memory.1.get(), 2, "one of the strings stands elsewhere");
        // The second page is not there, and neither is the last of all.
        let near = Near::of(&memory, &[0x1000, 0x9000, u64::MAX]);
        assert_eq!(text(&near, 0x1008, 100), found(b"sh", false));
        assert_eq!(list(&near, 0x9000, 9, 99), Err(Unread::Nowhere));
        assert_eq!(text(&near, u64::MAX, 9), Err(Unread::Nowhere));
    }

    fn found(bytes: &[u8], cut: bool) -> Result<Text, Unread> {
        Ok(Text { bytes: bytes.to_vec(), cut })
    }

    #[test]
    fn strings_are_read_to_their_end_or_their_bound() {
        let mut pages = Pages::default();
        // The last bytes before a hole.
        pages.put(0x1ffa, b"short\0");
        assert_eq!(text(&pages, 0x1ffa, 100), found(b"short", false));
        assert_eq!(text(&pages, 0x1ffa, 5), found(b"short", false));
        assert_eq!(text(&pages, 0x1ffa, 4), found(b"shor", true));
        // Over the border of two pages, and with no end at all.
        pages.put(0x4ffe, b"across\0");
        assert_eq!(text(&pages, 0x4ffe, 100), found(b"across", false));
        pages.put(0x7000, &[b'x'; 4_096]);
        assert_eq!(text(&pages, 0x7000, 10_000), Err(Unread::Nowhere));
        assert_eq!(text(&pages, 0x7000, 4_000).map(|t| (t.bytes.len(), t.cut)), Ok((4_000, true)));
        assert_eq!(text(&pages, 0x9_0000, 10), Err(Unread::Nowhere));
        assert_eq!(text(&pages, u64::MAX, 10), Err(Unread::Nowhere));
    }

    #[test]
    fn lists_are_bounded_in_number_and_in_bytes() {
        let mut pages = Pages::default();
        pages.put(0x1000, b"gcc\0-c\0");
        let long = [&[b'y'; 300][..], b"\0"].concat();
        pages.put(0x1100, &long);
        pages.list(0x3000, &[0x1000, 0x1100, 0x1004, 0]);
        let three = vec![b"gcc".to_vec(), vec![b'y'; 300], b"-c".to_vec()];
        let read = |count, bytes| list(&pages, 0x3000, count, bytes).map(|l| (l.texts, l.cut));
        assert_eq!(read(10, 1_000), Ok((three.clone(), false)));
        assert_eq!(read(3, 305), Ok((three.clone(), false)));
        assert_eq!(read(2, 1_000), Ok((three[..2].to_vec(), true)));
        assert_eq!(read(10, 13), Ok((vec![b"gcc".to_vec(), vec![b'y'; 10]], true)));
        assert_eq!(list(&pages, 0, 10, 10), Ok(List::default()), "no list is an empty one");
    }

    #[test]
    fn lists_that_lead_nowhere_are_told() {
        let mut pages = Pages::default();
        pages.put(0x1000, b"ok\0");
        // Pointers up to the last byte before a hole, and none of them null.
        pages.list(0x4ff0, &[0x1000, 0x1000]);
        assert_eq!(list(&pages, 0x4ff0, 10, 100), Err(Unread::Nowhere));
        pages.list(0x6000, &[0x1000, 0x66_0000, 0]);
        assert_eq!(list(&pages, 0x6000, 10, 100), Err(Unread::Nowhere));
        // One that stands across two pages is read all the same.
        pages.list(0x8ffc, &[0x1000, 0]);
        assert_eq!(list(&pages, 0x8ffc, 10, 100).map(|l| l.texts), Ok(vec![b"ok".to_vec()]));
    }
}
