//! The vault: secrets sealed at rest, opened only by the gateway.
//!
//! ```text
//! nanoclaw secret set ─► Sealer (public key) ─► vault/NAME.sealed ─► Vault (private key) ─► header
//! ```
//!
//! Invariants:
//! 1. The bytes of a secret exist in memory only as [`SecretBytes`], which cannot be printed,
//!    serialised or cloned, and is wiped when dropped.
//! 2. A sealed file is bound to its name, hosts and agents: renaming it or editing its header
//!    breaks it.
//! 3. Whoever lists secrets reads headers only; listing needs no private key.
//! 4. Files are written whole (temporary name, sync, rename) with mode 0600.

pub(crate) mod files;
pub mod keyring;
mod keys;
mod logins;
mod seal;
mod sealer;
mod secret;

use std::path::{Path, PathBuf};

pub(crate) use logins::SealedLogin;

pub use keys::{Fetched, KeySource, check_place, key_source};
pub use sealer::{Sealer, SecretInfo};
pub use secret::{SecretBytes, SecretName};

use files::{vault_dir, write_file};
use keys::{Identity, Recipient};
use model::{AgentName, KeyPlace};

/// What went wrong with the vault. Never contains a byte of a secret.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A file could not be read or written.
    #[error(
        "the vault file {path} cannot be {action}: {cause}; check that the folder belongs to you"
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// "read", "written", …
        action: &'static str,
        /// The operating system's words.
        cause: String,
    },
    /// No secret of that name.
    #[error("there is no secret named {name}; set it with `nanoclaw secret set {name}`")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The private key is missing.
    #[error(
        "the vault's private key is missing ({path}); without it no sealed secret can be opened: restore it, or set the secrets again after removing {dir}"
    )]
    NoIdentity {
        /// Where it was looked for.
        path: PathBuf,
        /// The vault folder.
        dir: PathBuf,
    },
    /// Someone else may read the private key.
    #[error(
        "the vault's private key {path} has mode {mode:04o}, so others may read it; run `chmod 600 {path}` and set the secrets anew if others could have read it"
    )]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A key file is not what it should be.
    #[error("the vault's key file {path} is damaged: {why}; restore it from a backup")]
    BadKey {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// A login cannot be opened.
    #[error("the login {name} cannot be opened: {why}; log in again with `nanoclaw login {name}`")]
    Login {
        /// Which login.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The keyring does not do.
    #[error(
        "the vault's key is kept in the desktop's keyring, and {why}; unlock it in this session \
         (`secret-tool` of the package libsecret-tools must reach it), or write [vault] key = \
         \"file\" before the first secret is set"
    )]
    Keyring {
        /// What is wrong.
        why: String,
    },
    /// The key is not kept where the configuration says.
    #[error(
        "nanoclaw.toml says [vault] key = \"{}\", but the key of {dir} is kept as \"{}\"; write \
         that, or move the folder away and set the secrets again",
        wanted.name(),
        found.name()
    )]
    OtherPlace {
        /// What was written.
        wanted: KeyPlace,
        /// What is so.
        found: KeyPlace,
        /// The vault folder.
        dir: PathBuf,
    },
    /// systemd is to hand over the key and did not.
    #[error(
        "the vault's key is to come from systemd, and this process has no credential named {name}; \
         use a unit with LoadCredentialEncrypted={name}:… (docs/secrets.md)"
    )]
    NoCredential {
        /// Its name.
        name: &'static str,
    },
    /// A sealed file cannot be opened.
    #[error(
        "the secret {name} cannot be opened: {why}; set it again with `nanoclaw secret set {name}`"
    )]
    Sealed {
        /// Which secret.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A name, value or host was refused.
    #[error("{what} is refused: {why}")]
    Refused {
        /// "the secret's name", "the secret's value", …
        what: &'static str,
        /// What is wrong and what is allowed.
        why: &'static str,
    },
    /// The crypto library failed.
    #[error("the crypto library failed while {doing}; try again, and report it if it stays")]
    Crypto {
        /// What was being done.
        doing: &'static str,
    },
}

/// A secret opened for one use.
pub struct Secret {
    /// Its bytes.
    pub bytes: SecretBytes,
    /// Hosts at which it may be used: names or address literals, lower case.
    pub hosts: Vec<String>,
    /// Agents for which it may be used; empty for every agent whose file names it.
    pub agents: Vec<AgentName>,
}

impl Secret {
    /// Whether the secret may be sent to `host` (exact, lower case) for `agent`.
    #[must_use]
    pub fn serves(&self, host: &str, agent: &AgentName) -> bool {
        self.hosts.iter().any(|h| h == host) && self.is_for(agent)
    }

    /// Whether the secret may be used for `agent` at all.
    #[must_use]
    pub fn is_for(&self, agent: &AgentName) -> bool {
        self.agents.is_empty() || self.agents.contains(agent)
    }
}

fn io_error(path: &Path, action: &'static str, cause: &std::io::Error) -> VaultError {
    VaultError::Io { path: path.to_owned(), action, cause: cause.to_string() }
}

fn write(path: &Path, text: &[u8]) -> Result<(), VaultError> {
    write_file(path, text).map_err(|e| io_error(path, "written", &e))
}

