//! Credentials for registries: what is handed over, and what is told about those there are. No answer holds a secret.

use std::{fmt, path::PathBuf};

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Problem, Timestamp,
    extract::{Body, Params},
    routes::{Result, Shared},
};

/// A secret on its way to the agent. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text: for whoever shows it to a registry.
    #[must_use]
    pub fn into_inner(self) -> String {
        self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// Credentials handed over to the agent: `username` and `password`, or `identity_token`, or `registry_token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// The registry (`host[:port]`) or a path of repositories in it that they are for. They take the place of those handed over
    /// for the same before.
    #[schema(example = "registry.example.com/team")]
    pub scope: String,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretText>,
    /// An OAuth2 refresh token, which the registry's token server exchanges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_token: Option<SecretText>,
    /// A token that the registry itself takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_token: Option<SecretText>,
    /// When they end of themselves; never when not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// Which credentials are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WithdrawQuery {
    /// The scope for which they were handed over.
    pub scope: String,
}

/// Everything about credentials but the credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Credentials {
    /// Who has credentials, in the order in which they are asked.
    pub providers: Vec<CredentialProvider>,
    /// What was handed over, sorted by scope.
    pub handed_over: Vec<HandedOver>,
    /// Whether what was handed over outlives a restart of the agent.
    pub kept: bool,
    /// Why it does not.
    pub kept_reason: Option<String>,
    /// The repositories in use, sorted.
    pub in_use: Vec<CredentialUse>,
}

/// Somebody who may have credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialProvider {
    /// `api`, `static-file`, `docker-config`, `kubelet-plugin` or `secret-dir`.
    #[schema(example = "static-file")]
    pub provider: String,
    /// Its file or directory.
    #[schema(value_type = Option<String>, example = "/etc/penstock/credentials.toml")]
    pub path: Option<PathBuf>,
    /// Why it cannot be used, and what to do.
    pub problem: Option<String>,
}

/// Credentials that were handed over, without the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandedOver {
    /// What they are for.
    #[schema(example = "registry.example.com/team")]
    pub scope: String,
    /// `password`, `identity-token` or `registry-token`.
    #[schema(example = "password")]
    pub kind: String,
    /// When they end of themselves.
    pub expires_at: Option<Timestamp>,
}

/// A repository that credentials are used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialUse {
    /// The registry or mirror, and the repository.
    #[schema(example = "registry.example.com/team/app")]
    pub scope: String,
    /// Whose credentials are in use; none when there is no pass, or nobody asks for one.
    pub provider: Option<String>,
    /// When the token ends that was had for them; it is renewed before. None for credentials that are shown as they are.
    pub expires_at: Option<Timestamp>,
    /// Credentials that were refused and are still offered.
    pub refused: Vec<CredentialRefusal>,
}

/// Credentials that a registry refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialRefusal {
    /// Who has them.
    pub provider: String,
    /// When they were refused last.
    pub at: Timestamp,
    /// What the registry said.
    pub reason: String,
}

/// Which credentials there are and how they fare, without any secret.
#[utoipa::path(get, path = "/v1/credentials", tag = "credentials", responses(
    (status = 200, body = Credentials, description = "What is known about them"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn credentials(State(node): State<Shared>) -> Result<Json<Credentials>> {
    Ok(Json(node.credentials().await?))
}

/// Hands credentials over. They are used at once, also by reads that wait because others were refused.
#[utoipa::path(put, path = "/v1/credentials", tag = "credentials", request_body = HandOver, responses(
    (status = 204, description = "They are used from now on"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "The scope or the credentials are none"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn hand_over(State(node): State<Shared>, Body(request): Body<HandOver>) -> Result<StatusCode> {
    node.hand_over(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets credentials that were handed over, and every token had for them.
#[utoipa::path(delete, path = "/v1/credentials", tag = "credentials", params(WithdrawQuery), responses(
    (status = 204, description = "They are gone"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "None were handed over for this scope"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn withdraw(State(node): State<Shared>, Params(query): Params<WithdrawQuery>) -> Result<StatusCode> {
    node.withdraw(&query.scope).await?;
    Ok(StatusCode::NO_CONTENT)
}
