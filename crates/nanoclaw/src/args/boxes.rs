//! `sandbox` and `image`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Print the ordered steps that make an agent's sandbox
    #[command(after_help = "Example:\n  nanoclaw sandbox plan assistant")]
    Plan {
        /// The agent
        agent: Option<String>,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Try every wall from inside a real sandbox, and print what really holds
    #[command(after_help = "Examples:
  nanoclaw sandbox probe
  nanoclaw sandbox probe --quick
  nanoclaw sandbox probe --backend podman
  nanoclaw sandbox probe --json | jq '.probes[] | select(.verdict != \"held\")'

Over 200 probes in sandboxes of their own, beside another session, with baits on the host; seconds.
--quick is what `[sandbox] probe_on_start = true` does to an agent's own sandbox before it gets it.
What is known not to be enforced with this privilege is named, with the reason.

Exit codes: 0 every wall holds as far as it is said to, 4 no sandbox can be made,
6 a wall is broken, 128 + N stopped by signal N.")]
    Probe(ProbeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// What makes the sandbox: native, docker or podman
    #[arg(long, value_name = "BACKEND", default_value = "native")]
    pub(crate) backend: String,
    /// The fast ones only, in one sandbox that is never started
    #[arg(long)]
    pub(crate) quick: bool,
    /// One JSON object: walls, limits, and every probe with what was expected and observed
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Fetch an image that its registry gives to everybody; every byte is checked by digest
    #[command(after_help = "Examples:
  nanoclaw image pull debian:12
  nanoclaw image pull registry.example/team/tools@sha256:DIGEST --name tools

Owners, set-uid bits, device nodes and extended attributes are not kept: what a sandbox gets is
read-only and belongs to its own user.")]
    Pull {
        /// The reference, as docker writes it
        #[arg(value_name = "REF")]
        reference: String,
        /// What to call it [default: the reference without digest]
        #[arg(long)]
        name: Option<String>,
        /// Speak http, to a registry on this machine only
        #[arg(long)]
        plain_http: bool,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Store an image from a file or folder: an OCI layout, `docker save`, or a root file system
    #[command(after_help = "Examples:
  nanoclaw image import alpine-minirootfs.tar.gz --name alpine
  docker save tools:1 | gzip > tools.tar.gz; nanoclaw image import tools.tar.gz

Owners, set-uid bits, device nodes and extended attributes are not kept: what a sandbox gets is
read-only and belongs to its own user.")]
    Import {
        /// A tar archive (plain, gzip or zstd) or a folder
        path: PathBuf,
        /// What to call it [default: its own name, else the file's]
        #[arg(long)]
        name: Option<String>,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Names, digests and sizes, as agent files want them
    #[command(after_help = "Example:\n  nanoclaw image list --json | jq -r .rootfs")]
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Forget an image, and remove what no other one uses
    #[command(after_help = "Example:\n  nanoclaw image remove alpine")]
    Remove {
        /// Its name
        name: String,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
}
