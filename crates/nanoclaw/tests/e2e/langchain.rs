//! An unchanged LangChain script in a virtualenv, inside the walls.
//!
//! The virtualenv is named by `NANOCLAW_VENV`, else it is `test-venv` in the target folder; it
//! must have langchain-openai. The script reads nothing but what the OpenAI client reads itself.

use crate::lab::{Lab, finish};
use crate::secret::{configure, nowhere_below, server, set, unlikely_value};
use std::path::{Path, PathBuf};
use std::process::Command;

both!(a_langchain_script_streams_and_calls_tools);

const SCRIPT: &str = r#"
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b

llm = ChatOpenAI(model="gpt-4o-mini", temperature=0)
pieces = [chunk.content for chunk in llm.stream("NOTOOL one two three")]
print(len([p for p in pieces if p]) > 1, "".join(pieces))

history = [HumanMessage('CALL:multiply {"a": 6, "b": 7}')]
answer = llm.bind_tools([multiply]).invoke(history)
call = answer.tool_calls[0]
print(call["name"], call["args"])
history += [answer, ToolMessage(str(multiply.invoke(call["args"])), tool_call_id=call["id"])]
print(llm.bind_tools([multiply]).invoke(history).content)
"#;

/// The first virtualenv that has a package. Without one: skipped by name outside CI, a failure
/// in CI.
pub(crate) fn virtualenv(module: &str, package: &str) -> Option<PathBuf> {
    let named = std::env::var_os("NANOCLAW_VENV").map(PathBuf::from);
    let target = Path::new(env!("CARGO_BIN_EXE_nanoclaw")).ancestors().skip(1);
    let found = named.into_iter().chain(target.take(4).map(|dir| dir.join("test-venv")));
    let has = |dir: &PathBuf| {
        let mut python = Command::new(dir.join("bin/python"));
        python.args(["-I", "-c", &format!("import {module}")]);
        python.output().is_ok_and(|o| o.status.success())
    };
    let found = found.into_iter().find(has);
    if found.is_none() {
        let why = format!("no virtualenv with {package}: set NANOCLAW_VENV");
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED a test with {package}: {why}");
    }
    found
}

/// The virtualenv where the user of this lab can read it.
pub(crate) fn readable(lab: &Lab, venv: PathBuf) -> PathBuf {
    let mut look = lab.command("test");
    look.arg("-r").arg(venv.join("pyvenv.cfg"));
    if finish(look, b"").status.success() {
        return venv;
    }
    let copy = lab.person().join("test-venv");
    let copied = Command::new("cp").arg("-r").args([&venv, &copy]).status().unwrap();
    assert!(copied.success());
    if let (uid, gid) = lab.ids()
        && Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(&copy).status().is_err()
    {
        panic!("{} cannot be given to the user", copy.display());
    }
    copy
}

fn a_langchain_script_streams_and_calls_tools(lab: &Lab) {
    let Some(venv) = virtualenv("langchain_openai", "langchain-openai") else { return };
    let venv = readable(lab, venv);
    let value = unlikely_value(lab);
    let server = server(&value);
    configure(lab, "openai", &server);
    set(lab, "fake", &value, &[]);
    let work = lab.folder(&lab.person().join("work"));
    lab.file(&work.join("script.py"), SCRIPT);
    let mut command = lab.nanoclaw(["run", "--workspace"]);
    command.arg(&work).arg("--mount").arg(format!("{}:/mnt/venv:ro", venv.display()));
    command.args(["--", "/mnt/venv/bin/python", "script.py"]);
    let ran = finish(command, b"");
    assert_eq!(
        ran.ok(),
        "True MOCK_TEXT[NOTOOL one two three]\nmultiply {'a': 6, 'b': 7}\nMOCK_FINAL[42]\n"
    );
    let seen = server.requests();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.iter().all(|s| s.status == 200), "{seen:?}");
    assert!(seen[0].body.contains("\"stream\":true"), "{}", seen[0].body);
    assert!(!format!("{seen:?}").contains("nanoclaw-placeholder"), "{seen:?}");
    nowhere_below(&lab.home(), &value);
    let story = lab.story();
    assert_eq!(story.matches("at 127.0.0.1 was asked").count(), 3, "{story}");
}
