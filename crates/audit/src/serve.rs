//! A log's public files over HTTP, read-only: C2SP tlog-tiles.
//!
//! ```text
//! GET /checkpoint          text/plain, not kept
//! GET /tile/…              application/octet-stream, kept for ever: a tile never changes
//! GET /epochs/NNNN         text/plain: a key that was replaced, with its closing note
//! ```
//!
//! 1. Only names that a tile or an epoch has are looked for: no path of a request reaches the file
//!    system.
//! 2. Partial tiles that are gone are cut from fuller ones, so that older heads stay provable.
//! 3. The head goes out with the cosignatures that were gathered for exactly it.

use crate::epoch::EPOCHS;
use crate::finding::{Finding, Sort};
use crate::http::{Answer, Content, Request, Service};
use crate::merkle::TILE_WIDTH;
use crate::note::NOTE_BYTES_MAX;
use crate::source::{Folder, Source, tile};
use crate::tiles::TileName;
use crate::witness::COSIGNED;
use std::io;
use std::path::Path;

/// Caches may not keep the head: the next one is a second away.
const NOT_KEPT: &str = "no-cache";

/// Caches may keep a tile for ever (a year, which is how they write that).
const KEPT: &str = "public, max-age=31536000, immutable";

/// What serves a log's folder.
pub struct Serve {
    folder: Folder,
}

impl Serve {
    /// Serves the log in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { folder: Folder(dir.to_owned()) }
    }

    fn head(&self) -> Result<Answer, Finding> {
        let Some(note) = self.folder.read("checkpoint", NOTE_BYTES_MAX)? else {
            return Ok(Answer::text(404, "there is no log here yet"));
        };
        let body = match self.folder.read(COSIGNED, NOTE_BYTES_MAX) {
            Ok(Some(cosigned)) if same_head(&note, &cosigned) => cosigned,
            _ => note,
        };
        Ok(text(body))
    }

    /// An epoch that has ended, by the number in its name.
    fn epoch(&self, number: usize) -> Result<Answer, Finding> {
        let found = self.folder.read(&format!("{EPOCHS}/{number:04}"), NOTE_BYTES_MAX)?;
        Ok(found.map_or_else(|| Answer::text(404, "there is no such epoch"), text))
    }

    fn tile(&self, name: TileName) -> Result<Answer, Finding> {
        let answer = |content| Answer {
            status: 200,
            kind: "application/octet-stream",
            cache: KEPT,
            content,
        };
        match crate::disk::open_file(&self.folder.0.join(name.path())) {
            Ok(file) => {
                let length = file.metadata().map(|m| m.len());
                let length = length.map_err(crate::finding::io_finding(&self.folder.0))?;
                return Ok(answer(Content::File(file, length)));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(crate::finding::io_finding(&self.folder.0)(e)),
        }
        if usize::from(name.width) == TILE_WIDTH {
            return Ok(Answer::text(404, "there is no such tile"));
        }
        match tile(&self.folder, name) {
            Ok(bytes) => Ok(answer(Content::Bytes(bytes))),
            Err(e) if e.sort == Sort::Unreadable => Err(e),
            Err(_) => Ok(Answer::text(404, "there is no such tile")),
        }
    }
}

/// What is read by people too, and not kept.
fn text(body: Vec<u8>) -> Answer {
    let content = Content::Bytes(body);
    Answer { status: 200, kind: "text/plain; charset=utf-8", cache: NOT_KEPT, content }
}

/// The number of `/epochs/NNNN`, written the one right way.
fn epoch_number(path: &str) -> Option<usize> {
    let number = path.strip_prefix('/')?.strip_prefix(EPOCHS)?.strip_prefix('/')?;
    number.parse().ok().filter(|n: &usize| format!("{n:04}") == number)
}

/// Whether two notes have the same text before their signatures.
fn same_head(a: &[u8], b: &[u8]) -> bool {
    let text = |note: &[u8]| note.windows(2).position(|w| w == b"\n\n");
    text(a).is_some_and(|end| text(b) == Some(end) && a[..end] == b[..end])
}

impl Service for Serve {
    fn body_max(&self) -> u64 {
        0
    }

    fn answer(&self, request: &Request, _: &[u8]) -> Answer {
        if request.method != "GET" {
            return Answer::text(405, "this log is read-only");
        }
        let name = TileName::parse(request.path.trim_start_matches('/'));
        let found = match name {
            _ if request.path == "/checkpoint" => self.head(),
            // One slash: two spellings of a name would be kept twice.
            Some(name) if !request.path.starts_with("//") => self.tile(name),
            _ => match epoch_number(&request.path) {
                Some(number) => self.epoch(number),
                None => Ok(Answer::text(404, "there are /checkpoint, /tile/…, /epochs/… here")),
            },
        };
        // What is wrong with our files is not for strangers.
        found.unwrap_or_else(|_| Answer::text(500, "the file cannot be read"))
    }
}
