//! Which credentials of a CRI `AuthConfig` count (`runtime.v1`, `AuthConfig`). Pure.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::wire::{Fields, Malformed, Value};

/// The numbers of `AuthConfig`'s fields.
mod field {
    pub(super) const USERNAME: u64 = 1;
    pub(super) const PASSWORD: u64 = 2;
    pub(super) const AUTH: u64 = 3;
    pub(super) const SERVER_ADDRESS: u64 = 4;
    pub(super) const IDENTITY_TOKEN: u64 = 5;
    pub(super) const REGISTRY_TOKEN: u64 = 6;
}

type Text = Zeroizing<String>;

/// What a pull brought to show its registry. `Debug` shows none of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PullAuth {
    username: Text,
    password: Text,
    auth: Text,
    server_address: String,
    identity_token: Text,
    registry_token: Text,
}

/// The credentials that count. `Debug` shows only of which kind they are.
#[derive(Clone, PartialEq, Eq)]
pub enum PullCredential {
    /// A user's name and password.
    Password {
        /// The name.
        user: Zeroizing<String>,
        /// The password.
        password: Zeroizing<String>,
    },
    /// A token that the registry's token server takes for another (OAuth2 refresh token).
    IdentityToken(Zeroizing<String>),
    /// A token that the registry itself takes.
    RegistryToken(Zeroizing<String>),
}

/// Why credentials cannot be read. The text repeats nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// `auth` is not base64.
    #[error(
        "the field `auth` of the pull's credentials is not base64; look at the pull secret or the credential provider that made it"
    )]
    NotBase64,
    /// `auth` holds no colon, or is not UTF-8.
    #[error(
        "the field `auth` of the pull's credentials is not user:password; look at the pull secret or the credential provider that made it"
    )]
    NoPassword,
}

impl PullAuth {
    /// Reads one `AuthConfig`; a field that comes again replaces what was there, as protobuf has it.
    pub(super) fn take(&mut self, message: &[u8]) -> Result<(), Malformed> {
        for read in Fields::of(message) {
            let (number, Value::Bytes(bytes)) = read? else { continue };
            let place = match number {
                field::USERNAME => &mut self.username,
                field::PASSWORD => &mut self.password,
                field::AUTH => &mut self.auth,
                field::IDENTITY_TOKEN => &mut self.identity_token,
                field::REGISTRY_TOKEN => &mut self.registry_token,
                field::SERVER_ADDRESS => {
                    self.server_address = std::str::from_utf8(bytes).map_err(|_| Malformed)?.to_owned();
                    continue;
                }
                _ => continue,
            };
            *place = Zeroizing::new(std::str::from_utf8(bytes).map_err(|_| Malformed)?.to_owned());
        }
        Ok(())
    }

    /// The credentials that containerd's CRI plugin would show the registry, in its order: name and password, identity token, `auth`; and
    /// after them the registry token, which it leaves out. None when there are none, or they are for a server for whose `host[:port]`
    /// `is_registry` answers `false`.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn credential(&self, is_registry: impl FnOnce(&str) -> bool) -> Result<Option<PullCredential>, AuthError> {
        if !self.server_address.is_empty() && !is_registry(host(&self.server_address)) {
            return Ok(None);
        }
        if !self.username.is_empty() {
            return Ok(Some(PullCredential::Password { user: self.username.clone(), password: self.password.clone() }));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(PullCredential::IdentityToken(self.identity_token.clone())));
        }
        if !self.auth.is_empty() {
            return decoded(&self.auth).map(Some);
        }
        let token = &self.registry_token;
        Ok((!token.is_empty()).then(|| PullCredential::RegistryToken(token.clone())))
    }
}

impl fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullAuth").finish_non_exhaustive()
    }
}

impl fmt::Debug for PullCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}

/// The host, with its port if there is one, of an address with or without a scheme and a path.
fn host(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    bare.split('/').next().unwrap_or_default()
}

/// `user:password` in base64, as in docker's config.json. Docker pads the password with zero bytes.
fn decoded(auth: &str) -> Result<PullCredential, AuthError> {
    let bytes = STANDARD.decode(auth).map(Zeroizing::new).map_err(|_| AuthError::NotBase64)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| AuthError::NoPassword)?;
    let (user, password) = text.split_once(':').ok_or(AuthError::NoPassword)?;
    Ok(PullCredential::Password {
        user: Zeroizing::new(user.to_owned()),
        password: Zeroizing::new(password.trim_matches('\0').to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(set: impl FnOnce(&mut PullAuth)) -> PullAuth {
        let mut auth = PullAuth::default();
        set(&mut auth);
        auth
    }

    fn text(text: &str) -> Text {
        Zeroizing::new(text.to_owned())
    }

    fn password(user: &str, password: &str) -> PullCredential {
        PullCredential::Password { user: text(user), password: text(password) }
    }

    #[test]
    fn the_order_is_password_identity_token_auth_registry_token() {
        let mut all = auth(|auth| {
            auth.username = text("u");
            auth.password = text("p");
            auth.identity_token = text("i");
            auth.auth = text("YTpi");
            auth.registry_token = text("r");
        });
        let chosen = |auth: &PullAuth| auth.credential(|_| panic!("no server was named")).unwrap();
        assert_eq!(chosen(&all), Some(password("u", "p")));
        all.username = text("");
        assert_eq!(chosen(&all), Some(PullCredential::IdentityToken(text("i"))));
        all.identity_token = text("");
        assert_eq!(chosen(&all), Some(password("a", "b")));
        all.auth = text("");
        assert_eq!(chosen(&all), Some(PullCredential::RegistryToken(text("r"))));
        all.registry_token = text("");
        assert_eq!(chosen(&all), None);
    }

    #[test]
    fn auth_is_a_name_a_colon_and_a_password_that_may_hold_colons_and_be_padded() {
        let chosen = |encoded: &str| auth(|auth| auth.auth = text(encoded)).credential(|_| true);
        assert_eq!(chosen(&STANDARD.encode("u:p:q\0\0")), Ok(Some(password("u", "p:q"))));
        assert_eq!(chosen(&STANDARD.encode("hunter2")), Err(AuthError::NoPassword));
        assert_eq!(chosen(&STANDARD.encode([0xff, b':'])), Err(AuthError::NoPassword));
        assert_eq!(chosen("hunter2!"), Err(AuthError::NotBase64));
        assert!(!format!("{:?}", chosen("hunter2!")).contains("hunter2"));
    }

    #[test]
    fn credentials_for_another_server_do_not_count() {
        for (address, named) in [
            ("r.example", "r.example"),
            ("https://r.example/v1/", "r.example"),
            ("r.example:5000/team", "r.example:5000"),
            ("http://[::1]:5000", "[::1]:5000"),
        ] {
            let auth = auth(|auth| {
                auth.username = text("u");
                address.clone_into(&mut auth.server_address);
            });
            assert_eq!(auth.credential(|host| host == named), Ok(Some(password("u", ""))), "{address}");
            assert_eq!(auth.credential(|_| false), Ok(None), "{address}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let auth = auth(|auth| {
            auth.username = text("hunter1");
            auth.password = text("hunter2");
        });
        let shown = format!("{auth:?} {:?}", auth.credential(|_| true));
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
