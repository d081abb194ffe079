//! No byte of a secret that the gateway puts in is anywhere but in the gateway.

use crate::hunt::Hunt;
use crate::lab::{Lab, Running, files_below, finish, start, wait_until};
use crate::process::{self, Process};
use crate::site::{PERMITTED, Site};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use testkit::{FakeModel, Options};

both!(
    no_byte_of_a_secret_is_outside_the_gateway,
    the_hunt_finds_a_secret_that_a_server_gives_away_backwards,
    the_hunt_finds_what_is_planted_in_memory_and_files,
    the_hunt_finds_what_is_planted_in_environment_and_arguments,
);

/// In a sandbox: where files may be that no folder of the host shows.
const INSIDE: [&str; 4] = ["tmp", "run", "etc", "dev/shm"];
/// Memory of the smallest process that can be: one that could not be read has less.
const MEMORY_MIN: u64 = 64 << 10;
/// How long a process may go without, on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(10);

/// A value that is nowhere else on the machine, with characters that are written differently in
/// URLs and in base64.
fn unlikely(lab: &Lab, what: &str) -> String {
    format!("test-key-not-real/{what}+{}-{}=", lab.mode(), std::process::id())
}

fn set(lab: &Lab, name: &str, value: &str, flags: &[&str]) {
    let mut command = lab.nanoclaw(["secret", "set", name]);
    command.args(flags);
    finish(command, value.as_bytes()).ok();
}

/// What a sweep found, and whom it could look into.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    pub(crate) found: Vec<String>,
    pub(crate) processes: Vec<Process>,
}

/// Looks into every file of the installation and its user, and into arguments, environment and
/// (but for the gateway's) memory of all its processes.
pub(crate) fn sweep(lab: &Lab, hunts: &[Hunt]) -> Swept {
    let mut swept = Swept { processes: process::of(lab), ..Swept::default() };
    let mut files = files_below(&lab.home());
    files.extend(files_below(&lab.person()));
    for process in &swept.processes {
        let place = process.place();
        files.extend(["cmdline", "environ"].map(|part| place.join(part)));
        files.extend(process.unlinked());
        if process.is_inside() {
            files.extend(INSIDE.iter().flat_map(|dir| files_below(&place.join("root").join(dir))));
        }
    }
    for hunt in hunts {
        let found = |file: &PathBuf| {
            // What has just gone away holds nothing.
            let found = hunt.file(file).ok().flatten()?;
            Some(format!("{found:?} in {}", file.display()))
        };
        swept.found.extend(files.iter().filter_map(found));
        for process in swept.processes.iter().filter(|p| !p.is_gateway()) {
            let found = memory(process, hunt);
            swept.found.extend(found.map(|f| format!("{f} of the memory of {process:?}")));
        }
    }
    swept
}

