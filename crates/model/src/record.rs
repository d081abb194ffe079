//! Records: what is written down, before the effect wherever there is one.
//!
//! A `Record` is plain data; `audit` turns it into a canonical, OCSF-shaped entry and gives it
//! its index. Text of messages never stands here, only its salted digest and length.

use crate::{AgentName, FileChange, MessageId, MountSeen, SessionId, TurnId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest text kept inside one field of a record. Of the fields that may be longer
/// ([`Record::beside`]) the recorder keeps such a text beside the log; of all others the rest is
/// cut. An entry must stay below 65,535 bytes (C2SP tlog-tiles), so no field may come near that.
pub const MAX_INLINE_BYTES: usize = 4_096;

/// Largest text that is kept beside the log; of longer ones whoever submits them cuts the rest. In
/// JSON, where a character may take six bytes, it still fits into one frame of the recorder's
/// socket.
pub const MAX_BESIDE_BYTES: usize = 40 << 10;

/// A SHA-256 in lower-case hex, 64 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sha256Hex(pub String);

/// `SHA-256(salt ‖ bytes)`: commits to a text without letting anyone guess it. The salt is kept
/// in the store beside the text; deleting both leaves every proof valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaltedDigest {
    /// The digest.
    pub sha256: Sha256Hex,
    /// Length of the text, bytes.
    pub bytes: u64,
}

/// When a submitted record counts as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After the file is synced. It and every record submitted before it survive a power cut.
    /// For every intent whose effect crosses the boundary.
    Durable,
    /// After the recorder has taken it, in order; synced with the next batch.
    Ordered,
}

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From a person to an agent.
    In,
    /// From an agent to a person.
    Out,
}

/// One wall as it was measured at the start of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallState {
    /// e.g. `landlock`, `seccomp`, `user-namespace`.
    pub wall: String,
    /// What was found, e.g. `ABI 7`, `148 system calls reachable`.
    pub state: String,
}

/// One limit and what holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// e.g. `memory`.
    pub limit: String,
    /// Its value with its unit.
    pub value: String,
    /// e.g. `cgroup v1`, `RLIMIT_NPROC in the user namespace`.
    pub enforced_by: String,
}

/// What is kept of a request: never a value of its query, never a header, never a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLine {
    /// The method.
    pub method: String,
    /// The path as sent, without query; cut to [`MAX_INLINE_BYTES`].
    pub path: String,
    /// Names of the query's parameters, in order.
    pub query_keys: Vec<String>,
    /// Whether it asks for a WebSocket.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub websocket: bool,
}

/// One audit entry before it has an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Unix milliseconds, UTC, when it was submitted.
    pub time_ms: u64,
    /// Session it belongs to, if any.
    pub session: Option<SessionId>,
    /// Agent of that session.
    pub agent: Option<AgentName>,
    /// Turn it belongs to, if any.
    pub turn: Option<TurnId>,
    /// What happened.
    pub body: Body,
}

impl Record {
    /// Its text that may stand beside the log, with the name of its field and the digest that the
    /// record has of it: what an agent asked a tool, or was answered, word for word.
    pub fn beside(&mut self) -> Option<(&'static str, &mut String, Option<&mut Sha256Hex>)> {
        match &mut self.body {
            Body::ToolCalled { arguments, arguments_sha256, .. }
            | Body::HostToolCalled { arguments, arguments_sha256, .. } => {
                Some(("arguments", arguments, Some(arguments_sha256)))
            }
            Body::ApprovalAsked { summary, shown_sha256, .. } => {
                Some(("summary", summary, shown_sha256.as_mut()))
            }
            Body::ToolFinished { summary, .. } => Some(("summary", summary, None)),
            _ => None,
        }
    }
}

