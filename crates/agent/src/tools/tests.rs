//! The tools against real files and processes.

use super::*;
use crate::testing::TempDir;
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

struct Bench {
    dir: TempDir,
    cancel: Cancel,
    jobs: Jobs,
    host: HostTools,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: TempDir::new("tools"),
            cancel: Cancel::default(),
            jobs: Jobs::default(),
            host: HostTools::default(),
        }
    }

    fn run(&self, name: &str, input: Value) -> Outcome {
        let logs = self.dir.path().join("logs");
        let scene = Scene {
            cwd: self.dir.path(),
            logs: &logs,
            cancel: &self.cancel,
            jobs: &self.jobs,
            host: &self.host,
        };
        run(&scene, name, &input)
    }

    fn good(&self, name: &str, input: Value) -> String {
        let outcome = self.run(name, input);
        assert!(outcome.ok, "{}", outcome.text);
        outcome.text
    }

    fn bad(&self, name: &str, input: Value) -> String {
        let outcome = self.run(name, input);
        assert!(!outcome.ok, "{}", outcome.text);
        outcome.text
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn get(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

/// Whether any process of that group is alive (zombies do not count).
fn group_lives(group: &str) -> bool {
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        fields.get(2) == Some(&group) && fields.first() != Some(&"Z")
    })
}

#[test]
fn bash_keeps_the_order_of_both_streams_and_tells_the_exit_code() {
    let bench = Bench::new();
    let text = bench.good("bash", json!({"command": "echo a; echo b >&2; echo c; pwd"}));
    assert_eq!(text, format!("a\nb\nc\n{}\n", bench.dir.path().display()));
    assert_eq!(bench.bad("bash", json!({"command": "printf x; exit 3"})), "x\n[exit code 3]\n");
    assert_eq!(bench.bad("bash", json!({"command": "kill -9 $$"})), "[killed by signal 9]\n");
    assert_eq!(bench.good("bash", json!({"command": "true"})), "[no output]\n");
    assert_eq!(bench.good("bash", json!({"command": "cat"})), "[no output]\n");
}

#[test]
fn bash_caps_its_output_and_counts_all_of_it() {
    let outcome = Bench::new().run("bash", json!({"command": "seq 1 200000"}));
    assert!(outcome.ok && outcome.text.len() < MAX_OUTPUT_BYTES + 100);
    assert!(outcome.text.starts_with("1\n2\n") && outcome.text.ends_with("199999\n200000\n"));
    assert!(outcome.text.contains("bytes left out here"));
    assert_eq!(outcome.bytes, 1_288_895);
}

#[test]
fn bash_kills_the_whole_group_at_its_time_limit() {
    let bench = Bench::new();
    let command = "echo $$; sleep 300 & sleep 300";
    let start = Instant::now();
    let text = bench.bad("bash", json!({"command": command, "timeout_ms": 200}));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(text.contains("longer than 200 ms"), "{text}");
    assert!(!group_lives(text.lines().next().unwrap()));
}

#[test]
fn bash_leaves_nothing_behind_and_is_not_held_up_by_what_escapes() {
    let bench = Bench::new();
    let start = Instant::now();
    let text = bench.good("bash", json!({"command": "sleep 300 & echo $$"}));
    assert!(!group_lives(text.trim()));
    bench.good("bash", json!({"command": "setsid sleep 40 & exec true"}));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn bash_ends_at_once_when_cancelled() {
    let bench = Bench::new();
    let cancel = bench.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        cancel.cancel();
    });
    let start = Instant::now();
    let text = bench.bad("bash", json!({"command": "echo $$; trap '' TERM; sleep 300"}));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(text.contains("cancelled") && !group_lives(text.lines().next().unwrap()), "{text}");
    canceller.join().unwrap();
}

