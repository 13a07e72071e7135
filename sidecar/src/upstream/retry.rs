//! Whether a call that went wrong is tried again, and when: a pure function of policy and of what happened so far.

use crate::{
    error::Kind,
    telemetry::metrics::{Retry as Reason, RetryRefused},
};
use std::time::{Duration, SystemTime};
use weft_config::snapshot::Retry as Policy;

/// Attempts in all for what never left, whatever policy says about attempts.
const UNSENT_TRIES: u32 = 3;
/// Nobody waits longer than this for another attempt, even where there is no deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A longer `Retry-After` is taken as this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// A call after an attempt at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempted {
    /// Attempts so far, this one included.
    pub(crate) tries: u32,
    /// How the attempt ended.
    pub(crate) end: End,
    /// Whether the method can be repeated (RFC 9110 §9.2.2): not POST, not PATCH, and so no gRPC.
    pub(crate) repeatable: bool,
    /// Whether it is a call of gRPC.
    pub(crate) grpc: bool,
    /// Whether the whole request is here to be sent again.
    pub(crate) replayable: bool,
    /// Time to the call's deadline, if it has one.
    pub(crate) left: Option<Duration>,
    /// Whether the call is itself a caller's retry (`weft-attempt` of 2 and more), or was made under one.
    pub(crate) caller_retries: bool,
    /// Whether there are endpoints that were not tried yet.
    pub(crate) untried: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// Without an answer.
    Failed {
        /// Why.
        kind: Kind,
        /// As [`Error::sent`](crate::error::Error): false if the request certainly did not get anywhere.
        sent: bool,
    },
    /// With one.
    Answered {
        /// Its status.
        status: u16,
        /// Its gRPC status, if it is one of gRPC and its head tells (trailers-only).
        grpc_status: Option<u16>,
        /// What its `weft-error` field names: the answer of the peer's sidecar, not of its application.
        weft_error: Option<Kind>,
        /// Whether it is marked `weft-retried`: it was tried again further on already.
        retried: bool,
        /// Its `Retry-After`, see [`retry_after`].
        retry_after: Option<Duration>,
    },
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The attempt's outcome is the call's.
    Stop(Stop),
    /// Another attempt, if the budget has it (see [`Entry::retry`](super::guard::Entry::retry)).
    Again {
        /// After this long.
        after: Duration,
        /// As it counts in `weft_retries_total`.
        reason: Reason,
        /// True if it repeats no work, since nothing was taken up where it was tried: then it is outside of the budget.
        free: bool,
    },
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It went well, or as badly as policy does not try again.
    Done,
    /// There was an attempt for each that policy allows.
    Attempts,
    /// The application may have seen it, and the method must not be repeated.
    Unsafe,
    /// The request is not whole any more: its body was streamed, or is too large to be kept.
    Body,
    /// The wait would take longer than there is time.
    Deadline,
    /// It was tried again further on in the chain already, or its caller does.
    Chain,
}

impl Stop {
    /// Whether callers further up must not try again what was tried again here (`weft-retried`). So it is too where the
    /// budget refused another attempt: the service has had as many as it should get.
    pub(crate) fn is_final_for_callers(self) -> bool {
        match self {
            Self::Attempts | Self::Chain => true,
            // Nothing was repeated for these reasons; whether the caller's own call can be is the caller's to know.
            Self::Done | Self::Unsafe | Self::Body | Self::Deadline => false,
        }
    }

    /// As it counts in `weft_retries_refused_total`; `None` where nothing was refused.
    pub(crate) fn refused(self) -> Option<RetryRefused> {
        match self {
            Self::Done => None,
            Self::Attempts => Some(RetryRefused::Attempts),
            Self::Unsafe => Some(RetryRefused::Unsafe),
            Self::Body => Some(RetryRefused::Body),
            Self::Deadline => Some(RetryRefused::Deadline),
            Self::Chain => Some(RetryRefused::Chain),
        }
    }
}

