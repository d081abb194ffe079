//! The sealing side of the vault: it has the public key alone.

use super::files::{self, vault_dir};
use super::keys::{self, Identity, Recipient};
use super::seal::{self, Header};
use super::{SecretBytes, SecretName, VaultError, io_error, sealed_path, write};
use model::AgentName;
use std::fs;
use std::path::{Path, PathBuf};

/// Secrets listed at most; more is a mistake, and the listing must stay bounded.
const SECRETS_MAX: usize = 10_000;
/// Hosts one secret may serve, and agents.
const HOSTS_MAX: usize = 64;

/// A secret as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretInfo {
    /// Its name.
    pub name: String,
    /// Hosts at which the gateway may use it.
    pub hosts: Vec<String>,
    /// Agents for which it may be used; empty for every agent whose file names it.
    pub agents: Vec<AgentName>,
    /// When its value was set, Unix milliseconds.
    pub created_ms: u64,
}

impl From<Header> for SecretInfo {
    fn from(h: Header) -> Self {
        Self { name: h.name, hosts: h.hosts, agents: h.agents, created_ms: h.created_ms }
    }
}

/// The sealing side: can set, list and remove, and never opens.
pub struct Sealer {
    dir: PathBuf,
    recipient: Recipient,
}

impl Sealer {
    /// Opens the vault of `home` for sealing; makes folder and key pair on first use.
    ///
    /// # Errors
    /// When the folder or the keys cannot be made or read.
    pub fn open_or_create(home: &Path) -> Result<Self, VaultError> {
        let dir = vault_dir(home);
        files::make_dir(&dir).map_err(|e| io_error(&dir, "created", &e))?;
        // Two commands at once must not make two key pairs.
        let _lock = files::lock(&dir).map_err(|e| io_error(&dir, "locked", &e))?;
        let path = keys::recipient_path(&dir);
        let recipient = match Recipient::load(&path)? {
            Some(recipient) => recipient,
            None => {
                let credentials = keys::credentials_folder();
                let identity = match Identity::load(&dir, credentials.as_deref())? {
                    Some(identity) => identity,
                    None => Identity::create(&dir)?,
                };
                let recipient = identity.recipient()?;
                write(&path, recipient.to_text().as_bytes())?;
                recipient
            }
        };
        Ok(Self { dir, recipient })
    }

    /// Seals `value` under `name`, usable at `hosts` only, for every agent whose file names it.
    ///
    /// # Errors
    /// As [`Sealer::set_for`].
    pub fn set(
        &self,
        name: &str,
        value: SecretBytes,
        hosts: &[String],
        now_ms: u64,
    ) -> Result<(), VaultError> {
        self.set_for(name, value, hosts, &[], now_ms)
    }

    /// Seals `value` under `name`, usable at `hosts` only and, unless `agents` is empty, for these
    /// agents only; replaces an older value. One trailing newline is trimmed (values come from
    /// files and terminals). `now_ms` is Unix milliseconds.
    ///
    /// # Errors
    /// For a name, value, host or agent that is refused, or a disk that refuses.
    pub fn set_for(
        &self,
        name: &str,
        value: SecretBytes,
        hosts: &[String],
        agents: &[String],
        now_ms: u64,
    ) -> Result<(), VaultError> {
        let name = SecretName::parse(name)?;
        let header = Header::new(&name, check_hosts(hosts)?, check_agents(agents)?, now_ms);
        self.write(&name, &header, value)
    }

    /// What is known of a secret without opening it; `None` when there is none.
    ///
    /// # Errors
    /// When the name is refused, or its file cannot be read or is not a sealed secret.
    pub fn info(&self, name: &str) -> Result<Option<SecretInfo>, VaultError> {
        let name = SecretName::parse(name)?;
        let path = sealed_path(&self.dir, &name);
        let text = match seal::read_bounded(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error(&path, "read", &e)),
        };
        Ok(Some(seal::header(&text, &name)?.into()))
    }

    /// Replaces the value of a secret and keeps its hosts and agents as `shown` has them, what
    /// [`Sealer::info`] said and the user saw: this side cannot open the old file, so it cannot
    /// tell whether its header is as it was sealed, and a file changed in between is refused.
    ///
    /// # Errors
    /// As [`Sealer::set_for`]; also when the secret is gone or no longer what was shown.
    pub fn rotate(
        &self,
        shown: &SecretInfo,
        value: SecretBytes,
        now_ms: u64,
    ) -> Result<(), VaultError> {
        let name = SecretName::parse(&shown.name)?;
        let gone = || VaultError::NotFound { name: name.to_string() };
        if &self.info(&shown.name)?.ok_or_else(gone)? != shown {
            let why = "its file was changed while the new value was asked for; look at \
                       `nanoclaw secret list` and try again";
            return Err(VaultError::Refused { what: "the new value", why });
        }
        let (hosts, agents) = (check_hosts(&shown.hosts)?, shown.agents.clone());
        self.write(&name, &Header::new(&name, hosts, agents, now_ms), value)
    }

    fn write(
        &self,
        name: &SecretName,
        header: &Header,
        value: SecretBytes,
    ) -> Result<(), VaultError> {
        let text = seal::seal(header, &value.checked()?, &self.recipient)?;
        write(&sealed_path(&self.dir, name), text.as_bytes())
    }

    /// Every secret as it can be listed, sorted by name. A file whose header cannot be read is
    /// left out here; opening it says why.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<SecretInfo>, VaultError> {
        let entries = fs::read_dir(&self.dir).map_err(|e| io_error(&self.dir, "read", &e))?;
        let mut all: Vec<SecretInfo> = entries
            .take(SECRETS_MAX)
            .filter_map(Result::ok)
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "sealed"))
            .filter_map(|entry| seal::read_bounded(&entry.path()).ok())
            .filter_map(|text| seal::split(&text).map(|parts| parts.header))
            .map(SecretInfo::from)
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Removes a secret. Returns false when there was none.
    ///
    /// # Errors
    /// When the name is refused or the file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<bool, VaultError> {
        let path = sealed_path(&self.dir, &SecretName::parse(name)?);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error(&path, "removed", &e)),
        }
    }
}

fn check_hosts(hosts: &[String]) -> Result<Vec<String>, VaultError> {
    let refused = |why| Err(VaultError::Refused { what: "the secret's host", why });
    if hosts.is_empty() {
        return refused("name at least one host at which it may be used (--host api.example.com)");
    }
    if hosts.len() > HOSTS_MAX {
        return refused("at most 64 hosts are allowed");
    }
    let mut checked = Vec::with_capacity(hosts.len());
    for host in hosts {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match (bare.parse::<std::net::IpAddr>(), policy::parse_host_name(host)) {
            (Ok(address), _) => checked.push(address.to_string()),
            (_, Ok(name)) => checked.push(name.to_string()),
            _ => {
                return refused("write a plain host name or address, without scheme, port or path");
            }
        }
    }
    Ok(checked)
}

fn check_agents(agents: &[String]) -> Result<Vec<AgentName>, VaultError> {
    let refused = |why| VaultError::Refused { what: "the secret's agent", why };
    if agents.len() > HOSTS_MAX {
        return Err(refused("at most 64 agents are allowed; without any it serves all"));
    }
    let parse = |name: &String| {
        AgentName::parse(name).map_err(|_| refused("write an agent's name, as its file is called"))
    };
    agents.iter().map(parse).collect()
}
