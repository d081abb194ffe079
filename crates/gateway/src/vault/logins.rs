//! Logins at rest: sealed like secrets, under names that no secret can have, in files that no
//! secret is looked for in. A file is replaced only while it is the one that was read.

use super::seal::{self, Header};
use super::secret::SecretName;
use super::{Sealer, SecretBytes, SecretInfo, Vault, VaultError, files, io_error, write};
use crate::vault::keys::{self, Recipient};
use model::AgentName;
use std::path::{Path, PathBuf};

/// What a login's file is called after its name.
const SUFFIX: &str = "login";

/// A login opened for one use.
pub(crate) struct SealedLogin {
    /// The file's text; [`Vault::replace_login`] wants it back.
    pub(crate) text: String,
    /// What was sealed.
    pub(crate) bytes: SecretBytes,
    /// Hosts at which its tokens may be used.
    pub(crate) hosts: Vec<String>,
    /// Agents for which; empty for every agent.
    pub(crate) agents: Vec<AgentName>,
}

impl SealedLogin {
    /// Whether its tokens may be sent to `host`.
    pub(crate) fn serves(&self, host: &str) -> bool {
        self.hosts.iter().any(|h| h == host)
    }

    /// Whether it may be used for `agent`.
    pub(crate) fn is_for(&self, agent: &AgentName) -> bool {
        self.agents.is_empty() || self.agents.contains(agent)
    }
}

fn path_of(dir: &Path, name: &str) -> Result<PathBuf, VaultError> {
    let name = SecretName::parse(name)?;
    Ok(dir.join(format!("{name}.{SUFFIX}")))
}

/// Text of the file, if there is one.
fn read(path: &Path) -> Result<Option<String>, VaultError> {
    match seal::read_bounded(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(path, "read", &e)),
    }
}

fn as_login(name: &str, error: VaultError) -> VaultError {
    match error {
        VaultError::Sealed { why, .. } => VaultError::Login { name: name.to_owned(), why },
        other => other,
    }
}

impl Vault {
    /// A name for this installation, made from its public key: the same as long as the vault lives,
    /// and no secret. A UUID of version 8 (RFC 9562 §5.8), as a URN.
    pub(crate) fn installation(&self) -> Result<String, VaultError> {
        let recipient = keys::recipient_path(&self.dir);
        let missing = || VaultError::NoIdentity { path: recipient.clone(), dir: self.dir.clone() };
        let key = Recipient::load(&recipient)?.ok_or_else(missing)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.0);
        let mut text = String::from("urn:uuid:");
        for (i, byte) in digest.as_ref().iter().take(16).enumerate() {
            let byte = match i {
                6 => byte & 0x0f | 0x80,
                8 => byte & 0x3f | 0x80,
                _ => *byte,
            };
            if matches!(i, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Ok(text)
    }

    /// Opens a login; `None` when there is none of that name.
    pub(crate) fn login(&self, name: &str) -> Result<Option<SealedLogin>, VaultError> {
        let path = path_of(&self.dir, name)?;
        let Some(text) = read(&path)? else { return Ok(None) };
        let bound = SecretName::of_login(name)?;
        let (header, bytes) = self
            .with_identity(|identity| seal::open(&text, &bound, identity))
            .map_err(|e| as_login(name, e))?;
        Ok(Some(SealedLogin { text, bytes, hosts: header.hosts, agents: header.agents }))
    }

    /// Seals a new value over the login whose file's text is `old` (`None`: there is none yet, or
    /// whatever there is may go), and returns the new file's text; `None` when the file is not
    /// that one any more, and nothing was changed. Durable when it returns.
    pub(crate) fn replace_login(
        &self,
        name: &str,
        old: Option<&str>,
        like: (&[String], &[AgentName]),
        value: &SecretBytes,
        now_ms: u64,
    ) -> Result<Option<String>, VaultError> {
        let path = path_of(&self.dir, name)?;
        let _lock = files::lock(&self.dir).map_err(|e| io_error(&self.dir, "locked", &e))?;
        if let Some(old) = old
            && read(&path)?.as_deref() != Some(old)
        {
            return Ok(None);
        }
        let recipient = keys::recipient_path(&self.dir);
        let missing = || VaultError::NoIdentity { path: recipient.clone(), dir: self.dir.clone() };
        let recipient = Recipient::load(&recipient)?.ok_or_else(missing)?;
        let header =
            Header::new(&SecretName::of_login(name)?, like.0.to_vec(), like.1.to_vec(), now_ms);
        let text = seal::seal(&header, value, &recipient)?;
        write(&path, text.as_bytes())?;
        Ok(Some(text))
    }
}

impl Sealer {
    /// Seals a token that a person pasted as the login `name`, over whatever there was.
    ///
    /// # Errors
    /// As [`Sealer::set_for`].
    pub fn set_login(
        &self,
        name: &str,
        token: SecretBytes,
        hosts: &[String],
        agents: &[AgentName],
        now_ms: u64,
    ) -> Result<(), VaultError> {
        let path = path_of(&self.dir, name)?;
        let token = token.checked()?;
        let value = crate::login::Tokens::pasted(&token, now_ms)?.sealed_form()?;
        let header =
            Header::new(&SecretName::of_login(name)?, hosts.to_vec(), agents.to_vec(), now_ms);
        let text = seal::seal(&header, &value, &self.recipient)?;
        let _lock = files::lock(&self.dir).map_err(|e| io_error(&self.dir, "locked", &e))?;
        write(&path, text.as_bytes())
    }

    /// Removes a login. Returns false when there was none. A renewal under way does not bring it
    /// back.
    ///
    /// # Errors
    /// When the name is refused or the file cannot be removed.
    pub fn remove_login(&self, name: &str) -> Result<bool, VaultError> {
        let path = path_of(&self.dir, name)?;
        let _lock = files::lock(&self.dir).map_err(|e| io_error(&self.dir, "locked", &e))?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error(&path, "removed", &e)),
        }
    }

    /// Every login, sorted by name; without opening one.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn logins(&self) -> Result<Vec<SecretInfo>, VaultError> {
        let mut all = self.listed(SUFFIX)?;
        for login in &mut all {
            login.name = SecretName::login_of(&login.name).to_owned();
        }
        Ok(all)
    }
}
