//! Fuzz targets: what reads bytes of others, with what must hold whatever they are.
//!
//! Each is a function of bytes that panics where something does not hold. `cargo test` gives them some thousands of
//! mutated seeds, always the same; `tests/fuzz` gives them to libFuzzer for as long as one likes. Where a target looks
//! into a module, it stands beside that module.

use crate::{
    cache, http1, http2,
    message::split_authority,
    notable::Notable,
    policy as subscribed,
    telemetry::trace::{RequestId, Trace},
    tls::{self, Sniffed, client_hello},
    traffic::{deadline, session},
    upstream::{health, retry_after},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::{Duration, Instant, UNIX_EPOCH};
use weft_config::{
    compile, parse,
    policy::Policy,
    snapshot::{Session, cookie},
};

pub(crate) mod connection;
mod names;
#[cfg(test)]
mod tests;

/// One target.
pub struct Target {
    /// What libFuzzer calls it.
    pub name: &'static str,
    /// Panics if something does not hold for these bytes.
    pub run: fn(&[u8]),
    /// Where mutation starts.
    pub seeds: &'static [&'static [u8]],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "cache_directives", run: cache::fuzz::directives, seeds: cache::fuzz::DIRECTIVES },
    Target { name: "cache_date", run: cache::fuzz::date, seeds: cache::fuzz::DATES },
    Target { name: "cache_structured", run: cache::fuzz::structured, seeds: cache::fuzz::DICTIONARIES },
    Target { name: "cache_vary", run: cache::fuzz::vary, seeds: cache::fuzz::VARIANTS },
    Target { name: "cache_range", run: cache::fuzz::range, seeds: cache::fuzz::RANGES },
    Target { name: "cache_conditional", run: cache::fuzz::conditional, seeds: cache::fuzz::CONDITIONS },
    Target { name: "cache_storing", run: cache::fuzz::storing, seeds: cache::fuzz::ANSWERS },
    Target { name: "cache_invalidation", run: cache::fuzz::invalidation, seeds: cache::fuzz::CHANGES },
    Target { name: "cache_key", run: cache::fuzz::key, seeds: cache::fuzz::KEYS },
    Target { name: "cache_packed", run: cache::fuzz::packed, seeds: cache::fuzz::PACKED },
    Target { name: "cache_directory", run: cache::fuzz::directory, seeds: cache::fuzz::DIRECTORIES },
    Target { name: "cache_journal", run: cache::fuzz::journal, seeds: cache::fuzz::JOURNALS },
    Target { name: "cache_purge", run: cache::fuzz::purge, seeds: cache::fuzz::PURGES },
    Target { name: "cache_ask", run: cache::fuzz::ask, seeds: cache::fuzz::ASKS },
    Target { name: "http1_request", run: http1::fuzz::request, seeds: http1::fuzz::REQUESTS },
    Target { name: "http1_response", run: http1::fuzz::response, seeds: http1::fuzz::RESPONSES },
    Target { name: "http1_chunked", run: http1::fuzz::chunked, seeds: http1::fuzz::CHUNKED },
    Target { name: "http1_case", run: http1::fuzz::case, seeds: http1::fuzz::CASES },
    Target { name: "http1_connection", run: http1::fuzz::connection, seeds: http1::fuzz::CONNECTIONS },
    Target { name: "http2_request", run: http2::fuzz::request, seeds: http2::fuzz::REQUESTS },
    Target { name: "http2_connection", run: http2::fuzz::connection, seeds: http2::fuzz::CONNECTIONS },
    Target { name: "client_hello", run: hello, seeds: HELLOS },
    Target { name: "certificate", run: tls::fuzz::certificate, seeds: tls::fuzz::CERTIFICATES },
    Target { name: "trace", run: trace, seeds: TRACES },
    Target { name: "deadline", run: times, seeds: TIMES },
    Target { name: "session", run: sessions, seeds: SESSIONS },
    Target { name: "health_answer", run: health::fuzz::answer, seeds: health::fuzz::ANSWERS },
    Target { name: "authority", run: authority, seeds: AUTHORITIES },
    Target { name: "path", run: names::path, seeds: names::PATHS },
    Target { name: "host", run: names::host, seeds: names::HOSTS },
    Target { name: "update", run: subscribed::fuzz::update, seeds: subscribed::fuzz::UPDATES },
    Target { name: "policy", run: policy, seeds: POLICIES },
];

/// Fields out of lines `name: value`; what is none is passed over.
pub(crate) fn fields(text: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            // A map that is full takes no more.
            let _ = headers.try_append(name, value);
        }
    }
    headers
}

