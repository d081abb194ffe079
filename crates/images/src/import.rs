//! Images from files: OCI layouts, archives of `docker save`, root file systems.
//!
//! Pipeline: path ─► what is it? ─► manifest, configuration, layers among the blobs ─► unpack.

use crate::archive::{self, Files, Scan, Shape};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{DOCUMENT_BYTES_MAX, INDEX_DEPTH_MAX, LAYERS_MAX, Limits, Watch};
use crate::oci::{self, Config, Descriptor, Manifest, Parsed};
use crate::packing::Packing;
use crate::store::{Image, Store};
use crate::unpack::open_top;
use crate::writer::{Writer, read_bounded};
use model::ImageName;
use serde::Deserialize;
use std::fs::File;
use std::path::Path;

/// What was found in an archive: the manifest, now a blob, and what the image calls itself.
struct Found {
    manifest: Digest,
    called: Option<ImageName>,
    /// The archive's length, where it is one file: what comes out of it is held against that.
    file_bytes: Option<u64>,
}

impl Store {
    /// Imports an image: an OCI layout or a root file system, as a folder or a tar (plain, gzip or
    /// zstd), or what `docker save` writes. Without `name` the image's own is taken, else the
    /// file's.
    ///
    /// # Errors
    /// For whatever breaks a rule or a limit; the store is then as it was.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&ImageName>,
        limits: &Limits,
        watch: &dyn Watch,
    ) -> Result<Image> {
        let missing = |e: std::io::Error| {
            let cause = format!("{}: {e}", path.display());
            Error::new(ErrorKind::Missing, cause, "name a tar archive or a folder")
        };
        let real = path.canonicalize().map_err(missing)?;
        let meta = real.metadata().map_err(missing)?;
        let writer = Writer::begin(self, watch)?;
        let found = if meta.is_dir() {
            from_folder(&writer, &real, name, limits)?
        } else if meta.is_file() {
            from_file(&writer, &real, name, limits)?
        } else {
            return Err(missing(std::io::Error::other("neither a file nor a folder")));
        };
        let own = || found.called.clone().map_or_else(|| by_path(&real), Ok);
        let name = name.cloned().map_or_else(own, Ok)?;
        let source = real.to_string_lossy();
        let limits = found.file_bytes.map_or_else(|| limits.clone(), |b| limits.within(b));
        self.finish(&writer, &found.manifest, &name, &source, &limits)
    }
}

fn from_folder(
    writer: &Writer<'_>,
    path: &Path,
    name: Option<&ImageName>,
    limits: &Limits,
) -> Result<Found> {
    if is_layout(path)? {
        return layout(writer, &Files::folder(path)?, name, limits);
    }
    let place = writer.fresh();
    let mut out = File::create(&place).map_err(|e| Error::disk(place.display(), e))?;
    crate::pack::pack(&open_top(path)?, &mut out, writer.watch)?;
    let packed = File::open(&place).map_err(|e| Error::disk(place.display(), e))?;
    let (diff_id, size) = writer.blob(packed, None, limits.packed_bytes, "the folder")?;
    plain(writer, Packing::None, &diff_id, (&diff_id, size))
}

fn from_file(
    writer: &Writer<'_>,
    path: &Path,
    name: Option<&ImageName>,
    limits: &Limits,
) -> Result<Found> {
    let Scan { packing, bytes, unpacked, shape } = archive::scan(path, limits, writer.watch)?;
    let found = match shape {
        Shape::Layout => {
            layout(writer, &archive::parts(writer, path, limits, writer.watch)?, name, limits)
        }
        Shape::Docker => {
            docker(writer, &archive::parts(writer, path, limits, writer.watch)?, limits)
        }
        Shape::Plain => {
            let file = File::open(path).map_err(|e| Error::disk(path.display(), e))?;
            let (digest, size) = writer.blob(file, None, limits.packed_bytes, "the archive")?;
            plain(writer, packing, &unpacked, (&digest, size))
        }
    }?;
    Ok(Found { file_bytes: Some(bytes), ..found })
}

