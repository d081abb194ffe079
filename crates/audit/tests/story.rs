//! A log told to a person: one line a record, every kind in words, nothing hidden in it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{every_kind, record};
use model::{Body, Record};
use nanoclaw_audit::story::{line, story, utc, visible};

/// Every kind of `every_kind`, in its order, as a reader sees it after the date.
const TOLD: &str = "\
#0  The recorder 0 opened the log with 1 records; 2 bytes of an unfinished write were set aside.
#1  The recorder closed the log with 3 records.
#2  The process gateway (pid 4) was gone without a word; what it did last may not be on record.
#3  From here on the log is signed by another key: n/1+c+d
#4  Not on record, and not done if it needed to be: 5 or more records (too many).
#5  The clock was set back from 1970-01-01 00:00:00.009 UTC to 1970-01-01 00:00:00.008 UTC; the \
order of the records is right all the same.
#6  The session was resumed, sandboxed by native, policy abababababab, with these grants: read \
~/notes; é<U+202E>\u{1f600}.
#7  The session ended: done. Counted: 2 turn, 1 \u{fb33}, 3 \u{1f600}.
#8  A sandbox was ready to run sh. Walls: landlock (ABI 7). Limits: pids 256 by cgroup v2.
#9  THE TOTALS DO NOT AGREE: bytes up: the gateway says 1, the kernel counted 2; it should be equal.
#10  The sandbox ended: exit 0, 1 ms of CPU, at most 2 bytes of memory, at most 3 processes and threads, \
4 bytes kept on the disk.
#11  The kernel was asked by process 7 of the server of tools lab to execute /bin/sh in /workspace, \
as [\"sh\", \"-c\", \"<U+001B>[31m\u{fffd}\"] (execution 1; as passed, it can have been \
changed since). Not read: its memory: EPERM.
#12  Process 7 was seen to run /usr/bin/dash (execution 1).
#13  Process 7 was REFUSED 192.0.2.1:443 by the sandbox: ENETUNREACH (connect).
#14  NOT ON RECORD: 3 operations of the sandbox: the queue was full.
#15  A message came in from terminal, chat me: m00000000001-00000002, 12 bytes.
#16  The message m00000000001-00000002 was taken back unanswered: SIGTERM.
#17  It set to work on m00000000001-00000002.
#18  It was done after 10 ms: ok.
#19  The model m at h was asked, 1 bytes, with the provider tool web_search.
#20  The model m answered after 4 ms: 1 bytes, 2 tokens in, 3 out.
#21  The gateway used the secret github for it at api.github.com.
#22  The gateway asks h for tokens of the login claude (renewal).
#23  The login claude has a new access token and a new refresh token.
#24  The login claude: removed. Hosts: h.
#25  It says it uses the tool bash: {\"a\": \"\\\"<U+000A><U+001B>[31m\"}
#26  It says the tool bash failed, 3 bytes: no
#27  It was let through to h:443 (192.0.2.1), GET /x with \"a\", \"b\" as a WebSocket, by the \
rule r, with the secret github.
#28  h:443 was looked up and dialled at 192.0.2.1.
#29  The exchange with h:443 ended with status 200 after 3 ms: 1 bytes out after a head of 120, \
2 in. It broke off: reset
#30  It was REFUSED 10.0.0.1:22: private range (rule default).
#31  The owner was asked (a1, the text e82ef6ed665e) by the rule r: POST https://h/x
#32  The answer to a1 was deny (owner), given to the text e82ef6ed665e.
#33  It called the host's tool web_fetch of host: {}
#34  The tool web_fetch answered after 4 ms, 3 bytes.
#35  LEARNING: 1 rules were proposed from s00000000005-00000006, which grant nothing; 2 grants \
were never used.
#36  A person accepted new rules into f.
#37  Whether what it may do has CHANGED since its last session is NOT KNOWN (policy abababababab, \
now abababababab): the copy is damaged.
#38  It tried ptrace. Expected: EPERM. Answer: EPERM. The wall held.
#39  TOO FEW witnesses sign this log (2 are needed): w.example/1 signed the head of 9 records. \
Not: w.example/2: not reached. A WITNESS KNOWS ANOTHER HISTORY OF THIS LOG.
#40  ERASED by a person: 2 texts of 1 records, 9 bytes (session s1). Their digests stay.
#41  REMOVED by a person: the records before #7, all older than 1970-01-01 00:00:00.005 UTC. Their \
hashes stay.
#42  Files below /mnt/x of the server of tools lab: created \"a<U+202E>\u{1f600}\" (4 bytes, link, \
sha256 abababababab, while it changed); deleted itself (4 bytes, not read: EACCES).
#43  The writable mounts after its turn, while programs may have written: /mnt/x: 9 looked at, \
1 created, 2 changed, 3 deleted, 4 OF THEM NOT NAMED, 5 files not read, 6 FOLDERS NOT LOOKED INTO \
(\"deep: too deep\"). 7 bytes were read.
#44  THE OBSERVERS DISAGREE (execution_without_call, 2 of this kind): /bin/x was executed while no \
tool call was open. Told by the kernel, not by the agent. See #3, #4.
";

fn bare(body: Body) -> Record {
    Record { session: None, agent: None, turn: None, ..record(body) }
}

#[test]
fn every_kind_is_told_in_one_line() {
    let records: Vec<Record> = every_kind().into_iter().map(bare).collect();
    let lines = story((0..).zip(&records));
    assert_eq!(lines.len(), records.len());
    let told: String = lines
        .iter()
        .map(|l| l.strip_prefix("2026-01-31 23:59:59.123 UTC  ").unwrap().to_owned() + "\n")
        .collect();
    assert_eq!(told, TOLD);
}

/// Whatever a program calls its files, no two names read alike and none ends its own quotation.
#[test]
fn names_of_files_never_read_alike() {
    let long = |c: &str, n: usize| c.repeat(n);
    let names = [
        "a".to_owned(),
        "a\"".into(),
        "a<U+0022>".into(),
        "a<U+003C>U+0022>".into(),
        "<U+202E>".into(),
        "\u{202e}".into(),
        "<U+003C>U+202E>".into(),
        "a\" (1 bytes); created \"b".into(),
        "itself".into(),
        String::new(),
        long("q", 200),
        long("q", 201),
        long("q", 240) + "1",
        long("q", 240) + "2",
        format!("1{}", long("q", 240)),
        format!("{}x{}", long("q", 150), long("q", 90)),
        format!("{}y{}", long("q", 150), long("q", 90)),
        format!("{}\"…\"{}", long("q", 120), long("q", 77)),
    ];
    let mut told = std::collections::BTreeSet::new();
    for name in &names {
        let mut body = every_kind().into_iter().find(|b| b.kind() == "files_changed").unwrap();
        if let Body::FilesChanged { changes, .. } = &mut body {
            changes.truncate(1);
            changes[0].path.clone_from(name);
        }
        let line = line(7, &bare(body));
        let marks = match name.chars().count() {
            0 => 0,
            1..=200 => 2,
            _ => 4,
        };
        assert_eq!(line.matches('"').count(), marks, "{line}");
        assert!(told.insert(line.clone()), "{line}");
    }
}

#[test]
fn the_other_ends_of_a_kind_are_told_too() {
    let tell = |body| line(7, &bare(body)).split_once("#7  ").unwrap().1.to_owned();
    for mut body in every_kind() {
        match &mut body {
            Body::RecorderStarted { torn_bytes, .. } => {
                *torn_bytes = 0;
                assert_eq!(tell(body), "The recorder 0 opened the log with 1 records.");
            }
            Body::SessionOpened { resumed, grants, .. } => {
                *resumed = false;
                grants.clear();
                let want =
                    "The session began, sandboxed by native, policy abababababab, with no grants.";
                assert_eq!(tell(body), want);
            }
            Body::Message { direction, .. } => {
                *direction = model::Direction::Out;
                let want = "A reply went out to terminal, chat me: m00000000001-00000002, 12";
                assert_eq!(tell(body), format!("{want} bytes."));
            }
            Body::ModelResponse { error, status, .. } => {
                (*error, *status) = (Some("overloaded".into()), 529);
                assert_eq!(tell(body), "The model m failed (status 529): overloaded");
            }
            Body::ToolFinished { ok, .. } => {
                *ok = true;
                assert_eq!(tell(body), "It says the tool bash succeeded, 3 bytes: no");
            }
            Body::EgressResult { error, sent_head, .. } => {
                (*error, *sent_head) = (None, 0);
                let want =
                    "The exchange with h:443 ended with status 200 after 3 ms: 1 bytes out, 2 in.";
                assert_eq!(tell(body), want);
            }
            Body::ProbeObserved { held, .. } => {
                *held = false;
                assert!(tell(body).ends_with("THE WALL DID NOT HOLD."));
            }
            _ => {}
        }
    }
}

#[test]
fn that_accounts_were_not_compared_is_told_in_long_and_in_short() {
    let s = |t: &str| t.to_owned();
    let left_out = Body::ObserversDisagree {
        finding: s("not_compared"),
        told_by: s("record"),
        not_by: s("record"),
        what: s("it has more than 3 records: any account of it"),
        count: 1,
        records: Vec::new(),
    };
    let told = "NOT COMPARED: it has more than 3 records: any account of it.";
    assert!(line(0, &record(left_out.clone())).ends_with(told));
    assert_eq!(nanoclaw_audit::story::brief(&left_out).as_deref(), Some(told));
    let counts = [(s("observers_compared"), 0), (s("refused"), 0)].into();
    let closed = record(Body::SessionClosed { reason: s("done"), counts });
    let told = "The session ended: done. Counted: 0 observers_compared.";
    assert!(line(0, &closed).ends_with(told), "{}", line(0, &closed));
}

#[test]
fn a_change_of_what_an_agent_may_do_is_told_with_its_difference() {
    let tell = |before: bool, gained: &[&str]| {
        let digest = || model::Sha256Hex("ab".repeat(32));
        let body = Body::PolicyChanged {
            before_sha256: before.then(digest),
            after_sha256: digest(),
            gained: gained.iter().map(|s| (*s).to_owned()).collect(),
            lost: gained.iter().map(|_| "tool y".to_owned()).collect(),
            left_out: gained.len() as u64,
            unknown: None,
        };
        line(7, &bare(body)).split_once("#7  ").unwrap().1.to_owned()
    };
    let lines = "GAINED: tool <U+202E>x. Lost: tool y. 1 more lines had no room in the record.";
    let changed = "What it may do CHANGED since its last session (policy abababababab, now";
    assert_eq!(tell(true, &["tool \u{202e}x"]), format!("{changed} abababababab). {lines}"));
    let first = "It had no session before (policy none, now abababababab).";
    assert_eq!(tell(false, &["tool \u{202e}x"]), format!("{first} {lines}"));
    assert!(tell(true, &[]).ends_with(
        "abababababab). No grant was gained or lost by it: what it is told changed, or how its \
         grants are written."
    ));
}

#[test]
fn who_did_it_stands_before_it() {
    let whole = record(Body::RecorderStopped { records: 1 });
    assert!(line(0, &whole).contains("  #0  triage (s00000000005-00000006): The"));
    let session = Record { agent: None, ..whole.clone() };
    assert!(line(0, &session).contains("  #0  (s00000000005-00000006): The"));
    let agent = Record { session: None, ..whole };
    assert!(line(0, &agent).contains("  #0  triage: The"));
}

/// What an agent says can fill every field of text; none may bring a line, a colour or a direction
/// of its own.
#[test]
fn control_and_direction_characters_are_visible_in_every_kind() {
    let evil = "\u{1b}[2K\r\n\u{202e}\u{2066}\u{200b}\u{85}\u{feff}\u{e0041}";
    let mut changed = 0;
    for body in every_kind() {
        let mut json = serde_json::to_value(&body).unwrap();
        poison(&mut json, evil);
        let Ok(body) = serde_json::from_value::<Body>(json) else { continue };
        let told = line(1, &bare(body));
        assert!(!told.chars().any(|c| !c.is_ascii_graphic() && evil.contains(c)), "{told:?}");
        assert!(!told.chars().any(char::is_control), "{told:?}");
        changed += usize::from(told.contains("<U+001B>[2K<U+000D><U+000A><U+202E>"));
    }
    assert!(changed >= 16, "{changed}");
}

/// Puts `evil` into every text but the ones that have a form of their own.
fn poison(value: &mut serde_json::Value, evil: &str) {
    match value {
        serde_json::Value::String(text) => *text = format!("{evil}{text}"),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|v| poison(v, evil)),
        serde_json::Value::Object(map) => map
            .iter_mut()
            .filter(|(key, _)| !matches!(key.as_str(), "kind" | "message" | "direction"))
            .for_each(|(_, v)| poison(v, evil)),
        _ => {}
    }
}

#[test]
fn long_text_is_cut_and_says_so() {
    let long = bare(Body::TurnFinished { outcome: "é".repeat(300), duration_ms: 1 });
    assert!(line(0, &long).ends_with(&format!("{} […].", "é".repeat(200))));
}

#[test]
fn harmless_text_stays_as_it_is_and_dates_are_right() {
    let text = "naïve 漢字 שלום 😀";
    assert_eq!(visible(text), text);
    for (ms, want) in [
        (0, "1970-01-01 00:00:00.000 UTC"),
        (951_782_400_000, "2000-02-29 00:00:00.000 UTC"),
        (4_107_542_399_999, "2100-02-28 23:59:59.999 UTC"),
        (4_107_542_400_000, "2100-03-01 00:00:00.000 UTC"),
    ] {
        assert_eq!(utc(ms), want);
    }
}
