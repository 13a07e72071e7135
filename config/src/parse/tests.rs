//! Whole files in, documents and findings out.

use super::*;
use crate::document::Document;
use proptest::prelude::*;

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: product
  namespace: shop
spec:
  parentRefs:
    - { group: \"\", kind: Service, name: product, port: 8080 }
  rules:
    - name: canary
      matches:
        - path: { type: PathPrefix, value: /api }
          headers: [{ name: x-group, value: beta }]
      backendRefs:
        - { name: product-v1, port: 8080, weight: 90 }
        - { name: product-v2, port: 8080, weight: 10 }
      timeouts: { request: 10s, backendRequest: 2s }
";

/// Findings as they are printed, without the file's name.
fn findings(text: &str) -> Vec<String> {
    parse("f", text).diagnostics.iter().map(|d| d.to_string().trim_start_matches("f:").to_owned()).collect()
}

/// The only finding.
fn only(text: &str) -> String {
    let found = findings(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().expect("one")
}

fn workload(spec: &str) -> String {
    format!("apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{ name: a }}\nspec:\n{spec}")
}

fn traffic(spec: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: a }}\nspec:\n  targetRefs: [{{ kind: Service, name: a }}]\n{spec}"
    )
}

fn rule(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: a }}\nspec:\n  parentRefs: [{{ group: '', kind: Service, name: a }}]\n  rules:\n{rule}"
    )
}

#[test]
fn a_good_document_has_its_values_its_defaults_and_its_places() {
    let parsed = parse("routes.yaml", ROUTE);
    assert_eq!(parsed.diagnostics, []);
    let located = &parsed.documents[0];
    let Document::HttpRoute(route) = &located.document else { panic!("another kind") };
    assert_eq!(route.metadata.name, "product");
    let rule = &route.spec.rules[0];
    assert_eq!(rule.backend_refs[1].weight, 10);
    assert_eq!(rule.backend_refs[1].kind, "Service");
    assert_eq!(rule.timeouts.and_then(|t| t.request).map(|t| t.get().as_secs()), Some(10));
    assert!(route.spec.parent_refs[0].is_service());
    assert_eq!(located.source.file.as_ref(), "routes.yaml");
    assert_eq!((located.source.line, located.source.column), (1, 1));
    assert_eq!(located.positions.of("spec.rules[0].backendRefs[1].weight"), (16, 51));
    assert_eq!(located.positions.of("spec.rules[0].backendRefs[1].namespace"), (16, 11));
    assert_eq!(located.positions.of("spec.rules"), (9, 3));
    assert_eq!(located.document.key().to_string(), "HTTPRoute shop/product");
}

#[test]
fn a_document_survives_the_way_over_the_wire() {
    for (kind, text) in crate::reference::EXAMPLES {
        let parsed = parse("example", text);
        let document = &parsed.documents[0].document;
        let back = Document::from_json(kind.as_str(), &document.to_json()).expect("readable");
        assert_eq!(&back, document);
    }
    let error = Document::from_json("Pod", "{}").expect_err("unknown");
    assert!(error.to_string().contains("unknown kind `Pod`"), "{error}");
    let error = Document::from_json("Workload", "{\"spec\":1}").expect_err("unreadable");
    assert!(error.message.contains("Workload"), "{error}");
}

#[test]
fn every_problem_of_a_document_is_told_at_once_with_place_and_cure() {
    let text = ROUTE
        .replace("weight: 90", "weigth: 90")
        .replace("weight: 10", "weight: many")
        .replace("type: PathPrefix", "type: Prefix")
        .replace("request: 10s", "request: 10")
        .replace("name: x-group", "name: 'x group'");
    assert_eq!(
        findings(&text),
        [
            "12:25: HTTPRoute shop/product: spec.rules[0].matches[0].path.type: found the text `Prefix`, expected one of \
             `Exact`, `PathPrefix`, `RegularExpression`; did you mean `PathPrefix`?",
            "13:29: HTTPRoute shop/product: spec.rules[0].matches[0].headers[0].name: found `x group`, expected a header \
             name: letters, digits and !#$%&'*+-.^_`|~",
            "15:43: HTTPRoute shop/product: spec.rules[0].backendRefs[0].weigth: unknown field `weigth`; did you mean \
             `weight`?",
            "16:51: HTTPRoute shop/product: spec.rules[0].backendRefs[1].weight: found the text `many`, expected a whole \
             number",
            "17:28: HTTPRoute shop/product: spec.rules[0].timeouts.request: found the number `10`, expected a duration \
             such as `10s`; write `10s` if seconds are meant",
        ]
    );
    assert!(parse("f", &text).documents.is_empty());
}

