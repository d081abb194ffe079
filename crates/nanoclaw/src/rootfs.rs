//! The root file system of a session: the host's `/usr`, or the tree of a stored image.

use crate::failure::{Failure, Kind, Result};
use crate::home::Home;
use images::{Error, ErrorKind, Store, Tree, Unwatched};
use model::RootFs;
use policy::ResolvedAgent;

/// As long as this is held, the image is not removed.
pub(crate) struct Root {
    fs: RootFs,
    _tree: Option<Tree>,
}

impl Root {
    /// Looks at the image that the agent's file pins; one that is missing or changed is refused.
    pub(crate) fn of(home: &Home, agent: &ResolvedAgent) -> Result<Self> {
        let Some(image) = &agent.image else {
            return Ok(Self { fs: RootFs::HostUsr, _tree: None });
        };
        let store = Store::open(&home.images()).map_err(failure)?;
        let tree = store.tree(image, &Unwatched).map_err(failure)?;
        let path = tree.path().to_owned();
        Ok(Self { fs: RootFs::Image { image: image.clone(), tree: path }, _tree: Some(tree) })
    }

    /// As the sandbox wants it.
    pub(crate) fn fs(&self) -> RootFs {
        self.fs.clone()
    }
}

/// An error of the store, as people meet it.
pub(crate) fn failure(error: Error) -> Failure {
    let kind = match error.kind {
        ErrorKind::Usage => Kind::Usage,
        ErrorKind::Missing => Kind::Missing,
        ErrorKind::Refused | ErrorKind::Changed => Kind::Protection,
        ErrorKind::InUse | ErrorKind::Disk | ErrorKind::Network | ErrorKind::Cancelled => {
            Kind::Other
        }
    };
    Failure::new(kind, error.cause).remedy(error.remedy)
}
