use super::*;
use proptest::prelude::*;
use prost::Message;

fn body(text: &str) -> Body {
    Body::Documents(wire::Documents {
        documents: vec![wire::Document { kind: "Service".into(), json: text.to_owned() }],
    })
}

fn version(version: &str) -> Option<(String, Body)> {
    Some((version.to_owned(), body(version)))
}

fn names(update: &wire::Update) -> Vec<(String, String)> {
    update.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
}

fn publisher_with(names: &[&str]) -> Publisher {
    let mut publisher = Publisher::default();
    for name in names {
        publisher.publish(name, version("1"));
    }
    publisher.connect(1);
    publisher
}

#[test]
fn a_subscription_is_answered_once() {
    let mut publisher = publisher_with(&["service/a/b"]);
    let now = Instant::now();
    publisher.subscribe(1, [("service/a/b", ""), ("service/a/none", "")], []).expect("ok");
    let update = publisher.next_update(1, now).expect("an update");
    assert_eq!(names(&update), [("service/a/b".to_owned(), "1".to_owned())]);
    assert_eq!(update.removed, ["service/a/none"]);
    assert_eq!(publisher.acknowledge(1, update.nonce, &[]), Some(vec![]));
    assert_eq!(publisher.next_update(1, now), None);
}

#[test]
fn what_is_held_already_is_not_sent_again() {
    let mut publisher = publisher_with(&["service/a/b", "service/a/c"]);
    publisher.subscribe(1, [("service/a/b", "1"), ("service/a/c", "0")], []).expect("ok");
    let update = publisher.next_update(1, Instant::now()).expect("an update");
    assert_eq!(names(&update), [("service/a/c".to_owned(), "1".to_owned())]);
}

#[test]
fn a_slow_stream_gets_the_latest_state_and_no_backlog() {
    let mut publisher = publisher_with(&["service/a/b"]);
    let now = Instant::now();
    publisher.subscribe(1, [("service/a/b", "")], []).expect("ok");
    let first = publisher.next_update(1, now).expect("an update");
    for edit in 2..=100 {
        publisher.publish("service/a/b", version(&edit.to_string()));
        assert_eq!(publisher.next_update(1, now), None, "the first is not answered yet");
    }
    publisher.acknowledge(1, first.nonce, &[]).expect("known");
    let second = publisher.next_update(1, now).expect("an update");
    assert_eq!(names(&second), [("service/a/b".to_owned(), "100".to_owned())]);
}

#[test]
fn a_change_that_is_undone_before_it_was_sent_is_not_sent() {
    let mut publisher = publisher_with(&["service/a/b"]);
    let now = Instant::now();
    publisher.subscribe(1, [("service/a/b", "1")], []).expect("ok");
    publisher.publish("service/a/b", version("2"));
    publisher.publish("service/a/b", version("1"));
    assert_eq!(publisher.next_update(1, now), None);
}

#[test]
fn a_rejected_version_is_remembered_and_not_sent_again() {
    let mut publisher = publisher_with(&["service/a/b"]);
    let now = Instant::now();
    publisher.subscribe(1, [("service/a/b", "")], []).expect("ok");
    let update = publisher.next_update(1, now).expect("an update");
    let refusal =
        wire::Rejection { name: "service/a/b".into(), version: "1".into(), reason: "no such port".into() };
    let rejected = publisher.acknowledge(1, update.nonce, &[refusal]).expect("known");
    assert_eq!(rejected.len(), 1);
    assert_eq!(&*publisher.held(1).rejected[0].reason, "no such port");
    assert!(publisher.held(1).versions.is_empty());
    assert_eq!(publisher.next_update(1, now), None);

    publisher.publish("service/a/b", version("2"));
    let update = publisher.next_update(1, now).expect("the fixed version");
    publisher.acknowledge(1, update.nonce, &[]).expect("known");
    assert!(publisher.held(1).rejected.is_empty());
    assert_eq!(publisher.held(1).versions, [("service/a/b".into(), "2".into())]);
}

#[test]
fn an_answer_to_nothing_is_not_taken() {
    let mut publisher = publisher_with(&["mesh"]);
    assert_eq!(publisher.acknowledge(1, 7, &[]), None);
    publisher.subscribe(1, [("mesh", "")], []).expect("ok");
    let update = publisher.next_update(1, Instant::now()).expect("an update");
    assert_eq!(publisher.acknowledge(1, update.nonce + 1, &[]), None);
    assert_eq!(publisher.acknowledge(99, update.nonce, &[]), None);
    assert!(publisher.acknowledge(1, update.nonce, &[]).is_some());
}

#[test]
fn trust_goes_first_and_endpoints_before_routes() {
    let all = ["service/a/b", "endpoints/a/b", "workload/a/w", "mesh", "trust"];
    let mut publisher = publisher_with(&all);
    publisher.subscribe(1, all.map(|name| (name, "")), []).expect("ok");
    let update = publisher.next_update(1, Instant::now()).expect("an update");
    let order: Vec<_> = update.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(order, ["trust", "mesh", "workload/a/w", "endpoints/a/b", "service/a/b"]);
}