#[test]
fn rules_between_fields_are_told_beside_mistyped_fields() {
    let text = rule(
        "    - filters:
        - { type: RequestRedirect, requestRedirect: { hostname: a.example } }
        - { type: URLRewrite, urlRewrite: { hostname: b.example } }
      timeouts: { request: 1s, backendRequest: 2s }
      nam: x
",
    );
    let found = findings(&text).join("\n");
    for expected in
        ["RequestRedirect and URLRewrite together", "at most the request's own timeout", "field `nam`"]
    {
        assert!(found.contains(expected), "{expected} is not in\n{found}");
    }
}

#[test]
fn what_follows_from_a_told_problem_is_not_told_again() {
    let text = rule("    - backendRefs: [{ name: a, port: http }]\n");
    assert_eq!(
        only(&text),
        "7:38: HTTPRoute default/a: spec.rules[0].backendRefs[0].port: found the text `http`, expected a whole number"
    );
}

#[test]
fn missing_fields_come_with_an_example() {
    assert_eq!(
        only(&workload("  ports: [{ appPort: 1 }]\n")),
        "5:11: Workload default/a: spec.ports[0].port: the field `port` is missing; add it, for example `port: 8080`"
    );
    let found = only(&workload("  ports:\n    - port:\n"));
    assert!(found.contains("6:7") && found.contains("the field `port` has no value"), "{found}");
}

#[test]
fn a_key_that_is_there_twice_is_an_error_at_the_second() {
    let found = only(&workload("  service: a\n  ports: [{ port: 1 }]\n  service: b\n"));
    assert_eq!(
        found,
        "7:3: Workload default/a: spec.service: the field `service` is there twice; keep one of the two"
    );
}

#[test]
fn text_is_not_guessed_from_numbers_and_booleans() {
    let found = only(&workload("  env: { PORT: 8080 }\n  command: x\n"));
    assert!(
        found.contains("found the number `8080`, expected a text; put it in quotes: \"8080\""),
        "{found}"
    );
    assert_eq!(findings(&workload("  env: { A: yes, B: '1', C: !!str 2 }\n  command: x\n")), [""; 0]);
    let found = only(&workload("  mesh: yes\n"));
    assert!(found.contains("expected `true` or `false`; write `true`"), "{found}");
    let found = only(&workload("  weight: '5'\n"));
    assert!(found.contains("take the quotes away"), "{found}");
}

#[test]
fn a_field_in_the_wrong_place_is_told_its_place() {
    let found = only(&rule("    - request: 5s\n      backendRefs: [{ name: a, port: 1 }]\n"));
    assert!(found.contains("it belongs into `timeouts`"), "{found}");
}

#[test]
fn one_bad_document_does_not_take_down_the_others() {
    let text = format!(
        "{ROUTE}---\nkind: Workload\nmetadata:\n  name: broken\nspec: [\n---\n{}",
        ROUTE.replace("product", "cart")
    );
    let parsed = parse("f", &text);
    assert_eq!(parsed.documents.len(), 2);
    assert_eq!(parsed.diagnostics.len(), 1);
    let key = parsed.diagnostics[0].document.as_ref().expect("a key").to_string();
    assert_eq!(key, "Workload default/broken");
}

#[test]
fn places_are_those_of_the_file_not_of_the_document() {
    let text = format!("# a comment\n\n---\n{ROUTE}---\n{}", workload("  servce: a\n"));
    let parsed = parse("f", &text);
    assert_eq!(parsed.documents[0].source.line, 4);
    assert_eq!((parsed.diagnostics[0].line, parsed.diagnostics[0].column), (26, 3));
}

