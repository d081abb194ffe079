//! The agent's tool calls against what the kernel, the gateway and the host saw.
//!
//! An agent's call and what the kernel reports of it come on two ways to the log, so the shell of
//! a call can stand before the call. It is known by the command in its arguments; what it executes
//! stands behind it. Before the end of a call is put on record, everything that was reported
//! until then is (`Reports::catch_up`), so nothing of a call stands behind its end.

use super::{Finding, Judged, Known, Line, Observer, Unjudged, brief};
use crate::manifest::shown_path;
use crate::sandboxes::WORKSPACE_INSIDE;
use model::{Body, MAX_BESIDE_BYTES, MountSeen, TurnId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Component, Path, PathBuf};

/// The tool of the built-in agent that executes programs.
const EXECUTES: &str = "bash";
/// Those that write a file.
const WRITES: [&str; 2] = ["write_file", "edit_file"];
/// As much of a command as is compared where either account of it was cut.
const COMPARED_BYTES: usize = 512;
/// Shells of one turn that are held against one call: more that begin alike are not an agent's
/// work but somebody's who wants the comparison to take long.
const CANDIDATES_MAX: usize = 1_000;

/// A tool call as the agent told it.
#[derive(Debug)]
struct Call<'a> {
    index: u64,
    turn: Option<&'a TurnId>,
    tool: &'a str,
    /// None where they were cut, or are no object.
    arguments: Option<Value>,
    /// Where its end stands, and whether it did what was asked.
    end: Option<(u64, bool)>,
}

impl Call<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.arguments.as_ref()?.get(name)?.as_str()
    }

    /// It may execute without end: a program that it left running belongs to it.
    fn stays(&self) -> bool {
        let asked =
            self.arguments.as_ref().map(|a| a.get("background") == Some(&Value::Bool(true)));
        self.end.is_none() || asked.unwrap_or(true)
    }

    fn succeeded(&self) -> bool {
        self.end.is_some_and(|(_, ok)| ok)
    }
}

/// All calls of a session, in order.
pub(super) struct Calls<'a>(Vec<Call<'a>>);

/// An execution in the session's own sandbox.
struct Executed<'a> {
    index: u64,
    turn: Option<&'a TurnId>,
    exec: u64,
    path: &'a str,
    argv: &'a [String],
    whole: bool,
}

impl<'a> Executed<'a> {
    fn all(lines: &'a [Line]) -> Vec<Self> {
        let one = |line: &'a Line| match &line.body {
            Body::ProcessExec { server: None, exec, path, argv, whole, .. } => Some(Self {
                index: line.index,
                turn: line.turn.as_ref(),
                exec: *exec,
                path,
                argv,
                whole: *whole,
            }),
            _ => None,
        };
        lines.iter().filter_map(one).collect()
    }

    /// The command that a shell was given.
    fn command(&self) -> Option<&'a str> {
        match self.argv {
            [_, flag, given, ..] if flag == "-c" => Some(given),
            _ => None,
        }
    }

    /// Whether it is a shell that was given this command; `None` is a command that is not known.
    fn carries_out(&self, command: Option<&str>) -> bool {
        match (self.command(), command) {
            (Some(given), Some(command)) if self.whole => given == command,
            (Some(given), Some(command)) => beginning(given) == beginning(command),
            (given, None) => given.is_some(),
            (None, _) => false,
        }
    }
}

fn beginning(command: &str) -> &[u8] {
    &command.as_bytes()[..command.len().min(COMPARED_BYTES)]
}

/// Executions of shells by turn and by how their commands begin, in order.
type Shells<'a, 'e> = HashMap<(Option<&'a TurnId>, &'e [u8]), VecDeque<&'e Executed<'a>>>;

