//! Every kind of record in words and by example: what `docs/records.md` is written from.
//!
//! 1. No kind without a row: [`meaning`] does not compile without one, and a test holds the
//!    [`examples`] against the kinds that the type knows.

mod examples;

pub use examples::examples;

use crate::schema;
use model::Body;
use serde_json::Value;
use std::fmt::Write;

/// Where the table stands in this repository.
pub const FILE: &str = "docs/records.md";

/// What a kind says, in a sentence.
#[must_use]
pub fn meaning(body: &Body) -> &'static str {
    match body {
        Body::RecorderStarted { .. } => "The recorder opened the log.",
        Body::RecorderStopped { .. } => "The recorder closed the log in order.",
        Body::ClientLost { .. } => "A process that wrote records is gone without saying so.",
        Body::KeyAnnounced { .. } => "From the next record on another key signs.",
        Body::RecordGap { .. } => {
            "A session's records were refused because they were too many; what needed them did not \
             happen."
        }
        Body::ClockSetBack { .. } => "The clock stands earlier than a record before had it.",
        Body::SessionOpened { .. } => {
            "A session began or was resumed, with the digest of its policy and what it was \
             granted, mounts included."
        }
        Body::SessionClosed { .. } => "A session ended; counts let a missing tail be seen.",
        Body::TotalsDisagree { .. } => {
            "What the gateway counted of a session and what the kernel counted do not fit together."
        }
        Body::SandboxStarted { .. } => {
            "A sandbox was prepared and measured, just before its program starts."
        }
        Body::SandboxStopped { .. } => "A sandbox is gone.",
        Body::ProcessExec { .. } => "The kernel was asked to execute a program.",
        Body::ProcessImage { .. } => "What was seen to run then.",
        Body::ConnectRefused { .. } => "A call that would have reached outside was refused.",
        Body::WitnessGap { .. } => "So many operations of a sandbox are not on record.",
        Body::FilesChanged { .. } => "What differs below a writable mount since the look before.",
        Body::FilesManifest { .. } => "The writable mounts were looked at; what was not is said.",
        Body::ObserversDisagree { .. } => {
            "One of kernel, gateway and agent tells what another does not, or their accounts could \
             not be compared."
        }
        Body::Message { .. } => {
            "A message came in or a reply went out; its text stands in the store, salted digest \
             and length here."
        }
        Body::MessageWithdrawn { .. } => "A message was taken back unanswered.",
        Body::TurnStarted { .. } => "The agent set to work on a message.",
        Body::TurnFinished { .. } => "It was done with it.",
        Body::ModelRequest { .. } => "A model is about to be asked.",
        Body::ModelResponse { .. } => "It answered, or did not.",
        Body::SecretUsed { .. } => "The gateway is about to use a secret for the session.",
        Body::LoginRequest { .. } => "A login's provider is about to be asked for tokens.",
        Body::LoginResponse { .. } => "It answered, or did not.",
        Body::LoginChanged { .. } => "A person gave a token for a login, or removed it.",
        Body::ToolCalled { .. } => "A tool call, as the agent tells it.",
        Body::ToolFinished { .. } => "Its result, as the agent tells it.",
        Body::EgressIntent { .. } => "A request is about to leave, or a connection to be made.",
        Body::EgressPinned { .. } => "The name was looked up, and this address is connected to.",
        Body::EgressResult { .. } => "The exchange ended.",
        Body::EgressRefused { .. } => "A name, connection or request was refused.",
        Body::ApprovalAsked { .. }
        | Body::ApprovalDecided { .. }
        | Body::HostToolCalled { .. }
        | Body::HostToolFinished { .. }
        | Body::PolicyLearned { .. }
        | Body::PolicyAccepted { .. }
        | Body::PolicyChanged { .. }
        | Body::PayloadsErased { .. }
        | Body::RecordsPruned { .. } => of_decisions(body),
        Body::Cosigning { .. } => {
            "From here on enough witnesses sign the log's heads, or too few do."
        }
        Body::ProbeObserved { .. } => "Something tried in an assessment, and what answered.",
    }
}

fn of_decisions(body: &Body) -> &'static str {
    match body {
        Body::ApprovalAsked { .. } => {
            "A person is asked whether something may happen; `shown_sha256` is of `summary`, which \
             is shown to the byte."
        }
        Body::ApprovalDecided { .. } => {
            "The answer, with the digest of the text it was given to, or that none came."
        }
        Body::HostToolCalled { .. } => "A tool of the host is about to act for the session.",
        Body::HostToolFinished { .. } => "It answered, or was refused.",
        Body::PolicyLearned { .. } => "Rules were proposed from a session; they grant nothing.",
        Body::PolicyAccepted { .. } => "A person accepted rules; the file reads so from now on.",
        Body::PolicyChanged { .. } => {
            "What the agent may do is not what it was in its last session; before the session is \
             opened."
        }
        Body::PayloadsErased { .. } => {
            "A person has the payloads of these records removed; digests and proofs stay."
        }
        Body::RecordsPruned { .. } => {
            "A person has the records before a number removed; hashes and proofs stay."
        }
        _ => "",
    }
}