/// As if everything might be there: looking for it in vain changes nothing.
pub(crate) fn anything() -> Notable {
    let groups = [
        Notable::HOP,
        Notable::FRAMING,
        Notable::EXPECT,
        Notable::TYPE,
        Notable::OWN,
        Notable::TRACE,
        Notable::REQUEST_ID,
        Notable::TIME,
        Notable::CONDITION,
        Notable::RANGE,
        Notable::CACHE,
        Notable::MADE_UP,
    ];
    groups.into_iter().fold(Notable::default(), |all, group| all | group)
}

/// What stands before and after the first empty line.
pub(crate) fn halves(text: &[u8]) -> (&[u8], &[u8]) {
    match text.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => (text, &[]),
    }
}

/// The first line, and what follows it.
pub(crate) fn first_line(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

const HELLOS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x00\x00",
    // One that offers `weft/1over2` and asks for `a.weft`.
    b"\x16\x03\x01\x00\x5c\x01\x00\x00\x58\x03\x03\
      0123456789abcdef0123456789abcdef\x00\x00\x02\x13\x01\x01\x00\x00\x2d\
      \x00\x00\x00\x0b\x00\x09\x00\x00\x06a.weft\x00\x10\x00\x11\x00\x0f\x02h2\x0bweft/1over2\x00\x2b\x00\x05\x04\x03\x04\x03\x03",
    // The same kind in two records.
    b"\x16\x03\x01\x00\x02\x01\x00\x16\x03\x03\x00\x05\x00\x26\x03\x03x",
];

/// Once it is told what a connection is, further bytes change nothing.
fn hello(bytes: &[u8]) {
    let whole = client_hello(bytes);
    // Every prefix of a short one; of a long one some.
    let step = bytes.len() / 64 + 1;
    for end in (0..bytes.len()).step_by(step) {
        let early = client_hello(&bytes[..end]);
        assert!(
            early == Sniffed::Incomplete || early == whole,
            "{early:?} after {end} bytes, then {whole:?}"
        );
    }
    if let Sniffed::Foreign { sni: Some(name), .. } = &whole {
        assert!(!name.is_empty() && name.len() <= 253 && !name.bytes().any(|b| b.is_ascii_uppercase()));
    }
}

const TRACES: &[&[u8]] = &[
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate: a=1,b@c=2",
    b"traceparent: cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more\nx-request-id: abc",
    b"b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90",
    b"b3: d\ntracestate: x=y",
    b"x-b3-traceid: 64fe8b2a57d3eff7\nx-b3-spanid: e457b5a2e4d86bd1\nx-b3-sampled: 1\nx-b3-flags: 1",
    b"x-b3-traceid: 80f198ee56343ba864fe8b2a57d3eff7\nx-b3-spanid: e457b5a2e4d86bd1\nx-b3-sampled: false",
];

/// What a hop writes, the next one reads as the same trace, whatever came before.
fn trace(bytes: &[u8]) {
    let mut headers = fields(bytes);
    let here = Trace::from_headers(&headers, Notable::of(&headers), 0.5);
    assert!(here.trace_id != 0 && here.span_id != 0);
    let also = Trace::from_headers(&headers, anything(), 0.5);
    assert_eq!(also.parent_span, here.parent_span, "nothing is overlooked");
    assert!(here.parent_span == 0 || also.trace_id == here.trace_id);
    here.write(&mut headers);
    let next = Trace::from_headers(&headers, Notable::of(&headers), 0.5);
    assert_eq!((next.trace_id, next.parent_span), (here.trace_id, here.span_id));
    assert_eq!(next.sampled, here.sampled, "the decision is made once");
    let state = headers.get_all("tracestate").iter().map(HeaderValue::len).sum::<usize>();
    assert!(state <= 512, "a tracestate of {state} bytes is passed on");
    assert_eq!(headers.get_all("traceparent").iter().count(), 1);

    let came = RequestId::read(&headers);
    assert!(came.is_none() || Notable::of(&headers).has(Notable::REQUEST_ID));
    let id = came.unwrap_or_else(RequestId::random);
    assert!((1..=128).contains(&id.as_str().len()) && id.as_str().bytes().all(|b| b.is_ascii_graphic()));
    id.write(&mut headers);
    assert_eq!(RequestId::read(&headers), Some(id), "a request keeps its ID");
}

