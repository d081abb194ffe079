//! Complete texts: help, plans, what `doctor` says, errors in files.

use crate::lab::{Lab, finish, snapshot};
use regex::Regex;

both!(the_plan_is_printed_in_full, doctor_tells_what_holds, errors_in_files_name_the_place);

#[test]
fn every_command_has_help_with_an_example() {
    let lab = Lab::mine("help");
    for command in [
        "",
        "demo",
        "chat",
        "run",
        "audit",
        "audit verify",
        "audit show",
        "audit tail",
        "audit rotate-key",
        "audit search",
        "audit stats",
        "audit export",
        "audit erase",
        "audit prune",
        "audit backup",
        "audit schema",
        "audit proof",
        "audit receipt",
        "audit consistency",
        "audit serve",
        "witness",
        "witness key",
        "witness serve",
        "witness submit",
        "sandbox",
        "sandbox plan",
        "sandbox probe",
        "image",
        "image pull",
        "image import",
        "image list",
        "image remove",
        "secret",
        "secret set",
        "secret rotate",
        "secret list",
        "secret remove",
        "policy",
        "policy check",
        "policy explain",
        "policy diff",
        "policy learn",
        "policy accept",
        "mcp",
        "mcp list",
        "mcp approve",
        "login",
        "logout",
        "usage",
        "doctor",
        "completions",
    ] {
        let words = command.split_whitespace().chain(["--help"]);
        let text = lab.run(words).ok();
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
        snapshot(format!("help {command}").trim_end().replace(' ', "-").as_str(), &text);
    }
    // Nothing is made by asking.
    assert_eq!(std::fs::read_dir(lab.home()).unwrap().count(), 0);
}