/// What happened, one variant a kind. Sizes in bytes, durations in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)] // the field names are the published vocabulary; audit documents each kind
pub enum Body {
    /// The recorder opened the log.
    RecorderStarted { version: String, recovered_records: u64, torn_bytes: u64 },
    /// The recorder closed the log in order.
    RecorderStopped { records: u64 },
    /// A process that wrote records is gone without saying so.
    ClientLost { pid: u32, role: String },
    /// The log's next key, as a vkey: from the next record on only what it signs counts. Only the
    /// recorder may write it.
    KeyAnnounced { old_vkey: String, new_vkey: String },
    /// Records of this session were refused: `lost` so far, and with `open` it may be more. Whoever
    /// submitted them was told, and what needed them did not happen. Only the recorder may write
    /// it.
    RecordGap { lost: u64, open: bool, reason: String },
    /// The clock stands earlier than a record before had it, by more than a correction. Only the
    /// recorder may write it.
    ClockSetBack { before_ms: u64, now_ms: u64 },
    /// A session came into being, or was resumed.
    SessionOpened { resumed: bool, backend: String, policy_sha256: Sha256Hex, grants: Vec<String> },
    /// A session ended; the counts let a missing tail be seen.
    SessionClosed { reason: String, counts: BTreeMap<String, u64> },
    /// What the gateway counted of a session and what the kernel counted do not fit together.
    TotalsDisagree { total: String, relation: String, gateway: u64, kernel: u64 },
    /// A sandbox was prepared and verified, just before its program starts.
    SandboxStarted {
        plan_sha256: Sha256Hex,
        program: String,
        walls: Vec<WallState>,
        limits: Vec<LimitState>,
    },
    /// A sandbox is gone. `peak_pids`: most processes and threads at a time; `disk_bytes`: what its
    /// session kept on the disk. Either is left out where it was not counted.
    SandboxStopped {
        outcome: String,
        cpu_ms: u64,
        peak_memory_bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peak_pids: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk_bytes: Option<u64>,
    },
    /// A process asked the kernel to execute a program: what stood in its memory at that moment,
    /// read from outside while the call waited. Another thread may write there before the kernel
    /// reads it again (`racy`), so this is what was asked for, not proof of what ran; that is
    /// `process_image` of the same number.
    ProcessExec {
        /// Counted by the process that starts sandboxes, from 1; in containers from 2^32 + 1.
        exec: u64,
        /// Its process id inside the sandbox.
        pid: u32,
        /// As passed; for a descriptor, what the descriptor names stands before it.
        path: String,
        /// As passed, shortened where it is long.
        argv: Vec<String>,
        /// Its working directory; none where the kernel did not show it.
        cwd: Option<String>,
        /// Nothing above was cut off, replaced because it is no text, or could not be read.
        whole: bool,
        /// See above; always true.
        racy: bool,
        /// The server of tools in whose sandbox it happened; none in the session's own.
        server: Option<String>,
        /// What could not be read, and why.
        unread: Option<String>,
    },
    /// What `/proc/PID/exe` named at the first look at which the process had a new program, or why
    /// there was no such look. It may have executed another one since.
    ProcessImage { exec: u64, pid: u32, image: Option<String>, unseen: Option<String> },
    /// A call was refused by which something outside would have been reached. It was answered with
    /// `errno` and never carried out. `racy`: the target was read from the process' memory.
    ConnectRefused {
        pid: u32,
        call: String,
        target: String,
        errno: String,
        racy: bool,
        server: Option<String>,
    },
    /// So many of the operations above are not on record; those that were not carried out for it
    /// were answered with `EAGAIN`.
    WitnessGap { lost: u64, reason: String },
    /// What was created, changed or deleted below a writable mount since the look before; as many
    /// records as it takes, before the manifest that counts them.
    FilesChanged { mount: String, changes: Vec<FileChange>, server: Option<String> },
    /// The writable mounts were looked at: before the program ran (`start`), after a turn, after
    /// its end (`end`). `running`: programs may have written meanwhile.
    FilesManifest {
        after: String,
        mounts: Vec<MountSeen>,
        read_bytes: u64,
        duration_ms: u64,
        running: bool,
        server: Option<String>,
    },
    /// What one observer of the session tells and another one, or the record itself, does not; or
    /// (`not_compared`, `record` in both) why their accounts were not held against each other.
    ObserversDisagree {
        /// One word a kind of finding; the published table has them.
        finding: String,
        /// Who tells it: `kernel`, `gateway` or `agent`.
        told_by: String,
        /// Who does not: one of those, or `record`.
        not_by: String,
        what: String,
        /// How many of the kind, this one included, where only the first are named.
        count: u64,
        /// Indices of the records it is about.
        records: Vec<u64>,
    },
    /// A message came in, or a reply went out.
    Message {
        direction: Direction,
        message: MessageId,
        channel: String,
        chat: String,
        digest: SaltedDigest,
    },
    /// A message was taken back before it was answered: it is never worked on again.
    MessageWithdrawn { message: MessageId, reason: String },
    /// A turn began.
    TurnStarted { message: MessageId },
    /// A turn ended.
    TurnFinished { outcome: String, duration_ms: u64 },
    /// A model is about to be asked.
    ModelRequest {
        model: String,
        api: String,
        host: String,
        bytes: u64,
        sha256: Sha256Hex,
        /// Tools of the provider's own that the request turns on, by the agent file's names.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        provider_tools: Vec<String>,
    },
    /// It answered, or did not.
    ModelResponse {
        model: String,
        status: u16,
        bytes: u64,
        sha256: Sha256Hex,
        input_tokens: u64,
        output_tokens: u64,
        duration_ms: u64,
        cost_micro_usd: Option<u64>,
        error: Option<String>,
    },
    /// A secret is about to be used for the session by the gateway.
    SecretUsed { secret: String, host: String },
    /// The provider of a login is about to be asked for tokens: `login` after a person agreed,
    /// `renewal` for the session that stands here, or none.
    LoginRequest { login: String, host: String, purpose: String },
    /// It answered, or did not. `rotated`: it gave a new refresh token, which is sealed by now.
    LoginResponse {
        login: String,
        purpose: String,
        status: u16,
        rotated: bool,
        expires_ms: Option<u64>,
        duration_ms: u64,
        error: Option<String>,
    },
    /// A person gave a token for a login, or removed the login.
    LoginChanged { login: String, change: String, hosts: Vec<String> },
    /// A tool call, as the agent tells it.
    ToolCalled { call: String, tool: String, arguments: String, arguments_sha256: Sha256Hex },
    /// Its result, as the agent tells it.
    ToolFinished { call: String, tool: String, ok: bool, bytes: u64, summary: String },
    /// A name is about to be looked up and a request sent, or a connection made, for the session.
    /// Where the gateway sees requests, `request` tells which; otherwise only the connection is
    /// known. `address` is that of a connection that was kept; a new one has its own record.
    EgressIntent {
        host: String,
        port: u16,
        rule: String,
        address: Option<String>,
        request: Option<RequestLine>,
        secret: Option<String>,
    },
    /// The name was looked up for the intent before, its addresses judged, and this one is about
    /// to be connected to.
    EgressPinned { host: String, port: u16, address: String },
    /// It ended. Digests are of the bodies, where they were seen.
    EgressResult {
        host: String,
        port: u16,
        status: Option<u16>,
        sent: u64,
        /// Request line and fields, which carry data as well as a body does; 0 where none are seen.
        #[serde(default)]
        sent_head: u64,
        received: u64,
        sent_sha256: Option<Sha256Hex>,
        received_sha256: Option<Sha256Hex>,
        duration_ms: u64,
        error: Option<String>,
    },
    /// A name, connection or request was refused.
    EgressRefused { target: String, rule: String, reason: String, request: Option<RequestLine> },
    /// A human is asked whether something may happen; it waits. `summary` is what is shown, to the
    /// byte, and `shown_sha256` its SHA-256. Logs of versions that did not tell have none.
    ApprovalAsked {
        approval: String,
        rule: String,
        by: String,
        summary: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown_sha256: Option<Sha256Hex>,
    },
    /// The answer, or that none came. `shown_sha256`, as the question's record has it: what a
    /// person answered. None where nobody did.
    ApprovalDecided {
        approval: String,
        decision: String,
        by: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown_sha256: Option<Sha256Hex>,
    },
    /// A tool of the host is about to act for the session.
    HostToolCalled {
        call: String,
        server: String,
        tool: String,
        arguments: String,
        arguments_sha256: Sha256Hex,
    },
    /// It answered, or was refused.
    HostToolFinished {
        call: String,
        server: String,
        tool: String,
        ok: bool,
        bytes: u64,
        sha256: Sha256Hex,
        duration_ms: u64,
        error: Option<String>,
    },
    /// Rules were proposed from what a session did. They grant nothing.
    PolicyLearned { session: SessionId, proposal_sha256: Sha256Hex, rules: u64, unused: u64 },
    /// A person accepted a proposal; the file now reads so.
    PolicyAccepted { file: String, before_sha256: Sha256Hex, after_sha256: Sha256Hex },
    /// What the agent may do is not what it was in the last session that was opened for it; written
    /// before this one is opened. `before_sha256`: its policy's digest then; none where it had no
    /// session, and then all that it is granted counts as gained. Equal digests: what
    /// `nanoclaw.toml` has behind the grants differs. `left_out`: lines that had no room. With
    /// `unknown` nobody can say what was gained or lost, for that reason.
    PolicyChanged {
        before_sha256: Option<Sha256Hex>,
        after_sha256: Sha256Hex,
        gained: Vec<String>,
        lost: Vec<String>,
        left_out: u64,
        unknown: Option<String>,
    },
    /// A person has the payloads removed that stand beside these records. Their salted digests and
    /// lengths stay where they are, so every proof stays valid.
    PayloadsErased { scope: String, records: Vec<u64>, texts: u64, bytes: u64 },
    /// A person has the records before `first` removed. Their hashes stay, so every proof of a
    /// later record, and every proof that was handed out, stays valid.
    RecordsPruned { before_ms: u64, first: u64, texts: u64 },
    /// From here on enough witnesses sign the heads of this log, or too few do; said when that
    /// changes, not for every head.
    Cosigning {
        /// Whether enough have signed.
        reached: bool,
        /// Records under the head that was put before them.
        size: u64,
        /// How many are needed.
        needed: u64,
        /// Names of those that signed it.
        cosigned: Vec<String>,
        /// The others, each with its reason.
        failed: Vec<String>,
        /// Whether one of them knows another history of this log.
        contradicted: bool,
    },
    /// Something tried in an assessment or demo, and what answered.
    ProbeObserved { probe: String, expected: String, observed: String, held: bool },
}

