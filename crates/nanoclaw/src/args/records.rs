//! `audit` and `witness`.

use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Whose word counts.
#[derive(Debug, Args)]
pub(crate) struct Trust {
    /// The log's verifier key that you were given, or a file that holds it
    #[arg(long, visible_alias = "vkey", value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Key of a witness that you trust, or a file that holds it; several allowed
    #[arg(long, value_name = "KEY")]
    pub(crate) witness: Vec<String>,
    /// How many of them must have seen it [default: all that are named]
    #[arg(long, value_name = "N", requires = "witness")]
    pub(crate) quorum: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Verify a log, a copy of one, a server's, or a proof; needs no daemon and no database
    #[command(after_help = "Examples:
  nanoclaw audit verify
  nanoclaw audit verify /backup/audit --key 'nanoclaw/1a2b3c4d+…'
  nanoclaw audit verify record-42.tlog-proof --key log.vkey
  nanoclaw audit verify https://logs.example/home --key log.vkey --witness w.vkey

A file is a proof (C2SP tlog-proof), a folder a log, the public part of one (checkpoint and tile/),
or a folder of proofs, an address a log that is served (C2SP tlog-tiles). All but a whole log need
--key.

Exit codes: 0 intact, 2 a key is none or is missing, 3 there is nothing there, 5 NOT intact (a byte
differs from what was signed, another key signed it, or too few witnesses saw it), 7 it cannot be
read or reached, so nothing is said.")]
    Verify {
        /// FILE, DIR or URL [default: the audit folder of the home]
        target: Option<String>,
        #[command(flatten)]
        trust: Trust,
        /// The record itself, for a proof that does not hold it
        #[arg(long, value_name = "FILE")]
        entry: Option<PathBuf>,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Write the proof of one record: a file that a stranger can verify with the key alone
    #[command(after_help = "Examples:
  nanoclaw audit proof 42                     writes record-42.tlog-proof
  nanoclaw audit proof 42 -o - | less
  nanoclaw audit verify record-42.tlog-proof --key KEY

The file holds the record, its path in the tree and the signed head, with the cosignatures of
witnesses if a head that covers the record has them. Exit code 3 if there is no such record.")]
    Proof {
        /// Its number, as `audit show` prints it, or its uid
        record: String,
        /// Where to; `-` is standard output [default: record-N.tlog-proof]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Trace a reply to the records behind it, each of them proven
    #[command(after_help = "Examples:
  nanoclaw audit receipt                                  of the newest reply
  nanoclaw audit receipt m19a1b2c3d4e-0f1e2d3c --out receipt
  nanoclaw audit verify receipt --key KEY

With --out every record's proof is written into a folder to hand on. Every record is proven before
it is told. Exit code 3 if the log does not know the message.")]
    Receipt {
        /// The message's id, as `audit show --all` prints it [default: the newest reply]
        message: Option<String>,
        /// Folder for the proofs; it must not exist
        #[arg(short, long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Prove that a log only grew between two of its signed heads
    #[command(after_help = "Examples:
  nanoclaw audit consistency last-week.checkpoint ~/.local/state/nanoclaw/audit --key KEY
  nanoclaw audit consistency old.tlog-proof https://logs.example/home --key KEY --witness w.vkey

A and B are a head each: a file with a checkpoint or a proof, a log's folder, or an address. Of A or
B the one with the newer head must have its tiles, unless both heads are of one size.
With --witness it is also said whether records after A's head claim to be older than it.

Exit codes: 0 B continues A, 5 it does not (rolled back, forked, rewritten; keep both), else as
`audit verify`.")]
    Consistency {
        /// The head that you have held so far
        a: String,
        /// The head of today
        b: String,
        #[command(flatten)]
        trust: Trust,
        /// Machine-readable output, with the proof
        #[arg(long)]
        json: bool,
    },
    /// Serve a log's head, tiles and records over HTTP, read-only (C2SP tlog-tiles)
    #[command(after_help = "Examples:
  nanoclaw audit serve
  nanoclaw audit serve --listen 127.0.0.1:8000 /backup/audit

Whoever reaches the address can read every record; the default is this machine alone. TLS is the
affair of a server in front. It runs until it is stopped.")]
    Serve {
        /// The log's folder [default: the audit folder of the home]
        dir: Option<PathBuf>,
        /// Where to listen; port 0 is any free one
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7380")]
        listen: SocketAddr,
        /// Print the address as JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what happened, as a story
    #[command(after_help = "Examples:
  nanoclaw audit show                               the newest session, in short
  nanoclaw audit show s19a1b2c3d4e-0f1e2d3c --all   every record of one session, in full
  nanoclaw audit show --all                         every record of every session")]
    Show {
        /// The session [default: the newest]
        session: Option<String>,
        /// Every record in full; of every session, unless one is named
        #[arg(long)]
        all: bool,
        /// Entries as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Replace the log's signing key: the old one announces the new one, and signs nothing after
    #[command(after_help = "Example:
  nanoclaw audit rotate-key

Who knows any of the log's verifier keys can go on verifying the log, its copies and its heads with
it; a single proof is verified with the key that signed its head. Give the new one to who asks from
now on, and to your witnesses, who go on with --log OLDKEY --log NEWKEY. Interrupted, it did not
happen, or the next command finishes it: the file `vkey` tells; do it again.

Do it at times, and when somebody may have seen the old one: whatever that signs later is refused.
What it could have forged before is what witnesses are for.")]
    RotateKey {
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Print the newest records
    #[command(after_help = "Example:\n  nanoclaw audit tail -f")]
    Tail {
        /// How many
        #[arg(short = 'n', default_value_t = 20)]
        count: u64,
        /// Go on as records are written
        #[arg(short, long)]
        follow: bool,
        /// Entries as JSON lines
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Reading(super::ReadingCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum WitnessCommand {
    /// Make a witness' key, or print the public half of one
    #[command(after_help = "Example:
  nanoclaw witness key witness.example/w1 witness.key

The name says whose witness it is; the file is made with mode 0600 and never replaced.")]
    Key {
        /// Name of the key: no spaces, no '+'
        name: String,
        /// The file
        file: PathBuf,
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
    /// Be a witness: sign heads that continue what was seen, refuse all others (C2SP tlog-witness)
    #[command(after_help = "Example:
  nanoclaw witness serve --key witness.key --log 'nanoclaw/1a2b3c4d+…'

POST /add-checkpoint answers 200 with a cosignature; 404 another log, 403 not signed by it, 409
another size is known, 422 it does not continue what is known, 400 no request. What is known is on
disk before anything is signed. What contradicts it is kept in the folder, in evidence/. A witness
belongs on another machine than the log. It runs until it is stopped.")]
    Serve {
        /// Where to listen; port 0 is any free one
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7381")]
        listen: SocketAddr,
        /// File of its signing key, see `witness key`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Verifier key of a log that it signs for, or a file that holds it; several allowed
        #[arg(long, value_name = "KEY", required = true)]
        log: Vec<String>,
        /// Folder of what it knows [default: `witness` in the home]
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
        /// Print address and key as JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the newest head before the witnesses of nanoclaw.toml now
    #[command(after_help = "Example:
  nanoclaw witness submit

While agents run this happens by itself. Exit codes: 0 enough have signed, 1 too few, 3 no witnesses
are named in nanoclaw.toml, 5 a witness knows another history of this log.")]
    Submit {
        /// Machine-readable output
        #[arg(long)]
        json: bool,
    },
}
