//! What goes to the client, in order, without ever waiting for it.
//!
//! 1. One queue for answers and reports: what was reported before an answer is heard before it.
//! 2. Answers are as many as the client asks for, reports are bounded for each sandbox (see
//!    `operations::window`): so is the queue.

use crate::wire::{self, Answer};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

/// The control socket and what could not be sent over it yet.
#[derive(Debug)]
pub(crate) struct Outbox {
    socket: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
}

impl Outbox {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::new() }
    }

    /// To receive from, and to wait for.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether something waits until the socket takes more.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends an answer, now or later.
    pub(super) fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        self.push(wire::encode(answer)?);
        Ok(())
    }

    /// Sends a packet, now or later.
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        self.waiting.push_back(bytes);
        self.flush();
    }

    /// Sends as much as the socket takes. A client that is gone is noticed by the loop.
    pub(super) fn flush(&mut self) {
        while let Some(bytes) = self.waiting.front() {
            match wire::send_at_once(&self.socket, bytes) {
                Ok(true) => drop(self.waiting.pop_front()),
                Ok(false) => return,
                Err(_) => self.waiting.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn nothing_waits_for_a_client_that_does_not_read_and_the_order_stays() {
        let kind = SocketType::SEQPACKET;
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let mut outbox = Outbox::new(pair.0);
        for number in 0..1_000_u32 {
            let mut packet = vec![0; 4_096];
            packet[..4].copy_from_slice(&number.to_ne_bytes());
            outbox.push(packet);
        }
        assert!(outbox.is_waiting());
        let mut packet = [0; 8_192];
        for number in 0..1_000_u32 {
            rustix::io::read(&pair.1, &mut packet).unwrap();
            assert_eq!(packet[..4], number.to_ne_bytes());
            outbox.flush();
        }
        assert!(!outbox.is_waiting());
        drop(pair.1);
        outbox.push(vec![1]);
        assert!(!outbox.is_waiting(), "nobody is there to hear it");
    }
}
