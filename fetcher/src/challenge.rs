//! What a registry asks for when it answers 401: the `WWW-Authenticate` header (RFC 9110 section 11, and the distribution
//! project's token authentication). Pure and total.

use std::collections::BTreeMap;

/// Longest header value looked at, in bytes. Real ones have some hundreds.
const MAX_HEADER_BYTES: usize = 8 << 10;
/// Most challenges kept of one header.
const MAX_CHALLENGES: usize = 8;

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token, to be had from a token server.
    Bearer {
        /// The token server's URL.
        realm: String,
        /// The name of the registry, for the token server.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenges of one header value that Penstock can answer, in the order offered. What is not understood is passed over.
    #[must_use]
    pub fn parse(header: &str) -> Vec<Self> {
        let mut cursor = Cursor(header.get(..header.len().min(MAX_HEADER_BYTES)).unwrap_or_default());
        let mut raw: Vec<(String, BTreeMap<String, String>)> = Vec::new();
        while raw.len() <= MAX_CHALLENGES {
            match (cursor.item(), raw.last_mut()) {
                (None, _) => break,
                (Some(Item::Scheme(scheme)), _) => raw.push((scheme, BTreeMap::new())),
                (Some(Item::Parameter(name, value)), Some((_, parameters))) => {
                    parameters.entry(name).or_insert(value);
                }
                (Some(Item::Parameter(..)), None) => {}
            }
        }
        raw.into_iter().take(MAX_CHALLENGES).filter_map(|(scheme, parameters)| Self::of(&scheme, parameters)).collect()
    }

    fn of(scheme: &str, mut parameters: BTreeMap<String, String>) -> Option<Self> {
        match scheme {
            "basic" => Some(Self::Basic),
            "bearer" => Some(Self::Bearer {
                realm: parameters.remove("realm").filter(|realm| !realm.is_empty())?,
                service: parameters.remove("service"),
                scope: parameters.remove("scope").filter(|scope| !scope.is_empty()),
            }),
            _ => None,
        }
    }

    /// The challenge to answer: a token is asked for where one is offered, as docker and containerd do.
    pub(crate) fn best(offered: impl IntoIterator<Item = Self>) -> Option<Self> {
        offered.into_iter().min_by_key(|challenge| matches!(challenge, Self::Basic))
    }
}

enum Item {
    /// A scheme, in lower case.
    Scheme(String),
    /// A name in lower case, and its value.
    Parameter(String, String),
}

/// The rest of the header.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn item(&mut self) -> Option<Item> {
        loop {
            self.0 = self.0.trim_start_matches([' ', '\t', ',']);
            let word = self.word();
            if self.0.is_empty() && word.is_empty() {
                return None;
            }
            self.0 = self.0.trim_start_matches([' ', '\t']);
            if let Some(rest) = self.0.strip_prefix('=') {
                self.0 = rest.trim_start_matches([' ', '\t']);
                return Some(Item::Parameter(word, self.value()));
            }
            if !word.is_empty() {
                return Some(Item::Scheme(word));
            }
            // A character that starts nothing: passed over, so that the loop always gets on.
            let mut rest = self.0.chars();
            rest.next();
            self.0 = rest.as_str();
        }
    }

    /// A token of RFC 9110, in lower case; empty when the next character is none of its characters.
    fn word(&mut self) -> String {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let end = self.0.bytes().take_while(|&b| is_word(b)).count();
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word.to_ascii_lowercase()
    }

    /// A quoted string, or everything up to a comma or a space.
    fn value(&mut self) -> String {
        let Some(quoted) = self.0.strip_prefix('"') else {
            let end = self.0.find([',', ' ', '\t']).unwrap_or(self.0.len());
            let (value, rest) = self.0.split_at(end);
            self.0 = rest;
            return value.to_owned();
        };
        let mut value = String::new();
        let mut rest = quoted.chars();
        while let Some(c) = rest.next() {
            match c {
                '"' => break,
                '\\' => value.extend(rest.next()),
                c => value.push(c),
            }
        }
        self.0 = rest.as_str();
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/alpine:pull"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            (
                r#"BASIC realm="https://123.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#,
                vec![Challenge::Basic],
            ),
            (
                r#"Basic realm="a, Bearer realm=b", bearer realm=http://t/, scope="x,y z""#,
                vec![Challenge::Basic, bearer("http://t/", None, Some("x,y z"))],
            ),
            (r#"Negotiate, Bearer realm = "a\"b" , Service="s""#, vec![bearer("a\"b", Some("s"), None)]),
            ("Negotiate dG9rZW4=, Basic", vec![Challenge::Basic]),
            (r#"Bearer realm="first",realm="second""#, vec![bearer("first", None, None)]),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }

    #[test]
    fn broken_challenges_are_passed_over() {
        for header in [
            "",
            " ",
            ",,,",
            "Bearer",
            "Bearer realm=",
            r#"Bearer realm="""#,
            "realm=x",
            "=",
            "Digest realm=x",
            "é=é",
            "\"",
        ] {
            assert_eq!(Challenge::parse(header), [], "{header:?}");
        }
        assert_eq!(Challenge::parse(r#"Bearer realm="open"#), [bearer("open", None, None)]);
        assert!(Challenge::parse(&"Basic ".repeat(5000)).len() <= MAX_CHALLENGES);
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let token = bearer("r", None, None);
        assert_eq!(Challenge::best([Challenge::Basic, token.clone()]), Some(token));
        assert_eq!(Challenge::best([Challenge::Basic]), Some(Challenge::Basic));
        assert_eq!(Challenge::best([]), None);
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(header in "\\PC{0,200}|[a-zB =,\"\\\\]{0,200}") {
            prop_assert!(Challenge::parse(&header).len() <= MAX_CHALLENGES);
        }

        #[test]
        fn quoted_values_read_back(realm in "[ -~]{1,40}", service in "[ -~]{0,40}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\",service=\"{}\"", quote(&realm), quote(&service));
            prop_assert_eq!(Challenge::parse(&header), [bearer(&realm, Some(&service), None)]);
        }
    }
}
