//! Entries that a plugin could not handle, kept in a file for a person to look at.
//!
//! Records are MessagePack with field names, one after the other, appended and synced before the entry is counted as
//! dead: an entry is either on its way, or acknowledged as dropped, or in this file. The runtime never applies or
//! removes a record; what becomes of it is a person's decision.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use oplogue_engine::error::{Error, Kind, Result, Side};
use serde::{Deserialize, Serialize};

/// One record of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub plugin: String,
    pub generation: u64,
    pub reason: String,
    /// Name of the operation.
    pub operation: String,
    /// The namespace in the source.
    pub namespace: String,
    /// Source time, `seconds << 32 | increment`.
    pub ts: u64,
    /// Raw BSON; empty if the operation has none.
    #[serde(with = "serde_bytes_vec")]
    pub key: Vec<u8>,
    #[serde(with = "serde_bytes_vec")]
    pub body: Vec<u8>,
}

/// Writes byte strings as MessagePack `bin`, not as arrays of numbers.
mod serde_bytes_vec {
    use serde::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

impl DeadLetter {
    /// All records of a file.
    ///
    /// # Errors
    /// The file cannot be read or a record is broken.
    pub fn read_all(path: &Path) -> std::io::Result<Vec<Self>> {
        let mut reader = std::io::BufReader::new(File::open(path)?);
        let mut records = Vec::new();
        while !std::io::BufRead::fill_buf(&mut reader)?.is_empty() {
            records.push(rmp_serde::from_read(&mut reader).map_err(std::io::Error::other)?);
        }
        Ok(records)
    }
}

/// The open file.
pub(crate) struct DeadLetterFile(Mutex<File>);

impl DeadLetterFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
            Error::new(Side::Config, Kind::Misconfigured, format!("open dead-letter file {}", path.display()))
                .caused_by(e)
        })?;
        Ok(Self(Mutex::new(file)))
    }

    pub(crate) fn write(&self, letter: &DeadLetter) -> Result<()> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(Side::Plugin, Kind::Exhausted, "write dead letter").caused_by(e)
        };
        let bytes = rmp_serde::to_vec_named(letter).map_err(|e| failed(e.into()))?;
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(|e| failed(e.into()))
    }
}
