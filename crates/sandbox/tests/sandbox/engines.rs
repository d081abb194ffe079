//! Container engines that misbehave: each is refused with what to do, and nothing is left.

use crate::Test;
use crate::lab::Lab;
use model::{Backend, EngineChoice, SandboxSpec};
use nanoclaw_sandbox::{
    EngineOptions, Spawner, SpawnerOptions, StartError, StartErrorKind as Kind, Stdio,
};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use testkit::{EngineAnswer, EngineCall, FakeEngine, good_info, good_version};

pub(crate) const TESTS: &[Test] = &[
    ("an_absent_engine_is_refused_with_what_to_do", absent),
    ("engines_that_cannot_keep_the_walls_are_refused", unfit),
    ("broken_answers_are_refused_and_never_waited_for", broken),
    ("an_engine_that_hangs_is_given_up", hangs),
    ("an_engine_that_disappears_leaves_nothing_here", disappears),
    ("what_an_engine_failed_to_start_is_removed", failed_start),
    ("an_engine_that_builds_no_walls_is_found_out", liar),
    ("only_images_that_are_there_and_write_nothing_are_used", images),
    ("containers_of_dead_processes_are_removed_and_no_others", orphans),
];

/// The folder that containers are shown files from; short, for a socket's address in it is bounded.
fn folder(lab: &Lab) -> PathBuf {
    lab.dir.join("e")
}

fn spawner(lab: &Lab, socket: PathBuf) -> Spawner {
    let engines = EngineOptions { docker: Some(socket), ..EngineOptions::of(folder(lab)) };
    let private = vec![lab.dir.join("state")];
    Spawner::launch(SpawnerOptions { private, engines, ..SpawnerOptions::default() }).unwrap()
}

fn spec(lab: &Lab, choice: EngineChoice) -> SandboxSpec {
    SandboxSpec { backend: Backend::Docker(choice), ..lab.sh("true") }
}

fn engine(
    lab: &Lab,
    name: &str,
    behaviour: impl Fn(&EngineCall) -> Option<EngineAnswer> + Send + Sync + 'static,
) -> FakeEngine {
    let dir = lab.dir.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let program = std::env::current_exe().unwrap();
    FakeEngine::start(&dir, Some(program), behaviour).unwrap()
}

fn refused_as(lab: &Lab, engine: &FakeEngine, choice: EngineChoice) -> StartError {
    let spawner = spawner(lab, engine.socket().to_owned());
    let refused = spawner.prepare(&spec(lab, choice), Stdio::null().unwrap());
    drop(spawner);
    let left = std::fs::read_dir(folder(lab)).map_or(0, Iterator::count);
    assert_eq!(left, 0, "its folder is left");
    match refused {
        Ok(p) => panic!("it was not refused: {:?}", p.report().walls),
        Err(e) => e,
    }
}

fn refused(lab: &Lab, engine: &FakeEngine) -> StartError {
    refused_as(lab, engine, EngineChoice::default())
}

fn absent(lab: &Lab) {
    let spawner = spawner(lab, lab.dir.join("nobody.sock"));
    let error = spawner.prepare(&spec(lab, EngineChoice::default()), Stdio::null().unwrap());
    let error = error.unwrap_err();
    assert_eq!(error.kind, Kind::Engine);
    assert!(error.cause.contains("nobody.sock"), "{error}");
    assert!(error.remedy.contains("DOCKER_HOST"), "{error}");
    // The native backend does not mind.
    lab.run(&lab.sh("true")).ok();
}

fn unfit(lab: &Lab) {
    type Change = fn(&mut serde_json::Value);
    let old: Change = |v| v["ApiVersion"] = json!("1.40");
    let new: Change = |v| {
        v["ApiVersion"] = json!("1.99");
        v["MinAPIVersion"] = json!("1.90");
    };
    for (number, change) in [old, new].into_iter().enumerate() {
        let engine = engine(lab, &format!("version{number}"), move |call| {
            let mut version = good_version();
            change(&mut version);
            call.is("GET", "/version").then_some(EngineAnswer::Json(200, version))
        });
        let error = refused(lab, &engine);
        assert!(error.cause.contains("API version"), "{error}");
        assert!(error.remedy.contains("Docker 20.10"), "{error}");
    }
    let desktop: Change = |i| i["OperatingSystem"] = json!("Docker Desktop");
    let elsewhere: Change = |i| i["KernelVersion"] = json!("6.6.0-linuxkit");
    let limitless: Change = |i| i["MemoryLimit"] = json!(false);
    let rootless: Change = |i| {
        i["SecurityOptions"] = json!(["name=rootless"]);
        i["CgroupVersion"] = json!("1");
    };
    for (number, (kind, part, change)) in [
        (Kind::Engine, "Docker Desktop", desktop),
        (Kind::Engine, "another kernel", elsewhere),
        (Kind::Limit, "cannot limit", limitless),
        (Kind::Limit, "cannot limit", rootless),
    ]
    .into_iter()
    .enumerate()
    {
        let engine = engine(lab, &format!("info{number}"), move |call| {
            let mut info = good_info();
            change(&mut info);
            call.is("GET", "/info").then_some(EngineAnswer::Json(200, info))
        });
        let error = refused(lab, &engine);
        assert_eq!(error.kind, kind);
        assert!(error.cause.contains(part) && error.remedy.contains("native"), "{error}");
        assert!(!engine.calls().iter().any(|c| c.method == "POST"), "something was made");
    }
    let runtime = EngineChoice { runtime: Some("runsc".into()), image: None };
    let error = refused_as(lab, &engine(lab, "runtime", |_| None), runtime);
    assert!(error.cause.contains("knows no runtime runsc; it has runc"), "{error}");
}

