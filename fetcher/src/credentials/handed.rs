//! Credentials handed over to this process: by a container runtime for what it pulls, or by an operator.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use parking_lot::Mutex;

use super::{
    Credential, Found, Provider, Wanted,
    kept::{Keeping, Kept},
    scope::CredentialScope,
    static_file::check,
};

/// Most scopes that credentials are held for. A node runs some hundred pods, each with a few registries.
const MAX_SCOPES: usize = 1024;

/// Why credentials were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// They cannot be sent to any registry.
    #[error("the credentials for {scope} cannot be used: {reason}")]
    Unusable {
        /// What they are for.
        scope: CredentialScope,
        /// What is wrong.
        reason: &'static str,
    },
    /// They have ended already.
    #[error("the credentials for {scope} have ended already; check the clock of this node and of whoever made them")]
    Ended {
        /// What they are for.
        scope: CredentialScope,
    },
    /// Too many are held.
    #[error(
        "credentials for 1024 registries and paths are held, and no more are taken; remove some, or hand over shorter paths"
    )]
    Full,
}

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) credential: Credential,
    /// When they end of themselves.
    pub(super) expires: Option<SystemTime>,
}

/// Credentials handed over for as long as something may still fail, and what was there before. `Debug` shows no secret.
#[derive(Debug)]
pub struct Lent {
    scope: CredentialScope,
    given: Entry,
    before: Option<Entry>,
}

impl Lent {
    /// What they are for.
    #[must_use]
    pub const fn scope(&self) -> &CredentialScope {
        &self.scope
    }

    /// Whether others than before are in use since.
    pub(crate) fn is_change(&self) -> bool {
        self.before.as_ref() != Some(&self.given)
    }
}

/// One scope that credentials were handed over for, without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOverScope {
    /// What they are for.
    pub scope: CredentialScope,
    /// `password`, `identity-token` or `registry-token`.
    pub kind: &'static str,
    /// When they end of themselves.
    pub expires: Option<SystemTime>,
}

/// The table, and where it is kept for the next process.
#[derive(Debug)]
pub(crate) struct HandedOver {
    entries: Mutex<BTreeMap<CredentialScope, Entry>>,
    kept: Kept,
    /// Held while the table is written, so that what was said last stays.
    writing: tokio::sync::Mutex<()>,
}

impl HandedOver {
    /// Takes over what the last process kept. Blocks for a moment.
    pub(crate) fn new(kept: Option<PathBuf>, now: SystemTime) -> Self {
        let (kept, mut entries) = Kept::open(kept);
        entries.retain(|_, entry| !entry.has_ended(now));
        Self { entries: Mutex::new(entries), kept, writing: tokio::sync::Mutex::default() }
    }

    /// Takes credentials, in the place of those held for the same scope. They are kept by [`Self::keep`].
    pub(crate) fn take(
        &self,
        scope: CredentialScope,
        entry: (Credential, Option<SystemTime>),
        now: SystemTime,
    ) -> Result<Lent, HandOverError> {
        let (credential, expires) = entry;
        check(&credential).map_err(|reason| HandOverError::Unusable { scope: scope.clone(), reason })?;
        let entry = Entry { credential, expires };
        if entry.has_ended(now) {
            return Err(HandOverError::Ended { scope });
        }
        let mut entries = self.entries.lock();
        if entries.len() >= MAX_SCOPES && !entries.contains_key(&scope) {
            entries.retain(|_, entry| !entry.has_ended(now));
            if entries.len() >= MAX_SCOPES {
                return Err(HandOverError::Full);
            }
        }
        let before = entries.insert(scope.clone(), entry.clone());
        Ok(Lent { scope, given: entry, before })
    }

    /// What was lent stays (`stays`), also when somebody else who lent the same has put back what was before; or what was before is put
    /// back, unless something else has been handed over since. Whether that changed anything.
    pub(crate) fn settle(&self, lent: Lent, stays: bool) -> bool {
        let is_change = lent.is_change();
        let mut entries = self.entries.lock();
        let held = entries.get(&lent.scope);
        match (stays, lent.before) {
            (true, _) if held.is_none() => drop(entries.insert(lent.scope, lent.given)),
            (true, _) => return false,
            (false, _) if !is_change || held != Some(&lent.given) => return false,
            (false, Some(before)) => drop(entries.insert(lent.scope, before)),
            (false, None) => drop(entries.remove(&lent.scope)),
        }
        true
    }

    /// Forgets what is held for exactly this scope; whether there was anything.
    pub(crate) fn withdraw(&self, scope: &CredentialScope) -> bool {
        self.entries.lock().remove(scope).is_some()
    }

    /// Writes what is held now for the next process.
    pub(crate) async fn keep(&self) {
        let _writing = self.writing.lock().await;
        let entries = self.entries.lock().clone();
        self.kept.write(entries).await;
    }

