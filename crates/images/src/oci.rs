//! The documents of the OCI image specification, as far as they are needed, and Docker's like them.
//!
//! Everything here comes from strangers: sizes are bounded before reading, unknown fields ignored.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{DOCUMENT_BYTES_MAX, INDEX_ENTRIES_MAX, LAYERS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The name of an image within a layout (image-layout.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, as containerd and docker write it.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";

/// A pointer to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: &Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Its digest; only SHA-256 is understood.
    pub(crate) fn digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest).ok_or_else(|| {
            let shown: String = self.digest.chars().take(80).collect();
            Error::refused(format!("the image names a blob by {shown:?}, which is no SHA-256"))
        })
    }
}

/// What a manifest is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
}

impl Platform {
    /// What this machine runs.
    pub(crate) fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into() }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// A manifest or an index.
#[derive(Debug, Clone)]
pub(crate) enum Parsed {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Every blob it needs, the configuration first.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// Reads a manifest or an index. A document that is both, or neither, is refused: which of the two
/// is meant must not depend on who reads it (CVE-2021-41190).
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed> {
    let document: Document = json(bytes, "manifest")?;
    match document {
        Document { manifests: Some(manifests), config: None, layers: None, media_type }
            if matches!(media_type.as_str(), "" | INDEX | DOCKER_INDEX) =>
        {
            if manifests.len() > INDEX_ENTRIES_MAX {
                return Err(Error::refused("the image's index has too many entries"));
            }
            Ok(Parsed::Index(manifests))
        }
        Document { manifests: None, config: Some(config), layers: Some(layers), media_type }
            if matches!(media_type.as_str(), "" | MANIFEST | DOCKER_MANIFEST) =>
        {
            if layers.len() > LAYERS_MAX {
                let cause = format!("the image has {} layers, over {LAYERS_MAX}", layers.len());
                return Err(Error::refused(cause));
            }
            let schema_version = 2;
            Ok(Parsed::Manifest(Manifest { schema_version, media_type, config, layers }))
        }
        _ => Err(Error::refused("its manifest is neither one image's nor an index")),
    }
}

/// The part of a configuration that is used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    pub(crate) rootfs: RootFs,
}

/// Digests of the layers' bytes, uncompressed, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootFs {
    pub(crate) diff_ids: Vec<String>,
}

impl Config {
    /// Reads it and looks whether it fits the manifest and this machine.
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self> {
        let config: Self = json(bytes, "configuration")?;
        if config.rootfs.diff_ids.len() != layers {
            return Err(Error::refused("its configuration names other layers than its manifest"));
        }
        let own = Platform::own();
        if config.os != own.os || config.architecture != own.architecture {
            let cause = format!(
                "the image is for {:?}, this machine runs {}/{}",
                format!("{}/{}", config.os, config.architecture),
                own.os,
                own.architecture
            );
            let remedy = "nothing was stored; use an image that is made for this machine, too";
            return Err(Error::new(ErrorKind::Refused, cause, remedy));
        }
        Ok(config)
    }

    /// One for a root file system that comes without: nothing of it depends on when or where.
    pub(crate) fn plain(diff_id: &Digest) -> Vec<u8> {
        let Platform { os, architecture } = Platform::own();
        let value = serde_json::json!({
            "architecture": architecture,
            "os": os,
            "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] },
        });
        value.to_string().into_bytes()
    }
}

/// Reads a document of bounded size.
pub(crate) fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::refused(format!("the image's {what} is too large")));
    }
    serde_json::from_slice(bytes)
        .map_err(|e| Error::refused(format!("the image's {what} cannot be read: {e}")))
}

/// Of an index's entries, those for this machine; those without a platform count when no other
/// does. Attestations and the like are no images.
pub(crate) fn for_this_machine(manifests: Vec<Descriptor>) -> Vec<Descriptor> {
    let own = Platform::own();
    let known = |d: &Descriptor| {
        matches!(d.media_type.as_str(), "" | MANIFEST | INDEX | DOCKER_MANIFEST | DOCKER_INDEX)
    };
    let (told, untold): (Vec<_>, Vec<_>) =
        manifests.into_iter().filter(known).partition(|d| d.platform.is_some());
    let fitting: Vec<_> = told.into_iter().filter(|d| d.platform.as_ref() == Some(&own)).collect();
    if fitting.is_empty() { untold } else { fitting }
}
