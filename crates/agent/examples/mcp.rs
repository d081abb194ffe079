//! The stdio server of the host's tools as a program of its own: `nanoclaw __mcp` without the rest
//! of the product. The tests of this crate drive it over its pipes.

fn main() -> std::process::ExitCode {
    nanoclaw_agent::mcp_main()
}
