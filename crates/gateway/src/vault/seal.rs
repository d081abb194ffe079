//! Sealing one value to the vault's public key.
//!
//! A one-shot construction in the manner of HPKE base mode (RFC 9180): an ephemeral X25519 key
//! agrees with the recipient's, HKDF-SHA256 turns the result, bound to both public keys, into
//! one AES-256-GCM key, and the header line is the associated data. The key seals exactly one
//! message, so its nonce is constant.

use super::keys::{Identity, KEY_BYTES, Recipient};
use super::secret::{TOO_SHORT, VALUE_BYTES_MAX};
use super::{SecretBytes, SecretName, VaultError};
use crate::mask::SECRET_BYTES_MIN;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::AgentName;
use serde::{Deserialize, Serialize};
use std::io::Read as _;
use std::path::Path;
use zeroize::Zeroizing;

/// First word of a sealed file, and the domain of its key derivation.
const MAGIC: &str = "nanoclaw-sealed-v1";
/// The format's version, inside the authenticated header. Version 1 knew no agents; its files are
/// read as serving all.
const VERSION: u32 = 2;
/// Header and base64 of the largest value fit well inside.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The first line: in clear, authenticated.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    version: u32,
    pub(super) name: String,
    pub(super) hosts: Vec<String>,
    #[serde(default)]
    pub(super) agents: Vec<AgentName>,
    pub(super) created_ms: u64,
}

impl Header {
    pub(super) fn new(
        name: &SecretName,
        hosts: Vec<String>,
        agents: Vec<AgentName>,
        created_ms: u64,
    ) -> Self {
        Self { version: VERSION, name: name.to_string(), hosts, agents, created_ms }
    }

    /// Whether this is a header of a version we know, for the secret `name`.
    fn check(&self, name: &SecretName) -> Result<(), &'static str> {
        match self.version {
            VERSION => {}
            1 if self.agents.is_empty() => {}
            _ => return Err("it was sealed by a version this one does not know"),
        }
        if self.name != name.as_str() {
            return Err("its file was renamed from another secret's");
        }
        Ok(())
    }
}

/// A sealed file taken apart.
pub(super) struct Parts<'a> {
    pub(super) header: Header,
    first_line: &'a str,
    coded: &'a str,
}

/// Reads a sealed file, at most as much as a sealed file may have.
pub(super) fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn split(text: &str) -> Option<Parts<'_>> {
    let (first_line, rest) = text.split_once('\n')?;
    let json = first_line.strip_prefix(MAGIC)?.strip_prefix(' ')?;
    let header: Header = serde_json::from_str(json).ok()?;
    Some(Parts { header, first_line, coded: rest.strip_suffix('\n')? })
}

struct KeyLength;

impl KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

fn derive(shared: &[u8], ephemeral: &[u8], recipient: &[u8]) -> Option<LessSafeKey> {
    let prk = Salt::new(HKDF_SHA256, MAGIC.as_bytes()).extract(shared);
    let info = [ephemeral, recipient];
    let okm = prk.expand(&info, KeyLength).ok()?;
    let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
    okm.fill(&mut key[..]).ok()?;
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).ok()?))
}

fn once() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// Seals; the result is the whole file.
pub(super) fn seal(
    header: &Header,
    value: &SecretBytes,
    recipient: &Recipient,
) -> Result<String, VaultError> {
    let failed = || VaultError::Crypto { doing: "sealing the secret" };
    let json = serde_json::to_string(header).map_err(|_| failed())?;
    let first_line = format!("{MAGIC} {json}");
    let ephemeral = PrivateKey::generate(&X25519).map_err(|_| failed())?;
    let public = ephemeral.compute_public_key().map_err(|_| failed())?;
    let peer = UnparsedPublicKey::new(&X25519, recipient.0);
    let key = agree(&ephemeral, peer, failed(), |shared| {
        derive(shared, public.as_ref(), &recipient.0).ok_or_else(failed)
    })?;
    // Capacity for the tag, so that appending it leaves no unwiped copy of the plaintext behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(value.expose().len() + 64));
    buffer.extend_from_slice(value.expose());
    key.seal_in_place_append_tag(once(), Aad::from(first_line.as_bytes()), &mut *buffer)
        .map_err(|_| failed())?;
    let mut sealed = public.as_ref().to_vec();
    sealed.extend_from_slice(&buffer);
    Ok(format!("{first_line}\n{}\n", STANDARD.encode(sealed)))
}

/// The parts of a file that should hold `name`.
fn checked<'a>(text: &'a str, name: &SecretName) -> Result<Parts<'a>, VaultError> {
    let bad = |why| VaultError::Sealed { name: name.to_string(), why };
    let parts = split(text).ok_or_else(|| bad("its file is not a sealed secret, or was cut"))?;
    parts.header.check(name).map_err(bad)?;
    Ok(parts)
}

/// The header of the text of a sealed file that should hold `name`. Not authenticated: that takes
/// the private key.
pub(super) fn header(text: &str, name: &SecretName) -> Result<Header, VaultError> {
    checked(text, name).map(|parts| parts.header)
}

/// Opens the text of a sealed file that should hold `name`.
pub(super) fn open(
    text: &str,
    name: &SecretName,
    identity: &Identity,
) -> Result<(Header, SecretBytes), VaultError> {
    let bad = |why| VaultError::Sealed { name: name.to_string(), why };
    let parts = checked(text, name)?;
    let sealed = STANDARD.decode(parts.coded).map_err(|_| bad("its file is damaged"))?;
    let (ephemeral, body) =
        sealed.split_at_checked(KEY_BYTES).ok_or_else(|| bad("its file was cut"))?;
    let recipient = identity.recipient()?;
    let peer = UnparsedPublicKey::new(&X25519, ephemeral);
    let wrong = || bad("it was altered, or sealed to another key");
    let key = agree(identity.private_key(), peer, wrong(), |shared| {
        derive(shared, ephemeral, &recipient.0).ok_or_else(wrong)
    })?;
    let mut buffer = Zeroizing::new(body.to_vec());
    let plain = key
        .open_in_place(once(), Aad::from(parts.first_line.as_bytes()), &mut buffer)
        .map_err(|_| wrong())?;
    if plain.len() > VALUE_BYTES_MAX {
        return Err(bad("it is longer than 16 KiB"));
    }
    if plain.len() < SECRET_BYTES_MIN {
        return Err(bad(TOO_SHORT));
    }
    let bytes = SecretBytes::new(plain.to_vec());
    Ok((parts.header, bytes))
}
