//! What a path names: the routes of the distribution specification, and two of our own for tokens and signed downloads.

use penstock_blob::Digest;

use crate::refusal::Refusal;

/// What kind of thing a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `/v2/`.
    Ping,
    /// `/v2/<name>/manifests/<tag or digest>`.
    Manifest,
    /// `/v2/<name>/blobs/<digest>`.
    Blob,
    /// `/v2/<name>/blobs/uploads/...`.
    Upload,
    /// `/v2/<name>/tags/list`.
    Tags,
    /// `/v2/<name>/referrers/<digest>`.
    Referrers,
    /// `/token`.
    Token,
    /// `/storage/<digest>?...`: where blob downloads are redirected to.
    Storage,
    /// Anything else.
    Other,
}

/// A manifest's name in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Tag(String),
    Digest(Digest),
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Ping,
    Manifest {
        repository: String,
        name: Name,
    },
    Blob {
        repository: String,
        digest: Digest,
    },
    Uploads {
        repository: String,
    },
    Upload {
        repository: String,
        id: String,
    },
    Tags {
        repository: String,
    },
    Referrers {
        repository: String,
        digest: Digest,
    },
    Token,
    Storage {
        digest: Digest,
    },
    /// A path of `kind` with a part that is not well formed.
    Malformed {
        kind: Kind,
        part: Part,
    },
    Other,
}

/// The part of a path that is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Repository,
    Digest,
    Tag,
}

impl Part {
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Repository => Refusal::new(http::StatusCode::BAD_REQUEST, "NAME_INVALID", "invalid repository name"),
            Self::Digest => Refusal::digest_invalid("a digest is written sha256:<64 lower-case hex digits>"),
            Self::Tag => Refusal::new(http::StatusCode::BAD_REQUEST, "TAG_INVALID", "invalid tag"),
        }
    }
}

impl Route {
    /// Reads a path (without its query).
    pub(crate) fn of(path: &str) -> Self {
        if let Some(digest) = path.strip_prefix("/storage/") {
            return digest
                .parse()
                .map_or(Self::malformed(Kind::Storage, Part::Digest), |digest| Self::Storage { digest });
        }
        match path {
            "/v2" | "/v2/" => return Self::Ping,
            "/token" => return Self::Token,
            _ => {}
        }
        path.strip_prefix("/v2/").and_then(Self::in_repository).unwrap_or(Self::Other)
    }

    /// `<name>/manifests/<reference>` and its neighbours: the name itself may contain slashes.
    fn in_repository(rest: &str) -> Option<Self> {
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return Some(Self::checked(Kind::Tags, repository, |repository| Ok(Self::Tags { repository })));
        }
        if let Some((repository, id)) = rest.rsplit_once("/blobs/uploads/") {
            let upload = |repository| match id {
                "" => Ok(Self::Uploads { repository }),
                id => Ok(Self::Upload { repository, id: id.to_owned() }),
            };
            return Some(Self::checked(Kind::Upload, repository, upload));
        }
        if let Some(repository) = rest.strip_suffix("/blobs/uploads") {
            return Some(Self::checked(Kind::Upload, repository, |repository| Ok(Self::Uploads { repository })));
        }
        let (before, last) = rest.rsplit_once('/')?;
        let (repository, what) = before.rsplit_once('/')?;
        let digest = || last.parse().map_err(|_| Part::Digest);
        Some(match what {
            "manifests" => Self::checked(Kind::Manifest, repository, |repository| {
                Ok(Self::Manifest { repository, name: Name::of(last)? })
            }),
            "blobs" => {
                Self::checked(Kind::Blob, repository, |repository| Ok(Self::Blob { repository, digest: digest()? }))
            }
            "referrers" => Self::checked(Kind::Referrers, repository, |repository| {
                Ok(Self::Referrers { repository, digest: digest()? })
            }),
            _ => return None,
        })
    }

    fn checked(kind: Kind, repository: &str, make: impl FnOnce(String) -> Result<Self, Part>) -> Self {
        if !is_repository(repository) {
            return Self::malformed(kind, Part::Repository);
        }
        make(repository.to_owned()).unwrap_or_else(|part| Self::malformed(kind, part))
    }

    const fn malformed(kind: Kind, part: Part) -> Self {
        Self::Malformed { kind, part }
    }

    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Ping => Kind::Ping,
            Self::Manifest { .. } => Kind::Manifest,
            Self::Blob { .. } => Kind::Blob,
            Self::Uploads { .. } | Self::Upload { .. } => Kind::Upload,
            Self::Tags { .. } => Kind::Tags,
            Self::Referrers { .. } => Kind::Referrers,
            Self::Token => Kind::Token,
            Self::Storage { .. } => Kind::Storage,
            Self::Malformed { kind, .. } => *kind,
            Self::Other => Kind::Other,
        }
    }

    pub(crate) fn repository(&self) -> Option<&str> {
        match self {
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Uploads { repository }
            | Self::Upload { repository, .. }
            | Self::Tags { repository }
            | Self::Referrers { repository, .. } => Some(repository),
            Self::Ping | Self::Token | Self::Storage { .. } | Self::Malformed { .. } | Self::Other => None,
        }
    }

    pub(crate) const fn digest(&self) -> Option<Digest> {
        match self {
            Self::Manifest { name: Name::Digest(digest), .. }
            | Self::Blob { digest, .. }
            | Self::Referrers { digest, .. }
            | Self::Storage { digest } => Some(*digest),
            _ => None,
        }
    }
}

