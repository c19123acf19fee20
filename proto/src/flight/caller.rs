//! Who calls: from the `authorization` header of a Flight call.
//!
//! ```text
//!   Basic base64(user:password)   the user; passwords do not exist yet and are not looked at
//!   Bearer <sealed token>         what the handshake gave out, at any router or node
//!   nothing                       [`USER_DEFAULT`], as clients without a user name send it
//! ```
//!
//! As on the PostgreSQL port, everyone who reaches the port is trusted to be who they say.

use super::seal::{BEARER_LIFE, Secret, expires_in};
use crate::error::{Error, Result};
use crate::v1;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

/// The user of callers that name none.
pub const USER_DEFAULT: &str = "tessera";
/// Longest user name, as PostgreSQL's.
const USER_BYTES_MAX: usize = 63;
/// Longest `authorization` header: a token is well below.
const HEADER_BYTES_MAX: usize = 4 << 10;

/// Some drivers pad what they send, others (ADBC) do not.
const BASIC: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User name; shown, not proven.
    pub user: String,
    /// The session that the handshake began; `None` without one.
    pub session: Option<Uuid>,
}

/// Reads the header.
///
/// # Errors
/// 28000 when it is malformed, or the token is not good.
pub fn caller(metadata: &MetadataMap, secret: &Secret) -> Result<Caller> {
    let malformed = || Error::new("28000", "malformed authorization header").with_hint("send Basic or Bearer");
    let Some(header) = metadata.get("authorization") else {
        return Ok(Caller {
            user: USER_DEFAULT.to_owned(),
            session: None,
        });
    };
    let header = header.to_str().map_err(|_| malformed())?;
    if header.len() > HEADER_BYTES_MAX {
        return Err(malformed());
    }
    let (scheme, value) = header.split_once(' ').ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(value.trim()).map_err(|_| malformed())?;
        let token: v1::BearerToken = secret.open(&sealed)?;
        return Ok(Caller {
            user: token.user,
            session: Some(Uuid::from_slice(&token.session).map_err(|_| malformed())?),
        });
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(malformed());
    }
    let decoded = BASIC.decode(value.trim()).map_err(|_| malformed())?;
    let text = String::from_utf8(decoded).map_err(|_| malformed())?;
    let user = text.split_once(':').map_or(text.as_str(), |(user, _)| user);
    if user.is_empty() || user.len() > USER_BYTES_MAX || user.chars().any(char::is_control) {
        let what = format!("a user name has 1 to {USER_BYTES_MAX} bytes and no control characters");
        return Err(Error::new("28000", what));
    }
    Ok(Caller {
        user: user.to_owned(),
        session: None,
    })
}

/// A new session's token, as the header carries it.
pub fn bearer(user: &str, secret: &Secret) -> String {
    let token = v1::BearerToken {
        user: user.to_owned(),
        session: Uuid::new_v4().as_bytes().to_vec().into(),
        expires_ms: expires_in(BEARER_LIFE),
    };
    format!("Bearer {}", BASE64_URL_SAFE_NO_PAD.encode(secret.seal(&token)))
}

/// Refuses a ticket that was made for somebody else.
///
/// # Errors
/// 42501.
pub fn check_user(caller: &Caller, user: &str) -> Result<()> {
    if caller.user == user {
        return Ok(());
    }
    let what = format!("the ticket belongs to user \"{user}\", not to \"{}\"", caller.user);
    Err(Error::new("42501", what).with_hint("connect as the user that ran the query"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>, expected: Result<&str, &str>) {
        let mut metadata = MetadataMap::new();
        if let Some(header) = header {
            metadata.insert("authorization", header.parse().expect("a header"));
        }
        let got = caller(&metadata, &Secret::new([1; 32]));
        let got = got.as_ref().map(|c| c.user.as_str()).map_err(|e| e.code.as_str());
        assert_eq!(got, expected, "{header:?}");
    }

    #[test]
    fn headers_name_users_or_are_refused() {
        check(None, Ok(USER_DEFAULT));
        check(Some("Basic YW5uOnNlY3JldA=="), Ok("ann"));
        check(Some("basic YW5u"), Ok("ann"));
        check(Some("Basic YW5uOnNlY3JldA"), Ok("ann"));
        check(Some(&bearer("bob", &Secret::new([1; 32]))), Ok("bob"));
        check(Some(&bearer("bob", &Secret::new([2; 32]))), Err("28000"));
        for bad in [
            "Basic",
            "Basic :",
            "Basic OnNlY3JldA==",
            "Basic %%%",
            "Bearer x",
            "Bearer",
            "Digest YW5u",
        ] {
            check(Some(bad), Err("28000"));
        }
        check(Some(&format!("Basic {}", "A".repeat(HEADER_BYTES_MAX))), Err("28000"));
    }
}
