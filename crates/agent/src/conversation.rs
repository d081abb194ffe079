//! The conversation on disk: one JSON line a message.
//!
//! ```text
//! push / undo / compact ─► line (synced where it matters)      load: lines ─► history (mended)
//! ```
//!
//! Invariants:
//! 1. What was pushed survives a crash of the agent; a torn line is passed over at the next start.
//!    What the model said survives a power cut too: it is synced before its tools run. A question
//!    is not, for the host keeps it; nor a tool's result, whose loss is told as "interrupted".
//! 2. After a load every tool call has its result, right behind it, and no result lacks its call.
//! 3. The agent's own tools can write this file: nothing in it is trusted, nothing in it panics.

use crate::rpc::{Frame, read_frame, skip_line};
use crate::wire::{Block, Message, Role};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Longest line read back; one message is bounded far below by the model's and tools' limits.
const MAX_LINE_BYTES: usize = 32 << 20;
/// Most messages held after a load. Compaction keeps real ones far below.
const MAX_MESSAGES: usize = 10_000;

/// The last word of a turn that broke off.
const INTERRUPTED: &str = "[interrupted before an answer]";

/// One line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first: whose conversation this is.
    Session(String),
    /// A message was added.
    Message(Message),
    /// The last message was taken back: the model could not be asked.
    Undo,
    /// All but the last `keep` messages were replaced by this one.
    Compact { with: Message, keep: usize },
}

/// A conversation being kept.
pub(crate) struct Conversation {
    id: String,
    file: File,
    messages: Vec<Message>,
}

impl Conversation {
    /// Starts a new one; a file of an earlier one is renamed, with the time behind its name.
    pub(crate) fn create(path: &Path, id: &str, unix_ms: u128) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if path.exists() {
            fs::rename(path, archive_name(path, unix_ms))?;
        }
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        let mut fresh = Self { id: id.to_owned(), file, messages: Vec::new() };
        fresh.write(&Line::Session(id.to_owned()), false)?;
        Ok(fresh)
    }

    /// Takes an earlier one up; every message ever said goes to `replay` first. `None` if there
    /// is none.
    pub(crate) fn load(path: &Path, replay: &mut dyn FnMut(&Message)) -> io::Result<Option<Self>> {
        if !fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
            return Ok(None);
        }
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        let (id, mut messages) = read_lines(&mut file, replay)?;
        let Some(id) = id else { return Ok(None) };
        repair(&mut messages);
        Ok(Some(Self { id, file, messages }))
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds a message; see invariant 1 for how durably.
    pub(crate) fn push(&mut self, message: Message) -> io::Result<()> {
        let sync = message.role == Role::Assistant;
        let line = Line::Message(message);
        self.write(&line, sync)?;
        if let Line::Message(message) = line {
            self.messages.push(message);
        }
        Ok(())
    }

    /// Takes the last message back.
    pub(crate) fn undo(&mut self) -> io::Result<()> {
        self.messages.pop();
        self.write(&Line::Undo, false)
    }

    /// Puts `with` in the place of all but the last `keep` messages.
    pub(crate) fn compact(&mut self, with: Message, keep: usize) -> io::Result<()> {
        let line = Line::Compact { with, keep };
        self.write(&line, true)?;
        if let Line::Compact { with, keep } = line {
            compact(&mut self.messages, with, keep);
        }
        Ok(())
    }

    /// Shortens results in memory; the file keeps what was really said.
    pub(crate) fn messages_mut(&mut self) -> &mut [Message] {
        &mut self.messages
    }

    /// Makes the messages valid again after a turn that ended in the middle of something.
    pub(crate) fn mend(&mut self) {
        repair(&mut self.messages);
    }

    fn write(&mut self, line: &Line, sync: bool) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let before = self.file.metadata()?.len();
        if let Err(e) = self.file.write_all(&bytes) {
            let _ = self.file.set_len(before); // half a line would spoil the next one as well
            return Err(e);
        }
        if sync { self.file.sync_data() } else { Ok(()) }
    }
}

fn archive_name(path: &Path, unix_ms: u128) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = |n: u32| path.with_file_name(format!("{stem}-{unix_ms}-{n}.jsonl"));
    (0..1_000).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(1_000))
}

