//! Images from registries (OCI distribution specification, the pulling part).
//!
//! Pipeline: reference ─► manifest or index ─► the one for this machine ─► blobs that are missing.

mod client;
mod reference;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::import::{descend, within};
use crate::limits::{DOCUMENT_BYTES_MAX, Event, Limits, Watch};
use crate::oci::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, MANIFEST};
use crate::store::{Image, Store};
use crate::writer::{Writer, read_bounded};
use client::Client;
use model::ImageName;
use reference::Reference;
use std::cell::RefCell;
use std::io::{self, Read};

/// How many bytes between two words of progress.
const TOLD_EVERY: u64 = 1 << 20;

impl Store {
    /// Pulls an image that its registry gives to everybody. Plain HTTP only to this machine, and
    /// only with `plain_http`.
    ///
    /// # Errors
    /// For whatever cannot be had or breaks a rule or a limit; the store is then as it was.
    pub fn pull(
        &self,
        reference: &str,
        name: Option<&ImageName>,
        plain_http: bool,
        limits: &Limits,
        watch: &dyn Watch,
    ) -> Result<Image> {
        let reference = Reference::parse(reference)?;
        let name = name.cloned().map_or_else(|| reference.name(), Ok)?;
        let client = Client::new(&reference, plain_http, watch)?;
        let writer = Writer::begin(self, watch)?;
        let (digest, bytes, manifest) = manifest(&client, &reference)?;
        within(&manifest, limits)?;
        writer.document(&bytes)?;
        for blob in manifest.blobs() {
            let expected = blob.digest()?;
            if self.blob(&expected).exists() {
                continue;
            }
            let answer = client.get(&format!("blobs/{expected}"), "*/*")?;
            let body = client.body(answer, blob.size);
            let from = Told { inner: body, watch, what: expected.brief(), of: blob.size, bytes: 0 };
            let what = format!("the blob {}", expected.brief());
            writer.blob(from, Some(&expected), blob.size, &what)?;
        }
        let source = format!("{}/{}:{}", reference.host, reference.repository, reference.wanted());
        self.finish(&writer, &digest, &name, &source, limits)
    }
}

/// The manifest for this machine, by its digest.
fn manifest(
    client: &Client<'_>,
    reference: &Reference,
) -> Result<(Digest, Vec<u8>, crate::oci::Manifest)> {
    let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
    let fetch = |wanted: &str| {
        let answer = client.get(&format!("manifests/{wanted}"), &accept)?;
        read_bounded(client.body(answer, DOCUMENT_BYTES_MAX), DOCUMENT_BYTES_MAX)
    };
    let checked = |bytes: Vec<u8>, expected: &Digest| {
        let found = Digest::of(&bytes);
        if found == *expected {
            return Ok(bytes);
        }
        Err(Error::refused(format!("the registry gave {found} where {expected} was asked for")))
    };
    let first = fetch(&reference.wanted())?;
    let digest = reference.digest.clone().unwrap_or_else(|| Digest::of(&first));
    let first = RefCell::new(Some(checked(first, &digest)?));
    let size = first.borrow().as_ref().map_or(0, Vec::len) as u64;
    descend(&Descriptor::new("", &digest, size), |descriptor| match first.take() {
        Some(bytes) => Ok(bytes),
        None => {
            let expected = descriptor.digest()?;
            checked(fetch(&expected.to_string())?, &expected)
        }
    })
}

/// Tells how far a blob is.
struct Told<'a, R> {
    inner: R,
    watch: &'a dyn Watch,
    what: &'a str,
    of: u64,
    bytes: u64,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let before = self.bytes / TOLD_EVERY;
        self.bytes += n as u64;
        if before < self.bytes / TOLD_EVERY || self.bytes == self.of {
            let what = self.what.to_owned();
            self.watch.tell(Event::Received { what, bytes: self.bytes, of: self.of });
        }
        Ok(n)
    }
}