#[test]
fn kinds_of_others_are_ignored_with_a_warning_and_misspelt_ones_are_errors() {
    let header =
        |version: &str, kind: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{ name: a }}\n");
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("v1", "ConfigMap"),
        ("v1", "ServiceAccount"),
        ("v1", "Endpoints"),
        ("gateway.networking.k8s.io/v1", "Gateway"),
        ("serving.knative.dev/v1", "Service"),
        ("security.istio.io/v1", "AuthorizationPolicy"),
    ] {
        let parsed = parse("f", &header(version, kind));
        assert_eq!(parsed.diagnostics.len(), 1, "{version} {kind}");
        assert_eq!(parsed.diagnostics[0].severity, Severity::Warning, "{version} {kind}");
    }
    for (version, kind, cure) in [
        ("gateway.networking.k8s.io/v1", "HttpRoute", "did you mean `HTTPRoute`?"),
        (
            "gateway.networking.k8s.io/v1beta1",
            "HTTPRoute",
            "write `apiVersion: gateway.networking.k8s.io/v1`",
        ),
        ("gateway.network.k8s.io/v1", "HTTPRoute", "write `apiVersion: gateway.networking.k8s.io/v1`"),
        ("weft.mesh/v1alpha1", "TraficPolicy", "did you mean `TrafficPolicy`?"),
        ("weft.mesh/v1alpha1", "Gateway", "known are `Workload`, `TrafficPolicy`"),
        ("weft.mesh/v1", "Workload", "write `apiVersion: weft.mesh/v1alpha1`"),
        ("v1", "Workload", "write `apiVersion: weft.mesh/v1alpha1`"),
        ("v1", "Servce", "did you mean `Service`?"),
    ] {
        let parsed = parse("f", &header(version, kind));
        assert_eq!(parsed.diagnostics.len(), 1, "{version} {kind}");
        assert_eq!(parsed.diagnostics[0].severity, Severity::Error, "{version} {kind}");
        assert!(parsed.diagnostics[0].cure.contains(cure), "{}", parsed.diagnostics[0]);
    }
    assert!(only("kind: MeshPolicy\n").contains("add `apiVersion: weft.mesh/v1alpha1`"));
    assert!(only("apiVersion: discovery.k8s.io/v1\n").contains("add it: `EndpointSlice`"));
    assert!(only("[1, 2]\n").contains("must be a map of fields"));
}

#[test]
fn manifests_of_a_real_cluster_are_read() {
    let text = "\
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Service
    metadata:
      name: product
      namespace: shop
      uid: 5d1c
      resourceVersion: '12'
      creationTimestamp: 2026-01-01T00:00:00Z
      managedFields: [{ manager: kubectl, fieldsV1: { 'f:spec': {} } }]
      ownerReferences: []
    spec:
      type: ClusterIP
      clusterIP: 10.96.0.7
      clusterIPs: [10.96.0.7]
      sessionAffinity: None
      internalTrafficPolicy: Cluster
      ipFamilies: [IPv4]
      selector: { app: product }
      ports: [{ name: http, port: 80, targetPort: http, nodePort: 30000, protocol: TCP }]
    status: { loadBalancer: {} }
";
    let parsed = parse("f", text);
    assert_eq!(parsed.diagnostics, []);
    let Document::Service(service) = &parsed.documents[0].document else { panic!("another kind") };
    assert_eq!(service.spec.selector["app"], "product");
    assert_eq!(service.metadata.creation_timestamp.as_deref(), Some("2026-01-01T00:00:00Z"));
    let warned = only(&text.replace("selector:", "selecter:"));
    assert!(warned.contains("warning") && warned.contains("did you mean `selector`?"), "{warned}");
}

