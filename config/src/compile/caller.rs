//! Who calls, as far as a sidecar knows it before any request: conditions of routes on that are decided once, here.

use crate::matching::{HeaderCondition, ValueMatch};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

/// The name of the caller's Workload.
pub const SOURCE_WORKLOAD: &str = "weft-source-workload";
/// The name of the caller's service account.
pub const SOURCE_SERVICE_ACCOUNT: &str = "weft-source-service-account";
/// The namespace of the caller.
pub const SOURCE_NAMESPACE: &str = "weft-source-namespace";

/// The header names that stand for something about the caller in matches of routes. No request carries them.
pub const SOURCES: [&str; 3] = [SOURCE_WORKLOAD, SOURCE_SERVICE_ACCOUNT, SOURCE_NAMESPACE];

/// The workload that calls: services are compiled for one caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account; empty if that is not known.
    pub service_account: Arc<str>,
    /// The instance's name; empty if that is not known. The replica `<name>-<n>` goes by `<name>` too.
    pub workload: Arc<str>,
}

impl Caller {
    /// A caller of which only the namespace is known: it meets no condition on workload or service account.
    pub fn in_namespace(namespace: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), service_account: "".into(), workload: "".into() }
    }

    /// Decides a condition on the caller: `None` if it is on something else, else whether it holds.
    pub(super) fn meets(&self, name: &HeaderName, wanted: &ValueMatch) -> Option<Result<bool, String>> {
        let own: [Option<&str>; 2] = match name.as_str() {
            SOURCE_WORKLOAD => [Some(&self.workload), self.behind_replica()],
            SOURCE_SERVICE_ACCOUNT => [Some(&self.service_account), None],
            SOURCE_NAMESPACE => [Some(&self.namespace), None],
            _ => return None,
        };
        let condition = match HeaderCondition::new(name.clone(), wanted) {
            Ok(condition) => condition,
            Err(message) => return Some(Err(message)),
        };
        let holds = own.into_iter().flatten().filter(|own| !own.is_empty()).any(|own| {
            let value = HeaderValue::from_str(own).ok();
            value.is_some_and(|value| condition.matches(&HeaderMap::from_iter([(name.clone(), value)])))
        });
        Some(Ok(holds))
    }

    /// The Workload that an instance `<name>-<n>` is a replica of.
    fn behind_replica(&self) -> Option<&str> {
        let (name, number) = self.workload.rsplit_once('-')?;
        (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(name)
    }

    /// What is known about the caller that such a condition asks for, for people.
    pub(super) fn told(&self, name: &HeaderName) -> String {
        let (what, own) = match name.as_str() {
            SOURCE_WORKLOAD => ("workload", &self.workload),
            SOURCE_SERVICE_ACCOUNT => ("service account", &self.service_account),
            _ => ("namespace", &self.namespace),
        };
        if own.is_empty() {
            format!("the caller's {what} is not known")
        } else {
            format!("the caller's {what} is `{own}`")
        }
    }
}
