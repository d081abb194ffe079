//! The smaller commands, one module each.

pub(crate) mod audit;
pub(crate) mod doctor;
pub(crate) mod image;
pub(crate) mod login;
pub(crate) mod manual;
pub(crate) mod mcp;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod probe;
pub(crate) mod reading;
pub(crate) mod secret;
pub(crate) mod usage;
pub(crate) mod witness;
