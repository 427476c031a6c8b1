//! The routes that change the cache.

use axum::{Json, extract::State};

use super::{Result, Shared};
use crate::{
    CacheFreed, CacheVerified, ClearQuery, EvictCache, Problem, VerifyQuery,
    extract::{Body, Params},
};

/// Removes an image's blobs, or one blob, from the cache. What attached images use stays, and is listed with the reason.
#[utoipa::path(post, path = "/v1/cache/evict", tag = "cache", request_body = EvictCache, responses(
    (status = 200, body = CacheFreed, description = "What went, and what stayed"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "The request is wrong"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "The registry has no such image"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(super) async fn evict(State(node): State<Shared>, Body(what): Body<EvictCache>) -> Result<Json<CacheFreed>> {
    Ok(Json(node.evict(what).await?))
}

/// Removes everything from the cache but what attached images use.
#[utoipa::path(post, path = "/v1/cache/clear", tag = "cache", params(ClearQuery), responses(
    (status = 200, body = CacheFreed, description = "What went, and what stayed"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(super) async fn clear(State(node): State<Shared>, Params(query): Params<ClearQuery>) -> Result<Json<CacheFreed>> {
    Ok(Json(node.clear_cache(query.force).await?))
}

/// Reads the whole cache again, drops what is damaged, and answers when all is read: minutes to hours. It ends when the client goes away.
#[utoipa::path(post, path = "/v1/cache/verify", tag = "cache", params(VerifyQuery), responses(
    (status = 200, body = CacheVerified, description = "What was found"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(super) async fn verify(
    State(node): State<Shared>,
    Params(query): Params<VerifyQuery>,
) -> Result<Json<CacheVerified>> {
    Ok(Json(node.verify_cache(query.repair).await?))
}
