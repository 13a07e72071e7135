//! Every admin endpoint: who may ask what, and what is answered.

use super::{Context, Surface, text};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, request::Parts, uri::Authority};
use serde_json::{Value, json};
use std::net::IpAddr;
use weft_config::purge::Kind;

/// An endpoint that there is.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    /// The methods for `Allow`.
    pub(super) methods: &'static str,
    /// Answered on the health and metrics port too.
    public: bool,
    pub(super) what: &'static str,
    get: fn(&Context, &Asked<'_>) -> Page,
    /// What changes something: only for POST from this machine.
    post: Option<fn(&Context, &Asked<'_>) -> Page>,
}

/// Keys of the cache that are listed for each policy unless asked for fewer or more, and at most.
const TOP: usize = 20;
const TOP_MAX: usize = 100;

const READ: &str = "GET, HEAD";
const READ_AND_CHANGE: &str = "GET, HEAD, POST";
const CHANGE: &str = "POST";

const PURGE: &str = "/cache/purge";

/// Whether a request may take longer than others can wait for.
pub(super) fn takes_long(head: &Parts) -> bool {
    head.method == Method::POST && head.uri.path() == PURGE
}

/// All of them, in the order of the index page. `docs/admin.md` describes each.
pub(super) const ENDPOINTS: [Endpoint; 13] = [
    Endpoint { path: "/", methods: READ, public: true, what: "this list", get: index, post: None },
    Endpoint {
        path: "/ready",
        methods: READ,
        public: true,
        what: "200 while traffic is served, 503 and why while it is not",
        get: ready,
        post: None,
    },
    Endpoint {
        path: "/live",
        methods: READ,
        public: true,
        what: "200 as long as the process answers",
        get: |_, _| Page::line(StatusCode::OK, "live".into()),
        post: None,
    },
    Endpoint {
        path: "/metrics",
        methods: READ,
        public: true,
        what: "metrics in the Prometheus text format",
        get: metrics,
        post: None,
    },
    Endpoint {
        path: "/config_dump",
        methods: READ,
        public: false,
        what: "everything this sidecar decides by, as JSON",
        get: |context, _| Page::json(&context.inspect.config_dump()),
        post: None,
    },
    Endpoint {
        path: "/certs",
        methods: READ,
        public: false,
        what: "its certificate and the trust bundle, and when they end",
        get: |context, asked| Page::data(asked, &context.inspect.certs()),
        post: None,
    },
    Endpoint {
        path: "/clusters",
        methods: READ,
        public: false,
        what: "each backend: its endpoints and connections",
        get: |context, asked| Page::data(asked, &context.inspect.clusters()),
        post: None,
    },
    Endpoint {
        path: "/routes",
        methods: READ,
        public: false,
        what: "the routes in force, in the order they are tried",
        get: |context, asked| Page::data(asked, &context.inspect.routes()),
        post: None,
    },
    Endpoint {
        path: "/cache",
        methods: READ,
        public: false,
        what: "the response cache: what it keeps by policy, how it answers by route; ?top=N of what is asked for most",
        get: cache,
        post: None,
    },
    Endpoint {
        path: PURGE,
        methods: CHANGE,
        public: false,
        what: "POST: purge ?url=, ?prefix=, ?tag=, ?policy= or ?all=1 from the cache; &soft=1 makes it stale only",
        get: |_, _| Page::method_not_allowed(CHANGE),
        post: Some(purge),
    },
    Endpoint {
        path: "/loglevel",
        methods: READ_AND_CHANGE,
        public: false,
        what: "the log's filter; POST a level or a list such as info,weft_sidecar::tls=debug to change it",
        get: |context, asked| Page::data(asked, &json!({ "filter": context.inspect.log_level() })),
        post: Some(set_log_level),
    },
    Endpoint {
        path: "/drain",
        methods: CHANGE,
        public: false,
        what: "POST: take no more, finish what is in flight, then exit (as SIGTERM)",
        get: |_, _| Page::method_not_allowed(CHANGE),
        post: Some(|context, _| {
            context.inspect.drain();
            Page::line(
                StatusCode::ACCEPTED,
                "draining: no more is taken, and the process exits when all is done".into(),
            )
        }),
    },
    Endpoint {
        path: "/quit",
        methods: CHANGE,
        public: false,
        what: "POST: exit now, cutting what is in flight (as a second SIGTERM)",
        get: |_, _| Page::method_not_allowed(CHANGE),
        post: Some(|context, _| {
            context.inspect.quit();
            Page::line(StatusCode::ACCEPTED, "exiting".into())
        }),
    },
];

/// A request, read whole.
pub(super) struct Asked<'a> {
    pub(super) head: &'a Parts,
    pub(super) body: &'a Bytes,
}

