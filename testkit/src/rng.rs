//! Seeded randomness.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// xorshift64* (Vigna 2016): small, fast, the same everywhere. Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From the environment variable `NANOCLAW_SEED`, or from the clock; prints the seed, so that
    /// a failed test can be repeated.
    #[must_use]
    pub fn from_env() -> Self {
        let given = std::env::var("NANOCLAW_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // The low bits are the random ones.
            #[allow(clippy::cast_possible_truncation)]
            let low = now.as_nanos() as u64;
            low
        });
        // A lost line on a closed stderr changes nothing.
        drop(writeln!(std::io::stderr(), "NANOCLAW_SEED={seed}"));
        Self::new(seed)
    }

    /// From a seed; zero, the one state xorshift cannot leave, is replaced.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 { 0x9E37_79B9_7F4A_7C15 } else { seed })
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from 0 to `bound - 1`; 0 for a bound of 0. Bias is below 2^-32 for small bounds.
    #[allow(clippy::cast_possible_truncation)] // less than `bound`, which is a usize
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next_u64() % bound as u64) as usize }
    }

    /// One byte.
    #[allow(clippy::cast_possible_truncation)] // the top byte is what is wanted
    pub fn byte(&mut self) -> u8 {
        (self.next_u64() >> 56) as u8
    }

    /// One of the items; `None` of none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
}
