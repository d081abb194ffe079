//! HTTP/1.1 as the door speaks it to the sandbox: strict, bounded, one request at a time.
//!
//! A library server forgives (bare line feeds, `Content-Length` beside `Transfer-Encoding`, equal
//! duplicates); what two parsers may read differently is refused here instead, before anything
//! else looks at it. Requests are never passed on as bytes: upstream requests are built anew.

pub(crate) mod ahead;
pub(crate) mod conn;
#[cfg(test)]
mod fuzz;
pub(crate) mod head;
