//! Leaves: one certificate a host, minted when first asked for, kept for a while.
//!
//! All leaves of a process share one key, made at its start and never written down. Their validity
//! begins at midnight, so that a certificate does not tell one session when another first asked
//! for the same host.

use super::TlsError;
use super::ca::{self, BACKDATED, DAY, Signer};
use model::HostName;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a leaf is valid, at most: below the 398 days beyond which clients refuse a leaf, and
/// far above the life of a process's cache.
pub const LEAF_DAYS: u64 = 90;
/// A kept leaf with less left is minted anew.
const RENEW_DAYS: u64 = 30;
/// Hosts whose leaves are kept: more than sessions use at once; each takes about 4 KiB.
pub const HOSTS_MAX: usize = 1_024;

/// The leaves of a process.
pub(super) struct Leaves {
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    provider: Arc<CryptoProvider>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_host: HashMap<HostName, Place>,
    /// Counts the uses, to know which was longest ago.
    clock: u64,
}

struct Place {
    used: u64,
    slot: Arc<Mutex<Option<Minted>>>,
}

struct Minted {
    config: Arc<ServerConfig>,
    renew_at: u64,
}

/// Nothing is left half-done under these locks, so a panic elsewhere does no harm to them.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leaves {
    pub(super) fn new() -> Result<Self, TlsError> {
        let subject = "the leaves' key";
        let key = KeyPair::generate().map_err(|e| ca::mint(subject, &e))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
        let signing = provider
            .key_provider
            .load_private_key(der)
            .map_err(|e| TlsError::Mint { subject: subject.into(), cause: e.to_string() })?;
        Ok(Self { key, signing, provider, kept: Mutex::default() })
    }

    pub(super) fn get(
        &self,
        host: &HostName,
        signer: &Signer,
        now: u64,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let slot = self.slot(host);
        // Those who want the same host wait here; all others go on.
        let mut minted = locked(&slot);
        if let Some(minted) = &*minted
            && now < minted.renew_at
        {
            return Ok(Arc::clone(&minted.config));
        }
        let fresh = self.mint(host, signer, now)?;
        let config = Arc::clone(&fresh.config);
        *minted = Some(fresh);
        Ok(config)
    }

    /// The host's place, made if need be at the cost of the one that was used longest ago.
    fn slot(&self, host: &HostName) -> Arc<Mutex<Option<Minted>>> {
        let mut kept = locked(&self.kept);
        kept.clock += 1;
        let used = kept.clock;
        if let Some(place) = kept.by_host.get_mut(host) {
            place.used = used;
            return Arc::clone(&place.slot);
        }
        if kept.by_host.len() >= HOSTS_MAX {
            let oldest = kept.by_host.iter().min_by_key(|(_, p)| p.used).map(|(h, _)| h.clone());
            oldest.and_then(|host| kept.by_host.remove(&host));
        }
        let place = Place { used, slot: Arc::default() };
        let slot = Arc::clone(&place.slot);
        kept.by_host.insert(host.clone(), place);
        slot
    }

    fn mint(&self, host: &HostName, signer: &Signer, now: u64) -> Result<Minted, TlsError> {
        let begin = now.saturating_sub(BACKDATED) / DAY * DAY;
        let end = begin + LEAF_DAYS * DAY;
        let certificate = params(host, begin, end)?
            .signed_by(&self.key, signer.issuer())
            .map_err(|e| ca::mint(host.as_str(), &e))?;
        let certified =
            CertifiedKey::new(vec![certificate.der().clone()], Arc::clone(&self.signing));
        let config = server_config(&self.provider, certified)
            .map_err(|e| TlsError::Mint { subject: host.to_string(), cause: e.to_string() })?;
        let renew_at = end.saturating_sub(RENEW_DAYS * DAY);
        Ok(Minted { config: Arc::new(config), renew_at })
    }
}

fn params(host: &HostName, begin: u64, end: u64) -> Result<CertificateParams, TlsError> {
    let refused = |e: &rcgen::Error| ca::mint(host.as_str(), e);
    let mut params = CertificateParams::default();
    ca::set_validity(&mut params, begin, end);
    params.serial_number = Some(ca::serial()?);
    // Names are compared with the SAN alone (RFC 9525 §2); the subject is for human eyes.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "NanoClaw gateway");
    let name = host.as_str().try_into().map_err(|e| refused(&e))?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Strict verifiers (Python 3.13 on) want to see whose signature it is.
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The same for every door, and without memory: nothing is kept of a connection that another
/// could take up.
fn server_config(
    provider: &Arc<CryptoProvider>,
    certified: CertifiedKey,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::der;

    const NOW: u64 = 1_800_000_000;

    fn host(name: &str) -> HostName {
        HostName::parse(name).expect("valid")
    }

    fn with_both(test: impl FnOnce(&Leaves, &Signer)) {
        let dir = std::env::temp_dir().join(format!("ncgw-leaf-{:?}", std::thread::current().id()));
        let _ = std::fs::remove_dir_all(&dir);
        test(&Leaves::new().expect("made"), &Signer::open(&dir, NOW).expect("made"));
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn the_least_recently_used_host_makes_room() {
        with_both(|leaves, signer| {
            let first = leaves.get(&host("first.example"), signer, NOW).expect("minted");
            let second = leaves.get(&host("second.example"), signer, NOW).expect("minted");
            for n in 0..HOSTS_MAX - 2 {
                drop(leaves.slot(&host(&format!("h{n}.example"))));
            }
            let again = leaves.get(&host("first.example"), signer, NOW).expect("kept");
            assert!(Arc::ptr_eq(&first, &again));
            drop(leaves.slot(&host("one-too-many.example")));
            assert_eq!(locked(&leaves.kept).by_host.len(), HOSTS_MAX);
            assert!(Arc::ptr_eq(
                &first,
                &leaves.get(&host("first.example"), signer, NOW).expect("kept")
            ));
            let other = leaves.get(&host("second.example"), signer, NOW).expect("minted");
            assert!(!Arc::ptr_eq(&second, &other));
        });
    }

    #[test]
    fn a_leaf_is_renewed_long_before_it_ends_and_never_outlives_the_authority() {
        with_both(|leaves, signer| {
            let name = host("a.example");
            let early = leaves.get(&name, signer, NOW).expect("minted");
            let same = leaves.get(&name, signer, NOW + 59 * DAY).expect("kept");
            let late = leaves.get(&name, signer, NOW + 61 * DAY).expect("minted");
            assert!(Arc::ptr_eq(&early, &same) && !Arc::ptr_eq(&early, &late));
            const { assert!(LEAF_DAYS <= 397) };
            // The validity says nothing of the hour at which somebody first asked.
            let begin = |at| {
                let end = (at - BACKDATED) / DAY * DAY + LEAF_DAYS * DAY;
                let params = params(&name, end - LEAF_DAYS * DAY, end).expect("valid");
                let signed = params.signed_by(&leaves.key, signer.issuer()).expect("signed");
                der::not_after(signed.der()).expect("readable")
            };
            assert_eq!(begin(NOW), begin(NOW + 3_600));
        });
    }
}