#[test]
fn background_commands_run_on_log_their_end_and_die_with_the_agent() {
    let bench = Bench::new();
    let text = bench.good("bash", json!({"command": "sleep 0.2; echo done", "background": true}));
    let log = text.split("goes to ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !fs::read_to_string(&log).unwrap().contains("done\n[ended: exit status: 0]") {
        assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(&log));
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = bench.good("bash", json!({"command": "sleep 300", "background": true}));
    let group = text.split("process group ").nth(1).unwrap().split(';').next().unwrap();
    assert!(group_lives(group));
    bench.jobs.kill_all();
    std::thread::sleep(Duration::from_millis(200));
    assert!(!group_lives(group));
}

#[test]
fn files_are_read_by_lines_with_numbers() {
    let bench = Bench::new();
    bench.put("a.txt", "one\r\ntwo\nthree");
    assert_eq!(
        bench.good("read_file", json!({"path": "a.txt"})),
        "     1\tone\n     2\ttwo\n     3\tthree\n"
    );
    let part = bench.good("read_file", json!({"path": "a.txt", "offset": 2, "limit": 1}));
    assert_eq!(part, "     2\ttwo\n[more follows; read on with offset 3]\n");
    assert!(
        bench.good("read_file", json!({"path": "a.txt", "offset": 9})).contains("only 3 lines")
    );
    bench.put("empty", "");
    assert!(bench.good("read_file", json!({"path": "empty"})).contains("empty"));
    bench.put("long", format!("{}\nnext\n", "é".repeat(5_000)));
    let long = bench.good("read_file", json!({"path": "long"}));
    assert!(long.contains("[line cut]") && long.contains("     2\tnext"), "{}", long.len());
    bench.put("many", "x\n".repeat(100_000));
    let many = bench.good("read_file", json!({"path": "many", "limit": 99_999}));
    assert!(many.len() < MAX_OUTPUT_BYTES + 3_000 && many.contains("read on with offset"));
}

#[test]
fn what_is_not_a_text_file_is_refused_without_hanging() {
    let bench = Bench::new();
    bench.put("bin", b"ab\0cd");
    assert!(bench.bad("read_file", json!({"path": "bin"})).contains("binary"));
    assert!(bench.bad("read_file", json!({"path": "."})).contains("folder"));
    assert!(bench.bad("read_file", json!({"path": "none"})).contains("No such file"));
    assert!(bench.bad("read_file", json!({"path": "/dev/zero"})).contains("not a regular file"));
    bench.good("bash", json!({"command": "mkfifo pipe"}));
    assert!(bench.bad("read_file", json!({"path": "pipe"})).contains("not a regular file"));
    assert!(bench.bad("read_file", json!({"path": "a\0b"})).contains("NUL"));
}

#[test]
fn files_are_written_whole_with_their_folders_and_modes() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    assert!(
        bench.good("write_file", json!({"path": "a/b/c.txt", "content": "hi"})).contains("created")
    );
    assert_eq!(bench.get("a/b/c.txt"), "hi");
    bench.put("run.sh", "old");
    let script = bench.dir.path().join("run.sh");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("run.sh", bench.dir.path().join("link")).unwrap();
    assert!(
        bench.good("write_file", json!({"path": "link", "content": "new"})).contains("replaced")
    );
    assert_eq!(bench.get("run.sh"), "new");
    assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(fs::symlink_metadata(bench.dir.path().join("link")).unwrap().is_symlink());
    bench.bad("write_file", json!({"path": "a", "content": "x"}));
    let left = fs::read_dir(bench.dir.path()).unwrap().filter_map(Result::ok);
    assert!(left.into_iter().all(|e| !e.file_name().to_string_lossy().contains(".tmp")));
}

#[test]
fn edits_need_one_place_or_say_all() {
    let bench = Bench::new();
    bench.put("f", "a b a");
    let edit = |old: &str, new: &str, all: bool| json!({"path": "f", "old_string": old, "new_string": new, "replace_all": all});
    assert!(bench.bad("edit_file", edit("a", "c", false)).contains("occurs 2 times"));
    assert!(bench.bad("edit_file", edit("z", "c", false)).contains("does not occur"));
    assert!(bench.bad("edit_file", edit("", "c", false)).contains("empty"));
    assert!(bench.bad("edit_file", edit("a", "a", false)).contains("the same"));
    assert_eq!(bench.get("f"), "a b a");
    bench.good("edit_file", edit("b", "B", false));
    bench.good("edit_file", edit("a", "c", true));
    assert_eq!(bench.get("f"), "c B c");
    bench.put("bin", b"\xff\xfe");
    assert!(
        bench
            .bad("edit_file", json!({"path": "bin", "old_string": "x", "new_string": "y"}))
            .contains("UTF-8")
    );
}

