//! The command line, defined once: help, man pages and completions come from here.

mod boxes;
mod reading;
mod records;

pub(crate) use boxes::{ImageCommand, ProbeArgs, SandboxCommand};
use clap::{Args, Parser, Subcommand};
pub(crate) use reading::{Format, ReadingCommand, Which};
pub(crate) use records::{AuditCommand, Trust, WitnessCommand};
use std::path::PathBuf;

/// Run AI agents you can trust: sandboxed by the kernel, without keys, on the record.
#[derive(Debug, Parser)]
#[command(name = "nanoclaw", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:
  nanoclaw demo                                   see the walls at work; needs no key
  nanoclaw secret set anthropic                   store a key, sealed
  nanoclaw chat                                   talk to your assistant
  nanoclaw run --workspace . -- python3 app.py    any program inside the walls
  nanoclaw audit verify                           check the record

Exit codes: 0 done, 1 failed, 2 wrong usage or file, 3 something needed is missing,
4 a protection is missing and nothing was started, 5 the audit log is damaged or cannot be written,
6 a forbidden act succeeded, 7 a file cannot be read; 128 + N ended by signal N. `run` ends with its
command's own code.")]
pub(crate) struct Cli {
    /// Folder of this installation [default: $NANOCLAW_HOME or ~/.local/state/nanoclaw]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch an agent do useful work, then try what it must not, on this machine
    #[command(after_help = "Examples:
  nanoclaw demo
  nanoclaw demo --report demo.html

The model in the demo is scripted and says so; the agent, the sandbox, the gateway and the log
are the real ones. Exit code 6 if any forbidden act succeeds.")]
    Demo(DemoArgs),
    /// Talk to an agent in the terminal
    #[command(after_help = "Examples:
  nanoclaw chat
  nanoclaw chat triage -m \"What is open?\"
  nanoclaw chat -m \"hello\" --json | jq .

