//! The command line as people meet it: every test starts the real binary, in an installation of
//! its own, and looks only at what comes out: streams, exit codes, files, processes, the log.
//!
//! ```text
//! Lab (home, person, binary) ─► nanoclaw … ─► Ran (code, stdout, stderr) ─► assertions, snapshots
//! ```
//!
//! 1. Tests listed in `both!` run twice: as whoever runs the tests, and, started as root, as an
//!    ordinary user through setpriv(1).
//! 2. No program runs longer than [`lab::WATCHDOG`]; then it is killed and the test fails.
//! 3. Nothing but 127.0.0.1 is reached, and only processes started here are ended.

// A test says what went wrong by panicking, and on standard error why it was skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[macro_use]
mod lab;
mod afterwards;
mod asks;
mod audit;
mod binary;
mod bypass;
mod coverage;
mod crash;
mod engines;
mod folders;
mod gateway;
mod genai;
mod images;
mod langchain;
mod limits;
mod login;
mod manifests;
mod network;
mod plain_user;
mod policies;
mod policy;
mod probe;
mod programs;
mod provider;
mod reading;
mod roles;
mod run;
mod secret;
mod session_ids;
mod side_by_side;
mod snapshots;
mod strangers;
mod terminal;
mod totals;
mod vault_key;
mod witness;
