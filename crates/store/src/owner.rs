//! Which process works on a turn, told apart from any later process with the same number.

use std::fs;

/// A process: boot, number, start time. Numbers are reused; the three together are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Process number, as seen in this PID namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start: u64,
}

impl Owner {
    /// This process.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn this_process() -> std::io::Result<Self> {
        let pid = std::process::id();
        Ok(Self { boot: boot_id()?, pid, start: start_time(pid)? })
    }

    /// Whether it still runs. In doubt yes: a turn wrongly left alone is answered after the next
    /// start, a turn wrongly taken away would be answered twice.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        if boot_id().is_ok_and(|boot| boot != self.boot) {
            return false;
        }
        match start_time(self.pid) {
            Ok(start) => start == self.start,
            Err(e) => e.kind() != std::io::ErrorKind::NotFound,
        }
    }
}

fn boot_id() -> std::io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Start time of a process that is not a zombie; for a zombie `NotFound`, for it works no more.
fn start_time(pid: u32) -> std::io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let malformed = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    // The second field is the name in parentheses and may hold anything, ')' included.
    let (_, after) = stat.rsplit_once(')').ok_or_else(malformed)?;
    let mut fields = after.split_ascii_whitespace();
    if fields.next().is_some_and(|state| state == "Z" || state == "X") {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    // Field 3 is taken; field 22 is 18 further on.
    fields.nth(18).and_then(|f| f.parse().ok()).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::Owner;

    #[test]
    fn this_process_lives_and_its_variations_do_not() {
        let me = Owner::this_process().expect("/proc");
        assert!(me.is_alive());
        assert!(!Owner { boot: "another".into(), ..me.clone() }.is_alive());
        assert!(!Owner { start: me.start + 1, ..me.clone() }.is_alive());
        assert!(!Owner { pid: u32::MAX, ..me }.is_alive());
    }
}
