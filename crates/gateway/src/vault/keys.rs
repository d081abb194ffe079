//! The vault's key pair: X25519, one file each, one line each.

use super::files::{OTHERS, read_small, vault_dir};
use super::{VaultError, io_error, keyring, write};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian as _, Curve25519SeedBin};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::KeyPlace;
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// First words of the private key's file.
const IDENTITY_PREFIX: &str = "nanoclaw-vault-identity-v1:";
/// First words of the public key's file.
const RECIPIENT_PREFIX: &str = "nanoclaw-vault-recipient-v1:";
/// The private key's name among systemd credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIAL_NAME: &str = "nanoclaw-vault";
/// X25519 keys, public and private, have 32 bytes (RFC 7748 §5).
pub(super) const KEY_BYTES: usize = 32;
/// A key file is one short line.
const KEY_FILE_BYTES_MAX: usize = 256;

pub(super) fn recipient_path(dir: &Path) -> PathBuf {
    dir.join("recipient")
}

pub(super) fn identity_path(dir: &Path) -> PathBuf {
    dir.join("identity")
}

/// The file that says where the key is kept, when that was chosen.
fn place_path(dir: &Path) -> PathBuf {
    dir.join("place")
}

/// Where the key is kept, when that was chosen.
pub(super) fn chosen_place(dir: &Path) -> Result<Option<KeyPlace>, VaultError> {
    let path = place_path(dir);
    let Some((text, _)) = read_key_file(&path)? else { return Ok(None) };
    let found = KeyPlace::ALL.into_iter().find(|p| p.name() == text.trim_end());
    let why = "it names no place of a key";
    found.map(Some).ok_or(VaultError::BadKey { path, why })
}

/// Whether the vault of `home` keeps its key where it should. A vault without a key does.
///
/// # Errors
/// When the key is kept elsewhere, or the vault cannot be read.
pub fn check_place(home: &Path, wanted: KeyPlace) -> Result<(), VaultError> {
    let dir = vault_dir(home);
    let found = match chosen_place(&dir)? {
        Some(place) => place,
        None if identity_path(&dir).exists() => KeyPlace::File,
        None if recipient_path(&dir).exists() => KeyPlace::Systemd,
        None => return Ok(()),
    };
    if found == wanted { Ok(()) } else { Err(VaultError::OtherPlace { wanted, found, dir }) }
}

/// Where systemd puts credentials for a service that has any.
pub(super) fn credentials_folder() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Where the vault's private key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// systemd hands it to the service (`LoadCredential=`, `LoadCredentialEncrypted=`).
    Systemd {
        /// The credential's file.
        path: PathBuf,
    },
    /// A file of mode 0600 in the vault.
    File {
        /// Which.
        path: PathBuf,
    },
    /// The desktop's keyring.
    Keyring,
    /// Not within reach of this process: the public key is there, the private one is not.
    Elsewhere {
        /// The file it would stand in.
        path: PathBuf,
    },
    /// There is none yet; the first secret makes one.
    NotYet {
        /// The file it will stand in.
        path: PathBuf,
    },
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd { path } => write!(f, "a systemd credential ({})", path.display()),
            Self::File { path } => {
                write!(f, "a file that only its owner may read ({})", path.display())
            }
            Self::Keyring => f.write_str("the desktop's keyring (Secret Service)"),
            Self::Elsewhere { path } => {
                write!(f, "not here; a service may have it from systemd ({})", path.display())
            }
            Self::NotYet { path } => {
                write!(f, "none yet; the first secret makes one ({})", path.display())
            }
        }
    }
}

/// Where the private key of the vault of `home` comes from, in the order in which the gateway
/// looks: where it was chosen to be; else a systemd credential, then a file. Loads the key, so
/// that "there" means "of use".
///
/// # Errors
/// As [`super::Vault::open`]: a key that is damaged, locked up, or that others may read.
pub fn key_source(home: &Path) -> Result<KeySource, VaultError> {
    let (dir, credentials) = (vault_dir(home), credentials_folder());
    let path = identity_path(&dir);
    let chosen = chosen_place(&dir)?;
    if chosen == Some(KeyPlace::Keyring) {
        Identity::load(&dir, None)?;
        return Ok(KeySource::Keyring);
    }
    if let Some(folder) = credentials.filter(|_| chosen != Some(KeyPlace::File)) {
        let path = folder.join(CREDENTIAL_NAME);
        if Identity::from_file(&path, false)?.is_some() {
            return Ok(KeySource::Systemd { path });
        }
    }
    if chosen == Some(KeyPlace::Systemd) {
        return Ok(KeySource::Elsewhere { path });
    }
    Ok(match Identity::from_file(&path, true)? {
        Some(_) => KeySource::File { path },
        None if recipient_path(&dir).exists() => KeySource::Elsewhere { path },
        None => KeySource::NotYet { path },
    })
}

/// What had to be fetched before the walls of the gateway stand: the key of a vault that keeps it
/// in the keyring.
pub struct Fetched(pub(super) Option<Zeroizing<String>>);

impl Fetched {
    /// Fetches it, if it is kept in the keyring and there is one yet.
    ///
    /// # Errors
    /// When the keyring is locked, missing, or has not the key.
    pub fn now(home: &Path) -> Result<Self, VaultError> {
        let dir = vault_dir(home);
        let public = Recipient::load(&recipient_path(&dir))?;
        match (chosen_place(&dir)?, public) {
            (Some(KeyPlace::Keyring), Some(public)) => {
                Ok(Self(Some(keyring::lookup(&public.short())?)))
            }
            _ => Ok(Self(None)),
        }
    }
}

