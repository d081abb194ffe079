//! Archives made byte by byte, so that they can be as wrong as a stranger's.
#![allow(dead_code)] // each test program uses a part

use nanoclaw_images::{Digest, Error, Image, Limits, Store, Unwatched};
use std::fs;
use std::path::{Path, PathBuf};
use testkit::TempDir;

pub(crate) const FILE: u8 = b'0';
pub(crate) const HARD: u8 = b'1';
pub(crate) const SYM: u8 = b'2';
pub(crate) const DIR: u8 = b'5';

/// A tar in the making.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn header(&mut self, name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{mode:07o}").as_bytes());
        put(124, format!("{size:011o}").as_bytes());
        put(136, format!("{:011o}", 1_700_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link);
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub(crate) fn with(mut self, name: &str, kind: u8, link: &str) -> Self {
        self.header(name.as_bytes(), kind, 0o755, 0, link.as_bytes());
        self
    }

    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        self.file_mode(name, text, 0o644)
    }

    pub(crate) fn file_mode(mut self, name: &str, text: &str, mode: u32) -> Self {
        self.header(name.as_bytes(), FILE, mode, text.len() as u64, b"");
        self.bytes(text.as_bytes());
        self
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.with(name, DIR, "")
    }

    pub(crate) fn symlink(self, name: &str, to: &str) -> Self {
        self.with(name, SYM, to)
    }

    pub(crate) fn hard_link(self, name: &str, to: &str) -> Self {
        self.with(name, HARD, to)
    }

    /// A pax header for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &str)]) -> Self {
        let mut body = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            body.push_str(&format!("{length} {key}={value}\n"));
        }
        self.header(b"pax", b'x', 0o644, body.len() as u64, b"");
        self.bytes(body.as_bytes());
        self
    }

    /// GNU's header for a long name (`L`) or link (`K`).
    pub(crate) fn gnu(mut self, kind: u8, value: &str) -> Self {
        self.header(b"././@LongLink", kind, 0o644, value.len() as u64 + 1, b"");
        self.bytes(format!("{value}\0").as_bytes());
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A store in a folder of its own, and a place for archives.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
}

impl Lab {
    pub(crate) fn new(name: &str) -> Self {
        let dir = TempDir::new(name).unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        Self { dir, store }
    }

    pub(crate) fn archive(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn import(&self, path: &Path) -> Result<Image, Error> {
        self.store.import(path, None, &Limits::default(), &Unwatched)
    }

    /// One layer, plain; its tree.
    pub(crate) fn plain(&self, tar: Tar) -> PathBuf {
        let image = self.import(&self.archive("plain.tar", &tar.end())).unwrap();
        self.root(&image)
    }

    /// Several layers in an OCI layout; its tree.
    pub(crate) fn layers(&self, layers: Vec<Tar>) -> Result<PathBuf, Error> {
        let layers: Vec<(Vec<u8>, Vec<u8>)> =
            layers.into_iter().map(Tar::end).map(|t| (t.clone(), t)).collect();
        let image = self.import(&self.archive("layers.tar", &layout(&layers, |_| {})))?;
        Ok(self.root(&image))
    }

    pub(crate) fn root(&self, image: &Image) -> PathBuf {
        self.dir.path().join("images/trees").join(image.digest.hex()).join("root")
    }

    /// Must be refused, for a reason that has these words; nothing may stay behind.
    pub(crate) fn refused(&self, bytes: &[u8], words: &str) {
        let before = self.files();
        let error = self.import(&self.archive("bad.tar", bytes)).unwrap_err();
        assert!(error.cause.contains(words), "{error}");
        assert!(!error.remedy.is_empty());
        self.untouched(&before);
    }

    /// Everything below the store, but for the lock.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut todo = vec![self.dir.path().join("images")];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
                all.push(entry.path());
            }
        }
        all.retain(|path| !path.ends_with("images/lock"));
        all.sort();
        all
    }

    pub(crate) fn untouched(&self, before: &[PathBuf]) {
        assert_eq!(self.files(), before);
        assert_eq!(fs::read_to_string(self.dir.path().join("canary")).unwrap(), "alive");
    }
}

/// An OCI layout as a tar, from layers as (packed, unpacked); `change` may spoil its documents.
pub(crate) fn layout(layers: &[(Vec<u8>, Vec<u8>)], change: impl Fn(&mut Documents)) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(&l.1).to_string()).collect();
    let descriptor = |kind: &str, bytes: &[u8]| {
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": Digest::of(bytes).to_string(), "size": bytes.len(),
        })
    };
    let mut documents = Documents {
        config: serde_json::json!({
            "architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }),
        layers: layers.iter().map(|l| descriptor("layer.v1.tar", &l.0)).collect(),
        annotations: serde_json::json!({"org.opencontainers.image.ref.name": "made:1"}),
        extra: Vec::new(),
    };
    change(&mut documents);
    let config = documents.config.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config), "layers": documents.layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor("manifest.v1+json", &manifest);
    entry["annotations"] = documents.annotations;
    let mut manifests = vec![entry];
    manifests.extend(documents.extra);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let mut tar = Tar::default().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let blobs = layers.iter().map(|l| &l.0).chain([&config, &manifest]);
    for blob in blobs {
        let name = format!("blobs/sha256/{}", Digest::of(blob).hex());
        tar.header(name.as_bytes(), FILE, 0o644, blob.len() as u64, b"");
        tar.bytes(blob);
    }
    tar.file("index.json", &index).end()
}

/// What a layout says of itself, before it is written.
pub(crate) struct Documents {
    pub(crate) config: serde_json::Value,
    pub(crate) layers: Vec<serde_json::Value>,
    pub(crate) annotations: serde_json::Value,
    pub(crate) extra: Vec<serde_json::Value>,
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}
