//! Which endpoints the workloads that hold leases bring to which services.

use crate::registry::Instance;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use weft_config::{identity::ServiceName, wire::Endpoint};

/// Leased endpoints, by service and by who brings them.
#[derive(Default)]
pub(crate) struct Leased {
    by_service: HashMap<ServiceName, BTreeMap<Instance, Vec<Endpoint>>>,
    brings: HashMap<Instance, BTreeSet<ServiceName>>,
}

impl Leased {
    /// Says what an instance serves now; nothing is what a dead one serves. Gives the services to publish again.
    pub(crate) fn set(
        &mut self,
        instance: &Instance,
        serves: Vec<(ServiceName, Endpoint)>,
    ) -> BTreeSet<ServiceName> {
        let mut touched = self.brings.remove(instance).unwrap_or_default();
        for service in &touched {
            if let Some(instances) = self.by_service.get_mut(service) {
                instances.remove(instance);
                if instances.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        if serves.is_empty() {
            return touched;
        }
        let brings: BTreeSet<_> = serves.iter().map(|(service, _)| service.clone()).collect();
        for (service, endpoint) in serves {
            let instances = self.by_service.entry(service).or_default();
            instances.entry(instance.clone()).or_default().push(endpoint);
        }
        touched.extend(brings.iter().cloned());
        self.brings.insert(instance.clone(), brings);
        touched
    }

    /// Forgets everything, to be told anew.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The endpoints of one service: those that are fixed and those that are leased, in one order, each once.
    pub(crate) fn with_fixed(&self, service: &ServiceName, fixed: Vec<Endpoint>) -> Vec<Endpoint> {
        let mut all = fixed;
        if let Some(instances) = self.by_service.get(service) {
            all.extend(instances.values().flatten().cloned());
        }
        all.sort_by(|a, b| {
            (a.port, &a.address, &a.workload, &a.identity).cmp(&(
                b.port,
                &b.address,
                &b.workload,
                &b.identity,
            ))
        });
        all.dedup_by(|a, b| a.port == b.port && a.address == b.address);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(workload: &str) -> Instance {
        Instance { namespace: "shop".into(), workload: workload.into(), id: "1".into() }
    }

    fn endpoint(address: &str) -> Endpoint {
        Endpoint { port: 80, address: address.into(), ..Default::default() }
    }

    fn addresses(leased: &Leased, service: &ServiceName, fixed: &[&str]) -> Vec<String> {
        let fixed = fixed.iter().map(|address| endpoint(address)).collect();
        leased.with_fixed(service, fixed).into_iter().map(|endpoint| endpoint.address).collect()
    }

    #[test]
    fn what_a_workload_serves_follows_it() {
        let (cart, user) = (ServiceName::new("shop", "cart"), ServiceName::new("shop", "user"));
        let mut leased = Leased::default();
        let touched = leased.set(&instance("one"), vec![(cart.clone(), endpoint("b:1"))]);
        assert_eq!(touched, BTreeSet::from([cart.clone()]));
        leased.set(&instance("two"), vec![(cart.clone(), endpoint("a:1"))]);
        assert_eq!(addresses(&leased, &cart, &["c:1"]), ["a:1", "b:1", "c:1"]);

        let touched = leased.set(&instance("one"), vec![(user.clone(), endpoint("b:1"))]);
        assert_eq!(touched, BTreeSet::from([cart.clone(), user.clone()]));
        assert_eq!(addresses(&leased, &cart, &[]), ["a:1"]);
        assert_eq!(addresses(&leased, &user, &[]), ["b:1"]);

        assert_eq!(leased.set(&instance("one"), vec![]), BTreeSet::from([user.clone()]));
        assert!(addresses(&leased, &user, &[]).is_empty());
        leased.set(&instance("two"), vec![]);
        assert!(leased.by_service.is_empty() && leased.brings.is_empty());
    }

    #[test]
    fn an_address_is_listed_once() {
        let cart = ServiceName::new("shop", "cart");
        let mut leased = Leased::default();
        leased.set(&instance("one"), vec![(cart.clone(), endpoint("a:1"))]);
        assert_eq!(addresses(&leased, &cart, &["a:1", "b:1"]), ["a:1", "b:1"]);
    }
}
