//! TLS as attackers and bad servers speak it: greetings made by hand, certificates that are
//! wrong in one way each, a client that trusts everybody.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::DigitallySignedStruct;
use rustls::SignatureScheme;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A greeting, to be sent in records.
#[derive(Default)]
pub(crate) struct Greeting {
    /// One extension each, with one list of names each.
    pub(crate) names: Vec<Vec<&'static [u8]>>,
    pub(crate) extra: Vec<(u16, Vec<u8>)>,
}

fn prefixed(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[4 - length_bytes..], content].concat()
}

impl Greeting {
    pub(crate) fn to(name: &'static [u8]) -> Self {
        Self { names: vec![vec![name]], extra: Vec::new() }
    }

    fn message(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut add = |kind: u16, content: &[u8]| {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(prefixed(2, content));
        };
        for list in &self.names {
            let one = |name: &&[u8]| [&[0][..], &prefixed(2, name)].concat();
            let list: Vec<u8> = list.iter().flat_map(one).collect();
            add(0, &prefixed(2, &list));
        }
        // supported_versions: TLS 1.3; without it a server may still read on.
        add(43, &[2, 3, 4]);
        for (kind, content) in &self.extra {
            add(*kind, content);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(prefixed(1, &[9; 32]));
        body.extend(prefixed(2, &[0x13, 0x01, 0x13, 0x02]));
        body.extend(prefixed(1, &[0]));
        body.extend(prefixed(2, &extensions));
        [&[1][..], &prefixed(3, &body)].concat()
    }

    /// In one record.
    pub(crate) fn whole(&self) -> Vec<u8> {
        self.in_records(usize::MAX)
    }

    /// In records of so many bytes.
    pub(crate) fn in_records(&self, size: usize) -> Vec<u8> {
        let message = self.message();
        let size = size.min(message.len());
        message.chunks(size).flat_map(record).collect()
    }

    /// A record that holds more than the message.
    pub(crate) fn followed_by(&self, more: &[u8]) -> Vec<u8> {
        record(&[&self.message()[..], more].concat())
    }
}

fn record(content: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &prefixed(2, content)].concat()
}

/// In which way a server's certificate is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Nothing,
    SelfSigned,
    Issuer,
    Expired,
    NotYet,
    Name,
}

/// What the server for `good.test` shows, and whom the gateway trusts.
pub(crate) fn certificate(wrong: Wrong) -> (TlsAcceptor, CertificateDer<'static>) {
    let (trusted, issuer) = authority("trusted");
    let (_, stranger) = authority("stranger");
    let name = if wrong == Wrong::Name { "other.test" } else { "good.test" };
    let mut params = CertificateParams::new(vec![name.into()]).unwrap();
    match wrong {
        Wrong::Expired => params.not_after = date_time_ymd(2001, 1, 1),
        Wrong::NotYet => params.not_before = date_time_ymd(4000, 1, 1),
        _ => {}
    }
    let key = KeyPair::generate().unwrap();
    let leaf = match wrong {
        Wrong::SelfSigned => params.self_signed(&key),
        Wrong::Issuer => params.signed_by(&key, &stranger),
        _ => params.signed_by(&key, &issuer),
    };
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.unwrap().der().clone()], der)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), trusted)
}

fn authority(name: &str) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (certificate, Issuer::new(params, key))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A program that has turned verification off.
pub(crate) async fn trusting(
    stream: UnixStream,
    name: &str,
    sni: bool,
) -> Option<TlsStream<UnixStream>> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Everybody(provider())))
        .with_no_client_auth();
    config.enable_sni = sni;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

/// Trusts everybody.
#[derive(Debug)]
struct Everybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Everybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
