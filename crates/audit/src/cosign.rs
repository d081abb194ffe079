//! C2SP tlog-cosignature v1 (Ed25519, type 0x04): the words of a witness under a checkpoint.
//!
//! ```text
//! checkpoint text ─► WitnessSigner::cosign(time) ─► one signature line
//! checkpoint with lines ─► Quorum::cosigners ─► which of the witnesses known to us, and when
//! ```
//!
//! 1. What is signed is `cosignature/v1`, the time, and the whole text of the checkpoint: a
//!    witness says that this was the largest head it had seen of this log at that moment.
//! 2. A log's key is no witness' key, nor the other way round: type and id differ.
//! 3. Lines of unknown keys are passed over; a wrong one under a known key is an error.

use crate::merkle::Hash;
use crate::note::{NoteError, check_name, hex8, key_id, signature_lines, split_key, split_note};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroize;

/// Algorithm byte of Ed25519 cosignatures.
const TYPE_COSIGNATURE: u8 = 4;

/// Id of the key, time, signature.
const BLOB_BYTES: usize = 4 + 8 + 64;

/// Witnesses that a quorum may name: what the policy format asks an implementation to bear.
pub const WITNESSES_MAX: usize = 32;

/// A witness' public key with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    id: [u8; 4],
    public: [u8; 32],
}

impl WitnessKey {
    /// Parses a verifier key of type 0x04.
    ///
    /// # Errors
    /// [`NoteError::Key`] when it is malformed or its id is not the hash of its parts.
    pub fn parse(vkey: &str) -> Result<Self, NoteError> {
        let (name, id_text, public) = split_key(vkey, "witness key", TYPE_COSIGNATURE)?;
        let id = key_id(&name, TYPE_COSIGNATURE, &public);
        if hex8(id) != id_text {
            let why = "its id does not match its parts";
            return Err(NoteError::Key { which: "witness key", why });
        }
        Ok(Self { name, id, public })
    }

    /// Name of the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key as text, one line without its end.
    #[must_use]
    pub fn vkey(&self) -> String {
        let mut data = vec![TYPE_COSIGNATURE];
        data.extend(self.public);
        format!("{}+{}+{}", self.name, hex8(self.id), STANDARD.encode(data))
    }

    /// When this witness cosigned that note, in seconds since 1970; `None` when it did not.
    ///
    /// # Errors
    /// When the note is malformed, or a line under this key is not this key's signature.
    pub fn cosigned(&self, note: &[u8]) -> Result<Option<u64>, NoteError> {
        let (text, lines) = split_note(note)?;
        let mut found = None;
        for line in lines {
            if line.name == self.name && line.blob[..4] == self.id {
                let time = self.check(text, &line.blob).ok_or_else(|| NoteError::Signature {
                    key: self.name.clone(),
                    offset: line.offset,
                })?;
                found = found.max(Some(time));
            }
        }
        Ok(found)
    }

    fn check(&self, text: &str, blob: &[u8]) -> Option<u64> {
        let blob: &[u8; BLOB_BYTES] = blob.try_into().ok()?;
        let (_, rest) = blob.split_first_chunk::<4>()?;
        let (time, signature) = rest.split_first_chunk::<8>()?;
        let time = u64::from_be_bytes(*time);
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        // The format allows no time beyond a signed number.
        let sound = time <= i64::MAX as u64;
        let valid = key.verify(message(time, text).as_bytes(), signature).is_ok();
        (sound && valid).then_some(time)
    }

    /// The line of this witness among those that it answered, under the text it was asked for.
    ///
    /// # Errors
    /// When the answer is not signature lines, or none of them is this witness' valid one.
    pub fn own_line(&self, text: &str, answer: &str) -> Result<(String, u64), NoteError> {
        for line in signature_lines(answer, 0)? {
            if line.name == self.name
                && line.blob[..4] == self.id
                && let Some(time) = self.check(text, &line.blob)
            {
                let blob = STANDARD.encode(&line.blob);
                return Ok((format!("\u{2014} {} {blob}\n", self.name), time));
            }
        }
        Err(NoteError::Signature { key: self.name.clone(), offset: 0 })
    }
}

fn message(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

/// The signing key of a witness. Its bytes appear in no `Debug` and leave only by
/// [`WitnessSigner::skey`].
pub struct WitnessSigner {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
    key: WitnessKey,
}

impl std::fmt::Debug for WitnessSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WitnessSigner({})", self.key.name)
    }
}

