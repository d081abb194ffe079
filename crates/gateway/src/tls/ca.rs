//! The authority's key and certificate: made once, under a lock, then read.
//!
//! ```text
//! <vault>/ca.key (PKCS #8, 0600) ─► Signer ─► signs leaves
//! <vault>/ca.pem (public)        ─► what sandboxes trust
//! ```
//!
//! The key is the authority: its name is derived from the key, so the certificate can be made anew
//! from it, when it is missing or comes near its end, and older leaves and bundles stay valid.

use super::{TlsError, der, pem};
use crate::vault::files;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the authority's certificate is valid.
const CA_DAYS: u64 = 3_652;
/// With less than this left it is made anew from the same key: a leaf never outlives it.
const RENEW_DAYS: u64 = 398;
/// Clocks differ; the certificate is valid from a little earlier on.
pub(super) const BACKDATED: u64 = 3_600;
pub(super) const DAY: u64 = 86_400;
/// A P-256 key in PEM has about 240 bytes, the certificate about 900.
const FILE_BYTES_MAX: usize = 8 * 1024;
/// RFC 5280 §4.1.2.2 allows 20; 16 random ones are more than enough to be unique.
const SERIAL_BYTES: usize = 16;
/// 2100-01-01; a clock beyond it is broken, and dates must stay writable.
const CLOCK_MAX: u64 = 4_102_444_800;

/// The authority, able to sign.
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

struct Files {
    dir: PathBuf,
    key: PathBuf,
    certificate: PathBuf,
}

impl Files {
    fn below(dir: &Path) -> Self {
        let (key, certificate) = (dir.join("ca.key"), dir.join("ca.pem"));
        Self { dir: dir.to_owned(), key, certificate }
    }

    fn damaged(&self, path: &Path, why: &'static str) -> TlsError {
        TlsError::Damaged { path: path.to_owned(), why, remove: path.to_owned() }
    }

    fn read(&self, path: &Path) -> Result<Option<(zeroize::Zeroizing<String>, u32)>, TlsError> {
        use std::io::ErrorKind::{FileTooLarge, InvalidData};
        files::read_small(path, FILE_BYTES_MAX).map_err(|e| match e.kind() {
            FileTooLarge | InvalidData => self.damaged(path, "is not a PEM file"),
            _ => io_error(path, "read", &e),
        })
    }

    /// The private key, if there is one.
    fn load_key(&self) -> Result<Option<KeyPair>, TlsError> {
        let Some((text, mode)) = self.read(&self.key)? else { return Ok(None) };
        if mode & files::OTHERS != 0 {
            return Err(TlsError::Permissions { path: self.key.clone(), mode });
        }
        let bad = |why| self.damaged(&self.key, why);
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| bad("holds no private key in PEM"))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| bad("holds no P-256 key"))?;
        Ok(Some(key))
    }

    fn create_key(&self) -> Result<KeyPair, TlsError> {
        let key = KeyPair::generate().map_err(|e| mint("the authority", &e))?;
        let text = pem("PRIVATE KEY", key.serialized_der());
        self.write(&self.key, text.as_bytes())?;
        Ok(key)
    }

    fn write(&self, path: &Path, text: &[u8]) -> Result<(), TlsError> {
        files::write_file(path, text).map_err(|e| io_error(path, "written", &e))
    }

    /// The certificate, if there is one that stays valid long enough.
    fn load_certificate(&self, key: &KeyPair, now: u64) -> Result<Option<String>, TlsError> {
        let Some((text, _)) = self.read(&self.certificate)? else { return Ok(None) };
        let bad = |why| self.damaged(&self.certificate, why);
        let der = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|_| bad("holds no certificate in PEM"))?;
        let parsed = rustls::server::ParsedCertificate::try_from(&der)
            .map_err(|_| bad("holds no certificate that can be read"))?;
        if parsed.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(bad("does not belong to the private key beside it"));
        }
        let end = der::not_after(&der).ok_or_else(|| bad("has no readable end of validity"))?;
        // Our own words, not the file's: what else it may hold is not passed on to sandboxes.
        let text = pem("CERTIFICATE", &der).to_string();
        Ok((end > now.saturating_add(RENEW_DAYS * DAY)).then_some(text))
    }

    fn create_certificate(&self, key: &KeyPair, now: u64) -> Result<String, TlsError> {
        let certificate =
            params(key, now)?.self_signed(key).map_err(|e| mint("the authority", &e))?;
        let text = pem("CERTIFICATE", certificate.der()).to_string();
        self.write(&self.certificate, text.as_bytes())?;
        Ok(text)
    }
}

