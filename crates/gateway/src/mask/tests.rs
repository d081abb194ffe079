use super::*;
use crate::mask::escapes::Step;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use testkit::fuzz;

fn in_pieces(secrets: &[&str], text: &str, size: usize) -> String {
    let mut masker = Masker::of(secrets.iter().map(|s| s.as_bytes()));
    let mut out = Vec::new();
    for piece in text.as_bytes().chunks(size) {
        out.extend(masker.feed(piece));
    }
    out.extend(masker.finish());
    String::from_utf8(out).expect("UTF-8 in, UTF-8 out")
}

#[test]
fn a_secret_is_masked_wherever_the_pieces_are_cut() {
    let text = "abcabcabd abcabcabcabd abcab abcabd";
    for size in 1..text.len() {
        let out = in_pieces(&["abcabcabd"], text, size);
        assert_eq!(out, "[secret masked] abc[secret masked] abcab abcabd", "size {size}");
    }
}

#[test]
fn several_secrets_are_masked_and_the_longer_of_two_that_begin_alike_wholly() {
    let secrets = ["abcdef", "abcdefghij", "zzzzzz", "abcdef"];
    let text = "abcdef abcdefghij zzzzzz abcdefghi\\u006a \\u0061bcdef abcdefg zzzzz";
    let mask = "[secret masked]";
    for size in 1..text.len() {
        let out = in_pieces(&secrets, text, size);
        let expected = format!("{mask} {mask} {mask} {mask} {mask} {mask}g zzzzz");
        assert_eq!(out, expected, "size {size}");
    }
    assert_eq!(in_pieces(&[], text, 7), text);
}

