//! Asking an agent about credentials.

use bytes::Bytes;
use http::Method;
use penstock_api::{Credentials, HandOver};

use super::{ASK_DEADLINE, Client, ClientError, escaped};

impl Client {
    /// Which credentials there are.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn credentials(&self) -> Result<Credentials, ClientError> {
        self.ask("/v1/credentials").await
    }

    /// Hands credentials over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hand_over(&self, request: &HandOver) -> Result<(), ClientError> {
        let body = self.serialized(request)?;
        self.send(Method::PUT, "/v1/credentials", body, ASK_DEADLINE).await.map(drop)
    }

    /// Forgets credentials that were handed over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn withdraw(&self, scope: &str) -> Result<(), ClientError> {
        let path = format!("/v1/credentials?scope={}", escaped(scope));
        self.send(Method::DELETE, &path, Bytes::new(), ASK_DEADLINE).await.map(drop)
    }
}