impl Asked<'_> {
    /// The value of a query parameter, decoded.
    fn parameter(&self, name: &str) -> Option<String> {
        let query = self.head.uri.query()?;
        let value = query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))?;
        decode(value)
    }

    fn wants_json(&self) -> bool {
        if let Some(format) = self.parameter("format") {
            return format == "json";
        }
        let accept = self.head.headers.get_all(header::ACCEPT);
        accept.iter().any(|value| value.as_bytes().starts_with(b"application/json"))
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) allow: Option<&'static str>,
}

impl Page {
    const TEXT: &str = "text/plain; charset=utf-8";

    /// One line of text.
    fn line(status: StatusCode, text: String) -> Self {
        let mut body = text.into_bytes();
        body.push(b'\n');
        Self { status, content_type: Self::TEXT, body, allow: None }
    }

    /// An error, in one line that says what to do.
    pub(super) fn refusal(status: StatusCode, text: String) -> Self {
        Self::line(status, text)
    }

    fn method_not_allowed(allow: &'static str) -> Self {
        let page = Self::refusal(StatusCode::METHOD_NOT_ALLOWED, format!("this endpoint takes {allow}"));
        Self { allow: Some(allow), ..page }
    }

    fn json(value: &Value) -> Self {
        // A `Value` always becomes text: its keys are strings.
        let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
        body.push(b'\n');
        Self { status: StatusCode::OK, content_type: "application/json", body, allow: None }
    }

    /// Text for people, JSON for who asks for it.
    fn data(asked: &Asked<'_>, value: &Value) -> Self {
        if asked.wants_json() {
            return Self::json(value);
        }
        let body = text::render(value).into_bytes();
        Self { status: StatusCode::OK, content_type: Self::TEXT, body, allow: None }
    }
}

/// The answer to a request.
pub(super) fn page(context: &Context, surface: Surface, peer: IpAddr, asked: &Asked<'_>) -> Page {
    if surface == Surface::Admin
        && let Err(refusal) = allowed(peer, asked.head)
    {
        return refusal;
    }
    let path = asked.head.uri.path();
    let endpoint = ENDPOINTS.iter().find(|endpoint| endpoint.path == path);
    let Some(endpoint) = endpoint.filter(|endpoint| endpoint.public || surface == Surface::Admin) else {
        let elsewhere = if endpoint.is_some() { "is only on the admin port" } else { "is not there" };
        return Page::refusal(
            StatusCode::NOT_FOUND,
            format!("{} {elsewhere}; GET / lists what is", path.escape_debug()),
        );
    };
    match (&asked.head.method, endpoint.post) {
        (&Method::GET | &Method::HEAD, _) if surface == Surface::Public && path == "/" => {
            index_of(Surface::Public, asked)
        }
        (&Method::GET | &Method::HEAD, _) => (endpoint.get)(context, asked),
        (&Method::POST, Some(post)) => post(context, asked),
        _ => Page::method_not_allowed(endpoint.methods),
    }
}

/// The admin server answers nobody but programs on this machine, and no web page that a browser on this machine shows.
///
/// A page can make the browser send requests here. It gives itself away by an `Origin`, by `Sec-Fetch-Site`, or (where
/// its own name was made to resolve to 127.0.0.1) by a `Host` that is not ours.
fn allowed(peer: IpAddr, head: &Parts) -> Result<(), Page> {
    let refuse = |why: &str| Err(Page::refusal(StatusCode::FORBIDDEN, why.to_owned()));
    if !peer.to_canonical().is_loopback() {
        return refuse("the admin port answers only callers on its own machine");
    }
    if head.headers.contains_key(header::ORIGIN) {
        return refuse("requests from web pages (with an Origin header) are refused");
    }
    let from = head.headers.get("sec-fetch-site").map(http::HeaderValue::as_bytes);
    if !matches!(from, None | Some(b"none" | b"same-origin")) {
        return refuse("requests from web pages of another site are refused");
    }
    let target = head.uri.authority().is_none_or(is_this_machine);
    if !target || !host(&head.headers).as_ref().is_some_and(is_this_machine) {
        return refuse("the Host header must name this machine: ask for localhost, 127.0.0.1 or [::1]");
    }
    Ok(())
}