const TIMES: &[&[u8]] = &[
    b"grpc-timeout: 100m\nweft-timeout: 250",
    b"grpc-timeout: 99999999H\nx-envoy-expected-rq-timeout-ms: 15000",
    b"x-envoy-upstream-rq-timeout-ms: 0\nweft-timeout: 18446744073709551615",
    b"grpc-timeout: 1S\ngrpc-timeout: 2u",
    b"retry-after: Sunday, 06-Nov-94 08:49:37 GMT",
    b"retry-after: 99999999999999999999",
];

/// Time that is passed on never grows.
fn times(bytes: &[u8]) {
    let now = Instant::now();
    for grpc in [false, true] {
        let mut headers = fields(bytes);
        let told = deadline::read(&headers, Notable::of(&headers), grpc, now);
        assert_eq!(told, deadline::read(&headers, anything(), grpc, now), "nothing is overlooked");
        let later = now + Duration::from_millis(7);
        told.pass_on(&mut headers, told.deadline, later);
        let next = deadline::read(&headers, Notable::of(&headers), grpc, later);
        if let Some(at) = told.deadline.instant() {
            let passed = next.deadline.instant();
            // Envoy's fields cannot say that there is no time left.
            let limit = at.max(later) + Duration::from_millis(1);
            assert!(passed.is_some_and(|passed| passed <= limit), "{at:?} became {passed:?}");
        }
        let own =
            deadline::read_from_sidecar(&headers, Notable::of(&headers), grpc, later).deadline.instant();
        assert_eq!(own.is_some(), told.deadline.instant().is_some());
    }
    let wait = fields(bytes).get(header::RETRY_AFTER).map(|value| value.to_str().map(str::to_owned));
    if let Some(Ok(wait)) = wait {
        let early = retry_after(&wait, UNIX_EPOCH);
        let late = retry_after(&wait, UNIX_EPOCH + Duration::from_secs(9));
        assert_eq!(early.is_some(), late.is_some());
        assert!(late <= early, "waiting makes no wait longer");
    }
}

const SESSIONS: &[&[u8]] = &[
    b"\x00\x00cookie: a=b; session=\"x\"; c=d",
    b"\x01\x20x-session: AAAA\ncookie: session=1",
    b"\x02\xffcookie: session\ncookie: session = x ;session=y",
];

/// Who was given a token is known by it, whatever else is sent along, and by no other.
fn sessions(bytes: &[u8]) {
    const NOW: u64 = 1_900_000_000;
    let [kind, damage, rest @ ..] = bytes else { return };
    let session = Session {
        name: if kind & 1 == 0 { "session" } else { "x-session" }.into(),
        in_header: kind & 1 == 1,
        absolute_timeout: (kind & 2 != 0).then_some(Duration::from_secs(3600)),
        idle_timeout: (kind & 4 != 0).then_some(Duration::from_secs(60)),
        permanent: kind & 8 != 0,
        path: String::from_utf8_lossy(&rest[..rest.len().min(12)]).into(),
    };
    let mut request = fields(rest);
    // None can be made up by chance: it has a checksum.
    assert_eq!(session::read(&session, &request, NOW), None);
    let number = rest.iter().fold(u64::from(*damage), |all, byte| all.rotate_left(5) ^ u64::from(*byte));
    let mut answer = HeaderMap::new();
    session::write(&session, None, number, !number, NOW, &mut answer);
    let token = if session.in_header {
        answer.get("x-session").cloned()
    } else {
        let set: HeaderMap =
            answer.get_all(header::SET_COOKIE).iter().map(|value| (header::COOKIE, value.clone())).collect();
        cookie(&set, "session").and_then(|token| HeaderValue::from_str(token).ok())
    };
    let Some(token) = token else { panic!("no token in {answer:?}") };
    let mut send = |token: &[u8]| {
        let told = if session.in_header { token.to_vec() } else { [b"a=b; session=", token].concat() };
        let name = if session.in_header { HeaderName::from_static("x-session") } else { header::COOKIE };
        request.insert(name, HeaderValue::from_bytes(&told).ok()?);
        session::read(&session, &request, NOW)
    };
    let pinned = send(token.as_bytes());
    assert_eq!(pinned.map(|pinned| (pinned.backend, pinned.endpoint)), Some((number, !number)));
    let mut damaged = token.as_bytes().to_vec();
    let at = usize::from(*damage) % damaged.len();
    damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
    assert_eq!(send(&damaged), None, "damage is told");
}

const AUTHORITIES: &[&[u8]] =
    &[b"product:8080", b"[::1]:80", b"[::1]", b"a.b.c", b"a:b:1", b"", b"user@host:1", b"a:99999"];