impl Signer {
    pub(super) fn open(dir: &Path, now: u64) -> Result<Self, TlsError> {
        let files = Files::below(dir);
        files::make_dir(dir).map_err(|e| io_error(dir, "created", &e))?;
        // Whoever comes first makes what is missing; all others find it.
        let _lock = files::lock(&files.dir).map_err(|e| io_error(dir, "locked", &e))?;
        let (key, is_new) = match files.load_key()? {
            Some(key) => (key, false),
            None => (files.create_key()?, true),
        };
        // A certificate that outlived its key is of no use to anyone.
        let found = if is_new { None } else { files.load_certificate(&key, now)? };
        let certificate_pem = match found {
            Some(text) => text,
            None => files.create_certificate(&key, now)?,
        };
        let issuer = Issuer::new(params(&key, now)?, key);
        Ok(Self { issuer, certificate_pem })
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// What the authority's certificate says. Its name comes from its key, so that two installations
/// never share one.
fn params(key: &KeyPair, now: u64) -> Result<CertificateParams, TlsError> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key_raw());
    let short: String = digest.as_ref().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "NanoClaw");
    name.push(DnType::CommonName, format!("NanoClaw gateway {short}"));
    let mut params = CertificateParams::default();
    let begin = now.saturating_sub(BACKDATED);
    set_validity(&mut params, begin, begin.saturating_add(CA_DAYS * DAY));
    params.serial_number = Some(serial()?);
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Which names it signs for is the policy's matter and changes; addresses it never does.
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    Ok(params)
}

/// A random serial number, positive.
pub(super) fn serial() -> Result<SerialNumber, TlsError> {
    let mut bytes = [0_u8; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| TlsError::Mint { subject: "anyone".into(), cause: "no randomness".into() })?;
    // Neither negative nor with a leading zero byte.
    bytes[0] = bytes[0] & 0x3F | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// From and until when, Unix seconds.
pub(super) fn set_validity(params: &mut CertificateParams, begin: u64, end: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begin.min(CLOCK_MAX));
    params.not_after = epoch + Duration::from_secs(end.min(CLOCK_MAX));
}

pub(super) fn mint(subject: &str, cause: &rcgen::Error) -> TlsError {
    TlsError::Mint { subject: subject.to_owned(), cause: cause.to_string() }
}

fn io_error(path: &Path, action: &'static str, cause: &std::io::Error) -> TlsError {
    TlsError::Io { path: path.to_owned(), action, cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::SanType;
    use rustls::RootCertStore;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};
    use std::sync::Arc;

    const NOW: u64 = 1_800_000_000;

    fn with_dir(test: impl FnOnce(&Path)) {
        let dir = std::env::temp_dir().join(format!("ncgw-ca-{:?}", std::thread::current().id()));
        let _ = std::fs::remove_dir_all(&dir);
        test(&dir);
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    /// Whether a client that trusts the authority takes what it signed.
    fn accepted(
        signer: &Signer,
        leaf: &CertificateDer<'_>,
        name: &'static str,
    ) -> Result<(), rustls::Error> {
        let root = CertificateDer::from_pem_slice(signer.certificate_pem().as_bytes());
        let mut roots = RootCertStore::empty();
        roots.add(root.expect("ours")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().expect("a verifier");
        let name = ServerName::try_from(name).expect("a name");
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        verifier.verify_server_cert(leaf, &[], &name, &[], now).map(drop)
    }

    fn leaf_for(name: SanType) -> CertificateParams {
        let mut params = CertificateParams::default();
        set_validity(&mut params, NOW - DAY, NOW + DAY);
        params.subject_alt_names = vec![name];
        params
    }

    #[test]
    fn it_signs_for_names_and_never_for_addresses() {
        with_dir(|dir| {
            let signer = Signer::open(dir, NOW).expect("made");
            let key = KeyPair::generate().expect("a key");
            let dns = |name: &str| SanType::DnsName(name.try_into().expect("ASCII"));
            let name = leaf_for(dns("a.example")).signed_by(&key, signer.issuer());
            assert_eq!(accepted(&signer, name.expect("signed").der(), "a.example"), Ok(()));
            for (address, text) in [("10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00::1")] {
                let address = SanType::IpAddress(address.parse().expect("an address"));
                let leaf = leaf_for(address).signed_by(&key, signer.issuer()).expect("signed");
                let error = accepted(&signer, leaf.der(), text).expect_err("refused");
                assert!(format!("{error:?}").contains("NameConstraint"), "{error:?}");
            }
        });
    }

    #[test]
    fn it_is_made_anew_from_its_key_before_a_leaf_could_outlive_it() {
        with_dir(|dir| {
            let first = Signer::open(dir, NOW).expect("made").certificate_pem;
            let end = NOW - BACKDATED + CA_DAYS * DAY;
            let der = CertificateDer::from_pem_slice(first.as_bytes()).expect("ours");
            assert_eq!(der::not_after(&der), Some(end));
            let soon = end - RENEW_DAYS * DAY;
            assert_eq!(Signer::open(dir, soon - 1).expect("kept").certificate_pem, first);
            let second = Signer::open(dir, soon).expect("renewed").certificate_pem;
            assert_ne!(second, first);
            assert_eq!(Signer::open(dir, soon).expect("kept").certificate_pem, second);
        });
    }

    #[test]
    fn a_clock_gone_wild_is_borne() {
        for now in [0, 1, CLOCK_MAX, u64::MAX] {
            with_dir(|dir| drop(Signer::open(dir, now).expect("made")));
        }
    }
}
