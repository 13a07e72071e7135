//! Hedging: a second attempt while the first is slow, within the budget of retries.

use crate::stage::{URL, stage};
use futures_util::future::join_all;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use weft_tests::{
    PATIENCE, Scripted, eventually,
    mesh::traffic,
    scripted::{hang, text},
};

async fn quick() -> Scripted {
    Scripted::start(|_| async { Ok(text("good")) }).await
}

async fn after(pause: Duration) -> Scripted {
    Scripted::start(move |_| async move {
        tokio::time::sleep(pause).await;
        Ok(text("good"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_meet_a_slow_endpoint_are_answered_by_another_and_the_slow_one_is_let_off() {
    let policy = traffic(
        "product",
        "hedging: { delay: 50ms }, loadBalancer: { algorithm: roundRobin },
         outlierEjection: { consecutiveGatewayErrors: 0 }",
    );
    let stage = stage(&policy, vec![Scripted::start(|_| hang()).await, quick().await]).await;
    for _ in 0..20 {
        assert_eq!(stage.client.get(URL).await.text(), "good");
    }
    let slow = &stage.apps[0];
    assert!(slow.begun() >= 5, "the slow one was asked first {} times", slow.begun());
    eventually("the losers are cancelled", PATIENCE, || async { (slow.under_way() == 0).then_some(()) })
        .await;
    assert_eq!(slow.cancelled(), slow.begun());
    let hedges =
        async |result: &str| stage.counted("weft_hedges_total", &[&format!("result=\"{result}\"")]).await;
    // On a busy machine the other one may be slow at times too; the slow one is then asked second and loses.
    let (won, lost) = (hedges("won").await, hedges("lost").await);
    assert!(won >= 5 && won + lost == slow.begun(), "{won} won, {lost} lost, of {}", slow.begun());
    eventually("nothing is in flight", PATIENCE, || async {
        (stage.caller.in_flight().await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_attempt_that_is_quicker_after_all_wins_and_the_second_is_cancelled() {
    let policy = traffic("product", "hedging: { delay: 100ms }, loadBalancer: { algorithm: roundRobin }");
    // In turn: an attempt that takes until there is another one, and that one, which takes for ever.
    let turn = Arc::new(AtomicU64::new(0));
    let in_turn = || {
        let turns = turn.clone();
        Scripted::start(move |_| {
            let (turns, turn) = (turns.clone(), turns.fetch_add(1, Relaxed));
            async move {
                if turn % 2 == 1 {
                    return hang().await;
                }
                while turns.load(Relaxed) < turn + 2 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(text("good"))
            }
        })
    };
    let stage = stage(&policy, vec![in_turn().await, in_turn().await]).await;
    for _ in 0..4 {
        assert_eq!(stage.client.get(URL).await.text(), "good");
    }
    let begun: u64 = stage.apps.iter().map(|app| app.begun()).sum();
    assert_eq!(begun, 8, "two attempts each");
    assert_eq!(stage.counted("weft_hedges_total", &["result=\"lost\""]).await, 4);
    eventually("the losers are cancelled", PATIENCE, || async {
        (stage.apps.iter().map(|app| app.cancelled()).sum::<u64>() == 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_slow_is_told_by_how_long_most_calls_take_where_policy_gives_a_percentile() {
    let policy = traffic("product", "hedging: { percentile: 99 }, loadBalancer: { algorithm: roundRobin }");
    let hung = Arc::new(AtomicBool::new(false));
    let app = || {
        let hung = hung.clone();
        Scripted::start(move |asked| {
            let hangs = asked.path == "/once" && !hung.swap(true, Relaxed);
            async move { if hangs { hang().await } else { Ok(text("good")) } }
        })
    };
    let stage = stage(&policy, vec![app().await, app().await]).await;
    for _ in 0..100 {
        assert_eq!(stage.client.get(URL).await.text(), "good");
    }
    assert_eq!(stage.client.get("http://product:8080/once").await.text(), "good");
    assert!(hung.load(Relaxed));
    assert!(stage.counted("weft_hedges_total", &["result=\"won\""]).await >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_slow_everywhere_is_not_hedged_beyond_the_budget() {
    let policy = traffic(
        "product",
        "hedging: { delay: 20ms, maxAttempts: 3 },
         retries: { budget: { percent: 10, minPerSecond: 1, window: 10s } }",
    );
    let pause = Duration::from_secs(3);
    let stage = stage(&policy, vec![after(pause).await, after(pause).await]).await;
    let answers = join_all((0..60).map(|_| stage.client.get(URL))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    let begun: u64 = stage.apps.iter().map(|app| app.begun()).sum();
    assert!((61..=70).contains(&begun), "{begun} attempts for 60 calls");
    assert!(stage.counted("weft_hedges_total", &["result=\"refused\""]).await >= 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_not_hedged() {
    let policy = traffic("product", "hedging: { delay: 20ms }");
    let pause = Duration::from_millis(300);
    let stage = stage(&policy, vec![after(pause).await, after(pause).await]).await;
    let request = http::Request::post(URL).body(weft_tests::full("charge the card")).unwrap();
    assert_eq!(stage.client.call(request).await.status, 200);
    assert_eq!(stage.apps.iter().map(|app| app.begun()).sum::<u64>(), 1);
}
