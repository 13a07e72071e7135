//! What an attempt tells about the endpoint that it went to.

use crate::error::Kind;

/// What an attempt tells about the endpoint that it went to: breakers and ejection go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did its work; also where the answer is that the caller is wrong.
    Success,
    /// It failed at its work: a 5xx that a gateway would not give.
    ServerError,
    /// It did not get to its work: 502, 503, 504, a reset, no connection.
    GatewayError,
    /// Nothing: the caller went away, or a bound was reached.
    Neutral,
}

impl Outcome {
    /// Of an answer: its status, its gRPC status if it is one of gRPC, and the kind that its `weft-error` field names.
    ///
    /// Statuses of gRPC count as their HTTP likes do: UNAVAILABLE and DEADLINE_EXCEEDED as 503 and 504, INTERNAL,
    /// UNKNOWN and DATA_LOSS as 500. UNIMPLEMENTED is a success: a caller that is newer than the service asks for a
    /// method that is not there yet, and must not make the breaker refuse the methods that are. RESOURCE_EXHAUSTED is
    /// one too, as 429 is: the limit works. All others are the caller's own doing.
    pub(crate) fn of_response(status: u16, grpc_status: Option<u16>, weft_error: Option<Kind>) -> Self {
        match weft_error {
            // An endpoint with all that it can take is not broken. To leave it out would give the others its load, and
            // next the others would be left out.
            Some(Kind::Shed | Kind::Overloaded | Kind::RateLimited | Kind::Fault) => return Self::Neutral,
            // The address belongs to somebody else by now.
            Some(Kind::Misdirected) => return Self::GatewayError,
            _ => {}
        }
        match (status, grpc_status) {
            (502..=504, _) => Self::GatewayError,
            (500.., _) => Self::ServerError,
            (_, Some(4 | 14)) => Self::GatewayError,
            (_, Some(2 | 13 | 15)) => Self::ServerError,
            // The caller cancelled it, whoever said so first.
            (_, Some(1)) => Self::Neutral,
            _ => Self::Success,
        }
    }

    /// Of an attempt without an answer. A timeout counts against the endpoint: who knows that it was its caller's short
    /// deadline that passed, and not policy's, records [`Outcome::Neutral`] instead.
    pub(crate) fn of_error(kind: Kind) -> Self {
        match kind {
            Kind::Connect
            | Kind::ConnectTimeout
            | Kind::Tls
            | Kind::Reset
            | Kind::BadResponse
            | Kind::Timeout => Self::GatewayError,
            // What is wrong with the request, a bound of our own, or a caller that went away.
            Kind::BadRequest
            | Kind::Forbidden
            | Kind::NoRoute
            | Kind::UnknownService
            | Kind::HeaderTimeout
            | Kind::TooLarge
            | Kind::Misdirected
            | Kind::HeadersTooLarge
            | Kind::NotImplemented
            | Kind::InvalidBackend
            | Kind::NoEndpoint
            | Kind::Overloaded
            | Kind::RateLimited
            | Kind::BreakerOpen
            | Kind::Shed
            | Kind::Fault
            | Kind::Draining
            | Kind::Gone => Self::Neutral,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::fine(200, None, None, Outcome::Success)]
    #[case::not_found(404, None, None, Outcome::Success)]
    #[case::limited(429, None, None, Outcome::Success)]
    #[case::internal(500, None, None, Outcome::ServerError)]
    #[case::not_implemented(501, None, None, Outcome::ServerError)]
    #[case::bad_gateway(502, None, None, Outcome::GatewayError)]
    #[case::unavailable(503, None, None, Outcome::GatewayError)]
    #[case::gateway_timeout(504, None, None, Outcome::GatewayError)]
    #[case::loop_detected(508, None, None, Outcome::ServerError)]
    #[case::grpc_fine(200, Some(0), None, Outcome::Success)]
    #[case::grpc_cancelled(200, Some(1), None, Outcome::Neutral)]
    #[case::grpc_unknown(200, Some(2), None, Outcome::ServerError)]
    #[case::grpc_invalid_argument(200, Some(3), None, Outcome::Success)]
    #[case::grpc_deadline_exceeded(200, Some(4), None, Outcome::GatewayError)]
    #[case::grpc_not_found(200, Some(5), None, Outcome::Success)]
    #[case::grpc_resource_exhausted(200, Some(8), None, Outcome::Success)]
    #[case::grpc_unimplemented(200, Some(12), None, Outcome::Success)]
    #[case::grpc_internal(200, Some(13), None, Outcome::ServerError)]
    #[case::grpc_unavailable(200, Some(14), None, Outcome::GatewayError)]
    #[case::grpc_data_loss(200, Some(15), None, Outcome::ServerError)]
    #[case::grpc_over_a_broken_gateway(503, Some(0), None, Outcome::GatewayError)]
    #[case::shed(503, None, Some(Kind::Shed), Outcome::Neutral)]
    #[case::grpc_shed(200, Some(14), Some(Kind::Shed), Outcome::Neutral)]
    #[case::overloaded(503, None, Some(Kind::Overloaded), Outcome::Neutral)]
    #[case::somebody_else(421, None, Some(Kind::Misdirected), Outcome::GatewayError)]
    #[case::application_is_down(503, None, Some(Kind::Connect), Outcome::GatewayError)]
    #[case::draining(503, None, Some(Kind::Draining), Outcome::GatewayError)]
    #[case::forbidden(403, None, Some(Kind::Forbidden), Outcome::Success)]
    fn answers_count_as(
        #[case] status: u16,
        #[case] grpc_status: Option<u16>,
        #[case] weft_error: Option<Kind>,
        #[case] outcome: Outcome,
    ) {
        assert_eq!(Outcome::of_response(status, grpc_status, weft_error), outcome);
    }

    #[test]
    fn only_what_the_endpoint_did_counts_against_it() {
        let against: Vec<Kind> =
            Kind::ALL.into_iter().filter(|kind| Outcome::of_error(*kind) != Outcome::Neutral).collect();
        let expected =
            [Kind::Connect, Kind::ConnectTimeout, Kind::Tls, Kind::Reset, Kind::BadResponse, Kind::Timeout];
        assert_eq!(against, expected);
        assert!(against.iter().all(|kind| Outcome::of_error(*kind) == Outcome::GatewayError));
    }
}