#[test]
fn the_json_spelling_is_masked_too() {
    let out = in_pieces(&["quo\"te\\x"], r#"{"a":"quo\"te\\x"}"#, 3);
    assert_eq!(out, r#"{"a":"[secret masked]"}"#);
}

#[test]
fn other_spellings_are_masked_wherever_they_are_cut() {
    let secret = "not/a+real key?";
    let mut texts = vec![
        "x=not%2Fa%2Breal%20key%3F&y".to_owned(),
        "x=not%2fa%2breal%20key%3f&y".to_owned(),
        "x=not%2Fa%2Breal+key%3F&y".to_owned(),
    ];
    for before in ["", "u:", "user:", "user1:"] {
        let whole = format!("{before}{secret} and more");
        texts.push(STANDARD.encode(&whole));
        texts.push(URL_SAFE.encode(&whole));
    }
    for text in texts {
        for size in [1, 2, 5, text.len()] {
            let out = in_pieces(&[secret], &text, size);
            assert!(out.contains("[secret masked]"), "{text} in {size}: {out}");
        }
    }
}

#[test]
fn marks_written_otherwise_are_masked_too() {
    let secret = "a+b/c&d<e>f'g\"h";
    for text in [
        r#"a+b\/c&d<e>f'g\"h"#,
        r#"a+b/c\u0026d\u003ce\u003ef'g\"h"#,
        r#"a\u002Bb/c\u0026d\u003Ce\u003Ef\u0027g\"h"#,
        "a+b/c&amp;d&lt;e&gt;f'g\"h",
        "a+b/c&amp;d&lt;e&gt;f&#39;g&quot;h",
        "a+b/c&amp;d&lt;e&gt;f&#x27;g&quot;h",
        "a+b/c&amp;d&lt;e&gt;f&#39;g&#34;h",
        "612b622f6326643c653e6627672268",
        "612B622F6326643C653E6627672268",
        // Any character in any way, one like this and the next like that.
        r#"\u0061\u002b\u0062\/c\u0026d<\u0065>f'g\"h"#,
        "&#97;&plus;b&#x2F;c&amp;d&LT;e&#00062;f&apos;g&#x00022;h",
        "a+b&sol;c&#38d&lt;e&gt;f'g\"h",
        "%61%2bb/c%26d%3Ce%3ef'g%22%68",
    ] {
        for size in [1, 4, text.len()] {
            let out = in_pieces(&[secret], &format!("<{text}>"), size);
            assert_eq!(out, "<[secret masked]>", "{text} in {size}");
        }
    }
    let out = in_pieces(&["schlüssel"], r"\u0073chl\u00FCssel schl&#xfc;ssel schl%c3%BCssel", 1);
    assert_eq!(out, "[secret masked] [secret masked] [secret masked]");
}

#[test]
fn base64_is_masked_in_lines_and_with_escapes() {
    // Of bytes whose base64 has both marks of the alphabet.
    let secret = "~~~???>>>-not-a-real-key-but-long-enough-for-two-lines-of-mime-~~~???>>>";
    let whole = STANDARD.encode(format!("user:{secret}:and more"));
    assert!(whole.contains('/') && whole.contains('+'));
    let lines = |size: usize, end: &str| {
        let lines: Vec<_> = whole.as_bytes().chunks(size).map(String::from_utf8_lossy).collect();
        lines.join(end)
    };
    let mut texts = vec![
        whole.replace('+', "\\u002B").replace('/', "\\/"),
        whole.replace('+', "\\u002b").replace('/', "\\u002F"),
        whole.replace('+', "%2B").replace('/', "%2f"),
        whole.replace('+', "&#43;").replace('/', "&#x2F;"),
        whole.replace('+', "&plus;").replace('/', "&sol;"),
        whole.replace('+', "%2D").replace('/', "\\u005f"),
        whole.replace('+', "-").replace('/', "&lowbar;"),
    ];
    for size in [60, 64, 76] {
        let ends = ["\n", "\r\n", "\r\n    ", "\\n", "\\r\\n", "%0D%0A", "&#13;&#10;", "&NewLine;"];
        for end in ends {
            texts.push(lines(size, end));
            texts.push(lines(size, end).replace('+', "%2B").replace('/', "%2F"));
        }
    }
    // What stands before is no part of it, though it may look so to a reader of escapes.
    texts.extend(["\\", "%", "&", "\\n", "%4"].map(|mark| format!("{mark}{whole}")));
    texts.extend(["\\", "%", "&"].map(|mark| format!("{mark}{}", STANDARD.encode(secret))));
    for text in texts {
        for size in [1, 3, text.len()] {
            let out = in_pieces(&[secret], &text, size);
            assert_eq!(out.matches("[secret masked]").count(), 1, "{text} in {size}: {out}");
            assert!(out.len() < 52, "{text} in {size}: {out}");
        }
    }
}

#[test]
fn hexadecimal_is_masked_in_any_case() {
    for text in ["6162634A4b4c", "6162634a4B4C", "6162634a4b4c", "6162634A4B4C"] {
        assert_eq!(in_pieces(&["abcJKL"], text, 5), "[secret masked]");
    }
}

#[test]
fn an_empty_line_and_the_end_of_a_short_match_are_not_waited_for() {
    let start = STANDARD.encode("zzzzzzzzzzzz");
    for held in 1..start.len() {
        let mut masker = Masker::new(Some(b"zzzzzzzzzzzz"));
        let text = format!("data: {}\n\n", &start[..held]);
        assert_eq!(masker.feed(text.as_bytes()), text.as_bytes(), "an event is whole");
        let text = format!("{}\n", &start[..held.min(3)]);
        assert_eq!(masker.feed(text.as_bytes()), text.as_bytes(), "a line is not late");
        let far = format!("{}\n{}", &start[..held], " ".repeat(80));
        assert_eq!(masker.whole(far.as_bytes()), far.as_bytes());
    }
}

#[test]
fn near_misses_take_linear_time() {
    let secrets = ["aaaaaaaaaaaaaaaaaaaaaaaab", "abababababababababababac", "test-key-not-real"];
    let near: Vec<String> = secrets
        .iter()
        .flat_map(|s| {
            let (almost, whole) = (&s[..s.len() - 1], STANDARD.encode(s));
            let lines = whole[..whole.len() - 9].replace("YW", "Y\nW");
            [almost.to_owned(), lines, almost.replace('a', "\\u0061&#9"), "%61\\u00".into()]
        })
        .collect();
    let unit = near.join("");
    let text = unit.repeat((1 << 18) / unit.len());
    let started = std::time::Instant::now();
    let mut masker = Masker::of(secrets.iter().map(|s| s.as_bytes()));
    assert_eq!(masker.whole(text.as_bytes()).len(), text.len());
    let took = started.elapsed();
    let told = format!("256 KiB of near misses, three secrets: {took:?}\n");
    std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes()).expect("stderr");
    // Quadratic behaviour would take minutes.
    assert!(took < std::time::Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_number_that_is_a_secret_is_masked() {
    let secrets = ["123456", "900719925474099312345678"];
    let shown = |text: &str| {
        let number: serde_json::Number = serde_json::from_str(text).expect("a number");
        Masker::of(secrets.iter().map(|s| s.as_bytes())).number(&number)
    };
    for text in ["123456", "-123456", "123456.5", "1.23456e5", "900719925474099312345678"] {
        assert!(shown(text).is_some_and(|t| t.contains("[secret masked]")), "{text}");
    }
    assert_eq!(shown("99123456").as_deref(), Some("99[secret masked]"));
    for text in ["12345", "9007199254740993", "9.1e23", "0", "1e300"] {
        assert_eq!(shown(text), None, "{text}");
    }
}

#[test]
fn what_only_looks_like_an_escape_is_passed_on_as_it_was() {
    let text =
        r"\ \u \u00 \u00g \\u0061bcdef &amp &#; &#x; &nothing; &#99999999; % %4 %zz \ud83d &";
    for size in [1, 3, text.len()] {
        assert_eq!(in_pieces(&["abcdef"], text, size), text);
        assert_eq!(in_pieces(&["abcdef"], "a&#98;cde\\u0066", size), "a&#98;cde\\u0066");
    }
}

#[test]
fn a_fields_name_is_looked_at_without_regard_to_case() {
    let masker = Masker::of([&b"another"[..], b"Not-A-Key"]);
    assert!(masker.names("x-not-a-key-y") && masker.names("NOT-A-KEY") && masker.names("ANOTHER"));
    assert!(!masker.names("x-not-a-ke") && !Masker::new(None).names(""));
}

/// Writes `secret` in a way that `way` chooses, escaping what `salt` picks.
fn written(secret: &[u8], way: usize, salt: usize, text: &mut Vec<u8>) {
    let picked = |at: usize| !(salt / 3 + at * 7 + at / 3).is_multiple_of(3);
    match way {
        0 => text.extend_from_slice(secret),
        1 => text.extend(STANDARD.encode([&b"xyz"[..salt % 3], secret].concat()).bytes()),
        2 => secret.iter().enumerate().for_each(|(at, b)| match picked(at) {
            true => text.extend(format!("{b:02X}").bytes()),
            false => text.extend(format!("{b:02x}").bytes()),
        }),
        7 | 8 => {
            let whole = STANDARD.encode([&b"xyz"[..salt % 3], secret].concat());
            for (at, b) in whole.bytes().enumerate() {
                match (way, at % (3 + salt % 9)) {
                    (7, 0) => text.extend([&b"\r\n"[salt % 2..], &[b]].concat()),
                    (8, 0) if picked(at) => text.extend(format!("%{b:02x}").bytes()),
                    (8, 0) => text.extend(format!("\\u{b:04X}").bytes()),
                    (8, 1) => text.extend(format!("&#{b}").bytes().chain(*b";")),
                    _ => text.push(b),
                }
            }
        }
        _ => {
            let plain = String::from_utf8_lossy(secret).into_owned();
            for (at, c) in plain.char_indices() {
                let code = u32::from(c);
                match way {
                    3 if picked(at) => text.extend(format!("\\u{code:04x}").bytes()),
                    4 if picked(at) => text.extend(format!("&#{code};").bytes()),
                    5 if picked(at) => text.extend(format!("&#x{code:X};").bytes()),
                    6 if picked(at) && c.is_ascii() => text.extend(format!("%{code:02x}").bytes()),
                    _ => text.extend(c.to_string().bytes()),
                }
            }
        }
    }
}

/// Up to three secrets, and a text that has them in some spelling wherever the input has one of
/// `SBXJHDUME`, and their beginnings where it has `P`.
fn secrets_and_text(input: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut secrets, mut rest) = (Vec::new(), input);
    let count = 1 + usize::from(input.first().copied().unwrap_or(0)) / 24 % 3;
    for _ in 0..count {
        let Some((&first, after)) = rest.split_first() else { break };
        let size = (usize::from(first) % 24).min(after.len());
        secrets.push(after[..size].to_vec());
        rest = &after[size..];
    }
    secrets.push(Vec::new());
    let mut text = Vec::new();
    for (at, &b) in rest.iter().enumerate() {
        let secret = &secrets[(at + text.len()) % secrets.len()];
        match b"SBXJHDUME".iter().position(|&mark| mark == b) {
            Some(way) => written(secret, way, at + text.len(), &mut text),
            // Must be let go again.
            None if b == b'P' => text.extend_from_slice(&secret[..secret.len() / 2]),
            None => text.push(b),
        }
    }
    (secrets, text)
}

/// What a reader of that kind of text makes of it.
fn decoded(text: &[u8], syntax: Syntax) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    'next: while let Some((&b, after)) = rest.split_first() {
        let mut n = 1;
        while syntax.begins(b) && n < rest.len() {
            let (bytes, taken) = match syntax.step(&rest[..n], rest[n]) {
                Step::More => {
                    n += 1;
                    continue;
                }
                Step::Done(bytes) => (bytes, n + 1),
                Step::Before(bytes) => (bytes, n),
                Step::Not => break,
            };
            out.extend_from_slice(&bytes.0[..bytes.1]);
            rest = &rest[taken..];
            continue 'next;
        }
        out.push(b);
        rest = after;
    }
    out
}

