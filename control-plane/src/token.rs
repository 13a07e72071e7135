//! Join tokens: how a sidecar that has no certificate yet proves whose it may ask for.

use crate::private_file;
use anyhow::{Context, Result, bail};
use aws_lc_rs::{hmac, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};
use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weft_config::identity::SpiffeId;

/// The key's file in the state directory.
const KEY_FILE: &str = "join-token.key";
const KEY_BYTES: usize = 32;
const PREFIX: &str = "weft1";
/// What an operator's token begins with: one is never taken for the other.
const OPERATOR: &str = "weft1op";
/// Longer texts are no tokens of ours and are not even decoded.
const MAX_TOKEN: usize = 4096;

/// Whom a token lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The namespace of the identity.
    pub namespace: String,
    /// The service account of the identity.
    pub service_account: String,
    /// The only workload that may use it; any workload of the service account if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// When it ends, in seconds of Unix time.
    pub expires: u64,
}

impl Claims {
    /// Claims that end `ttl` from now.
    pub fn for_next(
        ttl: Duration,
        namespace: impl Into<String>,
        service_account: impl Into<String>,
        workload: Option<String>,
    ) -> Self {
        let expires = unix_seconds(SystemTime::now()).saturating_add(ttl.as_secs().max(1));
        Self { namespace: namespace.into(), service_account: service_account.into(), workload, expires }
    }
}

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It does not have the form of a token.
    #[error("this is no join token; make one with `weft-control-plane token`")]
    Malformed,
    /// It was not signed by this control plane.
    #[error("the join token was signed by another control plane's key; make one with this one's --state-dir")]
    WrongSignature,
    /// It was good once.
    #[error("the join token expired {0} s ago; make a new one with `weft-control-plane token`")]
    Expired(u64),
}

/// What an operator's token says.
#[derive(Serialize, Deserialize)]
struct Operator {
    /// When it ends, in seconds of Unix time.
    expires: u64,
}

/// Why an operator's token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOperator {
    /// It does not have the form of one.
    #[error("this is no operator's token; make one with `weft-control-plane operator-token`")]
    Malformed,
    /// It was not signed by this control plane.
    #[error(
        "the operator's token was signed by another control plane's key; make one with this one's --state-dir"
    )]
    WrongSignature,
    /// It was good once.
    #[error(
        "the operator's token expired {0} s ago; make a new one with `weft-control-plane operator-token`"
    )]
    Expired(u64),
}