    /// Those of the longest scope that covers the repository and has not ended.
    pub(crate) fn find(&self, wanted: Wanted<'_>, now: SystemTime) -> Vec<Found> {
        let entries = self.entries.lock();
        let fits = entries.iter().filter(|(_, entry)| !entry.has_ended(now));
        let fits = fits.filter_map(|(scope, entry)| Some((scope.covers(wanted.host, wanted.repository)?, entry)));
        let best = fits.max_by_key(|(length, _)| *length);
        best.map(|(_, entry)| Found { provider: Provider::Api, credential: entry.credential.clone() })
            .into_iter()
            .collect()
    }

    pub(crate) fn scopes(&self, now: SystemTime) -> Vec<HandedOverScope> {
        let entries = self.entries.lock();
        let held = entries.iter().filter(|(_, entry)| !entry.has_ended(now));
        held.map(|(scope, entry)| HandedOverScope {
            scope: scope.clone(),
            kind: entry.credential.kind(),
            expires: entry.expires,
        })
        .collect()
    }

    /// Whether what is held outlives this process, and if not, why.
    pub(crate) fn keeping(&self) -> Keeping {
        self.kept.keeping()
    }
}

impl Entry {
    fn has_ended(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Secret;

    fn password(text: &str) -> Credential {
        Credential::Basic { user: "u".to_owned(), password: Secret::new(text.to_owned()) }
    }

    fn scope(text: &str) -> CredentialScope {
        text.parse().unwrap()
    }

    fn found(held: &HandedOver, host: &str, repository: &str, now: SystemTime) -> Option<Credential> {
        held.find(Wanted { host, repository }, now).pop().map(|found| found.credential)
    }

    #[test]
    fn the_longest_scope_that_has_not_ended_is_used() {
        let now = SystemTime::now();
        let soon = now + Duration::from_secs(10);
        let held = HandedOver::new(None, now);
        held.take(scope("r.io"), (password("host"), None), now).unwrap();
        held.take(scope("r.io/team"), (password("team"), Some(soon)), now).unwrap();
        assert_eq!(found(&held, "r.io", "team/app", now), Some(password("team")));
        assert_eq!(found(&held, "r.io", "other", now), Some(password("host")));
        assert_eq!(found(&held, "s.io", "team/app", now), None);
        assert_eq!(found(&held, "r.io", "team/app", soon), Some(password("host")));
        assert_eq!(held.scopes(soon).len(), 1);
        assert!(held.withdraw(&scope("r.io")));
        assert!(!held.withdraw(&scope("r.io")));
        assert_eq!(found(&held, "r.io", "other", now), None);
    }

    #[test]
    fn what_was_lent_goes_back_unless_it_stays_or_others_came_since() {
        let now = SystemTime::now();
        let held = HandedOver::new(None, now);
        let lend = |text: &str| held.take(scope("r.io/a"), (password(text), None), now).unwrap();
        let shown = || found(&held, "r.io", "a", now);
        assert!(held.settle(lend("wrong"), false));
        assert_eq!(shown(), None);
        assert!(!held.settle(lend("right"), true));
        assert!(held.settle(lend("wrong"), false));
        assert_eq!(shown(), Some(password("right")));
        // The same again, and it fails for another reason.
        assert!(!held.settle(lend("right"), false));
        assert_eq!(shown(), Some(password("right")));
        // Two at once, in both orders.
        let (early, late) = (lend("wrong"), lend("newer"));
        assert!(!held.settle(early, false));
        assert!(!held.settle(late, true));
        assert_eq!(shown(), Some(password("newer")));
        assert!(held.withdraw(&scope("r.io/a")));
        let (first, second) = (lend("same"), lend("same"));
        assert!(held.settle(first, false));
        assert!(held.settle(second, true));
        assert_eq!(shown(), Some(password("same")));
    }

    #[test]
    fn what_cannot_be_used_or_is_too_much_is_refused() {
        let now = SystemTime::now();
        let held = HandedOver::new(None, now);
        let ended = held.take(scope("r.io"), (password("p"), Some(now)), now);
        assert!(matches!(ended, Err(HandOverError::Ended { .. })));
        let broken = held.take(scope("r.io"), (password("hunter2\r\nx: y"), None), now).unwrap_err();
        assert!(!format!("{broken} {broken:?}").contains("hunter2"));
        for n in 0..MAX_SCOPES {
            held.take(scope(&format!("r.io/n{n}")), (password("p"), None), now).unwrap();
        }
        assert_eq!(held.take(scope("s.io"), (password("p"), None), now).unwrap_err(), HandOverError::Full);
        held.take(scope("r.io/n0"), (password("q"), None), now).unwrap();
    }
}
