//! What became of executions: looks at a process until it is seen to run a new program.
//!
//! Pipeline: let go on ─► look (sooner, then later and later) ─► image, or why it was not seen.
//!
//! 1. A process has a new program when its arguments lie elsewhere than before (`arg_start` of
//!    proc_pid_stat(5)): each execution lays out a new address space at random places, and nothing
//!    inside can move them otherwise, for the filter refuses `PR_SET_MM`. (On a host that has
//!    switched randomisation off, the same place can come again, and the image is not seen.)
//! 2. The name in `/proc/PID/exe` counts only if nothing changed while it was read. It is that of
//!    the file itself, wherever symbolic links led, as seen inside; a file that was removed has
//!    ` (deleted)` behind it, and so has a memory file.
//! 3. A process number that was used again is told by its start time.
//! 4. Looking ends: with the image, with the process, with its next call, or with the last look.

use crate::operation::{Image, PATH_BYTES_MAX};
use crate::procfs;
use std::fs;
use std::time::{Duration, Instant};

/// When it is looked, counted from the call. An execution takes some hundred microseconds; one that
/// failed changes nothing, and what waits for its CPU quota may take a period of 100 ms.
const LOOKS: [Duration; 6] = [
    Duration::from_micros(400),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(120),
    Duration::from_millis(600),
];
/// In `/proc/PID/stat`, counted from the state, which follows the name.
const START_TIME: usize = 19;
const ARGUMENTS: usize = 45;

const ENDED: &str = "the process ended before it could be looked at";
const UNCHANGED: &str = "no new program was seen in it: the execution failed, or took too long";
const HIDDEN: &str = "the kernel does not show this process";
const FAILED: &str = "the execution failed: the process went on with its old program";
const UNNAMED: &str = "the name of what it runs cannot be read";

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Since boot, in clock ticks: with the number, it is this process and no other.
    started: u64,
    /// Where its arguments begin; 0 where the kernel does not tell.
    pub(super) arguments: u64,
}

impl Place {
    /// Of a process by its number here; `None` when there is none or it is dead.
    pub(super) fn of(process: i32) -> Option<Self> {
        parse(&procfs::text(&format!("/proc/{process}/stat")).ok()?)
    }
}

fn parse(stat: &str) -> Option<Place> {
    // The name may hold anything, but no later field has a bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let mut number = |skip: usize| fields.nth(skip)?.parse().ok();
    // `nth` counts from where it stands: after the state, then after the start time.
    let started = number(START_TIME - 1)?;
    let arguments = number(ARGUMENTS - START_TIME - 1)?;
    (!matches!(state, "Z" | "X" | "x")).then_some(Place { started, arguments })
}

/// What one look found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It runs this.
    Runs(String),
    /// It will not be seen, for this reason.
    Never(&'static str),
    /// The same program as before.
    Same,
}

fn look(process: i32, before: Place) -> Found {
    let Some(now) = Place::of(process).filter(|p| p.started == before.started) else {
        return Found::Never(ENDED);
    };
    if before.arguments == 0 {
        return Found::Never(HIDDEN);
    }
    // In the middle of an execution the new address space has no arguments yet.
    if now.arguments == before.arguments || now.arguments == 0 {
        return Found::Same;
    }
    let link = fs::read_link(format!("/proc/{process}/exe"));
    if Place::of(process) != Some(now) {
        // It executes again, or ends: the next look will tell.
        return Found::Same;
    }
    match link {
        Ok(path) if path.as_os_str().len() <= PATH_BYTES_MAX => {
            Found::Runs(path.to_string_lossy().into_owned())
        }
        _ => Found::Never(UNNAMED),
    }
}

/// One execution that is waited for.
#[derive(Debug)]
struct Look {
    number: u64,
    /// Inside.
    pid: u32,
    /// Here.
    process: i32,
    before: Place,
    since: Instant,
    done: usize,
}

impl Look {
    fn due(&self) -> Instant {
        self.since + LOOKS.get(self.done).copied().unwrap_or_default()
    }

    fn image(&self, seen: Result<String, &str>) -> Image {
        Image { number: self.number, pid: self.pid, seen: seen.map_err(str::to_owned) }
    }
}