/// What went wrong, as far as retries go.
struct Wrong {
    reason: Reason,
    /// The request certainly did not reach the application.
    unsent: bool,
    /// Nothing of it left this sidecar or was taken up by the peer: another endpoint costs nothing and is safe.
    never_left: bool,
    /// Policy says that this is tried again.
    covered: bool,
    /// Policy says that this is tried again in words that include that the application may have seen it.
    explicit: bool,
}

/// Decides. `random` gives the jitter, in `[0, 1)`.
pub(crate) fn decide(policy: &Policy, attempted: &Attempted, random: impl FnOnce() -> f64) -> Decision {
    let Some(wrong) = wrong(policy, attempted) else { return Decision::Stop(Stop::Done) };
    // What never left goes to the next endpoint whatever policy says about retries: no work is repeated.
    let elsewhere = wrong.never_left && attempted.untried;
    if !elsewhere && !wrong.covered {
        return Decision::Stop(Stop::Done);
    }
    if let End::Answered { retried: true, .. } = attempted.end {
        return Decision::Stop(Stop::Chain);
    }
    if attempted.caller_retries && !wrong.never_left {
        return Decision::Stop(Stop::Chain);
    }
    let by_policy = if wrong.covered { policy.attempts.saturating_add(1) } else { 1 };
    let most = if elsewhere { by_policy.max(UNSENT_TRIES) } else { by_policy };
    if attempted.tries >= most {
        return Decision::Stop(if policy.attempts == 0 { Stop::Done } else { Stop::Attempts });
    }
    if !attempted.repeatable && !wrong.unsent && !wrong.explicit {
        return Decision::Stop(Stop::Unsafe);
    }
    if !attempted.replayable {
        return Decision::Stop(Stop::Body);
    }
    let after = if elsewhere { Duration::ZERO } else { wait(policy, attempted, random()) };
    if after > LONGEST_WAIT || attempted.left.is_some_and(|left| after >= left) {
        return Decision::Stop(Stop::Deadline);
    }
    Decision::Again { after, reason: wrong.reason, free: elsewhere }
}

fn wrong(policy: &Policy, attempted: &Attempted) -> Option<Wrong> {
    match attempted.end {
        End::Failed { kind, sent } => failed(policy, attempted.grpc, kind, sent),
        End::Answered { status, grpc_status, weft_error, .. } => {
            answered(policy, status, grpc_status, weft_error)
        }
    }
}

fn failed(policy: &Policy, grpc: bool, kind: Kind, sent: bool) -> Option<Wrong> {
    let (reason, covered) = match kind {
        // A full pool and an open breaker are the endpoint's own; another may have room.
        Kind::Connect | Kind::ConnectTimeout | Kind::Tls | Kind::Overloaded | Kind::BreakerOpen => {
            (Reason::Connect, policy.connect_failure)
        }
        Kind::Reset | Kind::BadResponse if !sent => (Reason::Refused, policy.refused),
        Kind::Reset | Kind::BadResponse => (Reason::Reset, policy.reset),
        Kind::Timeout => (Reason::AttemptTimeout, policy.timeout),
        _ => return None,
    };
    // gRPC knows no connections: what breaks is UNAVAILABLE to a caller that asks for UNAVAILABLE to be tried again.
    let named = grpc && has(policy.grpc_statuses, u16::from(kind.row().grpc_status));
    let explicit = policy.unsafe_methods || (named && policy.grpc_explicit);
    let never_left = !sent && kind != Kind::Timeout;
    let covered = covered || (named && policy.grpc_explicit);
    Some(Wrong { reason, unsent: !sent, never_left, covered, explicit })
}

