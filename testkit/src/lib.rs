//! What tests need and the product must not contain: a local model server, seeds, a fuzzer,
//! folders, a sink for records.
//!
//! ```text
//! test ─► program under test ─► FakeModel (127.0.0.1, plain threads) ─► requests(), --log FILE
//! ```
//!
//! 1. Everything random comes from [`Rng`], whose seed is printed and can be given again.
//! 2. Nothing listens on, or connects to, anything but loopback.
//! 3. A machine that is slow by nature says so in one variable ([`slow`]): only patience grows.
//! 4. A missing tool skips by name outside CI and fails in CI ([`need`]).

mod engine_daemon;
mod fake_container;
mod fake_engine;
mod fake_model;
pub mod fuzz;
mod need;
mod rng;
mod sink;
mod slow;
mod temp_dir;

pub use engine_daemon::{ENGINES, EngineDaemon};
pub use fake_container::{ContainerAct, FakeContainer, container_main, good_versions};
pub use fake_engine::{EngineAnswer, EngineCall, FakeEngine, good_info, good_version};
pub use fake_model::{FakeLogin, FakeModel, LoginPlan, Options, Seen};
pub use need::need;
pub use rng::Rng;
pub use sink::MemorySink;
pub use slow::{SLOW, patience, slow};
pub use temp_dir::TempDir;
