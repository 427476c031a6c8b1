//! Credentials, between the admin API's types and the fetcher's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use penstock_api::{self as api, NodeError, Timestamp};
use penstock_fetcher::{
    Credential, CredentialReport, CredentialScope, Fetcher, HandOverError, HandedOverScope, Keeping, ScopeState, Secret,
};

/// Takes what was handed over.
pub(super) async fn hand_over(fetcher: &Fetcher, request: api::HandOver) -> Result<(), NodeError> {
    let scope = scope(&request.scope)?;
    let expires = request.expires_at.map(clock).transpose()?;
    let credential = credential(request)?;
    fetcher.hand_over(scope, credential, expires).await.map_err(|error| match error {
        HandOverError::Full => NodeError::NoRoom(error.to_string()),
        HandOverError::Unusable { .. } | HandOverError::Ended { .. } => NodeError::Invalid(error.to_string()),
    })
}

/// Forgets what was handed over.
pub(super) async fn withdraw(fetcher: &Fetcher, text: &str) -> Result<(), NodeError> {
    let scope = scope(text)?;
    if fetcher.withdraw(&scope).await {
        return Ok(());
    }
    Err(NodeError::NotFound(format!(
        "no credentials were handed over for {scope}; `penstock credentials list` shows those there are"
    )))
}

fn scope(text: &str) -> Result<CredentialScope, NodeError> {
    text.parse().map_err(|error: penstock_fetcher::CredentialScopeError| NodeError::Invalid(error.to_string()))
}

fn credential(request: api::HandOver) -> Result<Credential, NodeError> {
    let secret = |text: api::SecretText| Secret::new(text.into_inner());
    match (request.username, request.password, request.identity_token, request.registry_token) {
        (Some(user), Some(password), None, None) => Ok(Credential::Basic { user, password: secret(password) }),
        (None, None, Some(token), None) => Ok(Credential::Identity(secret(token))),
        (None, None, None, Some(token)) => Ok(Credential::Token(secret(token))),
        _ => Err(NodeError::Invalid(
            "hand over a username and a password, or an identity_token, or a registry_token, and one of them only"
                .to_owned(),
        )),
    }
}

fn clock(time: Timestamp) -> Result<SystemTime, NodeError> {
    let seconds = u64::try_from(time.as_second())
        .map_err(|_| NodeError::Invalid("expires_at lies before 1970; the credentials have ended".to_owned()))?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn time(clock: SystemTime) -> Timestamp {
    Timestamp::try_from(clock).unwrap_or(Timestamp::MAX)
}

/// What is told.
pub(super) fn report(report: CredentialReport) -> api::Credentials {
    let (kept, kept_reason) = match report.keeping {
        Keeping::UntilReboot => (true, None),
        Keeping::No(reason) => (false, Some(reason)),
    };
    let providers = report.providers.into_iter().map(|state| api::CredentialProvider {
        provider: state.provider.name().to_owned(),
        path: state.place,
        problem: state.problem,
    });
    api::Credentials {
        providers: providers.collect(),
        handed_over: report.handed_over.into_iter().map(handed_over).collect(),
        kept,
        kept_reason,
        in_use: report.scopes.into_iter().map(in_use).collect(),
    }
}

fn handed_over(held: HandedOverScope) -> api::HandedOver {
    api::HandedOver { scope: held.scope.to_string(), kind: held.kind.to_owned(), expires_at: held.expires.map(time) }
}

fn in_use(state: ScopeState) -> api::CredentialUse {
    let refused = state.refused.into_iter().map(|(provider, at, reason)| api::CredentialRefusal {
        provider: provider.name().to_owned(),
        at: time(at),
        reason,
    });
    api::CredentialUse {
        scope: format!("{}/{}", state.host, state.repository),
        provider: state.provider.map(|provider| provider.name().to_owned()),
        expires_at: state.expires.map(time),
        refused: refused.collect(),
    }
}
