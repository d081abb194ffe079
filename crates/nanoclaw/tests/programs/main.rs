//! Programs that nobody here wrote, unchanged, behind the gateway; and the search for the secrets
//! that it holds.
//!
//! ```text
//! Site (TLS on 127.0.0.1, own authority, two names) ◄─ gateway ◄─ nanoclaw run ─► curl, git, pip …
//! ```
//!
//! 1. Tests listed in `both!` run twice: as root and as an ordinary user.
//! 2. The names of the site mean 127.0.0.1 in a mount namespace of the product's own, whose
//!    `/etc/hosts` says so; the machine's stays as it is. That takes root: without it, and without
//!    a tool, tests skip by name, and fail in CI.
//! 3. Nothing but 127.0.0.1 is reached, and only processes started here are looked into or ended.

// A test says what went wrong by panicking, and on standard error why it was skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[macro_use]
#[path = "../e2e/lab.rs"]
#[allow(dead_code)] // the other half of its tests uses the rest
mod lab;
mod handed;
mod hunt;
mod logins;
mod process;
#[path = "../e2e/provider.rs"]
#[allow(dead_code)] // the other half of its tests uses the rest
mod provider;
mod reach;
mod secrets;
mod site;
mod tools;
