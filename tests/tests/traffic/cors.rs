//! Cross-origin requests of browsers.

use http::{Method, Request};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use weft_tests::{
    Answer, Backend, empty, full,
    stage::{Instance, Stage, route},
};

struct Shop {
    stage: Stage,
    reached: Arc<AtomicUsize>,
}

/// A service whose route has these CORS settings; the application says something about CORS too.
async fn shop(cors: &str) -> Shop {
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = reached.clone();
    let app = Backend::http(move |_| {
        counter.fetch_add(1, SeqCst);
        async {
            let response =
                http::Response::builder().header("access-control-allow-origin", "https://of.the.app");
            Ok(response.header("x-total", "42").body(full("goods"))?)
        }
    });
    let rule = format!(
        "{{ filters: [{{ type: CORS, cors: {cors} }}], backendRefs: [{{ name: product, port: 8080 }}] }}"
    );
    let policy = route("HTTPRoute", "product", &[&rule]);
    let stage = Stage::set(&policy, [Instance::new("product", app.await)]).await;
    Shop { stage, reached }
}

impl Shop {
    async fn call(&self, method: Method, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(crate::URL);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.stage.client.call(request.body(empty()).unwrap()).await
    }

    async fn preflight(&self, origin: &str, method: &str) -> Answer {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", "x-token"),
        ];
        self.call(Method::OPTIONS, &headers).await
    }
}

const STRICT: &str = "{ allowOrigins: [\"https://shop.example\", \"https://*.partner.example\"], allowCredentials: true, \
                      allowMethods: [GET, PUT], allowHeaders: [x-token], exposeHeaders: [x-total], maxAge: 600 }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflights_are_answered_for_the_application() {
    let shop = shop(STRICT).await;
    for origin in ["https://shop.example", "https://a.partner.example", "https://a.b.partner.example"] {
        let answer = shop.preflight(origin, "PUT").await;
        assert_eq!(answer.status, 204);
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
        assert_eq!(answer.header("access-control-allow-methods"), "GET, PUT");
        assert_eq!(answer.header("access-control-allow-headers"), "x-token");
        assert_eq!(answer.header("access-control-max-age"), "600");
        assert!(answer.header("vary").contains("origin"), "{:?}", answer.headers);
    }
    assert_eq!(shop.reached.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_that_may_not_call_get_no_cors_fields() {
    let shop = shop(STRICT).await;
    for origin in [
        "https://evil.example",
        "http://shop.example",
        "https://partner.example",
        "https://shop.example.evil",
    ] {
        let answer = shop.preflight(origin, "GET").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("access-control-allow-origin")),
            (204, ""),
            "{origin}"
        );
        assert_eq!(answer.header("access-control-allow-methods"), "", "{origin}");
        let answer = shop.call(Method::GET, &[("origin", origin)]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "goods"), "the browser is who stops it");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{origin}");
    }
    assert_eq!(shop.reached.load(SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actual_requests_are_allowed_with_credentials_and_what_may_be_read() {
    let shop = shop(STRICT).await;
    let answer = shop.call(Method::GET, &[("origin", "https://shop.example"), ("cookie", "id=1")]).await;
    assert_eq!(answer.text(), "goods");
    let all: Vec<_> = answer.headers.get_all("access-control-allow-origin").iter().collect();
    assert_eq!(all, ["https://shop.example"], "in place of what the application says");
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert_eq!(answer.header("access-control-expose-headers"), "x-total");
    assert!(answer.header("vary").contains("origin"));
    assert_eq!(shop.call(Method::GET, &[]).await.header("access-control-allow-origin"), "");
    assert_eq!(shop.call(Method::OPTIONS, &[("origin", "https://shop.example")]).await.text(), "goods");
    assert_eq!(shop.reached.load(SeqCst), 3, "an OPTIONS that is no preflight is the application's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_star_lets_everybody_in_and_defaults_are_those_of_the_gateway_api() {
    let shop = shop(
        "{ allowOrigins: [\"*\"], allowMethods: [\"*\"], allowHeaders: [\"*\"], exposeHeaders: [\"*\"] }",
    )
    .await;
    let answer = shop.preflight("https://anybody.example", "DELETE").await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-methods"), "DELETE");
    assert_eq!(answer.header("access-control-allow-headers"), "x-token");
    assert_eq!(answer.header("access-control-max-age"), "5");
    assert_eq!(answer.header("access-control-allow-credentials"), "");
    let answer = shop.call(Method::GET, &[("origin", "https://anybody.example")]).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-expose-headers"), "*");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_without_credentials_allowed_get_no_cors_fields() {
    let shop = shop("{ allowOrigins: [\"https://shop.example\"] }").await;
    let origin = ("origin", "https://shop.example");
    let answer = shop.call(Method::GET, &[origin]).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example");
    assert_eq!(answer.header("access-control-allow-credentials"), "");
    let answer = shop.call(Method::GET, &[origin, ("cookie", "id=1")]).await;
    assert_eq!((answer.text(), answer.header("access-control-allow-origin")), ("goods", ""));
}
