//! A token server's answer (distribution project, "Token Authentication Specification" and its OAuth2 form). Pure and total.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{secret::Secret, timestamp};

/// Largest answer read, in bytes: tokens of clouds have some 4 KiB.
pub(crate) const MAX_ANSWER_BYTES: usize = 256 << 10;
/// How long a token is good that does not say so (the specification's default).
const UNSAID_LIFETIME: Duration = Duration::from_secs(60);
/// Longest a token is kept: credentials that were taken away should not work for days.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// A token is renewed this long before its end, or at four fifths of a short life.
const MARGIN: Duration = Duration::from_secs(15);

/// A token, and for how long it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) secret: Secret,
    pub(crate) lifetime: Duration,
}

#[derive(serde::Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<f64>,
    issued_at: Option<String>,
}

impl Token {
    /// Reads an answer. `now` is the token server's clock. `None` when it holds no token.
    pub(crate) fn parse(bytes: &[u8], now: SystemTime) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(bytes).ok()?;
        let secret = [answer.token, answer.access_token].into_iter().flatten().find(|secret| !secret.is_empty())?;
        let said = answer.expires_in.filter(|seconds| *seconds > 0.0);
        let good = said.map_or(UNSAID_LIFETIME, |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(MAX_LIFETIME));
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let issued = answer.issued_at.as_deref().and_then(timestamp::parse);
        let age = Duration::from_secs(issued.map_or(0, |issued| now.saturating_sub(issued)));
        let left = good.saturating_sub(age).min(MAX_LIFETIME);
        Some(Self { secret, lifetime: left.saturating_sub(MARGIN.min(left / 5)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Option<(String, Duration)> {
        let now = UNIX_EPOCH + Duration::from_secs(1_709_208_000);
        Token::parse(json.as_bytes(), now).map(|token| (token.secret.expose().to_owned(), token.lifetime))
    }

    #[test]
    fn lifetimes_are_counted_from_the_issue_and_end_early() {
        for (json, seconds) in [
            (r#"{"token":"t"}"#, 48),
            (r#"{"access_token":"t","expires_in":300}"#, 285),
            (r#"{"token":"t","access_token":"u","expires_in":300,"issued_at":"2024-02-29T11:59:00Z"}"#, 225),
            (r#"{"token":"t","expires_in":10}"#, 8),
            (r#"{"token":"t","expires_in":300,"issued_at":"2024-02-29T11:00:00Z"}"#, 0),
            (r#"{"token":"t","expires_in":300,"issued_at":"2099-01-01T00:00:00Z"}"#, 285),
            (r#"{"token":"t","expires_in":300,"issued_at":"yesterday"}"#, 285),
            (r#"{"token":"t","expires_in":0}"#, 48),
            (r#"{"token":"t","expires_in":-5}"#, 48),
            (r#"{"token":"t","expires_in":1e300}"#, 3585),
            (r#"{"token":"","access_token":"t"}"#, 48),
        ] {
            assert_eq!(parse(json), Some(("t".to_owned(), Duration::from_secs(seconds))), "{json}");
        }
    }

    #[test]
    fn answers_without_a_token_are_none() {
        for json in ["", "{}", "null", r#"{"token":""}"#, r#"{"token":1}"#, r#"{"details":"no"}"#] {
            assert_eq!(parse(json), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_lifetime_is_bounded(expires in any::<f64>(), text in "\\PC{0,40}") {
            let json = serde_json::json!({"token": "t", "expires_in": expires, "issued_at": text}).to_string();
            if let Some((_, lifetime)) = parse(&json) {
                prop_assert!(lifetime <= MAX_LIFETIME);
            }
        }
    }
}
