//! A seeded generator for the bounded fuzz tests: same seed, same inputs, no dependency.
//!
//! An ordinary run takes a fixed number of rounds; with `NANOCLAW_FUZZ_SECONDS` set, a target runs
//! for that long.

use std::time::{Duration, Instant};

/// xorshift64*; good enough to shuffle bytes.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(value).unwrap() % limit.max(1)
    }

    /// One to eight random edits: a byte changed, removed, doubled, a stretch repeated elsewhere,
    /// a length made extreme, or the tail cut.
    pub(crate) fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(8) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, bytes[at]),
                3 => bytes[at] ^= 1 << self.below(8),
                4 => bytes[at] = [0, 1, 0x16, 0x7F, 0x80, 0xFF, b'\n', b' '][self.below(8)],
                5 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                6 => bytes[at] = bytes[at].wrapping_add(u8::try_from(self.below(5)).unwrap()),
                _ => bytes.truncate(at + 1),
            }
        }
        bytes
    }
}

/// Counts rounds: so many, or as many as fit into the seconds asked for.
pub(crate) struct Rounds {
    next: usize,
    fixed: usize,
    until: Option<Instant>,
}

impl Rounds {
    pub(crate) fn new(fixed: usize) -> Self {
        let asked = std::env::var("NANOCLAW_FUZZ_SECONDS").ok();
        let seconds: Option<u64> = asked.map(|text| text.parse().expect("a number of seconds"));
        let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Self { next: 0, fixed, until }
    }
}

impl Iterator for Rounds {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        let more = self.until.map_or(self.next < self.fixed, |until| Instant::now() < until);
        self.next += 1;
        more.then_some(self.next - 1)
    }
}