fn broken(lab: &Lab) {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"ApiVersion\":";
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(9 << 20));
    let answers = [
        ("cut", EngineAnswer::Raw(cut.into())),
        ("endless", EngineAnswer::Raw(endless.into_bytes())),
        ("no HTTP", EngineAnswer::Raw(b"\x00\x01\x02 what\r\n\r\n".to_vec())),
        ("nothing", EngineAnswer::HangUp),
        ("an error", EngineAnswer::Json(500, json!({ "message": "it\u{1b}[2J burns" }))),
        ("other JSON", EngineAnswer::Json(200, json!(["who", "knows"]))),
    ];
    let places = [
        ("GET", "/version"),
        ("GET", "/info"),
        ("GET", "/images/json"),
        ("POST", "/containers/create"),
    ];
    for (number, (method, path)) in places.into_iter().enumerate() {
        for (what, answer) in &answers {
            let answer = answer.clone();
            let name = format!("broken{number}-{}", what.replace(' ', ""));
            let engine =
                engine(lab, &name, move |call| call.is(method, path).then(|| answer.clone()));
            let started = Instant::now();
            let error = refused(lab, &engine);
            assert_eq!(error.kind, Kind::Engine, "{what} at {path}: {error}");
            assert!(!error.cause.contains('\u{1b}') && error.cause.len() < 1_000, "{error}");
            assert!(started.elapsed() < Duration::from_secs(8), "{what} at {path}");
        }
    }
}

fn hangs(lab: &Lab) {
    let engine = engine(lab, "hangs", |call| {
        let silent = EngineAnswer::Silence(Duration::from_secs(40));
        call.is("GET", "/info").then_some(silent)
    });
    let started = Instant::now();
    let error = refused(lab, &engine);
    assert!(error.cause.contains("does not answer within 10 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

fn disappears(lab: &Lab) {
    let gone = std::sync::atomic::AtomicBool::new(false);
    let engine = engine(lab, "disappears", move |call| {
        use std::sync::atomic::Ordering::SeqCst;
        if call.is("POST", "/containers/c1/start") {
            gone.store(true, SeqCst);
        }
        gone.load(SeqCst).then_some(EngineAnswer::HangUp)
    });
    let error = refused(lab, &engine);
    assert!(error.cause.contains("start the container"), "{error}");
}

fn failed_start(lab: &Lab) {
    let engine = engine(lab, "failed", |call| {
        let answer = json!({ "message": "OCI runtime create failed: no such thing" });
        let start = call.method == "POST" && call.path.ends_with("/start");
        start.then_some(EngineAnswer::Json(500, answer))
    });
    let error = refused(lab, &engine);
    assert!(error.cause.contains("OCI runtime create failed"), "{error}");
    assert_eq!(engine.containers(), 0, "the container is left");
    assert!(engine.calls().iter().any(|c| c.is("DELETE", "/containers/c1?force=true&v=true")));
}

/// It says that all is as asked for, and starts the first process on the bare machine.
fn liar(lab: &Lab) {
    let engine = engine(lab, "liar", |_| None);
    let error = refused(lab, &engine);
    assert_ne!(error.kind, Kind::Engine, "found out by what is there: {error}");
    assert_eq!(engine.containers(), 0);
    let started = engine.calls().iter().any(|c| c.is("POST", "/containers/c1/start"));
    assert!(started, "it never came so far");
}

fn images(lab: &Lab) {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let choice = || EngineChoice { image: Some(digest.clone()), runtime: None };
    let engine = engine(lab, "no-image", |_| None);
    let error = refused_as(lab, &engine, choice());
    assert!(error.cause.contains("has no image sha256:abab"), "{error}");
    assert!(error.remedy.contains("never pulls"), "{error}");
    assert!(!engine.calls().iter().any(|c| c.method == "POST"), "something was pulled");
    let volume = self::engine(lab, "volume", |call| {
        let found = json!({ "Id": "sha256:x", "Config": { "Volumes": { "/data": {} } } });
        call.is("GET", "/images/sha256").then_some(EngineAnswer::Json(200, found))
    });
    let error = refused_as(lab, &volume, choice());
    assert!(error.cause.contains("/data"), "{error}");
}

fn orphans(lab: &Lab) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.split('-').next().unwrap().to_owned();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    let living = format!("{boot}-{}-{start}-1", std::process::id());
    let dead = format!("{boot}-{}-1-1", std::process::id());
    let of = |id: &str, starter: &str| {
        let labels = json!({ "io.nanoclaw.starter": starter });
        json!({ "Id": id, "Labels": labels })
    };
    let listed = json!([
        of("living", &living),
        of("dead", &dead),
        of("earlier-boot", &format!("00000000-{}-{start}-1", std::process::id())),
        { "Id": "nobody's", "Labels": {} },
    ]);
    let engine = engine(lab, "orphans", move |call| {
        call.is("GET", "/containers/json").then(|| EngineAnswer::Json(200, listed.clone()))
    });
    drop(refused(lab, &engine));
    let calls = engine.calls();
    let asked = calls.iter().find(|c| c.is("GET", "/containers/json")).unwrap();
    assert!(asked.path.contains("io.nanoclaw.home%3D"), "{}", asked.path);
    let removed: Vec<&str> = calls
        .iter()
        .filter(|c| c.method == "DELETE")
        .filter_map(|c| c.path.strip_prefix("/containers/")?.split('?').next())
        .collect();
    assert_eq!(removed, ["dead", "earlier-boot", "c1"]);
}