fn answered(
    policy: &Policy,
    status: u16,
    grpc_status: Option<u16>,
    by_sidecar: Option<Kind>,
) -> Option<Wrong> {
    let unsent = by_sidecar.is_some_and(|kind| kind.row().unsent);
    let named = grpc_status.is_some_and(|code| has(policy.grpc_statuses, code));
    let (reason, covered) = match by_sidecar {
        // The peer's sidecar is about to end, or the address is somebody else's by now.
        Some(Kind::Draining | Kind::Misdirected) => (Reason::Refused, policy.refused),
        // The peer's application takes no connections.
        Some(Kind::Connect | Kind::ConnectTimeout) => (Reason::Connect, policy.connect_failure),
        _ => (Reason::Status, false),
    };
    let covered = covered || named || policy.statuses.binary_search(&status).is_ok();
    let explicit = policy.unsafe_methods || (named && policy.grpc_explicit);
    let never_left = matches!(by_sidecar, Some(Kind::Draining | Kind::Misdirected));
    (covered || never_left).then_some(Wrong { reason, unsent, never_left, covered, explicit })
}

fn has(statuses: u32, code: u16) -> bool {
    1_u32.checked_shl(code.into()).is_some_and(|bit| statuses & bit != 0)
}

/// The wait before the next attempt: exponential with full jitter, so that callers that failed together do not come
/// back together; after what the upstream asked for, and never sooner than the route says.
fn wait(policy: &Policy, attempted: &Attempted, random: f64) -> Duration {
    let doubled = 1_u32.checked_shl(attempted.tries.saturating_sub(1)).unwrap_or(u32::MAX);
    let most = policy.backoff.saturating_mul(doubled).min(policy.max_backoff);
    let least = match attempted.end {
        End::Answered { retry_after: Some(asked), .. } if policy.retry_after => asked.max(policy.least_wait),
        _ => policy.least_wait,
    };
    least.saturating_add(most.mul_f64(random.clamp(0.0, 1.0)))
}

