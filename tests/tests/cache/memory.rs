//! A real sidecar process stays as small as policy says, whatever is pushed through it.

use crate::stage::{answer, caching};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use weft_tests::{
    Client, Scripted,
    mesh::{calling, outside},
    metrics::{Metrics, scrape},
    processes::{Mesh, Sidecar},
};

const MIB: u64 = 1 << 20;
/// What the policy of these tests allows.
const LIMIT: u64 = 8 * MIB;
/// Bodies that are pushed through.
const BODY: usize = 64 * 1024;
/// What a process may grow by beyond its cache: buffers of connections, and memory that the allocator holds back.
const SLACK: u64 = 16 * MIB;

async fn metrics(sidecar: &Sidecar) -> Metrics {
    scrape(sidecar.metrics).await
}

/// Memory that the process holds now, in bytes.
fn resident(sidecar: &Sidecar) -> u64 {
    sidecar.process.memory().0 * 1024
}

/// Fetches `paths`, sixteen at once, each with one field.
async fn push(client: &Client, calls: impl Iterator<Item = (String, String)>) {
    let calls = futures_util::stream::iter(calls).map(|(path, kind)| async move {
        let answer = client.get_with(&format!("{}{path}", crate::stage::URL), &[("x-kind", &kind)]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    });
    calls.buffer_unordered(16).collect::<Vec<()>>().await;
}

async fn is_within_limit(sidecar: &Sidecar) {
    let metrics = metrics(sidecar).await;
    let (bytes, filling) =
        (metrics.sum("weft_cache_bytes", &[]), metrics.sum("weft_cache_filling_bytes", &[]));
    let most = LIMIT + MIB;
    assert!(bytes as u64 <= most, "{bytes} bytes of {LIMIT}");
    assert!(filling as u64 <= LIMIT / 2 + MIB, "{filling} bytes on their way in, of {LIMIT}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_stays_flat_while_ten_times_the_limit_is_pushed_through() {
    let body = Bytes::from(vec![b'x'; BODY]);
    let app = Scripted::start(move |asked| {
        let body = body.clone();
        async move {
            let kind = [("cache-control", "max-age=600"), ("vary", "x-kind")];
            Ok(match asked.path.split('/').nth(1) {
                Some("large") => answer(&kind[..1], body),
                Some("slow") => {
                    // Some of it, and then nothing for a long time.
                    let frames = futures_util::stream::iter([Ok(Frame::data(body))])
                        .chain(futures_util::stream::pending());
                    let head = answer(&kind[..1], "").into_parts().0;
                    http::Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
                }
                _ => answer(&kind, "small"),
            })
        }
    })
    .await;
    let policy = outside("product", "product", 8080, app.address())
        + &calling("caller")
        + &caching(&["limits: { maxBytes: 8MiB, maxObjectBytes: 1MiB }"]);
    let mesh = tokio::task::block_in_place(|| Mesh::start(&policy));
    let caller = tokio::task::block_in_place(|| mesh.sidecar("caller", &[]));
    let client = Client::new(caller.outbound);
    let large = |from: u64, to: u64| {
        (from * MIB / BODY as u64..to * MIB / BODY as u64).map(|n| (format!("/large/{n}"), String::new()))
    };

    // Twice the limit: all that it will ever need.
    push(&client, large(0, 16)).await;
    let warm = resident(&caller);
    for mib in (16..80).step_by(16) {
        push(&client, large(mib, mib + 16)).await;
        is_within_limit(&caller).await;
    }
    let after = resident(&caller);
    assert!(after <= warm + LIMIT, "from {} to {} MiB", warm / MIB, after / MIB);
    assert!(metrics(&caller).await.sum("weft_cache_evicted_total", &[]) > 500.0);

    // Keys and variants that never end, and that nobody asks for twice.
    let long = "x".repeat(1000);
    push(&client, (0..4_000).map(|n| (format!("/small/{n}?{long}"), String::new()))).await;
    push(&client, (0..2_000).map(|n| ("/small".to_owned(), format!("{n}{long}")))).await;
    is_within_limit(&caller).await;

    // Answers that come and do not end.
    let mut slow = Vec::new();
    for n in 0..150 {
        let request = crate::stage::request("GET", &format!("/slow/{n}"), &[]);
        slow.push(client.send(request).await.unwrap());
    }
    is_within_limit(&caller).await;
    let last = resident(&caller);
    assert!(last <= warm + LIMIT + SLACK, "from {} to {} MiB", warm / MIB, last / MIB);
    drop(slow);
    push(&client, large(0, 4)).await;
    is_within_limit(&caller).await;
}
