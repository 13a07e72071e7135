//! What an application finds in its environment.

use super::plan::{Instance, Interception};
use std::net::SocketAddr;

/// Names that a proxy must not be asked for: an application's own neighbours on loopback. Names of the mesh are never
/// among them, so they always go through the sidecar.
const NOT_PROXIED: &str = "localhost,127.0.0.1,::1";

/// Variables of the surrounding environment that a program we start must not inherit: settings for some other sidecar,
/// and proxy settings that would lead mesh names past ours.
pub(super) fn is_withheld(name: &str) -> bool {
    name.starts_with("WEFT_")
        || matches!(name, "http_proxy" | "HTTP_PROXY" | "no_proxy" | "NO_PROXY" | "PORT")
}

/// The variables that `weft up` sets for one application, the document's own last so that they win.
///
/// `https_proxy_known` tells that the user's environment has an HTTPS proxy: calls to the outside then keep to it.
pub(super) fn of_application(
    instance: &Instance,
    dashboard: SocketAddr,
    https_proxy_known: bool,
) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| variables.push((name.to_owned(), value));
    if let Some(first) = instance.ports.first() {
        set("PORT", first.application.port().to_string());
    }
    for port in &instance.ports {
        set(&format!("PORT_{}", port.service_port), port.application.port().to_string());
    }
    set("WEFT_WORKLOAD", instance.name.to_string());
    set("WEFT_NAMESPACE", instance.namespace.to_string());
    set("WEFT_SERVICE_ACCOUNT", instance.service_account.to_string());
    if let Some(service) = &instance.service {
        set("WEFT_SERVICE", service.to_string());
    }
    for (key, value) in &instance.labels {
        if let Some(name) = label_variable(key) {
            set(&name, value.to_string());
        }
    }
    set("WEFT_DASHBOARD", dashboard.to_string());
    if let Some(Interception { outbound, admin, metrics, .. }) = &instance.sidecar {
        let proxy = format!("http://{outbound}");
        set("WEFT_OUTBOUND", outbound.to_string());
        set("WEFT_ADMIN", admin.to_string());
        set("WEFT_METRICS", metrics.to_string());
        set("http_proxy", proxy.clone());
        set("HTTP_PROXY", proxy.clone());
        set("no_proxy", NOT_PROXIED.to_owned());
        set("NO_PROXY", NOT_PROXIED.to_owned());
        if !https_proxy_known {
            // TLS that an application makes itself passes through CONNECT untouched.
            set("https_proxy", proxy.clone());
            set("HTTPS_PROXY", proxy);
        }
    }
    for (name, value) in &instance.env {
        variables.retain(|(n, _)| n != name);
        variables.push((name.clone(), value.clone()));
    }
    variables
}

/// `WEFT_LABEL_VERSION` for the label `version`. A label with a prefix, as in `example.org/team`, goes without it.
fn label_variable(key: &str) -> Option<String> {
    let key = key.rsplit('/').next()?;
    let clean: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    (!clean.is_empty()).then(|| format!("WEFT_LABEL_{clean}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::plan::tests::instance;

    fn value(variables: &[(String, String)], name: &str) -> Option<String> {
        let mut all = variables.iter().filter(|(n, _)| n == name);
        let first = all.next().map(|(_, v)| v.clone());
        assert!(all.next().is_none(), "{name} is set twice");
        first
    }

    fn dashboard() -> SocketAddr {
        ([127, 0, 0, 1], 15080).into()
    }

    #[test]
    fn an_application_learns_its_port_and_its_proxy() {
        let v = of_application(&instance("cart"), dashboard(), false);
        assert_eq!(value(&v, "PORT").as_deref(), Some("21004"));
        assert_eq!(value(&v, "PORT_8080").as_deref(), Some("21004"));
        for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
            assert_eq!(value(&v, name).as_deref(), Some("http://127.0.0.1:21000"), "{name}");
        }
        assert_eq!(value(&v, "WEFT_WORKLOAD").as_deref(), Some("cart"));
        assert_eq!(value(&v, "WEFT_NAMESPACE").as_deref(), Some("shop"));
        assert_eq!(value(&v, "WEFT_ADMIN").as_deref(), Some("127.0.0.1:21002"));
        assert_eq!(value(&v, "WEFT_LABEL_VERSION").as_deref(), Some("v1"));
    }

    #[test]
    fn only_loopback_goes_past_the_sidecar() {
        let v = of_application(&instance("cart"), dashboard(), false);
        assert_eq!(value(&v, "no_proxy").as_deref(), Some("localhost,127.0.0.1,::1"));
        assert_eq!(value(&v, "NO_PROXY"), value(&v, "no_proxy"));
    }

    #[test]
    fn a_proxy_for_https_that_the_user_has_stays() {
        let v = of_application(&instance("cart"), dashboard(), true);
        assert_eq!(value(&v, "https_proxy"), None);
        assert!(value(&v, "http_proxy").is_some());
    }

    #[test]
    fn the_document_has_the_last_word() {
        let mut cart = instance("cart");
        cart.env = vec![("PORT".into(), "9".into()), ("MODE".into(), "slow".into())];
        let v = of_application(&cart, dashboard(), false);
        assert_eq!(value(&v, "PORT").as_deref(), Some("9"));
        assert_eq!(value(&v, "MODE").as_deref(), Some("slow"));
    }

    #[test]
    fn without_a_sidecar_there_is_no_proxy() {
        let mut old = instance("old");
        old.sidecar = None;
        let v = of_application(&old, dashboard(), false);
        assert_eq!(value(&v, "http_proxy"), None);
        assert_eq!(value(&v, "WEFT_ADMIN"), None);
        assert!(value(&v, "PORT").is_some());
    }

    #[test]
    fn settings_meant_for_others_are_withheld() {
        for name in ["WEFT_POLICY", "WEFT_STATE_DIR", "http_proxy", "NO_PROXY", "PORT"] {
            assert!(is_withheld(name), "{name}");
        }
        for name in ["PATH", "HOME", "https_proxy", "CARGO_TARGET_DIR", "REPORT"] {
            assert!(!is_withheld(name), "{name}");
        }
    }
}
