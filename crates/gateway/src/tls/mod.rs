//! TLS towards the sandbox: one certificate authority an installation, one leaf a host.
//!
//! ```text
//! first bytes ─► sniff ─► server name ─► Authority::server_config ─► handshake with our leaf
//!                                             │ CA key (vault, 0600) signs, kept in memory
//! sandbox trusts: bundle::merged = the system's roots + our certificate
//! ```
//!
//! Invariants, each with a test:
//! 1. The key of the authority is made once, by whoever comes first, and never replaced unasked;
//!    a damaged key or one that others may read is refused.
//! 2. The authority's certificate is good for DNS names only, never for an address, and for end
//!    entities only (name constraints and path length; clients hold it to them).
//! 3. Nothing is resumed: there is no session cache, no session id and no ticket, so what one door
//!    has said on a connection is of no use on another's, and no two connections are linked.
//! 4. However many ask for a host at once, its leaf is minted once; at most [`HOSTS_MAX`] are kept.
//! 5. Offered are TLS 1.2 and 1.3, and `http/1.1` alone in ALPN.

pub mod bundle;
mod ca;
mod der;
mod hello;
mod leaf;
pub mod sniff;

pub use leaf::{HOSTS_MAX, LEAF_DAYS};

use model::HostName;
use rustls::ServerConfig;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What went wrong with our side of TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error(
        "{path} cannot be {action}: {cause}; check that the folder belongs to you and has space"
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// "read", "written", …
        action: &'static str,
        /// The operating system's words.
        cause: String,
    },
    /// Someone else may read the authority's private key.
    #[error(
        "the private key of the gateway's certificate authority, {path}, has mode {mode:04o}, so others may have read it; stop NanoClaw, remove it, and a new one is made at the next start"
    )]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The authority's key or certificate is not what it should be.
    #[error(
        "the gateway's certificate authority is damaged: {path} {why}; restore {path} from a backup, or stop NanoClaw and remove {remove}, and a new one is made at the next start"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
        /// What to remove for a new start.
        remove: PathBuf,
    },
    /// The system's roots could not be read.
    #[error(
        "the system's trusted certificates cannot be read: {cause}; install the package ca-certificates or correct SSL_CERT_FILE"
    )]
    NoRoots {
        /// The first thing that went wrong.
        cause: String,
    },
    /// A certificate could not be made.
    #[error("no certificate can be made for {subject}: {cause}; report it if it stays")]
    Mint {
        /// For whom.
        subject: String,
        /// The library's words.
        cause: String,
    },
}

/// The certificate authority of this installation and the leaves it has signed. One a gateway,
/// shared by all doors and threads.
pub struct Authority {
    signer: ca::Signer,
    leaves: leaf::Leaves,
}

impl Authority {
    /// Opens the authority whose files stand in `dir`, the vault's folder (`<home>/vault`); makes
    /// it on first use. Any number of processes may do so at once.
    ///
    /// # Errors
    /// When files cannot be read or written, when the private key is damaged or may be read by
    /// others, when the certificate is not the key's.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let signer = ca::Signer::open(dir, now_s())?;
        let leaves = leaf::Leaves::new()?;
        Ok(Self { signer, leaves })
    }

    /// What a TLS server needs to pose as `host` towards the sandbox. From a cache, or minted in
    /// well under a millisecond; those who ask for the same host at once wait for each other.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn server_config(&self, host: &HostName) -> Result<Arc<ServerConfig>, TlsError> {
        self.leaves.get(host, &self.signer, now_s())
    }

    /// The authority's certificate, PEM: what a sandbox is told to trust. Public.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        self.signer.certificate_pem()
    }
}

/// Unix seconds.
fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// RFC 7468: 64 characters a line.
fn pem(label: &str, der: &[u8]) -> zeroize::Zeroizing<String> {
    use base64::Engine as _;
    let mut coded = zeroize::Zeroizing::new(String::with_capacity(der.len() * 2 + 8));
    base64::engine::general_purpose::STANDARD.encode_string(der, &mut coded);
    let mut text = zeroize::Zeroizing::new(String::with_capacity(coded.len() * 2 + 128));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = coded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
