//! The store: blobs by digest, unpacked trees, names.
//!
//! ```text
//! images/  lock  blobs/<hex>  trees/<hex>/{root/,meta.json,lock}  names/<name>.json  tmp/
//! ```
//!
//! 1. One writer at a time holds `lock`; readers need none, for everything appears by a rename.
//! 2. A tree in use is held by a shared lock on its own `lock` file; it is removed only by whoever
//!    gets that exclusively.
//! 3. What a killed writer left in `tmp/` goes when the next one begins; what no name leads to goes
//!    when any one ends.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{DOCUMENT_BYTES_MAX, Event, Limits, Watch};
use crate::oci::{self, Config, Manifest, Parsed};
use crate::packing;
use crate::seal::{Seal, changed};
use crate::unpack::{Report, Unpacker, open_top};
use crate::writer::{Writer, file_name, read_bounded, replace};
use model::{ImageName, ImageRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A stored image, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it is called.
    pub name: ImageName,
    /// Digest of its manifest; agent files pin it.
    pub digest: Digest,
    /// Where it came from, e.g. a path or a registry's reference.
    pub source: String,
    /// Its blobs together, bytes.
    pub packed_bytes: u64,
    /// What was unpacked and what was left out.
    pub report: Report,
}

impl Image {
    /// How an agent file names it, after `image:`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.digest)
    }
}

/// `names/<name>.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: ImageName,
    digest: String,
    source: String,
}

/// `trees/<hex>/meta.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    seal: Seal,
    report: Report,
    packed_bytes: u64,
}

/// A tree that may be used as long as this is held.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    _lock: File,
}

impl Tree {
    /// The folder to be shown read-only as `/`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The folder that holds all images of an installation.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) root: PathBuf,
}

