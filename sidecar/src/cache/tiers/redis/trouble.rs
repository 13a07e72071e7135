//! Why a Redis server cannot be used, and what to do about it, in words that hold no secret.

use redis::RedisError;
use std::{
    error::Error,
    fmt::{self, Display},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much of what a server says is shown.
const SAID_MAX: usize = 200;

/// What stands in the way.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Policy names a secret, and the sidecar was not told where secrets are.
    NoPlace { secret: Box<str> },
    /// A file of a secret is not there or of no use.
    File { path: PathBuf, why: Box<str> },
    /// There is no connection.
    Unreachable(io::Error),
    /// Something took too long.
    Silent(&'static str),
    /// The handshake failed.
    Tls(rustls::Error),
    /// It is no TLS that the server speaks.
    NoTls(Box<str>),
    /// The system has no certificate authorities to believe.
    NoRoots,
    /// The server does not take user name and password. What it says of that may repeat them: only its code is kept.
    NotLoggedIn { code: Box<str> },
    /// The server does not do what it is asked for.
    Refused { code: Box<str>, said: Box<str> },
    /// The connection ended.
    Closed,
    /// What came is not what a Redis server says.
    Strange(Box<str>),
}

impl Trouble {
    pub(super) fn file(path: &Path, why: impl Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string().into() }
    }

    /// Why a handshake failed.
    pub(super) fn handshake(error: &io::Error) -> Self {
        match tls_error(error) {
            Some(rustls::Error::InvalidMessage(message)) => Self::NoTls(format!("{message:?}").into()),
            Some(error) => Self::Tls(error.clone()),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::NoTls("it closed".into()),
            None => Self::Unreachable(error.kind().into()),
        }
    }

    /// Why the server does not take user name and password.
    pub(super) fn login(error: &RedisError) -> Self {
        match Self::talk(error) {
            Self::Refused { code, .. } => Self::NotLoggedIn { code },
            // It may be what was sent to it.
            Self::Strange(_) => Self::Strange("no answer to a login".into()),
            other => other,
        }
    }

    /// Why an exchange failed that had no secret in it.
    pub(super) fn talk(error: &RedisError) -> Self {
        if let Some(io) = io_error(error) {
            return match tls_error(io) {
                Some(error) => Self::Tls(error.clone()),
                None if io.kind() == io::ErrorKind::TimedOut => Self::Silent("an answer"),
                None => Self::Closed,
            };
        }
        if let Some(code) = error.code() {
            return Self::Refused { code: shown(code), said: shown(error.detail().unwrap_or_default()) };
        }
        if error.is_connection_dropped() || error.is_io_error() {
            return Self::Closed;
        }
        Self::Strange(shown(&error.to_string()))
    }

    /// A word for metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::NoPlace { .. } | Self::File { .. } => "secret",
            Self::Unreachable(_) => "unreachable",
            Self::Silent(_) => "timeout",
            Self::Tls(_) | Self::NoTls(_) | Self::NoRoots => "tls",
            Self::NotLoggedIn { .. } | Self::Refused { .. } => "refused",
            Self::Closed | Self::Strange(_) => "error",
        }
    }

    /// What to do about it.
    pub(super) fn cure(&self) -> &'static str {
        use rustls::{AlertDescription as Alert, CertificateError as Wrong};
        match self {
            Self::NoPlace { .. } => "start the sidecar with --secrets-dir, or WEFT_SECRETS_DIR",
            Self::File { .. } => "lay it there and let the sidecar read it; it is read at every attempt",
            Self::Unreachable(_) => "see that a server listens at `tiers.redis.address`",
            Self::Silent("TLS") => "if the server speaks no TLS, take `tiers.redis.tls` away",
            Self::Silent(_) => "see whether the server works, and is that one",
            Self::NoTls(_) => "take `tiers.redis.tls` away, or give the address of the server's port for TLS",
            Self::NoRoots => "name a secret with a file `ca.crt` in `tiers.redis.tls`, or set SSL_CERT_FILE",
            Self::Tls(rustls::Error::InvalidCertificate(wrong)) => match wrong {
                Wrong::UnknownIssuer => {
                    "lay the certificate of the authority that signed the server's into `ca.crt` of the secret in \
                     `tiers.redis.tls`"
                }
                Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                    "write a name that the server's certificate is for into `tiers.redis.tls.serverName`, if it is \
                     the right server"
                }
                Wrong::Expired
                | Wrong::ExpiredContext { .. }
                | Wrong::NotValidYet
                | Wrong::NotValidYetContext { .. } => "renew the server's certificate, or set the clock",
                _ => "give the server a certificate that can be verified",
            },
            Self::Tls(rustls::Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::HandshakeFailure
                | Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateExpired
                | Alert::AccessDenied,
            )) => {
                "lay a certificate that the server takes into `tls.crt` and `tls.key` of the secret in \
                 `tiers.redis.tls`"
            }
            Self::Tls(_) => "see the server's log",
            Self::NotLoggedIn { code } if **code == *"WRONGPASS" => {
                "lay user name and password that hold there into the secret in `tiers.redis.credentials`; it is read at \
                 every attempt"
            }
            Self::NotLoggedIn { .. } => {
                "give that user a password there; servers before Redis 6 know no user names: take `username` out of \
                 the secret"
            }
            Self::Refused { code, .. } => match &**code {
                "NOAUTH" => "the server wants a password: name a secret in `tiers.redis.credentials`",
                "NOPERM" => {
                    "let this user do there what docs/caching.md lists, with keys that begin with the policy's prefix"
                }
                "READONLY" => "give the address of the server that takes writes",
                "DENIED" => "give the server a password, and name a secret in `tiers.redis.credentials`",
                _ => "see the server's log",
            },
            Self::Closed => {
                "if that port is for TLS, write `tls: {}` into `tiers.redis`; see the server's log"
            }
            Self::Strange(_) => "see that what listens at `tiers.redis.address` is a Redis server",
        }
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace { secret } => write!(f, "there is no directory for the secret {secret}"),
            Self::File { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Unreachable(error) => write!(f, "no connection: {error}"),
            Self::Silent(what) => write!(f, "{what} took too long"),
            Self::Tls(error) => write!(f, "TLS failed: {error}"),
            Self::NoTls(why) => write!(f, "the server does not speak TLS: {why}"),
            Self::NoRoots => write!(f, "the system has no certificate authorities"),
            Self::NotLoggedIn { code } => {
                write!(f, "the server does not take user name and password: {code}")
            }
            Self::Refused { code, said } => write!(f, "the server refuses: {code} {said}"),
            Self::Closed => write!(f, "the server closed the connection"),
            Self::Strange(what) => write!(f, "this is no answer of a Redis server: {what}"),
        }
    }
}

