//! Sends copies of requests where policy wants them.

use super::{Chosen, Outbound, Routed};
use crate::{
    body::Body,
    error::{Error, Kind},
    exchange::Nobody,
    live::{Live, LiveMirrors},
    telemetry::metrics::Direction,
    upstream::{Attempt, Cluster, Outcome, Preference},
    worker::Worker,
};
use http::{Response, Version, request::Parts};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};
use weft_config::snapshot::Mirror;

/// Time for a copy where requests have no limit of their own.
const LONGEST: Duration = Duration::from_secs(60);

impl Outbound {
    /// Begins the copies of a request that its rule and its backend want, and gives the body that the original goes on
    /// with.
    pub(super) fn mirror(
        &self,
        live: &Rc<Live>,
        routed: &Routed<'_>,
        chosen: &Chosen<'_>,
        head: &Parts,
        mut body: Body,
    ) -> Body {
        let of_backend = chosen.backend.map_or(&[][..], |backend| &backend.mirrors);
        for (mirrors, to) in
            [(&*routed.calls.mirrors, &routed.live.mirrors), (of_backend, &*chosen.to.mirrors)]
        {
            if !mirrors.is_empty() {
                body = self.copies(live, routed, mirrors, to, head, body);
            }
        }
        body
    }

    fn copies(
        &self,
        live: &Rc<Live>,
        routed: &Routed<'_>,
        mirrors: &[Mirror],
        to: &LiveMirrors,
        head: &Parts,
        body: Body,
    ) -> Body {
        let time = routed.calls.timeouts.request.unwrap_or(live.snapshot.mesh.limits.request_timeout);
        let time = if time.is_zero() { LONGEST } else { time };
        let send = |index: usize, head: Parts, body: Body| {
            let (worker, live) = (self.worker.clone(), live.clone());
            let cluster = to.to.get(index).map(|backend| backend.cluster.clone());
            async move {
                match cluster {
                    Some(cluster) => copy(&worker, &live, &cluster, &head, body).await,
                    None => Err(Error::new(Kind::InvalidBackend, "there is no such mirror")),
                }
            }
        };
        let random = |below| fastrand::u32(..below);
        self.worker.copies.send(mirrors, &to.series, (head, body), time, random, send)
    }
}

/// One attempt, and no other.
async fn copy(
    worker: &Worker,
    live: &Live,
    cluster: &Cluster,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Error> {
    let begun = Instant::now();
    let traffic = cluster.traffic();
    let entry = cluster.guard.enter(begun)?;
    let flight = cluster.pick(&Preference::default(), begun)?;
    let endpoint = flight.endpoint();
    let verdict = entry.attempt(&endpoint.standing, begun).map_err(|refused| entry.refused(refused))?;
    let attempt = Attempt {
        connector: &worker.connector,
        limits: &live.snapshot.mesh.limits,
        bounds: &traffic.bounds,
        queue: cluster.series.queue(Direction::Outbound),
        declared: cluster.protocol(),
        caller_is_http2: head.version == Version::HTTP_2,
        tunnel: false,
        back: &Nobody,
        connecting: Default::default(),
    };
    let outcome = endpoint.exchange(endpoint.wire(&attempt), head, body, &attempt).await;
    let now = Instant::now();
    let judged = match &outcome {
        Ok(response) => Outcome::of_response(response.status().as_u16(), None, None),
        Err(failed) => Outcome::of_error(failed.error.kind),
    };
    verdict.record(judged, now - begun, now);
    outcome.map_err(|failed| failed.error)
}
