//! From rules to BPF.

use super::{NEW_NAMESPACES, RAW_KINDS, Rule, SOCKET_KINDS, THREAD};
use libc::sock_filter;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// `struct seccomp_data`: nr, arch, instruction pointer, six arguments.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENTS: u32 = 16;
/// x32 calls carry this bit on x86_64.
const X32_BIT: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const REPORT: u32 = libc::SECCOMP_RET_USER_NOTIF;

fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn argument(index: u8) -> sock_filter {
    // Both architectures are little-endian: the low half comes first.
    op(LOAD, AT_ARGUMENTS + 8 * u32::from(index))
}

/// A run of call numbers that share one rule.
struct Range {
    first: u32,
    rule: Option<Rule>,
}

/// The whole number line cut into ranges; `None` is refused.
fn ranges(rules: Vec<(u32, Rule)>) -> Vec<Range> {
    let mut out = vec![Range { first: 0, rule: None }];
    let mut push = |first: u32, rule: Option<Rule>| {
        if out.last().is_some_and(|r| r.first == first) {
            out.pop();
        }
        if out.last().is_none_or(|r| r.rule != rule) {
            out.push(Range { first, rule });
        }
    };
    for (number, rule) in rules {
        push(number, Some(rule));
        push(number + 1, None);
    }
    out
}

/// The instructions that decide one range; the number is in the accumulator.
fn leaf(rule: Option<Rule>) -> Vec<sock_filter> {
    let refused_or_allowed = [op(RETURN, REFUSE), op(RETURN, ALLOW)];
    match rule {
        None => vec![op(RETURN, REFUSE)],
        Some(Rule::Allow) => vec![op(RETURN, ALLOW)],
        Some(Rule::NotImplemented) => vec![op(RETURN, UNKNOWN)],
        Some(Rule::NoBits(index, bits)) => {
            let test = [argument(index), op(AND, bits), jump(JUMP_EQUAL, 0, 1, 0)];
            test.into_iter().chain(refused_or_allowed).collect()
        }
        Some(Rule::NotThese(index, bits, wrong)) => {
            let test = [argument(index), op(AND, bits), jump(JUMP_EQUAL, wrong, 0, 1)];
            test.into_iter().chain(refused_or_allowed).collect()
        }
        Some(Rule::Thread) => {
            let test = [argument(0), op(AND, THREAD | NEW_NAMESPACES)];
            test.into_iter()
                .chain([jump(JUMP_EQUAL, THREAD, 1, 0)])
                .chain(refused_or_allowed)
                .collect()
        }
        Some(Rule::OneOf(index, values)) => compare(index, values, ALLOW, REFUSE),
        Some(Rule::NoneOf(index, values)) => compare(index, values, REFUSE, ALLOW),
        Some(Rule::OfOthers(kind)) => {
            let kind = [argument(0), jump(JUMP_EQUAL, kind, 0, 2)];
            let whose = [argument(1), jump(JUMP_EQUAL, super::FIRST, 0, 1)];
            kind.into_iter().chain(whose).chain(refused_or_allowed).collect()
        }
        Some(Rule::Reported) => vec![op(RETURN, REPORT)],
        Some(Rule::Socket) => socket(REFUSE),
        Some(Rule::ReportedSocket) => socket(REPORT),
    }
}

/// `socket(family, type, protocol)`; `refuse` is the answer to what may not be made.
fn socket(refuse: u32) -> Vec<sock_filter> {
    const UNIX: u32 = libc::AF_UNIX as u32;
    const INET: u32 = libc::AF_INET as u32;
    const INET6: u32 = libc::AF_INET6 as u32;
    const NETLINK: u32 = libc::AF_NETLINK as u32;
    const ROUTE: u32 = libc::NETLINK_ROUTE as u32;
    let [raw, packet] = RAW_KINDS;
    vec![
        argument(0),
        jump(JUMP_EQUAL, UNIX, 10, 0),
        jump(JUMP_EQUAL, INET, 4, 0),
        jump(JUMP_EQUAL, INET6, 3, 0),
        jump(JUMP_EQUAL, NETLINK, 0, 6),
        argument(2),
        jump(JUMP_EQUAL, ROUTE, 5, 4),
        argument(1),
        op(AND, SOCKET_KINDS),
        jump(JUMP_EQUAL, raw, 1, 0),
        jump(JUMP_EQUAL, packet, 0, 1),
        op(RETURN, refuse),
        op(RETURN, ALLOW),
    ]
}

fn compare(index: u8, values: &[u32], hit: u32, miss: u32) -> Vec<sock_filter> {
    let mut code = vec![argument(index)];
    for (at, value) in values.iter().enumerate() {
        let rest = u8::try_from(values.len() - at).unwrap_or(u8::MAX);
        code.push(jump(JUMP_EQUAL, *value, rest, 0));
    }
    code.extend([op(RETURN, miss), op(RETURN, hit)]);
    code
}

fn tree(ranges: &[Range]) -> Vec<sock_filter> {
    if ranges.len() <= 1 {
        return leaf(ranges.first().and_then(|r| r.rule));
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (left, right) = (tree(low), tree(high));
    let split = high.first().map_or(u32::MAX, |r| r.first);
    let distance = u32::try_from(left.len()).unwrap_or(u32::MAX);
    // The left half may be longer than a conditional jump can reach, hence the plain jump.
    let mut code = vec![jump(JUMP_AT_LEAST, split, 0, 1), op(JUMP, distance)];
    code.extend(left);
    code.extend(right);
    code
}

/// One instruction as bytes.
const INSTRUCTION: usize = 8;

/// The program of sandboxes, and after it that of sandboxes whose operations are witnessed: a file
/// that the spawner makes once and every init only reads. The first eight bytes are the length of
/// the first one.
pub(crate) fn encode() -> Vec<u8> {
    let quiet = bytes_of(&program_of(super::rules()));
    let reporting = bytes_of(&program_of(super::reporting_rules()));
    let length = (quiet.len() as u64).to_le_bytes();
    [&length[..], &quiet, &reporting].concat()
}

fn bytes_of(program: &[sock_filter]) -> Vec<u8> {
    let bytes = |i: &sock_filter| {
        let mut out = [0; INSTRUCTION];
        out[..2].copy_from_slice(&i.code.to_le_bytes());
        out[2..4].copy_from_slice(&[i.jt, i.jf]);
        out[4..].copy_from_slice(&i.k.to_le_bytes());
        out
    };
    program.iter().flat_map(bytes).collect()
}

/// One of the two programs of [`encode`]. What is cut off or changed makes a program that the
/// kernel refuses or that refuses more; the spawner sealed the file against both.
pub(crate) fn decode(bytes: &[u8], reporting: bool) -> Vec<sock_filter> {
    let Some((length, programs)) = bytes.split_first_chunk() else { return Vec::new() };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some((quiet, other)) = programs.split_at_checked(length) else { return Vec::new() };
    let (instructions, _) = if reporting { other } else { quiet }.as_chunks::<INSTRUCTION>();
    let one = |b: &[u8; INSTRUCTION]| sock_filter {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    instructions.iter().map(one).collect()
}

/// The program of any rules, sorted by number, each number once.
pub(crate) fn program_of(rules: Vec<(u32, Rule)>) -> Vec<sock_filter> {
    let mut code = vec![
        op(LOAD, AT_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        op(RETURN, KILL),
        op(LOAD, AT_NUMBER),
        jump(JUMP_AT_LEAST, X32_BIT, 0, 1),
        op(RETURN, KILL),
    ];
    code.extend(tree(&ranges(rules)));
    code
}
