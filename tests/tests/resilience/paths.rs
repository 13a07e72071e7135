//! Where a request's time went, without any trace collector.

use crate::stage::{assemble, linked};
use std::time::Duration;
use weft_tests::{
    Client, PATIENCE, Scripted, eventually,
    scripted::{Onward, Spoken, text},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_told_apart_into_own_work_and_the_upstream_that_it_waits_for() {
    const CALLS: usize = 4;
    // Works for 250 ms, then waits for one that takes 1000 and, in the middle of that, for one that takes 10: long beside
    // what all of it takes a busy machine.
    let works = linked(|asked, onward| async move {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let (long, short) = tokio::join!(onward.call(&asked, "http://long:8080/", Spoken::Http1), async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            onward.call(&asked, "http://short:8080/", Spoken::Http1).await
        });
        long?;
        short?;
        Ok(text("done"))
    });
    let after = |pause| async move {
        let app = Scripted::start(move |_| async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            Ok(text("done"))
        });
        (app.await, Onward::default())
    };
    let apps = vec![works.await, after(1000).await, after(10).await];
    let chain = assemble(&["works", "long", "short"], Spoken::Http1, "", apps).await;
    let client = Client::new(chain.client.outbound());
    for _ in 0..CALLS {
        assert_eq!(client.get("http://works:8080/").await.text(), "done");
    }
    let sidecar = &chain.hops[0].sidecar;
    let metrics = eventually("all are counted", PATIENCE, || async {
        let metrics = sidecar.metrics().await;
        let counted = metrics.sum("weft_critical_path_requests_total", &["service=\"shop/works\""]);
        (counted == CALLS as f64).then_some(metrics)
    })
    .await;
    let seconds = |upstream: &str| {
        let upstream = format!("upstream=\"{upstream}\"");
        metrics.sum("weft_critical_path_seconds_total", &["service=\"shop/works\"", &upstream])
    };
    let (own, long, short) = (seconds(""), seconds("shop/long"), seconds("shop/short"));
    let all = metrics.sum("weft_request_duration_seconds_sum", &["direction=\"inbound\""]);
    assert!((own + long + short - all).abs() < 0.02 * all, "{own} + {long} + {short} is not {all}");
    assert!(long >= CALLS as f64 && own >= 0.25 * CALLS as f64, "own {own}, long {long}");
    assert!((0.6..0.9).contains(&(long / all)), "{long} of {all}");
    assert!(short < 0.05 * all, "nobody waited for it: {short} of {all}");
}
