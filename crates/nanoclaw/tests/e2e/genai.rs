//! Google's own client, unchanged, inside the walls: it finds the gateway and a placeholder in its
//! environment and reads nothing else.

use crate::lab::{Lab, finish};
use crate::langchain::{readable, virtualenv};

both!(googles_client_talks_streams_and_calls_tools);

const SCRIPT: &str = r#"
import os
from google import genai
from google.genai import types

assert os.environ["GEMINI_API_KEY"].startswith("nanoclaw-placeholder-")
client = genai.Client()
print(client.models.generate_content(model="gemini-2.5-flash", contents="hello").text)
stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello")
print("".join(piece.text or "" for piece in stream))

def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    print("multiply", a, b)
    return a * b

tools = types.GenerateContentConfig(tools=[multiply])
answer = client.models.generate_content(model="gemini-2.5-flash", contents="work", config=tools)
print(answer.text)
"#;

const MODEL: &str = r#"schema = 1

[[turn]]
when = "work"
[[turn.step]]
[[turn.step.call]]
tool = "multiply"
arguments = { a = 6, b = 7 }
[[turn.step]]
text = "It says: {{result}}"

[[turn]]
[[turn.step]]
text = "scripted words"
"#;

fn googles_client_talks_streams_and_calls_tools(lab: &Lab) {
    let Some(venv) = virtualenv("google.genai", "google-genai") else { return };
    let venv = readable(lab, venv);
    let script = lab.file(&lab.home().join("model.toml"), MODEL);
    let config = format!(
        "schema = 1\n[models.played]\napi = \"script\"\nscript = \"{}\"\n",
        script.display()
    );
    lab.file(&lab.home().join("nanoclaw.toml"), &config);
    let work = lab.folder(&lab.person().join("work"));
    lab.file(&work.join("script.py"), SCRIPT);
    let mut command = lab.nanoclaw(["run", "--workspace"]);
    command.arg(&work).arg("--mount").arg(format!("{}:/mnt/venv:ro", venv.display()));
    command.args(["--", "/mnt/venv/bin/python", "script.py"]);
    let said = finish(command, b"").ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["scripted words", "scripted words", "multiply 6 7"], "{said}");
    let told = lines[3..].concat();
    assert!(told.starts_with("It says: ") && told.contains("42"), "{said}");
}
