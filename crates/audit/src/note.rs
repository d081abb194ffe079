//! C2SP signed-note v1.0.0 (Ed25519, type 0x01) and tlog-checkpoint v1.0.0.
//!
//! ```text
//! Checkpoint { origin, size, root } ─► text ─► Signer::sign ─► file
//! file ─► Verifier::open ─► Checkpoint
//! ```
//!
//! 1. A key's id is the first four bytes of `SHA-256(name ‖ "\n" ‖ 0x01 ‖ public key)`.
//! 2. Parsing is exact: one spelling a value (canonical base64, no leading zero, lower-case hex),
//!    so that no byte of a file can change unseen.
//! 3. Signature lines of other keys (witnesses) are kept out of the way, never an error.

use crate::merkle::{Hash, sha256};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroize;

/// Algorithm byte of Ed25519 in the signed-note format.
const TYPE_ED25519: u8 = 1;

/// Longest name of a key, bytes.
const NAME_BYTES_MAX: usize = 255;

/// Largest signed note read. A checkpoint with a hundred witness lines is 15 KB.
pub const NOTE_BYTES_MAX: u64 = 64 << 10;

/// Why a note, a key or a checkpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The key text is not of the right form.
    #[error(
        "the {which} is not a valid signed-note key: {why}; restore the file from a copy you trust"
    )]
    Key {
        /// "verifier key", "signing key", "witness key" or "witness' signing key".
        which: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// The note is not of the right form.
    #[error(
        "the checkpoint is malformed at byte {offset}: {why}; fetch it again from a copy you trust"
    )]
    Malformed {
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// No line carries a valid signature of the given key.
    #[error(
        "the checkpoint's signature is not valid for key {key}: it was changed, or another key \
         made it"
    )]
    Signature {
        /// Name of the key.
        key: String,
        /// Where the signatures start in the file.
        offset: u64,
    },
}

impl NoteError {
    /// Byte of the file the error is about.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self {
            Self::Key { .. } => 0,
            Self::Malformed { offset, .. } | Self::Signature { offset, .. } => *offset,
        }
    }
}

/// The head of a log: who, how many, which tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Entries it covers.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Parses the text. No extension lines: this log writes none.
    ///
    /// # Errors
    /// [`NoteError::Malformed`] when it is not exactly what [`Checkpoint::text`] writes.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let bad = |offset, why| NoteError::Malformed { offset: offset as u64, why };
        let mut lines = text.split_inclusive('\n');
        let mut next = || lines.next().and_then(|l| l.strip_suffix('\n'));
        let origin = next().ok_or_else(|| bad(0, "the origin line is missing"))?;
        check_name(origin).map_err(|why| bad(0, why))?;
        let at = origin.len() + 1;
        let size = next().ok_or_else(|| bad(at, "the size line is missing"))?;
        let value: u64 = size.parse().map_err(|_| bad(at, "the size is not a number"))?;
        if value.to_string() != size {
            return Err(bad(at, "the size is not written the one right way"));
        }
        let at = at + size.len() + 1;
        let root = next().ok_or_else(|| bad(at, "the root line is missing"))?;
        let root = STANDARD.decode(root).ok().and_then(|r| Hash::try_from(r).ok());
        let root = root.ok_or_else(|| bad(at, "the root is not the base64 of 32 bytes"))?;
        let made = Self { origin: origin.to_owned(), size: value, root };
        if made.text().len() != text.len() {
            return Err(bad(at + 45, "there is text after the root"));
        }
        Ok(made)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err("the name is empty or longer than 255 bytes");
    }
    if name.contains('+') || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("the name has a space, a control character or '+'");
    }
    Ok(())
}

/// The id of a key: its name, algorithm and bytes, hashed.
pub(crate) fn key_id(name: &str, algorithm: u8, public: &[u8]) -> [u8; 4] {
    let mut text = name.as_bytes().to_vec();
    text.extend([b'\n', algorithm]);
    text.extend(public);
    let h = sha256(&text);
    [h[0], h[1], h[2], h[3]]
}

