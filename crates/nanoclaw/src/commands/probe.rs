//! `sandbox probe`: what is really enforced around a sandbox, found by trying from inside.

use crate::args::ProbeArgs;
use crate::failure::{Failure, Kind, Result};
use crate::home::Home;
use crate::run::Folders;
use crate::ui::{self, Paint};
use crate::{product, signals, world};
use assess::walls::{self, Board, Finding, Native, Place, ProbeError, Run, Stop, Verdict};
use model::{Backend, EngineChoice, SessionId};
use sandbox::{EngineOptions, StartError};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Runs `sandbox probe`; exit code 6 when a wall is broken.
pub(crate) fn run(home: &Home, args: &ProbeArgs) -> Result<u8> {
    let backend = named(&args.backend)?;
    let (stop, signal) = (Stop::default(), Arc::new(AtomicI32::new(0)));
    let (wish, heard) = (stop.clone(), Arc::clone(&signal));
    signals::watch(&[signals::INTERRUPT, signals::TERMINATE, signals::HANGUP], move |number| {
        // The first one counts.
        let _ = heard.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst);
        wish.now();
    })?;
    match probed(home, &backend, args.quick, &stop) {
        Ok(run) => {
            if args.json {
                ui::json_line(&as_value(&run, args.quick).to_string());
            } else {
                ui::out(&text(&run, Paint::auto()));
            }
            Ok(if run.passed() { 0 } else { Kind::Breach.exit_code() })
        }
        Err(ProbeError::Stopped) => {
            let number = signal.load(Ordering::SeqCst);
            ui::note(format!("nanoclaw: stopped by {}; nothing is left", signals::name(number)));
            Ok(128 + u8::try_from(number).unwrap_or(0))
        }
        Err(ProbeError::Start(e)) => Err(product::start_failure(e)),
        Err(e @ ProbeError::Io(_)) => Err(Failure::other(e)),
    }
}

/// As agent files name it.
fn named(text: &str) -> Result<Backend> {
    match text {
        "native" => Ok(Backend::Native),
        "docker" => Ok(Backend::Docker(EngineChoice::default())),
        "podman" => Ok(Backend::Podman(EngineChoice::default())),
        _ => {
            let cause = format!("backend {text:?} cannot be probed by this version");
            Err(Failure::usage(cause).remedy("use --backend native, docker or podman"))
        }
    }
}

/// What makes the battery's sandboxes. Containers are shown what a session's are, from the same
/// folder, so that whatever is left of a killed battery is found as theirs is.
fn maker(
    home: &Home,
    backend: &Backend,
) -> std::result::Result<Box<dyn walls::Backend>, StartError> {
    let private = vec![home.path().to_owned()];
    if *backend == Backend::Native {
        return Ok(Box::new(Native::launch(private)?));
    }
    let engines = EngineOptions::of(home.path().join("run/engine"));
    Ok(Box::new(walls::Engine::launch(backend.clone(), engines, private)?))
}

/// The battery, in folders that go with it: also when this process is killed, at the next start.
fn probed(
    home: &Home,
    backend: &Backend,
    quick: bool,
    stop: &Stop,
) -> std::result::Result<Run, ProbeError> {
    let io = |f: Failure| ProbeError::Io(std::io::Error::other(f.cause));
    let session = SessionId::mint(world::now_ms(), u32::from_le_bytes(world::random_bytes()));
    let root = home.path().join("sessions").join(session.as_str());
    home.session(&session).map_err(io)?;
    let _folders = Folders::claim(root.clone()).map_err(io)?;
    crate::run::sweep(home);
    let backend = maker(home, backend)?;
    let backend = backend.as_ref();
    // Below its workspace: that is what a sweep removes.
    let place = Place { root: root.join("workspace") };
    if quick { Run::quick(backend, &place, stop) } else { Run::full(backend, &place, stop) }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn as_value(run: &Run, quick: bool) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": kernel(),
        "backend": run.board.backend,
        "privilege": run.board.privilege,
        "quick": quick,
        "passed": run.passed(),
        "milliseconds": run.milliseconds,
        "walls": run.board.rows,
        "limits": run.limits,
        "probes": run.findings,
    })
}

fn text(run: &Run, paint: Paint) -> String {
    let Board { backend, privilege, rows } = &run.board;
    let mut text = format!(
        "{} as {privilege}, kernel {}: {} probes in {} ms\n\n",
        paint.bold(backend),
        kernel(),
        run.findings.len(),
        run.milliseconds
    );
    let wide = rows.iter().map(|r| r.wall.len()).max().unwrap_or(0);
    let by = rows.iter().map(|r| r.enforced_by.len()).max().unwrap_or(0);
    for row in rows {
        let measured = match (row.probes, row.broken.is_empty(), row.not_enforced.is_empty()) {
            (0, ..) => paint.dim(&row.measured()),
            (_, true, true) => paint.green(&row.measured()),
            (..) => paint.red(&row.measured()),
        };
        let line = format!("{:wide$}  {:by$}  {measured}\n", row.wall, row.enforced_by);
        text.push_str(&line);
    }
    text.push_str(&limits(run, paint));
    for (heading, verdict) in [("Not enforced here", Verdict::Open), ("BROKEN", Verdict::Broken)] {
        let all: Vec<&Finding> = run.findings.iter().filter(|f| f.verdict == verdict).collect();
        if !all.is_empty() {
            text.push_str(&format!("\n{}\n", paint.red(heading)));
        }
        all.iter().for_each(|f| text.push_str(&told(f, paint)));
    }
    text.push_str(&match run.passed() {
        true => paint.green("\nEvery wall holds as far as it is said to.\n"),
        false => paint.red("\nA wall is broken: do not run agents here until it is mended.\n"),
    });
    text
}

fn limits(run: &Run, paint: Paint) -> String {
    let mut text = format!("\n{}\n", paint.bold("Limits"));
    for limit in &run.limits {
        let value = format!("{}, enforced by {}", limit.value, limit.enforced_by);
        text.push_str(&format!("  {:7}  {}\n", limit.limit, paint.dim(&ui::harmless(&value))));
    }
    text
}

fn told(finding: &Finding, paint: Paint) -> String {
    let observed = ui::brief(&finding.observed, 160);
    let seen = format!("    expected {}; observed {observed}\n", finding.expected);
    let why = finding.gap.as_ref().map(|why| format!("    {why}\n")).unwrap_or_default();
    format!("  {}: {}\n{}{why}", finding.probe, finding.act, paint.dim(&seen))
}