/// Taking an authority apart loses nothing of it.
fn authority(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match split_authority(text) {
        Some((host, None)) => assert_eq!(host, text),
        Some((host, Some(port))) => {
            let rest = &text[host.len()..];
            assert_eq!(rest.strip_prefix(':').and_then(|rest| rest.parse().ok()), Some(port));
        }
        None => assert!(text.contains(':')),
    }
    let mut head = b"CONNECT ".to_vec();
    head.extend_from_slice(bytes);
    head.extend_from_slice(b" HTTP/1.1\r\n\r\n");
    if let Ok(authority) = crate::connect_request::parse(&head) {
        assert!(authority.port_u16().is_some() && !authority.host().is_empty());
        assert!(!authority.as_str().contains('@'), "nobody has a name and a password here");
    }
}

const POLICIES: &[&[u8]] = &[
    b"apiVersion: weft.mesh/v1alpha1\nkind: CachePolicy\nmetadata: { name: a, namespace: b }\nspec:\n  targetRefs: [{ kind: Service, name: c }]\n  where: both\n  key: { query: { exclude: [utm_source], ignoreOrder: true }, headers: [x-a], cookies: [c], identity: true }\n  ttl: { default: 1m, max: 1h, overrides: [{ statuses: [404], paths: [/a/*], ttl: 1s, force: true }] }\n  stale: { whileRevalidate: 1s, ifError: 1h }\n  limits: { maxObjectBytes: 1MiB, maxBytes: 64MiB, maxVariants: 3 }\n  setCookie: strip\n  post: true\n  grpc: [{ service: a.B, method: C, ttl: 5s }]\n  tags: { header: cache-tag }\n  coalescing: { enabled: false, maxWait: 1s }\n  tiers: { siblings: {}, redis: { address: 'r:6379', credentials: { secret: s }, tls: { secret: t, serverName: r.s } }, disk: { maxBytes: 1GiB } }\n",
    b"apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: a, namespace: b }\nspec:\n  parentRefs: [{ group: \"\", kind: Service, name: c }]\n  rules:\n    - matches: [{ path: { type: RegularExpression, value: '/a(b|c)+' }, headers: [{ name: x, value: y }] }]\n      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]\n      timeouts: { request: 1s }\n      backendRefs: [{ name: c, port: 80, weight: 3 }, { name: d, port: 80 }]\n",
    b"apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: { name: c, namespace: b, labels: { app: c } }\nspec:\n  service: c\n  serviceAccount: c\n  ports: [{ port: 80, appProtocol: http }]\n---\napiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: { name: t, namespace: b }\nspec:\n  targetRefs: [{ kind: Service, name: c }]\n  rateLimits: [{ name: all, requests: 3, per: 1h, key: [{ header: x }] }]\n  retries: { attempts: 2 }\n",
    b"apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: a, namespace: b }\nspec:\n  targetRefs: [{ kind: Service, name: c }]\n  action: ALLOW\n  rules: [{ from: [{ identities: [b/x] }], to: [{ methods: [GET], paths: [/a/*] }] }]\n",
    b"apiVersion: weft.mesh/v1alpha1\nkind: MeshPolicy\nmetadata: { name: mesh }\nspec: { mtls: permissive }\n---\n- &a [*a, {? b : c}]\n--- |\n text\n...\n",
];

/// What is in force compiles, findings have a place, and reading the same again changes nothing.
fn policy(bytes: &[u8]) {
    let parsed = parse::parse_bytes("a.yaml", bytes);
    // YAML ends lines with either.
    let ends = bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
    let lines = u32::try_from(ends).unwrap_or(u32::MAX);
    for found in &parsed.diagnostics {
        // What is missing at the very end may stand on the line behind it.
        assert!((1..=lines + 2).contains(&found.line) && found.column >= 1, "{found}");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut policy = Policy::new("cluster.local");
    policy.replace_file("a.yaml", text);
    let version = policy.version();
    let again = policy.replace_file("a.yaml", &format!("{text}\n"));
    assert_eq!((policy.version(), again.changed), (version, Vec::new()), "the same documents are no change");
    let mesh = policy.mesh();
    for name in policy.resource_names() {
        let Some((_, documents)) = policy.resource(name) else { panic!("{name} has no documents") };
        let compiles = match name.split_once('/') {
            Some(("workload", workload)) => compile::workload(workload, &documents, &mesh).map(drop),
            Some(("service", service)) => {
                let endpoints = weft_config::wire::Endpoints::default();
                let caller = compile::Caller::in_namespace("b");
                compile::service(service, &documents, &endpoints, &mesh, &caller).map(drop)
            }
            _ => Ok(()),
        };
        assert!(compiles.is_ok(), "{name} is in force and does not compile: {compiles:?}");
    }
}
