//! A session told in short.

use crate::ui;
use model::{Body, Direction, SessionId};
use std::collections::BTreeSet;

/// Hosts that are named in the last line.
const HOSTS_NAMED: usize = 5;

/// A story under way: what repeats itself is said once, with its number.
#[derive(Default)]
pub(super) struct Telling {
    pub(super) records: u64,
    pub(super) left_out: u64,
    sum: Sum,
    /// The last line, what it says, and how often it came.
    last: Option<(String, String, u64)>,
}

impl Telling {
    pub(super) fn record(&mut self, index: u64, record: &model::Record, id: &SessionId) {
        if self.records == 0 {
            let agent = record.agent.as_ref().map_or("?", model::AgentName::as_str);
            let day = audit::story::utc(record.time_ms);
            let day = day.split(' ').next().unwrap_or_default();
            ui::line(format!("Session {id} of agent {agent}, {day} (times are UTC)"));
        }
        self.records += 1;
        self.sum.take(&record.body);
        let Some(sentence) = audit::story::brief(&record.body) else {
            self.left_out += 1;
            return;
        };
        if let Some((_, said, times)) = &mut self.last
            && *said == sentence
        {
            *times += 1;
            return;
        }
        self.flush();
        let time = audit::story::utc(record.time_ms);
        let time = time.split([' ', '.']).nth(1).unwrap_or_default();
        self.last = Some((format!("{time}  #{index}  {sentence}"), sentence, 1));
    }

    pub(super) fn flush(&mut self) {
        if let Some((line, _, times)) = self.last.take() {
            let often = if times > 1 { format!("  ({times} times)") } else { String::new() };
            ui::line(ui::harmless(&format!("{line}{often}")));
        }
    }

    /// The last line: who asked, what it did, what it was refused, what it said, in numbers.
    pub(super) fn sum_up(&self) {
        if self.records > 0 {
            ui::line(ui::harmless(&self.sum.words()));
        }
    }
}

/// What a session comes to.
#[derive(Default)]
struct Sum {
    asked: u64,
    said: u64,
    tools: u64,
    executed: u64,
    /// It ran at least once where nobody watches what is executed.
    unwatched: bool,
    let_through: BTreeSet<String>,
    refused: u64,
    unrecorded: u64,
}

impl Sum {
    fn take(&mut self, body: &Body) {
        match body {
            Body::SessionOpened { grants, .. } => {
                self.unwatched |= grants.iter().any(|grant| policy::says_unwitnessed(grant));
            }
            Body::Message { direction: Direction::In, .. } => self.asked += 1,
            Body::Message { direction: Direction::Out, .. } => self.said += 1,
            Body::ToolCalled { .. } | Body::HostToolCalled { .. } => self.tools += 1,
            Body::ProcessExec { .. } => self.executed += 1,
            Body::EgressIntent { host, .. } | Body::ModelRequest { host, .. } => {
                self.let_through.insert(host.clone());
            }
            Body::EgressRefused { .. } | Body::ConnectRefused { .. } => self.refused += 1,
            Body::WitnessGap { lost, .. } | Body::RecordGap { lost, .. } => self.unrecorded += lost,
            _ => {}
        }
    }

    fn words(&self) -> String {
        let hosts: Vec<String> =
            self.let_through.iter().take(HOSTS_NAMED).map(|h| audit::story::visible(h)).collect();
        let more = self.let_through.len().saturating_sub(HOSTS_NAMED);
        let hosts = match (hosts.is_empty(), more) {
            (true, _) => "nowhere".to_owned(),
            (false, 0) => hosts.join(", "),
            (false, more) => format!("{} and {more} more hosts", hosts.join(", ")),
        };
        let gap = match self.unrecorded {
            0 => String::new(),
            n => format!(" NOT ON RECORD: {n} operations."),
        };
        let executed = match (self.unwatched, self.executed) {
            (false, n) => format!("{n} programs executed"),
            (true, 0) => "what was executed was NOT WATCHED (witness = \"off\")".to_owned(),
            (true, n) => {
                format!("{n} programs executed, and at times NOT WATCHED (witness = \"off\")")
            }
        };
        format!(
            "In short: {} messages in, {} replies; {} tools used, {executed}; let out to {hosts}; \
             REFUSED {} times.{gap}",
            self.asked, self.said, self.tools, self.refused
        )
    }
}
