//! Heads of requests and answers, strictly.

/// Longest head read, bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// What a request's head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, `POST` or another word.
    pub method: String,
    /// Beginning with `/`, as it was sent; nothing is decoded.
    pub path: String,
    /// Bytes of the body.
    pub length: u64,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
}

/// How long an answer's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// In pieces with their lengths.
    Chunked,
    /// Up to the end of the connection.
    UntilClose,
}

/// What an answer's head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its `Content-Type`, if it says one.
    pub kind: Option<String>,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
}

/// The fields that matter here.
#[derive(Default)]
struct Fields<'a> {
    length: Option<u64>,
    chunked: bool,
    coding: Option<&'a str>,
    kind: Option<&'a str>,
    connection: String,
}

fn lines(head: &[u8]) -> Result<(&str, Fields<'_>), &'static str> {
    let text = std::str::from_utf8(head).map_err(|_| "not text")?;
    let text = text.strip_suffix("\r\n\r\n").ok_or("it does not end")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().ok_or("it is empty")?;
    if !first.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err("a control character in the first line");
    }
    let mut fields = Fields::default();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a field without a colon")?;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("a field's name is no token");
        }
        if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Err("a control character in a field");
        }
        field(&mut fields, &name.to_ascii_lowercase(), value.trim_matches([' ', '\t']))?;
    }
    Ok((first, fields))
}

fn field<'a>(found: &mut Fields<'a>, name: &str, value: &'a str) -> Result<(), &'static str> {
    match name {
        "content-length" => {
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let length = digits.then(|| value.parse().ok()).flatten().ok_or("a bad length")?;
            if found.length.replace(length).is_some() {
                return Err("two lengths");
            }
        }
        "transfer-encoding" => {
            if found.chunked || !value.eq_ignore_ascii_case("chunked") {
                return Err("a coding of the transfer that is not spoken here");
            }
            found.chunked = true;
        }
        "content-encoding" => found.coding = Some(value),
        "content-type" => found.kind = Some(value),
        "connection" => {
            found.connection.push(',');
            found.connection.push_str(&value.to_ascii_lowercase());
        }
        _ => {}
    }
    if found.chunked && found.length.is_some() {
        return Err("a length and pieces");
    }
    Ok(())
}

fn stays(fields: &Fields<'_>, modern: bool) -> bool {
    let says = |word: &str| fields.connection.split(',').any(|w| w.trim() == word);
    if modern { !says("close") } else { says("keep-alive") && !says("close") }
}

/// Parses the head of a request, with the empty line that ends it.
///
/// # Errors
/// What is wrong with it.
pub fn parse_request(head: &[u8]) -> Result<Request, &'static str> {
    let (first, fields) = lines(head)?;
    let mut words = first.split(' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(path), Some(version), None) = (method, path, version, words.next())
    else {
        return Err("the first line is not a method, a path and a version");
    };
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err("the method is no word");
    }
    if !path.starts_with('/') {
        return Err("the path does not begin with a slash");
    }
    let modern = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return Err("a version that is not spoken here"),
    };
    if fields.chunked {
        return Err("a body in pieces");
    }
    Ok(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        length: fields.length.unwrap_or(0),
        keep_alive: stays(&fields, modern),
    })
}

/// Parses the head of an answer, with the empty line that ends it.
///
/// # Errors
/// What is wrong with it.
pub fn parse_response(head: &[u8]) -> Result<Response, &'static str> {
    let (first, fields) = lines(head)?;
    let modern = first.starts_with("HTTP/1.1 ");
    let rest = first.strip_prefix("HTTP/1.1 ").or_else(|| first.strip_prefix("HTTP/1.0 "));
    let code = rest.map(|r| r.split(' ').next().unwrap_or_default()).unwrap_or_default();
    let status = match code.parse::<u16>() {
        Ok(status) if code.len() == 3 && (100..600).contains(&status) => status,
        _ => return Err("no status"),
    };
    if status < 200 {
        return Err("an interim answer, which nobody asked for");
    }
    if fields.coding.is_some_and(|c| !c.eq_ignore_ascii_case("identity")) {
        return Err("a coded body, which nobody asked for");
    }
    let framing = match (status, fields.chunked, fields.length) {
        (204 | 304, _, _) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, _, Some(length)) => Framing::Length(length),
        _ => Framing::UntilClose,
    };
    let keep_alive = stays(&fields, modern) && framing != Framing::UntilClose;
    Ok(Response { status, kind: fields.kind.map(str::to_owned), framing, keep_alive })
}
