//! How texts write characters otherwise: one escape at a time, byte by byte. Pure.

/// In what kind of text a secret is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// As it stands.
    Plain,
    /// Strings of JSON (RFC 8259 §7) and of the languages that look like it.
    Json,
    /// Character references of HTML and XML.
    Html,
    /// `%XX` (RFC 3986 §2.1).
    Percent,
    /// As in forms: `%XX`, and `+` for a blank.
    Form,
    /// Hexadecimal digits, in either case.
    Hex,
    /// base64 in either alphabet (RFC 4648 §4, §5), as it stands.
    Base64,
    /// The same with any of its marks escaped in any of the ways above: in a text that has escapes,
    /// one that stands right before it may take its first letter along, so it is looked for twice.
    Escaped64,
}

/// Longest reference of HTML that is read, from `&` on: `&#x0000002f;` has room for zeros nobody
/// needs.
const REFERENCE_BYTES_MAX: usize = 16;

/// The names of ASCII marks (the HTML standard, named character references).
const NAMED: [(&str, u8); 39] = [
    ("NewLine", b'\n'),
    ("Tab", b'\t'),
    ("amp", b'&'),
    ("AMP", b'&'),
    ("lt", b'<'),
    ("LT", b'<'),
    ("gt", b'>'),
    ("GT", b'>'),
    ("quot", b'"'),
    ("QUOT", b'"'),
    ("apos", b'\''),
    ("sol", b'/'),
    ("bsol", b'\\'),
    ("plus", b'+'),
    ("equals", b'='),
    ("lowbar", b'_'),
    ("num", b'#'),
    ("colon", b':'),
    ("semi", b';'),
    ("comma", b','),
    ("period", b'.'),
    ("commat", b'@'),
    ("quest", b'?'),
    ("excl", b'!'),
    ("percnt", b'%'),
    ("dollar", b'$'),
    ("ast", b'*'),
    ("grave", b'`'),
    ("lpar", b'('),
    ("rpar", b')'),
    ("lbrace", b'{'),
    ("lcub", b'{'),
    ("rbrace", b'}'),
    ("rcub", b'}'),
    ("lbrack", b'['),
    ("lsqb", b'['),
    ("rsqb", b']'),
    ("vert", b'|'),
    ("Hat", b'^'),
];

/// What one more byte makes of the beginning of an escape.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes on.
    More,
    /// It ends with this byte and stands for these bytes.
    Done(Bytes),
    /// It ended before this byte.
    Before(Bytes),
    /// It is none: its first byte stands for itself.
    Not,
}

/// The bytes of one character.
pub(super) type Bytes = ([u8; 4], usize);

fn byte(b: u8) -> Bytes {
    ([b, 0, 0, 0], 1)
}

/// A character in UTF-8; none for what is no character (surrogates are not put together).
fn character(code: u32) -> Option<Bytes> {
    let c = char::from_u32(code).filter(|&c| c != '\0')?;
    let mut bytes = [0; 4];
    let n = c.encode_utf8(&mut bytes).len();
    Some((bytes, n))
}

fn number(digits: &[u8], radix: u32) -> Option<Bytes> {
    let text = std::str::from_utf8(digits).ok()?;
    character(u32::from_str_radix(text, radix).ok()?)
}

impl Syntax {
    /// Whether an escape begins with `b`.
    pub(super) fn begins(self, b: u8) -> bool {
        match self {
            Self::Plain | Self::Hex | Self::Base64 => false,
            Self::Json => b == b'\\',
            Self::Html => b == b'&',
            Self::Percent | Self::Form => b == b'%',
            Self::Escaped64 => matches!(b, b'\\' | b'&' | b'%'),
        }
    }

    /// What a byte outside every escape stands for.
    pub(super) fn plain(self, b: u8) -> u8 {
        if self == Self::Form && b == b'+' { b' ' } else { self.letter(b) }
    }

    /// The one form of what readers take for the same.
    pub(super) fn letter(self, b: u8) -> u8 {
        match (self, b) {
            (Self::Hex, b) => b.to_ascii_lowercase(),
            (Self::Base64 | Self::Escaped64, b'-') => b'+',
            (Self::Base64 | Self::Escaped64, b'_') => b'/',
            (_, b) => b,
        }
    }

    /// Whether readers pass over the ends of lines (MIME, RFC 2045 §6.8).
    pub(super) fn has_lines(self) -> bool {
        matches!(self, Self::Base64 | Self::Escaped64)
    }

    /// Reads `b` after `token`, which began an escape.
    pub(super) fn step(self, token: &[u8], b: u8) -> Step {
        match self {
            Self::Plain | Self::Hex | Self::Base64 => Step::Not,
            Self::Json => json(token, b),
            Self::Html => html(token, b),
            Self::Percent | Self::Form => percent(token, b),
            Self::Escaped64 => match token.first() {
                Some(b'\\') => json(token, b),
                Some(b'&') => html(token, b),
                _ => percent(token, b),
            },
        }
    }

    /// What `token` stands for where nothing follows.
    pub(super) fn at_end(self, token: &[u8]) -> Option<Bytes> {
        match self.step(token, b' ') {
            Step::Before(bytes) => Some(bytes),
            _ => None,
        }
    }
}

fn json(token: &[u8], b: u8) -> Step {
    let short = match b {
        b'"' | b'\\' | b'/' | b'\'' => b,
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        _ => 0,
    };
    match token.len() {
        1 if b == b'u' => Step::More,
        1 if short != 0 => Step::Done(byte(short)),
        2..=4 if b.is_ascii_hexdigit() => Step::More,
        5 if b.is_ascii_hexdigit() => {
            let digits = [token[2], token[3], token[4], b];
            number(&digits, 16).map_or(Step::Not, Step::Done)
        }
        _ => Step::Not,
    }
}

fn percent(token: &[u8], b: u8) -> Step {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    match (token, digit(b)) {
        ([_], Some(_)) => Step::More,
        ([_, high], Some(low)) => {
            digit(*high).map_or(Step::Not, |high| Step::Done(byte(16 * high + low)))
        }
        _ => Step::Not,
    }
}

fn html(token: &[u8], b: u8) -> Step {
    let room = token.len() < REFERENCE_BYTES_MAX;
    let numeric = |digits: &[u8], radix| match number(digits, radix) {
        // Readers forgive a missing semicolon after a number.
        Some(bytes) if b == b';' => Step::Done(bytes),
        Some(bytes) => Step::Before(bytes),
        None => Step::Not,
    };
    match token {
        [_] if b == b'#' || b.is_ascii_alphabetic() => Step::More,
        [_] => Step::Not,
        [_, b'#'] if b.is_ascii_digit() || matches!(b, b'x' | b'X') => Step::More,
        [_, b'#'] => Step::Not,
        [_, b'#', b'x' | b'X', digits @ ..] => match b.is_ascii_hexdigit() {
            true if room => Step::More,
            true => Step::Not,
            false => numeric(digits, 16),
        },
        [_, b'#', digits @ ..] => match b.is_ascii_digit() {
            true if room => Step::More,
            true => Step::Not,
            false => numeric(digits, 10),
        },
        [_, name @ ..] if b == b';' => {
            let found = NAMED.iter().find(|(known, _)| known.as_bytes() == name);
            found.map_or(Step::Not, |(_, mark)| Step::Done(byte(*mark)))
        }
        [_, ..] if b.is_ascii_alphanumeric() && room => Step::More,
        _ => Step::Not,
    }
}
