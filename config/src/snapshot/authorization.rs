//! Who may call what: AuthorizationPolicies of one workload, compiled, and the decision on one call.

use crate::identity::SpiffeId;
use crate::matching::path::loose;
use http::Method;
use std::sync::Arc;

/// What a refusal names when no rule denied the call but none allowed it either.
pub const NO_ALLOW_RULE: &str = "no allow rule matched";

/// Compiled AuthorizationPolicies of one workload: deny first, then allow, as AuthorizationPolicy's reference says.
#[derive(Clone, Debug, Default)]
pub struct Authorization {
    /// Any match denies.
    pub deny: Vec<AuthorizationRule>,
    /// If there is any allow policy, one rule must match.
    pub allow: Vec<AuthorizationRule>,
    /// True if some allow policy selects this workload, even one without rules (which allows nothing).
    pub has_allow: bool,
    /// Service ports that some allow policy selects, where it does not select the whole workload.
    pub allow_ports: Vec<u16>,
}

/// One rule: all of its parts must match; an empty part matches all.
#[derive(Clone, Debug, Default)]
pub struct AuthorizationRule {
    /// `<namespace>/<policy>#<rule index or name>`.
    pub name: Arc<str>,
    /// The service ports that the policy is attached to, any of.
    pub ports: Vec<u16>,
    /// Callers, any of.
    pub from: Vec<Caller>,
    /// What is called, any of.
    pub to: Vec<Operation>,
}

/// A caller pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Exactly this identity.
    Identity(SpiffeId),
    /// Anyone of this namespace (of the mesh's own trust domain).
    Namespace(Arc<str>),
    /// Anyone who has an identity.
    Authenticated,
    /// Anyone who has none.
    Unauthenticated,
    /// Everyone, with or without.
    Anyone,
}

/// An operation pattern: every non-empty part must match.
#[derive(Clone, Debug, Default)]
pub struct Operation {
    /// Methods, any of.
    pub methods: Vec<Method>,
    /// Paths in normal form, any of.
    pub paths: Vec<PathPattern>,
    /// Service ports, any of.
    pub ports: Vec<u16>,
}

/// A path pattern of an authorization rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// This very path.
    Exact(Arc<str>),
    /// This path and everything below it, by whole segments.
    Prefix(Arc<str>),
}

/// What authorization says of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may pass.
    Allow,
    /// It may not, and this rule (or `no allow rule matched`) says so.
    Deny(Arc<str>),
}

/// What is known of a call.
struct Call<'a> {
    caller: Option<&'a SpiffeId>,
    mesh_trust_domain: &'a str,
    port: u16,
    /// Method, path in normal form, and the path as a lenient application might read it; none of it for opaque bytes.
    http: Option<(&'a Method, &'a str, &'a [u8])>,
}

/// What follows from a match. A path that can be read in two ways is denied if either reading is, and allowed only if
/// both are.
#[derive(Clone, Copy, PartialEq)]
enum Effect {
    Deny,
    Allow,
}

impl Authorization {
    /// Decides on an HTTP request: `path` in normal form, `port` the service's. Deny wins; where an allow policy
    /// applies one of its rules must match; without any everything passes that nothing denies.
    pub fn decide(
        &self,
        caller: Option<&SpiffeId>,
        mesh_trust_domain: &str,
        method: &Method,
        path: &str,
        port: u16,
    ) -> Decision {
        if self.is_empty() {
            return Decision::Allow;
        }
        let read = loose(path);
        self.decide_call(&Call { caller, mesh_trust_domain, port, http: Some((method, path, &read)) })
    }

    /// Decides on an opaque connection: rules that ask for methods or paths match none.
    pub fn decide_connection(
        &self,
        caller: Option<&SpiffeId>,
        mesh_trust_domain: &str,
        port: u16,
    ) -> Decision {
        self.decide_call(&Call { caller, mesh_trust_domain, port, http: None })
    }

    fn is_empty(&self) -> bool {
        self.deny.is_empty() && !self.has_allow && self.allow_ports.is_empty()
    }

    fn decide_call(&self, call: &Call<'_>) -> Decision {
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(call, Effect::Deny)) {
            return Decision::Deny(rule.name.clone());
        }
        let must_be_allowed = self.has_allow || self.allow_ports.contains(&call.port);
        if must_be_allowed && !self.allow.iter().any(|rule| rule.matches(call, Effect::Allow)) {
            return Decision::Deny(NO_ALLOW_RULE.into());
        }
        Decision::Allow
    }
}

/// True if nothing is asked for or something asked for is met.
fn any_of<T>(wanted: &[T], met: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(met)
}

impl AuthorizationRule {
    fn matches(&self, call: &Call<'_>, effect: Effect) -> bool {
        any_of(&self.ports, |port| *port == call.port)
            && any_of(&self.from, |caller| caller.matches(call))
            && any_of(&self.to, |operation| operation.matches(call, effect))
    }
}