/// Searches a process's memory, once there is enough of it: one that is just being made or ended
/// has none for a moment.
fn memory(process: &Process, hunt: &Hunt) -> Option<String> {
    let started = Instant::now();
    loop {
        let (found, seen) = hunt.memory(process.pid);
        let gone = !process.place().join("exe").exists();
        if found.is_some() || seen >= MEMORY_MIN || gone {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{process:?}: {seen} bytes of memory");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Uses both secrets both ways, tells so, and stays.
fn script(origin: &str) -> String {
    let ask = "curl -sS \"$OPENAI_BASE_URL/chat/completions\" -H 'content-type: application/json' \
               -H \"authorization: Bearer $OPENAI_API_KEY\" -d '{\"model\": \"any\", \"messages\": \
               [{\"role\": \"user\", \"content\": \"NOTOOL hello\"}]}'";
    format!(
        "curl -sS {origin}/hello\ncurl -sS {origin}/echo | tee echoed\n{ask}\n\
         unset HTTPS_PROXY https_proxy ALL_PROXY all_proxy\n\
         curl -sS {origin}/echo | tee /tmp/echoed\ncurl -sS '{origin}/hello?page=2'\n{STAY}"
    )
}

/// Tells that all is done, and waits.
pub(crate) const STAY: &str = "touch here; while test -e wait; do sleep 0.05; done";

/// Starts `script` with a workspace of the user's, which it returns.
fn started(lab: &Lab, site: &Site, script: &str, input: &str) -> (Running, PathBuf) {
    let work = lab.folder(&lab.person().join("work"));
    lab.file(&work.join("wait"), "");
    let flags = ["--workspace".to_owned(), work.display().to_string()];
    let mut command = site.command(lab, &flags, script);
    let given = lab.home().parent().unwrap().join("input");
    fs::write(&given, input).unwrap();
    command.stdin(fs::File::open(&given).unwrap());
    fs::remove_file(&given).unwrap();
    let running = start(command);
    wait_until("the program is there", || work.join("here").exists());
    (running, work)
}

fn no_byte_of_a_secret_is_outside_the_gateway(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let Some(site) = Site::open(lab) else { return };
    let (bearer, key) = (unlikely(lab, "bearer"), unlikely(lab, "model"));
    let model = Options { require_key: Some(key.clone()), ..Options::default() };
    let model = FakeModel::start(model).unwrap();
    let text = format!(
        "schema = 1\n[models.fake]\napi = \"openai\"\nbase_url = \"{}\"\nmodel = \"fake-model\"\n\
         secret = \"fake\"\n",
        model.base_url()
    );
    lab.file(&lab.home().join("nanoclaw.toml"), &text);
    site.permit(lab, "secret = \"hunted\"\n");
    set(lab, "hunted", &bearer, &["--host", PERMITTED]);
    set(lab, "fake", &key, &[]);
    let hunts = [Hunt::for_value(&bearer), Hunt::for_value(&key)];
    let at_rest = sweep(lab, &hunts);
    assert_eq!(at_rest.found, [""; 0]);

    let (running, work) = started(lab, &site, &script(&site.origin(PERMITTED)), "");
    let during = sweep(lab, &hunts);
    assert_eq!(during.found, [""; 0], "{during:?}");
    for role in ["nanoclaw run", "__spawner", "__recorder", "__gateway", "sh -c", "sleep"] {
        let there = during.processes.iter().any(|p| p.argv.contains(role));
        // What sleeps may just be between two sleeps.
        assert!(there || role == "sleep", "{role} is not among {during:?}");
    }
    fs::remove_file(work.join("wait")).unwrap();
    let ran = running.wait();
    let said = format!("{}{}", ran.ok(), ran.err());
    assert!(said.contains("MOCK_TEXT[NOTOOL hello]"), "{said}");
    assert_eq!(said.matches("hello from the server").count(), 2, "{said}");
    assert_eq!(said.matches("you said Bearer ").count(), 2, "{said}");

    // They were used, each where it belongs.
    let asked = site.asked();
    assert_eq!(asked.len(), 4, "{asked:?}");
    let sent = format!("Bearer {bearer}");
    assert!(asked.iter().all(|a| a.authorization.as_ref() == Some(&sent)), "{asked:?}");
    let seen = model.requests();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].credentials().iter().all(|(_, sent)| sent.ends_with(&key)), "{seen:?}");

    let after = sweep(lab, &hunts);
    assert_eq!(after.found, [""; 0], "{after:?}");
    let story = lab.story();
    for hunt in &hunts {
        assert_eq!(hunt.within(said.as_bytes()), None, "{said}");
        assert_eq!(hunt.within(story.as_bytes()), None, "{story}");
    }
    assert!(story.contains("with the secret hunted"), "{story}");
}

/// The open reference of the test above: no gateway knows every way to write a secret down.
fn the_hunt_finds_a_secret_that_a_server_gives_away_backwards(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let Some(site) = Site::open(lab) else { return };
    let value = unlikely(lab, "bearer");
    site.permit(lab, "secret = \"hunted\"\n");
    set(lab, "hunted", &value, &["--host", PERMITTED]);
    let script = format!(
        "said=$(curl -sS {}/mirror)\necho \"$said\" >said\nexec 5>/tmp/unlinked\n\
         rm /tmp/unlinked\necho \"$said\" >&5\n{STAY}",
        site.origin(PERMITTED)
    );
    let (running, work) = started(lab, &site, &script, "");
    let swept = sweep(lab, &[Hunt::for_value(&value)]);
    for what in ["work/said", "memory of Process", "/fd/5"] {
        assert!(swept.found.iter().any(|f| f.contains(what)), "{what}: {swept:?}");
    }
    fs::remove_file(work.join("wait")).unwrap();
    running.wait().ok();
}

fn the_hunt_finds_what_is_planted_in_memory_and_files(lab: &Lab) {
    let Some(site) = Site::open(lab) else { return };
    site.permit(lab, "");
    let value = unlikely(lab, "planted");
    let reversed: String = value.chars().rev().collect();
    // It keeps what it read the right way round, and writes it in hexadecimal and percent signs.
    let script = "exec python3 -c 'import os, sys, time, urllib.parse\n\
                  kept = [sys.stdin.read()[::-1]]\n\
                  open(\"/tmp/inside\", \"w\").write(kept[0].encode().hex())\n\
                  open(\"/workspace/outside\", \"w\").write(urllib.parse.quote(kept[0], \"\"))\n\
                  open(\"here\", \"w\")\nwhile os.path.exists(\"wait\"): time.sleep(0.05)'";
    let (running, work) = started(lab, &site, script, &reversed);
    let swept = sweep(lab, &[Hunt::for_value(&value)]);
    for what in ["memory of Process", "work/outside", "root/tmp/inside"] {
        assert!(swept.found.iter().any(|f| f.contains(what)), "{what}: {swept:?}");
    }
    fs::remove_file(work.join("wait")).unwrap();
    running.wait().ok();
}

fn the_hunt_finds_what_is_planted_in_environment_and_arguments(lab: &Lab) {
    let Some(site) = Site::open(lab) else { return };
    site.permit(lab, "");
    let value = unlikely(lab, "planted");
    let script = format!("PLANTED={value} exec sh -c '{STAY}' {value}");
    let (running, work) = started(lab, &site, &script, "");
    let swept = sweep(lab, &[Hunt::for_value(&value)]);
    for part in ["/environ", "/cmdline"] {
        assert!(swept.found.iter().any(|f| f.ends_with(part)), "{part}: {swept:?}");
    }
    fs::remove_file(work.join("wait")).unwrap();
    running.wait().ok();
}
