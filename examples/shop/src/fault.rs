//! What a service answers when it cannot do what it was asked.

use crate::client::CallError;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

/// A status and one sentence, as JSON.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    status: StatusCode,
    message: String,
}

/// A fault as it travels.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct FaultBody {
    /// What happened and what to do.
    pub(crate) error: String,
}

impl Fault {
    /// A fault with this status.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// There is no such thing.
    pub(crate) fn not_found(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what} `{name}`"))
    }

    /// The request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        let status = match error {
            CallError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        (self.status, Json(FaultBody { error: self.message })).into_response()
    }
}
