//! `audit` commands that find, count, export, erase, prune and copy.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Which records are meant; all conditions must hold.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Of this session
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Of this agent
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// Written or decided by: CHANNEL/CHAT, CHAT, or whoever answers questions
    #[arg(long, value_name = "WHO")]
    pub(crate) user: Option<String>,
    /// Of this kind, see docs/records.md
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<String>,
    /// About this host; '*.SUFFIX' is every host below it
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// About this file or program, by its path inside the sandbox (/workspace/a.txt); with '/' at
    /// its end, everything below the folder
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<String>,
    /// Not before: 2026-01-31, '2026-01-31 17:30' (UTC), or 12h, 30d ago
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
}

/// What `audit export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// OCSF 1.9 events
    Ocsf,
    /// OpenTelemetry traces (OTLP/JSON), by the GenAI conventions
    Otlp,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReadingCommand {
    /// Find records by session, agent, user, kind, host, file and time
    #[command(after_help = "Examples:
  nanoclaw audit search --session s19a1b2c3d4e-0f1e2d3c --kind egress_refused
  nanoclaw audit search --host '*.example.org' --since 7d
  nanoclaw audit search --file /usr/bin/ --agent triage --json | jq .

The index that makes this quick lies in the log's folder, in index/. It is made from the records,
and by --rebuild anew; no proof rests on it, and what it finds is looked at again. --no-index looks at
every record. Exit code 0, whether anything is found or not.")]
    Search {
        #[command(flatten)]
        which: Which,
        /// At most so many
        #[arg(short = 'n', value_name = "COUNT")]
        count: Option<u64>,
        /// Look at every record
        #[arg(long, conflicts_with = "rebuild")]
        no_index: bool,
        /// Make the index anew first
        #[arg(long)]
        rebuild: bool,
        /// One JSON object a line: index and entry
        #[arg(long)]
        json: bool,
    },
    /// What there is on record, in numbers
    #[command(after_help = "Examples:
  nanoclaw audit stats
  nanoclaw audit stats --agent triage --since 30d --json | jq .kinds")]
    Stats {
        #[command(flatten)]
        which: Which,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Write records in other systems' words, as JSON lines
    #[command(after_help = "Examples:
  nanoclaw audit export --format ocsf > events.jsonl
  nanoclaw audit export --format otlp --session s19a1b2c3d4e-0f1e2d3c > traces.jsonl

An export is no proof; it names the log and the number of every record, for which `audit proof`
makes one. Texts that stand beside the log are not exported.")]
    Export {
        /// The form
        #[arg(long, value_enum)]
        format: Format,
        #[command(flatten)]
        which: Which,
    },
    /// Remove texts that stand beside the log; digests and proofs stay
    #[command(after_help = "Examples:
  nanoclaw audit erase 1210 1214
  nanoclaw audit erase --session s19a1b2c3d4e-0f1e2d3c
  nanoclaw audit erase --before 90d --yes --json
  nanoclaw audit erase --unnamed

The erasure is put on record first; then the texts go, and it is checked that they are gone, that no
other is, and that the log is intact. What stands in records themselves stays: with texts =
\"beside\" under [audit] in nanoclaw.toml no text of an agent does. Messages are not in the log.
What the disk keeps of a removed file underneath is beyond this command. Texts that no record names
are what a crash left; `audit verify` counts them, and they can be erased an hour later.

Exit codes: 0 done, 1 not agreed and nothing changed, 3 there is nothing to erase, 5 the log is not
intact or cannot be written.")]
    Erase {
        /// Numbers of records, as `audit search` prints them
        #[arg(value_name = "RECORD", conflicts_with_all = ["session", "before"])]
        records: Vec<u64>,
        /// All of a session
        #[arg(long, value_name = "ID", conflicts_with = "before")]
        session: Option<String>,
        /// All before this time
        #[arg(long, value_name = "TIME")]
        before: Option<String>,
        /// All that no record names
        #[arg(long, conflicts_with_all = ["records", "session", "before"])]
        unnamed: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Machine-readable output; asks nothing, so it needs --yes
        #[arg(long, requires = "yes")]
        json: bool,
    },
    /// Remove old records; hashes and proofs stay
    #[command(after_help = "Examples:
  nanoclaw audit prune --before 2025-07-01
  nanoclaw audit prune --before 365d --yes --json

Whole segments of the log (64 MiB) go, when all their records are older; the newest two always stay,
and so does all that follows a key's announcement. It is put on record first. Every later record can
still be proven, and every proof that was handed out stays valid; what the removed records said can
no longer be shown by this log. Nobody else may be writing it: end running chats first.

Exit codes: 0 done, 1 not agreed and nothing changed, 3 nothing is old enough, 5 the log is not
intact or is being written.")]
    Prune {
        /// Records before this time
        #[arg(long, value_name = "TIME")]
        before: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Machine-readable output; asks nothing, so it needs --yes
        #[arg(long, requires = "yes")]
        json: bool,
    },
    /// Copy the log, payloads included, and verify the copy
    #[command(after_help = "Example:
  nanoclaw audit backup /backup/audit-2026-01-31

The log may be written meanwhile; the copy is as of one signed head. The signing key stays where it
is: the copy can be read and verified anywhere, and be continued only with `private/key` beside it.

Exit codes: 0 made and intact, 2 the folder is not empty, 3 there is no log, 5 the copy is not
intact, 7 something cannot be read.")]
    Backup {
        /// A new or empty folder
        dir: PathBuf,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema of records, or the table of all kinds
    #[command(after_help = "Examples:
  nanoclaw audit schema > record.schema.json
  nanoclaw audit schema --table > records.md")]
    Schema {
        /// The table, with an example of each kind
        #[arg(long)]
        table: bool,
    },
}
