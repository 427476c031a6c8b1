//! `CredentialProviderResponse` of `credentialprovider.kubelet.k8s.io`. Pure and total.

use std::{collections::BTreeMap, time::Duration};

use super::image::{Glob, Image};
use crate::{Credential, Secret};

/// What a plugin answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletAnswer {
    key_type: KeyType,
    /// How long it is good; `None` leaves it to the config.
    pub(super) lifetime: Option<Duration>,
    /// In the order in which the kubelet tries them: backwards by text, so that what is longer comes first.
    auth: Vec<(Glob, Credential)>,
}

/// An answer that cannot be used. Its text never repeats any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KubeletAnswerError {
    /// Not JSON of the expected shape.
    #[error("it did not print a CredentialProviderResponse")]
    Malformed,
    /// Another kind or version than it was asked in.
    #[error("it answered in another version than it was asked in; check its apiVersion in the config")]
    Version,
    /// What it is to be kept for is not known.
    #[error("its cacheKeyType is none of Image, Registry and Global")]
    KeyType,
    /// It says how long it is good in no known way.
    #[error("its cacheDuration is no duration")]
    Duration,
}

/// What an answer is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Keyed {
    Image(String),
    Registry(String),
    Global,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyType {
    Image,
    Registry,
    Global,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(serde::Deserialize)]
struct Login {
    #[serde(default)]
    username: String,
    password: Option<Secret>,
}

impl KubeletAnswer {
    /// Reads what a plugin printed that was asked in `api_version`.
    ///
    /// # Errors
    /// [`KubeletAnswerError`].
    pub fn parse(bytes: &[u8], api_version: &str) -> Result<Self, KubeletAnswerError> {
        let document: Document = serde_json::from_slice(bytes).map_err(|_| KubeletAnswerError::Malformed)?;
        if document.kind != "CredentialProviderResponse" || document.api_version != api_version {
            return Err(KubeletAnswerError::Version);
        }
        let key_type = match document.cache_key_type.as_str() {
            "Image" => KeyType::Image,
            "Registry" => KeyType::Registry,
            "Global" => KeyType::Global,
            _ => return Err(KubeletAnswerError::KeyType),
        };
        let lifetime = match document.cache_duration.as_deref() {
            None => None,
            Some(text) => Some(go_duration(text).ok_or(KubeletAnswerError::Duration)?),
        };
        let auth = document.auth.unwrap_or_default().into_iter().rev();
        let auth = auth.filter_map(|(text, login)| {
            // As the kubelet: a key that is no glob fits nothing.
            let password = login.password.filter(|password| !password.is_empty())?;
            Some((Glob::parse(&text)?, Credential::Basic { user: login.username, password }))
        });
        Ok(Self { key_type, lifetime, auth: auth.collect() })
    }

    pub(super) fn keyed(&self, image: &Image) -> Keyed {
        match self.key_type {
            KeyType::Image => Keyed::Image(image.to_string()),
            KeyType::Registry => Keyed::Registry(image.registry().to_owned()),
            KeyType::Global => Keyed::Global,
        }
    }

    pub(super) fn fitting(&self, image: &Image) -> impl Iterator<Item = Credential> {
        self.auth.iter().filter(|(glob, _)| glob.fits(image)).map(|(_, credential)| credential.clone())
    }

    /// The credentials for a repository, in the order in which they are tried.
    #[must_use]
    pub fn credentials(&self, host: &str, repository: &str) -> Vec<Credential> {
        self.fitting(&Image::new(host, repository)).collect()
    }
}

/// A duration as Go writes it: `12h`, `1h30m`, `1.5s`, `300ms`, `0`. Negative ones are zero: what they are about has ended.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|&b| b.is_ascii_digit() || b == b'.').count();
        let (number, tail) = rest.split_at(digits);
        let units = tail.bytes().take_while(|&b| !b.is_ascii_digit() && b != b'.').count();
        let (unit, tail) = tail.split_at_checked(units)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    if negative { Some(Duration::ZERO) } else { Duration::try_from_secs_f64(sum).ok() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in [
            ("12h", 43_200.0),
            ("1h30m0s", 5400.0),
            ("5m0.5s", 300.5),
            ("250ms", 0.25),
            ("0", 0.0),
            ("0s", 0.0),
            ("-5s", 0.0),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "-", "h", "5", "5 s", "1d", "1.2.3s", "5s3", "1e400h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn parse(rest: &str) -> Result<KubeletAnswer, KubeletAnswerError> {
        let text = format!(r#"{{"apiVersion":"{V1}","kind":"CredentialProviderResponse",{rest}}}"#);
        KubeletAnswer::parse(text.as_bytes(), V1)
    }

    #[test]
    fn the_longest_glob_of_an_answer_is_tried_first() {
        let answer = parse(
            r#""cacheKeyType":"Registry","cacheDuration":"6h","auth":{
                "*.r.io":{"username":"glob","password":"p"},
                "a.r.io":{"username":"host","password":"p"},
                "a.r.io/team":{"username":"path","password":"p"},
                "b.r.io":{"username":"other","password":"p"},
                "a.r.io/te":{"username":"","password":""}}"#,
        )
        .unwrap();
        let users: Vec<String> = answer
            .credentials("a.r.io", "team/app")
            .into_iter()
            .map(|credential| match credential {
                Credential::Basic { user, .. } => user,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(users, ["path", "host", "glob"]);
        assert_eq!(answer.lifetime, Some(Duration::from_secs(21_600)));
        assert_eq!(answer.keyed(&Image::new("a.r.io", "x")), Keyed::Registry("a.r.io".to_owned()));
    }

    #[test]
    fn answers_that_the_kubelet_refuses_are_refused_without_repeating_them() {
        assert_eq!(parse(r#""cacheKeyType":"hunter2""#), Err(KubeletAnswerError::KeyType));
        assert_eq!(parse(r#""cacheKeyType":"Image","cacheDuration":"hunter2""#), Err(KubeletAnswerError::Duration));
        assert_eq!(KubeletAnswer::parse(b"hunter2", V1), Err(KubeletAnswerError::Malformed));
        let other = br#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1","kind":"CredentialProviderResponse","cacheKeyType":"Image"}"#;
        assert_eq!(KubeletAnswer::parse(other, V1), Err(KubeletAnswerError::Version));
        assert!(parse(r#""cacheKeyType":"Image","auth":null"#).unwrap().credentials("r.io", "x").is_empty());
        let shown =
            format!("{:?}", parse(r#""cacheKeyType":"Image","auth":{"r.io":{"username":"u","password":"hunter2"}}"#));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_duration_is_read_without_a_panic(text in "\\PC{0,20}|[0-9.hmsun-]{0,20}") {
            let _duration = go_duration(&text);
        }
    }
}
