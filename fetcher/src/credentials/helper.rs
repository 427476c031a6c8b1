//! Credential helpers: `docker-credential-NAME get`, the server's name on standard input, JSON on standard output
//! (docker-credential-helpers, README).

use std::path::PathBuf;

use super::{
    Credential,
    docker::Docker,
    program::{Ended, Program},
};
use crate::{failure::Failure, secret::Secret};

/// Largest answer of a helper, in bytes: a token of a cloud has some 4 KiB.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The user name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers print when they have nothing for a server.
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Secret,
}

/// Asks helper `name` about `server`; `None` when it knows nothing of it.
pub(super) async fn ask(from: &Docker, name: &str, server: &str) -> Result<Option<Credential>, Failure> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(Failure::denied("the docker config names a credential helper that is not a plain word".to_owned()));
    }
    let file = format!("docker-credential-{name}");
    let path: PathBuf = from.helpers.as_ref().map_or_else(|| file.clone().into(), |dir| dir.join(&file));
    let program = Program {
        path: &path,
        args: &["get".to_owned()],
        env: &[],
        input: server.as_bytes(),
        timeout: from.timeout,
        max_output: MAX_ANSWER_BYTES,
    };
    let Ended { success, output } = program.run().await?;
    understand(&file, success, &output)
}

/// What a helper's answer means. Nothing of it is repeated in a failure.
fn understand(program: &str, success: bool, output: &[u8]) -> Result<Option<Credential>, Failure> {
    if !success {
        if output.trim_ascii().starts_with(NOT_FOUND) {
            return Ok(None);
        }
        return Err(Failure::denied(format!("{program} failed; run it by hand to see why")));
    }
    let answer: Answer = serde_json::from_slice(output)
        .map_err(|_| Failure::denied(format!("{program} did not print the expected JSON")))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(match answer.username {
        user if user == TOKEN_USER => Credential::Identity(answer.secret),
        user => Credential::Basic { user, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_helpers_are_understood_and_never_repeated() {
        let basic = br#"{"ServerURL":"r","Username":"u","Secret":"hunter2"}"#;
        let password = Secret::new("hunter2".to_owned());
        assert_eq!(
            understand("p", true, basic).unwrap(),
            Some(Credential::Basic { user: "u".to_owned(), password: password.clone() })
        );
        let token = br#"{"ServerURL":"r","Username":"<token>","Secret":"hunter2"}"#;
        assert_eq!(understand("p", true, token).unwrap(), Some(Credential::Identity(password)));
        assert_eq!(understand("p", true, br#"{"Username":"","Secret":""}"#).unwrap(), None);
        assert_eq!(understand("p", false, b"credentials not found in native keychain\n").unwrap(), None);
        for (success, output) in [(false, &b"hunter2"[..]), (true, b"hunter2"), (true, b""), (true, b"{\"Secret\":1}")]
        {
            let failure = understand("p", success, output).unwrap_err();
            assert!(!format!("{failure:?}").contains("hunter2"));
        }
    }
}