/// The opening side: held by the gateway alone.
pub struct Vault {
    dir: PathBuf,
    credentials: Option<PathBuf>,
    identity: Option<Identity>,
}

impl Vault {
    /// Opens the vault of `home`. A vault that does not exist yet is empty, not an error; a key
    /// made later is found when the first secret is asked for. Publishes the public key when only
    /// the private one exists (a key delivered as systemd credential).
    ///
    /// # Errors
    /// When the private key is unreadable, damaged, readable by others, or not the one that
    /// secrets are sealed to.
    pub fn open(home: &Path) -> Result<Self, VaultError> {
        Self::open_with(home, keys::credentials_folder(), Fetched::now(home)?)
    }

    /// The same with what was [fetched](Fetched::now) before, for a process that can start no
    /// program any more.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn open_fetched(home: &Path, fetched: Fetched) -> Result<Self, VaultError> {
        Self::open_with(home, keys::credentials_folder(), fetched)
    }

    fn open_with(
        home: &Path,
        credentials: Option<PathBuf>,
        fetched: Fetched,
    ) -> Result<Self, VaultError> {
        let dir = vault_dir(home);
        let identity = match (fetched.0, keys::chosen_place(&dir)?) {
            (Some(line), _) => {
                Some(Identity::from_text(&line, Path::new("in the desktop's keyring"))?)
            }
            (None, Some(KeyPlace::Keyring)) => None,
            (None, _) => Identity::load(&dir, credentials.as_deref())?,
        };
        if let Some(identity) = &identity {
            let (path, own) = (keys::recipient_path(&dir), identity.recipient()?);
            match Recipient::load(&path)? {
                Some(published) if published == own => {}
                Some(_) => {
                    let why = "it does not belong to the private key";
                    return Err(VaultError::BadKey { path, why });
                }
                None => {
                    files::make_dir(&dir).map_err(|e| io_error(&dir, "created", &e))?;
                    write(&path, own.to_text().as_bytes())?;
                }
            }
        }
        Ok(Self { dir, credentials, identity })
    }

    /// Opens one secret. Reads its file each time, so that a new value serves at once.
    ///
    /// # Errors
    /// When there is none of that name, when it was altered or sealed to another key.
    pub fn secret(&self, name: &str) -> Result<Secret, VaultError> {
        let name = SecretName::parse(name)?;
        let path = sealed_path(&self.dir, &name);
        let text = match seal::read_bounded(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(VaultError::NotFound { name: name.to_string() });
            }
            Err(e) => return Err(io_error(&path, "read", &e)),
        };
        let (header, bytes) = self.with_identity(|identity| seal::open(&text, &name, identity))?;
        Ok(Secret { bytes, hosts: header.hosts, agents: header.agents })
    }

    /// Lends the private key; one that was made after the vault was opened is loaded now.
    fn with_identity<T>(
        &self,
        lend: impl FnOnce(&Identity) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        match &self.identity {
            Some(identity) => lend(identity),
            None if keys::chosen_place(&self.dir)? == Some(KeyPlace::Keyring) => {
                let why = "it was made after the gateway started: end the running sessions and \
                           start again";
                Err(VaultError::Keyring { why: why.into() })
            }
            None => {
                let found = Identity::load(&self.dir, self.credentials.as_deref())?;
                let late = found.ok_or_else(|| VaultError::NoIdentity {
                    path: keys::identity_path(&self.dir),
                    dir: self.dir.clone(),
                })?;
                lend(&late)
            }
        }
    }
}

fn sealed_path(dir: &Path, name: &SecretName) -> PathBuf {
    dir.join(format!("{name}.sealed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_systemd_credential_takes_the_place_of_the_key_file() {
        let home = std::env::temp_dir().join(format!("ncgw-cred-{}", std::process::id()));
        let credentials = home.join("credentials");
        let _ = fs::remove_dir_all(&home);
        let sealer = Sealer::open_or_create(&home).expect("a new vault");
        let value = || SecretBytes::new(b"test-key-not-real".to_vec());
        sealer.set("a", value(), &["a.com".into()], 1).expect("sealed");
        fs::create_dir(&credentials).expect("made");
        fs::rename(home.join("vault/identity"), credentials.join("nanoclaw-vault")).expect("moved");
        fs::remove_file(home.join("vault/recipient")).expect("removed");
        let vault =
            Vault::open_with(&home, Some(credentials.clone()), Fetched(None)).expect("opened");
        assert!(vault.secret("a").is_ok());
        // The public key was published again, so sealing goes on without the private one.
        let sealer = Sealer::open_or_create(&home).expect("opened");
        sealer.set("b", value(), &["a.com".into()], 1).expect("sealed");
        assert!(vault.secret("b").is_ok() && !home.join("vault/identity").exists());
        fs::remove_file(home.join("vault/recipient")).expect("removed");
        Sealer::open_or_create(&home).expect("another key pair");
        let mixed = Vault::open_with(&home, Some(credentials), Fetched(None));
        assert!(matches!(mixed, Err(VaultError::BadKey { .. })));
        fs::remove_dir_all(&home).expect("removed");
    }
}
