//! The built-in agent as a program of its own: `nanoclaw __agent` without the rest of the
//! product. The tests of this crate drive it over its pipes.

fn main() -> std::process::ExitCode {
    nanoclaw_agent::agent_main()
}
