//! Bearer tokens (RFC 6750) from a file.
//!
//! One token on each line, so that a new one can be given out before the old one goes. Kept and compared as their sha256, in a time
//! that does not depend on what was sent.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use penstock_blob::Digest;
use subtle::{Choice, ConstantTimeEq as _};

use super::files::{self, FileError, Stamp};
use crate::events::{Events, Kind};

/// The most bytes of the file.
const FILE_BYTES: u64 = 16 << 10;
/// The fewest characters of a token: 128 random bits in hexadecimal.
const LEAST_CHARS: usize = 32;
/// The most characters of a token: what is longer is no token of ours, and is not hashed.
const MOST_CHARS: usize = 1024;
/// The most tokens: each costs a comparison for every request.
const MOST_TOKENS: usize = 16;

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens {
    path: PathBuf,
    events: Events,
    loaded: Mutex<Loaded>,
}

/// What was read last.
#[derive(Debug)]
struct Loaded {
    stamp: Option<Stamp>,
    tokens: Vec<Digest>,
}

impl Tokens {
    /// The tokens of `path`, which must hold some.
    pub(super) fn open(path: &Path, events: Events) -> Result<Self, FileError> {
        // Before the content: a change in between is then seen at the next request.
        let stamp = Stamp::of(path);
        let loaded = Mutex::new(Loaded { stamp, tokens: load(path)? });
        Ok(Self { path: path.to_path_buf(), events, loaded })
    }

    /// Whether `sent` is one of them. Reads the file again when it has changed: who deletes a token locks its holder out at once, and
    /// a file that cannot be read, or that others can read, lets nobody in.
    pub(super) fn admit(&self, sent: &str) -> bool {
        let stamp = Stamp::of(&self.path);
        let mut loaded = self.loaded.lock();
        if loaded.stamp != stamp || stamp.is_none() {
            self.reload(&mut loaded, stamp);
        }
        if sent.len() > MOST_CHARS {
            return false;
        }
        let sent = Digest::of(sent.as_bytes());
        let known = loaded.tokens.iter();
        known.fold(Choice::from(0), |found, token| found | token.as_bytes().ct_eq(sent.as_bytes())).into()
    }

    fn reload(&self, loaded: &mut Loaded, stamp: Option<Stamp>) {
        let is_news = loaded.stamp != stamp;
        loaded.stamp = stamp;
        match load(&self.path) {
            Ok(tokens) => {
                loaded.tokens = tokens;
                let text = format!("{} has changed; its tokens are those that are taken now", self.path.display());
                self.events.record(Kind::ApiReloaded, &text, &[]);
            }
            Err(error) => {
                loaded.tokens.clear();
                if is_news {
                    let text = format!("no token is taken any more: {error}");
                    self.events.record(Kind::ApiReloadFailed, &text, &[]);
                }
            }
        }
    }
}

fn load(path: &Path) -> Result<Vec<Digest>, FileError> {
    let bytes = files::read(path, FILE_BYTES, true)?;
    parse(&bytes).map_err(|reason| FileError::Content { path: path.to_path_buf(), reason })
}

/// The digests of the tokens in a file. The reasons name lines, never what stands there.
fn parse(bytes: &[u8]) -> Result<Vec<Digest>, String> {
    let mut tokens = Vec::new();
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if !line.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)) {
            return Err(format!("line {} has characters that a token cannot have (RFC 6750)", number + 1));
        }
        if !(LEAST_CHARS..=MOST_CHARS).contains(&line.len()) {
            let bounds = format!("a token has {LEAST_CHARS} to {MOST_CHARS} characters");
            return Err(format!("line {}: {bounds}; `openssl rand -hex 32` makes one", number + 1));
        }
        tokens.push(Digest::of(line));
    }
    match tokens.len() {
        0 => Err("there is no token in it; `openssl rand -hex 32` makes one".to_owned()),
        1..=MOST_TOKENS => Ok(tokens),
        more => Err(format!("it has {more} tokens, and no more than {MOST_TOKENS} are taken")),
    }
}

/// The token in an `Authorization` header.
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    struct Bench {
        dir: tempfile::TempDir,
        events: Events,
    }

    impl Bench {
        fn path(&self) -> PathBuf {
            self.dir.path().join("token")
        }

        /// Replaces the file, as whoever rotates a secret does.
        fn put(&self, text: &str, mode: u32) {
            let fresh = self.dir.path().join("fresh");
            fs::write(&fresh, text).unwrap();
            fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).unwrap();
            fs::rename(fresh, self.path()).unwrap();
        }

        fn kinds(&self) -> Vec<String> {
            self.events.since(0, 10).events.into_iter().map(|event| event.kind).collect()
        }
    }

    fn bench() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap(), events: Events::new() }
    }

    #[test]
    fn only_what_the_file_holds_is_taken_and_a_change_counts_at_once() {
        let bench = bench();
        bench.put(&format!("{A}\n\n  {B} \n"), 0o600);
        let tokens = Tokens::open(&bench.path(), bench.events.clone()).unwrap();
        assert!(tokens.admit(A) && tokens.admit(B));
        for wrong in ["", "a", &A[1..], &format!("{A}a"), &A.to_uppercase(), &"x".repeat(MOST_CHARS + 1)] {
            assert!(!tokens.admit(wrong), "{wrong}");
        }
        bench.put(B, 0o600);
        assert!(!tokens.admit(A) && tokens.admit(B));
        assert_eq!(bench.kinds(), ["api.reloaded"]);
    }

    #[test]
    fn a_file_that_is_gone_or_open_to_others_lets_nobody_in_and_says_so_once() {
        let bench = bench();
        bench.put(A, 0o600);
        let tokens = Tokens::open(&bench.path(), bench.events.clone()).unwrap();
        bench.put(A, 0o644);
        assert!(!tokens.admit(A) && !tokens.admit(A));
        fs::remove_file(bench.path()).unwrap();
        assert!(!tokens.admit(A) && !tokens.admit(A));
        assert_eq!(bench.kinds(), ["api.reload_failed", "api.reload_failed"]);
        bench.put(A, 0o600);
        assert!(tokens.admit(A));
    }

    #[test]
    fn files_without_a_good_token_are_refused_and_not_quoted() {
        let long = "x".repeat(MOST_CHARS + 1);
        let many = format!("{A}\n").repeat(MOST_TOKENS + 1);
        for bad in [
            "",
            "\n\n",
            "short",
            "tokenwithäumlautxxxxxxxxxxxxxxxxxxxxxxxxx",
            "two words in one lineeeeeeeeeeeeeee",
            &long,
            &many,
        ] {
            let reason = parse(bad.as_bytes()).unwrap_err();
            assert!(bad.trim().is_empty() || !reason.contains(bad.trim()), "{reason}");
        }
        assert_eq!(parse(format!("{A}\r\n").as_bytes()).unwrap(), [Digest::of(A.as_bytes())]);
    }

    #[test]
    fn the_scheme_is_read_in_any_case_and_nothing_else_is_a_token() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bEARER  abc "), Some("abc"));
        for other in ["", "Bearer", "Basic abc", "Bearerabc", "abc"] {
            assert_eq!(bearer(other), None, "{other}");
        }
    }
}
