//! Who is who: mTLS on every hop, everybody else refused and counted, and who may call what.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use http::Request;
use weft_tests::{
    Backend, Beside, Client, Mesh, PATIENCE, empty, eventually, full,
    mesh::{calling, mesh_policy, serving},
    pki::{Forger, Years, knock},
    raw,
};

const PRODUCT: &str = "spiffe://weft.local/ns/shop/sa/product";
const CALLER: &str = "spiffe://weft.local/ns/shop/sa/caller";
/// The server name of the product service's port, as sidecars ask for it.
const SERVER: &str = "8080.product.shop.weft";

fn product_and_caller() -> String {
    serving("product", 8080, "http") + &calling("caller")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_crosses_the_mesh_with_both_identities_proven() {
    let mesh = Mesh::start(&product_and_caller()).await;
    let app = Backend::text("hello").await;
    let product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    let status = mesh.until("the endpoint", |s| s.services.iter().any(|s| s.endpoints.len() == 1)).await;
    assert_eq!(status.services[0].endpoints[0].identity, PRODUCT);
    assert_eq!(product.admin("/certs").await["identity"]["id"], PRODUCT);
    assert_eq!(caller.admin("/certs").await["identity"]["id"], CALLER);

    let client = Client::new(caller.outbound());
    for _ in 0..3 {
        assert_eq!(client.get("http://product:8080/").await.text(), "hello");
    }
    let (out, inn) = (caller.metrics().await, product.metrics().await);
    for (metrics, direction) in [(&out, "outbound"), (&inn, "inbound")] {
        let direction = format!("direction=\"{direction}\"");
        let labels = [direction.as_str(), "service=\"shop/product\"", "status=\"200\"", "tls=\"mtls\""];
        assert_eq!(metrics.sum("weft_requests_total", &labels), 3.0, "{}", metrics.0);
        assert!(metrics.sum("weft_tls_handshakes_total", &[&direction, "result=\"ok\""]) >= 1.0);
        assert_eq!(metrics.sum("weft_errors_total", &[]), 0.0);
    }
    assert!(out.sum("weft_identity_expiration_timestamp_seconds", &[]) > 1.7e9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_mode_refuses_and_counts_everybody_else() {
    let mesh = Mesh::start(&product_and_caller()).await;
    let app = Backend::text("secret").await;
    let product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let inbound = product.addresses().inbound;
    let now = Years(2000, 2400);
    let inside = Forger::inside(mesh.state_dir());

    let answer = knock(inbound, SERVER, Some(inside.certificate(&[CALLER], now))).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("secret"), "the door is one: {answer:?}");

    let elsewhere = knock(inbound, "8080.cart.shop.weft", Some(inside.certificate(&[CALLER], now))).await;
    assert!(elsewhere.starts_with("HTTP/1.1 421 "), "another service's name: {elsewhere:?}");
    assert!(elsewhere.to_ascii_lowercase().contains("weft-error: misdirected"), "{elsewhere:?}");

    let (status, text) = raw::get(inbound, "/").await;
    assert_eq!(status, 403, "{text}");
    assert!(text.contains("mTLS is strict"), "{text:?}");

    let other = "spiffe://weft.local/ns/shop/sa/other";
    let refused = [
        ("no_certificate", None),
        ("unknown_ca", Some(Forger::outside().certificate(&[CALLER], now))),
        ("wrong_trust_domain", Some(inside.certificate(&["spiffe://evil.example/ns/shop/sa/caller"], now))),
        ("not_spiffe", Some(inside.certificate(&["https://weft.local/caller"], now))),
        ("no_uri_san", Some(inside.certificate(&[], now))),
        ("several_uri_sans", Some(inside.certificate(&[CALLER, other], now))),
        ("expired", Some(inside.certificate(&[CALLER], Years(2000, 2001)))),
        ("not_yet_valid", Some(inside.certificate(&[CALLER], Years(2390, 2400)))),
    ];
    for (reason, credentials) in refused {
        assert_eq!(knock(inbound, SERVER, credentials).await, "", "{reason}");
        let label = format!("result=\"{reason}\"");
        eventually(&format!("{reason} is counted"), PATIENCE, || async {
            let metrics = product.metrics().await;
            let counted = metrics.sum("weft_tls_handshakes_total", &["direction=\"inbound\"", &label]);
            (counted == 1.0).then_some(())
        })
        .await;
    }
    let metrics = product.metrics().await;
    let plain = metrics.sum("weft_tls_handshakes_total", &["result=\"plaintext_refused\""]);
    assert_eq!(plain, 1.0);
    let inbound_requests = metrics.sum("weft_requests_total", &["direction=\"inbound\""]);
    assert_eq!(inbound_requests, 1.0, "nothing of the others reached the application");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_refuses_a_peer_that_is_not_who_the_registry_says() {
    // Two workloads; the documents say that `product` is where `impostor` really listens.
    let app = Backend::text("stolen").await;
    let mesh = Mesh::start(&(serving("impostor", 8080, "http") + &calling("caller"))).await;
    let impostor = mesh.sidecar(Beside::new("impostor").app(8080, app.address())).await;
    let inbound = impostor.addresses().inbound;
    mesh.write("product.yaml", &format!("{}  inbound: {inbound}\n", serving("product", 8080, "http")));
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;
    let client = Client::new(caller.outbound());
    let answer = client.get("http://product:8080/").await;
    assert_eq!((answer.status.as_u16(), answer.weft_error()), (503, "tls"), "{}", answer.text());
    assert!(answer.text().contains(PRODUCT), "{}", answer.text());
    let metrics = caller.metrics().await;
    let labels = ["direction=\"outbound\"", "result=\"wrong_identity\""];
    assert!(metrics.sum("weft_tls_handshakes_total", &labels) >= 1.0, "{}", metrics.0);
    assert_eq!(impostor.metrics().await.sum("weft_requests_total", &["direction=\"inbound\""]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissive_mode_takes_plain_text_too() {
    let policy = product_and_caller() + &mesh_policy("{ mtls: { mode: permissive } }");
    let mesh = Mesh::start(&policy).await;
    let app = Backend::echo("app").await;
    let product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let caller = mesh.sidecar(Beside::new("caller")).await;
    mesh.endpoints("product", 1).await;

    let (status, text) = raw::get(product.addresses().inbound, "/plain").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("/plain"), "{text}");
    assert_eq!(Client::new(caller.outbound()).get("http://product:8080/").await.status, 200);
    let metrics = product.metrics().await;
    for tls in ["plain", "mtls"] {
        let labels = ["direction=\"inbound\"", &format!("tls=\"{tls}\"")];
        assert_eq!(metrics.sum("weft_requests_total", &labels), 1.0, "{tls}: {}", metrics.0);
    }
    // And strict again, without a restart.
    mesh.write("policy.yaml", &product_and_caller());
    eventually("plain text is refused", PATIENCE, || async {
        (raw::get(product.addresses().inbound, "/plain").await.0 == 403).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorization_decides_by_identity_method_and_path() {
    let rules = "---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: product, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: product }]
  action: allow
  rules:
    - name: read
      from: [{ identities: [shop/caller] }]
      to: [{ methods: [GET], paths: [/products, /products/*] }]
    - name: all
      from: [{ identities: [\"spiffe://weft.local/ns/shop/sa/owner\"] }]
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: { name: nobody, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: product }]
  action: deny
  rules:
    - name: internal
      to: [{ paths: [/internal/*] }]
";
    let policy = product_and_caller() + &calling("owner") + &calling("stranger") + rules;
    let mesh = Mesh::start(&policy).await;
    let app = Backend::text("yes").await;
    let product = mesh.sidecar(Beside::new("product").app(8080, app.address())).await;
    let mut sidecars = Vec::new();
    for name in ["caller", "owner", "stranger"] {
        sidecars.push(mesh.sidecar(Beside::new(name)).await);
    }
    mesh.endpoints("product", 1).await;
    let expected = [
        ("GET", "/products", [true, true, false]),
        ("GET", "/products/1", [true, true, false]),
        ("POST", "/products", [false, true, false]),
        ("GET", "/other", [false, true, false]),
        ("GET", "/internal/x", [false, false, false]),
        // One normal form of the path, whatever is written.
        ("GET", "/products/../internal/x", [false, false, false]),
        ("GET", "/products/%2e%2e/internal/x", [false, false, false]),
    ];
    let mut denied = 0.0;
    for (method, path, allowed) in expected {
        for (sidecar, allowed) in sidecars.iter().zip(allowed) {
            let request = Request::builder().method(method).uri(format!("http://product:8080{path}"));
            let answer = Client::new(sidecar.outbound()).call(request.body(empty()).unwrap()).await;
            if allowed {
                assert_eq!((answer.status.as_u16(), answer.text()), (200, "yes"), "{method} {path}");
            } else {
                denied += 1.0;
                assert_eq!(answer.status, 403, "{method} {path}");
                assert_eq!(answer.weft_error(), "forbidden", "{method} {path}");
                assert!(answer.text().contains("spiffe://weft.local/ns/shop/sa/"), "{}", answer.text());
            }
        }
    }
    let metrics = product.metrics().await;
    assert_eq!(metrics.sum("weft_authorization_denied_total", &[]), denied, "{}", metrics.0);
    assert_eq!(metrics.sum("weft_errors_total", &["kind=\"forbidden\""]), denied);

    let request = Request::post("http://product:8080/shop.Products/Delete")
        .header("content-type", "application/grpc")
        .body(full(""))
        .unwrap();
    let answer = Client::new(sidecars[2].outbound()).call_http2(request).await;
    assert_eq!(answer.header("grpc-status"), "7", "{:?}", answer.headers);

    // Policy that changes takes effect on connections that are open already.
    mesh.write("policy.yaml", &policy.replace("[shop/caller]", "[shop/stranger]"));
    let stranger = Client::new(sidecars[2].outbound());
    eventually("the stranger is let in", PATIENCE, || async {
        (stranger.get("http://product:8080/products").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(Client::new(sidecars[0].outbound()).get("http://product:8080/products").await.status, 403);
}