/// Some of what a stranger says, on one line.
fn shown(text: &str) -> Box<str> {
    let seen = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(SAID_MAX).map(seen).collect::<String>().into()
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What the operating system or TLS said, if that is behind it.
fn io_error(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    source.downcast_ref().or_else(|| {
        let inner: &Arc<dyn Error + Send + Sync> = source.downcast_ref()?;
        inner.downcast_ref()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's error reply as the client makes it.
    fn said(line: &str) -> RedisError {
        let reply = format!("-{line}\r\n");
        let value = redis::parse_redis_value(reply.as_bytes()).expect("a reply");
        value.extract_error().expect_err("an error")
    }

    #[test]
    fn what_a_server_says_of_a_login_is_not_repeated() {
        for line in [
            "ERR unknown command 'AUTH', with args beginning with: 'weft' 's3cret'",
            "WRONGPASS invalid username-password pair s3cret",
            "ERR s3cret",
        ] {
            let trouble = Trouble::login(&said(line));
            let text = format!("{trouble} {trouble:?} {}", trouble.cure());
            assert!(!text.contains("s3cret"), "{text}");
            assert_eq!(trouble.label(), "refused");
        }
        let wrong = Trouble::login(&said("WRONGPASS no"));
        assert!(wrong.to_string().contains("WRONGPASS") && wrong.cure().contains("read at every attempt"));
    }

    #[test]
    fn what_it_says_of_anything_else_is_and_leads_to_a_cure() {
        let told = |line: &str| {
            let trouble = Trouble::talk(&said(line));
            format!("{trouble}; {}", trouble.cure())
        };
        assert!(told("NOAUTH Authentication required.").contains("name a secret"));
        let perm = told("NOPERM this user has no permissions to run the 'info' command");
        assert!(perm.contains("'info'") && perm.contains("docs/caching.md"), "{perm}");
        assert!(told("READONLY You can't write").contains("takes writes"));
        let long = told(&format!("ERR \u{1b}[31m{}", "x".repeat(1000)));
        assert!(long.len() < 400 && !long.contains('\u{1b}'), "{long}");
    }

    #[test]
    fn a_certificate_that_is_not_believed_leads_to_a_cure() {
        let cure = |error: rustls::Error| Trouble::handshake(&io::Error::other(error)).cure();
        let certificate = rustls::Error::InvalidCertificate;
        assert!(cure(certificate(rustls::CertificateError::UnknownIssuer)).contains("ca.crt"));
        assert!(cure(certificate(rustls::CertificateError::NotValidForName)).contains("serverName"));
        assert!(cure(certificate(rustls::CertificateError::Expired)).contains("renew"));
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        assert!(cure(alert).contains("tls.key"));
        let no_tls = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(cure(no_tls).contains("take `tiers.redis.tls` away"));
        let gone = Trouble::handshake(&io::ErrorKind::ConnectionReset.into());
        assert_eq!(gone.label(), "unreachable");
    }
}
