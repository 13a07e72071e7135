//! Who is calling: the first message of a stream, checked against the client certificate or a join token.

use super::listener::Peer;
use crate::{
    registry::Instance,
    token::{InvalidToken, TokenKey},
};
use std::{sync::Arc, time::SystemTime};
use tonic::{Code, Status};
use weft_config::{identity::SpiffeId, wire};

/// Longer texts are cut off: they are shown to people, and kept per stream.
const MAX_TEXT: usize = 128;

/// A caller that has shown who it is.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The identity that was proven.
    pub(crate) identity: SpiffeId,
    /// The process.
    pub(crate) instance: Instance,
    /// Its program version, its own words.
    pub(crate) version: String,
    /// The list and number of the last purge that it has carried out.
    pub(crate) last_purge: (String, u64),
}

/// Why a stream is not served.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The value of the `reason` label.
    pub(crate) reason: &'static str,
    /// What the caller is told.
    pub(crate) status: Status,
}

pub(crate) fn refuse(code: Code, reason: &'static str, message: impl Into<String>) -> Refused {
    Refused { reason, status: Status::new(code, message) }
}

/// Checks a Hello.
pub(super) fn check(
    hello: &wire::Hello,
    peer: &Peer,
    tokens: &TokenKey,
    trust_domain: &Arc<str>,
    now: SystemTime,
) -> Result<Caller, Refused> {
    let claimed = format!("spiffe://{trust_domain}/ns/{}/sa/{}", hello.namespace, hello.service_account);
    let claimed: SpiffeId = claimed.parse().map_err(|error| {
        refuse(Code::InvalidArgument, "bad_hello", format!("Hello names no identity: {error}"))
    })?;
    if hello.workload.is_empty() || hello.workload.len() > 253 || hello.workload.contains('/') {
        let message = "Hello has to name its workload (--workload), as the Workload document does";
        return Err(refuse(Code::InvalidArgument, "bad_hello", message));
    }
    match &peer.identity {
        Some(proven) if *proven != claimed => {
            let message =
                format!("the client certificate is for {proven}, but the sidecar says it is {claimed}");
            return Err(refuse(Code::PermissionDenied, "wrong_identity", message));
        }
        Some(_) => {}
        None => check_token(hello, tokens, now)?,
    }
    let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect::<String>();
    let instance = Instance {
        namespace: claimed.namespace.clone(),
        workload: hello.workload.as_str().into(),
        id: cut(&hello.instance).into(),
    };
    let last_purge = (cut(&hello.purge_log), hello.purge_number);
    Ok(Caller { identity: claimed, instance, version: cut(&hello.version), last_purge })
}

fn check_token(hello: &wire::Hello, tokens: &TokenKey, now: SystemTime) -> Result<(), Refused> {
    if hello.join_token.is_empty() {
        let message = "neither a client certificate nor a join token was sent; give the sidecar --join-token-file \
                       with a token from `weft-control-plane token`";
        return Err(refuse(Code::Unauthenticated, "no_credentials", message));
    }
    let claims = tokens.verify(&hello.join_token, now).map_err(|error| {
        let reason = match error {
            InvalidToken::Malformed => "malformed_token",
            InvalidToken::WrongSignature => "foreign_token",
            InvalidToken::Expired(_) => "expired_token",
        };
        refuse(Code::Unauthenticated, reason, error.to_string())
    })?;
    if claims.namespace != hello.namespace || claims.service_account != hello.service_account {
        let message = format!(
            "the join token is for service account {}/{}, but the sidecar says it is {}/{}",
            claims.namespace, claims.service_account, hello.namespace, hello.service_account
        );
        return Err(refuse(Code::PermissionDenied, "wrong_identity", message));
    }
    if claims.workload.as_ref().is_some_and(|workload| *workload != hello.workload) {
        let message = format!("the join token is for another workload than {}", hello.workload);
        return Err(refuse(Code::PermissionDenied, "wrong_identity", message));
    }
    Ok(())
}