#[test]
fn big_state_is_sent_in_parts() {
    let mut publisher = Publisher::default();
    let big = "x".repeat(400 << 10);
    for name in ["service/a/1", "service/a/2", "service/a/3", "service/a/4", "service/a/5"] {
        publisher.publish(name, Some(("1".into(), body(&big))));
    }
    publisher.connect(1);
    let all: Vec<_> = publisher.names("service/").cloned().collect();
    publisher.subscribe(1, all.iter().map(|name| (&**name, "")), []).expect("ok");
    let mut sizes = Vec::new();
    while let Some(update) = publisher.next_update(1, Instant::now()) {
        assert!(update.encoded_len() < UPDATE_BYTES + (10 << 10));
        sizes.push(update.resources.len());
        publisher.acknowledge(1, update.nonce, &[]).expect("known");
    }
    assert_eq!(sizes, [2, 2, 1]);
}

#[test]
fn while_settling_inherited_endpoints_are_kept() {
    let mut publisher = publisher_with(&["endpoints/a/b", "service/a/b"]);
    publisher.set_settling(true);
    let now = Instant::now();
    publisher.subscribe(1, [("endpoints/a/b", "before"), ("service/a/b", "before")], []).expect("ok");
    let update = publisher.next_update(1, now).expect("the service is not held back");
    assert_eq!(names(&update), [("service/a/b".to_owned(), "1".to_owned())]);
    publisher.acknowledge(1, update.nonce, &[]).expect("known");
    publisher.publish("endpoints/a/b", version("2"));
    assert_eq!(publisher.next_update(1, now), None);

    publisher.set_settling(false);
    let update = publisher.next_update(1, now).expect("settled");
    assert_eq!(names(&update), [("endpoints/a/b".to_owned(), "2".to_owned())]);
}

#[test]
fn while_settling_a_new_subscriber_gets_what_is_known() {
    let mut publisher = publisher_with(&["endpoints/a/b"]);
    publisher.set_settling(true);
    publisher.subscribe(1, [("endpoints/a/b", "")], []).expect("ok");
    assert!(publisher.next_update(1, Instant::now()).is_some());
}

#[test]
fn while_settling_endpoints_that_came_back_are_live_again() {
    let mut publisher = publisher_with(&["endpoints/a/b"]);
    publisher.set_settling(true);
    let now = Instant::now();
    publisher.subscribe(1, [("endpoints/a/b", "1")], []).expect("ok");
    assert_eq!(publisher.next_update(1, now), None, "it holds what we have");
    publisher.publish("endpoints/a/b", version("2"));
    assert!(publisher.next_update(1, now).is_some(), "this change is known to be one");
}

#[test]
fn all_hold_says_when_everybody_took_it() {
    let mut publisher = publisher_with(&["trust"]);
    publisher.connect(2);
    for id in [1, 2] {
        publisher.subscribe(id, [("trust", "")], []).expect("ok");
    }
    for id in [1, 2] {
        assert!(!publisher.all_hold("trust"));
        let update = publisher.next_update(id, Instant::now()).expect("an update");
        publisher.acknowledge(id, update.nonce, &[]).expect("known");
    }
    assert!(publisher.all_hold("trust"));
    publisher.publish("trust", version("2"));
    assert!(!publisher.all_hold("trust"));
    publisher.disconnect(1);
    publisher.disconnect(2);
    assert!(publisher.all_hold("trust"), "nobody is left who does not");
}

#[test]
fn what_a_stream_may_ask_for_is_bounded() {
    let mut publisher = publisher_with(&[]);
    let long = format!("service/{}", "x".repeat(MAX_NAME));
    assert_eq!(publisher.subscribe(1, [(long.as_str(), "")], []), Err(Refused::LongName));
    let many: Vec<String> = (0..=MAX_SUBSCRIPTIONS).map(|n| format!("service/a/{n}")).collect();
    assert_eq!(publisher.subscribe(1, many.iter().map(|n| (n.as_str(), "")), []), Err(Refused::TooMany));
}

#[test]
fn the_order_of_labels_does_not_change_a_version() {
    let endpoint = |labels: &[(&str, &str)]| wire::Endpoint {
        port: 80,
        address: "10.0.0.1:15006".into(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..Default::default()
    };
    let one = endpoint(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let two = endpoint(&[("c", "3"), ("b", "2"), ("a", "1")]);
    assert_eq!(endpoints_version(std::slice::from_ref(&one)), endpoints_version(&[two]));
    assert_ne!(endpoints_version(&[one]), endpoints_version(&[endpoint(&[("a", "1")])]));
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8, Option<u8>),
    Subscribe(u8, bool),
    Unsubscribe(u8),
    Deliver,
    Answer(bool),
    Reconnect,
    Settle(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, prop::option::of(0u8..5)).prop_map(|(n, v)| Step::Publish(n, v)),
        3 => (0u8..6, any::<bool>()).prop_map(|(n, held)| Step::Subscribe(n, held)),
        1 => (0u8..6).prop_map(Step::Unsubscribe),
        3 => Just(Step::Deliver),
        3 => any::<bool>().prop_map(Step::Answer),
        1 => Just(Step::Reconnect),
        1 => any::<bool>().prop_map(Step::Settle),
    ]
}

