//! A file of Penstock's own: TOML, one `[[credential]]` for each registry or path in one.

use std::path::PathBuf;

use super::{
    Credential, Found, Provider, Wanted,
    docker::{found, read},
    file::Audience,
    scope::CredentialScope,
    unusable,
};
use crate::{failure::Failure, secret::Secret};

/// Most credentials in one file.
const MAX_CREDENTIALS: usize = 4096;

/// The content of a static file of credentials.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StaticCredentials(Vec<(CredentialScope, Credential)>);

/// A static file that cannot be used. Its text never repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StaticCredentialsError {
    /// Not TOML, or not of the expected shape.
    #[error(
        "line {line} is not what is expected there: write [[credential]] with scope, and username and password, identity_token or registry_token"
    )]
    Malformed {
        /// Line of the first fault, from 1.
        line: usize,
    },
    /// A scope is none.
    #[error("credential {nth}: {error}")]
    Scope {
        /// Which, from 1.
        nth: usize,
        /// What is wrong.
        error: super::scope::CredentialScopeError,
    },
    /// The fields of a credential do not make one.
    #[error("credential {nth} ({scope}): {reason}")]
    Fields {
        /// Which, from 1.
        nth: usize,
        /// What it is for.
        scope: CredentialScope,
        /// What is wrong.
        reason: &'static str,
    },
    /// More than are read.
    #[error("it holds {count} credentials, and at most 4096 are read")]
    TooMany {
        /// How many it holds.
        count: usize,
    },
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    credential: Vec<Fields>,
}

/// What a credential is written as: in the static file, and where handed-over ones are kept.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fields {
    pub(super) scope: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) identity_token: Option<Secret>,
    pub(super) registry_token: Option<Secret>,
}

impl StaticCredentials {
    /// Reads the text of a static file.
    ///
    /// # Errors
    /// [`StaticCredentialsError`].
    pub fn parse(text: &str) -> Result<Self, StaticCredentialsError> {
        let document: Document = toml::from_str(text).map_err(|error| StaticCredentialsError::Malformed {
            line: 1 + text.bytes().take(error.span().map_or(0, |span| span.start)).filter(|&b| b == b'\n').count(),
        })?;
        if document.credential.len() > MAX_CREDENTIALS {
            return Err(StaticCredentialsError::TooMany { count: document.credential.len() });
        }
        let read = document.credential.into_iter().zip(1..).map(|(fields, nth)| {
            let scope: CredentialScope =
                fields.scope.parse().map_err(|error| StaticCredentialsError::Scope { nth, error })?;
            match fields.credential() {
                Ok(credential) => Ok((scope, credential)),
                Err(reason) => Err(StaticCredentialsError::Fields { nth, scope, reason }),
            }
        });
        read.collect::<Result<_, _>>().map(Self)
    }

    /// The credentials for a repository: of the longest scope that covers it, the first of several.
    #[must_use]
    pub fn stored(&self, host: &str, repository: &str) -> Credential {
        let fits =
            self.0.iter().rev().filter_map(|(scope, credential)| Some((scope.covers(host, repository)?, credential)));
        fits.max_by_key(|(length, _)| *length).map_or(Credential::Anonymous, |(_, credential)| credential.clone())
    }
}

impl Fields {
    pub(super) fn credential(self) -> Result<Credential, &'static str> {
        let credential = match (self.username, self.password, self.identity_token, self.registry_token) {
            (Some(user), Some(password), None, None) => Credential::Basic { user, password },
            (None, None, Some(token), None) => Credential::Identity(token),
            (None, None, None, Some(token)) => Credential::Token(token),
            _ => return Err("write username and password, or identity_token, or registry_token, and one of them only"),
        };
        check(&credential).map(|()| credential)
    }
}

/// Largest secret, in bytes: tokens of clouds have some 4 KiB.
const MAX_SECRET_BYTES: usize = 16 << 10;

