//! Who keeps the credentials that pulls bring.

use std::fmt;

use super::auth::PullAuth;

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The image is there. containerd names it by this ID, which the kubelet removes it by.
    Pulled {
        /// The ID as the answer gave it, if it did.
        id: Option<String>,
    },
    /// It failed, was cancelled, or broke off.
    Failed,
}

/// Keeps credentials for the reads that follow a pull. Calls are made from many tasks at once.
///
/// Nothing is answered: what an implementation cannot do it says where its operator looks, because no pull is refused for it.
pub trait Keyring: fmt::Debug + Send + Sync + 'static {
    /// What undoes a [`hand_over`](Self::hand_over).
    type Loan: Send + 'static;

    /// A pull of `image`, a reference as the caller wrote it, begins: `auth` is to be used for what is read of it from now on. Answers
    /// once it is; `None` when nothing was taken.
    fn hand_over(&self, image: &str, auth: &PullAuth) -> impl Future<Output = Option<Self::Loan>> + Send;

    /// The pull has ended: what was handed over stays, or what was in use before is put back.
    fn settle(&self, loan: Self::Loan, ended: Ended) -> impl Future<Output = ()> + Send;

    /// `image`, a reference or an ID, was removed: its credentials are not needed any more.
    fn withdraw(&self, image: &str) -> impl Future<Output = ()> + Send;
}