fn name(number: u8) -> String {
    if number < 3 { format!("endpoints/a/{number}") } else { format!("service/a/{number}") }
}

proptest! {
    /// A client that does no more than apply what it is sent ends with exactly what is published under the names it
    /// subscribed to, whatever happened in between.
    #[test]
    fn a_subscriber_converges_on_what_is_published(steps in prop::collection::vec(step(), 1..80)) {
        let mut publisher = Publisher::default();
        let mut published: HashMap<String, String> = HashMap::new();
        let mut wanted: HashSet<String> = HashSet::new();
        let mut holds: HashMap<String, String> = HashMap::new();
        let mut under_way: Option<wire::Update> = None;
        let mut id = 1;
        let now = Instant::now();
        publisher.connect(id);

        let apply = |update: &wire::Update, wanted: &HashSet<String>, holds: &mut HashMap<String, String>| {
            for resource in &update.resources {
                if wanted.contains(&resource.name) {
                    holds.insert(resource.name.clone(), resource.version.clone());
                }
            }
            for name in &update.removed {
                holds.remove(name);
            }
        };
        for step in steps {
            match step {
                Step::Publish(number, version) => {
                    let name = name(number);
                    publisher.publish(&name, version.map(|v| (v.to_string(), body(&v.to_string()))));
                    match version {
                        Some(version) => published.insert(name, version.to_string()),
                        None => published.remove(&name),
                    };
                }
                Step::Subscribe(number, with_version) => {
                    let name = name(number);
                    let held = holds.get(&name).filter(|_| with_version).cloned().unwrap_or_default();
                    publisher.subscribe(id, [(name.as_str(), held.as_str())], []).expect("within bounds");
                    wanted.insert(name);
                }
                Step::Unsubscribe(number) => {
                    let name = name(number);
                    publisher.subscribe(id, [], [name.as_str()]).expect("within bounds");
                    wanted.remove(&name);
                    holds.remove(&name);
                }
                Step::Deliver => {
                    if let Some(update) = publisher.next_update(id, now) {
                        prop_assert!(under_way.is_none(), "one at a time");
                        under_way = Some(update);
                    }
                }
                Step::Answer(applied) => {
                    if let Some(update) = under_way.take() {
                        let mut rejected = Vec::new();
                        if applied {
                            apply(&update, &wanted, &mut holds);
                        } else {
                            // It refuses the first resource only.
                            let mut update = update.clone();
                            if !update.resources.is_empty() {
                                let refused = update.resources.remove(0);
                                rejected.push(wire::Rejection {
                                    name: refused.name,
                                    version: refused.version,
                                    reason: "no".into(),
                                });
                            }
                            apply(&update, &wanted, &mut holds);
                        }
                        publisher.acknowledge(id, update.nonce, &rejected).expect("known");
                    }
                }
                Step::Reconnect => {
                    publisher.disconnect(id);
                    under_way = None;
                    id += 1;
                    publisher.connect(id);
                    let all: Vec<_> = wanted
                        .iter()
                        .map(|n| (n.as_str(), holds.get(n).map_or("", String::as_str)))
                        .collect();
                    publisher.subscribe(id, all, []).expect("within bounds");
                }
                Step::Settle(settling) => publisher.set_settling(settling),
            }
        }
        publisher.set_settling(false);
        // Rejections stand until the resource changes: give each refused one a new version.
        for rejected in publisher.held(id).rejected {
            publisher.publish(&rejected.name, Some(("fixed".into(), body("fixed"))));
            published.insert(rejected.name.to_string(), "fixed".into());
        }
        if let Some(update) = under_way.take() {
            apply(&update, &wanted, &mut holds);
            publisher.acknowledge(id, update.nonce, &[]).expect("known");
        }
        for _ in 0..100 {
            let Some(update) = publisher.next_update(id, now) else { break };
            apply(&update, &wanted, &mut holds);
            publisher.acknowledge(id, update.nonce, &[]).expect("known");
        }
        let expected: HashMap<String, String> =
            published.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
        prop_assert_eq!(&holds, &expected);
        let held: HashMap<String, String> =
            publisher.held(id).versions.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        prop_assert_eq!(held, expected);
        prop_assert!(!publisher.held(id).behind);
        let subscribers: usize = publisher.subscribers.values().map(HashSet::len).sum();
        prop_assert_eq!(subscribers, wanted.len(), "nothing stays behind of dropped subscriptions");
    }
}
