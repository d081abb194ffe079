//! Man pages and completions, made from the one definition of the command line.

use crate::args::Cli;
use crate::failure::{Context, Result};
use clap::CommandFactory;
use std::path::Path;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nanoclaw", &mut text);
    crate::ui::out(&String::from_utf8_lossy(&text));
    Ok(0)
}

pub(crate) fn pages(dir: &Path) -> Result<u8> {
    std::fs::create_dir_all(dir).context(dir.display())?;
    clap_mangen::generate_to(Cli::command(), dir).context("man pages")?;
    Ok(0)
}
