//! What people write in files: mistakes are found where they stand.

use crate::lab::{Lab, keyed, server};

const SCRIPT: &str = r#"schema = 1

[[turn]]
when = "work"
[[turn.step]]
text = "I look around."
[[turn.step.call]]
tool = "bash"
arguments = { command = "echo from the script > f; cat f" }
[[turn.step]]
text = "It says: {{result}}"
"#;

#[test]
fn an_unknown_key_in_an_agent_file_is_named_with_place_and_neighbour() {
    let server = server(keyed());
    let lab = Lab::with_model("anthropic", &server);
    lab.agent("assistant", "schema = 1\n\n[sandbox]\nmemmory = \"1GiB\"\n");
    let out = lab.say("NOTOOL hello").expect(2);
    assert!(out.stderr.contains("agents/assistant.toml:4:1: "), "{}", out.stderr);
    assert!(out.stderr.contains("memmory") && out.stderr.contains("\"memory\""), "{}", out.stderr);
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn an_unknown_key_in_nanoclaw_toml_is_named_with_place_and_neighbour() {
    let lab = Lab::new();
    lab.config(
        "[models.local]\napi = \"openai\"\n  base_ur = \"http://127.0.0.1:1\"\nmodel = \"x\"\n",
    );
    let out = lab.say("hello").expect(2);
    assert!(out.stderr.contains("nanoclaw.toml:5:3: "), "{}", out.stderr);
    assert!(out.stderr.contains("base_url"), "{}", out.stderr);
}

#[test]
fn an_agent_that_does_not_exist_is_said_with_those_that_do() {
    let lab = Lab::new();
    lab.agent("triage", "schema = 1\n");
    let out = lab.run(&["chat", "tirage", "-m", "hello"]).expect(3);
    for part in ["there is no agent tirage", "tirage.toml", "assistant, triage"] {
        assert!(out.stderr.contains(part), "{part:?} is not in {}", out.stderr);
    }
}

#[test]
fn a_model_an_agent_names_must_be_there() {
    let server = server(keyed());
    let lab = Lab::with_model("openai", &server);
    lab.agent("assistant", "schema = 1\nmodel = \"locla\"\n");
    let out = lab.say("NOTOOL hello").expect(2);
    assert!(
        out.stderr.contains("assistant.toml:2:") && out.stderr.contains("\"local\""),
        "{out:#?}"
    );
}

#[test]
fn a_scripted_model_says_so_and_drives_the_real_agent() {
    let lab = Lab::new();
    lab.script(SCRIPT);
    let out = lab.say("do the work").expect(0);
    assert_eq!(out.stdout, "I look around.\nIt says: from the script\n", "{out:#?}");
    assert!(out.stderr.contains("The model is SCRIPTED"), "{out:#?}");
    assert!(out.stderr.contains("tour.toml"), "{out:#?}");
    let file = lab.workspaces()[0].join("f");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "from the script\n");
    let asked = lab.records("model_request");
    assert!(asked.iter().all(|r| r["api"] == "script"), "{asked:?}");
    assert_eq!(asked.len(), 2);
}

#[test]
fn a_mistake_in_a_script_is_named_with_its_place() {
    for (text, line, column, word) in [
        ("schema = 1\n\n[[turn]]\n[[turn.step]]\ntexxt = \"hello\"\n", 5, 1, "texxt"),
        ("schema = 1\n[[turn]]\n[[turn.step]]\ntext = \"half\n", 4, 13, ""),
    ] {
        let lab = Lab::new();
        let path = lab.script(text);
        let out = lab.say("hello");
        assert_ne!(out.code(), 0, "{out:#?}");
        let place = format!("{}:{line}:{column}", path.display());
        assert!(out.stderr.contains(&place), "{place} is not in {}", out.stderr);
        assert!(out.stderr.contains(word), "{}", out.stderr);
        assert_eq!(out.stdout, "");
    }
}

#[test]
fn a_script_that_is_not_there_is_said() {
    let lab = Lab::new();
    let path = lab.script(SCRIPT);
    std::fs::remove_file(&path).unwrap();
    let out = lab.say("do the work");
    assert_ne!(out.code(), 0, "{out:#?}");
    assert!(out.stderr.contains(&path.display().to_string()), "{}", out.stderr);
}
