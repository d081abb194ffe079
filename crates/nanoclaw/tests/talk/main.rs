//! `chat` and `demo` through the real binary, against a model server on loopback.
//!
//! Pipeline: lab (own home, empty environment, watchdog) ─► nanoclaw ─► sandbox ─► FakeModel.
//!
//! 1. Every child has [`lab::WATCHDOG`] and is killed after it; a hang is a failure, not a wait.
//! 2. Orphans are looked for by a marker in their arguments, never by a program's name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod crash;
mod demo;
mod failures;
mod files;
mod lab;
mod pty;
mod queue;
mod signals;
mod talking;
mod terminal;
