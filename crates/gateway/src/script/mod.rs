//! The scripted model: a TOML file of turns, played in any wire format. Always said aloud: its
//! model name is `script:STEM`.
//!
//! ```text
//! FILE.toml ─► Script (checked whole) ;  request ─► place in the script ─► answer as JSON or SSE
//! ```
//!
//! ```toml
//! schema = 1
//! delay_ms = 0                  # pause before each streamed event
//! chunk_chars = 24              # characters of text per streamed event
//!
//! [[turn]]
//! when = "hello"                # part of the user's text, any case; without it any text fits
//! [[turn.step]]
//! text = "I look around."
//! [[turn.step.call]]            # several calls in one step are parallel calls
//! tool = "bash"
//! arguments = { command = "ls" }
//! [[turn.step]]
//! text = "I found: {{result}}"  # also {{result.1}}, {{result.2}} … and {{user}}
//! ```
//!
//! The turn is the first in the file that fits the last thing the user said; the step is the
//! number of answers given since. Both follow from the request alone, so a resumed conversation
//! goes on where it was. Every step but a turn's last calls tools; the last does not.

mod anthropic;
mod gemini;
mod openai;
mod parse;
mod place;
mod responses;
mod wire;

pub use parse::{Script, ScriptError};
pub(crate) use wire::perform;
