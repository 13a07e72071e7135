//! What these tests stand on: a service whose answers a test decides, a caller, and a CachePolicy.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use weft_tests::{
    Answer, Body, Client, Scripted, empty, full,
    mesh::NAMESPACE,
    scripted::{Asked, Reply, Seen},
    stage::{Instance, Stage},
};

/// Where the service is called.
pub(crate) const URL: &str = "http://product:8080";

/// A CachePolicy on the Service `product` with these parts, a line each.
pub(crate) fn caching(parts: &[&str]) -> String {
    caching_at("cache", "{ kind: Service, name: product }", parts)
}

/// The same with another name and target.
pub(crate) fn caching_at(name: &str, target: &str, parts: &[&str]) -> String {
    let parts = parts.join("\n  ");
    format!(
        "---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  targetRefs: [{target}]
  {parts}
"
    )
}

/// An answer with these fields.
pub(crate) fn answer(fields: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    with_status(200, fields, body)
}

/// The same with another status.
pub(crate) fn with_status(status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let mut response = Response::new(if body.is_empty() { empty() } else { full(body) });
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        response.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    response
}

/// An answer that may be kept for a minute and says what was asked and in which turn.
pub(crate) fn fresh(asked: &Asked) -> Response<Body> {
    numbered(asked, &[("cache-control", "max-age=60")])
}

/// An answer that says what was asked and in which turn.
pub(crate) fn numbered(asked: &Asked, fields: &[(&str, &str)]) -> Response<Body> {
    answer(fields, format!("{} {}", asked.target, asked.turn))
}

/// Fields of an answer that has been stale for forty seconds when it comes, and with it whatever else it says.
pub(crate) fn stale_by_forty(says: &str) -> Vec<(String, String)> {
    let control = format!("max-age=60, {says}");
    vec![("age".to_owned(), "100".to_owned()), ("cache-control".to_owned(), control)]
}

/// Names and values to be written as fields.
pub(crate) fn as_fields(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// A stage with the service `product` and a caller.
pub(crate) struct Set {
    pub(crate) stage: Stage,
    pub(crate) origin: Seen,
}

impl Set {
    /// With this policy, and an application that follows `script`.
    pub(crate) async fn new<F>(policy: &str, script: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let (app, origin) = Scripted::start(script).await.apart();
        let stage = Stage::set(policy, [Instance::new("product", app)]).await;
        Self { stage, origin }
    }

    /// The same for applications that answer at once.
    pub(crate) async fn at_once(
        policy: &str,
        script: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self::new(policy, move |asked| {
            let reply = script(&asked);
            async { Ok(reply) }
        })
        .await
    }

    pub(crate) fn client(&self) -> &Client {
        &self.stage.client
    }

    /// GET of a path with these fields.
    pub(crate) async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.stage.client.get_with(&format!("{URL}{path}"), fields).await
    }

    /// A request of another method.
    pub(crate) async fn send(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.stage.client.call(request(method, path, fields)).await
    }

    /// A counter of the caller's sidecar.
    pub(crate) async fn counted(&self, family: &str, labels: &[&str]) -> u64 {
        self.stage.caller.metrics().await.sum(family, labels) as u64
    }

    /// Requests that came to the sidecar of the service.
    pub(crate) async fn hops(&self) -> u64 {
        let metrics = self.stage.beside("product").metrics().await;
        metrics.sum("weft_requests_total", &["direction=\"inbound\""]) as u64
    }
}

/// A request without a body.
pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(format!("{URL}{path}"));
    request = request.header("host", "product:8080");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(empty()).unwrap()
}

/// What the caller's sidecar says of its cache: the last member of `Cache-Status`.
pub(crate) fn said(answer: &Answer) -> &str {
    let last = answer.headers.get_all("cache-status").iter().next_back();
    let text = last.map_or("", |value| value.to_str().unwrap());
    text.rsplit(", ").next().unwrap_or(text)
}

#[track_caller]
pub(crate) fn is_hit(answer: &Answer) {
    assert!(said(answer).starts_with("weft; hit; ttl="), "{} {:?}", answer.status, answer.headers);
}

/// It was sent on for this reason, and kept.
#[track_caller]
pub(crate) fn is_kept(answer: &Answer, why: &str) {
    let expected = format!("weft; fwd={why}; ");
    let said = said(answer);
    assert!(
        said.starts_with(&expected) && said.contains("; stored"),
        "{} {:?}",
        answer.status,
        answer.headers
    );
}

/// It was sent on for this reason, and not kept because of that.
#[track_caller]
pub(crate) fn is_not_kept(answer: &Answer, why: &str, detail: &str) {
    let said = said(answer);
    let (first, last) = (format!("weft; fwd={why}"), format!("detail={detail}"));
    assert!(said.starts_with(&first) && said.ends_with(&last), "{} {:?}", answer.status, answer.headers);
    assert!(!said.contains("stored"), "{said}");
}

/// The number behind `ttl=`.
#[track_caller]
pub(crate) fn ttl(answer: &Answer) -> i64 {
    let said = said(answer);
    let ttl = said.split("; ").find_map(|part| part.strip_prefix("ttl="));
    ttl.unwrap_or_else(|| panic!("no ttl in {said:?}")).parse().unwrap()
}
