//! The request head: bytes → [`Head`], or a refusal. Pure.
//!
//! RFC 9112 with every permission to be lenient declined: CRLF only, no folding, no blanks
//! before a colon, one `Host`, at most one `Content-Length`, `Transfer-Encoding` only as
//! `chunked` and never beside a length.

/// Largest head. Browsers and SDKs stay below 16 KiB, cookies included.
pub(crate) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header fields; SDKs send about 25.
pub(crate) const HEADERS_MAX: usize = 100;
/// Longest method; the longest registered one has 17 characters.
const METHOD_CHARS_MAX: usize = 20;

/// HTTP/1.x minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    Http11,
}

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// One header field; names are lower case.
pub(crate) type Field = (String, String);

/// A parsed request head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: Version,
    pub(crate) fields: Vec<Field>,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
}

impl Head {
    /// The first value of a field, `name` in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(crate) fn expects_continue(&self) -> bool {
        self.version == Version::Http11
            && self.field("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
    }
}

/// Why a head is refused; each is answered with 400 (431 for sizes) and the connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the request head is larger than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} fields")]
    TooLarge,
    #[error("the request line is malformed: {0}")]
    RequestLine(&'static str),
    #[error("a header field is malformed: {0}")]
    Field(&'static str),
    #[error("the message length is ambiguous: {0}")]
    Framing(&'static str),
    #[error("the Host field is wrong: {0}")]
    Host(&'static str),
}

/// Where the head ends in `bytes` (index after the blank line), if it is complete.
pub(crate) fn end_of_head(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    bytes.get(from..)?.windows(4).position(|w| w == b"\r\n\r\n").map(|at| from + at + 4)
}

fn is_tchar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Parses a complete head, blank line included.
pub(crate) fn parse(bytes: &[u8]) -> Result<Head, HeadError> {
    if bytes.len() > HEAD_BYTES_MAX {
        return Err(HeadError::TooLarge);
    }
    // Every CR must be followed by LF and every LF preceded by CR; NUL and other controls never.
    let mut previous = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let lone = (b == b'\n' && previous != b'\r') || (previous == b'\r' && b != b'\n');
        if lone {
            return Err(HeadError::Field("a line must end with CR LF"));
        }
        if i == 0 && matches!(b, b'\r' | b'\n') {
            return Err(HeadError::RequestLine("it is empty"));
        }
        previous = b;
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| HeadError::Field("only ASCII and UTF-8 are accepted"))?;
    let text = text.strip_suffix("\r\n\r\n").ok_or(HeadError::Field("the head is incomplete"))?;
    let mut lines = text.split("\r\n");
    let (method, target, version) = request_line(lines.next().unwrap_or(""))?;
    let mut fields = Vec::new();
    for line in lines {
        if fields.len() == HEADERS_MAX {
            return Err(HeadError::TooLarge);
        }
        fields.push(field(line)?);
    }
    let framing = framing(&fields, version)?;
    check_host(&fields, version)?;
    let keep_alive = keep_alive(&fields, version);
    Ok(Head { method, target, version, fields, framing, keep_alive })
}

fn request_line(line: &str) -> Result<(String, String, Version), HeadError> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HeadError::RequestLine("it must be METHOD TARGET VERSION, one blank between"));
    };
    if method.is_empty() || method.len() > METHOD_CHARS_MAX || !method.bytes().all(is_tchar) {
        return Err(HeadError::RequestLine("the method is not a token"));
    }
    if method.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(HeadError::RequestLine("the method is not in upper case"));
    }
    if target.is_empty() || !target.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        return Err(HeadError::RequestLine("the target has characters that must be escaped"));
    }
    if target.contains('#') {
        return Err(HeadError::RequestLine("the target has a fragment"));
    }
    let version = match version {
        "HTTP/1.1" => Version::Http11,
        "HTTP/1.0" => Version::Http10,
        _ => return Err(HeadError::RequestLine("only HTTP/1.1 and HTTP/1.0 are spoken here")),
    };
    Ok((method.to_owned(), target.to_owned(), version))
}

fn field(line: &str) -> Result<Field, HeadError> {
    if line.starts_with([' ', '\t']) {
        return Err(HeadError::Field("folded lines are obsolete"));
    }
    let (name, value) = line.split_once(':').ok_or(HeadError::Field("it has no colon"))?;
    if name.is_empty() || !name.bytes().all(is_tchar) {
        return Err(HeadError::Field("its name is not a token"));
    }
    let value = value.trim_matches([' ', '\t']);
    if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        return Err(HeadError::Field("its value has control characters"));
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

fn all<'a>(fields: &'a [Field], name: &'a str) -> impl Iterator<Item = &'a str> {
    fields.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
}

fn framing(fields: &[Field], version: Version) -> Result<Framing, HeadError> {
    let mut lengths = all(fields, "content-length");
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(HeadError::Framing("Content-Length stands twice"));
    }
    let mut codings = all(fields, "transfer-encoding");
    let coding = codings.next();
    if codings.next().is_some() {
        return Err(HeadError::Framing("Transfer-Encoding stands twice"));
    }
    match (length, coding) {
        (Some(_), Some(_)) => {
            Err(HeadError::Framing("Content-Length stands beside Transfer-Encoding"))
        }
        (None, Some(_)) if version == Version::Http10 => {
            Err(HeadError::Framing("HTTP/1.0 knows no Transfer-Encoding"))
        }
        (None, Some(c)) if c.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(HeadError::Framing("Transfer-Encoding may only be chunked")),
        (Some(n), None) => number(n).map(Framing::Length),
        (None, None) => Ok(Framing::None),
    }
}

