//! What is remembered of an attachment: enough to make it again without asking a registry.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use penstock_api::{PolicyChange, Timestamp};
use penstock_blob::{Blob, Digest};
use penstock_device::{DeviceId, Wanted};
use penstock_fetcher::{Descriptor, Platform, Reference};
use serde::{Deserialize, Serialize};

use super::check;

/// The version of the form written here. Older ones are read too: version 1 (release 0.1.0) knew neither `number` nor `policy`, version 2 neither
/// `owner` nor `part`. A record of any other version is left alone, and listed as such.
const VERSION: u32 = 3;
/// The oldest version that is read.
const OLDEST: u32 = 1;

/// The longest record read or written, in bytes: far more than 255 layers with their annotations take.
pub const MAX_BYTES: u64 = 1 << 20;

/// The most layers in a record: as many as an image may have (OverlayBD stacks up to 255).
pub const MAX_LAYERS: usize = 255;

/// One attachment as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The device's name, also the file's.
    #[serde(with = "text")]
    pub id: DeviceId,
    /// The image as it was asked for.
    #[serde(with = "text")]
    pub reference: Reference,
    /// The digest of the manifest that the reference meant then.
    pub manifest: Digest,
    /// The platform chosen.
    #[serde(with = "text")]
    pub platform: Platform,
    /// The transport asked for.
    #[serde(with = "text")]
    pub transport: Wanted,
    /// The number N of its `/dev/ublkbN`, by which an agent that starts anew takes it over; `None` without ublk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// What was asked for it about failures; what was not follows the config.
    #[serde(default, skip_serializing_if = "PolicyChange::is_empty")]
    pub policy: PolicyChange,
    /// When it was attached.
    pub attached_at: Timestamp,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Owner::is_operator")]
    pub owner: Owner,
    /// Where its file system is mounted, if it is.
    pub mount: Option<PathBuf>,
    /// What it was when it could last be opened.
    pub seen: Seen,
    /// The image's layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// Which of them it shows; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

/// Who asked for an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A person or a program, by the admin API.
    #[default]
    Operator,
    /// The snapshotter: it shows a layer, or a stack of them, to containers.
    Snapshotter,
}

impl Owner {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_operator(&self) -> bool {
        *self == Self::Operator
    }
}

/// Neighbouring layers of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// How many layers of the image are below the first.
    pub first: usize,
    /// How many they are, at least one.
    pub count: usize,
}

impl Part {
    /// All of `layers` layers.
    #[must_use]
    pub const fn all(layers: usize) -> Self {
        Self { first: 0, count: layers }
    }

    /// These of `layers`, bottom first; `None` when there are not so many, or none is meant.
    #[must_use]
    pub fn of<T>(self, layers: &[T]) -> Option<&[T]> {
        layers.get(self.first..self.first.checked_add(self.count)?).filter(|part| !part.is_empty())
    }
}

/// Facts about an image that are shown also while it cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// What it is made of, in words.
    pub image: String,
    /// How its bytes are verified, in words.
    pub verified_by: String,
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// The file system mounted from it, by the driver's name.
    pub file_system: Option<String>,
}

/// One layer as the manifest described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// The blob's name.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl From<&Descriptor> for LayerRecord {
    fn from(layer: &Descriptor) -> Self {
        Self {
            digest: layer.digest,
            size_bytes: layer.size_bytes,
            media_type: layer.media_type.clone(),
            annotations: layer.annotations.clone(),
        }
    }
}

impl LayerRecord {
    /// The layer's blob.
    #[must_use]
    pub const fn blob(&self) -> Blob {
        Blob { digest: self.digest, size_bytes: self.size_bytes }
    }
}