fn compact(messages: &mut Vec<Message>, with: Message, keep: usize) {
    let cut = messages.len().saturating_sub(keep);
    messages.splice(..cut, [with]);
}

fn read_lines(
    file: &mut File,
    replay: &mut dyn FnMut(&Message),
) -> io::Result<(Option<String>, Vec<Message>)> {
    let (mut id, mut messages, mut line) = (None, Vec::new(), Vec::new());
    let mut reader = BufReader::new(&*file);
    let mut whole = 0; // bytes up to the end of the last complete line
    loop {
        match read_frame(&mut reader, MAX_LINE_BYTES, &mut line)? {
            Frame::End => break,
            Frame::TooLong => skip_line(&mut reader)?,
            Frame::Line => match serde_json::from_slice(&line) {
                Ok(Line::Session(name)) if id.is_none() && !name.is_empty() => id = Some(name),
                Ok(Line::Message(message)) => {
                    replay(&message);
                    messages.push(message);
                }
                Ok(Line::Undo) => drop(messages.pop()),
                Ok(Line::Compact { with, keep }) => compact(&mut messages, with, keep),
                Ok(Line::Session(_)) | Err(_) => {} // torn or meddled with
            },
        }
        if messages.len() > MAX_MESSAGES {
            messages.drain(..MAX_MESSAGES / 2);
        }
        whole = reader.stream_position()?;
    }
    drop(reader);
    // Only a file that ends in a line end can be appended to.
    if !ends_with_line_end(file, whole)? {
        file.write_all(b"\n")?;
    }
    Ok((id, messages))
}

fn ends_with_line_end(file: &mut File, length: u64) -> io::Result<bool> {
    if length == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    io::Read::read_exact(file, &mut last)?;
    Ok(last == *b"\n")
}

/// Makes any list of messages one that a model accepts: see invariant 2. A turn that broke off
/// after its tools gets a last word; a prompt at the end that was never answered is dropped, for
/// whoever asked it asks it again.
fn repair(messages: &mut Vec<Message>) {
    let mut fixed: Vec<Message> = Vec::with_capacity(messages.len());
    for mut message in messages.drain(..) {
        let open = fixed.last().map(open_calls).unwrap_or_default();
        message.blocks.retain(|block| match (block, message.role) {
            (Block::ToolResult { id, .. }, Role::User) => open.contains(id),
            (Block::ToolUse { .. }, Role::User) | (Block::ToolResult { .. }, _) => false,
            (Block::ToolUse { id, input, .. }, _) => !id.is_empty() && input.is_object(),
            (Block::Text { text }, _) => !text.trim().is_empty(),
        });
        if message.blocks.is_empty() {
            continue;
        }
        let missing = open.into_iter().filter(|id| !answers(&message, id));
        let blocks: Vec<Block> = missing.map(interrupted).collect();
        if message.role == Role::User {
            message.blocks.extend(blocks);
        } else if !blocks.is_empty() {
            fixed.push(Message { role: Role::User, blocks });
        }
        fixed.push(message);
    }
    let open = fixed.last().map(open_calls).unwrap_or_default();
    if !open.is_empty() {
        let blocks = open.into_iter().map(interrupted).collect();
        fixed.push(Message { role: Role::User, blocks });
    }
    match fixed.last() {
        Some(last) if last.has_results() => fixed.push(Message::text(Role::Assistant, INTERRUPTED)),
        Some(last) if last.role == Role::User => drop(fixed.pop()),
        _ => {}
    }
    *messages = fixed;
}

fn open_calls(message: &Message) -> Vec<String> {
    let ids = message.blocks.iter().filter_map(|block| match block {
        Block::ToolUse { id, .. } => Some(id.clone()),
        _ => None,
    });
    ids.collect()
}

fn answers(message: &Message, call: &str) -> bool {
    message.blocks.iter().any(|block| matches!(block, Block::ToolResult { id, .. } if id == call))
}