#[test]
fn glob_finds_by_name_newest_first() {
    let bench = Bench::new();
    for name in ["old.rs", "src/new.rs", "src/deep/x.rs", ".git/no.rs", "a.txt"] {
        bench.put(name, "");
        std::thread::sleep(Duration::from_millis(12));
    }
    assert_eq!(
        bench.good("glob", json!({"pattern": "*.rs"})),
        "src/deep/x.rs\nsrc/new.rs\nold.rs\n"
    );
    assert_eq!(bench.good("glob", json!({"pattern": "src/*.rs"})), "src/new.rs\n");
    assert_eq!(
        bench.good("glob", json!({"pattern": "*.rs", "path": "src/deep"})),
        "src/deep/x.rs\n"
    );
    assert_eq!(bench.good("glob", json!({"pattern": "none*"})), "no file matches");
    assert!(bench.bad("glob", json!({"pattern": "a{"})).contains("not valid"));
    for number in 0..250 {
        bench.put(&format!("many/{number}.log"), "");
    }
    let many = bench.good("glob", json!({"pattern": "*.log"}));
    assert!(many.lines().count() == 201 && many.contains("only the first 200"));
    std::os::unix::fs::symlink("..", bench.dir.path().join("src/loop")).unwrap();
    assert_eq!(bench.good("glob", json!({"pattern": "old.rs"})), "old.rs\n");
}

#[test]
fn grep_finds_lines() {
    let bench = Bench::new();
    bench.put("a.rs", "fn main() {}\nlet Ä = 1;\n");
    bench.put("b.txt", "fn other\n");
    bench.put("c.bin", b"fn \0 x");
    assert_eq!(
        bench.good("grep", json!({"pattern": "^fn"})),
        "a.rs:1:fn main() {}\nb.txt:1:fn other\n"
    );
    assert_eq!(
        bench.good("grep", json!({"pattern": "FN", "ignore_case": true, "glob": "*.txt"})),
        "b.txt:1:fn other\n"
    );
    assert_eq!(bench.good("grep", json!({"pattern": "Ä", "path": "a.rs"})), "a.rs:2:let Ä = 1;\n");
    assert_eq!(bench.good("grep", json!({"pattern": "zzz"})), "no line matches");
    assert!(bench.bad("grep", json!({"pattern": "("})).contains("not valid"));
    assert!(bench.bad("grep", json!({"pattern": "x", "path": "none"})).contains("does not exist"));
    bench.put("big", format!("{}\n", "y".repeat(900)).repeat(300));
    let big = bench.good("grep", json!({"pattern": "y", "path": "big"}));
    assert!(big.len() < MAX_OUTPUT_BYTES + 500 && big.contains("only the first"), "{}", big.len());
}

#[test]
fn any_arguments_give_an_outcome() {
    let bench = Bench::new();
    let values =
        [json!(null), json!(1), json!(-1.5), json!("x"), json!([]), json!({}), json!(true)];
    for spec in specs() {
        let required = spec.schema["required"].as_array().unwrap();
        assert!(bench.bad(&spec.name, json!({})).contains("missing"));
        for value in &values {
            bench.run(&spec.name, value.clone());
            for wrong in spec.schema["properties"].as_object().unwrap().keys() {
                let mut input = json!({});
                for name in required {
                    input[name.as_str().unwrap()] = json!("x");
                }
                input[wrong] = value.clone();
                bench.run(&spec.name, input);
            }
        }
        assert!(bench.bad(&spec.name, json!({UNPARSED: "{"})).contains("not a JSON object"));
    }
    assert!(bench.bad("rm_rf", json!({})).contains("there are bash, read_file"));
}
