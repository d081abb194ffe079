//! What was done to the record itself: payloads erased, old records removed.

use super::{Fields, Written};
use crate::canonical::{self, NotCanonical};
use model::Body;

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::PayloadsErased { scope, records, texts, bytes } => {
            f.uint("bytes", *bytes)?.text("kind", kind);
            let mut all = Ok(());
            f.list("records", records, |out, record| all = all.and(canonical::uint(out, *record)));
            all?;
            f.text("scope", scope).uint("texts", *texts)?.turn()
        }
        Body::RecordsPruned { before_ms, first, texts } => f
            .uint("before_ms", *before_ms)?
            .uint("first", *first)?
            .text("kind", kind)
            .uint("texts", *texts)?
            .turn(),
        _ => return Err(NotCanonical),
    }
    .end()
}
