//! Nobody to talk to: what to do about it.

use crate::failure::{Failure, Kind};
use crate::ui;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing to talk to: the three ways, and what works without.
pub(super) fn no_model() -> Failure {
    let ollama = match ollama_models() {
        Some(models) if !models.is_empty() => format!(
            "2. Ollama runs on this machine and has {}. Put into nanoclaw.toml:\n   \
             [models.local]\n   api = \"openai\"\n   base_url = \"http://127.0.0.1:11434\"\n   \
             model = \"{}\"",
            models.join(", "),
            models[0]
        ),
        Some(_) => {
            "2. Ollama runs on this machine but has no model: `ollama pull NAME` first.".into()
        }
        None => {
            "2. A local model: install Ollama (or llama.cpp, vLLM, LM Studio) and name it like\n   \
                 [models.local]\n   api = \"openai\"\n   base_url = \"http://127.0.0.1:11434\"\n   \
                 model = \"NAME\""
                .to_owned()
        }
    };
    Failure::new(Kind::Missing, "no model is configured, so there is nobody to talk to").remedy(
        format!(
            "three ways to get one, in nanoclaw.toml of the home folder (first line `schema = 1`):\n\
             1. A provider: `nanoclaw secret set anthropic`, and\n   \
             [models.claude]\n   api = \"anthropic\"\n   model = \"MODEL\"\n   secret = \"anthropic\"\n\
             {ollama}\n\
             3. A scripted model, for trying things out:\n   \
             [models.demo]\n   api = \"script\"\n   script = \"FILE.toml\"   \
             (its format: docs/scripted-model.md)\n\
             Or see it work at once, without any: `nanoclaw demo`"
        ),
    )
}

/// What Ollama on this machine's loopback offers; `None` when it is not there.
fn ollama_models() -> Option<Vec<String>> {
    let address = SocketAddr::from(([127, 0, 0, 1], 11434));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.write_all(b"GET /api/tags HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    // An answer cut by the time limit is judged by what came.
    drop(stream.take(1 << 20).read_to_string(&mut answer));
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let models = body.get("models")?.as_array()?;
    let name = |m: &serde_json::Value| Some(ui::brief(m.get("name")?.as_str()?, 60));
    Some(models.iter().filter_map(name).collect())
}