/// Refuses what no header can carry.
pub(super) fn check(credential: &Credential) -> Result<(), &'static str> {
    let (user, secret) = match credential {
        Credential::Anonymous => return Err("there is nothing in it"),
        Credential::Basic { user, password } => (user.as_str(), password),
        Credential::Identity(token) | Credential::Token(token) => ("-", token),
    };
    if user.is_empty() || secret.is_empty() {
        return Err("the user name or the secret is empty");
    }
    if user.len() + secret.expose().len() > MAX_SECRET_BYTES {
        return Err("the user name and the secret have more than 16 KiB");
    }
    if user.contains(':') {
        return Err("a user name with a colon cannot be sent");
    }
    if user.chars().chain(secret.expose().chars()).any(char::is_control) {
        return Err("the user name or the secret has a line break or another control character in it");
    }
    Ok(())
}

/// A static file as a provider.
#[derive(Debug)]
pub(crate) struct StaticFile {
    pub(crate) path: PathBuf,
}

impl StaticFile {
    /// A missing file has nothing: it may be put there later.
    pub(crate) async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Found>, Failure> {
        let Some(credentials) = self.read().await? else { return Ok(Vec::new()) };
        Ok(found(Provider::StaticFile, vec![credentials.stored(wanted.host, wanted.repository)]))
    }

    async fn read(&self) -> Result<Option<StaticCredentials>, Failure> {
        let refused = |reason: String| unusable(format_args!("credentials file {}", self.path.display()), reason);
        let Some(bytes) = read(self.path.clone(), Audience::OwnerAndGroup).await.map_err(refused)? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| refused("it is not UTF-8".to_owned()))?;
        StaticCredentials::parse(text).map(Some).map_err(|e| refused(e.to_string()))
    }

    /// Why the file cannot be used now.
    pub(crate) async fn problem(&self) -> Option<String> {
        self.read().await.err().map(|failure| failure.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn the_longest_scope_wins_and_the_first_of_equals() {
        let text = r#"
            [[credential]]
            scope = "r.io"
            username = "u"
            password = "p"
            [[credential]]
            scope = "r.io/team"
            identity_token = "i"
            [[credential]]
            scope = "r.io/team/app"
            registry_token = "t"
            [[credential]]
            scope = "r.io/team/app"
            registry_token = "later"
        "#;
        let file = StaticCredentials::parse(text).unwrap();
        assert_eq!(file.stored("r.io", "x"), Credential::Basic { user: "u".to_owned(), password: secret("p") });
        assert_eq!(file.stored("r.io", "team/x"), Credential::Identity(secret("i")));
        assert_eq!(file.stored("r.io", "team/app"), Credential::Token(secret("t")));
        assert_eq!(file.stored("s.io", "team/app"), Credential::Anonymous);
        assert_eq!(StaticCredentials::parse("").unwrap(), StaticCredentials::default());
    }

    #[test]
    fn what_is_no_credential_is_refused_without_repeating_it() {
        for bad in [
            "hunter2",
            "[[credential]]\nscope = \"r.io\"\n",
            "[[credential]]\nscope = \"r.io\"\npassword = \"hunter2\"",
            "[[credential]]\nscope = \"r.io\"\nusername = \"u\"\npassword = \"\"",
            "[[credential]]\nscope = \"r.io\"\nusername = \"u:v\"\npassword = \"hunter2\"",
            "[[credential]]\nscope = \"r.io\"\nusername = \"u\"\npassword = \"hunter2\\n\"",
            "[[credential]]\nscope = \"r.io\"\nusername = \"u\"\npassword = \"hunter2\"\nregistry_token = \"hunter2\"",
            "[[credential]]\nscope = \"https://r.io\"\nregistry_token = \"hunter2\"",
            "[[credential]]\nscope = \"r.io\"\nregistry_token = \"hunter2\"\ntoken = \"hunter2\"",
            "[[credential]]\nscope = \"r.io\"\nregistry_token = [\"hunter2\"]",
        ] {
            let error = StaticCredentials::parse(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{bad}: {error}");
        }
        let malformed = StaticCredentials::parse("[[credential]]\nscope = \"r.io\"\npasword = \"x\"\n").unwrap_err();
        assert_eq!(malformed, StaticCredentialsError::Malformed { line: 3 });
    }
}
