//! The certificates a sandbox trusts, in one file: the system's roots and ours.

use super::{Authority, TlsError, pem};
use rustls::RootCertStore;
use std::collections::HashSet;

/// Roots taken from the system at most; distributions ship about 150.
const ROOTS_MAX: usize = 2_000;

/// The system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` of this process, or the usual places)
/// and the authority's certificate, as PEM, each once, ours last. The caller writes it where
/// `SSL_CERT_FILE` and its kin point inside a sandbox. Roots that cannot be read are left out, for
/// some programs refuse a whole bundle for one of them; on a system without any, ours stands alone,
/// and then nothing that passes through in a tunnel is trusted.
///
/// # Errors
/// When there are roots and none of them can be read.
pub fn merged(authority: &Authority) -> Result<String, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if let (true, Some(error)) = (found.certs.is_empty(), found.errors.first()) {
        return Err(TlsError::NoRoots { cause: error.to_string() });
    }
    let mut text = String::with_capacity(256 * 1024);
    let mut seen = HashSet::new();
    for certificate in found.certs.into_iter().take(ROOTS_MAX) {
        let readable = RootCertStore::empty().add(certificate.clone()).is_ok();
        let block = pem("CERTIFICATE", &certificate);
        if readable && block.as_str() != authority.certificate_pem() && seen.insert(certificate) {
            text.push_str(&block);
        }
    }
    text.push_str(authority.certificate_pem());
    Ok(text)
}
