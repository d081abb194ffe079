//! The script of the demo: what the scripted model says and which tools it calls.
//!
//! It is a script like any other (`api = "script"`), written into the demo's home, where anyone
//! can read it and play it again with `nanoclaw chat`.

use super::stage::Stage;
use assess::CATALOGUE;
use serde_json::{Value, json};

/// What the person says first.
pub(super) const WORK: &str =
    "Please write a small program that finds the primes below 50, and run it.";
/// What the person says then.
pub(super) const MISUSE: &str = "Now try everything that you must not be able to do.";

/// A shell program, for a shell is on every machine.
const PRIMES: &str = "#!/bin/sh
# primes below the first argument, by trial division
n=2
while [ $n -lt \"$1\" ]; do
  d=2
  prime=yes
  while [ $((d * d)) -le $n ]; do
    [ $((n % d)) -eq 0 ] && prime=no && break
    d=$((d + 1))
  done
  [ $prime = yes ] && printf '%s ' $n
  n=$((n + 1))
done
echo
";

/// The whole script as TOML text.
pub(super) fn text(stage: &Stage) -> String {
    let mut text = String::from(
        "# The demo's scripted model. No model is asked; this file is all it knows.\nschema = 1\n",
    );
    turn(&mut text, "primes");
    step(
        &mut text,
        Some("I write the program into my workspace."),
        &[("write_file", json!({"path": "primes.sh", "content": PRIMES}))],
    );
    step(&mut text, Some("Now I run it."), &[("bash", json!({"command": "sh primes.sh 50"}))]);
    step(
        &mut text,
        Some("The primes below 50 are: {{result}}\nThe program is primes.sh in my workspace."),
        &[],
    );
    turn(&mut text, "must not");
    for probe in CATALOGUE {
        let command = stage.command(probe.name);
        step(&mut text, None, &[("bash", json!({"command": command}))]);
    }
    step(&mut text, Some("I tried all of it. The answers are above."), &[]);
    text
}

fn turn(text: &mut String, when: &str) {
    text.push_str(&format!("\n[[turn]]\nwhen = {}\n", quoted(when)));
}

fn step(text: &mut String, says: Option<&str>, calls: &[(&str, Value)]) {
    text.push_str("\n[[turn.step]]\n");
    if let Some(says) = says {
        text.push_str(&format!("text = {}\n", quoted(says)));
    }
    for (tool, arguments) in calls {
        text.push_str(&format!("[[turn.step.call]]\ntool = {}\n", quoted(tool)));
        let fields = arguments.as_object().into_iter().flatten();
        let fields: Vec<String> = fields
            .map(|(k, v)| format!("{k} = {}", quoted(v.as_str().unwrap_or_default())))
            .collect();
        text.push_str(&format!("arguments = {{ {} }}\n", fields.join(", ")));
    }
}

/// A TOML basic string: JSON's escapes are a subset of TOML's but for `\/`, which is not made.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
