//! Connections that the person at the terminal asked for: to a served log, and to witnesses.

use audit::http::{Dial, Pace, Stream, Url};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io;
use std::sync::{Arc, OnceLock};

/// Dials `http`, and `https` with the system's certificates.
#[derive(Debug, Default, Clone)]
pub(crate) struct Dialer {
    /// The certificates, read once for all clones.
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Dialer {
    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = "this machine has no trusted certificates; install ca-certificates or set \
                       SSL_CERT_FILE";
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

impl Dial for Dialer {
    fn dial(&self, url: &Url, pace: &Pace) -> io::Result<Box<dyn Stream>> {
        if !url.tls {
            return Ok(Box::new(url.connect(pace)?));
        }
        let name = ServerName::try_from(url.host.clone())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let session = ClientConnection::new(self.config()?, name).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(session, url.connect(pace)?)))
    }
}
