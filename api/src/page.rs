//! The web page: three files in the binary, nothing from elsewhere. It asks the same routes as everybody, and is told no secret.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::IntoResponse,
    routing::get,
};

use crate::routes::Shared;

/// A path, what it is, and its content.
type Asset = (&'static str, &'static str, &'static str);

const ASSETS: [Asset; 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("/stream.js", "text/javascript; charset=utf-8", include_str!("page/stream.js")),
    ("/chart.js", "text/javascript; charset=utf-8", include_str!("page/chart.js")),
    ("/map.js", "text/javascript; charset=utf-8", include_str!("page/map.js")),
];

/// Nothing from elsewhere, nothing inline, nobody's frame (Content Security Policy Level 3).
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Whether a path is a file of the page: the same bytes for everybody, which say nothing about the node. What they show they have to ask for.
#[must_use]
pub fn is_asset(path: &str) -> bool {
    ASSETS.iter().any(|(name, ..)| *name == path)
}

pub(crate) fn router() -> Router<Shared> {
    ASSETS.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(move || std::future::ready(file(kind, content))))
    })
}

fn file(kind: &'static str, content: &'static str) -> impl IntoResponse {
    let fixed = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        fixed(header::REFERRER_POLICY, "no-referrer"),
        // A new agent may bring a new page.
        fixed(header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content)
}
