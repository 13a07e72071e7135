//! JSON Schemas of every kind, made from the types: editors, `weft check` and the policy reference all read these.

use crate::document::{self, Kind};
use crate::parse::format;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// The JSON Schema (draft 2020-12) of every kind, in the order of [`Kind::ALL`].
pub fn schemas() -> Vec<(Kind, Value)> {
    Kind::ALL.into_iter().map(|kind| (kind, schema(kind).clone())).collect()
}

/// The JSON Schema of one kind.
pub fn schema(kind: Kind) -> &'static Value {
    static ALL: LazyLock<Vec<Value>> = LazyLock::new(|| Kind::ALL.into_iter().map(generate).collect());
    // `Kind::ALL` lists the kinds in the order of their declaration.
    &ALL[kind as usize]
}

/// One sentence on what a kind is for.
pub const fn summary(kind: Kind) -> &'static str {
    match kind {
        Kind::HttpRoute => {
            "Which HTTP requests to a Service go where, and how they change on the way (Gateway API, GAMMA)."
        }
        Kind::GrpcRoute => {
            "Which gRPC calls to a Service go where, by service and method (Gateway API, GAMMA)."
        }
        Kind::Service => "A name that calls are made to, as Kubernetes has it.",
        Kind::EndpointSlice => "Where a Service is served, as Kubernetes has it, when no Workload says so.",
        Kind::Workload => {
            "One running instance outside Kubernetes: what it serves, who it is, and how `weft up` runs it."
        }
        Kind::TrafficPolicy => "How calls are balanced, bounded, retried and protected.",
        Kind::CachePolicy => "Which answers are kept, for whom, and for how long.",
        Kind::AuthorizationPolicy => "Who may call what.",
        Kind::MeshPolicy => "Settings and bounds of the whole mesh; at most one document.",
    }
}

fn generate(kind: Kind) -> Value {
    fn of<T: JsonSchema>() -> Value {
        SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>().into()
    }
    let mut root = match kind {
        Kind::HttpRoute => of::<document::HttpRoute>(),
        Kind::GrpcRoute => of::<document::GrpcRoute>(),
        Kind::Service => of::<document::Service>(),
        Kind::EndpointSlice => of::<document::EndpointSlice>(),
        Kind::Workload => of::<document::Workload>(),
        Kind::TrafficPolicy => of::<document::TrafficPolicy>(),
        Kind::CachePolicy => of::<document::CachePolicy>(),
        Kind::AuthorizationPolicy => of::<document::AuthorizationPolicy>(),
        Kind::MeshPolicy => of::<document::MeshPolicy>(),
    };
    tidy(&mut root);
    if let Value::Object(fields) = &mut root {
        fields.insert("title".into(), json!(kind.as_str()));
        fields.insert("description".into(), json!(summary(kind)));
        if let Some(Value::Object(properties)) = fields.get_mut("properties") {
            for (name, value) in [("apiVersion", kind.api_version()), ("kind", kind.as_str())] {
                if let Some(Value::Object(property)) = properties.get_mut(name) {
                    property.insert("const".into(), json!(value));
                }
            }
        }
    }
    root
}

/// Says what is meant in fewer words: a field that may be left out needs no `null`, and a default that is empty no
/// mention.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            unwrap_nullable(fields);
            if let Some(format) = fields.shift_remove("itemFormat")
                && let Some(Value::Object(items)) = fields.get_mut("items")
            {
                items.insert("format".into(), format);
            }
            if let Some(pattern) = fields.get("format").and_then(Value::as_str).and_then(format::pattern) {
                fields.entry("pattern").or_insert_with(|| json!(pattern));
            }
            if let Some(Value::Array(names)) = fields.get("exactlyOne") {
                let one_of: Vec<Value> = names.iter().map(|name| json!({ "required": [name] })).collect();
                fields.insert("oneOf".into(), Value::Array(one_of));
            }
            if fields.get("default").is_some_and(|d| d.is_null() || d.is_object() || d.is_array()) {
                fields.shift_remove("default");
            }
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            for (name, inner) in fields {
                match inner {
                    // Their keys are names of fields and types, not words of the schema language.
                    Value::Object(named) if matches!(name.as_str(), "properties" | "$defs") => {
                        named.values_mut().for_each(tidy);
                    }
                    _ => tidy(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn unwrap_nullable(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|t| t != "null");
        if types.len() == 1 {
            let only = types.remove(0);
            fields.insert("type".into(), only);
        }
    }
    let is_null = |schema: &Value| schema.get("type").is_some_and(|t| t == "null");
    if let Some(Value::Array(choices)) = fields.get("anyOf")
        && let [one, other] = choices.as_slice()
        && let Some(Value::Object(kept)) =
            if is_null(other) { Some(one) } else { is_null(one).then_some(other) }.cloned()
    {
        fields.shift_remove("anyOf");
        for (key, value) in kept {
            // The field's own description says more than that of its type.
            fields.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn no_schema_speaks_of_null_and_every_field_is_described() {
        fn walk(schema: &Value, path: &str) {
            assert_ne!(schema.get("type"), Some(&json!("null")), "{path}");
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (name, property) in properties {
                    assert!(property.get("description").is_some(), "{path}.{name} has no description");
                }
            }
            match schema {
                Value::Object(fields) => {
                    fields.iter().for_each(|(name, s)| walk(s, &format!("{path}.{name}")))
                }
                Value::Array(items) => items.iter().for_each(|s| walk(s, path)),
                _ => {}
            }
        }
        for (kind, schema) in schemas() {
            walk(&schema, kind.as_str());
        }
    }

    /// Kubernetes reads YAML 1.1, where these words are booleans even as the names of fields.
    #[test]
    fn no_name_means_something_else_in_yaml_1_1() {
        fn walk(schema: &Value, path: &str) {
            let refused = |word: &str| {
                ["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
                    .contains(&word.to_lowercase().as_str())
            };
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                properties.keys().for_each(|name| assert!(!refused(name), "{path}.{name}"));
            }
            if let Some(word) = schema.get("const").and_then(Value::as_str) {
                assert!(!refused(word), "{path}: {word}");
            }
            match schema {
                Value::Object(fields) => {
                    fields.iter().for_each(|(name, s)| walk(s, &format!("{path}.{name}")))
                }
                Value::Array(items) => items.iter().for_each(|s| walk(s, path)),
                _ => {}
            }
        }
        schemas().iter().for_each(|(kind, schema)| walk(schema, kind.as_str()));
    }

    /// Editors take the schemas from the repository, so what lies there must be what the types say. `WEFT_UPDATE=1`
    /// writes them anew.
    #[test]
    fn the_schemas_in_the_repository_are_those_of_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        for (kind, schema) in schemas() {
            let path = folder.join(format!("{}.json", kind.as_str()));
            let text = format!("{}\n", serde_json::to_string_pretty(&schema).expect("a schema is JSON"));
            if std::env::var_os("WEFT_UPDATE").is_some() {
                std::fs::create_dir_all(&folder).expect("the folder can be made");
                std::fs::write(&path, &text).expect("the schema can be written");
            }
            let written = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                written == text,
                "{} is out of date: run `WEFT_UPDATE=1 cargo test -p weft-config`",
                path.display()
            );
        }
    }
}
