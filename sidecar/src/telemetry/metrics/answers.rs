//! How the response cache can answer, and why it does not look up or keep: the words of metrics, `Cache-Status` and the
//! access log.

/// Why a request went on towards the origin (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Forwarded {
    /// It was not looked up.
    Bypass,
    /// Its method is not one that is answered from a cache.
    Method,
    /// Nothing is kept of its resource.
    UriMiss,
    /// Nothing that is kept of its resource is for it.
    VaryMiss,
    /// Nothing is kept, and it is not told of what.
    Miss,
    /// It asked for it.
    Request,
    /// What is kept is stale.
    Stale,
    /// Only a part is kept.
    Partial,
}

impl Forwarded {
    /// All of them, for metrics.
    pub(crate) const ALL: [Self; 8] = [
        Self::Bypass,
        Self::Method,
        Self::UriMiss,
        Self::VaryMiss,
        Self::Miss,
        Self::Request,
        Self::Stale,
        Self::Partial,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

/// How the cache answered a request, as metrics and the access log tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answered {
    /// With what is kept, fresh.
    Hit,
    /// With what is kept, stale: while it is fetched anew, because the origin failed, or because the request takes it.
    Stale,
    /// With what is kept, which the origin confirmed.
    Revalidated,
    /// With what the origin sent; why it was asked.
    Miss(Forwarded),
    /// Not at all: the request was not looked up.
    Bypass(Bypass),
}

impl Answered {
    /// The `result` label.
    pub(crate) const fn result(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss(_) => "miss",
            Self::Bypass(_) => "bypass",
        }
    }

    /// The `reason` label: of misses and bypasses.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Hit | Self::Stale | Self::Revalidated => "",
            Self::Miss(why) => why.label(),
            Self::Bypass(why) => why.label(),
        }
    }
}

/// Why a request is not looked up at all. The labels are those of metrics and of `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bypass {
    /// Its method is not one whose answers are kept.
    Method,
    /// A GET or HEAD with a body, which may change the answer.
    FatGet,
    /// It asks for another protocol.
    Upgrade,
    /// It asks the application to take it for another method.
    MethodOverride,
    /// It has a condition that only the origin can answer.
    Precondition,
    /// Its key would be too long.
    KeyTooLong,
    /// Its caller has no proven identity, and answers are kept apart by that.
    NoIdentity,
    /// Its body is too large or too slow to be digested, or no one gRPC message.
    Body,
}

impl Bypass {
    /// All of them, for metrics.
    pub(crate) const ALL: [Self; 8] = [
        Self::Method,
        Self::FatGet,
        Self::Upgrade,
        Self::MethodOverride,
        Self::Precondition,
        Self::KeyTooLong,
        Self::NoIdentity,
        Self::Body,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::FatGet => "fat-get",
            Self::Upgrade => "upgrade",
            Self::MethodOverride => "method-override",
            Self::Precondition => "precondition",
            Self::KeyTooLong => "key-too-long",
            Self::NoIdentity => "no-identity",
            Self::Body => "body",
        }
    }
}

/// Why a response is not kept. The labels are those of metrics and of `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The answer to a HEAD has nothing to keep.
    Head,
    /// The request says `no-store`.
    RequestNoStore,
    /// Its status is about this one exchange, or must not be stored.
    Status,
    /// A sidecar made it.
    Error,
    /// It says `no-store`.
    NoStore,
    /// It says `must-understand` and has a status that is not understood.
    MustUnderstand,
    /// It says `private`.
    Private,
    /// The request had credentials, and it does not say that others may have it.
    Authorization,
    /// It depends on more than requests show (`Vary: *`).
    Vary,
    /// It sets a cookie.
    SetCookie,
    /// It is a part, and cannot be told of what.
    Partial,
    /// Nobody says that it is fresh, or it is not fresh any more and cannot be asked about.
    NoFreshness,
    /// The policy gives it no time.
    Policy,
    /// It is larger than the policy keeps.
    TooLarge,
    /// The gRPC call failed.
    GrpcStatus,
    /// It ended too early or went over a limit while it came in.
    Incomplete,
}

impl Refusal {
    /// All of them, for metrics.
    pub(crate) const ALL: [Self; 16] = [
        Self::Head,
        Self::RequestNoStore,
        Self::Status,
        Self::Error,
        Self::NoStore,
        Self::MustUnderstand,
        Self::Private,
        Self::Authorization,
        Self::Vary,
        Self::SetCookie,
        Self::Partial,
        Self::NoFreshness,
        Self::Policy,
        Self::TooLarge,
        Self::GrpcStatus,
        Self::Incomplete,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::RequestNoStore => "request-no-store",
            Self::Status => "status",
            Self::Error => "error",
            Self::NoStore => "no-store",
            Self::MustUnderstand => "must-understand",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::Vary => "vary",
            Self::SetCookie => "set-cookie",
            Self::Partial => "partial",
            Self::NoFreshness => "no-freshness",
            Self::Policy => "policy",
            Self::TooLarge => "too-large",
            Self::GrpcStatus => "grpc-status",
            Self::Incomplete => "incomplete",
        }
    }
}