/// The executions of one sandbox whose images are not known yet; the window bounds how many.
#[derive(Debug, Default)]
pub(super) struct Looks(Vec<Look>);

impl Looks {
    /// An execution is let go on now.
    pub(super) fn add(
        &mut self,
        number: u64,
        pid: u32,
        process: i32,
        before: Place,
        since: Instant,
    ) {
        self.0.push(Look { number, pid, process, before, since, done: 0 });
    }

    /// When [`Looks::turn`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.iter().map(Look::due).min()
    }

    /// The process makes another call: what it runs now is what its last execution made of it.
    pub(super) fn again(&mut self, process: i32) -> Option<Image> {
        let at = self.0.iter().position(|l| l.process == process)?;
        let one = self.0.swap_remove(at);
        Some(one.image(match look(process, one.before) {
            Found::Runs(path) => Ok(path),
            Found::Same => Err(FAILED),
            Found::Never(why) => Err(why),
        }))
    }

    /// Looks at those whose time has come.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<Image> {
        let mut seen = Vec::new();
        self.0.retain_mut(|one| {
            if one.due() > now {
                return true;
            }
            let image = match look(one.process, one.before) {
                Found::Runs(path) => Some(one.image(Ok(path))),
                Found::Never(why) => Some(one.image(Err(why))),
                Found::Same if one.done + 1 == LOOKS.len() => Some(one.image(Err(UNCHANGED))),
                Found::Same => None,
            };
            one.done += 1;
            let again = image.is_none();
            seen.extend(image);
            again
        });
        seen
    }

    /// Every process is gone.
    pub(super) fn end(&mut self) -> Vec<Image> {
        self.0.drain(..).map(|one| one.image(Err(ENDED))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_kernels_line_is_read_whatever_the_name() {
        let mut numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let line =
            |state: &str, numbers: &[String]| format!("77 (a) b (c) {state} {}", numbers.join(" "));
        // Fields 22 and 48 of proc_pid_stat(5).
        let place = Place { started: 22, arguments: 48 };
        assert_eq!(parse(&line("S", &numbers)), Some(place));
        assert_eq!(parse(&line("Z", &numbers)), None, "a dead one runs nothing");
        numbers.truncate(30);
        assert_eq!(parse(&line("S", &numbers)), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_new_program_is_seen_and_an_old_one_is_not_taken_for_it() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = child.id().cast_signed();
        let now = Place::of(process).unwrap();
        assert_eq!(look(process, now), Found::Same);
        let before = Place { arguments: now.arguments + 1, ..now };
        let Found::Runs(path) = look(process, before) else { panic!("it runs something else") };
        assert!(path.starts_with('/'), "{path}");
        let other = Place { started: now.started + 1, ..before };
        assert_eq!(look(process, other), Found::Never(ENDED), "another process of that number");
        let hidden = Place { arguments: 0, ..now };
        assert_eq!(look(process, hidden), Found::Never(HIDDEN));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(look(process, before), Found::Never(ENDED));
    }

    #[test]
    fn looks_come_to_an_end_and_a_further_call_ends_them() {
        let own = std::process::id().cast_signed();
        let place = Place::of(own).unwrap();
        let begun = Instant::now();
        let mut looks = Looks::default();
        looks.add(1, 7, own, place, begun);
        assert_eq!(looks.due(), Some(begun + LOOKS[0]));
        assert!(looks.turn(begun).is_empty(), "not yet");
        let late = begun + Duration::from_secs(1);
        let all: Vec<Image> = (0..LOOKS.len()).flat_map(|_| looks.turn(late)).collect();
        assert_eq!(all, [Image { number: 1, pid: 7, seen: Err(UNCHANGED.into()) }]);
        assert_eq!(looks.due(), None);
        looks.add(2, 7, own, place, begun);
        assert_eq!(looks.again(own).unwrap().seen, Err(FAILED.to_owned()));
        assert_eq!(looks.again(own), None);
        let elsewhere = Place { arguments: place.arguments + 1, ..place };
        looks.add(3, 7, own, elsewhere, begun);
        assert!(looks.turn(late).pop().unwrap().seen.is_ok());
        looks.add(4, 7, own, place, begun);
        assert_eq!(looks.end().len(), 1);
    }
}
