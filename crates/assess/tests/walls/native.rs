//! The native backend: every wall holds, and nothing is left.

use nanoclaw_assess::walls::{Finding, Native, Place, ProbeError, Run, Stop, Verdict};
use std::path::Path;
use std::time::Duration;
use testkit::TempDir;

fn place(dir: &TempDir) -> (Native, Place) {
    crate::place::open_to_all(dir.path());
    let native = Native::launch(vec![dir.path().to_owned()]).expect("a spawner");
    (native, Place { root: dir.join("sessions") })
}

pub(crate) fn told(findings: &[Finding]) -> String {
    let bad = findings.iter().filter(|f| f.verdict == Verdict::Broken);
    let line = |f: &Finding| {
        format!("{} ({}): expected {}, observed {}", f.probe, f.act, f.expected, f.observed)
    };
    bad.map(line).collect::<Vec<_>>().join("\n")
}

/// All that may be known not to hold of the native backend, whatever the machine.
const GAPS: [&str; 4] = ["groups-none", "other-session-uid", "cpu-share", "core-dump"];

/// Folders of batteries in the temporary folder.
pub(crate) fn left_over() -> usize {
    let own = format!("nanoclaw-probe-{}-", std::process::id());
    let names = std::fs::read_dir(std::env::temp_dir()).expect("a folder").flatten();
    names.filter(|e| e.file_name().to_string_lossy().starts_with(&own)).count()
}

pub(crate) fn every_native_wall_holds() {
    let dir = TempDir::new("walls").expect("a folder");
    let (native, place) = place(&dir);
    let run = Run::full(&native, &place, &Stop::default()).expect("a battery");
    assert!(run.passed(), "{}", told(&run.findings));
    assert!(run.findings.len() >= 200, "{}", run.findings.len());
    let held = run.findings.iter().filter(|f| f.verdict == Verdict::Held).count();
    let open: Vec<_> = run.findings.iter().filter(|f| f.verdict == Verdict::Open).collect();
    println!("  {held} held in {} ms; not enforced: {open:?}", run.milliseconds);
    for finding in &open {
        assert!(finding.gap.as_ref().is_some_and(|g| !g.is_empty()), "{}", finding.probe);
        assert!(GAPS.contains(&finding.probe), "{}", finding.probe);
    }
    assert_eq!(left_over(), 0);
}

pub(crate) fn the_quick_battery_leaves_nothing() {
    let dir = TempDir::new("quick").expect("a folder");
    let (native, place) = place(&dir);
    let run = Run::quick(&native, &place, &Stop::default()).expect("a battery");
    assert!(run.passed(), "{}", told(&run.findings));
    assert_eq!(names(&place.root.join("quick/workspace")), [""; 0]);
    assert_eq!(names(&place.root.join("quick/home")), [""; 0]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) fn a_wish_to_stop_leaves_nothing() {
    let dir = TempDir::new("stop").expect("a folder");
    let (native, place) = place(&dir);
    let stop = Stop::default();
    let wish = stop.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        wish.now();
    });
    let ended = Run::full(&native, &place, &stop);
    later.join().expect("it ended");
    assert!(matches!(ended, Err(ProbeError::Stopped)), "{:?}", ended.map(|r| r.milliseconds));
    assert_eq!(left_over(), 0);
}
