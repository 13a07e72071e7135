//! What becomes of one request, found the way a sidecar finds it and said for people.

use super::Question;
use crate::terminal::{Palette, Style, table};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};
use weft_config::{
    identity::ServiceName,
    matching::{Considered, Outcome, RequestView, normalize_path},
    snapshot::{
        Action, AppProtocol, Filters, HeaderChanges, OutboundMode, PathRewrite, Port, Redirect, Rule,
        Service, Snapshot,
    },
};
use weft_control_plane::status::Status;

/// What becomes of a request.
pub(crate) struct Answer {
    considered: Vec<Considered>,
    called: Option<Called>,
    verdict: Verdict,
}

struct Called {
    service: ServiceName,
    port: u16,
    protocol: AppProtocol,
}

/// What a request takes.
pub(crate) struct Taken<'a> {
    pub(crate) service: &'a ServiceName,
    pub(crate) port: u16,
    pub(crate) rule: Option<&'a str>,
    /// True for opaque bytes, about whose requests nothing is decided.
    pub(crate) opaque: bool,
}

enum Verdict {
    /// Nobody in the mesh has this name.
    Outside { allowed: bool },
    /// The service is known, this port of it is not.
    NoSuchPort(Vec<u16>),
    /// Opaque bytes: no request is ever looked at.
    Opaque(Vec<Destination>),
    /// The path cannot be brought into its normal form.
    BadPath(String),
    /// No route is attached: to the service itself.
    Direct(Vec<Destination>),
    /// Routes are attached, none takes it.
    NoRoute,
    /// Forwarded by a rule.
    Forward { rule: Arc<str>, destinations: Vec<Destination>, changes: Vec<String>, timeouts: Vec<String> },
    /// Answered with a redirect by a rule.
    Redirect { rule: Arc<str>, to: String },
}

/// How many endpoints each port of each service has, where a running mesh was asked.
#[derive(Default)]
pub(super) struct Endpoints(Option<HashMap<(String, u16), usize>>);

impl Endpoints {
    /// As a control plane tells it.
    pub(super) fn of(status: &Status) -> Self {
        let mut counts = HashMap::new();
        for service in &status.services {
            for endpoint in &service.endpoints {
                if let Ok(port) = u16::try_from(endpoint.port) {
                    *counts.entry((format!("{}/{}", service.namespace, service.name), port)).or_insert(0) +=
                        1;
                }
            }
        }
        Self(Some(counts))
    }

    fn count(&self, service: &ServiceName, port: u16) -> Option<usize> {
        self.0.as_ref().map(|counts| counts.get(&(service.to_string(), port)).copied().unwrap_or(0))
    }
}

/// One place a request can go to.
struct Destination {
    service: String,
    share: f64,
    endpoints: Option<usize>,
    changes: Vec<String>,
    invalid: Option<Arc<str>>,
}

impl Answer {
    /// Finds it.
    pub(super) fn find(snapshot: &Snapshot, endpoints: &Endpoints, question: &Question) -> Self {
        let mut answer = Self { considered: Vec::new(), called: None, verdict: Verdict::NoRoute };
        let Some(service) = snapshot.host(&question.host, &question.from) else {
            answer.verdict = Verdict::Outside { allowed: snapshot.mesh.outbound == OutboundMode::AllowAny };
            return answer;
        };
        let Some(port) = service.port(question.port) else {
            answer.verdict = Verdict::NoSuchPort(service.ports.iter().map(|p| p.port).collect());
            return answer;
        };
        answer.called =
            Some(Called { service: service.name.clone(), port: port.port, protocol: port.protocol });
        let itself = || vec![Destination::itself(service, port, endpoints)];
        if port.protocol == AppProtocol::Tcp {
            answer.verdict = Verdict::Opaque(itself());
            return answer;
        }
        let path = match normalize_path(&question.path) {
            Ok(path) => path,
            Err(error) => {
                answer.verdict = Verdict::BadPath(error.to_string());
                return answer;
            }
        };
        let view = RequestView {
            method: &question.method,
            path: &path,
            query: question.query.as_deref(),
            headers: &question.headers,
        };
        answer.considered = port.routes.explain(&view);
        answer.verdict = match port.routes.find(&view) {
            None if port.routes.is_empty() => Verdict::Direct(itself()),
            None => Verdict::NoRoute,
            Some(found) => match port.rules.get(found.rule) {
                Some(rule) => by_rule(rule, &path, found.matched_len, endpoints, question),
                None => Verdict::NoRoute,
            },
        };
        answer
    }