/// The one `Host` of a request.
fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?;
    if hosts.next().is_some() {
        return None;
    }
    Authority::try_from(host.as_bytes()).ok()
}

fn is_this_machine(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn index(_: &Context, asked: &Asked<'_>) -> Page {
    index_of(Surface::Admin, asked)
}

fn index_of(surface: Surface, asked: &Asked<'_>) -> Page {
    let shown = ENDPOINTS.iter().filter(|endpoint| endpoint.public || surface == Surface::Admin);
    if asked.wants_json() {
        let list = shown.map(|e| json!({ "path": e.path, "methods": e.methods, "what": e.what }));
        return Page::json(&list.collect());
    }
    let mut text = String::from("weft-sidecar ");
    text.push_str(env!("CARGO_PKG_VERSION"));
    text.push_str("\n\n");
    for endpoint in shown {
        text.push_str(&format!("{:<14}{}\n", endpoint.path, endpoint.what));
    }
    Page { status: StatusCode::OK, content_type: Page::TEXT, body: text.into_bytes(), allow: None }
}

fn ready(context: &Context, _: &Asked<'_>) -> Page {
    match context.inspect.ready() {
        Ok(()) => Page::line(StatusCode::OK, "ready".into()),
        Err(why) => {
            Page::line(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", text::one_line(&why)))
        }
    }
}

fn metrics(context: &Context, _: &Asked<'_>) -> Page {
    Page {
        status: StatusCode::OK,
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        body: context.metrics.render(),
        allow: None,
    }
}

fn cache(context: &Context, asked: &Asked<'_>) -> Page {
    let top = match asked.parameter("top").map(|top| top.parse::<usize>()) {
        None => TOP,
        Some(Ok(top)) => top.min(TOP_MAX),
        Some(Err(_)) => {
            return Page::refusal(StatusCode::BAD_REQUEST, format!("top is a number from 0 to {TOP_MAX}"));
        }
    };
    Page::data(asked, &context.inspect.cache(top))
}

/// Exactly one of the parameters says what is purged; `all`, `soft` and `service` may be left out.
fn purge(context: &Context, asked: &Asked<'_>) -> Page {
    let refuse = |why: &str| Page::refusal(StatusCode::BAD_REQUEST, text::one_line(why));
    let flag = |name: &str| match asked.parameter(name).as_deref() {
        None | Some("" | "0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(_) => Err(format!("{name} is 1 or 0")),
    };
    let (all, soft) = match (flag("all"), flag("soft")) {
        (Ok(all), Ok(soft)) => (all, soft),
        (Err(why), _) | (_, Err(why)) => return refuse(&why),
    };
    let mut wanted = Kind::NAMED.into_iter().filter_map(|(name, kind)| match kind {
        Kind::All => all.then(|| (kind, String::new())),
        _ => Some((kind, asked.parameter(name)?)),
    });
    let (Some((kind, text)), None) = (wanted.next(), wanted.next()) else {
        return refuse("say what is to be purged by one of ?url=, ?prefix=, ?tag=, ?policy= and ?all=1");
    };
    let service = asked.parameter("service").unwrap_or_default();
    match context.inspect.purge(kind, &text, &service, soft) {
        Ok((what, answers)) => {
            Page::data(asked, &json!({ "purged": what, "soft": soft, "answers": answers }))
        }
        Err(why) => refuse(&why),
    }
}

/// The filter comes as `?level=` or as the body, which may itself be a form field.
fn set_log_level(context: &Context, asked: &Asked<'_>) -> Page {
    let in_body = || {
        let body = std::str::from_utf8(asked.body).ok()?.trim();
        match body.strip_prefix("level=") {
            Some(field) => decode(field),
            None => Some(body.to_owned()),
        }
    };
    let filter = asked.parameter("level").or_else(in_body).unwrap_or_default();
    match context.inspect.set_log_level(&filter) {
        Ok(()) => {
            let now = context.inspect.log_level();
            tracing::info!(filter = %now, "the log's filter was changed through the admin port");
            Page::data(asked, &json!({ "filter": now }))
        }
        Err(why) => Page::refusal(StatusCode::BAD_REQUEST, text::one_line(&why)),
    }
}

/// Undoes the encoding of a query parameter; `None` if that gives no UTF-8 or the encoding is broken.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}