/// Decimal digits only: no sign, no list, no blank. 15 digits are more than any body here.
fn number(text: &str) -> Result<u64, HeadError> {
    let digits = !text.is_empty() && text.len() <= 15 && text.bytes().all(|b| b.is_ascii_digit());
    let error = HeadError::Framing("Content-Length is not a plain number");
    if digits { text.parse().map_err(|_| error) } else { Err(error) }
}

fn check_host(fields: &[Field], version: Version) -> Result<(), HeadError> {
    let mut hosts = all(fields, "host");
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(HeadError::Host("it stands twice")),
        (None, None) if version == Version::Http11 => Err(HeadError::Host("it is missing")),
        (Some(host), None) if host.contains(['/', '@', ',', ' ', '\\', '?', '#']) => {
            Err(HeadError::Host("it is not host or host:port"))
        }
        _ => Ok(()),
    }
}

fn keep_alive(fields: &[Field], version: Version) -> bool {
    let says = |word: &str| {
        all(fields, "connection")
            .flat_map(|v| v.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    match version {
        Version::Http11 => !says("close"),
        Version::Http10 => says("keep-alive") && !says("close"),
    }
}

/// A chunk-size line without its CRLF: hex digits, no extension (nobody needs them, and parsers
/// disagree on them). At most 8 digits.
pub(crate) fn chunk_size(line: &[u8]) -> Result<u64, HeadError> {
    let error = HeadError::Framing("a chunk size is not a plain hex number");
    if line.is_empty() || line.len() > 8 || !line.iter().all(u8::is_ascii_hexdigit) {
        return Err(error);
    }
    let text = std::str::from_utf8(line).map_err(|_| error)?;
    u64::from_str_radix(text, 16).map_err(|_| error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzz;

    #[test]
    fn a_plain_request_is_understood() {
        let head = parse(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n")
            .expect("a valid head");
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/v1/messages"));
        assert_eq!(head.framing, Framing::Length(12));
        assert!(head.keep_alive);
    }

    #[test]
    fn what_two_parsers_may_read_differently_is_refused() {
        let cases: &[&str] = &[
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\rA: b\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "get / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
            "GET /#f HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n: empty\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
        ];
        for case in cases {
            assert!(parse(case.as_bytes()).is_err(), "accepted: {case:?}");
        }
    }

    #[test]
    fn chunk_sizes_are_plain_hex() {
        assert_eq!(chunk_size(b"1aF"), Ok(0x1af));
        for bad in [&b""[..], b" 1", b"1;x", b"0x1", b"-1", b"123456789", b"g"] {
            assert!(chunk_size(bad).is_err());
        }
    }

    /// What another reader makes of a head: method, target, minor version, fields.
    type Other = (String, String, u8, Vec<(String, Vec<u8>)>);

    fn elsewhere(bytes: &[u8]) -> Option<Other> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
            _ => return None,
        }
        let fields = request.headers.iter();
        let fields = fields.map(|f| (f.name.to_ascii_lowercase(), f.value.to_vec())).collect();
        Some((request.method?.into(), request.path?.into(), request.version?, fields))
    }

    #[test]
    fn fuzz_http_head() {
        let seeds: [&[u8]; 5] = [
            b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n",
            b"GET http://a.org/x?y HTTP/1.1\r\nHost: a.org\r\nConnection: close, x\r\n\r\n",
            b"CONNECT a.org:443 HTTP/1.1\r\nHost: a.org:443\r\nUser-Agent: curl\r\n\r\n",
            b"PUT /a%20b HTTP/1.1\r\nhost:\tx \r\ntransfer-encoding: chunked\r\nA: \xc3\xa9\r\n\r\n",
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        ];
        let words: [&[u8]; 12] = [
            b"\r\n",
            b"\r\n\r\n",
            b" ",
            b": ",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n ",
            b"Content-Length: 0\r\n",
            b"HTTP/1.1",
            b"Host: y\r\n",
            b"chunked, gzip",
            b"\t",
            b"\n",
        ];
        fuzz::with_words("http-head", &seeds, &words, |bytes, _| {
            let end = end_of_head(bytes, 0).unwrap_or(bytes.len());
            let bytes = &bytes[..end];
            let head = match parse(bytes) {
                Ok(head) => head,
                Err(e) => return fuzz::outcome(e.to_string()),
            };
            // Another reader sees the same request.
            let Some((method, target, minor, fields)) = elsewhere(bytes) else {
                return fuzz::outcome("only here");
            };
            assert_eq!((&method, &target), (&head.method, &head.target));
            assert_eq!(minor == 1, head.version == Version::Http11);
            let ours = head.fields.iter().map(|(n, v)| (n.clone(), v.as_bytes().to_vec()));
            assert_eq!(ours.collect::<Vec<_>>(), fields);
            // Written as it was understood, it is understood alike.
            let mut again = format!("{} {} HTTP/1.{minor}\r\n", head.method, head.target);
            for (name, value) in &head.fields {
                again.push_str(&format!("{name}: {value}\r\n"));
            }
            again.push_str("\r\n");
            assert!(again.len() > HEAD_BYTES_MAX || parse(again.as_bytes()).as_ref() == Ok(&head));
            let framing = std::mem::discriminant(&head.framing);
            fuzz::outcome((framing, head.keep_alive, head.fields.len(), head.expects_continue()))
        });
    }
}