impl<'a> Calls<'a> {
    pub(super) fn of(lines: &'a [Line]) -> Self {
        let mut all: Vec<Call<'a>> = Vec::new();
        let mut open: HashMap<(Option<&TurnId>, &str), Vec<usize>> = HashMap::new();
        for line in lines {
            let turn = line.turn.as_ref();
            match &line.body {
                Body::ToolCalled { call, tool, arguments, .. } => {
                    open.entry((turn, call)).or_default().push(all.len());
                    // Longer ones were cut, at a character's border.
                    let whole = arguments.len() < MAX_BESIDE_BYTES - 4;
                    let read = whole.then(|| serde_json::from_str(arguments).ok()).flatten();
                    let arguments = read.filter(Value::is_object);
                    all.push(Call { index: line.index, turn, tool, arguments, end: None });
                }
                Body::ToolFinished { call, ok, .. } => {
                    let number = open.get_mut(&(turn, call.as_str())).and_then(Vec::pop);
                    if let Some(one) = number.and_then(|number| all.get_mut(number)) {
                        one.end = Some((line.index, *ok));
                    }
                }
                _ => {}
            }
        }
        Self(all)
    }

    fn executing(&self) -> impl Iterator<Item = &Call<'a>> {
        self.0.iter().filter(|call| call.tool == EXECUTES)
    }

    /// For each call that executes the execution that carries it out, if there is one.
    fn carried_out(&self, all: &[Executed<'a>]) -> BTreeMap<u64, u64> {
        let mut shells: Shells<'a, '_> = HashMap::new();
        for shell in all {
            if let Some(command) = shell.command() {
                shells.entry((shell.turn, beginning(command))).or_default().push_back(shell);
                // For calls whose command is not known.
                shells.entry((shell.turn, b"\0")).or_default().push_back(shell);
            }
        }
        let (mut taken, mut found) = (BTreeSet::new(), BTreeMap::new());
        for call in self.executing() {
            let command = call.text("command");
            let key = (call.turn, command.map_or(&b"\0"[..], beginning));
            let Some(due) = shells.get_mut(&key) else { continue };
            while due.front().is_some_and(|shell| taken.contains(&shell.index)) {
                due.pop_front();
            }
            let fits = |e: &&&Executed<'_>| {
                let behind = call.end.is_some_and(|(end, _)| e.index > end);
                !behind && !taken.contains(&e.index) && e.carries_out(command)
            };
            if let Some(shell) = due.iter().take(CANDIDATES_MAX).find(fits) {
                taken.insert(shell.index);
                found.insert(call.index, shell.index);
            }
        }
        found
    }

    /// Whether the place of executions among the calls can be judged at all.
    fn readable(all: &[Executed<'_>], known: &Known<'_>) -> Result<(), Unjudged> {
        let lost = known.operations.ok_or(Unjudged::NotHere)?.lost;
        let unread = all.iter().filter(|e| e.argv.is_empty()).count();
        let why = if lost > 0 {
            format!("{lost} operations of the sandbox are not on record")
        } else if unread > 0 {
            format!("the arguments of {unread} executions were not seen")
        } else if known.late {
            "what the kernel reported came too late for its place among the calls".to_owned()
        } else {
            return Ok(());
        };
        Err(Unjudged::LeftOut(why))
    }

    /// That it is known what every call asked to be executed: one that is not known could stay, and
    /// would explain whatever comes behind it.
    fn known(&self) -> Result<(), Unjudged> {
        let unread: Vec<u64> =
            self.executing().filter(|c| c.arguments.is_none()).map(|c| c.index).collect();
        let Some(first) = unread.first() else { return Ok(()) };
        let count = unread.len();
        let why = format!("the arguments of {count} calls cannot be read, first those of #{first}");
        Err(Unjudged::LeftOut(why))
    }

    /// Every execution but the agent's own lies within a call that executes.
    pub(super) fn executions(&self, lines: &[Line], known: &Known<'_>) -> Judged {
        let all = Executed::all(lines);
        Self::readable(&all, known)?;
        self.known()?;
        let shells = self.carried_out(&all);
        let mut spans: Vec<(u64, u64)> = self
            .executing()
            .map(|call| {
                let shell = shells.get(&call.index).copied().unwrap_or(call.index);
                let end = call.end.map_or(u64::MAX, |(end, _)| end);
                (call.index.min(shell), if call.stays() { u64::MAX } else { end })
            })
            .collect();
        spans.sort_unstable();
        // How far the calls that began until then reach.
        let mut reach = 0;
        for (_, to) in &mut spans {
            reach = reach.max(*to);
            *to = reach;
        }
        let explained = |e: &Executed<'_>| {
            let begun = spans.partition_point(|(from, _)| *from <= e.index);
            begun.checked_sub(1).is_some_and(|last| spans[last].1 >= e.index)
        };
        let alone = all.iter().skip(1).filter(|e| !explained(e)).map(|e| Finding {
            kind: "execution_without_call",
            told_by: Observer::Kernel,
            not_by: Observer::Agent,
            what: format!(
                "{} was executed (execution {}) while no tool call was open",
                brief(e.path),
                e.exec
            ),
            records: vec![e.index],
        });
        Ok(alone.collect())
    }

    /// Every command that the agent says it ran was executed.
    pub(super) fn commands(&self, lines: &[Line], known: &Known<'_>) -> Judged {
        let all = Executed::all(lines);
        Self::readable(&all, known)?;
        self.known()?;
        let shells = self.carried_out(&all);
        let idle = self.executing().filter(|c| c.succeeded() && !shells.contains_key(&c.index));
        Ok(idle.map(|call| without_effect(call, "executed nothing", Observer::Kernel)).collect())
    }

    /// Every file that the agent says it wrote is in the manifest of its turn. Left out are calls
    /// behind which a command of the same turn may have removed it.
    pub(super) fn files(&self, lines: &[Line]) -> Judged {
        let seen = Seen::of(lines);
        // Until where commands of a turn may have removed what was written.
        let mut busy: BTreeMap<Option<&TurnId>, u64> = BTreeMap::new();
        for call in self.executing() {
            let end = call.end.filter(|_| !call.stays()).map_or(u64::MAX, |(end, _)| end);
            let until = busy.entry(call.turn).or_default();
            *until = end.max(*until);
        }
        let mut judged = 0;
        let mut found = Vec::new();
        for call in self.0.iter().filter(|c| WRITES.contains(&c.tool) && c.succeeded()) {
            if busy.get(&call.turn).is_some_and(|until| *until > call.index) {
                continue;
            }
            let Some(turn) = call.turn.and_then(|turn| seen.get(turn)) else { continue };
            let Some(path) = call.text("path").map(absolute) else { continue };
            let Some(changed) = turn.changed(&path) else { continue };
            judged += 1;
            if !changed {
                found.push(without_effect(call, "changed no file of a mount", Observer::Kernel));
            }
        }
        if judged > 0 { Ok(found) } else { Err(Unjudged::NotHere) }
    }

    /// The host's tools were called as often as the agent says.
    pub(super) fn host_tools(&self, lines: &[Line]) -> Judged {
        let mut called: BTreeMap<(Option<&TurnId>, String), VecDeque<u64>> = BTreeMap::new();
        for line in lines {
            if let Body::HostToolCalled { server, tool, .. } = &line.body {
                let name = if server == model::ToolGrant::OWN {
                    tool.clone()
                } else {
                    format!("{server}__{tool}")
                };
                called.entry((line.turn.as_ref(), name)).or_default().push_back(line.index);
            }
        }
        let own = policy::BUILTIN_TOOLS;
        let mut found = Vec::new();
        for call in self.0.iter().filter(|call| !own.contains(&call.tool)) {
            let known = called.get_mut(&(call.turn, call.tool.to_owned()));
            if known.and_then(VecDeque::pop_front).is_none() && call.succeeded() {
                found.push(without_effect(call, "called no tool of the host", Observer::Gateway));
            }
        }
        for ((_, name), indices) in called {
            found.extend(indices.into_iter().map(|index| Finding {
                kind: "host_tool_without_call",
                told_by: Observer::Gateway,
                not_by: Observer::Agent,
                what: format!("the host's tool {} was called", brief(&name)),
                records: vec![index],
            }));
        }
        Ok(found)
    }

    /// Nothing is let out but in a turn in which the agent called something that can send.
    pub(super) fn egress(&self, lines: &[Line]) -> Judged {
        if super::has_servers(lines) {
            return Err(Unjudged::NotHere);
        }
        self.known()?;
        let sends =
            |call: &&Call<'_>| call.tool == EXECUTES || !policy::BUILTIN_TOOLS.contains(&call.tool);
        let turns: BTreeSet<&TurnId> = self.0.iter().filter(sends).filter_map(|c| c.turn).collect();
        let stays = self.executing().filter(|call| call.stays()).map(|call| call.index).min();
        let mut found = Vec::new();
        for line in lines {
            let Body::EgressIntent { host, port, .. } = &line.body else { continue };
            let in_turn = line.turn.as_ref().is_some_and(|turn| turns.contains(turn));
            if !in_turn && stays.is_none_or(|from| line.index < from) {
                found.push(Finding {
                    kind: "egress_without_call",
                    told_by: Observer::Gateway,
                    not_by: Observer::Agent,
                    what: format!("{}:{port} was reached", brief(host)),
                    records: vec![line.index],
                });
            }
        }
        Ok(found)
    }
}

