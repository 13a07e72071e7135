//! The policy reference `docs/policy-reference.md`, made from the same schemas that documents are checked against.

use crate::document::Kind;
use crate::parse::choices;
use crate::schema::{schema, summary};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// One document of every kind, commented, in the order of [`Kind::ALL`].
pub const EXAMPLES: [(Kind, &str); 9] = [
    (Kind::HttpRoute, include_str!("../examples/HTTPRoute.yaml")),
    (Kind::GrpcRoute, include_str!("../examples/GRPCRoute.yaml")),
    (Kind::Service, include_str!("../examples/Service.yaml")),
    (Kind::EndpointSlice, include_str!("../examples/EndpointSlice.yaml")),
    (Kind::Workload, include_str!("../examples/Workload.yaml")),
    (Kind::TrafficPolicy, include_str!("../examples/TrafficPolicy.yaml")),
    (Kind::CachePolicy, include_str!("../examples/CachePolicy.yaml")),
    (Kind::AuthorizationPolicy, include_str!("../examples/AuthorizationPolicy.yaml")),
    (Kind::MeshPolicy, include_str!("../mesh.yaml")),
];

const INTRODUCTION: &str = "\
# Policy reference

<!-- Made from the types in config/src/document by `WEFT_UPDATE=1 cargo test -p weft-config`. Do not edit. -->

Policy is written as YAML documents, as many in a file as you like, with `---` between them. The same files work from a
folder and from Kubernetes. `weft check FOLDER` says everything that is wrong with them, each with its line and its cure.

Editors complete and check documents by their JSON Schemas in `config/schema`. For those that use the YAML language
server, begin a file that holds one document with a line such as this, with the way to the schema from that file:

```yaml
# yaml-language-server: $schema=../config/schema/HTTPRoute.json
```

What is common to all kinds:

- **Durations** are one to four whole numbers, each with one of the units `h`, `m`, `s`, `ms`: `250ms`, `10s`, `1h30m`.
- **Sizes** are a number of bytes, or a text with a unit: `64KiB`, `10MB` (`KiB` is 1024 bytes, `kB` is 1000).
- **Names** are small letters, digits and `-`. A document without `metadata.namespace` is in the namespace `default`.
- **Texts** that look like numbers or booleans need quotes: `version: \"1\"`.
- A field that is unknown, misspelt or there twice is an error; the last good version of the document stays in force. Only
  in kinds of Kubernetes itself (Service, EndpointSlice, `metadata`) fields that a mesh does not need are read past.
- **Regular expressions** have the RE2 syntax, must match the whole value, and take linear time.
";

/// The whole reference as Markdown.
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n| Kind | `apiVersion` | What for |\n|---|---|---|\n");
    for kind in Kind::ALL {
        let name = kind.as_str();
        let _ = writeln!(
            text,
            "| [{name}](#{}) | `{}` | {} |",
            name.to_lowercase(),
            kind.api_version(),
            summary(kind)
        );
    }
    for (kind, example) in EXAMPLES {
        Section { kind, root: schema(kind), done: BTreeSet::new() }.write(&mut text, example);
    }
    text
}

struct Section {
    kind: Kind,
    root: &'static Value,
    done: BTreeSet<String>,
}

impl Section {
    fn write(&mut self, text: &mut String, example: &str) {
        let _ = write!(text, "\n## {}\n\n{}\n\n", self.kind.as_str(), summary(self.kind));
        // The modeline is for the file itself, not for the reader.
        let example = example.split_once('\n').map_or(example, |(_, rest)| rest);
        let _ = write!(text, "```yaml\n{example}```\n\n");
        let (schema, prefix) = match self.root.get("properties").and_then(|p| p.get("spec")) {
            Some(spec) => (self.resolve(spec), "spec."),
            None => (self.root, ""),
        };
        if prefix == "spec."
            && let Some(meaning) = schema.get("description").and_then(Value::as_str)
        {
            let _ = write!(text, "{meaning}\n\n");
        }
        let mut waiting = self.table(text, schema, prefix);
        // Types in the order in which they are first met.
        while !waiting.is_empty() {
            let name = waiting.remove(0);
            if !self.done.insert(name.clone()) {
                continue;
            }
            let Some(schema) = self.root.get("$defs").and_then(|defs| defs.get(&name)) else { continue };
            let _ = write!(text, "\n### {}: {name}\n\n", self.kind.as_str());
            if let Some(meaning) = schema.get("description").and_then(Value::as_str) {
                let _ = write!(text, "{meaning}\n\n");
            }
            if choices(schema).is_some() {
                self.values(text, schema);
            } else {
                let inner = self.table(text, schema, "");
                waiting.splice(0..0, inner);
            }
        }
    }

