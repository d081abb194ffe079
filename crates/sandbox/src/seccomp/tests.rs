use super::*;

/// A classic-BPF interpreter for exactly the instructions used here.
fn decide(arch: u32, number: u32, args: [u64; 6]) -> u32 {
    run(false, arch, number, args)
}

fn run(reporting: bool, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    interpreted(&decode(&encode(), reporting), arch, number, args)
}

fn interpreted(code: &[libc::sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let word = |at: u32| match at {
        0 => number,
        4 => arch,
        at => {
            let arg = args[(at as usize - 16) / 8];
            if at % 8 == 0 { arg as u32 } else { (arg >> 32) as u32 }
        }
    };
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let i = code[pc];
        pc += 1;
        match i.code {
            0x20 => a = word(i.k),
            0x54 => a &= i.k,
            0x15 => pc += usize::from(if a == i.k { i.jt } else { i.jf }),
            0x35 => pc += usize::from(if a >= i.k { i.jt } else { i.jf }),
            0x05 => pc += i.k as usize,
            0x06 => return i.k,
            other => panic!("instruction {other:#x} at {pc}"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const HERE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const HERE: u32 = 0xc000_00b7;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const REPORT: u32 = 0x7fc0_0000;

fn call(number: c_long, args: [u64; 6]) -> u32 {
    decide(HERE, number as u32, args)
}

#[test]
fn every_number_is_decided_as_its_rule_says() {
    let rules: std::collections::BTreeMap<u32, Rule> = rules().into_iter().collect();
    for number in 0..2_000 {
        let got = decide(HERE, number, [0; 6]);
        let want = match rules.get(&number) {
            None => EPERM,
            Some(Rule::NotImplemented) => ENOSYS,
            Some(Rule::OneOf(_, list)) if !list.contains(&0) => EPERM,
            Some(Rule::Socket) => EPERM,
            Some(Rule::OfOthers(kind)) if *kind != 0 => EPERM,
            Some(_) => ALLOW,
        };
        assert_eq!(got, want, "system call {number}");
    }
}

#[test]
fn foreign_architectures_and_x32_are_killed() {
    assert_eq!(decide(0x4000_0003, 1, [0; 6]), KILL);
    assert_eq!(decide(HERE, 0x4000_0000, [0; 6]), KILL);
    assert_eq!(decide(HERE, u32::MAX, [0; 6]), KILL);
    assert_eq!(run(true, 0x4000_0003, 1, [0; 6]), KILL);
}

#[test]
fn a_program_that_reports_differs_in_what_it_reports_only() {
    let reported = [libc::SYS_execve, libc::SYS_execveat, libc::SYS_connect];
    for number in 0..2_000 {
        for first in [0, 1, 2, 16, 17] {
            let args = [first, 3, 0, 0, 0, 0];
            let (quiet, got) = (decide(HERE, number, args), run(true, HERE, number, args));
            let socket = c_long::from(number) == libc::SYS_socket && quiet == EPERM;
            let want =
                if socket || reported.contains(&c_long::from(number)) { REPORT } else { quiet };
            assert_eq!(got, want, "system call {number}, first argument {first}");
        }
    }
}

#[test]
fn raw_sockets_are_refused_whatever_their_flags() {
    const STREAM: u64 = 1;
    const DATAGRAM: u64 = 2;
    const RAW: u64 = 3;
    const PACKET: u64 = 10;
    const CLOEXEC_AND_NONBLOCK: u64 = 0o2_004_000;
    for family in [2, 10] {
        for flags in [0, CLOEXEC_AND_NONBLOCK, 0xdead_0000_0000_0000] {
            for (kind, want) in [(STREAM, ALLOW), (DATAGRAM, ALLOW), (RAW, EPERM), (PACKET, EPERM)]
            {
                let args = [family, kind | flags, 0, 0, 0, 0];
                assert_eq!(call(libc::SYS_socket, args), want, "{family} {kind} {flags:#x}");
            }
        }
    }
    assert_eq!(call(libc::SYS_socket, [1, RAW, 0, 0, 0, 0]), ALLOW, "Unix has no raw ones");
}

#[test]
fn a_file_cut_short_is_no_program() {
    let whole = encode();
    for length in [0, 7, 8, 100] {
        assert!(decode(&whole[..length], true).is_empty(), "{length}");
    }
}

#[test]
fn arguments_decide_where_they_must() {
    let arg = |i: usize, v: u64| {
        let mut a = [0; 6];
        a[i] = v;
        a
    };
    assert_eq!(call(libc::SYS_clone, arg(0, 0x1200_0011)), EPERM, "CLONE_NEWUSER");
    assert_eq!(call(libc::SYS_clone, arg(0, 0x003d_0f00)), ALLOW, "a thread");
    assert_eq!(call(libc::SYS_ioctl, arg(1, 0x5412)), EPERM, "TIOCSTI");
    assert_eq!(call(libc::SYS_ioctl, arg(1, 0xdead_0000_5412)), EPERM, "TIOCSTI, dirty");
    assert_eq!(call(libc::SYS_ioctl, arg(1, 0x5413)), ALLOW, "TIOCGWINSZ");
    for (family, want) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (17, EPERM), (40, EPERM)] {
        assert_eq!(call(libc::SYS_socket, arg(0, family)), want, "family {family}");
    }
    assert_eq!(call(libc::SYS_socket, [16, 3, 0, 0, 0, 0]), ALLOW, "netlink route");
    assert_eq!(call(libc::SYS_socket, [16, 3, 12, 0, 0, 0]), EPERM, "netlink netfilter");
    assert_eq!(call(libc::SYS_fchmodat, arg(2, 0o4755)), EPERM);
    assert_eq!(call(libc::SYS_fchmodat, arg(2, 0o755)), ALLOW);
    assert_eq!(call(libc::SYS_openat, arg(3, 0o4755)), EPERM);
    assert_eq!(call(libc::SYS_prlimit64, arg(0, 1)), EPERM, "limits of the first process");
    assert_eq!(call(libc::SYS_prlimit64, arg(0, 0xdead_0000_0001)), EPERM, "the same, dirty");
    for own in [0, 2] {
        assert_eq!(call(libc::SYS_prlimit64, arg(0, own)), ALLOW, "limits of process {own}");
    }
    let of_one = [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setscheduler,
    ];
    for number in of_one {
        assert_eq!(call(number, arg(0, 1)), EPERM, "call {number} on the first process");
        assert_eq!(call(number, arg(0, 0)), ALLOW, "call {number} on itself");
        assert_eq!(call(number, arg(0, 2)), ALLOW, "call {number} on another");
    }
    for (number, process) in [(libc::SYS_setpriority, 0), (libc::SYS_ioprio_set, 1)] {
        for (kind, who, want) in [
            (process, 0, ALLOW),
            (process, 2, ALLOW),
            (process, 1, EPERM),
            (process, 0xdead_0000_0001, EPERM),
            (process + 1, 0, EPERM),
            (process + 2, 0, EPERM),
            (process + 2, 1000, EPERM),
        ] {
            assert_eq!(call(number, [kind, who, 0, 0, 0, 0]), want, "{number} {kind} {who}");
        }
    }
    assert_eq!(call(libc::SYS_personality, arg(0, 0x0040_0000)), EPERM);
    assert_eq!(call(libc::SYS_personality, arg(0, 0xffff_ffff)), ALLOW);
}

#[test]
fn a_role_without_a_network_has_unix_sockets_only_and_none_truncates_what_it_may_read() {
    for network in [false, true] {
        let code = program_of(role_rules(network));
        let call = |number: c_long, args| interpreted(&code, HERE, number as u32, args);
        let internet = if network { ALLOW } else { EPERM };
        for (family, want) in [(1, ALLOW), (2, internet), (10, internet), (16, EPERM), (17, EPERM)]
        {
            assert_eq!(call(libc::SYS_socket, [family, 2, 0, 0, 0, 0]), want, "family {family}");
        }
        const TRUNCATE: u64 = 0o1000;
        const CREATE_AND_CLOEXEC: u64 = 0o2_000_100;
        for (mode, want) in [(0, EPERM), (1, ALLOW), (2, ALLOW), (3, ALLOW)] {
            for more in [0, CREATE_AND_CLOEXEC, 0xdead_0000_0000_0000] {
                let flags = TRUNCATE | mode | more;
                assert_eq!(call(libc::SYS_openat, [0, 0, flags, 0, 0, 0]), want, "{flags:o}");
                assert_eq!(call(libc::SYS_openat, [0, 0, mode | more, 0, 0, 0]), ALLOW);
                #[cfg(target_arch = "x86_64")]
                assert_eq!(call(libc::SYS_open, [0, flags, 0, 0, 0, 0]), want, "{flags:o}");
            }
        }
        assert_eq!(call(libc::SYS_listen, [0; 6]), EPERM);
    }
}

#[test]
fn the_dangerous_ones_are_out() {
    for number in [
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_pidfd_getfd,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_swapon,
        libc::SYS_reboot,
        libc::SYS_quotactl,
        libc::SYS_acct,
        libc::SYS_syslog,
        libc::SYS_fanotify_init,
        libc::SYS_memfd_secret,
    ] {
        assert_eq!(call(number, [0; 6]), EPERM, "system call {number}");
    }
}

#[test]
fn the_program_is_small() {
    // Each instruction is run for every call number when the filter is loaded.
    for rules in [rules(), reporting_rules()] {
        let length = program_of(rules).len();
        assert!(length < 420, "{length} instructions");
    }
    assert!(reachable_syscalls() < 300, "{}", reachable_syscalls());
}
