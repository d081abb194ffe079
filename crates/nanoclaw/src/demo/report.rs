//! The demo's result: for programs as JSON, for people as one self-contained page.

use serde::Serialize;

/// One forbidden act and what became of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Act {
    pub(super) principle: &'static str,
    pub(super) probe: &'static str,
    pub(super) act: &'static str,
    pub(super) expected: &'static str,
    /// What answered on this machine.
    pub(super) observed: String,
    pub(super) held: bool,
    /// Index of its record in the log.
    pub(super) record: u64,
}

/// The whole result.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// Always `true`: the model of the demo is scripted.
    pub(super) scripted_model: bool,
    pub(super) version: &'static str,
    pub(super) kernel: String,
    pub(super) started_as: String,
    pub(super) work: String,
    pub(super) walls: Vec<model::WallState>,
    pub(super) limits: Vec<model::LimitState>,
    pub(super) acts: Vec<Act>,
    pub(super) log: Log,
    pub(super) milliseconds: u64,
    pub(super) passed: bool,
}

/// The verified head.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Log {
    pub(super) folder: String,
    pub(super) records: u64,
    pub(super) root: String,
    pub(super) vkey: String,
    pub(super) verified: bool,
}

impl Report {
    pub(super) fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    pub(super) fn html(&self) -> String {
        let rows: String = self.acts.iter().map(act_row).collect();
        let walls: String = self.walls.iter().map(|w| pair(&w.wall, &w.state)).collect();
        let limits: String = self
            .limits
            .iter()
            .map(|l| pair(&l.limit, &format!("{} — enforced by {}", l.value, l.enforced_by)))
            .collect();
        let held = self.acts.iter().filter(|a| a.held).count();
        let verdict =
            if self.passed { "Every act was refused" } else { "A forbidden act succeeded" };
        let class = if self.passed { "ok" } else { "bad" };
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>NanoClaw demo</title>\
             <style>{STYLE}</style><main><h1>NanoClaw demo <small>{version}</small></h1>\
             <p class=\"{class} big\">{verdict}: {held} of {all}.</p>\
             <p>The model was <b>scripted</b>; agent, sandbox, gateway and log were the real ones, on \
             {kernel}, started as {who}, in {ms} ms.</p>\
             <h2>What was tried</h2><table><thead><tr><th>Principle<th>Act<th>What refused it<th>Record\
             </tr></thead>{rows}</table>\
             <h2>The walls as measured</h2><dl>{walls}</dl><h2>The limits</h2><dl>{limits}</dl>\
             <h2>The log</h2><p class=\"{log_class}\">{records} records, {verified}.</p>\
             <dl><dt>Root</dt><dd><code>{root}</code></dd><dt>Key</dt><dd><code>{vkey}</code></dd>\
             <dt>Check it</dt><dd><code>nanoclaw audit verify {folder}</code></dd></dl></main></html>\n",
            version = escape(self.version),
            all = self.acts.len(),
            kernel = escape(&self.kernel),
            who = escape(&self.started_as),
            ms = self.milliseconds,
            log_class = if self.log.verified { "ok" } else { "bad" },
            records = self.log.records,
            verified = if self.log.verified { "verified" } else { "NOT verified" },
            root = escape(&self.log.root),
            vkey = escape(&self.log.vkey),
            folder = escape(&self.log.folder),
        )
    }
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;color:#0f172a;background:#f8fafc;margin:0}\
main{max-width:64rem;margin:auto;padding:1.5rem}small{color:#64748b}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #e2e8f0;vertical-align:top}\
code{overflow-wrap:anywhere}.ok{color:#047857}.bad{color:#b91c1c;font-weight:700}.big{font-size:1.3rem}\
dl{display:grid;grid-template-columns:12rem 1fr;gap:.2rem 1rem}dd{margin:0}\
@media(max-width:40rem){dl{grid-template-columns:1fr}}";

fn act_row(act: &Act) -> String {
    let (class, mark) = if act.held { ("ok", "✓") } else { ("bad", "✗") };
    format!(
        "<tr><td>{}<td>{}<td class=\"{class}\">{mark} {}<td>#{}</tr>",
        escape(act.principle),
        escape(act.act),
        escape(&act.observed),
        act.record
    )
}

fn pair(term: &str, text: &str) -> String {
    format!("<dt>{}</dt><dd>{}</dd>", escape(term), escape(text))
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_answers_stays_text() {
        let act = Act {
            principle: "p",
            probe: "x",
            act: "a",
            expected: "e",
            observed: "<script>alert('1')</script>".into(),
            held: false,
            record: 7,
        };
        let row = act_row(&act);
        assert!(!row.contains("<script>"), "{row}");
        assert!(row.contains("class=\"bad\"") && row.contains("#7"), "{row}");
    }
}
