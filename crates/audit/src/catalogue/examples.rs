//! One example of every kind, as it may well happen.

use crate::merkle::sha256;
use crate::payload::hex;
use model::{
    Body, Direction, FileAct, FileChange, LimitState, MessageId, MountSeen, RequestLine,
    SaltedDigest, SessionId, Sha256Hex, WallState,
};

fn s(text: &str) -> String {
    text.to_owned()
}

/// A digest that nothing has.
fn digest(of: &str) -> Sha256Hex {
    Sha256Hex(hex(&sha256(of.as_bytes())))
}

fn message() -> MessageId {
    MessageId::mint(1_767_225_600_000, 1)
}

/// One of every kind, in the order of the type.
#[must_use]
pub fn examples() -> Vec<Body> {
    [
        of_the_log(),
        of_sessions(),
        of_operations(),
        of_files(),
        of_turns(),
        of_models(),
        of_the_way_out(),
        of_people(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn of_the_log() -> Vec<Body> {
    vec![
        Body::RecorderStarted { version: s("0.1.0"), recovered_records: 1_204, torn_bytes: 0 },
        Body::RecorderStopped { records: 1_377 },
        Body::ClientLost { pid: 4_242, role: s("gateway") },
        Body::KeyAnnounced {
            old_vkey: s("nanoclaw/1a2b3c4d+5e6f7081+an-example-of-a-key"),
            new_vkey: s("nanoclaw/1a2b3c4d+91a2b3c4+another-example"),
        },
        Body::RecordGap {
            lost: 17,
            open: false,
            reason: s("its session submits more than any may"),
        },
        Body::ClockSetBack { before_ms: 1_767_229_200_000, now_ms: 1_767_225_600_000 },
        Body::Cosigning {
            reached: false,
            size: 1_377,
            needed: 2,
            cosigned: vec![s("witness.example/w1")],
            failed: vec![s("witness.example/w2: not reached")],
            contradicted: false,
        },
    ]
}

fn of_sessions() -> Vec<Body> {
    vec![
        Body::SessionOpened {
            resumed: false,
            backend: s("native"),
            policy_sha256: digest("policy"),
            grants: vec![s("read ~/notes at /mnt/notes"), s("GET api.github.com:443")],
        },
        Body::SessionClosed {
            reason: s("idle"),
            counts: [(s("tool_called"), 4), (s("egress_refused"), 1)].into(),
        },
        Body::TotalsDisagree {
            total: s("door_bytes_out"),
            relation: s("equal"),
            gateway: 8_192,
            kernel: 9_216,
        },
        Body::SandboxStarted {
            plan_sha256: digest("plan"),
            program: s("/run/nanoclaw/nanoclaw __agent"),
            walls: vec![WallState { wall: s("landlock"), state: s("ABI 7") }],
            limits: vec![LimitState {
                limit: s("memory"),
                value: s("1GiB"),
                enforced_by: s("cgroup v2"),
            }],
        },
        Body::SandboxStopped {
            outcome: s("exit 0"),
            cpu_ms: 812,
            peak_memory_bytes: 73_400_320,
            peak_pids: Some(9),
            disk_bytes: Some(1_048_576),
        },
    ]
}

fn of_files() -> Vec<Body> {
    vec![
        Body::FilesChanged {
            mount: s("/workspace"),
            changes: vec![FileChange {
                path: s("notes/today.md"),
                act: FileAct::Created,
                sort: s("file"),
                bytes: 412,
                mode: s("0644"),
                sha256: Some(digest("today")),
                unread: None,
                racy: false,
            }],
            server: None,
        },
        Body::FilesManifest {
            after: s("turn"),
            mounts: vec![MountSeen {
                mount: s("/workspace"),
                looked_at: 214,
                created: 1,
                ..MountSeen::default()
            }],
            read_bytes: 412,
            duration_ms: 3,
            running: true,
            server: None,
        },
        Body::ObserversDisagree {
            finding: s("execution_without_call"),
            told_by: s("kernel"),
            not_by: s("agent"),
            what: s("/usr/bin/curl was executed while no tool call was open"),
            count: 1,
            records: vec![41],
        },
    ]
}

fn of_operations() -> Vec<Body> {
    vec![
        Body::ProcessExec {
            exec: 3,
            pid: 17,
            path: s("/usr/bin/git"),
            argv: vec![s("git"), s("log"), s("--oneline")],
            cwd: Some(s("/workspace")),
            whole: true,
            racy: true,
            server: None,
            unread: None,
        },
        Body::ProcessImage { exec: 3, pid: 17, image: Some(s("/usr/bin/git")), unseen: None },
        Body::ConnectRefused {
            pid: 17,
            call: s("connect"),
            target: s("192.0.2.1:443"),
            errno: s("ENETUNREACH"),
            racy: true,
            server: None,
        },
        Body::WitnessGap { lost: 2, reason: s("too many are not on record yet") },
    ]
}

fn of_turns() -> Vec<Body> {
    vec![
        Body::Message {
            direction: Direction::In,
            message: message(),
            channel: s("terminal"),
            chat: s("local"),
            digest: SaltedDigest { sha256: digest("message"), bytes: 34 },
        },
        Body::MessageWithdrawn { message: message(), reason: s("SIGINT") },
        Body::TurnStarted { message: message() },
        Body::TurnFinished { outcome: s("done"), duration_ms: 5_310 },
    ]
}

fn of_models() -> Vec<Body> {
    vec![
        Body::ModelRequest {
            model: s("claude-sonnet-4-5"),
            api: s("anthropic"),
            host: s("api.anthropic.com"),
            bytes: 18_211,
            sha256: digest("request"),
            provider_tools: vec![s("web_search")],
        },
        Body::ModelResponse {
            model: s("claude-sonnet-4-5"),
            status: 200,
            bytes: 2_410,
            sha256: digest("response"),
            input_tokens: 4_120,
            output_tokens: 310,
            duration_ms: 2_950,
            cost_micro_usd: Some(17_010),
            error: None,
        },
        Body::SecretUsed { secret: s("github"), host: s("api.github.com") },
        Body::LoginRequest {
            login: s("chatgpt"),
            host: s("auth.openai.com"),
            purpose: s("renewal"),
        },
        Body::LoginResponse {
            login: s("chatgpt"),
            purpose: s("renewal"),
            status: 200,
            rotated: true,
            expires_ms: Some(1_767_312_000_000),
            duration_ms: 240,
            error: None,
        },
        Body::LoginChanged {
            login: s("claude"),
            change: s("token given"),
            hosts: vec![s("api.anthropic.com")],
        },
        Body::ToolCalled {
            call: s("call-1"),
            tool: s("bash"),
            arguments: s("{\"command\":\"git log --oneline\"}"),
            arguments_sha256: digest("{\"command\":\"git log --oneline\"}"),
        },
        Body::ToolFinished {
            call: s("call-1"),
            tool: s("bash"),
            ok: true,
            bytes: 1_204,
            summary: s("12 lines"),
        },
    ]
}

/// What a person is shown.
const ASKED: &str = "POST https://api.github.com/repos/a/b/issues";

fn of_the_way_out() -> Vec<Body> {
    let request = RequestLine {
        method: s("GET"),
        path: s("/repos/a/b/issues"),
        query_keys: vec![s("state")],
        websocket: true,
    };
    vec![
        Body::EgressIntent {
            host: s("api.github.com"),
            port: 443,
            rule: s("egress[0]"),
            address: Some(s("192.0.2.7")),
            request: Some(request.clone()),
            secret: Some(s("github")),
        },
        Body::EgressPinned { host: s("api.github.com"), port: 443, address: s("192.0.2.7") },
        Body::EgressResult {
            host: s("api.github.com"),
            port: 443,
            status: Some(200),
            sent: 0,
            sent_head: 210,
            received: 40_112,
            sent_sha256: None,
            received_sha256: Some(digest("answer")),
            duration_ms: 180,
            error: None,
        },
        Body::EgressRefused {
            target: s("POST https://paste.example/new"),
            rule: s("default"),
            reason: s("no rule permits this host"),
            request: Some(request),
        },
        Body::ApprovalAsked {
            approval: s("ask-1"),
            rule: s("egress[1]"),
            by: s("owner"),
            summary: s(ASKED),
            shown_sha256: Some(digest(ASKED)),
        },
        Body::ApprovalDecided {
            approval: s("ask-1"),
            decision: s("allow"),
            by: s("owner"),
            shown_sha256: Some(digest(ASKED)),
        },
        Body::HostToolCalled {
            call: s("host-19a1b2c3d4e-1"),
            server: s("host"),
            tool: s("web_fetch"),
            arguments: s("{\"url\":\"https://example.org/\"}"),
            arguments_sha256: digest("{\"url\":\"https://example.org/\"}"),
        },
        Body::HostToolFinished {
            call: s("host-19a1b2c3d4e-1"),
            server: s("host"),
            tool: s("web_fetch"),
            ok: true,
            bytes: 1_256,
            sha256: digest("page"),
            duration_ms: 95,
            error: None,
        },
    ]
}

fn of_people() -> Vec<Body> {
    vec![
        Body::PolicyLearned {
            session: SessionId::mint(1_767_225_600_000, 1),
            proposal_sha256: digest("proposal"),
            rules: 3,
            unused: 1,
        },
        Body::PolicyAccepted {
            file: s("agents/triage.toml"),
            before_sha256: digest("before"),
            after_sha256: digest("after"),
        },
        Body::PolicyChanged {
            before_sha256: Some(digest("before")),
            after_sha256: digest("after"),
            gained: vec![s("egress api.github.com:443 POST /repos/** (agents/triage.toml:9): \
                            more of a host that was reached in part")],
            lost: vec![s("tool web_fetch")],
            left_out: 0,
            unknown: None,
        },
        Body::PayloadsErased {
            scope: s("session s19a1b2c3d4e-0f1e2d3c"),
            records: vec![1_210, 1_214],
            texts: 2,
            bytes: 21_904,
        },
        Body::RecordsPruned { before_ms: 1_764_547_200_000, first: 120_832, texts: 14 },
        Body::ProbeObserved {
            probe: s("ptrace another process"),
            expected: s("EPERM"),
            observed: s("EPERM"),
            held: true,
        },
    ]
}