impl Store {
    /// Opens it, making what is missing.
    ///
    /// # Errors
    /// When its folders cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        for inner in ["blobs", "trees", "names", "tmp"] {
            let path = root.join(inner);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| Error::disk(path.display(), e))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// All images, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for named in self.names()? {
            let digest = named_digest(&named)?;
            let meta = self.meta(&digest)?;
            let Named { name, source, .. } = named;
            let (packed_bytes, report) = (meta.packed_bytes, meta.report);
            images.push(Image { name, digest, source, packed_bytes, report });
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The tree of an image, looked at and held against removal.
    ///
    /// # Errors
    /// When there is no such image, when its name means another one by now, or when its tree is not
    /// what was unpacked.
    pub fn tree(&self, image: &ImageRef, watch: &dyn Watch) -> Result<Tree> {
        let missing = |cause: String| {
            let remedy = "pull or import it (`nanoclaw image --help`), or write the image that \
                          `nanoclaw image list` shows into the agent file";
            Err(Error::new(ErrorKind::Missing, cause, remedy))
        };
        match self.name(&image.name)? {
            None => return missing(format!("there is no image {}", image.name)),
            Some(named) if named.digest != format!("sha256:{}", image.digest.0) => {
                return missing(format!(
                    "the image {} is {} here, not sha256:{} as the agent file pins it",
                    image.name, named.digest, image.digest.0
                ));
            }
            Some(_) => {}
        }
        let dir = self.root.join("trees").join(&image.digest.0);
        let Some(lock) = held(&dir)? else {
            return Err(changed(&format!("the tree of {} is not there", image.name)));
        };
        let path = dir.join("root");
        let digest = Digest::from_hex(&image.digest.0).ok_or_else(|| changed("a bad digest"))?;
        let mut meta = self.meta(&digest)?;
        if let Some(seal) = meta.seal.check(&open_top(&path)?, watch)? {
            meta.seal = seal;
            let thread = std::thread::current().id();
            let fresh = dir.join(format!("meta.{}-{thread:?}", std::process::id()));
            replace(&fresh, &dir.join("meta.json"), &meta)?;
        }
        Ok(Tree { path, _lock: lock })
    }

    /// Forgets a name, and removes what nothing else uses; bytes of blobs that went.
    ///
    /// # Errors
    /// When there is no such name, or a sandbox uses the image.
    pub fn remove(&self, name: &ImageName, watch: &dyn Watch) -> Result<u64> {
        let writer = Writer::begin(self, watch)?;
        let Some(named) = self.name(name)? else {
            let known: Vec<String> = self.names()?.iter().map(|n| n.name.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let cause = format!("there is no image {name}");
            return Err(Error::new(ErrorKind::Missing, cause, format!("there are: {known}")));
        };
        let shared = self.names()?.iter().any(|n| n.name != *name && n.digest == named.digest);
        let tree = self.root.join("trees").join(named.digest.trim_start_matches("sha256:"));
        let alone = if shared { None } else { unused(&tree, name)? };
        let file = self.root.join("names").join(file_name(name));
        fs::remove_file(&file).map_err(|e| Error::disk(file.display(), e))?;
        crate::writer::sync_folder(&self.root.join("names"))?;
        drop(alone);
        writer.collect()
    }

    fn name(&self, name: &ImageName) -> Result<Option<Named>> {
        let path = self.root.join("names").join(file_name(name));
        match File::open(&path) {
            Ok(file) => read_named(&path, file).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::disk(path.display(), e)),
        }
    }

    fn names(&self) -> Result<Vec<Named>> {
        let dir = self.root.join("names");
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| Error::disk(dir.display(), e))? {
            let path = entry.map_err(|e| Error::disk(dir.display(), e))?.path();
            match File::open(&path) {
                Ok(file) => all.push(read_named(&path, file)?),
                // Removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::disk(path.display(), e)),
            }
        }
        Ok(all)
    }

    fn meta(&self, digest: &Digest) -> Result<Meta> {
        let path = self.root.join("trees").join(digest.hex()).join("meta.json");
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => changed("its tree is not there"),
            _ => Error::disk(path.display(), e),
        })?;
        let bytes = read_bounded(file, DOCUMENT_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map_err(|e| changed(&format!("{}: {e}", path.display())))
    }

    /// The manifest of a stored image.
    fn manifest(&self, digest: &Digest) -> Result<Manifest> {
        let bytes = self.document(digest)?;
        match oci::parse(&bytes)? {
            Parsed::Manifest(manifest) => Ok(manifest),
            Parsed::Index(_) => Err(changed("an index stands where a manifest was")),
        }
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        let file = File::open(&path).map_err(|e| Error::disk(path.display(), e))?;
        let bytes = read_bounded(file, DOCUMENT_BYTES_MAX)?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(changed("a document of it")) }
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// What names lead to: trees, and blobs.
    pub(crate) fn used(&self) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let (mut trees, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for named in self.names()? {
            let digest = named_digest(&named)?;
            for blob in self.manifest(&digest)?.blobs() {
                blobs.insert(blob.digest()?.hex().to_owned());
            }
            blobs.insert(digest.hex().to_owned());
            trees.insert(digest.hex().to_owned());
        }
        Ok((trees, blobs))
    }

    /// Everything of `manifest` is among the blobs: unpacks it unless that was done, and names it.
    pub(crate) fn finish(
        &self,
        writer: &Writer<'_>,
        manifest: &Digest,
        name: &ImageName,
        source: &str,
        limits: &Limits,
    ) -> Result<Image> {
        let tree = self.root.join("trees").join(manifest.hex());
        let parsed = self.manifest(manifest)?;
        let config = self.document(&parsed.config.digest()?)?;
        let config = Config::parse(&config, parsed.layers.len())?;
        if tree.exists() && !self.whole(manifest, writer.watch) {
            drop(unused(&tree, name)?);
            writer.discard(&tree)?;
        }
        if !tree.exists() {
            let built = self.build(writer, &parsed, &config, limits)?;
            writer.publish(&built, &tree)?;
        }
        let digest = manifest.to_string();
        let named = Named { name: name.clone(), digest, source: source.to_owned() };
        let file = self.root.join("names").join(file_name(name));
        replace(&writer.fresh(), &file, &named)?;
        let meta = self.meta(manifest)?;
        let (digest, source) = (manifest.clone(), source.to_owned());
        let (packed_bytes, report) = (meta.packed_bytes, meta.report);
        Ok(Image { name: name.clone(), digest, source, packed_bytes, report })
    }

    fn whole(&self, digest: &Digest, watch: &dyn Watch) -> bool {
        let top = open_top(&self.root.join("trees").join(digest.hex()).join("root"));
        let checked = self.meta(digest).and_then(|meta| meta.seal.check(&top?, watch));
        checked.is_ok_and(|new| new.is_none())
    }

    /// Unpacks all layers; the folder with `root`, `meta.json` and `lock`.
    fn build(
        &self,
        writer: &Writer<'_>,
        manifest: &Manifest,
        config: &Config,
        limits: &Limits,
    ) -> Result<PathBuf> {
        let dir = writer.fresh();
        let root = dir.join("root");
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.and_then(|()| fs::create_dir(&root)).map_err(|e| Error::disk(root.display(), e))?;
        rustix::fs::chmod(&root, rustix::fs::Mode::from_raw_mode(0o755))
            .map_err(|e| Error::disk(root.display(), e))?;
        let mut unpacker = Unpacker::new(open_top(&root)?, limits);
        let mut left = limits.clone();
        for (at, (layer, diff_id)) in
            manifest.layers.iter().zip(&config.rootfs.diff_ids).enumerate()
        {
            writer.watch.tell(Event::Unpacking { layer: at + 1, of: manifest.layers.len() });
            let digest = layer.digest()?;
            let path = self.blob(&digest);
            let file = File::open(&path).map_err(|e| Error::disk(path.display(), e))?;
            let mut opened = packing::open(file, &left, writer.watch)?;
            unpacker.layer(&mut opened.bytes, left.unpacked_bytes)?;
            left = opened.rest(&left);
            if opened.packed.digest() != digest {
                return Err(changed(&format!("the layer {digest} is not what was stored")));
            }
            if opened.unpacked.digest().to_string() != *diff_id {
                return Err(Error::refused(format!(
                    "layer {} is not the one that the image's configuration names",
                    at + 1
                )));
            }
        }
        writer.watch.tell(Event::Sealing);
        crate::top::bounded(&open_top(&root)?)?;
        let report = unpacker.finish()?;
        let seal = Seal::of(&open_top(&root)?, writer.watch)?;
        let meta = Meta { seal, report, packed_bytes: manifest.packed_bytes() };
        replace(&writer.fresh(), &dir.join("meta.json"), &meta)?;
        File::create(dir.join("lock")).map_err(|e| Error::disk(dir.display(), e))?;
        Ok(dir)
    }
}