pub(crate) fn hex8(id: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}

/// `<name>+<8 hex>+<base64(algorithm ‖ 32 bytes)>`, split and checked.
pub(crate) fn split_key(
    text: &str,
    which: &'static str,
    algorithm: u8,
) -> Result<(String, String, [u8; 32]), NoteError> {
    let bad = |why| NoteError::Key { which, why };
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad("it is not name+id+key"));
    };
    check_name(name).map_err(bad)?;
    let data = STANDARD.decode(data).map_err(|_| bad("the key is not base64"))?;
    match <[u8; 33]>::try_from(data) {
        Ok(d) if d[0] == algorithm => {
            let mut key = [0; 32];
            key.copy_from_slice(&d[1..]);
            Ok((name.to_owned(), id.to_owned(), key))
        }
        Ok(_) => Err(bad("it is a key for something else: logs have type 1, witnesses type 4")),
        _ => Err(bad("it is not an Ed25519 key of 32 bytes")),
    }
}

/// A signature line of a note.
pub(crate) struct SignatureLine<'a> {
    /// Name of the key.
    pub(crate) name: &'a str,
    /// Id of the key and the signature.
    pub(crate) blob: Vec<u8>,
    /// Where the line starts in the note.
    pub(crate) offset: u64,
}

/// Takes a note apart: the text, with its last line's end, and its signature lines.
///
/// # Errors
/// [`NoteError::Malformed`].
pub(crate) fn split_note(note: &[u8]) -> Result<(&str, Vec<SignatureLine<'_>>), NoteError> {
    let bad = |offset: usize, why| NoteError::Malformed { offset: offset as u64, why };
    let note = std::str::from_utf8(note).map_err(|e| bad(e.valid_up_to(), "not UTF-8"))?;
    let split = note.rfind("\n\n").ok_or_else(|| bad(0, "no empty line before the signatures"))?;
    let (text, rest) = (&note[..=split], &note[split + 2..]);
    if rest.is_empty() || !rest.ends_with('\n') {
        return Err(bad(note.len(), "the signature lines do not end"));
    }
    Ok((text, signature_lines(rest, split + 2)?))
}

/// The lines of `text`, which starts at byte `at` of the note; each must be a signature's.
pub(crate) fn signature_lines(
    text: &str,
    mut at: usize,
) -> Result<Vec<SignatureLine<'_>>, NoteError> {
    let bad = |offset: usize, why| NoteError::Malformed { offset: offset as u64, why };
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n') {
        let (name, blob) = line
            .strip_suffix('\n')
            .and_then(|l| l.strip_prefix("\u{2014} "))
            .and_then(|l| l.split_once(' '))
            .ok_or_else(|| bad(at, "not a signature line"))?;
        let blob = STANDARD.decode(blob).map_err(|_| bad(at, "a signature is not base64"))?;
        if blob.len() < 5 {
            return Err(bad(at, "a signature is too short"));
        }
        lines.push(SignatureLine { name, blob, offset: at as u64 });
        at += line.len();
    }
    Ok(lines)
}

/// A public key with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    id: [u8; 4],
    public: [u8; 32],
}

impl Verifier {
    /// Parses a verifier key.
    ///
    /// # Errors
    /// [`NoteError::Key`] when it is malformed or its id is not the hash of its parts.
    pub fn parse(vkey: &str) -> Result<Self, NoteError> {
        let (name, id_text, public) = split_key(vkey, "verifier key", TYPE_ED25519)?;
        let id = key_id(&name, TYPE_ED25519, &public);
        if hex8(id) != id_text {
            return Err(NoteError::Key {
                which: "verifier key",
                why: "its id does not match its parts",
            });
        }
        Ok(Self { name, id, public })
    }

    /// The key's id.
    pub(crate) fn id(&self) -> [u8; 4] {
        self.id
    }