/// Between the marks nothing is left of any secret in any spelling.
fn holds_none(secrets: &[Vec<u8>], out: &[u8]) {
    let long = || secrets.iter().filter(|s| s.len() >= SECRET_BYTES_MIN);
    let stands = |text: &[u8], what: &[u8]| text.windows(what.len()).any(|w| w == what);
    // What is cut out may end in the beginning of an escape, if a secret itself does.
    let whole = long().all(|s| !s.iter().any(|b| b"\\&%".contains(b)));
    let mark = String::from_utf8_lossy(MASK).into_owned();
    let Ok(out) = std::str::from_utf8(out) else { return };
    for part in out.split(&mark) {
        for secret in long() {
            for needle in needles(secret) {
                let found = match needle.syntax {
                    Syntax::Plain => stands(part.as_bytes(), &needle.bytes),
                    Syntax::Form => false,
                    Syntax::Hex | Syntax::Base64 => {
                        let letters = part.bytes().map(|b| needle.syntax.letter(b));
                        stands(&letters.collect::<Vec<_>>(), &needle.bytes)
                    }
                    other => {
                        let read = decoded(part.as_bytes(), other).into_iter();
                        let read: Vec<u8> = read.map(|b| other.letter(b)).collect();
                        whole && stands(&read, &needle.bytes)
                    }
                };
                assert!(!found, "a spelling of a secret came through");
            }
        }
    }
}

