//! One call: forwarded, and when it pulls or removes an image, listened to.

use std::{path::PathBuf, sync::Arc};

use http::{Request, Response, Uri, request, uri::Authority};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::{
    auth::PullAuth,
    body::{Body, Gathered},
    keyring::{Ended, Keyring},
    message::{self, Method, Pull, Unread},
    serve::{Event, Shared},
    status,
    upstream::{NoAnswer, Upstream, lost},
};

/// Who is asked, when a client does not say. containerd does not look.
const AUTHORITY: &str = "localhost";

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls<K> {
    pub(super) shared: Arc<Shared<K>>,
    pub(super) upstream: Upstream,
}

/// A pull's credentials are in use, by a task that puts back what was before unless it hears that the pull went well.
struct Lent(oneshot::Sender<(Ended, oneshot::Sender<()>)>);

impl Lent {
    /// Says how the pull ended; returns once that holds.
    async fn end(self, ended: Ended) {
        let (done, waiting) = oneshot::channel();
        if self.0.send((ended, done)).is_ok() {
            // It fails only when the agent stops, and the task with it.
            let _stopped = waiting.await;
        }
    }
}

impl<K: Keyring> Calls<K> {
    /// The answer to a call. An error ends the call as containerd ended it.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let method = Method::of(request.uri().path());
        self.shared.metrics.asked(method.name());
        let (head, body) = request.into_parts();
        let answered = match method {
            Method::Pull => Box::pin(self.pull(head, Gathered::request(body).await?)).await,
            Method::Remove => Box::pin(self.remove(head, Gathered::request(body).await?)).await,
            Method::Other(_) => self.forward(head, Body::of(body)).await.map(|answer| answer.map(Body::of)),
        };
        match answered {
            Ok(response) => Ok(response.map(|body| body.or_unavailable(&lost(&self.shared.containerd)))),
            Err(NoAnswer::Reset(error)) => Err(error),
            Err(away) => {
                self.shared.metrics.unavailable.inc();
                self.shared.is_away(&away.to_string());
                Ok(status::unavailable(&away.to_string()))
            }
        }
    }

    async fn forward(&self, mut head: request::Parts, body: Body) -> Result<Response<Incoming>, NoAnswer> {
        if head.uri.authority().is_none() {
            let mut uri = head.uri.into_parts();
            uri.scheme.get_or_insert(http::uri::Scheme::HTTP);
            uri.authority = Some(Authority::from_static(AUTHORITY));
            head.uri = Uri::from_parts(uri).unwrap_or_default();
        }
        let response = self.upstream.send(Request::from_parts(head, body)).await?;
        self.shared.is_back();
        Ok(response)
    }

    async fn pull(&self, head: request::Parts, request: Gathered) -> Result<Response<Body>, NoAnswer> {
        let lent = match request.message().and_then(message::pull) {
            Ok(Pull { image, auth: Some(auth) }) => {
                self.shared.metrics.heard.inc();
                Some(self.lend(image, auth).await)
            }
            Ok(Pull { auth: None, .. }) => None,
            Err(unread) => {
                self.unread(Method::Pull, unread);
                None
            }
        };
        let (head, body) = self.forward(head, request.into_body()).await?.into_parts();
        let answer = Gathered::answer(body).await.map_err(|error| self.ended(error))?;
        if let Some(lent) = lent {
            let id = answer.message().ok().and_then(message::pulled);
            lent.end(if answer.is_well() { Ended::Pulled { id } } else { Ended::Failed }).await;
        }
        Ok(Response::from_parts(head, answer.into_body()))
    }

    async fn remove(&self, head: request::Parts, request: Gathered) -> Result<Response<Body>, NoAnswer> {
        let image = request.message().and_then(message::remove);
        let (head, body) = self.forward(head, request.into_body()).await?.into_parts();
        let answer = Gathered::answer(body).await.map_err(|error| self.ended(error))?;
        match image {
            Ok(image) if answer.is_well() => {
                // It is removed, whether or not the client still waits to hear so.
                let (shared, (done, waiting)) = (Arc::clone(&self.shared), oneshot::channel());
                self.shared.tasks.spawn(async move {
                    shared.keyring.withdraw(&image).await;
                    let _gone = done.send(());
                });
                let _stopped = waiting.await;
            }
            Ok(_) => {}
            Err(unread) => self.unread(Method::Remove, unread),
        }
        Ok(Response::from_parts(head, answer.into_body()))
    }

    /// Puts the credentials in use, in a task of their own: a client may go away at any point.
    async fn lend(&self, image: String, auth: PullAuth) -> Lent {
        let ((outcome, ended), (ready, waiting)) = (oneshot::channel(), oneshot::channel());
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let loan = shared.keyring.hand_over(&image, &auth).await;
            let _gone = ready.send(());
            let (ended, done) = match ended.await {
                Ok((ended, done)) => (ended, Some(done)),
                Err(_gone) => (Ended::Failed, None::<oneshot::Sender<()>>),
            };
            if let Some(loan) = loan {
                shared.keyring.settle(loan, ended).await;
            }
            // Who waited may have gone.
            let _told = done.map(|done| done.send(()));
        });
        // It fails only when the agent stops, and the task with it.
        let _stopped = waiting.await;
        Lent(outcome)
    }

    fn ended(&self, error: hyper::Error) -> NoAnswer {
        if super::upstream::is_lost(&error) {
            NoAnswer::Lost { socket: PathBuf::clone(&self.shared.containerd) }
        } else {
            NoAnswer::Reset(error)
        }
    }

    fn unread(&self, method: Method, why: Unread) {
        self.shared.metrics.unread.inc();
        self.shared.say(Event::Unread { method: method.name(), reason: why.to_string() });
    }
}