fn interrupted(id: String) -> Block {
    let text = "error: interrupted; what it did up to then is not known".to_owned();
    Block::ToolResult { id, ok: false, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use serde_json::json;
    use testkit::fuzz;

    fn call(id: &str) -> Message {
        let block = Block::ToolUse { id: id.into(), name: "bash".into(), input: json!({}) };
        Message { role: Role::Assistant, blocks: vec![block] }
    }

    fn result(id: &str) -> Message {
        let block = Block::ToolResult { id: id.into(), ok: true, text: "x".into() };
        Message { role: Role::User, blocks: vec![block] }
    }

    fn is_valid(messages: &[Message]) -> bool {
        let mut open: Vec<String> = Vec::new();
        for message in messages {
            let results: Vec<_> = message
                .blocks
                .iter()
                .filter_map(|b| match b {
                    Block::ToolResult { id, .. } => Some(id.clone()),
                    _ => None,
                })
                .collect();
            if results.len() != open.len() || !open.iter().all(|id| results.contains(id)) {
                return false;
            }
            open = open_calls(message);
        }
        open.is_empty()
    }

    #[test]
    fn what_was_written_comes_back_and_torn_ends_do_not_matter() {
        let dir = TempDir::new("conversation");
        let path = dir.path().join("c.jsonl");
        let mut kept = Conversation::create(&path, "s1", 1).unwrap();
        for message in [Message::text(Role::User, "a"), call("1"), result("1")] {
            kept.push(message).unwrap();
        }
        kept.push(Message::text(Role::Assistant, "b")).unwrap();
        kept.push(Message::text(Role::User, "lost")).unwrap();
        kept.undo().unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut loaded = match Conversation::load(&path, &mut |_| {}).unwrap() {
                Some(loaded) => loaded,
                None => continue,
            };
            assert!(is_valid(loaded.messages()), "cut at {cut}: {:?}", loaded.messages());
            loaded.push(Message::text(Role::Assistant, "after")).unwrap();
            let again = Conversation::load(&path, &mut |_| {}).unwrap().unwrap();
            assert_eq!(again.messages().last(), Some(&Message::text(Role::Assistant, "after")));
        }
        fs::write(&path, &whole).unwrap();
        let loaded = Conversation::load(&path, &mut |_| {}).unwrap().unwrap();
        assert_eq!((loaded.id(), loaded.messages()), ("s1", kept.messages()));
    }

    #[test]
    fn a_new_conversation_archives_the_old_one() {
        let dir = TempDir::new("archive");
        let path = dir.path().join("c.jsonl");
        for id in ["a", "b", "c"] {
            drop(Conversation::create(&path, id, 5).unwrap());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(Conversation::load(&path, &mut |_| {}).unwrap().unwrap().id(), "c");
    }

    #[test]
    fn fuzz_conversation() {
        let dir = TempDir::new("meddled");
        let path = dir.path().join("c.jsonl");
        let mut kept = Conversation::create(&path, "s1", 1).unwrap();
        for message in
            [Message::text(Role::User, "a"), call("1"), result("1"), call("2"), result("2")]
        {
            kept.push(message).unwrap();
        }
        kept.compact(Message::text(Role::User, "sum"), 2).unwrap();
        let seed = fs::read(&path).unwrap();
        fuzz::run("conversation", &[&seed], |bytes, _| {
            fs::write(&path, bytes).unwrap();
            let Some(loaded) = Conversation::load(&path, &mut |_| {}).unwrap() else { return 0 };
            assert!(is_valid(loaded.messages()), "{:?}", loaded.messages());
            let roles = loaded.messages().iter().map(|message| message.has_results());
            fuzz::outcome(roles.collect::<Vec<_>>())
        });
    }

    #[test]
    fn broken_pairs_are_mended() {
        let both = [call("1").blocks, call("2").blocks].concat();
        for broken in [
            vec![result("1")],
            vec![call("1")],
            vec![call("1"), Message::text(Role::User, "x")],
            vec![call("1"), Message::text(Role::Assistant, "x"), result("1")],
            vec![
                Message { role: Role::Assistant, blocks: both },
                result("2"),
                call("3"),
                call("4"),
            ],
        ] {
            let mut messages = broken.clone();
            repair(&mut messages);
            assert!(is_valid(&messages), "{broken:?} became {messages:?}");
        }
    }
}
