//! Credentials by API: handed over, withdrawn, and reported without the secrets.

use std::time::SystemTime;

use crate::{
    Credential, CredentialScope, Fetcher, HandOverError, HandedOverScope, Keeping, Lent, ProviderState, ScopeState,
};

/// Everything about credentials but the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialReport {
    /// The providers in the order in which they are asked.
    pub providers: Vec<ProviderState>,
    /// What was handed over.
    pub handed_over: Vec<HandedOverScope>,
    /// Whether what was handed over outlives the process.
    pub keeping: Keeping,
    /// The repositories in use.
    pub scopes: Vec<ScopeState>,
}

impl Fetcher {
    /// Takes credentials for a registry, or for a path in one, in the place of those handed over for the same before. They are
    /// used at once, also by reads that wait because other credentials were refused. Answers once they are kept for the next
    /// process, where that is set up.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub async fn hand_over(
        &self,
        scope: CredentialScope,
        credential: Credential,
        expires: Option<SystemTime>,
    ) -> Result<(), HandOverError> {
        let auth = &self.core.auth;
        let handed_over = auth.credentials.handed_over();
        handed_over.take(scope.clone(), (credential, expires), SystemTime::now())?;
        auth.begin_anew(&scope);
        handed_over.keep().await;
        Ok(())
    }

    /// As [`hand_over`](Self::hand_over), for something that may yet show that they are wrong: [`settle`](Self::settle) says whether they
    /// stay. Dropped instead, they stay. Those in use already are not begun anew with.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub async fn lend(&self, scope: CredentialScope, credential: Credential) -> Result<Lent, HandOverError> {
        let auth = &self.core.auth;
        let handed_over = auth.credentials.handed_over();
        let lent = handed_over.take(scope, (credential, None), SystemTime::now())?;
        if lent.is_change() {
            auth.begin_anew(lent.scope());
            handed_over.keep().await;
        }
        Ok(lent)
    }

    /// What was lent stays, or what was in use before is again, unless others were handed over since.
    pub async fn settle(&self, lent: Lent, stays: bool) {
        let auth = &self.core.auth;
        let handed_over = auth.credentials.handed_over();
        let scope = lent.scope().clone();
        if handed_over.settle(lent, stays) {
            auth.begin_anew(&scope);
            handed_over.keep().await;
        }
    }

    /// Forgets the credentials handed over for exactly this scope, and every token had for them. Whether there were any.
    pub async fn withdraw(&self, scope: &CredentialScope) -> bool {
        let auth = &self.core.auth;
        let handed_over = auth.credentials.handed_over();
        let held = handed_over.withdraw(scope);
        if held {
            auth.begin_anew(scope);
            handed_over.keep().await;
        }
        held
    }

    /// Which credentials there are and how they fare. Reads the providers' files; runs no program and asks no registry.
    pub async fn credentials(&self) -> CredentialReport {
        let auth = &self.core.auth;
        let handed_over = auth.credentials.handed_over();
        CredentialReport {
            providers: auth.credentials.states().await,
            handed_over: handed_over.scopes(SystemTime::now()),
            keeping: handed_over.keeping(),
            scopes: auth.scopes(),
        }
    }
}
