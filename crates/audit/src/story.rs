//! A log as a story that a lawyer could read: who asked, what it did, what it was refused, what it
//! said.
//!
//! 1. One line a record, in the order of the log, each with its index, so that every sentence can
//!    be proven.
//! 2. Text that came from an agent or from outside shows every character that could deceive the
//!    eye: control, bidirectional and invisible ones as `<U+202E>`.

mod decisions;
mod files;
mod recorder;

use model::{Body, Direction, Record, RequestLine};
use std::fmt::Write;

/// Longest piece of foreign text in a line, characters; the record has the whole.
const QUOTE_CHARS_MAX: usize = 200;

/// Makes every character visible that is not.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = c.is_control()
            || matches!(c,
                '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
                | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
                | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
        if hidden {
            // Writing to a string does not fail.
            let _ = write!(out, "<U+{:04X}>", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn quote(text: &str) -> String {
    let short: String = text.chars().take(QUOTE_CHARS_MAX).collect();
    let more = if short.len() < text.len() { " […]" } else { "" };
    format!("{}{more}", visible(&short))
}

/// `2026-01-31 23:59:59.123 UTC` from Unix milliseconds.
#[must_use]
pub fn utc(time_ms: u64) -> String {
    let (days, ms) = (time_ms / 86_400_000, time_ms % 86_400_000);
    // Days to a date of the proleptic Gregorian calendar, counted in eras of 400 years from March
    // 1st.
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{date:02} {h:02}:{m:02}:{s:02}.{:03} UTC", ms % 1_000)
}

/// Tells records, given with their index, one line each.
pub fn story<'a>(records: impl IntoIterator<Item = (u64, &'a Record)>) -> Vec<String> {
    records.into_iter().map(|(index, record)| line(index, record)).collect()
}

/// One record as one line.
#[must_use]
pub fn line(index: u64, record: &Record) -> String {
    let who = match (&record.agent, &record.session) {
        (Some(agent), Some(session)) => format!("{agent} ({session}): "),
        (None, Some(session)) => format!("({session}): "),
        (Some(agent), None) => format!("{agent}: "),
        (None, None) => String::new(),
    };
    format!("{}  #{index}  {who}{}", utc(record.time_ms), words(&record.body))
}

/// A record as one sentence of a short story; `None` for what only proves or measures.
#[must_use]
pub fn brief(body: &Body) -> Option<String> {
    Some(match body {
        Body::SessionOpened { resumed, grants, .. } => {
            let verb = if *resumed { "was resumed" } else { "began" };
            let all: Vec<String> = grants.iter().map(|g| quote(g)).collect();
            let grants = if all.is_empty() { "nothing".to_owned() } else { all.join("; ") };
            format!("The session {verb}; granted: {grants}.")
        }
        Body::SessionClosed { reason, .. } => format!("The session ended: {}.", quote(reason)),
        Body::SandboxStarted { program, .. } => format!("In its sandbox: {}", quote(program)),
        Body::SandboxStopped { .. }
        | Body::RecorderStarted { .. }
        | Body::RecorderStopped { .. }
        | Body::ProcessExec { .. }
        | Body::ProcessImage { .. }
        | Body::TurnStarted { .. }
        | Body::ModelRequest { .. }
        | Body::ModelResponse { error: None, .. }
        | Body::ToolFinished { ok: true, .. }
        | Body::EgressResult { error: None, .. }
        | Body::HostToolFinished { ok: true, .. } => return None,
        Body::Message { direction, digest, .. } => match direction {
            Direction::In => format!("You wrote ({} bytes).", digest.bytes),
            Direction::Out => format!("It replied ({} bytes).", digest.bytes),
        },
        Body::TurnFinished { outcome, .. } if outcome == "done" => return None,
        Body::TurnFinished { outcome, .. } => format!("Its turn ended: {}.", quote(outcome)),
        Body::ToolCalled { tool, arguments, .. } => {
            format!("It used {}: {}", quote(tool), quote(arguments))
        }
        Body::ToolFinished { tool, summary, .. } => {
            format!("{} failed: {}", quote(tool), quote(summary))
        }
        Body::EgressIntent { host, port, rule, request, secret, .. } => format!(
            "Let through: {}:{port}{} (rule {}{}).",
            quote(host),
            requested(request.as_ref()),
            quote(rule),
            secret.as_ref().map_or(String::new(), |s| format!(", with the secret {}", quote(s)))
        ),
        Body::FilesManifest { .. } => return files::brief_manifest(body),
        Body::PolicyChanged { .. } => decisions::brief_change(body),
        other => words(other),
    })
}

/// What happened, in one sentence.
#[must_use]
pub fn words(body: &Body) -> String {
    match body {
        Body::RecorderStarted { .. }
        | Body::RecorderStopped { .. }
        | Body::ClientLost { .. }
        | Body::KeyAnnounced { .. }
        | Body::RecordGap { .. }
        | Body::ClockSetBack { .. }
        | Body::Cosigning { .. } => recorder::of(body),
        Body::SessionOpened { .. }
        | Body::SessionClosed { .. }
        | Body::TotalsDisagree { .. }
        | Body::SandboxStarted { .. }
        | Body::SandboxStopped { .. } => of_session(body),
        Body::ProcessExec { .. }
        | Body::ProcessImage { .. }
        | Body::ConnectRefused { .. }
        | Body::WitnessGap { .. } => of_operations(body),
        Body::FilesChanged { .. } | Body::FilesManifest { .. } | Body::ObserversDisagree { .. } => {
            files::sentence(body)
        }
        Body::ModelRequest { .. } | Body::ModelResponse { .. } | Body::SecretUsed { .. } => {
            of_model(body)
        }
        Body::LoginRequest { .. } | Body::LoginResponse { .. } | Body::LoginChanged { .. } => {
            of_login(body)
        }
        Body::EgressIntent { .. }
        | Body::EgressPinned { .. }
        | Body::EgressResult { .. }
        | Body::EgressRefused { .. } => of_egress(body),
        Body::ApprovalAsked { .. }
        | Body::ApprovalDecided { .. }
        | Body::HostToolCalled { .. }
        | Body::HostToolFinished { .. }
        | Body::PolicyLearned { .. }
        | Body::PolicyAccepted { .. }
        | Body::PolicyChanged { .. }
        | Body::PayloadsErased { .. }
        | Body::RecordsPruned { .. } => decisions::sentence(body),
        _ => of_turn(body),
    }
}

fn of_session(body: &Body) -> String {
    match body {
        Body::SessionOpened { resumed, backend, policy_sha256, grants } => {
            let verb = if *resumed { "was resumed" } else { "began" };
            let grants = match grants.as_slice() {
                [] => "no grants".to_owned(),
                // Each shortened by itself: a long one must not hide those after it.
                some => {
                    let all: Vec<String> = some.iter().map(|g| quote(g)).collect();
                    format!("these grants: {}", all.join("; "))
                }
            };
            let digest: String = visible(&policy_sha256.0).chars().take(12).collect();
            format!(
                "The session {verb}, sandboxed by {}, policy {digest}, with {grants}.",
                quote(backend)
            )
        }
        Body::SessionClosed { reason, counts } => {
            // That nothing was compared is to be read, too.
            let some = counts.iter().filter(|(k, n)| **n > 0 || k.ends_with("_compared"));
            let counts: Vec<String> = some.map(|(k, n)| format!("{n} {}", quote(k))).collect();
            let counts = if counts.is_empty() { "nothing".into() } else { counts.join(", ") };
            format!("The session ended: {}. Counted: {counts}.", quote(reason))
        }
        Body::TotalsDisagree { total, relation, gateway, kernel } => format!(
            "THE TOTALS DO NOT AGREE: {}: the gateway says {gateway}, the kernel counted \
             {kernel}; it should be {}.",
            quote(total),
            quote(relation)
        ),
        Body::SandboxStarted { program, walls, limits, .. } => {
            let walls: Vec<String> =
                walls.iter().map(|w| format!("{} ({})", w.wall, w.state)).collect();
            let limits: Vec<String> = limits
                .iter()
                .map(|l| format!("{} {} by {}", l.limit, l.value, l.enforced_by))
                .collect();
            format!(
                "A sandbox was ready to run {}. Walls: {}. Limits: {}.",
                quote(program),
                visible(&walls.join(", ")),
                visible(&limits.join(", "))
            )
        }
        Body::SandboxStopped { outcome, cpu_ms, peak_memory_bytes, peak_pids, disk_bytes } => {
            let pids = peak_pids.map(|n| format!(", at most {n} processes and threads"));
            let disk = disk_bytes.map(|n| format!(", {n} bytes kept on the disk"));
            format!(
                "The sandbox ended: {}, {cpu_ms} ms of CPU, at most {peak_memory_bytes} bytes of \
                 memory{}{}.",
                quote(outcome),
                pids.unwrap_or_default(),
                disk.unwrap_or_default()
            )
        }
        _ => body.kind().to_owned(),
    }
}

fn of_operations(body: &Body) -> String {
    let at = |server: &Option<String>| match server {
        Some(name) => format!(" of the server of tools {}", quote(name)),
        None => String::new(),
    };
    match body {
        Body::ProcessExec { exec, pid, path, argv, cwd, server, unread, .. } => {
            let argv: Vec<String> = argv.iter().map(|a| quote(a)).collect();
            let cwd = cwd.as_ref().map_or(String::new(), |c| format!(" in {}", quote(c)));
            let unread =
                unread.as_ref().map_or(String::new(), |why| format!(" Not read: {}.", quote(why)));
            format!(
                "The kernel was asked by process {pid}{} to execute {}{cwd}, as {argv:?} \
                 (execution {exec}; as passed, it can have been changed since).{unread}",
                at(server),
                quote(path)
            )
        }
        Body::ProcessImage { exec, pid, image, unseen } => match (image, unseen) {
            (Some(image), _) => {
                format!("Process {pid} was seen to run {} (execution {exec}).", quote(image))
            }
            (None, Some(why)) => {
                format!("What execution {exec} made of process {pid} was not seen: {}.", quote(why))
            }
            (None, None) => format!("What execution {exec} made of process {pid} was not seen."),
        },
        Body::ConnectRefused { pid, call, target, errno, server, .. } => format!(
            "Process {pid}{} was REFUSED {} by the sandbox: {} ({}).",
            at(server),
            quote(target),
            quote(errno),
            quote(call)
        ),
        Body::WitnessGap { lost, reason } => {
            format!("NOT ON RECORD: {lost} operations of the sandbox: {}.", quote(reason))
        }
        _ => body.kind().to_owned(),
    }
}

fn of_turn(body: &Body) -> String {
    match body {
        Body::Message { direction, message, channel, chat, digest } => {
            let (what, way) = match direction {
                Direction::In => ("A message came in", "from"),
                Direction::Out => ("A reply went out", "to"),
            };
            let (channel, chat, bytes) = (quote(channel), quote(chat), digest.bytes);
            format!("{what} {way} {channel}, chat {chat}: {message}, {bytes} bytes.")
        }
        Body::MessageWithdrawn { message, reason } => {
            format!("The message {message} was taken back unanswered: {}.", quote(reason))
        }
        Body::TurnStarted { message } => format!("It set to work on {message}."),
        Body::TurnFinished { outcome, duration_ms } => {
            format!("It was done after {duration_ms} ms: {}.", quote(outcome))
        }
        Body::ToolCalled { tool, arguments, .. } => {
            format!("It says it uses the tool {}: {}", quote(tool), quote(arguments))
        }
        Body::ToolFinished { tool, ok, bytes, summary, .. } => {
            let how = if *ok { "succeeded" } else { "failed" };
            format!("It says the tool {} {how}, {bytes} bytes: {}", quote(tool), quote(summary))
        }
        Body::ProbeObserved { probe, expected, observed, held } => {
            let verdict = if *held { "The wall held" } else { "THE WALL DID NOT HOLD" };
            let (probe, expected, observed) = (quote(probe), quote(expected), quote(observed));
            format!("It tried {probe}. Expected: {expected}. Answer: {observed}. {verdict}.")
        }
        _ => body.kind().to_owned(),
    }
}

fn of_model(body: &Body) -> String {
    match body {
        Body::ModelRequest { model, host, bytes, provider_tools, .. } => {
            let tool = |t: &String| format!(", with the provider tool {}", quote(t));
            let tools: String = provider_tools.iter().map(tool).collect();
            format!(
                "The model {} at {} was asked, {bytes} bytes{tools}.",
                quote(model),
                quote(host)
            )
        }
        Body::ModelResponse {
            model,
            status,
            bytes,
            input_tokens,
            output_tokens,
            duration_ms,
            error,
            ..
        } => match error {
            Some(e) => format!("The model {} failed (status {status}): {}", quote(model), quote(e)),
            None => format!(
                "The model {} answered after {duration_ms} ms: {bytes} bytes, \
                 {input_tokens} tokens in, {output_tokens} out.",
                quote(model)
            ),
        },
        Body::SecretUsed { secret, host } => {
            format!("The gateway used the secret {} for it at {}.", quote(secret), quote(host))
        }
        _ => body.kind().to_owned(),
    }
}

fn of_login(body: &Body) -> String {
    match body {
        Body::LoginRequest { login, host, purpose } => format!(
            "The gateway asks {} for tokens of the login {} ({}).",
            quote(host),
            quote(login),
            quote(purpose)
        ),
        Body::LoginResponse { login, status, rotated, error, .. } => match error {
            Some(e) => {
                format!("The login {} got none (status {status}): {}", quote(login), quote(e))
            }
            None => format!(
                "The login {} has a new access token{}.",
                quote(login),
                if *rotated { " and a new refresh token" } else { "" }
            ),
        },
        Body::LoginChanged { login, change, hosts } => {
            let hosts: Vec<String> = hosts.iter().map(|h| quote(h)).collect();
            format!("The login {}: {}. Hosts: {}.", quote(login), quote(change), hosts.join(", "))
        }
        _ => body.kind().to_owned(),
    }
}

fn of_egress(body: &Body) -> String {
    match body {
        Body::EgressIntent { host, port, rule, address, request, secret } => format!(
            "It was let through to {}:{port}{}{}, by the rule {}{}.",
            quote(host),
            address.as_ref().map_or(String::new(), |a| format!(" ({})", quote(a))),
            requested(request.as_ref()),
            quote(rule),
            secret.as_ref().map_or(String::new(), |s| format!(", with the secret {}", quote(s)))
        ),
        Body::EgressPinned { host, port, address } => {
            format!("{}:{port} was looked up and dialled at {}.", quote(host), quote(address))
        }
        Body::EgressResult {
            host,
            port,
            status,
            sent,
            sent_head,
            received,
            duration_ms,
            error,
            ..
        } => {
            let end =
                error.as_ref().map_or(String::new(), |e| format!(" It broke off: {}", quote(e)));
            let host = quote(host);
            let status = status.map_or(String::new(), |s| format!(" with status {s}"));
            let head = match sent_head {
                0 => String::new(),
                n => format!(" after a head of {n}"),
            };
            format!(
                "The exchange with {host}:{port} ended{status} after {duration_ms} ms: \
                 {sent} bytes out{head}, {received} in.{end}"
            )
        }
        Body::EgressRefused { target, rule, reason, request } => format!(
            "It was REFUSED {}{}: {} (rule {}).",
            quote(target),
            requested(request.as_ref()),
            quote(reason),
            quote(rule)
        ),
        _ => body.kind().to_owned(),
    }
}

fn requested(line: Option<&RequestLine>) -> String {
    let Some(line) = line else { return String::new() };
    let keys = match line.query_keys.as_slice() {
        [] => String::new(),
        keys => {
            let key = |k: &String| format!("\"{}\"", k.replace('"', "<U+0022>"));
            format!(" with {}", quote(&keys.iter().map(key).collect::<Vec<_>>().join(", ")))
        }
    };
    let blind = if line.websocket { " as a WebSocket" } else { "" };
    format!(", {} {}{keys}{blind}", quote(&line.method), quote(&line.path))
}