/// Class and activity in OCSF's words.
fn class(entry: &Value) -> String {
    let (class, activity) = (&entry["class_uid"], &entry["activity_id"]);
    let name = match class.as_u64().unwrap_or_default() {
        1001 => "File System Activity",
        1007 => "Process Activity",
        2003 => "Compliance Finding",
        3004 => "Entity Management",
        4001 => "Network Activity",
        6002 => "Application Lifecycle",
        6003 => "API Activity",
        _ => "another class",
    };
    format!("{class} {name}, activity {activity}")
}

/// The table of all kinds, as a page.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(HEAD);
    for body in examples() {
        let entry = schema::example_json(&body);
        // Writing to a string does not fail.
        let _ = writeln!(page, "| `{}` | {} | {} |", body.kind(), meaning(&body), class(&entry));
    }
    page.push_str(MIDDLE);
    for body in examples() {
        let example = String::from_utf8_lossy(&schema::example(&body)).into_owned();
        let _ =
            write!(page, "\n### `{}`\n{}\n```json\n{example}\n```\n", body.kind(), meaning(&body));
    }
    page
}

const HEAD: &str = "\
# Kinds of records

Written by `nanoclaw audit schema --table` from the code; a test keeps it true. The form of every \
entry as a JSON schema:
[record.schema.json](record.schema.json) (`nanoclaw audit schema`).

An entry is canonical JSON (RFC 8785) of at most 64,000 bytes, in the shape of an OCSF 1.9 event. \
Class, activity, severity and status are
OCSF's; `ai_agent` is that of its profile `ai_operation`. What OCSF has no field for stands under \
`unmapped`, by `kind`; nothing
is said twice. `audit export --format ocsf` adds what each class requires, and the profile \
`record_integrity`: the entry's place in the log
cannot stand in the entry itself, since the tree is made over its bytes.

**Texts beside the log.** A tool's arguments or result and an approval's summary stand beside the \
log when they are longer than 4 KiB, or
always with `texts = \"beside\"` under `[audit]` in `nanoclaw.toml`. The field is empty then; \
`unmapped.payloads` has the text's length
and the SHA-256 of a salt and the text, and so does the field with the bare digest, which would \
let a reader try guesses. `audit erase` removes
such texts: it puts the erasure on record first, and every proof stays valid. At most 40 KiB of a \
text are kept, and of a result the
first 4 KiB (`summary`), as the agent tells it, with the length of the whole (`bytes`). An
approval's answer repeats `shown_sha256` as its question has it, bare or salted.

**The same facts in other vocabularies.**

| fact | here | OCSF 1.9 (`audit export --format ocsf`) | OpenTelemetry (`--format otlp`) |
| --- | --- | --- | --- |
| number in the log | position in the tree | `metadata.sequence` | `nanoclaw.log.index` |
| id of the event | `metadata.uid` (UUIDv7) | `metadata.uid` | |
| when | `time` | `time` | start and end of the span, time of its event |
| which log | origin of the head | `metadata.log_name`, `attestation_list[0].chain_uid` | \
`nanoclaw.log` |
| bytes as recorded | leaf hash in the tree | `attestation_list[0].uid` | |
| session | `ai_agent.instance_uid` | `ai_agent.instance_uid` | trace, `gen_ai.conversation.id` |
| agent | `ai_agent.uid` | `ai_agent.uid`, `actor.app_name` | `gen_ai.agent.id`, \
`gen_ai.agent.name` |
| what was done | `unmapped.kind` | `api.operation`, `process`, `dst_endpoint`, `finding_info` | \
name of span or event |
| intent or result | `status_id` 0 or 1, 2 | `status_id` | span under way or ended |
| allowed or refused, and why | `unmapped.rule`, `reason` | `action_id`, `disposition_id`, \
`firewall_rule` | `nanoclaw.rule`, `error.type` |
| model and its tokens | `unmapped.model`, `input_tokens` … | `ai_agent.ai_model` | \
`gen_ai.request.model`, `gen_ai.usage.*` |

## All kinds

| kind | what it says | OCSF class |
| --- | --- | --- |
";

const MIDDLE: &str = "
## An example of each

With a session, an agent and a turn; records of the recorder itself have none of these.
";
