//! What every document has: its version, kind, name, and what Kubernetes adds to it.

use crate::document::Kind;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};
use std::{borrow::Cow, collections::BTreeMap};

/// The namespace of a document that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A document with a `spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resource<S> {
    /// The version of the language that this kind belongs to.
    pub api_version: String,
    /// The kind of document.
    pub kind: String,
    /// Its name, namespace and labels.
    pub metadata: Metadata,
    /// What it asks for.
    pub spec: S,
    /// What a controller wrote about it; read past.
    #[serde(default, skip_serializing)]
    pub status: Ignored,
}

impl<S> Resource<S> {
    /// A document of this kind.
    pub fn new(kind: Kind, metadata: Metadata, spec: S) -> Self {
        Self {
            api_version: kind.api_version().to_owned(),
            kind: kind.as_str().to_owned(),
            metadata,
            spec,
            status: Ignored,
        }
    }
}

/// A document's name and what is known about it. Fields that only Kubernetes uses are read past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The document's name, unique for its kind and namespace. Example: `product-v1`.
    #[schemars(length(min = 1, max = 253), extend("format" = "object-name"))]
    pub name: String,
    /// The namespace; `default` if it is left out. Example: `shop`.
    #[schemars(length(min = 1, max = 63), extend("format" = "dns-label"))]
    pub namespace: Option<String>,
    /// Labels, by which Services and policies select. Example: `{version: v1}`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Notes for people and tools.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// When Kubernetes created it (RFC 3339): of two routes that match equally well the older one wins.
    pub creation_timestamp: Option<String>,
}

impl Metadata {
    /// Metadata with a namespace and a name only.
    pub fn named(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { name: name.into(), namespace: Some(namespace.into()), ..Self::default() }
    }

    /// The namespace, `default` if the document names none.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }
}

/// A field that is read past: anything may stand there, nothing is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored;

impl Serialize for Ignored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl JsonSchema for Ignored {
    fn schema_name() -> Cow<'static, str> {
        "Ignored".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({})
    }
}

/// A number or a name, as Kubernetes writes a Service's target port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortOrName {
    /// A port number.
    Port(u16),
    /// A port's name.
    Name(String),
}

impl JsonSchema for PortOrName {
    fn schema_name() -> Cow<'static, str> {
        "PortOrName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 1, "maximum": 65535, "minLength": 1 })
    }
}
