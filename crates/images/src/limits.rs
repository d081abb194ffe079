//! How large an image may be, and whoever wants to see and stop the work.

/// Folders below folders. The deepest path known in a public image has 40; each level costs one
/// descriptor while a tree is removed or looked at.
pub(crate) const DEPTH_MAX: usize = 128;
/// Kernel: `PATH_MAX` without its zero; a link's target may not be longer either.
pub(crate) const PATH_BYTES_MAX: usize = 4_095;
/// Kernel: `NAME_MAX`.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Manifests, indexes and configurations; registries take no more than this.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// As many as the kernel's overlayfs could ever stack on one page of options.
pub(crate) const LAYERS_MAX: usize = 128;
/// Pieces of an index that are looked at.
pub(crate) const INDEX_ENTRIES_MAX: usize = 1_024;
/// Names and links' targets at the root and in [`TOP_FOLDERS`], bytes as JSON writes them. A
/// sandbox is told each by itself, of a folder or file twice, in one packet of 192 KiB with all
/// else. A Debian with everything has 5 KiB.
pub(crate) const TOP_BYTES_MAX: u64 = 24 << 10;
/// Folders in which every sandbox has something of its own, so that they are shown piece by piece.
pub(crate) const TOP_FOLDERS: [&str; 3] = ["etc", "var", "home"];
/// Indexes within indexes.
pub(crate) const INDEX_DEPTH_MAX: usize = 3;

/// How large one image may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All blobs of it together as they are transported, bytes.
    pub packed_bytes: u64,
    /// All files of all layers together, bytes, also of those that a later layer removes.
    pub unpacked_bytes: u64,
    /// All entries of all layers together.
    pub entries: u64,
    /// How many bytes may come out of one byte of a compressed layer, beyond [`Limits::slack`].
    pub ratio: u64,
    /// Bytes that may come out whatever the ratio, of all layers together: long runs of zeros are
    /// honest.
    pub slack: u64,
}

impl Limits {
    /// What a file of so many bytes may hold: a compressed archive of compressed layers may be no
    /// more of a bomb than a layer.
    pub(crate) fn within(&self, file_bytes: u64) -> Self {
        let most = file_bytes.saturating_mul(self.ratio).saturating_add(self.slack);
        Self { unpacked_bytes: self.unpacked_bytes.min(most), ..self.clone() }
    }
}

impl Default for Limits {
    /// Several times what the largest images in common use have (machine learning: 8 GiB packed).
    fn default() -> Self {
        Self {
            packed_bytes: 16 << 30,
            unpacked_bytes: 48 << 30,
            entries: 2_000_000,
            ratio: 100,
            slack: 256 << 20,
        }
    }
}

/// Something to tell a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody else is changing the store; waiting.
    Waiting,
    /// So much of a piece has arrived.
    Received {
        /// Which piece, e.g. the beginning of its digest.
        what: String,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        of: u64,
    },
    /// A layer is being unpacked.
    Unpacking {
        /// From 1.
        layer: usize,
        /// In all.
        of: usize,
    },
    /// The finished tree is read once more.
    Sealing,
}

/// Sees the work and may stop it.
pub trait Watch {
    /// Called now and then.
    fn tell(&self, event: Event);
    /// Whether to stop; asked at least every few hundred kilobytes.
    fn cancelled(&self) -> bool;
}

/// Sees nothing, stops nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn tell(&self, _: Event) {}
    fn cancelled(&self) -> bool {
        false
    }
}