    fn resolve(&self, schema: &'static Value) -> &'static Value {
        reference(schema).and_then(|name| self.root.get("$defs")?.get(name)).unwrap_or(schema)
    }

    /// Writes the table of an object's fields; gives the types that its fields refer to.
    fn table(&self, text: &mut String, schema: &'static Value, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        if properties.is_empty() {
            text.push_str("It has no fields.\n");
            return found;
        }
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        text.push_str("| Field | Type | Default | Meaning |\n|---|---|---|---|\n");
        for (name, property) in properties {
            if prefix.is_empty()
                && std::ptr::eq(schema, self.root)
                && matches!(&**name, "apiVersion" | "kind" | "metadata")
            {
                continue;
            }
            let (meaning, told) =
                split_default(property.get("description").and_then(Value::as_str).unwrap_or_default());
            let default = if required.contains(&name.as_str()) {
                "required".to_owned()
            } else if let Some(default) = property.get("default") {
                format!("`{}`", default.as_str().map_or_else(|| default.to_string(), shown_text))
            } else {
                told
            };
            let bounds = bounds(property);
            let _ = writeln!(
                text,
                "| `{prefix}{name}` | {} | {} | {}{} |",
                cell(&self.kind_of(property, &mut found)),
                cell(&default),
                cell(&meaning),
                cell(&bounds),
            );
        }
        if let Some(names) = schema.get("exactlyOne").and_then(Value::as_array) {
            let names: Vec<String> =
                names.iter().filter_map(Value::as_str).map(|n| format!("`{n}`")).collect();
            let _ = write!(text, "\nExactly one of {} must be there.\n", names.join(", "));
        }
        found
    }

    fn values(&self, text: &mut String, schema: &Value) {
        text.push_str("| Value | Meaning |\n|---|---|\n");
        for choice in schema.get("oneOf").and_then(Value::as_array).into_iter().flatten() {
            let value = choice.get("const").and_then(Value::as_str).unwrap_or_default();
            let meaning = choice.get("description").and_then(Value::as_str).unwrap_or_default();
            let _ = writeln!(text, "| `{value}` | {} |", cell(meaning));
        }
    }

    /// What a field holds, in words, with links to the types it refers to.
    fn kind_of(&self, schema: &Value, found: &mut Vec<String>) -> String {
        if let Some(name) = reference(schema) {
            found.push(name.to_owned());
            let anchor = format!("{}-{name}", self.kind.as_str()).to_lowercase();
            return format!("[{name}](#{anchor})");
        }
        if let Some(values) = choices(schema) {
            return values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ");
        }
        let word = |name: &str, found: &mut Vec<String>| match name {
            "array" => {
                let items = schema
                    .get("items")
                    .map_or_else(|| "value".to_owned(), |items| self.kind_of(items, found));
                format!("list of {items}")
            }
            "object" => match schema.get("additionalProperties") {
                Some(values @ Value::Object(_)) => format!("map of {}", self.kind_of(values, found)),
                _ => "map".to_owned(),
            },
            "string" => match schema.get("format").and_then(Value::as_str) {
                Some("duration-gep2257") => "duration".to_owned(),
                Some("byte-size") => "size".to_owned(),
                _ => "text".to_owned(),
            },
            "boolean" => "`true`, `false`".to_owned(),
            other => other.to_owned(),
        };
        match schema.get("type") {
            Some(Value::String(only)) => word(only, found),
            Some(Value::Array(_)) if schema.get("format").is_some_and(|f| f == "byte-size") => {
                "size".to_owned()
            }
            Some(Value::Array(several)) => several
                .iter()
                .filter_map(Value::as_str)
                .map(|t| word(t, found))
                .collect::<Vec<_>>()
                .join(" or "),
            _ => "any".to_owned(),
        }
    }
}

fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")
}

fn shown_text(text: &str) -> String {
    if text.is_empty() { "\"\"".to_owned() } else { text.to_owned() }
}

/// Takes the sentence on the default out of a description.
fn split_default(description: &str) -> (String, String) {
    let Some((before, rest)) = description.split_once("Default: ") else {
        return (description.to_owned(), String::new());
    };
    // The sentence ends at a full stop that is not within a code span, such as that of `0.01`.
    let mut in_code = false;
    let end = rest.char_indices().find(|(at, c)| {
        in_code ^= *c == '`';
        *c == '.' && !in_code && rest[at + 1..].chars().next().is_none_or(char::is_whitespace)
    });
    let (default, after) = match end {
        Some((at, _)) => (&rest[..at], rest[at + 1..].trim_start()),
        None => (rest, ""),
    };
    (format!("{before}{after}").trim_end().to_owned(), default.to_owned())
}

/// What a schema says of a value beyond its type.
fn bounds(schema: &Value) -> String {
    let number = |name: &str| schema.get(name).filter(|v| v.is_number()).map(ToString::to_string);
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) if schema.get("type") != Some(&Value::from("string")) => {
            format!(" From {least} to {most}.")
        }
        _ => match (number("minItems"), number("maxItems")) {
            (Some(least), Some(most)) => format!(" From {least} to {most} items."),
            (None, Some(most)) => format!(" At most {most} items."),
            _ => String::new(),
        },
    }
}

