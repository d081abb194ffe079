//! Models that are missing, down, busy, wrong or too slow; a log that cannot be written.

use crate::lab::{KEY, Lab, Running, asked, free_port, keyed, marked, server};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use testkit::Options;

const FORMATS: [&str; 2] = ["anthropic", "openai"];

const WITHOUT_OLLAMA: &str = r#"error: no model is configured, so there is nobody to talk to
  help: three ways to get one, in nanoclaw.toml of the home folder (first line `schema = 1`):
        1. A provider: `nanoclaw secret set anthropic`, and
           [models.claude]
           api = "anthropic"
           model = "MODEL"
           secret = "anthropic"
        2. A local model: install Ollama (or llama.cpp, vLLM, LM Studio) and name it like
           [models.local]
           api = "openai"
           base_url = "http://127.0.0.1:11434"
           model = "NAME"
        3. A scripted model, for trying things out:
           [models.demo]
           api = "script"
           script = "FILE.toml"   (its format: docs/scripted-model.md)
        Or see it work at once, without any: `nanoclaw demo`
"#;

/// Ollama's port is fixed, so this is the one test that needs a certain port.
#[test]
fn without_a_model_there_are_three_ways_to_get_one() {
    let lab = Lab::new();
    let Ok(listener) = TcpListener::bind(("127.0.0.1", 11_434)) else {
        let out = lab.say("hello").expect(3);
        assert!(out.stderr.contains("three ways") && out.stdout.is_empty(), "{out:#?}");
        eprintln!("SKIPPED in part: port 11434 is taken, so no Ollama can be imitated");
        return;
    };
    let answers =
        [r#"{"models":[{"name":"llama3.2"},{"name":"evil\u001b[2J"}]}"#, r#"{"models":[]}"#];
    let ollama = std::thread::spawn(move || {
        for body in answers {
            let (mut stream, _) = listener.accept().expect("asked once a run");
            let mut head = [0_u8; 512];
            let length = stream.read(&mut head).expect("a request");
            assert!(head[..length].starts_with(b"GET /api/tags HTTP/1."));
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    let out = lab.say("hello").expect(3);
    assert!(out.stderr.contains("2. Ollama runs on this machine and has llama3.2"), "{out:#?}");
    assert!(out.stderr.contains("model = \"llama3.2\""), "{out:#?}");
    assert!(!out.stderr.contains('\x1b'), "{out:#?}");
    let out = lab.say("hello").expect(3);
    assert!(out.stderr.contains("has no model: `ollama pull NAME` first"), "{out:#?}");
    ollama.join().expect("both were asked");
    let out = lab.say("hello").expect(3);
    assert_eq!(out.stderr, WITHOUT_OLLAMA);
    assert_eq!(out.stdout, "");
}

#[test]
fn a_message_outlives_a_server_that_is_down_and_is_answered_first() {
    for api in FORMATS {
        let port = free_port();
        let lab = Lab::new();
        lab.model(api, &format!("http://127.0.0.1:{port}"));
        let out = lab.say("NOTOOL the first").expect(1);
        assert_eq!(out.stdout, "", "{api}");
        let kept = "Your message is kept: the next `nanoclaw chat` answers it first";
        for part in ["cannot be reached", "[models.local]", kept] {
            assert!(out.stderr.contains(part), "{api}: {part:?} is not in {}", out.stderr);
        }
        assert!(!out.stderr.contains("trying again in"), "{api}: nobody does: {}", out.stderr);
        // At once, while the message still waits for its retry.
        let server = server(Options { port, ..keyed() });
        let out = lab.say("NOTOOL the second").expect(0);
        // Standard output is for the answer to this message alone.
        assert_eq!(out.stdout, "MOCK_TEXT[NOTOOL the second]\n", "{api}");
        let heading = "An earlier message is answered first: NOTOOL the first";
        for part in [heading, "MOCK_TEXT[NOTOOL the first]\n", "Now yours:"] {
            assert!(out.stderr.contains(part), "{api}: {part:?} is not in {}", out.stderr);
        }
        let last = asked(&server).last().unwrap()["messages"].to_string();
        assert_eq!(last.matches("NOTOOL the first").count(), 2, "{api}: once asked, once echoed");
        // Nothing is left to answer.
        assert_eq!(lab.say("NOTOOL third").expect(0).stdout, "MOCK_TEXT[NOTOOL third]\n", "{api}");
    }
}

#[test]
fn a_refused_key_names_the_secret_and_the_remedy() {
    for api in FORMATS {
        let server = server(Options { require_key: Some("test-key-other".into()), ..keyed() });
        let lab = Lab::with_model(api, &server);
        let out = lab.say("NOTOOL hello").expect(1);
        for part in ["key", "local", "401", "`nanoclaw secret set local`"] {
            assert!(out.stderr.contains(part), "{api}: {part:?} is not in {}", out.stderr);
        }
        assert!(!out.stderr.contains(KEY), "{api}");
        assert_eq!(server.requests().len(), 1, "{api}: a refused key is not tried again");
        let told = lab.run(&["audit", "show", "--all", "--json"]).expect(0).stdout;
        assert!(!told.contains(KEY), "{api}");
    }
}

#[test]
fn a_missing_key_is_said_before_anything_is_sent() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.run(&["secret", "remove", "local"]).expect(0);
    let out = lab.say("NOTOOL hello").expect(1);
    assert!(out.stderr.contains("`nanoclaw secret set local`"), "{}", out.stderr);
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_busy_server_is_asked_again_when_it_said_so() {
    for api in FORMATS {
        let busy =
            Options { fail_status: Some(429), fail_first: 2, retry_after: Some(1), ..keyed() };
        let server = server(busy);
        let lab = Lab::with_model(api, &server);
        let out = lab.say("NOTOOL hello").expect(0);
        assert_eq!(out.stdout, "MOCK_TEXT[NOTOOL hello]\n", "{api}");
        assert!(out.took >= Duration::from_secs(2), "{api}: it waited as asked: {:?}", out.took);
        let statuses: Vec<u16> = server.requests().iter().map(|r| r.status).collect();
        assert_eq!(statuses, [429, 429, 200], "{api}");
    }
}

#[test]
fn a_server_that_fails_for_a_while_is_ridden_out_and_one_that_fails_for_good_is_named() {
    for api in FORMATS {
        let short = server(Options { fail_status: Some(500), fail_first: 2, ..keyed() });
        let out = Lab::with_model(api, &short).say("NOTOOL hello").expect(0);
        assert_eq!(out.stdout, "MOCK_TEXT[NOTOOL hello]\n", "{api}");

        let long = server(Options { fail_status: Some(500), fail_first: usize::MAX, ..keyed() });
        let out = Lab::with_model(api, &long).say("NOTOOL hello").expect(1);
        for part in ["127.0.0.1", "500", "attempts", "Your message is kept"] {
            assert!(out.stderr.contains(part), "{api}: {part:?} is not in {}", out.stderr);
        }
        let tries = long.requests().len();
        assert!((2..=8).contains(&tries), "{api}: {tries} tries");
    }
}

#[test]
fn nonsense_and_answers_cut_short_become_sentences() {
    for api in FORMATS {
        let nonsense = server(Options { garbage: true, ..keyed() });
        let out = Lab::with_model(api, &nonsense).say("NOTOOL hello").expect(1);
        assert!(out.stderr.contains("model"), "{api}: {}", out.stderr);
        assert!(!out.stderr.contains("panicked") && !out.stderr.contains("<html>"), "{api}");

        let cut = server(Options { drop_mid_stream: true, ..keyed() });
        let lab = Lab::with_model(api, &cut);
        let out = lab.say("NOTOOL hello, this is a rather long sentence to be cut").expect(1);
        assert!(out.stderr.contains("broke off"), "{api}: {}", out.stderr);
        assert!(!out.stdout.contains("to be cut]"), "{api}: {}", out.stdout);
        // The half answer is in no history; the log is whole.
        lab.verify();
    }
}

#[test]
fn a_turn_beyond_its_limit_is_stopped_with_a_sentence() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.agent("assistant", "schema = 1\n\n[sandbox]\nturn_timeout = \"2s\"\n");
    let out = lab.say("RUN: sleep 47.1234").expect(1);
    assert!(out.stderr.contains("its limit of 2s"), "{}", out.stderr);
    assert!(out.took < Duration::from_secs(10), "{:?}", out.took);
    assert_eq!(lab.records("turn_finished")[0]["outcome"], "failed");
    lab.assert_nobody_left();
    // The next turn is not troubled by it.
    assert_eq!(lab.say("NOTOOL next").expect(0).stdout, "MOCK_TEXT[NOTOOL next]\n");
}

#[test]
fn with_a_log_that_cannot_be_written_nothing_is_asked() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.say("NOTOOL one").expect(0);
    lab.assert_nobody_left();
    let before = server.requests().len();
    let wal = lab.home().join("audit/wal");
    let aside = lab.home().join("audit/aside");
    std::fs::rename(&wal, &aside).unwrap();
    // A file where the folder should be stops root, too, for whom modes count for nothing.
    std::fs::write(&wal, "not a folder").unwrap();
    let out = lab.say("NOTOOL two").expect(5);
    assert!(out.stderr.contains("audit log") && out.stderr.contains("help:"), "{}", out.stderr);
    assert_eq!(out.stdout, "");
    assert_eq!(server.requests().len(), before, "nothing goes unrecorded");
    std::fs::remove_file(&wal).unwrap();
    std::fs::rename(&aside, &wal).unwrap();
    assert_eq!(
        lab.say("NOTOOL three").expect(0).stdout.lines().last(),
        Some("MOCK_TEXT[NOTOOL three]")
    );
    lab.verify();
}

#[test]
fn a_log_whose_disk_is_full_stops_the_turn_before_the_model_is_asked() {
    // RLIMIT_FSIZE stands in for the full disk: a write beyond it fails in the recorder, which
    // inherits the limit, as it would with ENOSPC.
    if testkit::need("prlimit").is_none() {
        return;
    }
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.say("NOTOOL one").expect(0);
    lab.assert_nobody_left();
    let wal = std::fs::read_dir(lab.home().join("audit/wal")).unwrap();
    let written = wal.map(|e| e.unwrap().metadata().unwrap().len()).max().unwrap();
    let before = server.requests().len();
    let mut command = std::process::Command::new("prlimit");
    lab.surround(&mut command);
    command.arg(format!("--fsize={}", written + 300)).arg(crate::lab::BINARY);
    command.arg("--home").arg(lab.home()).args(["chat", "-m", "NOTOOL two"]);
    let out = Running::start(command, b"").wait();
    assert_ne!(out.code(), 0, "{out:#?}");
    assert_eq!(out.stdout, "", "{out:#?}");
    assert_eq!(server.requests().len(), before, "nothing goes unrecorded");
    lab.assert_nobody_left();
    // With room again the log is whole and the message, if it was taken, is answered.
    let out = lab.say("NOTOOL three").expect(0);
    assert_eq!(out.stdout.lines().last(), Some("MOCK_TEXT[NOTOOL three]"), "{out:#?}");
    lab.verify();
}

#[test]
fn a_home_that_others_may_write_is_refused() {
    let lab = Lab::new();
    std::fs::set_permissions(lab.home(), PermissionsExt::from_mode(0o775)).unwrap();
    let out = lab.say("hello").expect(4);
    assert!(out.stderr.contains("chmod 700"), "{}", out.stderr);
}

#[test]
fn a_home_too_deep_for_sockets_is_refused_with_its_limit() {
    let lab = Lab::new();
    let deep = lab.path(&"d".repeat(80)).display().to_string();
    let mut command = std::process::Command::new(crate::lab::BINARY);
    lab.surround(&mut command);
    command.args(["--home", &deep, "chat", "-m", "hello"]);
    let out = Running::start(command, b"").wait().expect(2);
    assert!(out.stderr.contains("too long") && out.stderr.contains("--home"), "{}", out.stderr);
    assert!(!std::path::Path::new(&deep).exists());
}

#[test]
fn an_agent_that_dies_is_reported_and_the_next_message_gets_a_new_one() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    // A tool may end the agent that runs it; it has the same uid inside.
    let out = lab.say("RUN: kill -9 $PPID; sleep 5").expect(1);
    assert!(out.stderr.contains("The agent failed"), "{out:#?}");
    assert!(out.took < Duration::from_secs(10), "{:?}", out.took);
    lab.assert_nobody_left();
    let stopped = &lab.records("sandbox_stopped")[0]["outcome"];
    assert!(stopped.as_str().is_some_and(|o| !o.contains("status 0")), "{stopped}");
    assert_eq!(lab.say("NOTOOL next").expect(0).stdout, "MOCK_TEXT[NOTOOL next]\n");
    lab.verify();
}

#[test]
fn a_recorder_that_dies_under_a_turn_ends_it_with_a_word() {
    for text in ["NOTOOL unseen", "RUN: echo unseen; sleep 2"] {
        let server = server(Options { delay: Duration::from_millis(800), ..keyed() });
        let lab = Lab::with_model("anthropic", &server);
        let chat = Running::start(lab.command(&["chat", "-m", text]), b"");
        assert!(server.wait_for(1, Duration::from_secs(10)), "the model was asked");
        let recorder = marked("__recorder").into_iter().find(|p| p.contains(&lab.mark()));
        let recorder = recorder.expect("the recorder of this home");
        let pid = recorder.split(':').next().and_then(|p| p.parse().ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), Signal::KILL).expect("it is there");
        let out = chat.wait().expect(1);
        assert!(out.took < Duration::from_secs(15), "{:?}", out.took);
        assert!(!out.stdout.contains("MOCK_FINAL"), "{out:#?}");
        assert!(out.stderr.contains("recorder is gone"), "{out:#?}");
        assert_eq!(server.requests().len(), 1, "nothing more goes out unrecorded");
        lab.assert_nobody_left();
        let out = lab.say("NOTOOL next").expect(0);
        assert_eq!(out.stdout.lines().last(), Some("MOCK_TEXT[NOTOOL next]"), "{out:#?}");
        lab.verify();
    }
}

#[test]
fn a_sandbox_that_cannot_be_had_closes_its_session_with_the_reason() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    // A folder with a socket of the host in it is granted to nobody, which only the start sees.
    let granted = lab.path("u/granted");
    std::fs::create_dir(&granted).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(granted.join("s.sock")).unwrap();
    let mount =
        "[[mounts]]\nsource = \"~/granted\"\ntarget = \"/mnt/granted\"\naccess = \"read\"\n";
    lab.agent("assistant", &format!("schema = 1\n\n{mount}"));
    let out = lab.say("NOTOOL hello").expect(1);
    assert!(out.stderr.contains("socket"), "{out:#?}");
    let opened = lab.records("session_opened").len();
    let closed = lab.records("session_closed");
    assert!(opened > 0 && closed.len() == opened, "{opened} opened, closed: {closed:#?}");
    assert!(closed[0]["reason"].as_str().unwrap().starts_with("not started: "), "{closed:#?}");
}
