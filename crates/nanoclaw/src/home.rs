//! Where the state lives: one folder, 0700, never inside a repository.
//!
//! ```text
//! <home>/  nanoclaw.toml  agents/  policies/  vault/  store.db  audit/  images/  run/
//!          sessions/<id>/{workspace,home,servers/<name>/{workspace,home}}
//! ```

use crate::failure::{Context, Failure, Kind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Unix socket paths may have 107 bytes (`sockaddr_un`, unix(7)); the longest of ours below the
/// home is `run/doors/s<11 hex>-<8 hex>.sock`.
const HOME_PATH_BYTES_MAX: usize = 107 - 37;

/// The folder of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    path: PathBuf,
}

impl Home {
    /// `--home`, else `$NANOCLAW_HOME`, else `$XDG_STATE_HOME/nanoclaw`, else
    /// `~/.local/state/nanoclaw`; made when it is not there.
    pub(crate) fn open(given: Option<&Path>) -> Result<Self> {
        let home = Self::look(given)?;
        home.make(&home.path)?;
        home.check()?;
        for inner in ["agents", "sessions", "run"] {
            home.make(&home.path.join(inner))?;
        }
        Ok(home)
    }

    /// As [`Home::open`], but nothing is made or changed.
    pub(crate) fn look(given: Option<&Path>) -> Result<Self> {
        let path = Self::choose(given)?;
        let path = std::path::absolute(&path).context(format!("home {}", path.display()))?;
        if path.as_os_str().len() > HOME_PATH_BYTES_MAX {
            let long = format!("the home path {} is too long for sockets below it", path.display());
            return Err(Failure::usage(long)
                .remedy(format!("choose one of at most {HOME_PATH_BYTES_MAX} bytes with --home")));
        }
        Ok(Self { path })
    }

    fn choose(given: Option<&Path>) -> Result<PathBuf> {
        if let Some(path) = given {
            return Ok(path.to_owned());
        }
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        var("NANOCLAW_HOME")
            .or_else(|| var("XDG_STATE_HOME").map(|p| p.join("nanoclaw")))
            .or_else(|| var("HOME").map(|p| p.join(".local/state/nanoclaw")))
            .ok_or_else(|| {
                Failure::usage("no home folder: HOME is not set").remedy("use --home DIR")
            })
    }

    fn make(&self, path: &Path) -> Result<()> {
        let what = || format!("cannot make {}", path.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).context(what())
    }

    /// Another user's folder, or one that others may write, is no place for keys and a log.
    fn check(&self) -> Result<()> {
        let meta = std::fs::metadata(&self.path).context(self.path.display())?;
        let own = rustix::process::geteuid().as_raw();
        if meta.uid() != own {
            let whose =
                format!("{} belongs to uid {}, not to you", self.path.display(), meta.uid());
            return Err(Failure::new(Kind::Protection, whose).remedy("choose another --home"));
        }
        let mode = meta.permissions().mode();
        if mode & 0o022 == 0 && mode & 0o077 != 0 {
            // Made by hand, as `mkdir` makes folders: nobody else could have put anything there.
            let closed = std::fs::Permissions::from_mode(0o700);
            return std::fs::set_permissions(&self.path, closed).context(self.path.display());
        }
        if mode & 0o022 != 0 {
            let open = format!("{} can be written by others", self.path.display());
            return Err(Failure::new(Kind::Protection, open)
                .remedy(format!("chmod 700 {}", self.path.display())));
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.path.join("audit")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store.db")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("nanoclaw.toml")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    pub(crate) fn agents(&self) -> PathBuf {
        self.path.join("agents")
    }

    /// `sessions/<id>/`, with `workspace` and `home` in it, made when not there.
    pub(crate) fn session(&self, id: &model::SessionId) -> Result<SessionDirs> {
        let root = self.path.join("sessions").join(id.as_str());
        let dirs = SessionDirs { workspace: root.join("workspace"), home: root.join("home") };
        self.make(&dirs.workspace)?;
        self.make(&dirs.home)?;
        Ok(dirs)
    }

    /// `sessions/<id>/servers/<name>/`, the same for a program that serves tools to the session.
    pub(crate) fn server(&self, id: &model::SessionId, name: &str) -> Result<SessionDirs> {
        let root = self.path.join("sessions").join(id.as_str()).join("servers").join(name);
        let dirs = SessionDirs { workspace: root.join("workspace"), home: root.join("home") };
        self.make(&dirs.workspace)?;
        self.make(&dirs.home)?;
        Ok(dirs)
    }

    /// The door of a session.
    pub(crate) fn door(&self, id: &model::SessionId) -> Result<PathBuf> {
        let dir = self.path.join("run/doors");
        self.make(&dir)?;
        Ok(dir.join(format!("{id}.sock")))
    }
}

/// A session's own folders.
#[derive(Debug, Clone)]
pub(crate) struct SessionDirs {
    pub(crate) workspace: PathBuf,
    pub(crate) home: PathBuf,
}
