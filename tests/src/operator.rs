//! What operators ask of a control plane through its dashboard port, with a token of its state directory.

use crate::{Mesh, raw};
use serde_json::Value;
use std::time::Duration;
use weft_control_plane::token::TokenKey;

/// The key by which the tokens of this mesh are made.
pub fn key(mesh: &Mesh) -> TokenKey {
    TokenKey::open_or_create(mesh.state_dir()).expect("a key")
}

/// Asks for a purge with further fields of the head, each with its line's end. Gives the status and the body.
pub async fn post(mesh: &Mesh, head: &str, body: &str) -> (u16, String) {
    let address = mesh.control_plane().dashboard;
    let request = format!(
        "POST /api/cache/purge HTTP/1.1\r\nhost: {address}\r\n{head}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = raw::exchange(address, request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

/// What the control plane answers to an operator's purge.
pub async fn purge(mesh: &Mesh, what: &Value) -> (u16, Value) {
    let token = key(mesh).issue_operator(Duration::from_secs(60)).expect("a token");
    let (status, body) = post(mesh, &format!("authorization: Bearer {token}\r\n"), &what.to_string()).await;
    let report = serde_json::from_str(&body).unwrap_or(Value::String(body));
    (status, report)
}

/// Purges, which must succeed everywhere. Gives how many answers it was for.
pub async fn purge_everywhere(mesh: &Mesh, what: &Value) -> u64 {
    let (status, report) = purge(mesh, what).await;
    assert_eq!((status, &report["complete"]), (200, &Value::Bool(true)), "{what}: {report}");
    assert_eq!(report["asked"], report["acknowledged"], "{what}");
    report["answers"].as_u64().expect("a number")
}
