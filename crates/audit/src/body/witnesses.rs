//! What the log's witnesses say.

use super::{Fields, Written};
use crate::canonical::{self, NotCanonical};
use model::Body;

pub(super) fn write(f: &mut Fields<'_>, kind: &str, body: &Body) -> Written {
    match body {
        Body::Cosigning { reached, size, needed, cosigned, failed, contradicted } => f
            .flag("contradicted", *contradicted)
            .list("cosigned", cosigned, |out, name| canonical::string(out, name))
            .list("failed", failed, |out, why| canonical::string(out, why))
            .text("kind", kind)
            .uint("needed", *needed)?
            .flag("reached", *reached)
            .uint("size", *size)?
            .turn(),
        _ => return Err(NotCanonical),
    }
    .end()
}