#[test]
fn the_gateway_apis_own_rules_hold() {
    for (text, expected) in [
        ("    - matches: [{ path: { value: api } }]\n", "a path that starts with `/`"),
        ("    - matches: [{ path: { value: /a//b } }]\n", "without `//`"),
        (
            "    - matches: [{ path: { value: '/a*[', type: RegularExpression } }]\n",
            "is not a regular expression",
        ),
        (
            "    - matches: [{ headers: [{ name: a, value: b }, { name: A, value: c }] }]\n",
            "the header `A` is there twice",
        ),
        ("    - backendRefs: [{ name: a }]\n", "the field `port` is missing for the Service `a`"),
        ("    - backendRefs: [{ name: a, port: 1, weight: 1000001 }]\n", "a number from 0 to 1000000"),
        ("    - backendRefs: [{ name: a, port: 0 }]\n", "a number from 1 to 65535"),
        (
            "    - filters: [{ type: RequestRedirect, requestRedirect: {} }]\n      backendRefs: [{ name: a, port: 1 }]\n",
            "found backends in a rule that answers with a redirect",
        ),
        (
            "    - filters: [{ type: RequestRedirect, requestRedirect: { statusCode: 200 } }]\n",
            "expected one of `301`, `302`",
        ),
        (
            "    - filters: [{ type: RequestRedirect, requestRedirect: { scheme: ftp } }]\n",
            "expected one of `http`, `https`",
        ),
        (
            "    - filters: [{ type: URLRewrite }]\n",
            "the field `urlRewrite` is missing for the type URLRewrite",
        ),
        (
            "    - filters: [{ type: CORS, cors: { allowOrigins: ['*', 'https://a.b'] } }]\n",
            "found `*` beside others",
        ),
        (
            "    - matches: [{ path: { value: /a, type: Exact } }]\n      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /b } } }]\n",
            "exactly one match",
        ),
        (
            "    - filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: host, value: a }] } }]\n",
            "use URLRewrite's `hostname`",
        ),
        (
            "    - filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: a, port: 1 }, percent: 1, fraction: { numerator: 1 } } }]\n",
            "`percent` and `fraction` together",
        ),
        (
            "    - sessionPersistence: { type: Cookie, cookieConfig: { lifetimeType: Permanent } }\n",
            "`absoluteTimeout` is missing",
        ),
        ("    - retry: { codes: [200] }\n", "a number from 400 to 599"),
        ("    - name: a\n    - name: a\n", "the rule name `a` is there twice"),
        ("    - matches: [{ method: get }]\n", "did you mean `GET`?"),
    ] {
        let found = findings(&rule(text)).join("\n");
        assert!(found.contains(expected), "{expected} is not in\n{found}\nfor\n{text}");
    }
    let many = "    - backendRefs: [{ name: a, port: 1 }]\n".repeat(17);
    assert!(findings(&rule(&many)).join("\n").contains("found 17 items, expected at most 16"));
}

#[test]
fn policies_are_checked_across_their_fields() {
    for (text, expected) in [
        ("  loadBalancer: { algorithm: maglev }\n", "the field `hashOn` is missing"),
        (
            "  loadBalancer: { algorithm: ringHash, hashOn: [{ header: a, cookie: b }] }\n",
            "found `header`, `cookie` together",
        ),
        ("  loadBalancer: { algorithm: ringHash, hashOn: [{}] }\n", "none of `header`, `cookie`"),
        ("  loadBalancer: { algorithm: ringHash, hashOn: [{ source: false }] }\n", "only `true` makes sense"),
        ("  timeouts: { request: 1s, attempt: 2s }\n", "expected at most `request`, which is `1s`"),
        ("  retries: { attempts: 11 }\n", "a number from 0 to 10"),
        ("  retries: { maxBodyBytes: 1GiB }\n", "expected at most 64MiB"),
        ("  circuitBreaker: { openFor: 1m, maxOpenFor: 1s }\n", "expected at most `maxOpenFor`"),
        ("  faults: [{ percent: 101 }]\n", "a number from 0 to 100"),
        ("  faults: [{ percent: 1 }]\n", "the fault does nothing"),
        ("  healthCheck: { http: { path: /a }, tcp: {} }\n", "found `http`, `tcp` together"),
        ("  concurrency: { limit: 1, adaptive: {} }\n", "found `limit` and `adaptive` together"),
        ("  deprecation: { since: 2026-02-01, sunset: 2026-01-01 }\n", "a time not before `since`"),
        ("  deprecation: { since: 2026-02-30 }\n", "expected a date such as"),
        (
            "  sharding: { key: [{ header: a }], shards: [{ service: a, weight: 0 }], withoutKey: b }\n",
            "the service of one of the shards",
        ),
        ("  rateLimits: [{ name: a, requests: 0 }]\n", "a number from 1 to 1000000000"),
    ] {
        let found = findings(&traffic(text)).join("\n");
        assert!(found.contains(expected), "{expected} is not in\n{found}\nfor\n{text}");
    }
    let authorization =
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: a }\nspec:\n";
    for (text, expected) in [
        ("  rules: [{ from: [{ identities: [cart] }] }]\n", "expected an identity"),
        ("  rules: [{ to: [{ methods: [get] }] }]\n", "write `GET`"),
        ("  rules: [{ to: [{ paths: [cart] }] }]\n", "write `/cart`"),
        ("  rules: [{ from: [{ namespaces: [a], authenticated: false }] }]\n", "this never matches"),
        ("  targetRefs: [{ kind: HTTPRoute, name: a }]\n", "expected one of `Service`, `Workload`"),
        ("  action: block\n", "expected one of `allow`, `deny`, `audit`"),
    ] {
        let found = findings(&format!("{authorization}{text}")).join("\n");
        assert!(found.contains(expected), "{expected} is not in\n{found}\nfor\n{text}");
    }
}

