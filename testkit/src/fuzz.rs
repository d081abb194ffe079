//! Seeded fuzzing in the process of an ordinary test.
//!
//! ```text
//! seeds ─► corpus ─► mutate ─► check ─► the outcome is new? ─► corpus
//!                                └──► panic, or too slow ─► target, seed, input as hex
//! ```
//!
//! 1. An ordinary test run gives each target [`SECONDS`] with a fresh seed; `cargo xtask fuzz`
//!    gives it as long as asked. The environment variables are `NANOCLAW_FUZZ_SECONDS`,
//!    `NANOCLAW_FUZZ_SEED` and `NANOCLAW_FUZZ_INPUT` (hex: this one input and nothing else).
//! 2. A check panics when its property does not hold, and returns what came out, in short. An input
//!    with an outcome not seen before is mutated further: what coverage guides elsewhere is guided
//!    here by outcomes, without a nightly compiler and without unsafe code.
//! 3. The same seed gives the same inputs in the same order.

use crate::Rng;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a target runs when nobody says otherwise.
pub const SECONDS: u64 = 2;
/// Inputs kept because their outcome was new.
const CORPUS_MAX: usize = 4_096;
/// Longest input that mutation makes of shorter seeds.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// One input may take so long; a slower one is tried again, for the machine may have been busy.
const CASE_TIME: Duration = Duration::from_secs(2);

/// What a check is given beside the input.
pub struct Dice<'a>(&'a mut Rng);

impl Dice<'_> {
    /// A number from 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound)
    }

    /// `bytes` in pieces of random sizes up to `max`; sometimes byte by byte.
    pub fn pieces<'b>(&mut self, bytes: &'b [u8], max: usize) -> Vec<&'b [u8]> {
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        let most = if self.below(4) == 0 { 1 } else { max.max(1) };
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(1 + self.below(most)));
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

/// A short name of an outcome: inputs with equal ones are of one kind.
pub fn outcome(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// A size as an outcome: only its magnitude, or every length would be a kind of its own.
#[must_use]
pub fn magnitude(size: usize) -> u32 {
    usize::BITS - size.leading_zeros()
}

struct Plan {
    seconds: u64,
    seed: u64,
    input: Option<Vec<u8>>,
}

/// Runs one target.
///
/// # Panics
/// When the check does, or takes too long, after the input was printed; and on settings that are
/// no numbers.
pub fn run(target: &str, seeds: &[&[u8]], check: impl FnMut(&[u8], &mut Dice<'_>) -> u64) {
    with_words(target, seeds, &[], check);
}

/// As [`run`], with words of the format that mutation puts in and swaps.
///
/// # Panics
/// As [`run`].
pub fn with_words(
    target: &str,
    seeds: &[&[u8]],
    words: &[&[u8]],
    mut check: impl FnMut(&[u8], &mut Dice<'_>) -> u64,
) {
    let plan = Plan::read();
    let mut rng = Rng::new(plan.seed);
    if let Some(input) = plan.input {
        check(&input, &mut Dice(&mut rng));
        say(&format!("fuzz {target}: this input passes"));
        return;
    }
    say(&format!("fuzz {target}: seed {} for {} s", plan.seed, plan.seconds));
    let mut corpus: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    let mut seen = HashSet::new();
    let begun = Instant::now();
    let until = begun + Duration::from_secs(plan.seconds);
    let (mut cases, mut slowest) = (0_u64, Duration::ZERO);
    while cases < corpus.len() as u64 || Instant::now() < until {
        let input = match usize::try_from(cases).ok().and_then(|n| seeds.get(n)) {
            Some(seed) => seed.to_vec(),
            None => next(&mut rng, &corpus, words),
        };
        let started = Instant::now();
        let dice = rng.clone();
        let found =
            guarded(target, plan.seed, cases, &input, || check(&input, &mut Dice(&mut rng)));
        if started.elapsed() > CASE_TIME {
            let again = Instant::now();
            check(&input, &mut Dice(&mut dice.clone()));
            guarded(target, plan.seed, cases, &input, || {
                assert!(again.elapsed() <= CASE_TIME, "too slow, twice: {:?}", again.elapsed());
            });
        } else {
            slowest = slowest.max(started.elapsed());
        }
        cases += 1;
        if seen.insert(found) && corpus.len() < CORPUS_MAX {
            corpus.push(input);
        }
    }
    let spent = begun.elapsed();
    let rate = cases as f64 / spent.as_secs_f64().max(0.001);
    say(&format!(
        "fuzz {target}: clean: {cases} cases in {:.0} s, {rate:.0} a second, {} outcomes, slowest \
         {:.1} ms, seed {}",
        spent.as_secs_f64(),
        seen.len(),
        slowest.as_secs_f64() * 1e3,
        plan.seed
    ));
}

impl Plan {
    #[allow(clippy::panic)] // a setting that is no number must not be taken for another run
    fn read() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
        };
        let input = std::env::var("NANOCLAW_FUZZ_INPUT").ok();
        Self {
            seconds: number("NANOCLAW_FUZZ_SECONDS").unwrap_or(SECONDS),
            seed: number("NANOCLAW_FUZZ_SEED").unwrap_or_else(fresh),
            input: input.map(|hex| {
                unhex(&hex).unwrap_or_else(|| panic!("NANOCLAW_FUZZ_INPUT is no hex: {hex:?}"))
            }),
        }
    }
}

/// A seed that fits on a line; two targets that start together differ by where their stack is.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    outcome((now.as_nanos(), std::thread::current().id())) >> 16
}

