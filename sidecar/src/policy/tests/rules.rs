//! What the state machine does with each event; nothing here waits or connects.

use super::{
    super::{
        entry::Refusal,
        names::ResourceName,
        state::{ABSENT_FOR, Found, MAX_UNKNOWN, Output, State, UNUSED_AFTER, WANT_FOR},
        usage::Tables,
    },
    *,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use weft_config::{compile::Caller, identity::ServiceName, snapshot::MtlsMode};
use wire::to_control_plane::Message;

/// A state machine with its clock.
struct Machine {
    state: State,
    tables: Arc<Tables>,
    now: Instant,
    nonce: u64,
}

impl Machine {
    fn new() -> Self {
        let tables = Arc::new(Tables::default());
        let now = Instant::now();
        let own = name("cart");
        let caller =
            Caller { namespace: own.namespace, service_account: "default".into(), workload: own.name };
        Self { state: State::new(caller, tables.clone(), now), tables, now, nonce: 0 }
    }

    /// With a stream that the control plane has taken.
    fn connected() -> Self {
        let mut machine = Self::new();
        machine.state.opened();
        machine.state.welcomed();
        machine
    }

    fn want(&mut self, service: &str) -> Output {
        self.state.want(name(service), self.now)
    }

    fn update(&mut self, resources: Vec<wire::Resource>, removed: &[&str]) -> Output {
        self.nonce += 1;
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        let update = wire::Update { nonce: self.nonce, resources, removed, policy_version: String::new() };
        self.state.update(update, self.now)
    }

    fn pass(&mut self, time: Duration) -> Output {
        self.now += time;
        self.state.tick(self.now)
    }

    /// A service that was wanted and found.
    fn know(&mut self, service: &str) {
        self.want(service);
        let output =
            self.update(vec![super::service(service, "1"), endpoints(service, "1", "10.0.0.1:80")], &[]);
        assert_eq!(output.answers, [(name(service), Found::Yes)]);
    }
}

fn name(service: &str) -> ServiceName {
    ServiceName::new("shop", service)
}

/// Names subscribed to and dropped by an output.
fn subscriptions(output: &Output) -> (Vec<&str>, Vec<&str>) {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for message in &output.send {
        if let Message::Subscribe(subscribe) = message {
            add.extend(subscribe.add.iter().map(|subscription| subscription.name.as_str()));
            remove.extend(subscribe.remove.iter().map(String::as_str));
        }
    }
    (add, remove)
}

fn ack(output: &Output) -> &wire::Ack {
    let ack = output.send.iter().find_map(|message| match message {
        Message::Ack(ack) => Some(ack),
        _ => None,
    });
    ack.expect("every update is answered")
}

fn address_of(output: &Output, service: &str) -> String {
    let snapshot = output.snapshot.as_ref().expect("a new snapshot");
    let service = snapshot.service(&name(service)).expect("the service");
    service.ports[0].endpoints[0].address.to_string()
}

#[test]
fn a_stream_begins_with_everything_that_is_always_needed() {
    let mut machine = Machine::new();
    let Message::Subscribe(subscribe) = machine.state.opened() else { panic!("a subscription") };
    let names: Vec<_> = subscribe.add.iter().map(|s| (s.name.as_str(), s.version.as_str())).collect();
    assert_eq!(names, [("mesh", ""), ("trust", ""), ("workload/shop/cart", "")]);
}

#[test]
fn concurrent_wants_subscribe_once_and_are_answered_together() {
    let mut machine = Machine::connected();
    let first = machine.want("product");
    assert_eq!(subscriptions(&first).0, ["service/shop/product", "endpoints/shop/product"]);
    assert!(first.answers.is_empty());
    let second = machine.want("product");
    assert!(second.send.is_empty() && second.answers.is_empty());
    let half = machine.update(vec![service("product", "1")], &[]);
    assert!(half.answers.is_empty(), "where it is served is not known yet");
    let found = machine.update(vec![endpoints("product", "1", "10.0.0.1:80")], &[]);
    assert_eq!(found.answers, [(name("product"), Found::Yes)]);
    assert_eq!(address_of(&found, "product"), "10.0.0.1:80");
    assert_eq!(machine.want("product").answers, [(name("product"), Found::Yes)], "known now");
}

#[test]
fn a_service_that_does_not_exist_is_answered_and_remembered_for_a_while() {
    let mut machine = Machine::connected();
    machine.want("nothing");
    let output = machine.update(vec![], &["service/shop/nothing", "endpoints/shop/nothing"]);
    assert_eq!(output.answers, [(name("nothing"), Found::No)]);
    assert!(machine.tables.is_absent(&name("nothing")));
    let again = machine.want("nothing");
    assert_eq!(again.answers, [(name("nothing"), Found::No)], "without asking");
    assert!(again.send.is_empty());
    machine.pass(ABSENT_FOR / 2);
    assert!(machine.tables.is_absent(&name("nothing")));
    let output = machine.pass(ABSENT_FOR);
    assert_eq!(subscriptions(&output).1, ["service/shop/nothing", "endpoints/shop/nothing"]);
    assert!(!machine.tables.is_absent(&name("nothing")));
}

#[test]
fn a_service_that_appears_is_found_while_its_absence_is_remembered() {
    let mut machine = Machine::connected();
    machine.want("late");
    machine.update(vec![], &["service/shop/late", "endpoints/shop/late"]);
    let output = machine.update(vec![service("late", "1"), endpoints("late", "1", "10.0.0.1:80")], &[]);
    assert_eq!(address_of(&output, "late"), "10.0.0.1:80");
    assert!(!machine.tables.is_absent(&name("late")));
    let removed = machine.update(vec![], &["service/shop/late"]);
    let snapshot = removed.snapshot.expect("a new snapshot");
    assert!(snapshot.service(&name("late")).is_none(), "and gone again");
    assert_eq!(machine.want("late").answers, [(name("late"), Found::No)]);
}

#[test]
fn what_is_known_not_to_exist_is_bounded() {
    let mut machine = Machine::connected();
    let names: Vec<String> = (0..MAX_UNKNOWN + 200).map(|index| format!("x{index}")).collect();
    for name in &names {
        machine.want(name);
        machine.now += Duration::from_micros(1);
        machine.update(vec![], &[&format!("service/shop/{name}"), &format!("endpoints/shop/{name}")]);
    }
    machine.pass(Duration::from_millis(1));
    assert!(machine.state.absent().count() <= MAX_UNKNOWN);
    assert!(!machine.tables.is_absent(&name("x0")), "the oldest go first");
    assert!(machine.tables.is_absent(&name(names.last().expect("many"))));
}

#[test]
fn what_is_asked_for_at_one_time_is_bounded() {
    let mut machine = Machine::connected();
    for index in 0..MAX_UNKNOWN {
        assert!(machine.want(&format!("x{index}")).answers.is_empty());
    }
    assert_eq!(machine.want("one-more").answers, [(name("one-more"), Found::Unavailable)]);
    let output = machine.pass(WANT_FOR);
    assert_eq!(output.answers.len(), MAX_UNKNOWN);
    assert!(output.answers.iter().all(|(_, found)| *found == Found::Unavailable));
}

#[test]
fn names_that_no_service_can_have_are_not_asked_for() {
    let mut machine = Machine::connected();
    for bad in ["", "a/b", "a b", "é"] {
        let output = machine.want(bad);
        assert_eq!(output.answers, [(name(bad), Found::No)]);
        assert!(output.send.is_empty());
    }
}

#[test]
fn silence_is_bounded() {
    let mut machine = Machine::connected();
    machine.want("product");
    assert!(machine.pass(WANT_FOR - Duration::from_millis(1)).answers.is_empty());
    assert_eq!(machine.state.next_tick(), machine.now + Duration::from_millis(1));
    assert_eq!(machine.pass(Duration::from_millis(1)).answers, [(name("product"), Found::Unavailable)]);
}

#[test]
fn while_the_control_plane_is_away_nobody_waits_long() {
    let mut machine = Machine::connected();
    machine.know("product");
    machine.want("gone");
    machine.update(vec![], &["service/shop/gone", "endpoints/shop/gone"]);
    machine.state.closed(machine.now);
    machine.now += WANT_FOR / 2;
    assert!(machine.want("new").answers.is_empty(), "it may be back at once");
    machine.pass(WANT_FOR / 2);
    assert_eq!(machine.want("newer").answers, [(name("newer"), Found::Unavailable)]);
    assert_eq!(machine.want("product").answers, [(name("product"), Found::Yes)]);
    machine.pass(ABSENT_FOR * 3);
    assert_eq!(machine.want("gone").answers, [(name("gone"), Found::No)], "the last answer still counts");
}

#[test]
fn a_rejected_version_leaves_the_last_good_one_in_force_and_is_named() {
    let mut machine = Machine::connected();
    machine.know("product");
    machine.know("user");
    let output =
        machine.update(vec![broken_service("product", "2"), endpoints("user", "2", "10.0.0.2:80")], &[]);
    let ack = ack(&output);
    assert_eq!(ack.nonce, machine.nonce);
    assert_eq!(ack.rejected.len(), 1);
    assert_eq!(
        (ack.rejected[0].name.as_str(), ack.rejected[0].version.as_str()),
        ("service/shop/product", "2")
    );
    assert!(!ack.rejected[0].reason.is_empty());
    assert_eq!(address_of(&output, "user"), "10.0.0.2:80", "the others are taken");
    assert_eq!(address_of(&output, "product"), "10.0.0.1:80");
    let snapshot = output.snapshot.expect("a snapshot");
    assert_eq!(&*snapshot.service(&name("product")).expect("there").version, "1/1");

    let status = machine.state.status();
    let resources = status["resources"].as_array().expect("a list");
    let product = resources.iter().find(|r| r["name"] == "service/shop/product").expect("listed");
    assert_eq!(product["version"], "1");
    assert_eq!(product["rejected"]["version"], "2");

    let Message::Subscribe(subscribe) = machine.state.opened() else { panic!("a subscription") };
    let held = subscribe.add.iter().find(|s| s.name == "service/shop/product").expect("subscribed");
    assert_eq!(held.version, "1", "the good version is what is held");

    let fixed = machine.update(vec![service("product", "3")], &[]);
    assert!(super::rules::ack(&fixed).rejected.is_empty());
    assert_eq!(machine.state.status()["rejected"], 0);
}

#[test]
fn bad_endpoints_are_blamed_alone() {
    let mut machine = Machine::connected();
    machine.know("product");
    let output = machine.update(vec![service("product", "2"), endpoints("product", "2", "nowhere")], &[]);
    assert_eq!(output.refused.len(), 1);
    assert_eq!(output.refused[0].name, ResourceName::Endpoints(name("product")));
    assert_eq!(address_of(&output, "product"), "10.0.0.1:80");
    let snapshot = output.snapshot.expect("a snapshot");
    assert_eq!(&*snapshot.service(&name("product")).expect("there").version, "2/1");
}

#[test]
fn good_endpoints_are_taken_beside_bad_documents() {
    let mut machine = Machine::connected();
    machine.know("product");
    let output =
        machine.update(vec![broken_service("product", "2"), endpoints("product", "2", "10.0.0.9:80")], &[]);
    let refused: Vec<_> = output.refused.iter().map(|refusal: &Refusal| refusal.name.clone()).collect();
    assert_eq!(refused, [ResourceName::Service(name("product"))]);
    assert_eq!(address_of(&output, "product"), "10.0.0.9:80");
}

#[test]
fn a_service_of_which_nothing_is_good_is_unavailable_and_not_absent() {
    let mut machine = Machine::connected();
    machine.want("product");
    let output =
        machine.update(vec![broken_service("product", "1"), endpoints("product", "1", "10.0.0.1:80")], &[]);
    assert_eq!(output.answers, [(name("product"), Found::Unavailable)]);
    assert!(!machine.tables.is_absent(&name("product")));
    let fixed = machine.update(vec![service("product", "2")], &[]);
    assert_eq!(address_of(&fixed, "product"), "10.0.0.1:80", "the endpoints were good all along");
}

#[test]
fn services_that_a_route_forwards_to_are_known_before_the_route_is() {
    let mut machine = Machine::connected();
    machine.know("product");
    let output = machine.update(vec![service_to("product", "2", "product-v2")], &[]);
    assert_eq!(subscriptions(&output).0, ["service/shop/product-v2", "endpoints/shop/product-v2"]);
    assert!(output.snapshot.is_none(), "the new route waits for its backend");
    let output =
        machine.update(vec![service("product-v2", "1"), endpoints("product-v2", "1", "10.0.0.2:80")], &[]);
    let snapshot = output.snapshot.expect("both at once");
    assert_eq!(&*snapshot.service(&name("product")).expect("there").version, "2/1");
    assert!(snapshot.service(&name("product-v2")).is_some());
}

#[test]
fn a_route_does_not_wait_for_its_backend_for_ever() {
    let mut machine = Machine::connected();
    machine.know("product");
    machine.update(vec![service_to("product", "2", "silent")], &[]);
    machine.pass(Duration::from_millis(200));
    machine.update(vec![service_to("product", "3", "silent")], &[]);
    let due = machine.state.next_tick();
    assert!(due <= machine.now + Duration::from_millis(300), "another version does not make it wait longer");
    machine.now = due;
    let output = machine.state.tick(due);
    let snapshot = output.snapshot.expect("published without it");
    assert_eq!(&*snapshot.service(&name("product")).expect("there").version, "3/1");
}

#[test]
fn a_want_is_answered_when_the_backends_are_known_too() {
    let mut machine = Machine::connected();
    machine.want("product");
    let output =
        machine.update(vec![service_to("product", "1", "v2"), endpoints("product", "1", "10.0.0.1:80")], &[]);
    assert!(output.answers.is_empty());
    let output = machine.update(vec![], &["service/shop/v2", "endpoints/shop/v2"]);
    assert_eq!(output.answers, [(name("product"), Found::Yes)], "also if one does not exist");
}

#[test]
fn services_that_forward_to_each_other_do_not_wait_for_each_other() {
    let mut machine = Machine::connected();
    machine.want("a");
    machine.update(vec![service_to("a", "1", "b"), endpoints("a", "1", "10.0.0.1:80")], &[]);
    let output = machine.update(vec![service_to("b", "1", "a"), endpoints("b", "1", "10.0.0.2:80")], &[]);
    assert_eq!(output.answers, [(name("a"), Found::Yes)]);
    let snapshot = output.snapshot.expect("a snapshot");
    assert!(snapshot.service(&name("a")).is_some() && snapshot.service(&name("b")).is_some());
}

#[test]
fn upstreams_of_the_workload_are_subscribed_at_once_and_stay() {
    let mut machine = Machine::connected();
    let output = machine.update(vec![workload("1", &["db"])], &[]);
    assert_eq!(subscriptions(&output).0, ["service/shop/db", "endpoints/shop/db"]);
    machine.update(vec![service("db", "1"), endpoints("db", "1", "10.0.0.5:80")], &[]);
    let output = machine.pass(UNUSED_AFTER * 2);
    assert!(subscriptions(&output).1.is_empty());
    let output = machine.update(vec![workload("2", &[])], &[]);
    assert!(output.snapshot.expect("a snapshot").service(&name("db")).is_some(), "used until a moment ago");
    machine.pass(UNUSED_AFTER / 2);
    let output = machine.pass(UNUSED_AFTER);
    assert_eq!(subscriptions(&output).1, ["service/shop/db", "endpoints/shop/db"]);
}

#[test]
fn an_upstream_that_does_not_exist_yet_is_waited_for_without_haste() {
    let mut machine = Machine::connected();
    machine.update(vec![workload("1", &["db"])], &[]);
    machine.update(vec![], &["service/shop/db", "endpoints/shop/db"]);
    for _ in 0..3 {
        let output = machine.pass(ABSENT_FOR);
        assert!(output.send.is_empty(), "still subscribed");
        assert!(machine.state.next_tick() > machine.now, "and not looked at all the time");
    }
    let output = machine.update(vec![service("db", "1"), endpoints("db", "1", "10.0.0.5:80")], &[]);
    assert_eq!(address_of(&output, "db"), "10.0.0.5:80");
}

#[test]
fn what_is_used_stays_and_what_is_not_goes() {
    let mut machine = Machine::connected();
    machine.know("used");
    machine.know("unused");
    let used = machine.tables.usage(&name("used")).expect("its mark");
    let mut dropped = Vec::new();
    for _ in 0..40 {
        used.mark();
        let output = machine.pass(Duration::from_secs(60));
        dropped.extend(subscriptions(&output).1.into_iter().map(str::to_owned));
    }
    assert_eq!(dropped, ["service/shop/unused", "endpoints/shop/unused"]);
    assert!(machine.tables.usage(&name("unused")).is_none());
    assert!(machine.tables.usage(&name("used")).is_some());
}

#[test]
fn backends_stay_for_as_long_as_a_route_forwards_to_them() {
    let mut machine = Machine::connected();
    machine.want("product");
    machine.update(vec![service_to("product", "1", "v2"), endpoints("product", "1", "10.0.0.1:80")], &[]);
    machine.update(vec![service("v2", "1"), endpoints("v2", "1", "10.0.0.2:80")], &[]);
    for _ in 0..40 {
        machine.tables.mark(&name("product"));
        let output = machine.pass(Duration::from_secs(60));
        assert!(subscriptions(&output).1.is_empty());
    }
}

#[test]
fn a_reconnect_names_the_versions_held_and_no_snapshot_changes() {
    let mut machine = Machine::connected();
    machine.know("product");
    machine.update(vec![workload("7", &[]), mesh("3", "permissive")], &[]);
    machine.state.closed(machine.now);
    let Message::Subscribe(subscribe) = machine.state.opened() else { panic!("a subscription") };
    let mut held: Vec<_> = subscribe.add.iter().map(|s| format!("{}={}", s.name, s.version)).collect();
    held.sort();
    assert_eq!(
        held,
        ["endpoints/shop/product=1", "mesh=3", "service/shop/product=1", "trust=", "workload/shop/cart=7"]
    );
    machine.state.welcomed();
    assert!(machine.pass(Duration::from_secs(1)).snapshot.is_none());
}

#[test]
fn what_changes_nothing_makes_no_snapshot() {
    let mut machine = Machine::connected();
    let output = machine.update(vec![mesh("1", "permissive")], &[]);
    assert_eq!(output.snapshot.expect("changed").mesh.mtls, MtlsMode::Permissive);
    let output = machine.update(vec![mesh("2", "permissive")], &[]);
    assert!(output.snapshot.is_none());
    let output = machine.update(vec![], &["mesh"]);
    assert_eq!(output.snapshot.expect("changed").mesh.mtls, MtlsMode::Strict, "the default again");
}

#[test]
fn an_update_swaps_the_snapshot_once() {
    let mut machine = Machine::connected();
    machine.want("a");
    machine.want("b");
    let output = machine.update(
        vec![
            service("a", "1"),
            endpoints("a", "1", "10.0.0.1:80"),
            service("b", "1"),
            endpoints("b", "1", "10.0.0.2:80"),
            mesh("1", "permissive"),
            workload("1", &[]),
        ],
        &[],
    );
    let snapshot = output.snapshot.expect("one snapshot");
    assert_eq!(snapshot.services().count(), 2);
    assert_eq!(snapshot.mesh.mtls, MtlsMode::Permissive);
    assert!(snapshot.workload.is_some());
    assert_eq!(output.answers.len(), 2);
}

#[test]
fn a_bad_trust_bundle_is_rejected_whole() {
    let mut machine = Machine::connected();
    for roots in [vec![], vec![vec![1, 2, 3]]] {
        let output = machine.update(
            vec![wire::Resource {
                name: "trust".to_owned(),
                version: "9".to_owned(),
                body: Some(wire::resource::Body::Trust(wire::TrustBundle { roots })),
            }],
            &[],
        );
        assert!(output.roots.is_none());
        assert_eq!(ack(&output).rejected[0].name, "trust");
    }
}

#[test]
fn content_of_another_kind_than_the_name_says_is_rejected() {
    let mut machine = Machine::connected();
    let mut wrong = mesh("1", "strict");
    wrong.name = "trust".to_owned();
    let empty = wire::Resource { name: "mesh".to_owned(), version: "1".to_owned(), body: None };
    let unknown = wire::Resource { name: "weather/today".to_owned(), version: "1".to_owned(), body: None };
    let output = machine.update(vec![wrong, empty, unknown], &[]);
    let rejected: Vec<_> = ack(&output).rejected.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(rejected, ["trust", "mesh"], "what a newer control plane knows is passed over");
}

#[test]
fn a_service_that_is_served_nowhere_is_kept_too() {
    for endpoints_of_front in [None, Some(endpoints("front", "1", "nowhere"))] {
        let mut before = Machine::connected();
        before.know("product");
        before.want("front");
        let gone: &[&str] = if endpoints_of_front.is_none() { &["endpoints/shop/front"] } else { &[] };
        let resources = [service_to("front", "1", "product")].into_iter().chain(endpoints_of_front).collect();
        assert_eq!(before.update(resources, gone).answers, [(name("front"), Found::Yes)]);

        let mut after = Machine::new();
        let output = after.state.restore(before.state.resources(), after.now);
        let snapshot = output.snapshot.expect("in force");
        assert!(snapshot.service(&name("front")).is_some(), "its calls go to another service");
        let Message::Subscribe(subscribe) = after.state.opened() else { panic!("a subscription") };
        let asked = subscribe.add.iter().find(|s| s.name == "endpoints/shop/front").expect("subscribed");
        assert_eq!(asked.version, "", "where it is served is still to be told");
    }
}

#[test]
fn what_was_kept_is_in_force_at_once_and_asked_for_by_version() {
    let mut before = Machine::connected();
    before.update(vec![mesh("1", "permissive"), workload("1", &["db"])], &[]);
    before.update(vec![service("db", "1"), endpoints("db", "1", "10.0.0.5:80")], &[]);
    before.know("product");
    before.update(vec![broken_service("product", "2")], &[]);

    let mut after = Machine::new();
    let output = after.state.restore(before.state.resources(), after.now);
    let snapshot = output.snapshot.expect("in force");
    assert_eq!(snapshot.mesh.mtls, MtlsMode::Permissive);
    assert!(snapshot.workload.is_some());
    assert!(snapshot.service(&name("db")).is_some() && snapshot.service(&name("product")).is_some());
    assert!(output.send.is_empty() && !output.save);
    let Message::Subscribe(subscribe) = after.state.opened() else { panic!("a subscription") };
    let product = subscribe.add.iter().find(|s| s.name == "service/shop/product").expect("subscribed");
    assert_eq!(product.version, "1");
    assert_eq!(after.want("product").answers, [(name("product"), Found::Yes)]);
}
