//! Looking for the index of an image in its registry, within a bounded time.

use penstock_fetcher::ResolveError;
use penstock_index::{ARTIFACT_TYPE, Listed};
use tokio::time::timeout;

use super::{Image, Indexes, lists};

/// Most indexes of one image that are tried: one is usual, two where it was made anew with other chunks.
const CANDIDATES: usize = 4;

/// How looking ended.
pub(super) enum Found {
    /// An index of the image: its manifest, and its lists.
    Index(Vec<u8>, Vec<Listed>),
    /// The registry lists none.
    None,
    /// There are some, and none can be used.
    Refused(String),
    /// It is not known: the registry did not answer as it should, or in time.
    Failed(String),
}

impl Indexes {
    /// Whether the registry has an index of the image that can be used; or why not, or why that is not known. Nothing is remembered.
    pub(crate) async fn is_offered(&self, image: Image<'_>) -> Result<bool, String> {
        match self.look(image).await {
            Found::Index(..) => Ok(true),
            Found::None => Ok(false),
            Found::Refused(reason) | Found::Failed(reason) => Err(reason),
        }
    }

    /// Two round trips: the listing, and the manifest of the index; three where the registry has no referrers API.
    pub(super) async fn look(&self, image: Image<'_>) -> Found {
        match timeout(self.deadline, self.candidates(image)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Found::Failed(error.to_string()),
            Err(_elapsed) => {
                Found::Failed(format!("{} gave no answer within {:?}", image.reference.host(), self.deadline))
            }
        }
    }

    async fn candidates(&self, image: Image<'_>) -> Result<Found, ResolveError> {
        let listed = self.fetcher.referrers(image.reference, image.manifest, ARTIFACT_TYPE).await?;
        let mut refused = None;
        for descriptor in listed.iter().take(CANDIDATES) {
            let manifest = match self.fetcher.artifact(image.reference, descriptor).await {
                Ok(manifest) => manifest,
                // Listed, but removed since: an entry of a tag stays when what it names goes.
                Err(error @ ResolveError::NotFound { .. }) => {
                    refused = Some(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            match lists(&manifest, image) {
                Ok(lists) => return Ok(Found::Index(manifest.to_vec(), lists)),
                Err(reason) => refused = Some(format!("index {}: {reason}", descriptor.digest)),
            }
        }
        Ok(refused.map_or(Found::None, Found::Refused))
    }
}
