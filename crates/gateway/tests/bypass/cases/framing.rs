//! Messages that two parsers may read differently.

use super::{open_paths, plain, says};
use crate::lab::Case;
use crate::lab::Due::{Held, Refused};
use crate::lab::Trip::{Evil, Good, Mark};

/// What a request to the permitted host begins with.
macro_rules! get {
    ($($rest:literal),+) => {
        concat!("GET http://good.test:{P}/open/a HTTP/1.1\r\nHost: good.test:{P}\r\n", $($rest),+)
    };
}
macro_rules! post {
    ($($rest:literal),+) => {
        concat!("POST http://good.test:{P}/open/a HTTP/1.1\r\nHost: good.test:{P}\r\n", $($rest),+)
    };
}
pub(super) const CASES: &[Case] = &[
    says(
        "host: absolute target and Host differ",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Mark,
        Refused("names another host"),
    ),
    says(
        "host: Host twice, the other last",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\
         Host: evil.test:{P}\r\n\r\n",
        Mark,
        Refused("it stands twice"),
    ),
    says(
        "host: two in one Host",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}, evil.test:{P}\r\n\r\n",
        Mark,
        Refused("it is not host or host:port"),
    ),
    says(
        "host: another port in Host",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{Q}\r\n\r\n",
        Mark,
        Refused("names another host"),
    ),
    says(
        "host: none at all",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.1\r\n\r\n",
        Mark,
        Refused("it is missing"),
    ),
    says(
        "host: user name in an absolute target",
        plain,
        "GET http://good.test:{P}@evil.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Mark,
        Refused("user names and passwords"),
    ),
    says(
        "host: backslash in an absolute target",
        plain,
        "GET http://evil.test:{P}\\@good.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Mark,
        Refused("user names and passwords"),
    ),
    says(
        "host: fragment in an absolute target",
        plain,
        "GET http://evil.test:{P}#@good.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Evil("GET"),
        Refused("fragment"),
    ),
    says(
        "host: another scheme",
        plain,
        "GET ftp://evil.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Mark,
        Refused("only http://"),
    ),
    says(
        "host: target without a scheme",
        plain,
        "GET evil.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Evil("GET"),
        Refused("neither a path nor"),
    ),
    says(
        "fields: a second length with another joint",
        plain,
        "POST http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\nContent-Length: 1\r\n\
         Content_Length: 77\r\n\r\nx",
        Good("77"),
        Refused("differ in '-' and '_' only"),
    ),
    says(
        "pipelined: a second request for another host",
        plain,
        get!("\r\nGET http://evil.test:{P}/{MARK} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n"),
        Mark,
        Refused("default deny"),
    ),
    says(
        "pipelined: a second request for a forbidden path",
        open_paths,
        get!("\r\nGET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"),
        Mark,
        Refused("toml:7"),
    ),
    says(
        "pipelined: behind a counted body",
        open_paths,
        post!(
            "Content-Length: 2\r\n\r\nokGET http://good.test:{P}/{MARK} HTTP/1.1\r\n",
            "Host: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("toml:7"),
    ),
    says(
        "pipelined: CONNECT behind a request",
        plain,
        get!("\r\nCONNECT evil.test:{P} HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\nSSH-{MARK}"),
        Mark,
        Refused("default deny"),
    ),
    says(
        "length: twice and different",
        open_paths,
        post!(
            "Content-Length: 5\r\nContent-Length: 60\r\n\r\n",
            "0\r\n\r\nGET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("Content-Length stands twice"),
    ),
    says(
        "length: twice and the same",
        open_paths,
        post!("Content-Length: 13\r\nContent-Length: 13\r\n\r\n{MARK}"),
        Mark,
        Refused("Content-Length stands twice"),
    ),
    says(
        "length: a list",
        open_paths,
        post!(
            "Content-Length: 5, 60\r\n\r\n",
            "0\r\n\r\nGET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("not a plain number"),
    ),
    says(
        "length: with a sign",
        open_paths,
        post!("Content-Length: +13\r\n\r\n{MARK}"),
        Mark,
        Refused("not a plain number"),
    ),
    says(
        "length: negative",
        open_paths,
        post!("Content-Length: -1\r\n\r\n{MARK}"),
        Mark,
        Refused("not a plain number"),
    ),
    says(
        "length: hexadecimal",
        open_paths,
        post!("Content-Length: 0xd\r\n\r\n{MARK}"),
        Mark,
        Refused("not a plain number"),
    ),
    says(
        "length: empty",
        open_paths,
        post!("Content-Length: \r\n\r\n{MARK}"),
        Mark,
        Refused("not a plain number"),
    ),
    says(
        "length: of 20 digits",
        open_paths,
        post!("Content-Length: 99999999999999999999\r\n\r\n{MARK}"),
        Mark,
        Refused("not a plain number"),
    ),
    says(
        "coding: beside a length",
        open_paths,
        post!(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
             GET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("beside Transfer-Encoding"),
    ),
    says(
        "coding: ahead of a length",
        open_paths,
        post!(
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n\
             GET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("beside Transfer-Encoding"),
    ),
    says(
        "coding: unknown",
        open_paths,
        post!(
            "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /{MARK} HTTP/1.1\r\n\
             Host: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("may only be chunked"),
    ),
    says(
        "coding: a list",
        open_paths,
        post!(
            "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\nGET /{MARK} HTTP/1.1\r\n\
             Host: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("may only be chunked"),
    ),
    says(
        "coding: twice",
        open_paths,
        post!(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n\
             GET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("Transfer-Encoding stands twice"),
    ),
    says(
        "coding: blank ahead of the colon",
        open_paths,
        post!(
            "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /{MARK} HTTP/1.1\r\n\
             Host: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("not a token"),
    ),
    says(
        "coding: vertical tab ahead of its value",
        open_paths,
        post!(
            "Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\nGET /{MARK} HTTP/1.1\r\n\
             Host: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("control characters"),
    ),
    says(
        "coding: hidden in a folded line",
        open_paths,
        post!(
            "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /{MARK} HTTP/1.1\r\n\
             Host: good.test:{P}\r\n\r\n"
        ),
        Mark,
        Refused("folded lines"),
    ),
    says(
        "lines: folded with a tab",
        open_paths,
        post!("X-A: b\r\n\tc\r\n\r\n{MARK}"),
        Mark,
        Refused("folded lines"),
    ),
    says(
        "lines: bare LF between fields",
        open_paths,
        get!("X-A: b\nX-B: {MARK}\r\n\r\n"),
        Mark,
        Refused("must end with CR LF"),
    ),
    says(
        "lines: bare LF ends the head",
        open_paths,
        get!("X-A: b\n\nGET /{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"),
        Mark,
        Refused("must end with CR LF"),
    ),
    says(
        "lines: bare CR in a field",
        open_paths,
        get!("X-A: b\rX-B: {MARK}\r\n\r\n"),
        Mark,
        Refused("must end with CR LF"),
    ),
    says(
        "lines: zero byte in a field",
        open_paths,
        get!("X-A: b\0{MARK}\r\n\r\n"),
        Mark,
        Refused("control characters"),
    ),
    says(
        "lines: no colon",
        open_paths,
        get!("X-A {MARK}\r\n\r\n"),
        Mark,
        Refused("it has no colon"),
    ),
    says(
        "lines: a name with blanks",
        open_paths,
        get!("X A: {MARK}\r\n\r\n"),
        Mark,
        Refused("not a token"),
    ),
    says(
        "chunk: size overflows",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF5\r\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("plain hex number"),
    ),
    says(
        "chunk: size of zeros and digits",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\n0000000000d\r\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("plain hex number"),
    ),
    says(
        "chunk: negative size",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\n-d\r\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("plain hex number"),
    ),
    says(
        "chunk: size with 0x",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\n0xd\r\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("plain hex number"),
    ),
    says(
        "chunk: extension",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\nd;a=b\r\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("plain hex number"),
    ),
    says(
        "chunk: line end inside an extension",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\nd;\n\r\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("chunk line must end"),
    ),
    says(
        "chunk: bare LF behind the size",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\nd\n{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("chunk line must end"),
    ),
    says(
        "chunk: longer than it says",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\n1\r\nx{MARK}\r\n0\r\n\r\n"),
        Mark,
        Refused("chunk"),
    ),
    says(
        "chunk: trailer with a field",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-T: {MARK}\r\n\r\n"),
        Mark,
        Refused("chunk size"),
    ),
    says(
        "chunk: a short trailer",
        open_paths,
        post!("Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n"),
        Good("A: b"),
        Refused("trailers"),
    ),
    says(
        "escaped: line end in the path",
        plain,
        "GET http://good.test:{P}/a%0d%0aX-In:%201 HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Good("\r\nX-In: 1"),
        Held("the path went on as it was, still escaped"),
    ),
    says(
        "version: HTTP/0.9",
        plain,
        "GET http://good.test:{P}/{MARK}\r\n\r\n",
        Mark,
        Refused("METHOD TARGET VERSION"),
    ),
    says(
        "version: HTTP/1.0 with a coding",
        plain,
        "POST http://good.test:{P}/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{MARK}",
        Mark,
        Refused("HTTP/1.0 knows no"),
    ),
    says(
        "version: unknown",
        plain,
        "GET http://good.test:{P}/{MARK} HTTP/1.2\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("only HTTP/1.1"),
    ),
    says(
        "lines: an empty one ahead of the request",
        plain,
        "\nGET http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("http: "),
    ),
    says(
        "lines: tab in the request line",
        plain,
        "GET\thttp://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("METHOD TARGET VERSION"),
    ),
    says(
        "method: in lower case",
        open_paths,
        "delete http://good.test:{P}/open/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("not in upper case"),
    ),
    says(
        "method: not in the rule",
        open_paths,
        "DELETE http://good.test:{P}/open/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("toml:7"),
    ),
    says(
        "method: TRACE",
        plain,
        "TRACE http://good.test:{P}/{MARK} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Mark,
        Refused("not forwarded"),
    ),
];