impl Drop for WitnessSigner {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

/// How errors call the private half.
const SIGNING_KEY: &str = "witness' signing key";

impl WitnessSigner {
    /// Makes a witness from a name and 32 random bytes.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is not fit for a key or the seed is refused.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, NoteError> {
        let bad = |why| NoteError::Key { which: SIGNING_KEY, why };
        check_name(name).map_err(bad)?;
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| bad("the seed is refused"))?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref());
        let public = public.map_err(|_| bad("the public key has not 32 bytes"))?;
        let id = key_id(name, TYPE_COSIGNATURE, &public);
        Ok(Self { pair, seed, key: WitnessKey { name: name.to_owned(), id, public } })
    }

    /// Parses what [`WitnessSigner::skey`] writes.
    ///
    /// # Errors
    /// [`NoteError::Key`] when it is malformed or its id is not that of its public key.
    pub fn parse(skey: &str) -> Result<Self, NoteError> {
        let bad = |why| NoteError::Key { which: SIGNING_KEY, why };
        let rest = skey.strip_prefix("PRIVATE+KEY+").ok_or_else(|| bad("the prefix is missing"))?;
        let (name, id, seed) = split_key(rest, SIGNING_KEY, TYPE_COSIGNATURE)?;
        let signer = Self::from_seed(&name, seed)?;
        if hex8(signer.key.id) != id {
            return Err(bad("its id does not match its parts"));
        }
        Ok(signer)
    }

    /// The signing key as text, `PRIVATE+KEY+<name>+<id>+<base64(0x04 ‖ seed)>`; for its file only.
    #[must_use]
    pub fn skey(&self) -> String {
        let mut data = vec![TYPE_COSIGNATURE];
        data.extend(self.seed);
        let text = STANDARD.encode(&data);
        data.zeroize();
        format!("PRIVATE+KEY+{}+{}+{text}", self.key.name, hex8(self.key.id))
    }

    /// The public half.
    #[must_use]
    pub fn key(&self) -> &WitnessKey {
        &self.key
    }

    /// The line that says: at `time` (seconds since 1970) this was the largest head seen.
    #[must_use]
    pub fn cosign(&self, text: &str, time: u64) -> String {
        let mut blob = self.key.id.to_vec();
        blob.extend(time.to_be_bytes());
        blob.extend(self.pair.sign(message(time, text).as_bytes()).as_ref());
        format!("\u{2014} {} {}\n", self.key.name, STANDARD.encode(blob))
    }
}

/// A witness that has cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigner {
    /// Name of its key.
    pub name: String,
    /// When, in seconds since 1970, by its own clock.
    pub time: u64,
}

/// Which witnesses are trusted, and how many of them must have cosigned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quorum {
    keys: Vec<WitnessKey>,
    needed: usize,
}

impl Quorum {
    /// `needed` of `keys`.
    ///
    /// # Errors
    /// When more are needed than there are, too many are named, or one key is named twice, under
    /// whatever name: it would count twice.
    pub fn new(keys: Vec<WitnessKey>, needed: usize) -> Result<Self, NoteError> {
        let bad = |why| Err(NoteError::Key { which: "quorum", why });
        if keys.len() > WITNESSES_MAX {
            return bad("it names more than 32 witnesses");
        }
        if needed > keys.len() {
            return bad("it needs more witnesses than it names");
        }
        let twice = |(i, key): (usize, &WitnessKey)| {
            keys[..i].iter().any(|other| other.public == key.public || other.name == key.name)
        };
        if keys.iter().enumerate().any(twice) {
            return bad("it names a witness, or a witness' key, twice");
        }
        Ok(Self { keys, needed })
    }

    /// How many must have cosigned.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// Who of the trusted has cosigned that note.
    ///
    /// # Errors
    /// As [`WitnessKey::cosigned`].
    pub fn cosigners(&self, note: &[u8]) -> Result<Vec<Cosigner>, NoteError> {
        let mut found = Vec::new();
        for key in &self.keys {
            if let Some(time) = key.cosigned(note)? {
                found.push(Cosigner { name: key.name.clone(), time });
            }
        }
        Ok(found)
    }
}

/// How far a record's clock may be behind a witness', seconds: what an unsynchronised clock gathers
/// in some weeks.
pub const CLOCKS_APART_MAX: u64 = 300;

/// By how many seconds a record is too early: it came after a head that was cosigned, and says that
/// it is older than the cosignature. The log's clock was set back, or was wrong. `None` when it
/// fits, within [`CLOCKS_APART_MAX`].
#[must_use]
pub fn too_early(record_ms: u64, cosigned_before: &[Cosigner]) -> Option<u64> {
    let witnessed = cosigned_before.iter().map(|c| c.time).min()?;
    witnessed.checked_sub(record_ms / 1_000).filter(|apart| *apart > CLOCKS_APART_MAX)
}

/// A root as people and files write it.
#[must_use]
pub fn root_text(root: &Hash) -> String {
    STANDARD.encode(root)
}
