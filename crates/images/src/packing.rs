//! From a compressed stream to its bytes, however hostile: gzip, zstd, or none.
//!
//! Pipeline: file ─► tap (digest) ─► decoder, told by its first bytes ─► guard (bomb) ─► bytes.
//!
//! 1. The guard sees every byte before anybody else: what comes out may be no more than
//!    [`Limits::ratio`] times what went in, plus [`Limits::slack`], and [`Limits::unpacked_bytes`]
//!    in all.
//! 2. What one layer took is gone for the next ([`Opened::rest`]): slack and bytes are an image's,
//!    not a layer's.
//! 3. Whoever watches can stop the work between any two reads.

use crate::digest::{Tally, Tap};
use crate::error::{Error, Result, carry};
use crate::limits::{Limits, Watch};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, BufReader, Read};

/// Read and decoded at a time.
pub(crate) const CHUNK: usize = 128 << 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    /// By its first bytes (RFC 1952 §2.3.1, RFC 8878 §3.1): media types are often wrong.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame to be skipped, as zstd:chunked and pzstd put it in front.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of such a layer.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A stream being decoded, with the digests of both of its forms.
pub(crate) struct Opened<'a> {
    pub(crate) bytes: Box<dyn Read + 'a>,
    pub(crate) packing: Packing,
    /// Of what was read from the source.
    pub(crate) packed: Tally,
    /// Of what came out.
    pub(crate) unpacked: Tally,
}

impl Opened<'_> {
    /// What is left of `limits` for the image's next stream, when this one was read to its end.
    pub(crate) fn rest(&self, limits: &Limits) -> Limits {
        let out = self.unpacked.bytes();
        let free = match self.packing {
            Packing::None => out,
            Packing::Gzip | Packing::Zstd => self.packed.bytes().saturating_mul(limits.ratio),
        };
        Limits {
            unpacked_bytes: limits.unpacked_bytes.saturating_sub(out),
            slack: limits.slack.saturating_sub(out.saturating_sub(free)),
            ..limits.clone()
        }
    }
}

/// Opens a stream; `limits` are what the streams before have left of the image's.
pub(crate) fn open<'a>(
    source: impl Read + 'a,
    limits: &Limits,
    watch: &'a dyn Watch,
) -> Result<Opened<'a>> {
    let (tap, packed) = Tap::new(source);
    let mut buffered = BufReader::with_capacity(CHUNK, tap);
    let start = buffered.fill_buf().map_err(|e| Error::disk("the archive", e))?;
    let packing = Packing::of(start);
    let decoded: Box<dyn Read + 'a> = match packing {
        Packing::None => Box::new(buffered),
        Packing::Gzip => Box::new(MultiGzDecoder::new(buffered)),
        Packing::Zstd => Box::new(Zstd::new(buffered)),
    };
    let guard = Guard {
        inner: decoded,
        packed: packed.clone(),
        bare: packing == Packing::None,
        out: 0,
        left: limits.unpacked_bytes,
        ratio: limits.ratio,
        slack: limits.slack,
        watch,
    };
    let (tap, unpacked) = Tap::new(guard);
    Ok(Opened { bytes: Box::new(tap), packing, packed, unpacked })
}

struct Guard<'a, R> {
    inner: R,
    packed: Tally,
    bare: bool,
    out: u64,
    left: u64,
    ratio: u64,
    slack: u64,
    watch: &'a dyn Watch,
}

impl<R: Read> Read for Guard<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.cancelled() {
            return Err(carry(Error::cancelled()));
        }
        let n = self.inner.read(buffer)? as u64;
        let Some(left) = self.left.checked_sub(n) else {
            return Err(carry(Error::refused("the image unpacks to more than an image may")));
        };
        self.left = left;
        self.out = self.out.saturating_add(n);
        let most = self.packed.bytes().saturating_mul(self.ratio).saturating_add(self.slack);
        if !self.bare && self.out > most {
            let cause = format!(
                "the image looks like a decompression bomb: {} bytes became more than {}",
                self.packed.bytes(),
                self.out
            );
            return Err(carry(Error::refused(cause)));
        }
        Ok(usize::try_from(n).unwrap_or(0))
    }
}

/// Frames one after the other; those to be skipped are skipped.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), within: false }
    }

    /// Begins the next frame; `false` at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.decoder.reset(&mut self.source) {
            Ok(()) => self.within = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let length = u64::from(length);
                let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(e) => return Err(io::Error::other(e.to_string())),
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within {
                if !self.begin()? {
                    return Ok(0);
                }
                continue;
            }
            let n = self.decoder.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            if self.decoder.is_finished() {
                self.within = false;
                continue;
            }
            let some = BlockDecodingStrategy::UptoBytes(CHUNK);
            let decoded = self.decoder.decode_blocks(&mut self.source, some);
            decoded.map_err(|e| io::Error::other(e.to_string()))?;
        }
    }
}