/// Keeps a text within its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;
    use crate::document::mesh_policy::{MtlsMode, OutboundMode};
    use crate::parse::parse;
    use crate::snapshot;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn every_example_is_a_good_document_of_its_kind() {
        for ((kind, text), expected) in EXAMPLES.into_iter().zip(Kind::ALL) {
            assert_eq!(kind, expected);
            let parsed = parse(kind.as_str(), text);
            assert_eq!(parsed.diagnostics, [], "{}", kind.as_str());
            let kinds: Vec<_> = parsed.documents.iter().map(|located| located.document.kind()).collect();
            assert_eq!(kinds, [kind]);
            let modeline = text.lines().next().unwrap_or_default();
            assert!(modeline.ends_with(&format!("schema/{}.json", kind.as_str())), "{modeline}");
        }
    }

    /// `WEFT_UPDATE=1` writes it anew.
    #[test]
    fn the_reference_in_the_repository_is_that_of_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy-reference.md");
        let text = markdown();
        if std::env::var_os("WEFT_UPDATE").is_some() {
            std::fs::create_dir_all(path.with_file_name("")).expect("the folder can be made");
            std::fs::write(&path, &text).expect("the reference can be written");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == text,
            "docs/policy-reference.md is out of date: run `WEFT_UPDATE=1 cargo test -p weft-config`"
        );
    }

    #[test]
    fn every_link_of_the_reference_has_its_heading() {
        let text = markdown();
        let headings: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")))
            .map(|heading| heading.to_lowercase().replace(": ", "-"))
            .collect();
        let links: Vec<&str> =
            text.split("](#").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link).collect();
        assert!(links.len() > 100);
        for link in links {
            assert!(headings.contains(link), "{link}");
        }
    }

    /// The file that shows every default must not drift from the code that sets them.
    #[test]
    fn the_shipped_mesh_policy_says_every_default_as_it_is() {
        let parsed = parse("mesh.yaml", include_str!("../mesh.yaml"));
        let Document::MeshPolicy(policy) = &parsed.documents[0].document else { panic!("another kind") };
        let (spec, mesh) = (&policy.spec, snapshot::Mesh::default());
        assert_eq!(spec.trust_domain.as_deref(), Some(&*mesh.trust_domain));
        assert_eq!(spec.mtls.mode == Some(MtlsMode::Strict), mesh.mtls == snapshot::MtlsMode::Strict);
        assert_eq!(
            spec.outbound == Some(OutboundMode::AllowAny),
            mesh.outbound == snapshot::OutboundMode::AllowAny
        );
        assert_eq!(spec.access_log.sample, Some(mesh.access_log.sample));
        assert_eq!(spec.access_log.min_status, mesh.access_log.min_status);
        assert_eq!(spec.tracing.sampling, Some(mesh.trace_sampling));
        let written = &spec.limits;
        let time = |duration: Option<crate::document::duration::PolicyDuration>| {
            duration.map_or(Duration::MAX, |duration| duration.get())
        };
        let size = |number: Option<u32>| number.map_or(usize::MAX, |number| number as usize);
        let limits = snapshot::Limits {
            header_bytes: written.header_bytes.map_or(usize::MAX, |size| size.0 as usize),
            header_count: size(written.header_count),
            connections: size(written.connections),
            streams: written.streams.unwrap_or(u32::MAX),
            header_timeout: time(written.header_timeout),
            idle_timeout: time(written.idle_timeout),
            pool_idle_timeout: time(written.pool_idle_timeout),
            pool_idle: size(written.pool_idle),
            pool_connections: size(written.pool_connections),
            connect_timeout: time(written.connect_timeout),
            handshake_timeout: time(written.handshake_timeout),
            sniff_timeout: time(written.sniff_timeout),
            request_timeout: time(written.request_timeout),
            tcp_idle_timeout: time(written.tcp_idle_timeout),
            drain_timeout: time(written.drain_timeout),
        };
        assert_eq!(limits, mesh.limits);
        // Every field of the schema stands in the file, so that none can be forgotten.
        let text = include_str!("../mesh.yaml");
        for field in schema(Kind::MeshPolicy)["$defs"]["MeshLimits"]["properties"]
            .as_object()
            .expect("an object")
            .keys()
        {
            assert!(text.contains(&format!("    {field}: ")), "{field}");
        }
    }

    #[test]
    fn the_sentence_on_the_default_moves_into_its_column() {
        assert_eq!(split_default("A. Default: `0.01`. B."), ("A. B.".into(), "`0.01`".into()));
        assert_eq!(split_default("A. Default: the route's own."), ("A.".into(), "the route's own".into()));
        assert_eq!(split_default("A."), ("A.".into(), String::new()));
    }
}