impl Name {
    /// A digest where there is a colon, otherwise a tag.
    pub(crate) fn of(text: &str) -> Result<Self, Part> {
        if text.contains(':') {
            return text.parse().map(Self::Digest).map_err(|_| Part::Digest);
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = text.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')));
        if good && (1..=128).contains(&text.len()) { Ok(Self::Tag(text.to_owned())) } else { Err(Part::Tag) }
    }
}

/// Whether `text` is a repository name of the specification: lower-case parts joined by slashes, at most 255 bytes, each part
/// of letters and digits with single separators between them.
pub(crate) fn is_repository(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|&b| alphanumeric(b))
            && bytes.last().is_some_and(|&b| alphanumeric(b))
            && bytes.iter().all(|&b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
            && !["..", "._", "_.", ".-", "-.", "-_", "_-", "___"].iter().any(|bad| part.contains(bad))
    };
    text.len() <= 255 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_specification_are_told_apart() {
        let digest = Digest::of(b"x");
        let repository = "library/alpine".to_owned();
        for (path, expected) in [
            ("/v2/".to_owned(), Route::Ping),
            ("/token".to_owned(), Route::Token),
            (
                "/v2/library/alpine/manifests/3.20".to_owned(),
                Route::Manifest { repository: repository.clone(), name: Name::Tag("3.20".to_owned()) },
            ),
            (
                format!("/v2/library/alpine/manifests/{digest}"),
                Route::Manifest { repository: repository.clone(), name: Name::Digest(digest) },
            ),
            (format!("/v2/library/alpine/blobs/{digest}"), Route::Blob { repository: repository.clone(), digest }),
            ("/v2/library/alpine/blobs/uploads/".to_owned(), Route::Uploads { repository: repository.clone() }),
            (
                "/v2/library/alpine/blobs/uploads/7".to_owned(),
                Route::Upload { repository: repository.clone(), id: "7".to_owned() },
            ),
            ("/v2/library/alpine/tags/list".to_owned(), Route::Tags { repository: repository.clone() }),
            (format!("/v2/library/alpine/referrers/{digest}"), Route::Referrers { repository, digest }),
            (format!("/storage/{digest}"), Route::Storage { digest }),
            ("/v2/alpine".to_owned(), Route::Other),
            ("/".to_owned(), Route::Other),
        ] {
            assert_eq!(Route::of(&path), expected, "{path}");
        }
    }

    #[test]
    fn malformed_parts_are_named() {
        for (path, kind, part) in [
            ("/v2/Alpine/manifests/1", Kind::Manifest, Part::Repository),
            ("/v2/a//b/tags/list", Kind::Tags, Part::Repository),
            ("/v2/a/blobs/sha256:00", Kind::Blob, Part::Digest),
            ("/v2/a/manifests/.x", Kind::Manifest, Part::Tag),
            ("/v2/a/manifests/sha512:00", Kind::Manifest, Part::Digest),
            ("/storage/x", Kind::Storage, Part::Digest),
        ] {
            assert_eq!(Route::of(path), Route::Malformed { kind, part }, "{path}");
        }
    }

    #[test]
    fn repository_names_follow_the_specification() {
        for good in ["a", "library/alpine", "a.b/c-d/e_f", "a__b", "a--b"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in ["", "A", "/a", "a/", "a//b", "-a", "a-", "a..b", "a___b", "a._b", &"a".repeat(256)] {
            assert!(!is_repository(bad), "{bad}");
        }
    }
}
