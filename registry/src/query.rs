//! Query strings: pairs, percent-decoded.

/// The value of the first parameter `name` of `query`, decoded; `None` when there is none.
pub(crate) fn value(query: &str, name: &str) -> Option<String> {
    values(query, name).next()
}

/// The values of all parameters `name` of `query`, decoded, in order.
pub(crate) fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

/// `text` with `%XX` and `+` replaced (application/x-www-form-urlencoded); an incomplete escape stays as it is.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| first == b'%').and_then(|digits| hex::decode(digits).ok());
        match escaped {
            Some(byte) => {
                out.extend(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(if first == b'+' { b' ' } else { first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_and_decoded() {
        let query = "digest=sha256%3Aab&scope=a+b&scope=c%2Fd&flag&bad=%4";
        assert_eq!(value(query, "digest").as_deref(), Some("sha256:ab"));
        assert_eq!(values(query, "scope").collect::<Vec<_>>(), ["a b", "c/d"]);
        assert_eq!(value(query, "flag").as_deref(), Some(""));
        assert_eq!(value(query, "bad").as_deref(), Some("%4"));
        assert_eq!(value(query, "none"), None);
    }
}
