//! The client of these tests.

use bytes::Bytes;
use penstock_registry::{Config, Registry};
use reqwest::{Method, RequestBuilder, Response};

/// A registry and a client of it.
pub(crate) struct Pair {
    pub(crate) registry: Registry,
    client: reqwest::Client,
}

impl Pair {
    pub(crate) async fn start(config: Config) -> Self {
        // A second installation finds the first: the provider is the process's.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        Self { registry: Registry::start(config).await.unwrap(), client }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url =
            if path.starts_with("http") { path.to_owned() } else { format!("http://{}{path}", self.registry.host()) };
        self.client.request(method, url)
    }

    pub(crate) async fn ask(&self, method: Method, path: &str) -> Response {
        self.request(method, path).send().await.unwrap()
    }

    pub(crate) async fn pull(&self, path: &str) -> Response {
        self.ask(Method::GET, path).await
    }

    pub(crate) async fn range(&self, path: &str, range: &str) -> Response {
        self.request(Method::GET, path).header("range", range).send().await.unwrap()
    }
}

/// `count` bytes without a pattern, the same every time.
pub(crate) fn noise(count: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(count).collect::<Vec<_>>().into()
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// The code of an error answer.
pub(crate) async fn code(response: Response) -> String {
    let body: serde_json::Value = response.json().await.unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}