  nanoclaw chat --queued                          messages that still wait for an answer
  nanoclaw chat --drop-queued                     take them back

In the chat: /new starts afresh, /status tells where things stand, /queue shows what waits, /drop
takes it back, /quit leaves, Ctrl-C stops the running turn.

A model can be scripted (api = \"script\" in nanoclaw.toml): turns of [[turn]] when = \"…\", with
[[turn.step]] text = \"…\" and [[turn.step.call]] tool and arguments; see docs/scripted-model.md.

With -m, standard output carries the answer to that message alone (replies to earlier ones go to
standard error; with --json they are events of their own). Interrupted (SIGINT, SIGTERM, SIGHUP),
the message is taken back and the exit code is 128 + the signal. When the model cannot be reached
the message is kept for the next chat, and the exit code is 1.")]
    Chat(ChatArgs),
    /// Run any command once in a fresh sandbox, with the same walls and records
    #[command(after_help = "Examples:
  nanoclaw run -- python3 -c 'print(1+1)'
  nanoclaw run --workspace . --allow api.github.com -- ./script.sh
  nanoclaw run -t -- bash
  nanoclaw run --memory 512MiB --limits fallback -- make
  nanoclaw run --agent nightly                    the command of agents/nightly.toml

Without --agent, what agents/assistant.toml grants counts here too, if there is such a file.

The exit code is the command's own, 128 + N when signal N ended it, 124 at its --timeout.
What policy refused is listed on standard error at the end, unless --quiet.")]
    Run(RunArgs),
    /// Read and verify the audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Countersign other people's logs, or have this one countersigned
    #[command(subcommand)]
    Witness(WitnessCommand),
    /// Look at sandboxes before they run
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Root file systems of sandboxes, from OCI images; needs no daemon
    #[command(subcommand)]
    Image(ImageCommand),
    /// Keep keys for the gateway; they are sealed and never shown
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Use a subscription (claude, chatgpt) in place of a key
    #[command(after_help = "Examples:
  nanoclaw login                                  who is logged in
  nanoclaw login chatgpt                          prints an address to open in any browser
  nanoclaw login claude                           takes a token of `claude setup-token`
  nanoclaw login chatgpt --agent coder --accept-terms --json

The tokens are fetched, sealed and renewed by the gateway; no sandbox has them. Providers have terms
for this: they are shown, and docs/subscriptions.md tells what is known of them.")]
    Login(LoginArgs),
    /// Forget a login's tokens
    #[command(after_help = "Example:
  nanoclaw logout chatgpt

The provider is not told; its own settings end what it has granted.")]
    Logout {
        /// The login
        name: String,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Servers of tools: what they offer, and what of it is approved
    #[command(subcommand)]
    Mcp(McpCommand),
    /// What the models cost, by day, agent, session or model
    #[command(after_help = "Examples:
  nanoclaw usage
  nanoclaw usage --by model --json | jq .

Costs come from [models.NAME.price] in nanoclaw.toml; days are UTC.")]
    Usage {
        /// What to add up by
        #[arg(long, value_enum, default_value_t = UsageBy::Day)]
        by: UsageBy,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// What agents may do: check their files, ask why, compare, learn from a run
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What this machine can enforce, what is missing, and the remedy
    #[command(after_help = "Examples:
  nanoclaw doctor --json | jq '.[] | select(.status!=\"ok\")'
  nanoclaw doctor --apparmor | sudo tee /etc/apparmor.d/nanoclaw")]
    Doctor {
        /// Machine-readable output
        #[arg(long)]
        json: bool,
        /// Print the AppArmor profile that lets this program alone make user namespaces
        #[arg(long, conflicts_with = "json")]
        apparmor: bool,
    },
    /// Print shell completions
    #[command(
        after_help = "Example:\n  nanoclaw completions bash > ~/.local/share/bash-completion/completions/nanoclaw"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true, name = "__man")]
    Man {
        /// The folder
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum McpCommand {
    /// Ask the servers of nanoclaw.toml for their tools
    #[command(after_help = "Examples:
  nanoclaw mcp list
  nanoclaw mcp list tracker --json | jq .")]
    List {
        /// One server [default: all]
        name: Option<String>,
        /// One JSON object a server and line
        #[arg(long)]
        json: bool,
    },
    /// Approve a server's tools as it describes them now
    #[command(after_help = "Example:
  nanoclaw mcp approve tracker

Agents see a tool only with the description that was approved; a changed one hides it again.")]
    Approve {
        /// The server: NAME of [mcp.NAME] in nanoclaw.toml
        name: String,
        /// Without asking
        #[arg(long)]
        yes: bool,
    },
}

/// What `usage` adds up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UsageBy {
    Day,
    Agent,
    Session,
    Model,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// claude, chatgpt, or NAME of [logins.NAME] [default: show the logins there are]
    pub(crate) name: Option<String>,
    /// Which agent it may serve; several allowed [default: every agent whose model names it]
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Vec<String>,
    /// Say that you have read the provider's terms and may use the subscription so
    #[arg(long)]
    pub(crate) accept_terms: bool,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Write a report: .html to look at, .json for programs
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print one JSON object instead of the story
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The agent [default: default_agent of nanoclaw.toml, else "assistant"]
    pub(crate) agent: Option<String>,
    /// Say this, print the reply, leave
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Events as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    /// Start a fresh conversation; messages that still wait for an answer are dropped, on record
    #[arg(long)]
    pub(crate) new: bool,
    /// List the messages that still wait for an answer, leave
    #[arg(long, conflicts_with_all = ["message", "new", "drop_queued"])]
    pub(crate) queued: bool,
    /// Take back the messages that still wait for an answer, on record, leave
    #[arg(long, conflicts_with_all = ["message", "new"])]
    pub(crate) drop_queued: bool,
}

/// What `--limits` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HowHard {
    Required,
    Fallback,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Take mounts, hosts, limits and environment from this agent's file [default: assistant]
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// Grant a folder: SRC:DST:ro or SRC:DST:rw
    #[arg(long, value_name = "SRC:DST:ro|rw")]
    pub(crate) mount: Vec<String>,
    /// Permit connections to a host, exact name, port 443 unless given
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow: Vec<String>,
    /// Pass or set an environment variable
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Memory limit, e.g. 512MiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// How hard the limits must be: fallback (where there is no control group, a weaker mechanism
    /// will do) or required [default: `limits` of the agent's file, else required]
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = true)]
    pub(crate) limits: Option<HowHard>,
    /// End the command after this time, e.g. 30s
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<String>,
    /// Use this folder as /workspace; its files keep their owner
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<PathBuf>,
    /// Do not list at the end what policy refused
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Give the command a terminal (one of the host's, so `tty` finds no name for it inside)
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// The command and its arguments [default: `command` of the agent's file]
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Store a secret, read from the terminal or standard input
    #[command(after_help = "Examples:
  nanoclaw secret set anthropic
  nanoclaw secret set github --host api.github.com --agent triage
  pass show api/anthropic | nanoclaw secret set anthropic --host api.anthropic.com")]
    Set {
        /// Its name
        name: String,
        /// Where it may be used; several allowed [default: hosts of the models that name it]
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// Which agent it may serve; several allowed [default: every agent whose file names it]
        #[arg(long, value_name = "AGENT")]
        agent: Vec<String>,
    },
    /// Replace a secret's value; its hosts and agents stay
    #[command(after_help = "Example:\n  nanoclaw secret rotate github")]
    Rotate {
        /// Its name
        name: String,
    },
    /// Names, hosts, agents and ages; never values
    List {
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Remove a secret
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Read the files of all agents, or of one, and tell what each grants
    #[command(after_help = "Examples:
  nanoclaw policy check
  nanoclaw policy check triage --json

Exit codes: 0 all good, 2 a file is refused.")]
    Check {
        /// The agent [default: every agent that has a file]
        agent: Option<String>,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Tell what would happen to a request, which rule decides, and which nearly did
    #[command(after_help = "Example:
  nanoclaw policy explain triage POST https://api.github.com/repos/a/b/issues")]
    Explain {
        /// The agent
        agent: String,
        /// The method, e.g. GET
        method: String,
        /// The address; its query decides nothing
        url: String,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Tell what one agent file makes possible that another does not
    #[command(after_help = "Example:
  git show HEAD~1:agents/triage.toml > old.toml
  nanoclaw policy diff old.toml agents/triage.toml

Exit codes: 0 nothing new is possible, 1 something is, 2 a file is refused.")]
    Diff {
        /// The agent file as it was
        old: PathBuf,
        /// The agent file as it is
        new: PathBuf,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// LEARNING: propose the least rules for what a session did; grants nothing
    #[command(after_help = "Examples:
  nanoclaw audit show                       the newest session and its id
  nanoclaw policy learn s19a1b2c3d4e-0f1e2d3c

Names of private networks, metadata services and paths that look like secrets are left out.")]
    Learn {
        /// The session
        session: String,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Show what a proposal would make possible, ask, and add its rules to the agent file
    #[command(after_help = "Example:
  nanoclaw policy accept ~/.local/state/nanoclaw/proposals/triage-s1.toml

Exit codes: 0 added, 1 not agreed and nothing changed, 2 the proposal is refused.")]
    Accept {
        /// The proposal, as `policy learn` wrote it
        proposal: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Machine-readable output; asks nothing
        #[arg(long)]
        json: bool,
    },
}