/// Why a file is not a record that this agent can use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is longer than any record.
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It has another version.
    #[error(
        "is of version {0}, and this agent reads versions {OLDEST} to {VERSION}; it was written by another release: install that, or remove the file"
    )]
    Version(u64),
    /// It is not a record.
    #[error("is not a record of an attachment: {0}")]
    Malformed(String),
    /// Its bytes are not those that were written.
    #[error(
        "is damaged: its check does not match; remove the file and attach the image again (or, if it was edited, take its line \"check\" out)"
    )]
    Check,
    /// It has too many layers, or none.
    #[error("has {0} layers; an image has from 1 to {MAX_LAYERS}")]
    Layers(usize),
    /// It names another attachment than its file does.
    #[error("names attachment {0}, unlike its file")]
    Misnamed(DeviceId),
    /// It shows layers that it does not list.
    #[error("shows {} layers from the {}th on, and lists {layers}", part.count, part.first + 1)]
    Part {
        /// What it shows.
        part: Part,
        /// How many it lists.
        layers: usize,
    },
    /// The mount point is not absolute.
    #[error("has a mount point that is not an absolute path")]
    Mount,
    /// A bound of what was asked about failures is not kept.
    #[error("has a policy out of its bounds: {0}")]
    Policy(String),
}

/// What an attachment is recorded with.
#[derive(Debug, Clone)]
pub struct New {
    /// The device's name.
    pub id: DeviceId,
    /// The image as it was asked for.
    pub reference: Reference,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The platform chosen.
    pub platform: Platform,
    /// The transport asked for.
    pub transport: Wanted,
    /// The image's layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// Which of them it shows; all when absent.
    pub part: Option<Part>,
    /// Who asked for it.
    pub owner: Owner,
    /// What was asked for it about failures.
    pub policy: PolicyChange,
}

impl Record {
    /// A record of an attachment made now, of which nothing was seen yet.
    #[must_use]
    pub fn new(new: New, mount: Option<PathBuf>) -> Self {
        Self {
            version: VERSION,
            id: new.id,
            reference: new.reference,
            manifest: new.manifest,
            platform: new.platform,
            transport: new.transport,
            number: None,
            policy: new.policy,
            attached_at: Timestamp::now(),
            owner: new.owner,
            mount,
            seen: Seen::default(),
            layers: new.layers,
            part: new.part,
        }
    }

    /// Which of the image's layers it shows.
    #[must_use]
    pub fn shown(&self) -> Part {
        self.part.unwrap_or(Part::all(self.layers.len()))
    }

    /// The layers that it shows, bottom first; none when it shows what it does not list.
    #[must_use]
    pub fn shown_layers(&self) -> &[LayerRecord] {
        self.shown().of(&self.layers).unwrap_or_default()
    }

    /// The record as it is written.
    ///
    /// # Errors
    /// [`RecordError`] when it would not be read back.
    pub fn to_text(&self) -> Result<String, RecordError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|error| RecordError::Malformed(error.to_string()))?;
        text.push('\n');
        if text.len() as u64 > MAX_BYTES {
            return Err(RecordError::TooLong);
        }
        self.check()?;
        Ok(text)
    }

    /// The record written as `text`.
    ///
    /// # Errors
    /// [`RecordError`], never a panic, whatever the text is.
    pub fn from_text(text: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        if text.len() as u64 > MAX_BYTES {
            return Err(RecordError::TooLong);
        }
        let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
        let Versioned { version } = serde_json::from_slice(text).map_err(malformed)?;
        if !(u64::from(OLDEST)..=u64::from(VERSION)).contains(&version) {
            return Err(RecordError::Version(version));
        }
        let record: Self = serde_json::from_slice(text).map_err(malformed)?;
        record.check()?;
        Ok(Self { version: VERSION, ..record })
    }

    fn check(&self) -> Result<(), RecordError> {
        if !(1..=MAX_LAYERS).contains(&self.layers.len()) {
            return Err(RecordError::Layers(self.layers.len()));
        }
        if let Some(part) = self.part.filter(|part| part.of(&self.layers).is_none()) {
            return Err(RecordError::Part { part, layers: self.layers.len() });
        }
        if self.mount.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return Err(RecordError::Mount);
        }
        self.policy.check().map_err(RecordError::Policy)?;
        Ok(())
    }
}

/// The record in the file `path`, which must be named after it.
///
/// # Errors
/// [`RecordError`]; a file longer than [`MAX_BYTES`] is not read to its end.
pub fn read(path: &Path) -> Result<Record, RecordError> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BYTES + check::BYTES + 1).read_to_end(&mut text)?;
    let record = Record::from_text(&check::open(&text)?)?;
    let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
    if named == Some(record.id.as_str()) { Ok(record) } else { Err(RecordError::Misnamed(record.id)) }
}

/// A field that is written as it is shown.
mod text {
    use std::{borrow::Cow, fmt::Display, str::FromStr};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
