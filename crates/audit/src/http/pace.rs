//! How long an exchange may take: silence is bounded, and so is the whole, whatever drips.
//!
//! ```text
//! Pace::begin ─► connect ─► every read and write: min(silence, what is left) ─► TimedOut
//!                  what is left = exchange + received (at most what was asked for) / rate
//! ```
//!
//! 1. Time is bought with bytes, and only with as many as the answer may have: no answer goes on
//!    for ever, and a large one comes through a slow line.
//! 2. The bounds stand below encryption, so a handshake that drips ends as well.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Silence after which nobody waits any longer.
const SILENCE: Duration = Duration::from_secs(20);

/// For a whole exchange, whatever it brings: longer than silence, so that a slow beginning is no
/// failure, and short enough that a person waits for it.
const EXCHANGE: Duration = Duration::from_secs(30);

/// What buys a second more: 128 kbit/s, slower than lines are. The largest bundle of records,
/// 16 MiB, may take some 17 minutes by it.
const BYTES_PER_SECOND: u64 = 16 << 10;

/// How long the other side is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Silence after which it is given up.
    pub silence: Duration,
    /// The whole exchange, from the search for the host's address on.
    pub exchange: Duration,
    /// So many bytes of an answer buy a second more.
    pub bytes_per_second: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: SILENCE, exchange: EXCHANGE, bytes_per_second: BYTES_PER_SECOND }
    }
}

/// The exchange that is under way.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    begun: Instant,
    /// Longest answer.
    most: u64,
    received: u64,
}

/// The time of a connection's exchanges, known to whoever asks and to the connection.
#[derive(Debug, Clone)]
pub struct Pace {
    patience: Patience,
    exchange: Rc<Cell<Exchange>>,
}

impl Pace {
    /// A pace of which an exchange with an answer of at most so many bytes begins now.
    #[must_use]
    pub fn new(patience: Patience, most: u64) -> Self {
        let exchange = Exchange { begun: Instant::now(), most, received: 0 };
        Self { patience, exchange: Rc::new(Cell::new(exchange)) }
    }

    /// The next exchange begins now.
    pub(crate) fn begin(&self, most: u64) {
        self.exchange.set(Exchange { begun: Instant::now(), most, received: 0 });
    }

    /// How long to wait for what comes next.
    fn wait(&self) -> io::Result<Duration> {
        let Exchange { begun, most, received } = self.exchange.get();
        let millis = received.min(most).saturating_mul(1_000);
        let bought = Duration::from_millis(millis / self.patience.bytes_per_second.max(1));
        let left = (self.patience.exchange + bought).saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the whole answer takes too long"));
        }
        Ok(left.min(self.patience.silence))
    }

    fn count(&self, n: usize) {
        let now = self.exchange.get();
        let received = now.received.saturating_add(n as u64);
        self.exchange.set(Exchange { received, ..now });
    }

    /// A connection that keeps this pace to the first address that answers.
    pub(crate) fn connect(&self, host: &str, port: u16) -> io::Result<Paced> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.wait()?.min(CONNECT)) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Paced { stream, pace: self.clone() });
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

/// A connection whose waiting is bounded, each time and as a whole.
#[derive(Debug)]
pub struct Paced {
    stream: TcpStream,
    pace: Pace,
}

/// The system says of a time that ran out that it would have to wait.
fn in_words(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
        }
        _ => e,
    }
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.pace.wait()?))?;
        let n = self.stream.read(buffer).map_err(in_words)?;
        self.pace.count(n);
        Ok(n)
    }
}

impl Write for Paced {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.pace.wait()?))?;
        self.stream.write(buffer).map_err(in_words)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