impl Body {
    /// The kind's name as it stands in the log, e.g. `egress_refused`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RecorderStarted { .. } => "recorder_started",
            Self::RecorderStopped { .. } => "recorder_stopped",
            Self::ClientLost { .. } => "client_lost",
            Self::SessionOpened { .. } => "session_opened",
            Self::SessionClosed { .. } => "session_closed",
            Self::TotalsDisagree { .. } => "totals_disagree",
            Self::SandboxStarted { .. } => "sandbox_started",
            Self::SandboxStopped { .. } => "sandbox_stopped",
            Self::ProcessExec { .. } => "process_exec",
            Self::ProcessImage { .. } => "process_image",
            Self::ConnectRefused { .. } => "connect_refused",
            Self::WitnessGap { .. } => "witness_gap",
            Self::KeyAnnounced { .. } => "key_announced",
            Self::RecordGap { .. } => "record_gap",
            Self::ClockSetBack { .. } => "clock_set_back",
            Self::FilesChanged { .. } => "files_changed",
            Self::FilesManifest { .. } => "files_manifest",
            Self::ObserversDisagree { .. } => "observers_disagree",
            Self::Message { .. } => "message",
            Self::MessageWithdrawn { .. } => "message_withdrawn",
            Self::TurnStarted { .. } => "turn_started",
            Self::TurnFinished { .. } => "turn_finished",
            Self::ModelRequest { .. } => "model_request",
            Self::ModelResponse { .. } => "model_response",
            Self::SecretUsed { .. } => "secret_used",
            Self::LoginRequest { .. } => "login_request",
            Self::LoginResponse { .. } => "login_response",
            Self::LoginChanged { .. } => "login_changed",
            Self::ToolCalled { .. } => "tool_called",
            Self::ToolFinished { .. } => "tool_finished",
            Self::EgressIntent { .. } => "egress_intent",
            Self::EgressPinned { .. } => "egress_pinned",
            Self::EgressResult { .. } => "egress_result",
            Self::EgressRefused { .. } => "egress_refused",
            Self::ApprovalAsked { .. } => "approval_asked",
            Self::ApprovalDecided { .. } => "approval_decided",
            Self::HostToolCalled { .. } => "host_tool_called",
            Self::HostToolFinished { .. } => "host_tool_finished",
            Self::PolicyLearned { .. } => "policy_learned",
            Self::PolicyAccepted { .. } => "policy_accepted",
            Self::PolicyChanged { .. } => "policy_changed",
            Self::PayloadsErased { .. } => "payloads_erased",
            Self::RecordsPruned { .. } => "records_pruned",
            Self::Cosigning { .. } => "cosigning",
            Self::ProbeObserved { .. } => "probe_observed",
        }
    }
}