impl Caller {
    fn matches(&self, call: &Call<'_>) -> bool {
        match (self, call.caller) {
            (Self::Anyone, _) | (Self::Authenticated, Some(_)) | (Self::Unauthenticated, None) => true,
            (Self::Identity(wanted), Some(caller)) => wanted == caller,
            (Self::Namespace(wanted), Some(caller)) => {
                *wanted == caller.namespace && *caller.trust_domain == *call.mesh_trust_domain
            }
            _ => false,
        }
    }
}

impl Operation {
    fn matches(&self, call: &Call<'_>, effect: Effect) -> bool {
        if !any_of(&self.ports, |port| *port == call.port) {
            return false;
        }
        let Some((method, path, read)) = call.http else {
            return self.methods.is_empty() && self.paths.is_empty();
        };
        any_of(&self.methods, |wanted| wanted == method)
            && any_of(&self.paths, |pattern| {
                let strictly = pattern.matches(pattern.path().as_bytes(), path.as_bytes());
                let loosely = || pattern.matches(&loose(pattern.path()), read);
                match effect {
                    Effect::Deny => strictly || loosely(),
                    Effect::Allow => strictly && loosely(),
                }
            })
    }
}

impl PathPattern {
    fn path(&self) -> &str {
        match self {
            Self::Exact(path) | Self::Prefix(path) => path,
        }
    }