/// The private key.
pub(super) struct Identity(PrivateKey);

impl Identity {
    /// Loads the private key from where it was chosen to be; else a systemd credential if there
    /// is one, else the vault's own file. `None` when there is none.
    pub(super) fn load(dir: &Path, credentials: Option<&Path>) -> Result<Option<Self>, VaultError> {
        let chosen = chosen_place(dir)?;
        if chosen == Some(KeyPlace::Keyring) {
            let path = recipient_path(dir);
            let Some(public) = Recipient::load(&path)? else { return Ok(None) };
            let line = keyring::lookup(&public.short())?;
            return Self::from_text(&line, &path).map(Some);
        }
        if let Some(folder) = credentials.filter(|_| chosen != Some(KeyPlace::File))
            && let Some(identity) = Self::from_file(&folder.join(CREDENTIAL_NAME), false)?
        {
            return Ok(Some(identity));
        }
        if chosen == Some(KeyPlace::Systemd) {
            return Ok(None);
        }
        Self::from_file(&identity_path(dir), true)
    }

    /// systemd already guards its credentials (some versions with an ACL that shows as group
    /// bits), so only our own file's mode is judged.
    fn from_file(path: &Path, private: bool) -> Result<Option<Self>, VaultError> {
        let Some((text, mode)) = read_key_file(path)? else { return Ok(None) };
        if private && mode & OTHERS != 0 {
            return Err(VaultError::Permissions { path: path.to_owned(), mode });
        }
        Self::from_text(&text, path).map(Some)
    }

    /// From its line; `path` stands for it in errors.
    pub(super) fn from_text(text: &str, path: &Path) -> Result<Self, VaultError> {
        let bytes = decode(text, IDENTITY_PREFIX, path)?;
        let key = PrivateKey::from_private_key(&X25519, &bytes[..])
            .map_err(|_| VaultError::BadKey { path: path.to_owned(), why: "not an X25519 key" })?;
        Ok(Self(key))
    }

    /// Makes a new private key and keeps it at its place, a file of mode 0600 unless another one
    /// was chosen.
    pub(super) fn create(dir: &Path, place: Option<KeyPlace>) -> Result<Self, VaultError> {
        if place == Some(KeyPlace::Systemd) {
            return Err(VaultError::NoCredential { name: CREDENTIAL_NAME });
        }
        let doing = "making a key pair";
        let key = PrivateKey::generate(&X25519).map_err(|_| VaultError::Crypto { doing })?;
        let seed: Curve25519SeedBin<'_> =
            key.as_be_bytes().map_err(|_| VaultError::Crypto { doing })?;
        let mut line = Zeroizing::new(String::with_capacity(128));
        line.push_str(IDENTITY_PREFIX);
        STANDARD.encode_string(seed.as_ref(), &mut line);
        let made = Self(key);
        if place == Some(KeyPlace::Keyring) {
            keyring::store(&made.recipient()?.short(), &line)?;
        } else {
            line.push('\n');
            write(&identity_path(dir), line.as_bytes())?;
        }
        Ok(made)
    }

    pub(super) fn private_key(&self) -> &PrivateKey {
        &self.0
    }

    pub(super) fn recipient(&self) -> Result<Recipient, VaultError> {
        let public = self
            .0
            .compute_public_key()
            .map_err(|_| VaultError::Crypto { doing: "deriving the public key" })?;
        let bytes = <[u8; KEY_BYTES]>::try_from(public.as_ref())
            .map_err(|_| VaultError::Crypto { doing: "deriving the public key" })?;
        Ok(Recipient(bytes))
    }
}

/// The public key.
#[derive(PartialEq, Eq)]
pub(super) struct Recipient(pub(super) [u8; KEY_BYTES]);

impl Recipient {
    pub(super) fn load(path: &Path) -> Result<Option<Self>, VaultError> {
        let Some((text, _)) = read_key_file(path)? else { return Ok(None) };
        Ok(Some(Self(*decode(&text, RECIPIENT_PREFIX, path)?)))
    }

    /// The name under which a keyring has its private key.
    pub(super) fn short(&self) -> String {
        STANDARD.encode(self.0)
    }

    pub(super) fn to_text(&self) -> String {
        format!("{RECIPIENT_PREFIX}{}\n", STANDARD.encode(self.0))
    }
}

/// Writes down where the key is kept.
pub(super) fn write_place(dir: &Path, place: KeyPlace) -> Result<(), VaultError> {
    write(&place_path(dir), format!("{}\n", place.name()).as_bytes())
}

/// The text and mode of a key file; `None` when it does not exist.
fn read_key_file(path: &Path) -> Result<Option<(Zeroizing<String>, u32)>, VaultError> {
    use std::io::ErrorKind::{FileTooLarge, InvalidData};
    read_small(path, KEY_FILE_BYTES_MAX).map_err(|e| match e.kind() {
        FileTooLarge | InvalidData => {
            VaultError::BadKey { path: path.to_owned(), why: "not one short line of text" }
        }
        _ => io_error(path, "read", &e),
    })
}

fn decode(text: &str, prefix: &str, path: &Path) -> Result<Zeroizing<[u8; KEY_BYTES]>, VaultError> {
    let bad = |why| VaultError::BadKey { path: path.to_owned(), why };
    let coded = text.trim_end().strip_prefix(prefix).ok_or_else(|| bad("unknown first word"))?;
    let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
    match STANDARD.decode_slice(coded, &mut key[..]) {
        Ok(KEY_BYTES) => Ok(key),
        _ => Err(bad("not 32 bytes of base64")),
    }
}
