//! Paths that servers may read in another way than rules do.

use super::{deny_admin, open_paths, says};
use crate::lab::Due::Refused;
use crate::lab::Trip::Mark;
use crate::lab::{Attack, Case, MARK};

/// `$path` while `/admin` and all below it is denied.
macro_rules! denied {
    ($name:literal, $path:literal) => {
        path!($name, deny_admin, $path, "toml:9")
    };
}
/// `$path` while only what is below `/open/` is permitted.
macro_rules! permitted {
    ($name:literal, $path:literal) => {
        path!($name, open_paths, $path, "toml:7")
    };
}
macro_rules! path {
    ($name:literal, $setup:ident, $path:literal, $due:literal) => {
        says(
            $name,
            $setup,
            concat!("GET http://good.test:{P}", $path, " HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n"),
            Mark,
            Refused($due),
        )
    };
}

/// A permitted path, and another one beside it.
macro_rules! second {
    ($name:literal, $setup:ident, $query:literal, $field:literal) => {
        says(
            $name,
            $setup,
            concat!(
                "POST http://good.test:{P}/open/a",
                $query,
                " HTTP/1.1\r\nHost: good.test:{P}\r\n",
                $field,
                "Content-Length: 13\r\n\r\n{MARK}"
            ),
            Mark,
            Refused("names another path"),
        )
    };
}

pub(super) const CASES: &[Case] = &[
    denied!("denied path: as it is", "/admin/{MARK}"),
    denied!("denied path: in upper case", "/ADMIN/{MARK}"),
    denied!("denied path: an escaped letter", "/%61dmin/{MARK}"),
    denied!("denied path: escaped twice", "/%2561dmin/{MARK}"),
    denied!("denied path: from beside it", "/open/../admin/{MARK}"),
    denied!("denied path: from beside it, escaped", "/open/%2e%2e/admin/{MARK}"),
    denied!("denied path: from beside it, slash escaped", "/open/..%2fadmin/{MARK}"),
    denied!("denied path: from beside it, parameter", "/open/..;/admin/{MARK}"),
    denied!("denied path: from beside it, overlong UTF-8", "/open/%c0%ae%c0%ae/admin/{MARK}"),
    denied!("denied path: two slashes", "//admin/{MARK}"),
    denied!("denied path: a dot", "/./admin/{MARK}"),
    denied!("denied path: a dot, escaped", "/%2e/admin/{MARK}"),
    denied!("denied path: a dot behind", "/admin./{MARK}"),
    denied!("denied path: a blank behind", "/admin%20/{MARK}"),
    denied!("denied path: a zero byte behind", "/admin%00/{MARK}"),
    denied!("denied path: a parameter", "/admin;x=1/{MARK}"),
    denied!("denied path: slash escaped", "/admin%2f{MARK}"),
    denied!("denied path: slash escaped twice", "/admin%252f{MARK}"),
    denied!("denied path: backslash", "/admin\\{MARK}"),
    denied!("denied path: backslash escaped", "/admin%5c{MARK}"),
    denied!("denied path: escaped for scripts", "/%u0061dmin/{MARK}"),
    denied!("denied path: a slash behind and a query", "/admin/?{MARK}"),
    second!("second path: Destination", open_paths, "", "Destination: /admin/x\r\n"),
    second!("second path: beside a denied one", deny_admin, "", "Destination: /admin/x\r\n"),
    second!("second path: source of a copy", open_paths, "", "X-Amz-Copy-Source: b/x\r\n"),
    second!("second path: source, other joints", open_paths, "", "x_ms.copy_source: /x\r\n"),
    second!("second path: before a proxy", open_paths, "", "X-Original-URI: /admin\r\n"),
    second!("second host: before a proxy", open_paths, "", "X-Forwarded-Host: evil.test\r\n"),
    second!("second method: a parameter", open_paths, "?_method=DELETE", ""),
    second!("second method: an escaped one", open_paths, "?x=1&%5Fmethod=DELETE", ""),
    denied!("denied path: a letter's other form", "/adm%C4%B1n/{MARK}"),
    denied!("denied path: wide letters", "/%EF%BD%81dmin/{MARK}"),
    denied!("denied path: another blank behind", "/admin%C2%A0/{MARK}"),
    denied!("denied path: a stream of it", "/admin::$INDEX_ALLOCATION/{MARK}"),
    denied!("denied path: its short name", "/ADMINI~1/{MARK}"),
    permitted!("open path: up and out, blank behind", "/open/..%20/{MARK}"),
    permitted!("open path: up and out, blank between", "/open/.%20./{MARK}"),
    permitted!("open path: up and out, three dots", "/open/.../{MARK}"),
    permitted!("open path: up and out, wide dots", "/open/%EF%BC%8E%EF%BC%8E/{MARK}"),
    permitted!("open path: up and out, wide slash", "/open/..%EF%BC%8F{MARK}"),
    permitted!("open path: beside it", "/{MARK}"),
    permitted!("open path: longer first part", "/openx/{MARK}"),
    permitted!("open path: in upper case", "/OPEN/{MARK}"),
    permitted!("open path: up and out", "/open/../{MARK}"),
    permitted!("open path: up and out, escaped", "/open/%2e%2e/{MARK}"),
    permitted!("open path: up and out, half escaped", "/open/.%2e/{MARK}"),
    permitted!("open path: up and out, slash escaped", "/open/..%2f{MARK}"),
    permitted!("open path: up and out, all escaped", "/open/%2e%2e%2f{MARK}"),
    permitted!("open path: up and out, escaped twice", "/open/%252e%252e/{MARK}"),
    permitted!("open path: up and out, two slashes", "/open//../../{MARK}"),
    permitted!("open path: up and out, backslashes", "/open/..\\{MARK}"),
    permitted!("open path: up and out, parameter", "/open/..;x/{MARK}"),
    permitted!("open path: up and out, zero byte", "/open/..%00/{MARK}"),
    permitted!("open path: as a query of another", "/x?/open/{MARK}"),
    permitted!("open path: first slash escaped", "/open%2f..%2f{MARK}"),
    Case {
        name: "open path: longer than is read",
        setup: open_paths,
        attack: Attack::Sends(|ports| {
            let dots = "a/".repeat(5_000);
            let p = ports.p;
            format!(
                "GET http://good.test:{p}/open/{dots}{MARK} HTTP/1.1\r\nHost: good.test:{p}\r\n\r\n"
            )
            .into()
        }),
        trip: Mark,
        due: Refused("toml:7"),
    },
];