#[test]
fn fuzz_mask() {
    let seeds: [&[u8]; 8] = [
        b"\x11test-key-not-real?>x MMM E EE\r\n M\nE\r\n\r\nME XXX PMP",
        b"\x09abcabcabdabS-xSyyPJ bbU...BBS SSSS",
        b"\x08k\"y/+ \\zdata: S\n\nJJPPU=S",
        b"\x06aabaabSaabaaSaabaabaab",
        b"\x14test-key-not-real-00xBUSPJxyzBxxUHDX",
        b"\x20abcdefgh\x0cabcdefghijklS SJ SJHDUXBPPSJ SJ HHDD abcdef JJJ",
        b"\x36aabaab\x07baabaab\x08abaabaabSSSPPPaabaabaabaabJHDUJHDU\\u00P&#P%P",
        b"\x38zzzzzzzz\x08yyyyyyyy\x09zzzzyyyyySJzzzzHyyyyDSUUzzzzzz",
    ];
    fuzz::run("mask", &seeds, |input, dice| {
        let (secrets, text) = secrets_and_text(input);
        let new = || Masker::of(secrets.iter().map(Vec::as_slice));
        let mut masker = new();
        let whole = masker.whole(&text);
        let mut cut = new();
        let mut out = Vec::new();
        for piece in dice.pieces(&text, 9) {
            out.extend(cut.feed(piece));
        }
        out.extend(cut.finish());
        assert_eq!(out, whole, "in pieces it says something else");
        assert_eq!(cut.found(), masker.found());
        assert!(masker.found() || whole == text, "changed without a cause");
        // A secret that stands in the mark itself cannot be masked by it.
        if new().whole(MASK) == MASK {
            holds_none(&secrets, &whole);
        }
        let sizes = (fuzz::magnitude(text.len()), fuzz::magnitude(whole.len()));
        fuzz::outcome((masker.found(), secrets.len(), sizes))
    });
}

#[test]
fn nothing_is_held_back_without_cause() {
    let mut masker = Masker::new(Some(b"zzzzzzzz"));
    assert_eq!(masker.feed(b"data: hello\n\n"), b"data: hello\n\n");
    assert_eq!(masker.feed(b"data: zz"), b"data: ");
    assert_eq!(masker.finish(), b"zz");
}

#[test]
fn no_secret_changes_nothing() {
    assert_eq!(Masker::new(None).whole(b"abc"), b"abc");
    assert_eq!(Masker::new(Some(b"ab")).whole(b"abc"), b"abc");
    assert!(Masker::new(Some(b"ab")).is_idle());
}