    /// Name of the key, which is also the origin of its log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The verifier key as text, one line without its end.
    #[must_use]
    pub fn vkey(&self) -> String {
        let mut data = vec![TYPE_ED25519];
        data.extend(self.public);
        format!("{}+{}+{}", self.name, hex8(self.id), STANDARD.encode(data))
    }

    /// Checks a signed checkpoint and returns it.
    ///
    /// # Errors
    /// When the note is malformed, is of another origin, or carries no valid signature of this key.
    pub fn open(&self, note: &[u8]) -> Result<Checkpoint, NoteError> {
        let checkpoint = Checkpoint::parse(self.open_text(note)?)?;
        if checkpoint.origin != self.name {
            let why = "its origin is not the name of the key";
            return Err(NoteError::Malformed { offset: 0, why });
        }
        Ok(checkpoint)
    }

    /// Checks a signed note and returns its text, whatever that says.
    ///
    /// # Errors
    /// When the note is malformed, or carries no valid signature of this key.
    pub fn open_text<'n>(&self, note: &'n [u8]) -> Result<&'n str, NoteError> {
        let (text, lines) = split_note(note)?;
        let mut valid = false;
        for line in lines {
            if line.name == self.name && line.blob[..4] == self.id {
                let key = UnparsedPublicKey::new(&ED25519, &self.public);
                if key.verify(text.as_bytes(), &line.blob[4..]).is_err() {
                    let key = self.name.clone();
                    return Err(NoteError::Signature { key, offset: line.offset });
                }
                valid = true;
            }
        }
        if !valid {
            let offset = text.len() as u64 + 1;
            return Err(NoteError::Signature { key: self.name.clone(), offset });
        }
        Ok(text)
    }
}

/// The signing key of a log. Its bytes appear in no `Debug` and leave only by [`Signer::skey`].
pub struct Signer {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
    verifier: Verifier,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.verifier.name)
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

impl Signer {
    /// Makes a signer from a name and 32 random bytes.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is not fit for a key or the seed is refused.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, NoteError> {
        let bad = |why| NoteError::Key { which: "signing key", why };
        check_name(name).map_err(bad)?;
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| bad("the seed is refused"))?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref());
        let public = public.map_err(|_| bad("the public key has not 32 bytes"))?;
        let verifier =
            Verifier { name: name.to_owned(), id: key_id(name, TYPE_ED25519, &public), public };
        Ok(Self { pair, seed, verifier })
    }

    /// Parses `PRIVATE+KEY+<name>+<id>+<base64>`, the form that Go's `sumdb/note` writes.
    ///
    /// # Errors
    /// [`NoteError::Key`] when it is malformed or its id is not that of its public key.
    pub fn parse(skey: &str) -> Result<Self, NoteError> {
        let bad = |why| NoteError::Key { which: "signing key", why };
        let rest = skey.strip_prefix("PRIVATE+KEY+").ok_or_else(|| bad("the prefix is missing"))?;
        let (name, id, seed) = split_key(rest, "signing key", TYPE_ED25519)?;
        let signer = Self::from_seed(&name, seed)?;
        if hex8(signer.verifier.id) != id {
            return Err(bad("its id does not match its parts"));
        }
        Ok(signer)
    }

    /// The signing key as text; for the key file only.
    #[must_use]
    pub fn skey(&self) -> String {
        let mut data = vec![TYPE_ED25519];
        data.extend(self.seed);
        let v = &self.verifier;
        format!("PRIVATE+KEY+{}+{}+{}", v.name, hex8(v.id), STANDARD.encode(data))
    }

    /// The public half.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Signs a head of this log: the whole checkpoint file.
    #[must_use]
    pub fn sign(&self, size: u64, root: Hash) -> String {
        self.sign_text(&Checkpoint { origin: self.verifier.name.clone(), size, root }.text())
    }

    /// Signs a text, whose lines all end: the whole note.
    #[must_use]
    pub fn sign_text(&self, text: &str) -> String {
        let mut blob = self.verifier.id.to_vec();
        blob.extend(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n\u{2014} {} {}\n", self.verifier.name, STANDARD.encode(blob))
    }
}
