//! Everything that stands in the YAML under `examples/` is accepted as it is.

use std::{
    fs,
    path::{Path, PathBuf},
};
use weft_config::policy::{DocumentState, Policy};

/// The examples that can be run: folders with YAML.
fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("examples/");
    let entries = fs::read_dir(folder).expect("examples/ can be read");
    let folders = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    folders.filter(|folder| !documents(folder).is_empty()).collect()
}

fn documents(folder: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder).expect("an example can be read");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let yaml = paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    yaml.map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("text"))).collect()
}

#[test]
fn every_example_is_accepted_without_a_finding_and_in_force() {
    let examples = examples();
    assert!(examples.len() >= 2, "{examples:?}");
    for example in examples {
        let mut policy = Policy::new("weft.local");
        policy.replace_all(documents(&example));
        let findings: Vec<String> = policy.diagnostics().iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
        for document in policy.status() {
            assert_eq!(document.state, DocumentState::Accepted, "{}:{}", document.file, document.line);
        }
    }
}

#[test]
fn product_is_four_replicas_in_two_versions() {
    let mut policy = Policy::new("weft.local");
    policy.replace_all(documents(Path::new(env!("CARGO_MANIFEST_DIR"))));
    let names: Vec<String> = policy.services().map(|service| service.name.to_string()).collect();
    for service in [
        "cart",
        "checkout",
        "inventory",
        "notification",
        "product",
        "product-v1",
        "product-v2",
        "recommendation",
        "storefront",
        "user",
    ] {
        assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
    }
    for (instance, version) in [("product-v1-0", "product-v1"), ("product-v2-1", "product-v2")] {
        let mut serves: Vec<String> =
            policy.serves("shop", instance).iter().map(|service| service.name.to_string()).collect();
        serves.sort();
        assert_eq!(serves, ["product", version], "{instance}");
    }
}
