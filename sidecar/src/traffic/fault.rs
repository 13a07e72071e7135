//! Faults put in on purpose: which one hits a call, and what the call gets instead of its upstream.
//!
//! One random number decides between all faults of a call: each takes a stretch of `0..1` as long as its share, one
//! after the other, so that every fault hits exactly its share of the calls it is about, and no call is hit twice.
//! (Envoy has one fault a route; with dice thrown for each, a second fault would hit less than its policy says.)

use crate::{
    error::{Error, Kind},
    telemetry::metrics::{FaultKind, Metrics},
};
use http::{HeaderMap, Method};
use weft_config::snapshot::{Abort, Fault};

/// The fault that hits a call, if one does; `random` in `0.0..1.0`.
pub(crate) fn choose<'a>(
    faults: &'a [Fault],
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    random: f64,
) -> Option<&'a Fault> {
    let mut below = 0.0;
    faults.iter().find(|fault| {
        fault.only.matches(method, path, headers) && {
            below += fault.share;
            random < below
        }
    })
}

/// Lets a fault happen: waits, and fails the call if that is what the fault says.
pub(crate) async fn happen(fault: &Fault, metrics: &Metrics) -> Result<(), Error> {
    if let Some(delay) = fault.delay {
        metrics.fault(FaultKind::Delay);
        tokio::time::sleep(delay).await;
    }
    let Some(abort) = fault.abort else { return Ok(()) };
    metrics.fault(if abort == Abort::Reset { FaultKind::Reset } else { FaultKind::Abort });
    Err(Error::new(Kind::Fault, "this fault was put in on purpose, by a TrafficPolicy").answered_with(abort))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_config::snapshot::Only;

    fn fault(share: f64, only: Only) -> Fault {
        Fault { share, only, delay: None, abort: Some(Abort::Reset) }
    }

    fn only_get() -> Only {
        Only { methods: [Method::GET].into(), ..Only::default() }
    }

    fn chosen(faults: &[Fault], method: &Method, random: f64) -> Option<usize> {
        let chosen = choose(faults, method, "/", &HeaderMap::new(), random)?;
        faults.iter().position(|fault| std::ptr::eq(fault, chosen))
    }

    #[test]
    fn each_fault_hits_its_own_share_of_calls() {
        let faults = [fault(0.1, Only::default()), fault(0.25, Only::default())];
        for (random, hit) in
            [(0.0, Some(0)), (0.099, Some(0)), (0.1, Some(1)), (0.349, Some(1)), (0.35, None)]
        {
            assert_eq!(chosen(&faults, &Method::GET, random), hit, "{random}");
        }
    }

    #[test]
    fn a_fault_about_other_calls_takes_no_share() {
        let faults = [fault(0.5, only_get()), fault(0.5, Only::default())];
        assert_eq!(chosen(&faults, &Method::GET, 0.6), Some(1));
        assert_eq!(chosen(&faults, &Method::POST, 0.4), Some(1));
        assert_eq!(chosen(&faults, &Method::POST, 0.6), None);
    }

    #[test]
    fn all_and_none_mean_all_and_none() {
        assert_eq!(chosen(&[fault(1.0, Only::default())], &Method::GET, 0.999_999_999), Some(0));
        assert_eq!(chosen(&[fault(0.0, Only::default())], &Method::GET, 0.0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_passes_and_then_the_call_goes_on_or_fails() {
        let metrics = Metrics::new(1);
        let start = tokio::time::Instant::now();
        let mut slow =
            Fault { delay: Some(Duration::from_secs(2)), abort: None, ..fault(1.0, Only::default()) };
        assert!(happen(&slow, &metrics).await.is_ok());
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        slow.abort = Some(Abort::Grpc(14));
        let error = happen(&slow, &metrics).await.expect_err("aborts");
        assert_eq!(start.elapsed(), Duration::from_secs(4));
        assert_eq!((error.kind, error.instead, error.sent), (Kind::Fault, Some(Abort::Grpc(14)), false));
        let text = String::from_utf8(metrics.render()).expect("UTF-8");
        for (kind, count) in [("delay", 2), ("abort", 1), ("reset", 0)] {
            assert!(text.contains(&format!("weft_faults_total{{kind=\"{kind}\"}} {count}\n")), "{kind}");
        }
    }
}