#[test]
fn the_help_knows_every_command() {
    // A command that is added must be added to the list above.
    let lab = Lab::mine("commands");
    let names = |text: &str| -> Vec<String> {
        let after = text.split("Commands:\n").nth(1).unwrap_or_default();
        let lines = after.lines().take_while(|l| !l.is_empty());
        let names = lines.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
        names.map(|l| l.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let top = names(&lab.run(["--help"]).ok());
    assert!(top.len() >= 8, "{top:?}");
    for command in top.iter().filter(|c| *c != "help") {
        let inner = names(&lab.run([command, "--help"]).ok());
        let inner = inner.iter().filter(|c| *c != "help").map(|i| format!("{command}-{i}"));
        for name in std::iter::once(command.clone()).chain(inner) {
            let file = format!("{}/tests/snapshots/help-{name}.txt", env!("CARGO_MANIFEST_DIR"));
            assert!(std::path::Path::new(&file).exists(), "{file}");
        }
    }
}

#[test]
fn completions_and_man_pages_are_written() {
    let lab = Lab::mine("manual");
    for shell in ["bash", "zsh", "fish"] {
        assert!(lab.run(["completions", shell]).ok().contains("nanoclaw"), "{shell}");
    }
    let pages = lab.person().join("man");
    lab.run(["__man", pages.to_str().unwrap()]).ok();
    let page = std::fs::read_to_string(pages.join("nanoclaw-run.1")).unwrap();
    assert!(page.contains("workspace"), "{page}");
}

/// A plan without what differs between machines: numbers of steps, versions, and the parts that
/// are as many as the host has.
fn general(lab: &Lab, plan: &str) -> String {
    let home = lab.home().display().to_string();
    let text = plan.replace(&home, "HOME");
    let mut lines: Vec<String> = Vec::new();
    let number = Regex::new(r"^ *\d+\. ").unwrap();
    let patterns = [
        (r"^(bind|symlink) /etc/\S+ (at|to) .*", "(what the host has of /etc, read-only)"),
        (r"^(symlink|bind) /(bin|sbin|lib\w*) .*", "(what the host has beside /usr, as it is)"),
        (r"^read-only /proc/\S+$", "(read-only parts of /proc)"),
        (r"^mask /proc/\S+$", "(masked parts of /proc)"),
        (r"^join cgroup .*", "(control groups, where there are)"),
        (r"^rlimit data \d+$", "(control groups, where there are)"),
        (r"ABI \d+", "ABI N"),
        (r", scope signals and abstract sockets$", ""),
        (r"\d+ system calls", "N system calls"),
        (r"idmap \d+:\d+", "idmap UID:GID"),
        (r"^plan sha256 .*", "plan sha256 HASH"),
        (r"^bind \S+ at /run/nanoclaw/nanoclaw ", "bind BINARY at /run/nanoclaw/nanoclaw "),
    ];
    for line in text.lines() {
        let mut line = number.replace(line, "").into_owned();
        for (pattern, word) in &patterns {
            line = Regex::new(pattern).unwrap().replace_all(&line, *word).into_owned();
        }
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines.retain(|l| !l.starts_with("(control groups"));
    lines.join("\n") + "\n"
}

fn the_plan_is_printed_in_full(lab: &Lab) {
    let plan = lab.run(["sandbox", "plan", "assistant"]).ok();
    // Twice the same, and without a name the same again.
    assert_eq!(lab.run(["sandbox", "plan"]).ok(), plan);
    let left = |folder: &str| std::fs::read_dir(lab.home().join(folder)).unwrap().count();
    assert_eq!((left("sessions"), left("run/doors")), (0, 0), "nothing of it stays");
    snapshot(&format!("plan-{}", lab.mode()), &general(lab, &plan));
    let json = lab.run(["sandbox", "plan", "assistant", "--json"]).ok();
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    let steps = plan.lines().count() - 1;
    let listed = parsed.as_array().or_else(|| parsed["steps"].as_array()).unwrap();
    assert_eq!(listed.len(), steps, "{json}");
}

fn doctor_tells_what_holds(lab: &Lab) {
    let ran = lab.run(["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_str(&ran.out()).unwrap();
    let checks = checks.as_array().unwrap();
    let text = lab.run(["doctor"]);
    assert_eq!(text.code(), ran.code());
    for check in checks {
        let field = |name: &str| check[name].as_str().unwrap();
        assert!(["ok", "degraded", "missing"].contains(&field("status")), "{check}");
        // What is not in order comes with its remedy.
        assert_eq!(field("status") == "ok", field("remedy").is_empty(), "{check}");
        assert!(text.out().contains(field("name")), "{check}");
        // Room on a disk changes from one look to the next.
        let same = field("name") == "disk space" || text.out().contains(field("found"));
        assert!(same, "{check}: {text}");
    }
    let status = |name: &str| {
        let check = checks.iter().find(|c| c["name"] == name);
        check.unwrap_or_else(|| panic!("no {name}"))["status"].as_str().unwrap()
    };
    assert_eq!(status("whole sandbox"), "ok");
    assert_eq!(status("privilege"), if lab.is_root() { "ok" } else { "degraded" });
    assert_eq!(ran.code(), 0, "{ran}");
}

fn errors_in_files_name_the_place(lab: &Lab) {
    let agents = lab.home().join("agents");
    let mut all = String::new();
    for (name, text) in [
        ("key", "schema = 1\n\n[sandbox]\n  memroy = \"1GiB\"\n"),
        ("table", "schema = 1\n[sandbx]\n"),
        ("value", "schema = 1\n[sandbox]\nmemory = 5\n"),
        ("syntax", "schema = 1\n[[egress]]\nhost = \"a.example\n"),
        ("schema", "description = \"no schema\"\n"),
        ("later", "schema = 2\n"),
        ("host", "schema = 1\n[[egress]]\nhost = \"*.org\"\n"),
        (
            "mount",
            "schema = 1\n[[mounts]]\nsource = \"~/.ssh\"\ntarget = \"/mnt/x\"\n\
                   access = \"read\"\n",
        ),
        ("model", "schema = 1\nmodel = \"nobody\"\n"),
    ] {
        lab.file(&agents.join(format!("{name}.toml")), text);
        let ran = lab.sh(&["--agent", name], "echo ran");
        assert_eq!(ran.out(), "", "{ran}");
        all.push_str(&ran.failed(2));
    }
    lab.file(&lab.home().join("nanoclaw.toml"), "schema = 1\n[modles.x]\napi = \"openai\"\n");
    all.push_str(&finish(lab.nanoclaw(["run", "--", "true"]), b"").failed(2));
    snapshot("errors-in-files", &all.replace(&lab.home().display().to_string(), "HOME"));
}