fn without_effect(call: &Call<'_>, what: &str, not_by: Observer) -> Finding {
    let about = ["command", "path"].iter().find_map(|name| call.text(name)).unwrap_or_default();
    let about = if about.is_empty() { String::new() } else { format!(" ({})", brief(about)) };
    Finding {
        kind: "call_without_effect",
        told_by: Observer::Agent,
        not_by,
        what: format!("the call of {}{about} {what}", brief(call.tool)),
        records: vec![call.index],
    }
}

/// A path as the agent's tools take it, without `.` and `..`.
fn absolute(path: &str) -> PathBuf {
    let mut all = PathBuf::new();
    for part in Path::new(WORKSPACE_INSIDE).join(path).components() {
        match part {
            Component::ParentDir => drop(all.pop()),
            Component::CurDir => {}
            other => all.push(other),
        }
    }
    all
}

/// The manifest of one turn.
#[derive(Default)]
struct Seen<'a> {
    changes: BTreeSet<(&'a str, &'a str)>,
    /// Last parts of the changed paths.
    names: BTreeSet<&'a str>,
    /// Mounts, and whether they were looked at and listed whole.
    mounts: Option<BTreeMap<&'a str, bool>>,
}

impl<'a> Seen<'a> {
    fn of(lines: &'a [Line]) -> BTreeMap<&'a TurnId, Self> {
        let mut all: BTreeMap<&TurnId, Self> = BTreeMap::new();
        for line in lines {
            let Some(turn) = &line.turn else { continue };
            match &line.body {
                Body::FilesChanged { mount, changes, server: None } => {
                    let seen = all.entry(turn).or_default();
                    for change in changes {
                        seen.changes.insert((mount, &change.path));
                        seen.names.extend(change.path.rsplit('/').next());
                    }
                }
                Body::FilesManifest { mounts, server: None, .. } => {
                    let whole = |m: &'a MountSeen| (&*m.mount, m.missed == 0 && m.unlisted == 0);
                    all.entry(turn).or_default().mounts = Some(mounts.iter().map(whole).collect());
                }
                _ => {}
            }
        }
        all
    }

    /// Whether a file of this path was changed; `None` where that was not looked at. A link on the
    /// way can lead to another folder, so a file of the same name anywhere will do.
    fn changed(&self, path: &Path) -> Option<bool> {
        let mounts = self.mounts.as_ref()?;
        let under = mounts.keys().filter(|mount| path.starts_with(mount));
        let mount = under.max_by_key(|mount| mount.len())?;
        if !mounts.values().all(|whole| *whole) {
            return None;
        }
        let name = shown_path(path.file_name()?.as_encoded_bytes());
        let below = path.strip_prefix(mount).ok()?;
        let below = shown_path(below.as_os_str().as_encoded_bytes());
        Some(self.changes.contains(&(mount, &*below)) || self.names.contains(&*name))
    }
}
