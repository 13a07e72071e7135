//! What a cache hit costs, from the bytes of a request's head to the bytes of its answer, without sockets:
//! `cargo bench -p weft-sidecar --features bench`.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use weft_sidecar::bench::{Hits, head};

fn hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    group.throughput(Throughput::Elements(1));
    for keys in [1, 10_000] {
        let hits = Hits::new(keys, 1024).unwrap();
        let heads: Vec<_> = (0..keys).map(head).collect();
        let mut out = Vec::with_capacity(4096);
        let mut at = 0;
        group.bench_function(BenchmarkId::new("1 KiB", keys), |b| {
            b.iter(|| {
                // In no order that a processor could guess.
                at = (at * 1103 + 12_345) % keys;
                out.clear();
                assert!(hits.hit(black_box(&heads[at]), &mut out));
                out.len()
            });
        });
        assert!(out.windows(9).any(|text| text == b"weft; hit"));
    }
    group.finish();
}

criterion_group!(benches, hit);
criterion_main!(benches);