/// Reads a `Retry-After` field (RFC 9110 §10.2.3): seconds or a date. A date of the past is no wait; what is neither is
/// not there.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim_matches([' ', '\t']);
    let asked = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a very long time.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(asked.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const MS: Duration = Duration::from_millis(1);

    fn status(status: u16) -> End {
        End::Answered { status, grpc_status: None, weft_error: None, retried: false, retry_after: None }
    }

    fn by_sidecar(kind: Kind) -> End {
        let status = kind.row().status.as_u16();
        End::Answered { status, grpc_status: None, weft_error: Some(kind), retried: false, retry_after: None }
    }

    fn grpc(code: u16, weft_error: Option<Kind>) -> End {
        End::Answered { status: 200, grpc_status: Some(code), weft_error, retried: false, retry_after: None }
    }

    fn asked(seconds: u64) -> End {
        End::Answered {
            status: 503,
            grpc_status: None,
            weft_error: None,
            retried: false,
            retry_after: Some(Duration::from_secs(seconds)),
        }
    }

    const REFUSED_CONNECT: End = End::Failed { kind: Kind::Connect, sent: false };
    const REFUSED_STREAM: End = End::Failed { kind: Kind::Reset, sent: false };
    const RESET: End = End::Failed { kind: Kind::Reset, sent: true };
    const TIMEOUT: End = End::Failed { kind: Kind::Timeout, sent: true };

    /// The first attempt at a GET went like this; other endpoints are left.
    fn get(end: End) -> Attempted {
        Attempted {
            tries: 1,
            end,
            repeatable: true,
            grpc: false,
            replayable: true,
            left: Some(Duration::from_secs(15)),
            caller_retries: false,
            untried: true,
        }
    }

    fn post(end: End) -> Attempted {
        Attempted { repeatable: false, ..get(end) }
    }

    fn grpc_call(end: End) -> Attempted {
        Attempted { grpc: true, ..post(end) }
    }

    /// Decides with the longest jitter there is.
    fn decide(policy: &Policy, attempted: &Attempted) -> Decision {
        super::decide(policy, attempted, || 1.0)
    }

    fn again(decision: Decision) -> Option<Reason> {
        match decision {
            Decision::Again { reason, .. } => Some(reason),
            Decision::Stop(_) => None,
        }
    }

    fn none() -> Policy {
        Policy { attempts: 0, ..Policy::default() }
    }

    #[rstest]
    #[case::bad_gateway(status(502), Some(Reason::Status))]
    #[case::unavailable(status(503), Some(Reason::Status))]
    #[case::gateway_timeout(status(504), Some(Reason::Status))]
    #[case::internal(status(500), None)]
    #[case::limited(status(429), None)]
    #[case::fine(status(200), None)]
    #[case::connect(REFUSED_CONNECT, Some(Reason::Connect))]
    #[case::refused(REFUSED_STREAM, Some(Reason::Refused))]
    #[case::reset(RESET, Some(Reason::Reset))]
    #[case::not_http(End::Failed { kind: Kind::BadResponse, sent: true }, Some(Reason::Reset))]
    #[case::timeout(TIMEOUT, None)]
    #[case::gone(End::Failed { kind: Kind::Gone, sent: true }, None)]
    #[case::too_large(End::Failed { kind: Kind::TooLarge, sent: true }, None)]
    #[case::forbidden(by_sidecar(Kind::Forbidden), None)]
    #[case::limited_there(by_sidecar(Kind::RateLimited), None)]
    fn a_get_is_tried_again_by_default_after(#[case] end: End, #[case] reason: Option<Reason>) {
        assert_eq!(again(decide(&Policy::default(), &get(end))), reason);
    }

    /// DESIGN §12.10: a card must not be charged twice.
    #[rstest]
    #[case::unavailable(status(503), Decision::Stop(Stop::Unsafe))]
    #[case::reset(RESET, Decision::Stop(Stop::Unsafe))]
    #[case::fine(status(200), Decision::Stop(Stop::Done))]
    fn a_post_that_may_have_arrived_is_not_repeated(#[case] end: End, #[case] decision: Decision) {
        assert_eq!(decide(&Policy::default(), &post(end)), decision);
        assert_eq!(decide(&Policy::default(), &grpc_call(end)), decision);
    }

    #[rstest]
    #[case::connect(REFUSED_CONNECT)]
    #[case::refused_stream(REFUSED_STREAM)]
    #[case::draining(by_sidecar(Kind::Draining))]
    #[case::application_is_down(by_sidecar(Kind::Connect))]
    #[case::shed(by_sidecar(Kind::Shed))]
    fn a_post_that_certainly_did_not_arrive_is(#[case] end: End) {
        assert!(again(decide(&Policy::default(), &post(end))).is_some());
    }

    #[test]
    fn a_policy_that_says_so_repeats_unsafe_methods() {
        let policy = Policy { unsafe_methods: true, ..Policy::default() };
        assert_eq!(again(decide(&policy, &post(status(503)))), Some(Reason::Status));
        assert_eq!(again(decide(&policy, &post(RESET))), Some(Reason::Reset));
    }

    #[test]
    fn a_grpc_status_that_a_policy_names_is_tried_again() {
        let unavailable = grpc_call(grpc(14, None));
        assert_eq!(decide(&Policy::default(), &unavailable), Decision::Stop(Stop::Unsafe));
        let named = Policy { grpc_explicit: true, ..Policy::default() };
        assert_eq!(again(decide(&named, &unavailable)), Some(Reason::Status));
        assert_eq!(again(decide(&named, &grpc_call(RESET))), Some(Reason::Reset), "a reset is UNAVAILABLE");
        assert_eq!(decide(&named, &grpc_call(grpc(13, None))), Decision::Stop(Stop::Done));
        assert_eq!(decide(&named, &post(RESET)), Decision::Stop(Stop::Unsafe), "a POST is no gRPC");
        let deadline = Policy { grpc_explicit: true, grpc_statuses: 1 << 4, ..Policy::default() };
        assert_eq!(again(decide(&deadline, &grpc_call(TIMEOUT))), Some(Reason::AttemptTimeout));
        assert_eq!(decide(&deadline, &grpc_call(grpc(40_000, None))), Decision::Stop(Stop::Done));
    }

    #[test]
    fn by_default_a_grpc_call_is_tried_again_if_it_did_not_reach_the_application() {
        let decision = decide(&Policy::default(), &grpc_call(grpc(14, Some(Kind::Shed))));
        assert_eq!(again(decision), Some(Reason::Status));
        let decision = decide(&Policy::default(), &grpc_call(grpc(14, Some(Kind::Reset))));
        assert_eq!(decision, Decision::Stop(Stop::Unsafe), "it may have: the application reset it");
    }

    #[test]
    fn there_are_as_many_attempts_as_policy_says() {
        let policy = Policy::default();
        let at = |tries| decide(&policy, &Attempted { tries, ..get(status(503)) });
        assert!(again(at(2)).is_some());
        assert_eq!(at(3), Decision::Stop(Stop::Attempts));
    }

    #[rstest]
    #[case::connect(REFUSED_CONNECT)]
    #[case::connect_timeout(End::Failed { kind: Kind::ConnectTimeout, sent: false })]
    #[case::tls(End::Failed { kind: Kind::Tls, sent: false })]
    #[case::pool_is_full(End::Failed { kind: Kind::Overloaded, sent: false })]
    #[case::refused_stream(REFUSED_STREAM)]
    #[case::draining(by_sidecar(Kind::Draining))]
    #[case::misdirected(by_sidecar(Kind::Misdirected))]
    fn without_retries_what_never_left_goes_to_other_endpoints_at_once_up_to_three(#[case] end: End) {
        let at = |tries| decide(&none(), &Attempted { tries, ..post(end) });
        for tries in [1, 2] {
            assert!(matches!(at(tries), Decision::Again { after: Duration::ZERO, .. }));
        }
        assert_eq!(at(3), Decision::Stop(Stop::Done));
        let alone = Attempted { untried: false, ..post(end) };
        assert_eq!(decide(&none(), &alone), Decision::Stop(Stop::Done));
    }

    #[test]
    fn without_retries_nothing_else_is_tried_again() {
        for end in [status(503), RESET, by_sidecar(Kind::Connect), by_sidecar(Kind::Shed)] {
            assert_eq!(decide(&none(), &get(end)), Decision::Stop(Stop::Done), "{end:?}");
        }
    }

    #[test]
    fn what_never_left_waits_before_it_goes_to_an_endpoint_that_failed_already() {
        let alone = Attempted { untried: false, ..get(REFUSED_CONNECT) };
        let policy = Policy::default();
        let expected = Decision::Again { after: policy.backoff, reason: Reason::Connect, free: false };
        assert_eq!(decide(&policy, &alone), expected);
        let not_covered = Policy { connect_failure: false, ..policy };
        assert_eq!(decide(&not_covered, &alone), Decision::Stop(Stop::Done));
    }

    #[test]
    fn a_body_that_is_gone_is_not_sent_again() {
        let gone = Attempted { replayable: false, ..get(status(503)) };
        assert_eq!(decide(&Policy::default(), &gone), Decision::Stop(Stop::Body));
    }

    #[test]
    fn the_wait_doubles_up_to_the_longest_and_is_jittered_in_full() {
        let policy = Policy { attempts: 9, ..Policy::default() };
        let wait =
            |tries, random| match super::decide(&policy, &Attempted { tries, ..get(status(503)) }, || random)
            {
                Decision::Again { after, .. } => after,
                stop => panic!("{stop:?}"),
            };
        assert_eq!(
            (1..7).map(|n| wait(n, 1.0).as_millis()).collect::<Vec<_>>(),
            [25, 50, 100, 200, 250, 250]
        );
        assert_eq!(wait(3, 0.5), 50 * MS);
        assert_eq!(wait(3, 0.0), Duration::ZERO);
    }

    #[test]
    fn nothing_is_tried_again_sooner_than_the_route_says() {
        let policy = Policy { least_wait: 100 * MS, ..Policy::default() };
        let after = |end, random| match super::decide(&policy, &get(end), || random) {
            Decision::Again { after, .. } => after,
            stop => panic!("{stop:?}"),
        };
        assert_eq!(after(status(503), 0.0), 100 * MS);
        assert_eq!(after(status(503), 1.0), 125 * MS);
        assert_eq!(after(asked(2), 0.0), 2000 * MS);
        assert_eq!(after(asked(0), 0.0), 100 * MS);
    }

    #[test]
    fn retry_after_is_obeyed_within_the_deadline() {
        let policy = Policy::default();
        let asked_for = |seconds| decide(&policy, &get(asked(seconds)));
        let expected = Decision::Again {
            after: Duration::from_secs(2) + policy.backoff,
            reason: Reason::Status,
            free: false,
        };
        assert_eq!(asked_for(2), expected);
        assert_eq!(asked_for(15), Decision::Stop(Stop::Deadline));
        let ignored = Policy { retry_after: false, ..Policy::default() };
        let expected = Decision::Again { after: policy.backoff, reason: Reason::Status, free: false };
        assert_eq!(decide(&ignored, &get(asked(15))), expected);
    }

    #[test]
    fn nobody_waits_for_minutes_even_without_a_deadline() {
        let patient = |seconds| decide(&Policy::default(), &Attempted { left: None, ..get(asked(seconds)) });
        assert!(again(patient(59)).is_some());
        assert_eq!(patient(60), Decision::Stop(Stop::Deadline));
    }

    #[test]
    fn there_is_no_retry_that_would_begin_after_the_deadline() {
        let late = Attempted { left: Some(25 * MS), ..get(status(503)) };
        assert_eq!(decide(&Policy::default(), &late), Decision::Stop(Stop::Deadline));
        let over = Attempted { left: Some(Duration::ZERO), ..get(REFUSED_CONNECT) };
        assert_eq!(decide(&Policy::default(), &over), Decision::Stop(Stop::Deadline));
    }

    #[test]
    fn what_was_tried_again_further_on_is_not_tried_again_here() {
        let end = End::Answered {
            status: 503,
            grpc_status: None,
            weft_error: Some(Kind::Connect),
            retried: true,
            retry_after: None,
        };
        assert_eq!(decide(&Policy::default(), &get(end)), Decision::Stop(Stop::Chain));
    }

    #[test]
    fn callers_do_not_repeat_what_was_repeated_here() {
        let stops = [Stop::Done, Stop::Attempts, Stop::Unsafe, Stop::Body, Stop::Deadline, Stop::Chain];
        let last: Vec<Stop> = stops.into_iter().filter(|stop| stop.is_final_for_callers()).collect();
        assert_eq!(last, [Stop::Attempts, Stop::Chain]);
        let given_up = decide(&Policy::default(), &Attempted { tries: 3, ..get(RESET) });
        assert_eq!(given_up, Decision::Stop(Stop::Attempts));
        assert_eq!(decide(&none(), &get(RESET)), Decision::Stop(Stop::Done), "the caller may");
    }

    #[test]
    fn a_callers_retry_is_not_tried_again_but_for_what_never_left() {
        let of_caller = |end| decide(&Policy::default(), &Attempted { caller_retries: true, ..get(end) });
        assert_eq!(of_caller(status(503)), Decision::Stop(Stop::Chain));
        assert_eq!(of_caller(RESET), Decision::Stop(Stop::Chain));
        assert_eq!(of_caller(by_sidecar(Kind::Connect)), Decision::Stop(Stop::Chain));
        assert_eq!(again(of_caller(REFUSED_CONNECT)), Some(Reason::Connect));
        assert_eq!(again(of_caller(by_sidecar(Kind::Draining))), Some(Reason::Refused));
    }

    #[test]
    fn an_attempt_timeout_is_tried_again_where_policy_says_so() {
        let policy = Policy { timeout: true, ..Policy::default() };
        assert_eq!(again(decide(&policy, &get(TIMEOUT))), Some(Reason::AttemptTimeout));
        assert_eq!(decide(&policy, &post(TIMEOUT)), Decision::Stop(Stop::Unsafe));
        let unsent = End::Failed { kind: Kind::Timeout, sent: false };
        assert_eq!(decide(&none(), &get(unsent)), Decision::Stop(Stop::Done));
    }

    #[test]
    fn each_cause_can_be_left_out_of_policy() {
        let policy = Policy { reset: false, refused: false, statuses: [].into(), ..Policy::default() };
        for end in [RESET, status(503)] {
            assert_eq!(decide(&policy, &get(end)), Decision::Stop(Stop::Done), "{end:?}");
        }
        let alone = Attempted { untried: false, ..get(REFUSED_STREAM) };
        assert_eq!(decide(&policy, &alone), Decision::Stop(Stop::Done));
    }

    /// RFC 9110 §10.2.3.
    #[rstest]
    #[case::seconds("120", Some(120))]
    #[case::now("0", Some(0))]
    #[case::spaces(" 7\t", Some(7))]
    #[case::date("Fri, 31 Dec 1999 23:59:59 GMT", Some(10))]
    #[case::old_date("Friday, 31-Dec-99 23:59:59 GMT", Some(10))]
    #[case::past("Thu, 31 Dec 1998 23:59:59 GMT", Some(0))]
    #[case::far("Fri, 31 Dec 2100 23:59:59 GMT", Some(86_400))]
    #[case::long("999999999999999999999999", Some(86_400))]
    #[case::negative("-1", None)]
    #[case::fraction("1.5", None)]
    #[case::empty("", None)]
    #[case::words("soon", None)]
    fn retry_after_is_read(#[case] value: &str, #[case] seconds: Option<u64>) {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:49 GMT").expect("a date");
        assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs));
    }

    fn ends() -> impl Strategy<Value = End> {
        let kind = (0..Kind::ALL.len()).prop_map(|index| Kind::ALL[index]);
        prop_oneof![
            (kind.clone(), any::<bool>()).prop_map(|(kind, sent)| End::Failed { kind, sent }),
            (
                prop_oneof![Just(200_u16), Just(429), 400..600_u16],
                proptest::option::of(0u16..20),
                proptest::option::of(kind),
                any::<bool>(),
                proptest::option::of(0u64..100),
            )
                .prop_map(|(status, grpc_status, weft_error, retried, retry_after)| {
                    End::Answered {
                        status,
                        grpc_status,
                        weft_error,
                        retried,
                        retry_after: retry_after.map(Duration::from_secs),
                    }
                }),
        ]
    }

    proptest! {
        #[test]
        fn laws(
            end in ends(), tries in 1u32..6, attempts in 0u32..4, bits in any::<u16>(), flags in any::<[bool; 10]>(),
            left_ms in proptest::option::of(0u64..20_000), random in 0.0..1.0,
        ) {
            let [repeatable, replayable, grpc, caller_retries, untried, explicit, unsafe_methods, reset, timeout, _] = flags;
            let policy = Policy {
                attempts, grpc_statuses: bits.into(), grpc_explicit: explicit, unsafe_methods, reset, timeout,
                ..Policy::default()
            };
            let left = left_ms.map(Duration::from_millis);
            let attempted = Attempted {
                tries, end, repeatable, grpc, replayable, left, caller_retries, untried,
            };
            if let Decision::Again { after, .. } = super::decide(&policy, &attempted, || random) {
                prop_assert!(tries < (attempts + 1).max(UNSENT_TRIES));
                prop_assert!(replayable);
                prop_assert!(after <= LONGEST_WAIT);
                if let Some(left) = left {
                    prop_assert!(after < left);
                }
                let certainly_not_seen = match end {
                    End::Failed { sent, .. } => !sent,
                    End::Answered { weft_error, retried, .. } => {
                        prop_assert!(!retried);
                        weft_error.is_some_and(|kind| kind.row().unsent)
                    }
                };
                prop_assert!(repeatable || certainly_not_seen || unsafe_methods || explicit);
            }
        }
    }
}