/// The key that tokens are signed with.
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// Opens the key in the state directory; makes one, 0600, if there is none.
    pub fn open_or_create(state_dir: &Path) -> Result<Self> {
        private_file::prepare_directory(state_dir)?;
        let path = state_dir.join(KEY_FILE);
        if let Some(key) = Self::read(&path)? {
            return Ok(key);
        }
        let mut bytes = [0u8; KEY_BYTES];
        rand::fill(&mut bytes).ok().context("the system gives no random numbers")?;
        private_file::create(&path, BASE64.encode(bytes).as_bytes())?;
        // Read back: another process may have made it first, and then that one counts.
        Self::read(&path)?.with_context(|| format!("{} vanished while it was made", path.display()))
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let Some(text) = private_file::read(path)? else { return Ok(None) };
        match BASE64.decode(text.trim_ascii()) {
            Ok(bytes) if bytes.len() == KEY_BYTES => {
                Ok(Some(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))))
            }
            _ => bail!(
                "{} does not hold a join-token key; restore it, or remove it to have a new one made (tokens made \
                 before are then refused)",
                path.display()
            ),
        }
    }

    /// Signs claims. They must name a possible identity.
    pub fn issue(&self, claims: &Claims) -> Result<String> {
        let identity = format!("spiffe://t/ns/{}/sa/{}", claims.namespace, claims.service_account);
        if identity.parse::<SpiffeId>().is_err() {
            bail!(
                "namespace `{}` and service account `{}` make no identity; use letters, digits, `-`, `_` and `.`",
                claims.namespace,
                claims.service_account
            );
        }
        let payload = serde_json::to_vec(claims).context("the claims do not serialise")?;
        let signed = format!("{PREFIX}.{}", BASE64.encode(payload));
        let tag = hmac::sign(&self.0, signed.as_bytes());
        Ok(format!("{signed}.{}", BASE64.encode(tag)))
    }

    /// A token for whoever may change something through the API, for `ttl` from now.
    pub fn issue_operator(&self, ttl: Duration) -> Result<String> {
        let expires = unix_seconds(SystemTime::now()).saturating_add(ttl.as_secs().max(1));
        let payload = serde_json::to_vec(&Operator { expires }).context("the claims do not serialise")?;
        let signed = format!("{OPERATOR}.{}", BASE64.encode(payload));
        let tag = hmac::sign(&self.0, signed.as_bytes());
        Ok(format!("{signed}.{}", BASE64.encode(tag)))
    }

    /// Whether an operator's token is ours and still good.
    pub fn verify_operator(&self, token: &str, now: SystemTime) -> Result<(), InvalidOperator> {
        let payload = self.payload(OPERATOR, token).map_err(|error| match error {
            InvalidToken::WrongSignature => InvalidOperator::WrongSignature,
            InvalidToken::Malformed | InvalidToken::Expired(_) => InvalidOperator::Malformed,
        })?;
        let claims: Operator = serde_json::from_slice(&payload).map_err(|_| InvalidOperator::Malformed)?;
        let now = unix_seconds(now);
        if claims.expires <= now {
            return Err(InvalidOperator::Expired(now - claims.expires));
        }
        Ok(())
    }

    /// What a token claims, if it is ours and still good.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, InvalidToken> {
        let payload = self.payload(PREFIX, token)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| InvalidToken::Malformed)?;
        let now = unix_seconds(now);
        if claims.expires <= now {
            return Err(InvalidToken::Expired(now - claims.expires));
        }
        Ok(claims)
    }

    /// What is signed in a token that begins like this.
    fn payload(&self, prefix: &str, token: &str) -> Result<Vec<u8>, InvalidToken> {
        let token = token.trim();
        if token.len() > MAX_TOKEN {
            return Err(InvalidToken::Malformed);
        }
        let (signed, tag) = token.rsplit_once('.').ok_or(InvalidToken::Malformed)?;
        let payload = signed
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or(InvalidToken::Malformed)?;
        let tag = BASE64.decode(tag).map_err(|_| InvalidToken::Malformed)?;
        // Nothing of the payload is looked at before the signature is known to be ours. The check takes constant time.
        hmac::verify(&self.0, signed.as_bytes(), &tag).map_err(|_| InvalidToken::WrongSignature)?;
        BASE64.decode(payload).map_err(|_| InvalidToken::Malformed)
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> (tempfile::TempDir, TokenKey) {
        let root = tempfile::tempdir().expect("temp dir");
        let key = TokenKey::open_or_create(&root.path().join("state")).expect("key");
        (root, key)
    }

    fn claims() -> Claims {
        Claims::for_next(Duration::from_secs(60), "shop", "cart", Some("cart-0".into()))
    }

    #[test]
    fn a_token_gives_back_what_it_claims() {
        let (_root, key) = key();
        let token = key.issue(&claims()).expect("issued");
        assert!(token.starts_with("weft1."));
        assert_eq!(key.verify(&format!("{token}\n"), SystemTime::now()), Ok(claims()));
    }

    #[test]
    fn the_key_survives_a_restart() {
        let (root, key) = key();
        let token = key.issue(&claims()).expect("issued");
        let again = TokenKey::open_or_create(&root.path().join("state")).expect("key");
        assert!(again.verify(&token, SystemTime::now()).is_ok());
    }

    #[test]
    fn an_expired_token_is_refused() {
        let (_root, key) = key();
        let token = key.issue(&claims()).expect("issued");
        let later = SystemTime::now() + Duration::from_secs(100);
        assert!(matches!(key.verify(&token, later), Err(InvalidToken::Expired(39..=41))));
    }

    #[test]
    fn a_token_of_another_control_plane_is_refused() {
        let (_root, key) = key();
        let (_other_root, other) = self::key();
        let token = other.issue(&claims()).expect("issued");
        assert_eq!(key.verify(&token, SystemTime::now()), Err(InvalidToken::WrongSignature));
    }

    #[test]
    fn no_changed_byte_passes() {
        let (_root, key) = key();
        let token = key.issue(&claims()).expect("issued");
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ascii");
            assert!(key.verify(&changed, SystemTime::now()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let (_root, key) = key();
        for bad in ["", ".", "weft1", "weft1.", "weft1..", "weft2.e30.AAAA", "a.b.c", &"x".repeat(10_000)] {
            assert!(key.verify(bad, SystemTime::now()).is_err(), "{bad:.20}");
        }
    }

    #[test]
    fn an_operators_token_is_good_for_operators_only_and_not_for_ever() {
        let (_root, key) = key();
        let now = SystemTime::now();
        let token = key.issue_operator(Duration::from_secs(60)).expect("issued");
        assert_eq!(key.verify_operator(&format!(" {token}\n"), now), Ok(()));
        assert!(key.verify(&token, now).is_err(), "it lets nobody join");
        let join = key.issue(&claims()).expect("issued");
        assert_eq!(key.verify_operator(&join, now), Err(InvalidOperator::Malformed));
        let renamed = join.replacen("weft1.", "weft1op.", 1);
        assert_eq!(key.verify_operator(&renamed, now), Err(InvalidOperator::WrongSignature));
        let later = now + Duration::from_secs(100);
        assert!(matches!(key.verify_operator(&token, later), Err(InvalidOperator::Expired(39..=41))));
        let (_other_root, other) = self::key();
        assert_eq!(other.verify_operator(&token, now), Err(InvalidOperator::WrongSignature));
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ascii");
            assert!(key.verify_operator(&changed, now).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_name_that_makes_no_identity_is_not_signed() {
        let (_root, key) = key();
        let bad = Claims { namespace: "a/b".into(), ..claims() };
        assert!(key.issue(&bad).is_err());
    }
}
