//! The part of the API that is about the response cache. Purging changes something, so it asks for an operator's token.

use super::Served;
use crate::{
    caching::{CacheStats, PurgeRequest},
    mesh::{Mesh, NotBegun},
    settings,
};
use axum::{
    Json,
    body::{self, Body},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Where purges are asked for: the only thing on this port that is not a GET.
pub(super) const PURGE: &str = "/api/cache/purge";
/// Bytes of a purge.
const BODY_LIMIT: usize = 32 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sidecars get to answer, unless it is said, and at most.
const WAIT: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) async fn stats(State(served): State<Served>) -> Result<Json<CacheStats>, Response> {
    let stats = served.mesh.cache_stats().await;
    stats.map(Json).ok_or_else(|| refuse(StatusCode::TOO_MANY_REQUESTS, "too many ask at once; try again"))
}

pub(super) async fn purge(State(served): State<Served>, headers: HeaderMap, body: Body) -> Response {
    if let Err(why) = allowed(&served.mesh, &headers) {
        served.mesh.metrics.cache_purges.with_label_values(&["refused"]).inc();
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, format!("{why}\n")).into_response();
    }
    let answer = carry_out(&served, body).await;
    if answer.status().is_client_error() {
        served.mesh.metrics.cache_purges.with_label_values(&["refused"]).inc();
    }
    answer
}

/// An operator's token is not asked of whoever only looks.
fn allowed(mesh: &Mesh, headers: &HeaderMap) -> Result<(), String> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match bearer {
        None => Err(
            "purging asks for `Authorization: Bearer TOKEN`; `weft-control-plane operator-token` makes one \
                     from this control plane's --state-dir"
                .to_owned(),
        ),
        Some(token) => {
            mesh.tokens.verify_operator(token, SystemTime::now()).map_err(|error| error.to_string())
        }
    }
}

async fn carry_out(served: &Served, body: Body) -> Response {
    let body = match timeout(BODY_TIMEOUT, body::to_bytes(body, BODY_LIMIT)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "a purge is not as long as that"),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive in time"),
    };
    let request: PurgeRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("this is no purge: {error}")),
    };
    let wait = match request.wait.as_deref().map(settings::duration) {
        None => WAIT,
        Some(Ok(wait)) if wait <= WAIT_MAX => wait,
        Some(Ok(_)) => return refuse(StatusCode::BAD_REQUEST, "wait is 60s at most"),
        Some(Err(why)) => return refuse(StatusCode::BAD_REQUEST, &format!("wait: {why}")),
    };
    let (mesh, stop) = (served.mesh.clone(), served.stop.clone());
    // On its own: a purge that is begun goes on even if whoever asked for it hangs up.
    let done = tokio::spawn(async move {
        let purge = mesh.understand(&request).await?;
        mesh.purge(purge, wait, stop).await
    });
    match done.await {
        Ok(Ok(report)) => {
            let status = match (report.complete, report.asked) {
                (true, _) => StatusCode::OK,
                (false, 0) => StatusCode::SERVICE_UNAVAILABLE,
                (false, _) => StatusCode::GATEWAY_TIMEOUT,
            };
            (status, Json(report)).into_response()
        }
        Ok(Err(NotBegun::Invalid(why))) => refuse(StatusCode::BAD_REQUEST, &why),
        Ok(Err(NotBegun::TooMany)) => {
            refuse(StatusCode::TOO_MANY_REQUESTS, "too many purges are under way; try again")
        }
        Ok(Err(NotBegun::NotWritten(why))) => {
            let why = format!("nothing was purged, because the purge cannot be written down: {why}");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &why)
        }
        Err(_) => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the control plane is stopping; purge again when it is back",
        ),
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}
