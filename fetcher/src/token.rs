//! A token server's answer (distribution project, "Token Authentication Specification" and its OAuth2 form). Pure and total.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::{auth::Life, secret::Secret, timestamp};

/// Largest answer read, in bytes: tokens of clouds have some 4 KiB.
pub(crate) const MAX_ANSWER_BYTES: usize = 256 << 10;
/// How long a token is good that does not say so (the specification's default).
const UNSAID_LIFETIME: Duration = Duration::from_secs(60);
/// Longest a token is kept: credentials that were taken away should not work for days.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// Shortest a token is kept: it was made just now, so what says that it has ended is a wrong clock. If it is right, its refusal says
/// so soon enough.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// A token is shown until this long before its end, so that a request sent in time also arrives in time; or until nine tenths of
/// a short life.
const MARGIN: Duration = Duration::from_secs(15);
/// The part of its life after which a token is renewed while it is still shown: drawn from this range for each token, so that
/// the nodes of a cluster do not come all at once.
const AHEAD: std::ops::Range<f64> = 0.6..0.85;

/// A token, and for how long it is good.
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
        Some(Self { secret, lifetime: good.saturating_sub(age).clamp(MIN_LIFETIME, MAX_LIFETIME) })
    }

    /// When it is renewed and until when it is shown. `chance` is drawn from 0 to 1.
    pub(crate) fn life(&self, now: Instant, chance: f64) -> Life {
        let share = AHEAD.start + (AHEAD.end - AHEAD.start) * chance.clamp(0.0, 1.0);
        let shown = self.lifetime.saturating_sub(MARGIN.min(self.lifetime / 10));
        Life::Token { renew_at: now + shown.mul_f64(share), until: now + shown }
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
    fn lifetimes_are_counted_from_the_issue() {
        for (json, seconds) in [
            (r#"{"token":"t"}"#, 60),
            (r#"{"access_token":"t","expires_in":300}"#, 300),
            (r#"{"token":"t","access_token":"u","expires_in":300,"issued_at":"2024-02-29T11:59:00Z"}"#, 240),
            (r#"{"token":"t","expires_in":10}"#, 10),
            (r#"{"token":"t","expires_in":300,"issued_at":"2024-02-29T11:00:00Z"}"#, 1),
            (r#"{"token":"t","expires_in":300,"issued_at":"2099-01-01T00:00:00Z"}"#, 300),
            (r#"{"token":"t","expires_in":300,"issued_at":"yesterday"}"#, 300),
            (r#"{"token":"t","expires_in":0}"#, 60),
            (r#"{"token":"t","expires_in":-5}"#, 60),
            (r#"{"token":"t","expires_in":1e300}"#, 3600),
            (r#"{"token":"","access_token":"t"}"#, 60),
        ] {
            assert_eq!(parse(json), Some(("t".to_owned(), Duration::from_secs(seconds))), "{json}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_in_the_last_part_of_its_life_and_never_shown_at_its_end() {
        let now = Instant::now();
        for (lifetime, renew, until) in
            [(100, (54.0, 76.5), 90.0), (10, (5.4, 7.65), 9.0), (3600, (2151.0, 3047.25), 3585.0)]
        {
            let token = Token { secret: Secret::new("t".to_owned()), lifetime: Duration::from_secs(lifetime) };
            for (chance, at) in [(0.0, renew.0), (1.0, renew.1)] {
                let near = |a: Instant, seconds: f64| ((a - now).as_secs_f64() - seconds).abs() < 1e-6;
                let Life::Token { renew_at, until: shown } = token.life(now, chance) else { panic!("a token ends") };
                assert!(near(renew_at, at) && near(shown, until), "{lifetime} {:?} {:?}", renew_at - now, shown - now);
            }
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
