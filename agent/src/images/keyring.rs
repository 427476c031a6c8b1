//! Credentials of pulls, handed to the fetcher.

use std::sync::Arc;

use penstock_fetcher::{Credential, CredentialScope, Fetcher, Lent, Reference, Secret};
use penstock_snapshotter::images::{Ended, Keyring, PullAuth, PullCredential};

use super::pulled::PulledFile;
use crate::{
    attachments::Attachments,
    events::{Events, Kind},
};

/// Docker Hub under all its names.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Hands credentials to the fetcher, and takes them back with the image.
#[derive(Debug)]
pub(super) struct PullKeyring {
    fetcher: Arc<Fetcher>,
    attachments: Arc<Attachments>,
    pulled: PulledFile,
    events: Events,
}

/// Credentials in use for a pull that has not ended.
pub(super) struct Loan {
    reference: Reference,
    lent: Lent,
}

impl PullKeyring {
    pub(super) fn new(parts: (Arc<Fetcher>, Arc<Attachments>), pulled: PulledFile, events: Events) -> Self {
        let (fetcher, attachments) = parts;
        Self { fetcher, attachments, pulled, events }
    }

    async fn lend(&self, image: &str, auth: &PullAuth) -> Result<Option<Loan>, String> {
        let reference: Reference =
            image.parse().map_err(|error: penstock_fetcher::ReferenceError| error.to_string())?;
        let is_registry = |host: &str| is_registry(&reference, host);
        let Some(credential) = auth.credential(is_registry).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let scope =
            scope(&reference).parse().map_err(|error: penstock_fetcher::CredentialScopeError| error.to_string())?;
        let lent = self.fetcher.lend(scope, given(&credential)).await.map_err(|error| error.to_string())?;
        Ok(Some(Loan { reference, lent }))
    }
}

impl Keyring for PullKeyring {
    type Loan = Loan;

    async fn hand_over(&self, image: &str, auth: &PullAuth) -> Option<Loan> {
        self.lend(image, auth).await.unwrap_or_else(|reason| {
            let text = format!("the credentials of the pull of {image} are not used to read its layers: {reason}");
            self.events.record(Kind::ImagesCredentials, &text, &[("image", image)]);
            None
        })
    }

    async fn settle(&self, loan: Loan, ended: Ended) {
        let Ended::Pulled { id } = ended else { return self.fetcher.settle(loan.lent, false).await };
        let (reference, scope) = (loan.reference.to_string(), loan.lent.scope().to_string());
        self.fetcher.settle(loan.lent, true).await;
        self.pulled.change(|pulled| pulled.add(reference, scope, id)).await;
    }

    async fn withdraw(&self, image: &str) {
        let devices = self.attachments.devices();
        let read: Vec<String> = devices
            .iter()
            .filter_map(|device| device.reference.parse().ok())
            .map(|reference| scope(&reference))
            .collect();
        // An ID is no reference, or reads as one of Docker Hub: it is looked for as it was written, too.
        let name = image.parse().map_or_else(|_| image.to_owned(), |reference: Reference| reference.to_string());
        let unused = self.pulled.change(|pulled| {
            let is_read = |scope: &str| read.iter().any(|read| read == scope);
            let mut unused = pulled.remove(image, is_read);
            unused.extend(pulled.remove(&name, is_read));
            unused
        });
        let scopes = unused.await;
        for scope in scopes.iter().filter_map(|scope| scope.parse::<CredentialScope>().ok()) {
            self.fetcher.withdraw(&scope).await;
        }
    }
}

/// What the credentials of a pull are for: the repository. A registry knows no tags when it gives bytes.
fn scope(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// Whether `host`, of a server address, is the registry of `reference`.
fn is_registry(reference: &Reference, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let is_hub = |host: &str| DOCKER_HUB.contains(&host);
    host == reference.registry() || (is_hub(&host) && is_hub(reference.registry()))
}

fn given(credential: &PullCredential) -> Credential {
    let secret = |text: &str| Secret::new(text.to_owned());
    match credential {
        PullCredential::Password { user, password } => {
            Credential::Basic { user: user.to_string(), password: secret(password) }
        }
        PullCredential::IdentityToken(token) => Credential::Identity(secret(token)),
        PullCredential::RegistryToken(token) => Credential::Token(secret(token)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_for_the_repository_of_the_normalised_reference() {
        for (image, expected) in [
            ("alpine", "docker.io/library/alpine"),
            ("index.docker.io/team/app:1", "docker.io/team/app"),
            (
                "R.example:5000/a/b:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "r.example:5000/a/b",
            ),
        ] {
            let scope = scope(&image.parse().unwrap());
            assert_eq!(scope, expected);
            assert_eq!(scope.parse::<CredentialScope>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_server_address_names_the_registry_by_any_of_its_names() {
        let hub: Reference = "alpine".parse().unwrap();
        let own: Reference = "r.example:5000/a".parse().unwrap();
        assert!(is_registry(&hub, "index.docker.io") && is_registry(&hub, "registry-1.docker.io"));
        assert!(is_registry(&own, "R.example:5000"));
        assert!(!is_registry(&own, "r.example") && !is_registry(&hub, "r.example") && !is_registry(&own, "docker.io"));
    }
}
