//! What the control plane sends, or what an earlier process kept of it: taken or refused, never believed.

use super::{state::State, usage::Tables};
use crate::fuzz::halves;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use weft_config::{compile::Caller, identity::ServiceName, wire};

/// Resources with an empty line between them: name and version, then a document or an endpoint a line. A name after `-`
/// is one that is gone.
pub(crate) const UPDATES: &[&[u8]] = &[
    b"service/b/c 1\nService {\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"c\",\"namespace\":\"b\"},\"spec\":{\"ports\":[{\"port\":80,\"appProtocol\":\"http\"}]}}\n\nendpoints/b/c 2\n80 10.0.0.1:80 1 spiffe://weft.local/ns/b/sa/c c\n80 [::1]:1 0",
    b"service/b/c 3\nService {\"metadata\":{\"name\":\"c\",\"namespace\":\"b\"},\"spec\":{\"ports\":[{\"port\":80}]}}\nHTTPRoute {\"metadata\":{\"name\":\"c\",\"namespace\":\"b\"},\"spec\":{\"parentRefs\":[{\"kind\":\"Service\",\"group\":\"\",\"name\":\"c\"}],\"rules\":[{\"matches\":[{\"path\":{\"type\":\"RegularExpression\",\"value\":\"/(a|b)+\"}}],\"backendRefs\":[{\"name\":\"d\",\"port\":80,\"weight\":3}]}]}}\n\nservice/b/d 1\nService {\"metadata\":{\"name\":\"d\",\"namespace\":\"b\"},\"spec\":{\"ports\":[{\"port\":80}]}}\n\nendpoints/b/d 1\n80 10.0.0.2:1 5",
    b"mesh 1\nMeshPolicy {\"metadata\":{\"name\":\"mesh\"},\"spec\":{\"mtls\":\"strict\",\"limits\":{\"headerBytes\":\"1KiB\"}}}\n\nworkload/b/own 1\nWorkload {\"metadata\":{\"name\":\"own\",\"namespace\":\"b\"},\"spec\":{\"service\":\"c\",\"serviceAccount\":\"c\",\"ports\":[{\"port\":80,\"appProtocol\":\"http\"}],\"upstreams\":[{\"service\":\"d\",\"port\":80,\"listen\":9001}]}}\n\n-service/b/c\n\n-endpoints/b/d",
    b"trust 1\nabc\n\nmesh\n\nworkload/b/own x\n{\n\n-mesh\n\n-workload/b/own",
];

fn endpoint(line: &str) -> Option<wire::Endpoint> {
    let mut words = line.split(' ');
    let port = words.next()?.parse().ok()?;
    let mut word = || words.next().unwrap_or_default().to_owned();
    let address = word();
    let weight = word().parse().unwrap_or(1);
    Some(wire::Endpoint { port, address, weight, identity: word(), workload: word(), ..Default::default() })
}

fn resource(block: &str) -> wire::Resource {
    use wire::resource::Body;
    let (head, lines) = block.split_once('\n').unwrap_or((block, ""));
    let (name, version) = head.split_once(' ').unwrap_or((head, ""));
    let body = if name.starts_with("endpoints") {
        Body::Endpoints(wire::Endpoints { endpoints: lines.lines().filter_map(endpoint).collect() })
    } else if name == "trust" {
        Body::Trust(wire::TrustBundle { roots: lines.lines().map(|line| line.as_bytes().to_vec()).collect() })
    } else {
        let document = |line: &str| {
            let (kind, json) = line.split_once(' ').unwrap_or((line, ""));
            wire::Document { kind: kind.to_owned(), json: json.to_owned() }
        };
        Body::Documents(wire::Documents { documents: lines.lines().map(document).collect() })
    };
    wire::Resource { name: name.to_owned(), version: version.to_owned(), body: Some(body) }
}

fn state(now: Instant) -> State {
    let own = Caller { namespace: "b".into(), service_account: "c".into(), workload: "own".into() };
    let mut state = State::new(own, Arc::new(Tables::default()), now);
    state.opened();
    state.welcomed();
    for service in ["c", "d"] {
        state.want(ServiceName::new("b", service), now);
    }
    state
}

fn versions(state: &State) -> BTreeMap<String, wire::Resource> {
    state.resources().into_iter().map(|resource| (resource.name.clone(), resource)).collect()
}

/// Every update is answered, with a reason for what is refused; and what was taken is good for a later process too.
pub(crate) fn update(bytes: &[u8]) {
    let now = Instant::now();
    let mut state = state(now);
    let mut rest = bytes;
    let mut update = wire::Update { nonce: 7, ..Default::default() };
    while !rest.is_empty() {
        let (block, further) = halves(rest);
        rest = if block.len() + 2 >= rest.len() { &[] } else { further };
        let block = String::from_utf8_lossy(block);
        match block.strip_prefix('-') {
            Some(gone) => update.removed.push(gone.to_owned()),
            None => update.resources.push(resource(&block)),
        }
    }
    let mut output = state.update(update, now);
    let mut answers = 0;
    for message in std::mem::take(&mut output.send) {
        if let wire::to_control_plane::Message::Ack(ack) = message {
            answers += 1;
            assert_eq!(ack.nonce, 7);
            assert_eq!(ack.rejected.len(), output.refused.len());
            assert!(ack.rejected.iter().all(|rejected| !rejected.reason.is_empty()));
        }
    }
    assert_eq!(answers, 1);
    state.tick(now + Duration::from_secs(2));
    let kept = versions(&state);
    let mut later = self::state(now);
    let restored = later.restore(state.resources(), now);
    assert!(restored.refused.is_empty(), "what was kept is refused: {:?}", restored.refused);
    assert_eq!(versions(&later), kept, "what was kept is lost");
}
