//! SHA-256, as the OCI writes it.

use aws_lc_rs::digest::{Context, SHA256};
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

/// `sha256:` and 64 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Reads `sha256:<hex>`; any other algorithm or spelling is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_hex(text.strip_prefix("sha256:")?)
    }

    /// Reads 64 lower-case hex digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (hex.len() == 64 && hex.bytes().all(digits)).then(|| Self(hex.to_owned()))
    }

    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = Hash::default();
        hash.add(bytes);
        hash.digest()
    }

    /// The 64 hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first digits, for people.
    #[must_use]
    pub fn brief(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A SHA-256 in the making.
#[derive(Clone)]
pub(crate) struct Hash(Context);

impl Default for Hash {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hash {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn digest(self) -> Digest {
        let bytes = self.0.finish();
        Digest(bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect())
    }
}

#[derive(Default)]
struct Passed {
    bytes: u64,
    hash: Hash,
}

/// What has passed through a [`Tap`]; shared with it, for the tap is often deep inside another
/// reader.
#[derive(Clone, Default)]
pub(crate) struct Tally(Rc<RefCell<Passed>>);

impl Tally {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }

    pub(crate) fn digest(&self) -> Digest {
        self.0.borrow().hash.clone().digest()
    }
}

/// Counts and hashes what is read through it.
pub(crate) struct Tap<R> {
    inner: R,
    tally: Tally,
}

impl<R: Read> Tap<R> {
    pub(crate) fn new(inner: R) -> (Self, Tally) {
        let tally = Tally::default();
        (Self { inner, tally: tally.clone() }, tally)
    }
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let mut passed = self.tally.0.borrow_mut();
        passed.bytes += n as u64;
        passed.hash.add(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}
