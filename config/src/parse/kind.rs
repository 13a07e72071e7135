//! Which kind a document is, and what to say if it is none of ours.

use super::tree::{Node, NodeValue, Position, short};
use crate::document::Kind;
use crate::error::Severity;

/// What a document turned out to be.
pub(super) enum Found<'a> {
    /// One of our kinds.
    Known(Kind),
    /// A `v1` List of documents, as `kubectl get -o yaml` writes it.
    List(&'a [Node]),
    /// None of ours.
    Wrong(Problem),
}

/// Why a document is none of ours.
pub(super) struct Problem {
    pub(super) severity: Severity,
    pub(super) at: Position,
    pub(super) field: &'static str,
    pub(super) message: String,
    pub(super) cure: String,
}

impl Problem {
    pub(super) fn error(
        at: Position,
        field: &'static str,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Error, at, field, message: message.into(), cure: cure.into() }
    }
}

/// Tells the kind of a document.
pub(super) fn of(root: &Node) -> Found<'_> {
    if !matches!(root.value, NodeValue::Map(_)) {
        return Found::Wrong(Problem::error(
            root.at,
            "",
            "a document must be a map of fields",
            "begin it with `apiVersion:` and `kind:`",
        ));
    }
    let text = |name: &'static str| {
        let node = root.field(name)?;
        node.text().filter(|text| !text.is_empty()).map(|text| (text, node.at))
    };
    match (text("apiVersion"), text("kind")) {
        (Some((api_version, version_at)), Some((kind, kind_at))) => {
            known(root, api_version, version_at, kind, kind_at)
        }
        (None, Some((kind, _))) => {
            let cure = Kind::parse(kind).map_or_else(
                || "add it, for example `apiVersion: weft.mesh/v1alpha1`".to_owned(),
                |kind| format!("add `apiVersion: {}`", kind.api_version()),
            );
            Found::Wrong(Problem::error(root.at, "apiVersion", "the field `apiVersion` is missing", cure))
        }
        (version, None) => {
            let of_version = |kind: &Kind| version.is_none_or(|(version, _)| kind.api_version() == version);
            let mut kinds: Vec<Kind> = Kind::ALL.into_iter().filter(of_version).collect();
            if kinds.is_empty() {
                kinds = Kind::ALL.to_vec();
            }
            let cure = format!("add it: {}", names(&kinds));
            Found::Wrong(Problem::error(root.at, "kind", "the field `kind` is missing", cure))
        }
    }
}

fn known<'a>(
    root: &'a Node,
    version: &str,
    version_at: Position,
    kind: &str,
    kind_at: Position,
) -> Found<'a> {
    if version == "v1"
        && kind == "List"
        && let Some(Node { value: NodeValue::List(items), .. }) = root.field("items")
    {
        return Found::List(items);
    }
    let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    if let Some(known) = Kind::parse(kind) {
        if known.api_version() == version {
            return Found::Known(known);
        }
        // The same kind of another API (Knative's Service, Istio's AuthorizationPolicy) is not meant for us.
        let near = strsim::damerau_levenshtein(&short(version), known.api_version()) <= 3;
        if group(version) == group(known.api_version()) || near || is_ours(&group(version)) {
            return Found::Wrong(Problem::error(
                version_at,
                "apiVersion",
                format!("found `{}`, which has no {kind} that Weft reads", short(version)),
                format!("write `apiVersion: {}`", known.api_version()),
            ));
        }
        return Found::Wrong(ignored(version_at, version, kind));
    }
    let here: Vec<Kind> =
        Kind::ALL.into_iter().filter(|known| group(known.api_version()) == group(version)).collect();
    let near = super::suggest(kind, here.iter().map(|kind| kind.as_str()));
    if !near.is_empty() && !FOREIGN.contains(&kind) {
        return Found::Wrong(Problem::error(
            kind_at,
            "kind",
            format!("unknown kind `{}`", short(kind)),
            near,
        ));
    }
    if group(version) == "weft.mesh" {
        let cure = format!("known are {}", names(&here));
        return Found::Wrong(Problem::error(
            kind_at,
            "kind",
            format!("unknown kind `{}`", short(kind)),
            cure,
        ));
    }
    let near = super::suggest(kind, Kind::ALL.iter().map(|kind| kind.as_str()));
    let version_near = Kind::ALL.iter().any(|kind| {
        kind.api_version().contains('/')
            && strsim::damerau_levenshtein(&short(version), kind.api_version()) <= 3
    });
    if !near.is_empty() && version_near && here.is_empty() {
        return Found::Wrong(Problem::error(
            kind_at,
            "kind",
            format!("unknown kind `{}`", short(kind)),
            near,
        ));
    }
    Found::Wrong(ignored(kind_at, version, kind))
}

/// Kinds of Kubernetes and the Gateway API whose names are near to one of ours.
const FOREIGN: [&str; 4] = ["Endpoints", "ServiceAccount", "TLSRoute", "TCPRoute"];

fn is_ours(group: &str) -> bool {
    matches!(group, "weft.mesh" | "gateway.networking.k8s.io" | "discovery.k8s.io" | "")
}

fn ignored(at: Position, version: &str, kind: &str) -> Problem {
    Problem {
        severity: Severity::Warning,
        at,
        field: "kind",
        message: format!("{} {} is not a kind that Weft reads; ignored", short(version), short(kind)),
        cure: String::new(),
    }
}

fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| format!("`{}`", kind.as_str())).collect::<Vec<_>>().join(", ")
}