    /// Compares two paths that were read in the same way, by the kind of this pattern.
    fn matches(&self, wanted: &[u8], path: &[u8]) -> bool {
        match self {
            Self::Exact(_) => wanted == path,
            Self::Prefix(_) => {
                let wanted = wanted.strip_suffix(b"/").unwrap_or(wanted);
                path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn id(text: &str) -> SpiffeId {
        text.parse().expect("an identity")
    }

    fn rule(name: &str, from: Vec<Caller>, to: Vec<Operation>) -> AuthorizationRule {
        AuthorizationRule { name: name.into(), ports: vec![], from, to }
    }

    fn paths(patterns: &[&str]) -> Vec<Operation> {
        let pattern = |text: &&str| match text.strip_suffix("/*") {
            Some(prefix) => PathPattern::Prefix(prefix.into()),
            None => PathPattern::Exact((*text).into()),
        };
        vec![Operation { paths: patterns.iter().map(pattern).collect(), ..Operation::default() }]
    }

    fn allows(authorization: &Authorization, caller: Option<&str>, request: &str, port: u16) -> bool {
        let (method, path) = request.split_once(' ').expect("method and path");
        let caller = caller.map(id);
        let method: Method = method.parse().expect("a method");
        authorization.decide(caller.as_ref(), "weft.local", &method, path, port) == Decision::Allow
    }

    const CART: Option<&str> = Some("spiffe://weft.local/ns/shop/sa/cart");
    const USER: Option<&str> = Some("spiffe://weft.local/ns/shop/sa/user");
    const STRANGER: Option<&str> = Some("spiffe://weft.local/ns/other/sa/cart");
    const FOREIGN: Option<&str> = Some("spiffe://else.where/ns/shop/sa/cart");

    #[test]
    fn without_policies_everything_passes() {
        assert!(allows(&Authorization::default(), None, "GET /", 80));
    }

    #[test]
    fn an_allow_policy_without_rules_allows_nothing() {
        let closed = Authorization { has_allow: true, ..Authorization::default() };
        let decision = closed.decide(None, "weft.local", &Method::GET, "/", 80);
        assert_eq!(decision, Decision::Deny(NO_ALLOW_RULE.into()));
    }

    #[test]
    fn a_rule_without_parts_matches_everything() {
        let open =
            Authorization { allow: vec![rule("a", vec![], vec![])], has_allow: true, ..Default::default() };
        assert!(allows(&open, None, "GET /", 80));
    }

    #[test]
    fn deny_wins_over_allow_and_names_its_rule() {
        let both = Authorization {
            deny: vec![rule("shop/no-cart#0", vec![Caller::Identity(id(CART.expect("set")))], vec![])],
            allow: vec![rule("shop/all#0", vec![], vec![])],
            has_allow: true,
            allow_ports: vec![],
        };
        assert!(!allows(&both, CART, "GET /", 80));
        assert!(allows(&both, USER, "GET /", 80));
        let decision = both.decide(Some(&id(CART.expect("set"))), "weft.local", &Method::GET, "/", 80);
        assert_eq!(decision, Decision::Deny("shop/no-cart#0".into()));
    }

    #[rstest]
    #[case::identity(Caller::Identity(id("spiffe://weft.local/ns/shop/sa/cart")), [true, false, false, false, false])]
    #[case::namespace(Caller::Namespace("shop".into()), [true, true, false, false, false])]
    #[case::authenticated(Caller::Authenticated, [true, true, true, true, false])]
    #[case::unauthenticated(Caller::Unauthenticated, [false, false, false, false, true])]
    #[case::anyone(Caller::Anyone, [true; 5])]
    fn callers_are_told_by_their_identity(#[case] caller: Caller, #[case] allowed: [bool; 5]) {
        let policy = Authorization {
            allow: vec![rule("a", vec![caller], vec![])],
            has_allow: true,
            ..Default::default()
        };
        assert_eq!(
            [CART, USER, STRANGER, FOREIGN, None].map(|who| allows(&policy, who, "GET /", 80)),
            allowed
        );
    }

    #[test]
    fn every_part_of_an_operation_must_match() {
        let to = vec![Operation {
            methods: vec![Method::GET, Method::HEAD],
            paths: vec![PathPattern::Prefix("/a".into())],
            ports: vec![80],
        }];
        let policy =
            Authorization { allow: vec![rule("a", vec![], to)], has_allow: true, ..Default::default() };
        assert!(allows(&policy, None, "HEAD /a/b", 80));
        assert!(!allows(&policy, None, "POST /a/b", 80));
        assert!(!allows(&policy, None, "GET /ab", 80));
        assert!(!allows(&policy, None, "GET /a/b", 81));
    }

    #[rstest]
    #[case("/admin", true)]
    #[case("/admin/x", true)]
    #[case("/admin/", true)]
    #[case("/administrator", false)]
    #[case("/Admin", false)]
    // What some servers read as /admin/...
    #[case("/admin%2Fx", true)]
    #[case("/admin;v=1/x", true)]
    #[case("/public/..;/admin", true)]
    #[case("/%2Fadmin", true)]
    #[case("/admin%5Cx", true)]
    #[case("/admin%3B/x", true)]
    fn a_denied_path_is_denied_in_every_reading(#[case] path: &str, #[case] denied: bool) {
        let policy =
            Authorization { deny: vec![rule("d", vec![], paths(&["/admin/*"]))], ..Default::default() };
        assert_eq!(!allows(&policy, None, &format!("GET {path}"), 80), denied);
    }

    #[rstest]
    #[case("/public/a", true)]
    #[case("/public/a%20b", true)]
    #[case("/public/..;/admin", false)]
    #[case("/public;x/a", false)]
    #[case("/pub%6Cic", false)]
    fn an_allowed_path_is_allowed_only_in_every_reading(#[case] path: &str, #[case] allowed: bool) {
        let policy = Authorization {
            allow: vec![rule("a", vec![], paths(&["/public/*"]))],
            has_allow: true,
            ..Default::default()
        };
        assert_eq!(allows(&policy, None, &format!("GET {path}"), 80), allowed);
    }

    #[test]
    fn an_exact_path_is_that_path_only_and_the_root_prefix_is_all() {
        let policy = |pattern: &str| Authorization {
            allow: vec![rule("a", vec![], paths(&[pattern]))],
            has_allow: true,
            ..Default::default()
        };
        assert!(allows(&policy("/a"), None, "GET /a", 80));
        assert!(!allows(&policy("/a"), None, "GET /a/", 80));
        assert!(allows(&policy("/*"), None, "GET /x/y", 80));
    }

    #[test]
    fn a_policy_on_one_port_leaves_the_others_alone() {
        let mut only = rule("a", vec![Caller::Identity(id(CART.expect("set")))], vec![]);
        only.ports = vec![8080];
        let policy = Authorization { allow: vec![only], allow_ports: vec![8080], ..Default::default() };
        assert!(allows(&policy, CART, "GET /", 8080));
        assert!(!allows(&policy, USER, "GET /", 8080));
        assert!(allows(&policy, USER, "GET /", 9090));
    }

    #[test]
    fn opaque_connections_are_judged_by_caller_and_port_alone() {
        let cart = id(CART.expect("set"));
        let mut policy =
            Authorization { deny: vec![rule("d", vec![], paths(&["/*"]))], ..Default::default() };
        assert_eq!(policy.decide_connection(Some(&cart), "weft.local", 5432), Decision::Allow);
        policy.allow = vec![rule("a", vec![], paths(&["/*"]))];
        policy.has_allow = true;
        assert_ne!(policy.decide_connection(Some(&cart), "weft.local", 5432), Decision::Allow);
        policy.allow = vec![rule("a", vec![Caller::Namespace("shop".into())], vec![])];
        assert_eq!(policy.decide_connection(Some(&cart), "weft.local", 5432), Decision::Allow);
        assert_ne!(policy.decide_connection(None, "weft.local", 5432), Decision::Allow);
    }
}
