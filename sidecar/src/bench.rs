//! What benchmarks need of the inside: a hit, from the bytes of a request's head to the bytes of its answer.

use crate::{
    exchange::{Back, Handler},
    http1,
    outbound::{Outbound, Target},
    settings::Settings,
    telemetry::{access_log::AccessLog, metrics::Metrics},
    tls::Tls,
    worker::{Shared, Worker},
};
use anyhow::Context;
use clap::Parser;
use futures_util::FutureExt;
use http::Response;
use http_body_util::BodyExt;
use std::{rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Runtime,
    task::LocalSet,
};
use weft_config::{
    compile::{self, Caller},
    identity::ServiceName,
    policy::Policy,
};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Nobody waits for interim answers.
struct Nobody;

impl Back for Nobody {
    fn interim(&self, _: Response<()>) {}
}

/// A worker whose cache keeps what its origin answered.
pub struct Hits {
    runtime: Runtime,
    outbound: Outbound,
}

impl Hits {
    /// Fetches `/k/0` to `/k/<keys - 1>` from an origin that answers with `bytes`.
    pub fn new(keys: usize, bytes: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outbound = LocalSet::new().block_on(&runtime, async {
            let origin = TcpListener::bind("127.0.0.1:0").await?;
            let outbound = worker(origin.local_addr()?.port())?;
            tokio::task::spawn_local(serve(origin, bytes));
            for key in 0..keys {
                let request = http1::read(&head(key)).context("a request")?;
                let response = outbound.handle(request, &Nobody).await;
                let body = response.into_body().collect().await;
                anyhow::ensure!(body.is_ok_and(|body| body.to_bytes().len() == bytes), "no answer for {key}");
            }
            Ok(outbound)
        })?;
        Ok(Self { runtime, outbound })
    }

    /// Answers a request by what is kept, into `out`. False if that is not there.
    pub fn hit(&self, head: &[u8], out: &mut Vec<u8>) -> bool {
        let _context = self.runtime.enter();
        let Some(request) = http1::read(head) else { return false };
        let Some(response) = self.outbound.handle(request, &Nobody).now_or_never() else { return false };
        http1::written(response, out);
        true
    }
}

/// A request for one key.
pub fn head(key: usize) -> Vec<u8> {
    format!("GET /k/{key} HTTP/1.1\r\nHost: svc.bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
        .into_bytes()
}

fn worker(port: u16) -> anyhow::Result<Outbound> {
    let mut policy = Policy::new("mesh.test");
    policy.replace_file(
        "bench.yaml",
        &format!(
            "
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: b, namespace: bench }}
spec:
  serviceAccount: b
  service: svc
  ports: [{{ port: 80, appPort: {port}, appProtocol: http }}]
  mesh: false
---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: {{ name: svc, namespace: bench }}
spec: {{ targetRefs: [{{ kind: Service, name: svc }}] }}
"
        ),
    );
    let caller = Caller { namespace: "bench".into(), service_account: "a".into(), workload: "a".into() };
    let flags = ["bench", "--policy", ".", "--namespace", "bench", "--workload", "a"];
    let settings = Flags::try_parse_from(flags)?.settings;
    let metrics = Metrics::new(1);
    let access_log = AccessLog::stdout(metrics.clone());
    let shared = Shared::new(settings, Arc::new(Tls::new("mesh.test")), metrics, access_log, None);
    shared.publish(Arc::new(compile::everything(&policy, &caller)));
    let target = Target::Service { service: ServiceName::new("bench", "svc"), port: 80 };
    Ok(Outbound { worker: Rc::new(Worker::new(Arc::new(shared), 0)), target })
}

/// An origin that answers everything with the same.
async fn serve(listener: TcpListener, bytes: usize) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nCache-Control: public, max-age=3600\r\nETag: \"v1\"\r\n\
        Content-Length: {bytes}\r\n\r\n{}",
        "x".repeat(bytes)
    );
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::task::spawn_local(async move {
            let mut seen = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut seen).await {
                if seen.ends_with(b"\r\n\r\n") {
                    seen.clear();
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}
