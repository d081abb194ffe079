use super::*;

#[test]
fn the_numbers_of_a_process_are_those_of_its_leader() {
    let status = "Name:\tx\nTgid:\t90\nPid:\t95\nNStgid:\t90\t7\nNSpid:\t95\t9\n";
    assert_eq!(Process::parse(status), Some(Process { here: 90, inside: 7 }));
    assert_eq!(Process::parse("Name:\tx\n"), None);
    let own = std::process::id();
    assert_eq!(Process::of(own.cast_signed()).map(|p| p.here), Some(own.cast_signed()));
}

#[test]
fn memory_is_read_or_it_is_said_that_it_cannot_be() {
    let mut readers = Readers::default();
    if rustix::process::geteuid().is_root() {
        assert!(can_read(std::process::id().cast_signed(), &mut readers).unwrap());
    }
    assert!(!can_read(i32::MAX, &mut readers).unwrap(), "nobody has this number");
}

#[test]
fn the_largest_report_fits_a_packet_and_a_record() {
    /// Smallest of all bounds: that of a log's entry.
    const ENTRY_BYTES_MAX: usize = 64_000;
    let worst = |bytes: usize| "\u{1}".repeat(bytes);
    let execution = Execution {
        number: u64::MAX,
        pid: u32::MAX,
        path: worst(PATH_BYTES_MAX),
        argv: vec![worst(crate::operation::ARGV_BYTES_MAX / crate::operation::ARGV_MAX); 128],
        cwd: Some(worst(CWD_BYTES_MAX)),
        whole: false,
        unread: Some(worst(500)),
    };
    let answer = Answer::Operation { id: u64::MAX, operation: Operation::Executed(execution) };
    let size = wire::encode(&answer).unwrap().len();
    assert!(size < ENTRY_BYTES_MAX - 2_000, "{size}");
}

#[test]
fn what_is_described_is_whole_or_says_that_it_is_not() {
    let own = std::process::id().cast_signed();
    let text = |bytes: &[u8]| memory::Text { bytes: bytes.to_vec(), cut: false };
    let list = |texts: &[&[u8]]| memory::List {
        texts: texts.iter().map(|t| t.to_vec()).collect(),
        cut: false,
    };
    let asked = Asked { path: text(b"/bin/sh"), argv: list(&[b"sh"]), ..Asked::default() };
    let plain = described(own, None, asked);
    assert!(plain.whole && plain.unread.is_none(), "{plain:?}");
    let here = std::env::current_dir().unwrap();
    assert_eq!(plain.cwd.as_deref(), here.to_str());
    let asked = Asked { path: text(b"/bin/sh"), argv: list(&[b"\xff"]), ..Asked::default() };
    let odd = described(own, None, asked);
    assert_eq!((odd.argv.as_slice(), odd.whole), (&["\u{fffd}".to_owned()][..], false));
    let file = fs::File::open("/proc/self/status").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let asked = Asked { from: Some(fd), path: text(b""), ..Asked::default() };
    let by_descriptor = described(own, None, asked);
    assert!(by_descriptor.path.starts_with("/proc/"), "{by_descriptor:?}");
    let asked = Asked { from: Some(9_999), path: text(b"x"), ..Asked::default() };
    let closed = described(own, None, asked);
    assert!(!closed.whole && closed.unread.is_some_and(|u| u.contains("9999")));
}