fn read_named(path: &Path, file: File) -> Result<Named> {
    let bytes = read_bounded(file, DOCUMENT_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|e| changed(&format!("{}: {e}", path.display())))
}

fn named_digest(named: &Named) -> Result<Digest> {
    Digest::parse(&named.digest).ok_or_else(|| changed("a name leads to no digest"))
}

/// The shared lock of a tree; `None` when it is not, or no longer, there.
fn held(dir: &Path) -> Result<Option<File>> {
    let path = dir.join("lock");
    let disk = |e| Error::disk(path.display(), e);
    let lock = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(disk)?,
    };
    lock.lock_shared().map_err(disk)?;
    // Whoever held it exclusively has removed it.
    let same = fs::metadata(&path).is_ok_and(|now| {
        lock.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (now.dev(), now.ino()))
    });
    Ok(same.then_some(lock))
}

/// The exclusive lock of a tree, or an error when a sandbox holds it.
pub(crate) fn unused(dir: &Path, name: &ImageName) -> Result<Option<File>> {
    let path = dir.join("lock");
    let lock = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| Error::disk(path.display(), e))?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => {
            let cause = format!("a sandbox is using the image {name}");
            let remedy = "nothing was changed; end its session (or `nanoclaw run`) first";
            Err(Error::new(ErrorKind::InUse, cause, remedy))
        }
        Err(fs::TryLockError::Error(e)) => Err(Error::disk(path.display(), e)),
    }
}
