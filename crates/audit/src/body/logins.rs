//! Subscriptions: tokens asked for, given, removed.

use super::{Fields, Written};
use crate::canonical::{self, NotCanonical};
use model::Body;

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::LoginRequest { login, host, purpose } => f
            .text("host", host)
            .text("kind", kind)
            .text("login", login)
            .text("purpose", purpose)
            .turn(),
        Body::LoginResponse { login, purpose, status, rotated, expires_ms, duration_ms, error } => {
            f.uint("duration_ms", *duration_ms)?
                .maybe("error", error.as_deref())
                .maybe_uint("expires_ms", *expires_ms)?
                .text("kind", kind)
                .text("login", login)
                .text("purpose", purpose)
                .flag("rotated", *rotated)
                .uint("status", u64::from(*status))?
                .turn()
        }
        Body::LoginChanged { login, change, hosts } => f
            .text("change", change)
            .list("hosts", hosts, |out, host| canonical::string(out, host))
            .text("kind", kind)
            .text("login", login)
            .turn(),
        _ => return Err(NotCanonical),
    }
    .end()
}
