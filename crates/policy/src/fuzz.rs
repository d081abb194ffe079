//! The files people write and the paths agents send, under mutation.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::path::{Path, Pattern};
use crate::url::parse_base_url;
use crate::{AgentFile, Config, Place, PolicyError, request_verdict};
use model::HostName;
use testkit::fuzz;

/// Another matcher, as simple as it is slow: bytes of the decoded segments, by recursion.
mod plain {
    /// One decoded byte: of itself, of an escape, or a star.
    #[derive(Clone, Copy, PartialEq)]
    pub(super) enum Sign {
        Byte(u8),
        Slash,
        Star,
    }

    fn decoded(text: &str) -> Vec<Sign> {
        let (mut out, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((&b, tail)) = rest.split_first() {
            let escaped = b == b'%';
            let value = if escaped {
                u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap()
            } else {
                b
            };
            rest = if escaped { &tail[2..] } else { tail };
            out.push(match (value, escaped) {
                (b'/', true) => Sign::Slash,
                (b'*', false) => Sign::Star,
                (b, _) => Sign::Byte(b),
            });
        }
        out
    }

    fn segments(signs: &[Sign], split: bool) -> Vec<Vec<Sign>> {
        let ends = |s: &Sign| *s == Sign::Byte(b'/') || (split && *s == Sign::Slash);
        signs.split(ends).skip(1).map(<[Sign]>::to_vec).collect()
    }

    fn one(pattern: &[Sign], text: &[Sign]) -> bool {
        match (pattern, text) {
            ([], rest) => rest.is_empty(),
            ([Sign::Star, more @ ..], rest) => (0..=rest.len()).any(|n| one(more, &rest[n..])),
            // In a path a star is a star.
            ([a, more @ ..], [b, rest @ ..]) => {
                let b = if *b == Sign::Star { Sign::Byte(b'*') } else { *b };
                *a == b && one(more, rest)
            }
            _ => false,
        }
    }

    fn all(pattern: &[Vec<Sign>], path: &[Vec<Sign>]) -> bool {
        match (pattern, path) {
            ([], rest) => rest.is_empty(),
            ([many, more @ ..], rest) if *many == [Sign::Star, Sign::Star] => {
                (0..=rest.len()).any(|n| all(more, &rest[n..]))
            }
            ([part, more @ ..], [segment, rest @ ..]) => {
                let empty = segment.is_empty() && !part.is_empty();
                !empty && one(part, segment) && all(more, rest)
            }
            _ => false,
        }
    }

    /// Whether both readings of the path match.
    pub(super) fn surely(pattern: &str, path: &str) -> bool {
        let (pattern, path) = (decoded(pattern), decoded(path));
        [false, true].iter().all(|split| all(&segments(&pattern, *split), &segments(&path, *split)))
    }
}

#[test]
fn fuzz_paths() {
    let seeds: [&[u8]; 6] = [
        b"/repos/**\n/repos/*/x\n/repos/a%2Fb/x",
        b"/**\n/a*b*c\n/aXbYbZc",
        b"/admin\n/%61dmin\n/ADMIN./",
        b"/@*%2f*\n/@types%2F*\n/@types%2Fnode",
        b"/a/**/z\n/a/**/b/z\n/a/b/b/z",
        b"/%2A*\n/%2A\n/*",
    ];
    let words: [&[u8]; 10] =
        [b"/**", b"*", b"%2f", b"%2F", b"/", b"\n", b"%61", b"..", b"%C3%A9", b"."];
    fuzz::with_words("paths", &seeds, &words, |bytes, _| {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.split('\n').map(|line| line.get(..90).unwrap_or(line));
        let mut line = || lines.next().unwrap_or("");
        let (wide, narrow, path) = (line(), line(), line());
        let Some(read) = Path::read(path) else { return 0 };
        // A path is what its own spelling, taken as a pattern, matches.
        let literal = path.replace('*', "%2A");
        assert!(Pattern::read(&literal).is_some_and(|p| p.surely(&read)), "{path}");
        let patterns = [wide, narrow].map(|p| Pattern::read(p).map(|pattern| (p, pattern)));
        let shouted = Path::read(&path.to_ascii_uppercase());
        let mut found = Vec::new();
        for (text, pattern) in patterns.iter().flatten() {
            let surely = pattern.surely(&read);
            // The recursion takes its time over many stars.
            if text.matches('*').count() < 4 {
                assert_eq!(surely, plain::surely(text, path), "{text} {path}");
            }
            assert!(!surely || pattern.maybe(&read), "permitted, and not to be forbidden");
            if let Some(shouted) = shouted.as_ref().filter(|_| surely && path.is_ascii()) {
                assert!(pattern.maybe(shouted), "{text} {path}: case lets it by");
            }
            found.push((surely, pattern.maybe(&read), pattern.literal_bytes().min(9)));
        }
        if let [Some((_, wide)), Some((_, narrow))] = &patterns {
            let includes = wide.includes(narrow);
            assert!(!includes || !narrow.surely(&read) || wide.surely(&read), "{text}");
            found.push((includes, narrow.includes(wide), 0));
        }
        fuzz::outcome(found)
    });
}

const AGENT: &str = r#"schema = 1
description = "Reads my notes"
runtime = "builtin"
model = "claude"
instructions = { file = "x.md" }
[sandbox]
memory = "512MiB"
cpus = 1.5
turn_timeout = "5min"
[[mounts]]
source = "~/notes"
target = "/mnt/notes"
access = "read"
[[egress]]
host = "*.github.com"
methods = ["GET"]
paths = ["/repos/**", "/a/*"]
secret = "github"
inject = { header = "x-key" }
max_upload_per_day = "1MiB"
[[deny]]
host = "api.github.com"
paths = ["/repos/x"]
[[egress]]
host = "git.lan"
port = 8443
tls = "tunnel"
private = true
[[ask]]
egress = "POST api.github.com/repos/*"
by = "owner"
timeout = "5min"
[budget]
usd_per_day = 2.0
[env]
LANG = "C.UTF-8"
[tools]
allow = ["bash", "web_fetch"]
"#;

const CONFIG: &str = r#"schema = 1
default_agent = "triage"
[models.claude]
api = "anthropic"
model = "some-model"
base_url = "https://api.example.org/v1"
secret = "anthropic"
fallbacks = ["local"]
[models.claude.price]
input = 3.0
output = 15.0
cached_input = 0.3
[models.local]
api = "openai"
model = "m"
base_url = "http://127.0.0.1:11434/v1"
[mcp.tracker]
url = "https://mcp.example.org/mcp"
"#;

/// An error says where, within the text, and holds nothing that moves a terminal's cursor.
fn said(error: &PolicyError, text: &str) -> String {
    let shown = error.to_string();
    assert!(shown.len() < 4_096 + text.len(), "{shown}");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    if let Place::File { line, column, .. } = &error.place {
        let lines = text.split('\n').count();
        assert!((1..=lines).contains(line) && *column >= 1, "{shown}");
    }
    format!("{:?}", std::mem::discriminant(&error.problem))
}

/// The order of rules changes no verdict.
fn verdicts(file: &AgentFile) -> String {
    let backwards: Vec<_> = file.egress.iter().rev().cloned().collect();
    let mut all = String::new();
    for (host, path) in [("api.github.com", "/repos/x"), ("x.github.com", "/a/b"), ("git.lan", "/")]
    {
        let host = HostName::parse(host).unwrap();
        let verdict = format!("{:?}", request_verdict(&file.egress, &host, 443, "GET", path));
        let other = format!("{:?}", request_verdict(&backwards, &host, 443, "GET", path));
        assert_eq!(verdict, other);
        all.push_str(verdict.get(..5).unwrap_or(""));
    }
    all
}

#[test]
fn fuzz_settings() {
    AgentFile::parse("a.toml", AGENT).expect("a good seed");
    Config::parse("n.toml", CONFIG).expect("a good seed");
    let allow = "https://api.example.org:8443/v1\n512MiB\n5min\napi.example.org:443";
    let words: [&[u8]; 12] = [
        b"\n",
        b"[[egress]]\n",
        b"[sandbox]\n",
        b"= \"",
        b"\"\"\"",
        b"true",
        b"1e9",
        b"KiB",
        b"\x1b[2J",
        b"\"*.\"",
        b"{ x = 1 }",
        b"schema = 1\n",
    ];
    let seeds = [AGENT.as_bytes(), CONFIG.as_bytes(), allow.as_bytes()];
    fuzz::with_words("settings", &seeds, &words, |bytes, _| {
        let text = String::from_utf8_lossy(bytes);
        let agent = match AgentFile::parse("agents/a.toml", &text) {
            Ok(file) => verdicts(&file),
            Err(e) => said(&e, &text),
        };
        let config = match Config::parse("nanoclaw.toml", &text) {
            Ok(config) => config.models.len().to_string(),
            Err(e) => said(&e, &text),
        };
        for line in text.lines().take(4) {
            for error in [
                crate::parse_allow(line).err(),
                crate::parse_memory(line).err(),
                crate::parse_timeout(line).err(),
            ] {
                let shown = error.map(|e| e.to_string()).unwrap_or_default();
                assert!(!shown.chars().any(char::is_control), "{shown:?}");
            }
            if let Ok(url) = parse_base_url(line) {
                assert_eq!(parse_base_url(&url.text).as_ref(), Ok(&url), "{line}");
            }
        }
        fuzz::outcome((agent, config))
    });
}