/// Whether a folder is an OCI layout, by its two documents. One that is there but no file would
/// make a layout look like a root file system, and is refused: nobody meant that.
fn is_layout(path: &Path) -> Result<bool> {
    let file = |name: &str| {
        let place = path.join(name);
        match place.symlink_metadata() {
            Ok(meta) if meta.is_file() => Ok(true),
            Ok(_) => {
                let cause = format!("{} is no ordinary file", place.display());
                let remedy = "nothing was stored; put the file itself in its place, or remove it";
                Err(Error::new(ErrorKind::Refused, cause, remedy))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::disk(place.display(), e)),
        }
    };
    // Both are looked at, whatever the first one is.
    let (marker, index) = (file("oci-layout")?, file("index.json")?);
    Ok(marker && index)
}

/// An image of one layer that came without documents.
fn plain(
    writer: &Writer<'_>,
    packing: Packing,
    diff_id: &Digest,
    layer: (&Digest, u64),
) -> Result<Found> {
    let config = Config::plain(diff_id);
    let layers = vec![Descriptor::new(packing.media_type(), layer.0, layer.1)];
    made(writer, &config, layers, None)
}

/// Stores a configuration and a manifest of our own making.
fn made(
    writer: &Writer<'_>,
    config: &[u8],
    layers: Vec<Descriptor>,
    called: Option<ImageName>,
) -> Result<Found> {
    let digest = writer.document(config)?;
    let config = Descriptor::new(oci::CONFIG, &digest, config.len() as u64);
    let media_type = oci::MANIFEST.to_owned();
    let manifest = Manifest { schema_version: 2, media_type, config, layers };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|e| Error::disk("the manifest", std::io::Error::from(e)))?;
    Ok(Found { manifest: writer.document(&bytes)?, called, file_bytes: None })
}

fn layout(
    writer: &Writer<'_>,
    files: &Files,
    name: Option<&ImageName>,
    limits: &Limits,
) -> Result<Found> {
    let index = read_bounded(files.need("index.json")?, DOCUMENT_BYTES_MAX)?;
    let Parsed::Index(manifests) = oci::parse(&index)? else {
        return Err(Error::refused("index.json is no index"));
    };
    let chosen = choose(manifests, name)?;
    let called = called(&chosen);
    let (digest, bytes, manifest) = descend(&chosen, |d| {
        let digest = d.digest()?;
        let file = files.need(&format!("blobs/sha256/{}", digest.hex()))?;
        let bytes = read_bounded(file, DOCUMENT_BYTES_MAX)?;
        if Digest::of(&bytes) == digest {
            return Ok(bytes);
        }
        Err(Error::refused(format!("the document {digest} of the image has another digest")))
    })?;
    within(&manifest, limits)?;
    writer.document(&bytes)?;
    for blob in manifest.blobs() {
        let expected = blob.digest()?;
        let what = format!("the blob {}", expected.brief());
        let file = files.need(&format!("blobs/sha256/{}", expected.hex()))?;
        writer.blob(file, Some(&expected), blob.size, &what)?;
    }
    Ok(Found { manifest: digest, called, file_bytes: None })
}

/// From an index's entry to one manifest, through further indexes; `fetch` gives documents whose
/// digest was checked.
pub(crate) fn descend(
    first: &Descriptor,
    fetch: impl Fn(&Descriptor) -> Result<Vec<u8>>,
) -> Result<(Digest, Vec<u8>, Manifest)> {
    let mut at = first.clone();
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = fetch(&at)?;
        match oci::parse(&bytes)? {
            Parsed::Manifest(manifest) => return Ok((at.digest()?, bytes, manifest)),
            Parsed::Index(manifests) => at = choose(manifests, None)?,
        }
    }
    Err(Error::refused("the image's indexes are nested too deeply"))
}

