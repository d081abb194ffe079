//! A seeded generator for the bounded fuzz tests: same seed, same inputs, no dependency.

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

    /// One to eight random edits: a byte changed, removed, doubled, a mark put in, the tail cut.
    pub(crate) fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(8) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, bytes[at]),
                3 => bytes.insert(at, b"\n\r{}\":0\xff<>&;-!"[self.below(14)]),
                _ => bytes.truncate(at + 1),
            }
        }
        bytes
    }
}
