//! What a saved file costs in a mesh of 10, 1,000 and 10,000 routes: reading, judging, and compiling for a caller.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use weft_config::{compile, parse, policy::Policy};

/// Services of ten routes each.
fn documents(routes: usize) -> String {
    let mut text = String::new();
    for n in 0..routes {
        let service = n / 10;
        if n % 10 == 0 {
            text.push_str(&format!(
                "
apiVersion: v1
kind: Service
metadata: {{name: s{service}, namespace: bench}}
spec: {{ports: [{{port: 80, appProtocol: http}}]}}
---"
            ));
        }
        text.push_str(&format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r{n}, namespace: bench}}
spec:
  parentRefs: [{{group: '', kind: Service, name: s{service}}}]
  rules:
  - matches: [{{path: {{value: /api/v{n}}}, headers: [{{name: x-group, value: beta}}]}}]
    backendRefs: [{{name: s{service}, port: 80, weight: 9}}, {{name: s0, port: 80, weight: 1}}]
---"
        ));
    }
    text
}

fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy");
    group.sample_size(10);
    for routes in [10, 1_000, 10_000] {
        let text = documents(routes);
        group.bench_function(BenchmarkId::new("parse", routes), |b| {
            b.iter(|| parse::parse("a.yaml", black_box(&text)).documents.len());
        });
        let mut policy = Policy::new("weft.local");
        assert!(policy.replace_file("a.yaml", &text).diagnostics.is_empty());
        // One small file is saved beside all the others.
        let small = |weight: usize| {
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: extra}}, spec: {{ports: [{{port: {weight}}}]}}}}"
            )
        };
        let mut saves = 0;
        group.bench_function(BenchmarkId::new("save", routes), |b| {
            b.iter(|| {
                saves += 1;
                assert!(!policy.replace_file("b.yaml", &small(1 + saves % 60_000)).changed.is_empty());
            });
        });
        group.bench_function(BenchmarkId::new("compile everything", routes), |b| {
            b.iter(|| {
                compile::everything(&policy, &compile::Caller::in_namespace("bench")).services().count()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, policy);
criterion_main!(benches);