fn say(line: &str) {
    // A lost line on a closed stderr changes nothing.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Runs what may panic; a panic goes on after what is needed to repeat it was printed.
fn guarded<T>(target: &str, seed: u64, case: u64, input: &[u8], act: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
        say(&format!("fuzz {target}: FAILED at case {case} of seed {seed}; the input is\n{hex}"));
        say(&format!("  {:?}", String::from_utf8_lossy(input)));
        say(&format!("repeat it: cargo xtask fuzz {target} --input {hex}"));
        resume_unwind(panic)
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    if text.len() % 2 == 0 { (0..text.len()).step_by(2).map(pair).collect() } else { None }
}

fn next(rng: &mut Rng, corpus: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let Some(first) = rng.pick(corpus).cloned() else { return Vec::new() };
    let mut bytes = first;
    if rng.below(8) == 0
        && let Some(second) = rng.pick(corpus)
    {
        // The head of one input and the tail of another.
        bytes.truncate(rng.below(bytes.len() + 1));
        bytes.extend_from_slice(&second[rng.below(second.len() + 1)..]);
    }
    for _ in 0..=rng.below(8) {
        edit(rng, &mut bytes, words);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Bytes that parsers care about.
const MARKS: &[u8] =
    b"\0\x01\x16\x1f \t\r\n\"'\\{}[]<>()&;:,./-+!#%=?@_09aAzZ\x7f\x80\xbf\xc0\xc3\xe2\xff";

/// One random edit: a byte changed, removed or doubled, a stretch removed, repeated elsewhere or
/// made long, a mark, a word or a number put in, or the tail cut.
fn edit(rng: &mut Rng, bytes: &mut Vec<u8>, words: &[&[u8]]) {
    if bytes.is_empty() {
        bytes.push(rng.byte());
        return;
    }
    let at = rng.below(bytes.len());
    let end = (at + 1 + rng.below(40)).min(bytes.len());
    match rng.below(13) {
        0 => bytes[at] = rng.byte(),
        1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at] = bytes[at].wrapping_add(1),
        3 => bytes[at] = bytes[at].wrapping_sub(1),
        4 => drop(bytes.remove(at)),
        5 => drop(bytes.drain(at..end)),
        6 => bytes[at] = MARKS[rng.below(MARKS.len())],
        7 => bytes.insert(at, MARKS[rng.below(MARKS.len())]),
        8 => {
            let piece = bytes[at..end].to_vec();
            let to = rng.below(bytes.len());
            bytes.splice(to..to, piece);
        }
        9 => {
            let most = if rng.below(20) == 0 { 300 } else { 6 };
            let piece = bytes[at..end].repeat(1 + rng.below(most));
            bytes.splice(at..at, piece);
        }
        10 if !words.is_empty() => {
            let word = words[rng.below(words.len())];
            let until = if rng.below(2) == 0 { at } else { end };
            bytes.splice(at..until, word.iter().copied());
        }
        11 => {
            let numbers: [&[u8]; 8] = [
                b"0",
                b"-1",
                b"4294967296",
                b"18446744073709551615",
                b"18446744073709551616",
                b"1e999",
                b"00",
                b"9007199254740993",
            ];
            let number = numbers[rng.below(numbers.len())];
            bytes.splice(at..at, number.iter().copied());
        }
        _ => {
            if rng.below(4) == 0 {
                bytes.truncate(at + 1);
            } else {
                bytes.swap(at, rng.below(at + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(seed: u64) -> Vec<Vec<u8>> {
        let (mut rng, corpus) = (Rng::new(seed), [b"a: b\r\n".to_vec(), b"{\"a\":1}".to_vec()]);
        (0..200).map(|_| next(&mut rng, &corpus, &[b"null"])).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_inputs_and_another_gives_others() {
        assert_eq!(inputs(5), inputs(5));
        assert_ne!(inputs(5), inputs(6));
    }

    #[test]
    fn a_failure_three_steps_away_from_the_seed_is_found_by_its_outcomes() {
        let found = std::panic::catch_unwind(|| {
            run("sample", &[b"......"], |input, _| {
                let right = input.iter().zip(b"{}:").take_while(|(a, b)| a == b).count();
                assert!(right < 3, "found");
                right as u64
            });
        });
        assert!(found.is_err(), "the guidance does not guide");
    }

    #[test]
    fn hex_is_read_back_and_pieces_are_the_whole() {
        assert_eq!(unhex("00ff7a"), Some(vec![0, 255, b'z']));
        assert_eq!((unhex("0"), unhex("zz"), unhex("é")), (None, None, None));
        let mut rng = Rng::new(3);
        for _ in 0..200 {
            let pieces = Dice(&mut rng).pieces(b"0123456789", 4).concat();
            assert_eq!(pieces, b"0123456789");
        }
    }
}
