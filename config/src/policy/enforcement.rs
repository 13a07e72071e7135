//! What of an accepted document takes effect only in a later version: said in status, never passed over in silence.

use super::attachment::spec_parts;
use crate::document::authorization_policy::AuthorizationAction;
use crate::document::endpoint_slice::AddressType;
use crate::document::route::{GrpcFilter, GrpcFilterType, HttpFilter, HttpFilterType};
use crate::document::target::TargetKind;
use crate::document::traffic_policy::Algorithm;
use crate::document::{Document, GrpcRoute, HttpRoute, TrafficPolicy};

/// Paths of the fields that nothing is done with yet.
pub(super) fn not_enforced(document: &Document) -> Vec<String> {
    match document {
        Document::HttpRoute(route) => http_route(route),
        Document::GrpcRoute(route) => grpc_route(route),
        Document::TrafficPolicy(policy) => traffic_policy(document, policy),
        Document::CachePolicy(_) => vec!["spec".to_owned()],
        Document::AuthorizationPolicy(policy) if policy.spec.action == AuthorizationAction::Audit => {
            vec!["spec.action".to_owned()]
        }
        Document::Service(service) if service.spec.service_type.as_deref() == Some("ExternalName") => {
            vec!["spec.externalName".to_owned()]
        }
        Document::EndpointSlice(slice) if slice.address_type == AddressType::Fqdn => {
            vec!["addressType".to_owned()]
        }
        _ => Vec::new(),
    }
}

fn http_route(route: &HttpRoute) -> Vec<String> {
    let later = |filters: &[HttpFilter], field: &str, fields: &mut Vec<String>| {
        for (at, filter) in filters.iter().enumerate() {
            match filter.filter_type {
                HttpFilterType::RequestMirror => fields.push(format!("{field}[{at}].requestMirror")),
                HttpFilterType::Cors => fields.push(format!("{field}[{at}].cors")),
                _ => {}
            }
        }
    };
    let mut fields = Vec::new();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{at}]");
        later(&rule.filters, &format!("{field}.filters"), &mut fields);
        for (n, backend) in rule.backend_refs.iter().enumerate() {
            later(&backend.filters, &format!("{field}.backendRefs[{n}].filters"), &mut fields);
        }
        fields.extend(rule.retry.as_ref().map(|_| format!("{field}.retry")));
        fields.extend(rule.session_persistence.as_ref().map(|_| format!("{field}.sessionPersistence")));
    }
    fields
}

fn grpc_route(route: &GrpcRoute) -> Vec<String> {
    let later = |filters: &[GrpcFilter], field: &str, fields: &mut Vec<String>| {
        for (at, filter) in filters.iter().enumerate() {
            if filter.filter_type == GrpcFilterType::RequestMirror {
                fields.push(format!("{field}[{at}].requestMirror"));
            }
        }
    };
    let mut fields = Vec::new();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{at}]");
        later(&rule.filters, &format!("{field}.filters"), &mut fields);
        for (n, backend) in rule.backend_refs.iter().enumerate() {
            later(&backend.filters, &format!("{field}.backendRefs[{n}].filters"), &mut fields);
        }
        fields.extend(rule.session_persistence.as_ref().map(|_| format!("{field}.sessionPersistence")));
    }
    fields
}

/// Of a TrafficPolicy only the balancer of a Service is in effect, and of the balancers these three.
fn traffic_policy(document: &Document, policy: &TrafficPolicy) -> Vec<String> {
    let mut fields = spec_parts(document);
    fields.retain(|field| field != "spec.loadBalancer");
    let Some(balancer) = &policy.spec.load_balancer else { return fields };
    let field = |name: &str| format!("spec.loadBalancer.{name}");
    match balancer.algorithm {
        Algorithm::PeakEwma | Algorithm::LeastRequests | Algorithm::RoundRobin => {}
        Algorithm::Random | Algorithm::RingHash | Algorithm::Maglev => fields.push(field("algorithm")),
    }
    let rest = [
        (!balancer.hash_on.is_empty(), "hashOn"),
        (balancer.ring_points.is_some(), "ringPoints"),
        (balancer.slow_start.is_some(), "slowStart"),
        (balancer.locality.is_some(), "locality"),
        (balancer.subset.is_some(), "subset"),
    ];
    fields.extend(rest.iter().filter(|(set, _)| *set).map(|(_, name)| field(name)));
    for (at, target) in policy.spec.target_refs.iter().enumerate() {
        if target.kind != TargetKind::Service {
            fields.push(format!("spec.targetRefs[{at}]"));
        }
    }
    fields
}
