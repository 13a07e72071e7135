//! Who calls what is going away: reported by sidecars, kept by the identity they proved, shown with what policy says.

mod support;

use support::{CART, Fixture, Sidecar, get, hello, start};
use weft_config::wire::{self, to_control_plane};
use weft_control_plane::status::{Deprecated, Status};

const OLD: &str = "
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: old-cart, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: cart }]
  deprecation: { since: 2026-01-31, sunset: 2026-12-31, link: \"https://docs.example.com/v2\" }
";
const CART_SERVICE: &str = "Service shop/cart";

async fn join(f: &Fixture, workload: &str, account: &str, instance: &str) -> Sidecar {
    let hello = wire::Hello { instance: instance.to_owned(), ..hello("shop", workload, account, "") };
    let hello = wire::Hello { join_token: f.token("shop", account), ..hello };
    f.open(hello, None).await.expect("let in")
}

async fn report(sidecar: &Sidecar, counts: &[(&str, u64)]) {
    let one = |(of, calls): &(&str, u64)| wire::DeprecatedCalls {
        of: (*of).to_owned(),
        calls: *calls,
        seconds_ago: 0,
    };
    let usage = wire::Usage { deprecated: counts.iter().map(one).collect() };
    sidecar.send(to_control_plane::Message::Usage(usage)).await;
}

fn of<'a>(status: &'a Status, name: &str) -> Option<&'a Deprecated> {
    status.deprecated.iter().find(|deprecated| deprecated.of == name)
}

fn calls(status: &Status, name: &str) -> u64 {
    of(status, name).map_or(0, |deprecated| deprecated.callers.iter().map(|caller| caller.calls).sum())
}

#[tokio::test]
async fn what_policy_says_is_going_away_is_known_before_anybody_calls() {
    let f = start(&[("cart.yaml", CART), ("old.yaml", OLD)]).await;
    let status = f.status().await;
    let expected = Deprecated {
        of: CART_SERVICE.into(),
        policy: "shop/old-cart".into(),
        since: "2026-01-31".into(),
        sunset: "2026-12-31".into(),
        link: "https://docs.example.com/v2".into(),
        callers: vec![],
    };
    assert_eq!(status.deprecated, [expected]);
}

#[tokio::test]
async fn callers_are_kept_by_the_identity_that_they_proved() {
    let f = start(&[("cart.yaml", CART), ("old.yaml", OLD)]).await;
    let first = join(&f, "checkout", "checkout", "one").await;
    let second = join(&f, "checkout", "checkout", "two").await;
    let user = join(&f, "user", "people", "one").await;
    report(&first, &[(CART_SERVICE, 3)]).await;
    report(&first, &[(CART_SERVICE, 5)]).await;
    report(&second, &[(CART_SERVICE, 4)]).await;
    report(&user, &[(CART_SERVICE, 1), ("Service shop/gone", 2)]).await;
    let all = |s: &Status| calls(s, CART_SERVICE) == 10 && calls(s, "Service shop/gone") == 2;
    let status = f.until("all reports", all).await;
    let callers = &of(&status, CART_SERVICE).expect("known").callers;
    let told: Vec<_> = callers
        .iter()
        .map(|c| (c.identity.as_str(), c.namespace.as_str(), c.workload.as_str(), c.processes, c.calls))
        .collect();
    assert_eq!(
        told,
        [
            ("spiffe://weft.local/ns/shop/sa/checkout", "shop", "checkout", 2, 9),
            ("spiffe://weft.local/ns/shop/sa/people", "shop", "user", 1, 1),
        ]
    );
    let now = status.control_plane.now;
    assert!(callers.iter().all(|caller| caller.last_call <= now && now - caller.last_call < 60));
    let gone = of(&status, "Service shop/gone").expect("what policy no longer names is not lost");
    assert_eq!((gone.policy.as_str(), gone.since.as_str()), ("", ""));

    let (_, metrics) = get(f.running.addresses().metrics, "/metrics", "").await;
    for wanted in [
        "weft_control_plane_deprecated_calls_total 12",
        "weft_control_plane_deprecated_callers 4",
        "weft_control_plane_deprecated_dropped_total 0",
    ] {
        assert!(metrics.contains(wanted), "{wanted} in\n{metrics}");
    }
    let (code, json) = get(f.running.addresses().dashboard, "/api/status", "").await;
    assert!(code == 200 && json.contains("\"lastCall\"") && json.contains("sa/people"), "{json}");
}

#[tokio::test]
async fn after_a_restart_what_sidecars_tell_again_is_what_is_known() {
    let f = start(&[("cart.yaml", CART), ("old.yaml", OLD)]).await;
    let sidecar = join(&f, "checkout", "checkout", "one").await;
    report(&sidecar, &[(CART_SERVICE, 7)]).await;
    f.until("the report", |status| calls(status, CART_SERVICE) == 7).await;
    let f = f.restart().await;
    assert_eq!(calls(&f.status().await, CART_SERVICE), 0);
    let sidecar = join(&f, "checkout", "checkout", "one").await;
    report(&sidecar, &[(CART_SERVICE, 7)]).await;
    report(&sidecar, &[(CART_SERVICE, 8)]).await;
    f.until("the report again", |status| calls(status, CART_SERVICE) == 8).await;
}