#[test]
fn yaml_that_policy_does_not_take_is_told_clearly() {
    for (spec, expected) in [
        ("\tservice: a\n", "indent with spaces"),
        ("  service: @a\n", "in quotes"),
        ("  <<: { service: a }\n", "merge key"),
        ("  ? [a]\n  : b\n", "list or map as the name of a field"),
        ("  service: !secret a\n", "take the tag away"),
        ("  service: *nobody\n", "this is not YAML"),
        ("  service: \"a\n", "this is not YAML"),
        ("  env: &e { A: *e }\n", "alias within what it stands for"),
        ("  service: a\u{0}\n", "control character U+0000"),
    ] {
        let found = findings(&workload(spec)).join("\n");
        assert!(found.contains(expected), "{expected} is not in\n{found}\nfor\n{spec}");
    }
    let parsed = parse_bytes("f", b"apiVersion: v1\nkind: \xff\n");
    assert!(parsed.diagnostics[0].to_string().starts_with("f:2:7: found bytes that are not UTF-8"));
}

#[test]
fn anchors_are_written_out() {
    let text = workload("  service: a\n  ports: &p [{ port: 1 }]\n  env: &e { A: b }\n  command: x\n");
    assert_eq!(findings(&text), [""; 0]);
    let text = traffic(
        "  rateLimits:\n    - { name: a, requests: 1, headers: &h [{ name: x, value: y }] }\n    - { name: b, requests: 1, headers: *h }\n",
    );
    let parsed = parse("f", &text);
    assert_eq!(parsed.diagnostics, []);
    let Document::TrafficPolicy(policy) = &parsed.documents[0].document else { panic!("another kind") };
    assert_eq!(policy.spec.rate_limits[1].headers[0].value, "y");
}

#[test]
fn bombs_are_refused_quickly() {
    let mut bomb = workload("  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let item = format!("*a{}", level - 1);
        bomb.push_str(&format!("  a{level}: &a{level} [{}]\n", vec![item; 10].join(", ")));
    }
    assert!(findings(&bomb).join("\n").contains("aliases counted each time"));
    let text = "x".repeat(MAX_DOCUMENT_BYTES / 2);
    let long = workload(&format!("  service: &a {text}\n  command: [{}]\n", vec!["*a"; 10_000].join(", ")));
    assert!(findings(&long).join("\n").contains("aliases repeat more than"));
    for deep in [
        workload(&format!("  service: {}\n", "[".repeat(100_000))),
        workload(&format!("  service: {}{}\n", "[".repeat(65), "]".repeat(65))),
        workload(&(0..100).map(|i| format!("{}a:\n", " ".repeat(i + 2))).collect::<String>()),
        workload(&format!("  service: {}\n", "- ".repeat(2000))),
    ] {
        let parsed = parse("f", &deep);
        assert!(parsed.documents.is_empty() && !parsed.diagnostics.is_empty());
    }
    let large = workload(&format!("  service: {}\n", "a".repeat(MAX_DOCUMENT_BYTES)));
    assert!(only(&large).contains("split it into several documents"));
}

#[test]
fn names_that_are_near_are_suggested_and_others_are_not() {
    assert_eq!(suggest("weigth", ["weight", "width"]), "did you mean `weight`?");
    assert_eq!(suggest("max_pending", ["maxPending"]), "did you mean `maxPending`?");
    assert_eq!(suggest("timeout", ["timeouts", "retry"]), "did you mean `timeouts`?");
    assert_eq!(suggest("a", ["b"]), "");
    assert_eq!(suggest("colour", ["weight"]), "");
}