/// All that it will need is within the limits.
pub(crate) fn within(manifest: &Manifest, limits: &Limits) -> Result<()> {
    if manifest.config.size > DOCUMENT_BYTES_MAX || manifest.packed_bytes() > limits.packed_bytes {
        let bytes = manifest.packed_bytes();
        return Err(Error::refused(format!("the image has {bytes} bytes, more than it may")));
    }
    Ok(())
}

fn called(entry: &Descriptor) -> Option<ImageName> {
    let full = entry.annotations.get(oci::FULL_NAME);
    // Within a layout the short name is often only a tag, which says nothing elsewhere.
    let short = entry.annotations.get(oci::REF_NAME).filter(|name| name.contains([':', '/']));
    ImageName::parse(full.or(short)?).ok()
}

/// The one entry that is meant.
fn choose(manifests: Vec<Descriptor>, name: Option<&ImageName>) -> Result<Descriptor> {
    let mut fitting = oci::for_this_machine(manifests);
    let names =
        |d: &Descriptor| [oci::REF_NAME, oci::FULL_NAME].map(|key| d.annotations.get(key).cloned());
    if fitting.len() > 1
        && let Some(name) = name
    {
        fitting.retain(|d| names(d).iter().flatten().any(|n| n == name.as_str()));
    }
    if fitting.len() > 1 {
        let known: Vec<String> = fitting.iter().flat_map(names).flatten().take(20).collect();
        let known: Vec<String> = known.iter().map(|n| n.escape_debug().to_string()).collect();
        let cause = "the archive holds more than one image";
        let remedy = format!("say which with --name; there are: {}", known.join(", "));
        return Err(Error::new(ErrorKind::Usage, cause, remedy));
    }
    fitting.pop().ok_or_else(|| {
        let own = oci::Platform::own();
        let cause = format!("the image has nothing for {}/{}", own.os, own.architecture);
        let remedy = "use an image that is made for this machine, too";
        Error::new(ErrorKind::Missing, cause, remedy)
    })
}

/// One entry of `manifest.json` as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker(writer: &Writer<'_>, files: &Files, limits: &Limits) -> Result<Found> {
    let bytes = read_bounded(files.need("manifest.json")?, DOCUMENT_BYTES_MAX)?;
    let mut saved: Vec<Saved> = oci::json(&bytes, "manifest.json")?;
    if saved.len() > 1 {
        let cause = "the archive holds more than one image";
        return Err(Error::new(ErrorKind::Usage, cause, "save one image at a time"));
    }
    let saved = saved.pop().ok_or_else(|| Error::refused("manifest.json names no image"))?;
    if saved.layers.len() > LAYERS_MAX {
        return Err(Error::refused("the image has too many layers"));
    }
    let config = read_bounded(files.need(&saved.config)?, DOCUMENT_BYTES_MAX)?;
    let mut layers = Vec::new();
    let mut left = limits.packed_bytes;
    for name in &saved.layers {
        let what = format!("the layer {:?}", name.chars().take(80).collect::<String>());
        let (digest, size) = writer.blob(files.need(name)?, None, left, &what)?;
        left = left.saturating_sub(size);
        layers.push(Descriptor::new(Packing::None.media_type(), &digest, size));
    }
    let tag = saved.repo_tags.unwrap_or_default().into_iter().next();
    made(writer, &config, layers, tag.and_then(|tag| ImageName::parse(&tag).ok()))
}

/// A name from a file's: without the endings of archives, in the letters of names.
fn by_path(path: &Path) -> Result<ImageName> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let endings = [".gz", ".tgz", ".zst", ".tar", ".oci", ".rootfs"];
    let mut stem = file.as_str();
    while let Some(shorter) = endings.iter().find_map(|e| stem.strip_suffix(e)) {
        stem = shorter;
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = stem.chars().map(plain).take(100).collect();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    ImageName::parse(name).map_err(|_| {
        let cause = format!("{} gives no name for the image", path.display());
        Error::new(ErrorKind::Usage, cause, "say one with --name")
    })
}
