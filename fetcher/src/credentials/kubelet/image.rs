//! Which images a glob of the kubelet means (`URLsMatch` of Kubernetes' `pkg/credentialprovider`). Pure and total.

use std::fmt;

use super::super::scope::is_docker_hub;

/// An image as the kubelet names it to plugins: registry and repository, without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    registry: String,
    repository: String,
}

impl Image {
    pub(super) fn new(host: &str, repository: &str) -> Self {
        let registry = if is_docker_hub(host) { "docker.io" } else { host };
        Self { registry: registry.to_owned(), repository: repository.to_owned() }
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// A glob for images: `*.dkr.ecr.*.amazonaws.com`, `registry.io:8080/path`. Globs stand in the parts of the host only, each for
/// one part; the port must be the same, present or not; the path must begin the image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob {
    parts: Vec<String>,
    port: String,
    path: String,
}

impl Glob {
    /// `None` when it is no glob: a scheme, an empty host, a bracket that is not closed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        // Keys of an answer may be written as docker writes them.
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (host, path) =
            text.split_once('/').map_or((text, String::new()), |(host, path)| (host, format!("/{path}")));
        if host.is_empty() || text.contains("://") || text.contains(char::is_whitespace) {
            return None;
        }
        let (name, port) = split_port(host);
        let parts: Vec<String> = name.split('.').map(str::to_owned).collect();
        parts.iter().all(|part| fits(part, "").is_some()).then_some(Self { parts, port: port.to_owned(), path })
    }

    pub(super) fn fits(&self, image: &Image) -> bool {
        let (name, port) = split_port(&image.registry);
        let parts: Vec<&str> = name.split('.').collect();
        port == self.port
            && parts.len() == self.parts.len()
            && format!("/{}", image.repository).starts_with(&self.path)
            && self.parts.iter().zip(parts).all(|(glob, part)| fits(glob, part) == Some(true))
    }
}

/// The name and the port, which is empty when there is none. A glob may hold brackets, so the last colon after them counts.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

/// Whether a glob of Go's `filepath.Match` means the text: `*` any run, `?` any character, `[a-z]` and `[^a-z]` one of a class, a
/// backslash the next character itself. `None` when it is no such glob.
fn fits(glob: &str, text: &str) -> Option<bool> {
    let tokens = tokens(glob)?;
    let text: Vec<char> = text.chars().collect();
    // Which ends of the text the tokens so far can reach: each token is looked at once for each place, so that no glob takes long.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for token in &tokens {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            if !reached[at] {
                continue;
            }
            match token {
                Token::Run => next[at..].fill(true),
                Token::One(class) => {
                    if let Some(&c) = text.get(at)
                        && class.holds(c)
                    {
                        next[at + 1] = true;
                    }
                }
            }
        }
        reached = next;
    }
    Some(reached.last().copied().unwrap_or(false))
}

enum Token {
    Run,
    One(Class),
}

struct Class {
    negated: bool,
    /// Empty means any character.
    ranges: Vec<(char, char)>,
}

impl Class {
    fn holds(&self, c: char) -> bool {
        let within = self.ranges.is_empty() || self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
        within != self.negated
    }
}

fn tokens(glob: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = glob.chars().peekable();
    while let Some(c) = rest.next() {
        tokens.push(match c {
            '*' => Token::Run,
            '?' => Token::One(Class { negated: false, ranges: Vec::new() }),
            '[' => {
                let negated = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || rest.peek() != Some(&']') {
                    let from = bound(&mut rest)?;
                    let to = if rest.next_if_eq(&'-').is_some() { bound(&mut rest)? } else { from };
                    ranges.push((from, to));
                }
                rest.next();
                Token::One(Class { negated, ranges })
            }
            '\\' => literal(rest.next()?),
            c => literal(c),
        });
    }
    Some(tokens)
}

/// One end of a range in a class.
fn bound(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        c => Some(c),
    }
}

fn literal(c: char) -> Token {
    Token::One(Class { negated: false, ranges: vec![(c, c)] })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(glob: &str, image: &str) -> bool {
        let (host, repository) = image.split_once('/').unwrap();
        Glob::parse(glob).unwrap().fits(&Image::new(host, repository))
    }

    #[test]
    fn globs_mean_what_they_mean_to_the_kubelet() {
        // The cases of Kubernetes' documentation and of TestUrlsMatch in pkg/credentialprovider.
        for (glob, image) in [
            ("123456789.dkr.ecr.us-east-1.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/app"),
            ("*.azurecr.io", "team.azurecr.io/app"),
            ("gcr.io", "gcr.io/project/app"),
            ("*.*.registry.io", "a.b.registry.io/app"),
            ("foo.registry.io:8080/path", "foo.registry.io:8080/path/app"),
            ("*.kubernetes.io", "prefix.kubernetes.io/x"),
            ("prefix.*.io", "prefix.kubernetes.io/x"),
            ("prefix.kubernetes.*", "prefix.kubernetes.io/x"),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io/x"),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah/foo"),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/blahs"),
            ("app[0-9]?.k8s.io", "app42.k8s.io/x"),
            ("docker.io", "registry-1.docker.io/library/alpine"),
        ] {
            assert!(matches(glob, image), "{glob} {image}");
        }
        for (glob, image) in [
            ("*.io", "a.k8s.io/x"),
            ("*.kubernetes.io", "kubernetes.io/x"),
            ("kubernetes.io", "prefix.kubernetes.io/x"),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/foo"),
            ("foo.registry.io", "foo.registry.io:8080/path"),
            ("foo.registry.io:8080", "foo.registry.io/path"),
            ("foo.registry.io:8080", "foo.registry.io:5000/path"),
            ("*.azurecr.io", "azurecr.io.evil.com/x"),
            ("app[^0-9].k8s.io", "app4.k8s.io/x"),
        ] {
            assert!(!matches(glob, image), "{glob} {image}");
        }
        for bad in ["", "/x", "a[b.io", "a[].io", "a\\", "ftp://x.io", "a b"] {
            assert_eq!(Glob::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_glob_is_read_and_matched_in_little_time(glob in "\\PC{0,60}|[a*?\\[\\].:/^-]{0,60}", host in "[a-z.:0-9]{1,40}") {
            if let Some(glob) = Glob::parse(&glob) {
                let _fits = glob.fits(&Image::new(&host, "a/b"));
            }
        }

        #[test]
        fn a_name_means_itself(host in "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", path in "[a-z]{1,9}") {
            let image = format!("{host}/{path}");
            prop_assert!(matches(&host, &image), "{}", image);
        }
    }
}