/// Every way in which an editor, a merge or a slip of the hand breaks a file.
fn mutation() -> impl Strategy<Value = (usize, usize, String)> {
    let piece = proptest::sample::select(vec![
        "", " ", "\n", "\t", "-", "- ", ":", ": ", "#", "{", "}", "[", "]", "&a ", "*a", "!", "|", ">", "'",
        "\"", "\\", "?", "---\n", "...\n", "%", "@", "null", "1e999", "0x", "spec:", "\u{feff}", "\u{0}",
        "\u{85}", "\r", "ä", "🦀", "<<: *a",
    ]);
    (any::<usize>(), 0usize..8, piece.prop_map(str::to_owned))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_mutation_of_a_good_file_panics_and_every_finding_has_a_place_in_the_file(
        example in 0usize..9,
        mutations in proptest::collection::vec(mutation(), 1..6),
    ) {
        let mut text = crate::reference::EXAMPLES[example].1.to_owned();
        for (at, length, piece) in mutations {
            let floor = |mut at: usize, text: &str| { while !text.is_char_boundary(at) { at -= 1; } at };
            let start = floor(at % (text.len() + 1), &text);
            let end = floor((start + length).min(text.len()), &text).max(start);
            text.replace_range(start..end, &piece);
        }
        let parsed = parse("f", &text);
        let lines = text.split(['\n', '\r', '\u{85}']).count() as u32 + 1;
        for diagnostic in &parsed.diagnostics {
            prop_assert!(diagnostic.line >= 1 && diagnostic.line <= lines, "{diagnostic} of {lines} lines");
            prop_assert!(diagnostic.column >= 1, "{diagnostic}");
            prop_assert!(!diagnostic.render(&text).is_empty());
        }
        for located in &parsed.documents {
            let json = located.document.to_json();
            let back = Document::from_json(located.document.kind().as_str(), &json);
            prop_assert_eq!(back.as_ref(), Ok(&located.document));
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        parse("f", &text);
        parse_bytes("f", &bytes);
    }
}

#[test]
fn a_file_may_hold_thousands_of_documents() {
    let document = |n: usize| ROUTE.replace("name: product\n", &format!("name: product-{n}\n"));
    let text: String = (0..2000).map(|n| format!("---\n{}", document(n))).collect();
    let parsed = parse("f", &text);
    assert_eq!((parsed.documents.len(), parsed.diagnostics.len()), (2000, 0));
    assert_eq!(parsed.documents[1999].source.line, 2 + 1999 * 18);
}

fn redis(fields: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: CachePolicy\nmetadata: {{ name: a }}\nspec:\n  targetRefs: [{{ kind: Service, name: a }}]\n  tiers:\n    redis:\n      {fields}\n"
    )
}

#[test]
fn what_may_be_a_password_in_the_wrong_place_is_not_repeated() {
    let told = [
        ("address: redis://weft:s3cret@redis.shop:6379", "take user name and password out of it"),
        ("address: 's3cret@redis.shop:6379'", "take user name and password out of it"),
        ("{ address: 'a:1', password: s3cret }", "name a secret in `credentials`"),
        ("{ address: 'a:1', credentials: { password: s3cret } }", "known here"),
        ("{ address: 'a:1', credentials: { secret: 's3cret!' } }", "passwords do not belong into policy"),
        ("{ address: 'a:1', credentials: { secret: 53 } }", "not shown here"),
        ("{ address: 'a:1', credentials: { secret: ../s3cret } }", "passwords do not belong into policy"),
        ("{ address: 'a:1', tls: { secret: /etc/s3cret } }", "passwords do not belong into policy"),
    ];
    for (fields, cure) in told {
        let found = findings(&redis(fields)).join("\n");
        assert!(found.contains(cure) && found.contains("spec.tiers.redis"), "{fields}: {found}");
        assert!(!found.contains("s3cret") && !found.contains("`53`"), "{fields}: {found}");
    }
    let good = redis("{ address: 'a:1', credentials: { secret: a }, tls: { secret: b } }");
    assert_eq!(findings(&good), [""; 0]);
}
