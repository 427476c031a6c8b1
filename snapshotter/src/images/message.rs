//! The two requests that are read on their way, and what their answers say. Pure and total; fields are those of CRI's `runtime.v1`.

use super::{
    auth::PullAuth,
    wire::{Fields, Malformed, Value},
};

/// Largest request that is read, in bytes: what the kubelet and containerd take of one message. A larger one is forwarded unread, for
/// containerd to refuse.
pub const MESSAGE_BYTES: usize = 16 << 20;

/// What stands before each message of gRPC: whether it is compressed, and its length (gRPC over HTTP/2, "Requests").
pub(super) const PREFIX_BYTES: usize = 5;

/// `image` of all three requests and answers.
const IMAGE: u64 = 1;
/// `auth` of `PullImageRequest`.
const AUTH: u64 = 2;

/// A method of the image service, as far as it means anything to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// An image is pulled.
    Pull,
    /// An image is removed.
    Remove,
    /// Anything else, and its place in the metrics.
    Other(&'static str),
}

/// The methods of `runtime.v1.ImageService` that are only counted.
const COUNTED: [&str; 4] = ["ListImages", "ImageStatus", "ImageFsInfo", "StreamImages"];

impl Method {
    /// The method that a path names. The requests of `v1alpha2`, which kubelets before 1.26 ask for and containerd 1.x answers, have the
    /// same fields.
    pub(super) fn of(path: &str) -> Self {
        let service =
            |version: &str| path.strip_prefix("/runtime.")?.strip_prefix(version)?.strip_prefix(".ImageService/");
        match service("v1").or_else(|| service("v1alpha2")) {
            Some("PullImage") => Self::Pull,
            Some("RemoveImage") => Self::Remove,
            Some(name) => Self::Other(COUNTED.into_iter().find(|known| *known == name).unwrap_or("other")),
            None => Self::Other("other"),
        }
    }

    /// Its name in metrics: one of few.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pull => "PullImage",
            Self::Remove => "RemoveImage",
            Self::Other(name) => name,
        }
    }
}

/// Why a request was not read. It is forwarded all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    /// It is compressed, and only containerd knows how to read it.
    #[error("it is compressed")]
    Compressed,
    /// It ended before its message did, or is longer than is read.
    #[error("it is cut short, or larger than {MESSAGE_BYTES} bytes")]
    Incomplete,
    /// It is no message of CRI.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What is pulled, and with what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pull {
    pub(super) image: String,
    pub(super) auth: Option<PullAuth>,
}

/// The length of the message that `body` begins with; `None` while its prefix is not whole.
pub(super) fn announced(body: &[u8]) -> Option<usize> {
    let prefix = body.first_chunk::<PREFIX_BYTES>()?;
    let [_, length @ ..] = *prefix;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

/// The first message of a call.
pub(super) fn first(body: &[u8]) -> Result<&[u8], Unread> {
    let length = announced(body).ok_or(Unread::Incomplete)?;
    if body.first() != Some(&0) {
        return Err(Unread::Compressed);
    }
    body[PREFIX_BYTES..].get(..length).ok_or(Unread::Incomplete)
}

/// `PullImageRequest`.
pub(super) fn pull(message: &[u8]) -> Result<Pull, Unread> {
    let mut pull = Pull { image: spec(message)?, auth: None };
    for field in Fields::of(message) {
        if let (AUTH, Value::Bytes(bytes)) = field? {
            pull.auth.get_or_insert_default().take(bytes)?;
        }
    }
    Ok(pull)
}

/// `RemoveImageRequest`: the image as it was written, a reference or an ID.
pub(super) fn remove(message: &[u8]) -> Result<String, Unread> {
    Ok(spec(message)?)
}

/// `PullImageResponse`: the image's ID, or its reference.
pub(super) fn pulled(message: &[u8]) -> Option<String> {
    text(message).ok().filter(|id| !id.is_empty())
}

/// `ImageSpec.image` of the request's `image`.
fn spec(message: &[u8]) -> Result<String, Malformed> {
    let mut image = String::new();
    for field in Fields::of(message) {
        if let (IMAGE, Value::Bytes(bytes)) = field? {
            let named = text(bytes)?;
            image = if named.is_empty() { image } else { named };
        }
    }
    Ok(image)
}

/// The text in field 1.
fn text(message: &[u8]) -> Result<String, Malformed> {
    let mut text = "";
    for field in Fields::of(message) {
        if let (IMAGE, Value::Bytes(bytes)) = field? {
            text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::{super::auth::PullCredential, *};

    /// One field that is bytes.
    pub(in crate::images) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            field.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        field.push(u8::try_from(length).unwrap());
        [field, bytes.to_vec()].concat()
    }

    /// A message with gRPC's prefix.
    pub(in crate::images) fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length, message].concat()
    }

    /// A request to pull `image`.
    pub(in crate::images) fn request(image: &str, auth: &[u8]) -> Vec<u8> {
        let image = field(1, &[field(1, image.as_bytes()), field(2, &field(1, b"key"))].concat());
        let auth = if auth.is_empty() { Vec::new() } else { field(2, auth) };
        [image, auth, field(3, b"\x0a\x00")].concat()
    }

    #[test]
    fn a_pull_names_its_image_and_its_credentials() {
        let auth = [field(1, b"robot"), field(2, b"hunter2")].concat();
        let Pull { image, auth } = pull(&request("r.example/a:1", &auth)).unwrap();
        assert_eq!(image, "r.example/a:1");
        let Some(PullCredential::Password { user, password }) = auth.unwrap().credential(|_| true).unwrap() else {
            panic!("it brought a password")
        };
        assert_eq!((user.as_str(), password.as_str()), ("robot", "hunter2"));
        assert_eq!(pull(&request("a", &[])).unwrap(), Pull { image: "a".to_owned(), auth: None });
        assert_eq!(remove(&request("sha256:0", &[])).unwrap(), "sha256:0");
        assert_eq!(pulled(&field(1, b"sha256:1")).as_deref(), Some("sha256:1"));
        assert_eq!(pulled(b""), None);
    }

    #[test]
    fn a_message_that_is_compressed_short_or_none_is_not_read() {
        let whole = framed(b"abc");
        assert_eq!(first(&whole), Ok(&b"abc"[..]));
        assert_eq!(first(&whole[..7]), Err(Unread::Incomplete));
        assert_eq!(first(&whole[..4]), Err(Unread::Incomplete));
        assert_eq!(first(&[[1].as_slice(), &whole[1..]].concat()), Err(Unread::Compressed));
        assert_eq!(pull(&field(1, &[0x0a])), Err(Unread::Malformed(Malformed)));
        assert_eq!(pull(&field(2, &field(2, &[0xff]))), Err(Unread::Malformed(Malformed)));
    }

    #[test]
    fn only_a_few_methods_have_a_name_of_their_own() {
        assert_eq!(Method::of("/runtime.v1.ImageService/PullImage"), Method::Pull);
        assert_eq!(Method::of("/runtime.v1.ImageService/RemoveImage"), Method::Remove);
        assert_eq!(Method::of("/runtime.v1.ImageService/ListImages").name(), "ListImages");
        assert_eq!(Method::of("/runtime.v1alpha2.ImageService/PullImage"), Method::Pull);
        for other in ["/runtime.v1.ImageService/New", "/runtime.v1.RuntimeService/PullImage", "/", ""] {
            assert_eq!(Method::of(other), Method::Other("other"), "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _read = (first(&bytes).map(pull), pull(&bytes), remove(&bytes), pulled(&bytes));
        }
    }
}
