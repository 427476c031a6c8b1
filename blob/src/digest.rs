//! Digests as registries write them: `sha256:` and 64 hex digits.

use std::{fmt, str::FromStr};

use sha2::Digest as _;

/// The sha256 digest of a blob's bytes as served (OCI image specification, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest that Penstock can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is not sha256, the only one that registries must support.
    #[error("digest algorithm {algorithm:?} is not supported; only sha256 is")]
    Algorithm {
        /// What stood before the colon, cut to 32 characters.
        algorithm: String,
    },
    /// Not `sha256:` followed by 64 lower-case hex digits.
    #[error("a digest is written sha256:<64 lower-case hex digits>")]
    Malformed,
}

/// How the names of blobs begin that are no registry's. sha256 of bytes that anybody has begins so once in 2^64.
const DERIVED: [u8; 8] = *b"pnstk-v1";

impl Digest {
    /// A name for bytes whose sha256 nobody knows before he has them all: made of what they are made from, and of `kind`, which says how.
    /// Whoever keeps bytes under such a name cannot compare them with it ([`Digest::is_derived`]); each part of them was verified when it
    /// was made. No manifest may use one.
    #[must_use]
    pub fn derived(kind: &str, from: &[Self]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(kind.as_bytes());
        hasher.update(&[0]);
        from.iter().for_each(|digest| hasher.update(&digest.0));
        let mut name = hasher.finish();
        name.0[..DERIVED.len()].copy_from_slice(&DERIVED);
        name
    }

    /// Whether this is the name of something derived, and not the sha256 of the bytes that it names.
    #[must_use]
    pub fn is_derived(&self) -> bool {
        self.0.starts_with(&DERIVED)
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// A digest from its 32 raw bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits, without the algorithm: fit for a file name.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        let (algorithm, digits) = s.split_once(':').ok_or(DigestError::Malformed)?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm { algorithm: algorithm.chars().take(32).collect() });
        }
        if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(DigestError::Malformed);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| DigestError::Malformed)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] of bytes that arrive in pieces.
#[derive(Debug, Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes added.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_differ_by_all_that_they_are_made_of_and_are_no_digests() {
        let [a, b] = [Digest::of(b"a"), Digest::of(b"b")];
        let names = [
            Digest::derived("x", &[a, b]),
            Digest::derived("x", &[b, a]),
            Digest::derived("x", &[a]),
            Digest::derived("y", &[a, b]),
        ];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        assert!(names.iter().all(Digest::is_derived) && !a.is_derived());
        assert_eq!(Digest::derived("x", &[a, b]), names[0]);
    }

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        let json = serde_json::to_string(&Digest::of(b"x")).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), Digest::of(b"x"));
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut hasher = Hasher::new();
        hasher.update(b"pen");
        hasher.update(b"stock");
        assert_eq!(hasher.finish(), Digest::of(b"penstock"));
    }

    #[test]
    fn other_texts_are_refused() {
        let sha512 = "sha512:00".parse::<Digest>();
        assert_eq!(sha512, Err(DigestError::Algorithm { algorithm: "sha512".into() }));
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for bad in ["", "sha256", "sha256:", &EMPTY[..70], &upper, &format!("{EMPTY}0"), &format!("{}/", &EMPTY[..70])]
        {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError::Malformed), "{bad:?}");
        }
    }
}
