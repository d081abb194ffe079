//! The guest itself: QEMU without hardware help, its console read until it is done or its time is
//! over.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::console::Console;
use crate::repo::{Failure, Outcome, Repo, at, not_started};

/// QEMU's program; Debian's package is `qemu-system-x86`.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// When a guest that has not come to its end is stopped.
const BOUND: Duration = Duration::from_secs(25 * 60);
/// How much longer than on the host everything may take; tests that look at the clock read it.
const SLOWER: u32 = 15;
/// What the kernel is told: its console; to stay quiet on it; that the clock of an emulated CPU is
/// good enough and need not be measured; and to end QEMU by a reset, also after a panic.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=1 tsc=reliable lpj=4000000 no_timer_check \
    reboot=t panic=-1";

/// What the guest boots from.
pub(super) struct Boot<'a> {
    pub(super) vmlinux: &'a Path,
    pub(super) initrd: &'a Path,
    pub(super) root: &'a Path,
}

/// Runs the guest to its end; what it said goes to `log` as well, line by line.
pub(super) fn run(repo: &Repo, boot: &Boot<'_>, log: &Path) -> Outcome<Console> {
    let mut log = fs::File::create(log).map_err(at(log))?;
    let mut child = Stopped(start(repo, boot)?);
    let output = child.0.stdout.take().ok_or_else(|| Failure::new("QEMU has no output"))?;
    let (tell, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            if tell.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let (begun, mut console) = (Instant::now(), Console::default());
    let mut shown = 0;
    loop {
        let left = BOUND.saturating_sub(begun.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                // A log that cannot be written costs the log only.
                drop(writeln!(log, "{}", line.trim_end_matches('\r')));
                console.line(&line, begun.elapsed());
                let ended = console.parts.iter().filter(|part| part.status.is_some());
                for part in ended.skip(shown) {
                    println!("    {} in {} s", part.name, part.took.as_secs());
                    shown += 1;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                console.broken = Some(format!("it had not ended after {} s", BOUND.as_secs()));
                break;
            }
        }
    }
    Ok(console)
}

/// Killed when dropped, whatever happens in between.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, and must be waited for all the same.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(repo: &Repo, boot: &Boot<'_>) -> Outcome<Child> {
    let mut qemu = repo.command(QEMU);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // Not `microvm`: Debian's kernel takes no virtio-mmio device from its command line, and with
    // ACPI some boots of that machine type hang.
    qemu.args(["-M", "pc,usb=off", "-accel", "tcg,thread=multi"]);
    qemu.args(["-cpu", "max", "-smp", "2", "-m", "1536", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(boot.vmlinux).arg("-initrd").arg(boot.initrd);
    qemu.arg("-append").arg(format!("{KERNEL_LINE} matrix_slow={SLOWER}"));
    let drive = format!(
        "id=root,if=none,format=raw,cache=unsafe,snapshot=on,file={}",
        // A comma is QEMU's own separator; doubled it is one.
        boot.root.display().to_string().replace(',', ",,")
    );
    qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=root"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    qemu.spawn().map_err(|error| not_started(&qemu, &error))
}
