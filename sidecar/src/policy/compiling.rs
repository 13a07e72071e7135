//! From what came over the wire to what requests are decided by, with the reason in one line where that fails.

use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use weft_config::{
    compile::{self, Caller},
    error::{Diagnostic, Severity},
    identity::ServiceName,
    snapshot::{Mesh, Service, Workload},
    wire,
};

/// Reasons travel to the control plane and into logs: more than this is cut.
const MAX_REASON: usize = 4096;

pub(super) fn mesh(documents: &wire::Documents) -> Result<Mesh, String> {
    compile::mesh(documents).map_err(|found| reason(&found))
}

pub(super) fn workload(
    name: &ServiceName,
    version: &str,
    documents: &wire::Documents,
    mesh: &Mesh,
) -> Result<Workload, String> {
    let mut workload =
        compile::workload(&name.to_string(), documents, mesh).map_err(|found| reason(&found))?;
    workload.version = version.into();
    Ok(workload)
}

/// A resource's version and content.
pub(super) type Part<'a, T> = (&'a str, &'a T);

pub(super) fn service(
    name: &ServiceName,
    documents: Part<'_, wire::Documents>,
    endpoints: Part<'_, wire::Endpoints>,
    mesh: &Mesh,
    caller: &Caller,
) -> Result<Service, String> {
    let mut service = compile::service(&name.to_string(), documents.1, endpoints.1, mesh, caller)
        .map_err(|found| reason(&found))?;
    service.version = version(documents.0, endpoints.0);
    Ok(service)
}

/// The same service, served elsewhere: its routes are not compiled again.
pub(super) fn moved(
    service: &Service,
    documents_version: &str,
    endpoints: Part<'_, wire::Endpoints>,
) -> Result<Service, String> {
    let mut service = compile::with_endpoints(service, endpoints.1).map_err(|found| reason(&found))?;
    service.version = version(documents_version, endpoints.0);
    Ok(service)
}

fn version(documents: &str, endpoints: &str) -> Arc<str> {
    format!("{documents}/{endpoints}").into()
}

/// Checks that every root can be verified against.
pub(super) fn trust(bundle: &wire::TrustBundle) -> Result<(), String> {
    if bundle.roots.is_empty() {
        return Err("a trust bundle needs at least one certificate".to_owned());
    }
    let mut store = rustls::RootCertStore::empty();
    for (index, root) in bundle.roots.iter().enumerate() {
        store
            .add(CertificateDer::from(root.as_slice()))
            .map_err(|error| format!("root {index} is not a usable CA certificate: {error}"))?;
    }
    Ok(())
}

/// All errors among the findings, one after the other.
fn reason(found: &[Diagnostic]) -> String {
    let mut text = String::new();
    for diagnostic in found.iter().filter(|d| d.severity == Severity::Error) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&diagnostic.to_string());
    }
    if text.is_empty() {
        text.push_str("it does not compile");
    }
    cut(text)
}

/// Shortens a text to what may travel, at a character's edge.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
