//! What of an accepted document takes effect only in a later version: said in status, never passed over in silence.

use crate::document::Document;
use crate::document::authorization_policy::AuthorizationAction;
use crate::document::endpoint_slice::AddressType;

/// Paths of the fields that nothing is done with yet.
pub(super) fn not_enforced(document: &Document) -> Vec<String> {
    match document {
        Document::AuthorizationPolicy(policy) if policy.spec.action == AuthorizationAction::Audit => {
            vec!["spec.action".to_owned()]
        }
        Document::Service(service) if service.spec.service_type.as_deref() == Some("ExternalName") => {
            vec!["spec.externalName".to_owned()]
        }
        Document::EndpointSlice(slice) if slice.address_type == AddressType::Fqdn => {
            vec!["addressType".to_owned()]
        }
        _ => Vec::new(),
    }
}