    /// True if the request reaches somebody.
    pub(crate) fn is_forwarded(&self) -> bool {
        let valid = |destinations: &[Destination]| destinations.iter().any(|d| d.invalid.is_none());
        match &self.verdict {
            Verdict::Outside { allowed } => *allowed,
            Verdict::Opaque(_) | Verdict::Direct(_) | Verdict::Redirect { .. } => true,
            Verdict::Forward { destinations, .. } => valid(destinations),
            Verdict::NoSuchPort(_) | Verdict::BadPath(_) | Verdict::NoRoute => false,
        }
    }

    /// The port that the request goes to and the rule that it takes there, or none if there are no routes; `None` if
    /// it goes nowhere in the mesh.
    pub(crate) fn taken(&self) -> Option<Taken<'_>> {
        let called = self.called.as_ref()?;
        let (rule, opaque) = match &self.verdict {
            Verdict::Forward { rule, .. } => (Some(&**rule), false),
            Verdict::Direct(_) => (None, false),
            Verdict::Opaque(_) => (None, true),
            _ => return None,
        };
        Some(Taken { service: &called.service, port: called.port, rule, opaque })
    }

    /// For people.
    pub(crate) fn to_text(&self, question: &Question, palette: Palette) -> String {
        let mut text = format!(
            "{} {}{}{}  {}\n",
            palette.paint(Style::Bold, question.method.as_str()),
            format_args!("http://{}:{}", question.host, question.port),
            question.path,
            question.query.as_ref().map(|q| format!("?{q}")).unwrap_or_default(),
            palette.paint(Style::Dim, &format!("from namespace {}", question.from)),
        );
        if let Some(called) = &self.called {
            text.push_str(&format!(
                "service {}, port {} ({})\n",
                called.service,
                called.port,
                protocol(called.protocol)
            ));
        }
        if !self.considered.is_empty() {
            let mut rows = vec![["", "ROUTE", "ASKS FOR", "OUTCOME"].map(str::to_owned).to_vec()];
            for (index, considered) in self.considered.iter().enumerate() {
                let outcome = match &considered.outcome {
                    Outcome::Matched => palette.paint(Style::Good, "taken"),
                    Outcome::Outranked => {
                        palette.paint(Style::Dim, "would fit, but the one above comes first")
                    }
                    Outcome::NotMatched(why) => format!("no: {why}"),
                };
                rows.push(vec![
                    (index + 1).to_string(),
                    considered.route.to_string(),
                    considered.asks.clone(),
                    outcome,
                ]);
            }
            text.push('\n');
            for line in table(&rows, palette).lines() {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text.push('\n');
        text.push_str(&self.verdict_text(question, palette));
        text
    }

    fn verdict_text(&self, question: &Question, palette: Palette) -> String {
        let bad = |text: &str| format!("{} {text}\n", palette.paint(Style::Error, "refused:"));
        match &self.verdict {
            Verdict::Outside { allowed: true } => format!(
                "no service of the mesh has the name `{}`: the call goes to that host itself (MeshPolicy outbound: allowAny)\n",
                question.host
            ),
            Verdict::Outside { allowed: false } => bad(&format!(
                "no service of the mesh has the name `{}`: 502 (MeshPolicy outbound: registryOnly)",
                question.host
            )),
            Verdict::NoSuchPort(known) => {
                let known: Vec<String> = known.iter().map(u16::to_string).collect();
                bad(&format!("the service has no port {}; it has {}", question.port, known.join(", ")))
            }
            Verdict::BadPath(why) => bad(&format!("400, the path `{}` {why}", question.path)),
            Verdict::NoRoute => {
                bad("404, routes are attached to this service and none of them takes the request")
            }
            Verdict::Opaque(to) => format!("opaque TCP: routes are not looked at\n{}", destinations_text(to)),
            Verdict::Direct(to) => format!(
                "no route is attached: the call goes to the service itself\n{}",
                destinations_text(to)
            ),
            Verdict::Redirect { rule, to } => {
                format!("{} answers with a redirect: {to}\n", palette.paint(Style::Bold, rule))
            }
            Verdict::Forward { rule, destinations, changes, timeouts } => {
                let mut text = format!("{} takes it\n", palette.paint(Style::Bold, rule));
                if destinations.is_empty() {
                    text.push_str("  no backend has a weight above 0: 500\n");
                }
                text.push_str(&destinations_text(destinations));
                for line in changes.iter().chain(timeouts) {
                    text.push_str(&format!("  {line}\n"));
                }
                text
            }
        }
    }

    /// For programs.
    pub(crate) fn to_json(&self, question: &Question) -> Value {
        let considered: Vec<Value> = self
            .considered
            .iter()
            .map(|c| {
                let (outcome, reason) = match &c.outcome {
                    Outcome::Matched => ("matched", None),
                    Outcome::Outranked => ("outranked", None),
                    Outcome::NotMatched(why) => ("notMatched", Some(why)),
                };
                json!({ "route": c.route, "asks": c.asks, "outcome": outcome, "reason": reason })
            })
            .collect();
        let list = |destinations: &[Destination]| -> Vec<Value> {
            destinations
                .iter()
                .map(|d| {
                    json!({
                        "service": d.service, "share": d.share, "endpoints": d.endpoints,
                        "changes": d.changes, "invalid": d.invalid,
                    })
                })
                .collect()
        };
        let result = match &self.verdict {
            Verdict::Outside { allowed } => json!({ "kind": "outside", "allowed": allowed }),
            Verdict::NoSuchPort(known) => json!({ "kind": "noSuchPort", "ports": known }),
            Verdict::BadPath(why) => json!({ "kind": "badPath", "reason": why }),
            Verdict::NoRoute => json!({ "kind": "noRoute", "status": 404 }),
            Verdict::Opaque(to) => json!({ "kind": "opaque", "destinations": list(to) }),
            Verdict::Direct(to) => json!({ "kind": "direct", "destinations": list(to) }),
            Verdict::Redirect { rule, to } => json!({ "kind": "redirect", "rule": rule, "to": to }),
            Verdict::Forward { rule, destinations, changes, timeouts } => json!({
                "kind": "forward", "rule": rule, "destinations": list(destinations),
                "changes": changes, "timeouts": timeouts,
            }),
        };
        json!({
            "request": {
                "method": question.method.as_str(), "host": question.host, "port": question.port,
                "path": question.path, "query": question.query, "from": question.from,
            },
            "service": self.called.as_ref().map(|c| c.service.to_string()),
            "considered": considered,
            "result": result,
        })
    }
}

impl Destination {
    fn itself(service: &Service, port: &Port, endpoints: &Endpoints) -> Self {
        Self {
            service: format!("{}:{}", service.name, port.port),
            share: 1.0,
            endpoints: endpoints.count(&service.name, port.port),
            changes: Vec::new(),
            invalid: None,
        }
    }
}

fn by_rule(
    rule: &Rule,
    path: &str,
    matched_len: usize,
    endpoints: &Endpoints,
    question: &Question,
) -> Verdict {
    let backends = match &rule.action {
        Action::Redirect(redirect) => {
            return Verdict::Redirect {
                rule: rule.name.clone(),
                to: redirect_text(redirect, path, matched_len, question),
            };
        }
        Action::Forward(backends) => backends,
    };
    let total = f64::from(backends.total_weight.max(1));
    let destinations = backends
        .list
        .iter()
        .map(|backend| Destination {
            service: format!("{}:{}", backend.service, backend.port),
            share: f64::from(backend.weight) / total,
            endpoints: endpoints.count(&backend.service, backend.port),
            changes: changes(&backend.filters, path, matched_len),
            invalid: backend.invalid.clone(),
        })
        .collect();
    let limit = |name: &str, time: Option<Duration>| match time {
        None => None,
        Some(Duration::ZERO) => Some(format!("{name} timeout: none")),
        Some(time) => Some(format!("{name} timeout: {time:?}")),
    };
    Verdict::Forward {
        rule: rule.name.clone(),
        destinations,
        changes: changes(&rule.filters, path, matched_len),
        timeouts: [
            limit("request", rule.calls.timeouts.request),
            limit("attempt", rule.calls.timeouts.attempt),
        ]
        .into_iter()
        .flatten()
        .collect(),
    }
}

fn destinations_text(destinations: &[Destination]) -> String {
    let mut text = String::new();
    for destination in destinations {
        let share = format!("{:.1}", destination.share * 100.0);
        let share = share.trim_end_matches(".0");
        let what = match (&destination.invalid, destination.endpoints) {
            (Some(why), _) => format!("  (500: {why})"),
            (None, None) => String::new(),
            (None, Some(0)) => "  (no endpoint: 503)".to_owned(),
            (None, Some(1)) => "  (1 endpoint)".to_owned(),
            (None, Some(count)) => format!("  ({count} endpoints)"),
        };
        text.push_str(&format!("  {share:>5} %  {}{what}\n", destination.service));
        for change in &destination.changes {
            text.push_str(&format!("           {change}\n"));
        }
    }
    text
}

fn changes(filters: &Filters, path: &str, matched_len: usize) -> Vec<String> {
    let mut list = Vec::new();
    header_changes("request", &filters.request, &mut list);
    header_changes("response", &filters.response, &mut list);
    if let Some(host) = &filters.host {
        list.push(format!("host becomes {}", String::from_utf8_lossy(host.as_bytes())));
    }
    if let Some(rewrite) = &filters.path {
        list.push(format!("path becomes {}", rewrite.apply(path, matched_len)));
    }
    list
}

fn header_changes(of: &str, changes: &HeaderChanges, list: &mut Vec<String>) {
    let value = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    list.extend(changes.set.iter().map(|(n, v)| format!("{of} header set: {n}: {}", value(v))));
    list.extend(changes.add.iter().map(|(n, v)| format!("{of} header added: {n}: {}", value(v))));
    list.extend(changes.remove.iter().map(|n| format!("{of} header removed: {n}")));
}

fn redirect_text(redirect: &Redirect, path: &str, matched_len: usize, question: &Question) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.host.as_deref().unwrap_or(&question.host);
    // As the Gateway API says: an explicit port, else the new scheme's own, else the one that was called.
    let port = redirect.port.or(match redirect.scheme.as_deref() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => Some(question.port),
    });
    let port = match (scheme, port) {
        ("http", Some(80)) | ("https", Some(443)) | (_, None) => String::new(),
        (_, Some(port)) => format!(":{port}"),
    };
    let path =
        redirect.path.as_ref().map_or_else(|| path.to_owned(), |p: &PathRewrite| p.apply(path, matched_len));
    let query = question.query.as_ref().map(|q| format!("?{q}")).unwrap_or_default();
    format!("{} {scheme}://{host}{port}{path}{query}", redirect.status.as_u16())
}

fn protocol(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Auto => "protocol found out from the first bytes",
        AppProtocol::Http1 => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Tcp => "tcp",
    }
}
