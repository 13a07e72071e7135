//! A tree held against the schema of its kind: every unknown, missing and mistyped field, not only the first.

use super::format;
use super::tree::{Node, NodeValue, Position, join, short};
use crate::error::Severity;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;

/// Something wrong with one field.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) severity: Severity,
    pub(super) at: Position,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) cure: String,
}

/// What became of a tree.
pub(super) struct Checked {
    /// The document as JSON, without what is wrong; `None` if nothing usable is left.
    pub(super) value: Option<Value>,
    pub(super) positions: BTreeMap<Box<str>, Position>,
    pub(super) problems: Vec<Problem>,
}

/// Holds a tree against a schema.
pub(super) fn check(node: &Node, schema: &Value) -> Checked {
    let mut walk = Walk { root: schema, positions: BTreeMap::new(), problems: Vec::new() };
    walk.positions.insert("".into(), node.at);
    let value = walk.value(node, schema, "");
    Checked { value, positions: walk.positions, problems: walk.problems }
}

struct Walk<'a> {
    root: &'a Value,
    positions: BTreeMap<Box<str>, Position>,
    problems: Vec<Problem>,
}

/// More problems than this in one document help nobody.
const MAX_PROBLEMS: usize = 200;

impl<'a> Walk<'a> {
    fn problem(&mut self, severity: Severity, at: Position, path: &str, message: String, cure: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { severity, at, path: path.to_owned(), message, cure });
        }
    }

    fn error(&mut self, at: Position, path: &str, message: String, cure: impl Into<String>) {
        self.problem(Severity::Error, at, path, message, cure.into());
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..8 {
            let Some(name) = schema.get("$ref").and_then(Value::as_str) else { break };
            let found = name.strip_prefix("#/$defs/").and_then(|name| self.root.get("$defs")?.get(name));
            match found {
                Some(found) => schema = found,
                None => break,
            }
        }
        schema
    }

    /// The value as JSON; `None` if it is not usable, which has then been reported.
    fn value(&mut self, node: &Node, schema: &'a Value, path: &str) -> Option<Value> {
        let schema = self.resolve(schema);
        if let Some(choices) = choices(schema) {
            return self.choice(node, &choices, path);
        }
        let allows = |name: &str| match schema.get("type") {
            Some(Value::String(only)) => only == name,
            Some(Value::Array(several)) => several.iter().any(|t| t == name),
            _ => false,
        };
        match &node.value {
            _ if schema.get("type").is_none() => Some(Value::Null),
            NodeValue::Map(_) if allows("object") => self.object(node, schema, path),
            NodeValue::List(items) if allows("array") => self.list(items, node.at, schema, path),
            NodeValue::Scalar { text, plain } => {
                if *plain
                    && allows("boolean")
                    && let Some(value) = boolean(text)
                {
                    return self.constant(value, node, schema, path);
                }
                if *plain
                    && allows("integer")
                    && let Some(number) = integer(text)
                {
                    return self.in_range(number as f64, node, schema, path).then(|| json_integer(number));
                }
                if *plain
                    && allows("number")
                    && let Some(number) = real(text)
                {
                    return self
                        .in_range(number, node, schema, path)
                        .then(|| Number::from_f64(number).map_or(Value::Null, Value::Number));
                }
                let is_text = !*plain || (boolean(text).is_none() && real(text).is_none());
                if allows("string") && is_text {
                    return self.text(text, node.at, schema, path).then(|| Value::String(text.to_string()));
                }
                self.mistyped(node, schema, path);
                None
            }
            _ => {
                self.mistyped(node, schema, path);
                None
            }
        }
    }

    fn mistyped(&mut self, node: &Node, schema: &Value, path: &str) {
        let expected = expected(schema);
        let first = first_type(schema);
        if let (NodeValue::Scalar { .. }, Some("secret-name")) =
            (&node.value, schema.get("format").and_then(Value::as_str))
        {
            let message = format!("found something that is not shown here, expected {expected}");
            return self.error(node.at, path, message, "if it is the name of a secret, put it in quotes");
        }
        let cure = match &node.value {
            NodeValue::Scalar { text, plain: true } if first == "string" && !node.is_null() => {
                let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
                // Quotes alone do not make a duration of a number.
                if let Err(unfit) = format::check(format, text) {
                    return self.error(
                        node.at,
                        path,
                        format!("found {}, expected {expected}", found(node)),
                        unfit.cure,
                    );
                }
                format!("put it in quotes: \"{}\"", short(text))
            }
            NodeValue::Scalar { text, plain: false }
                if (matches!(first, "integer" | "number") && real(text).is_some())
                    || (first == "boolean" && boolean(text).is_some()) =>
            {
                "take the quotes away".to_owned()
            }
            NodeValue::Scalar { text, .. } if first == "boolean" => {
                match text.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "y" | "1" => "write `true`".to_owned(),
                    "no" | "off" | "n" | "0" => "write `false`".to_owned(),
                    _ => String::new(),
                }
            }
            NodeValue::Scalar { text, .. } if first == "array" && !node.is_null() => {
                format!("write a list: [{}]", short(text))
            }
            NodeValue::Map(_) if first == "array" => "begin the item with `- `".to_owned(),
            NodeValue::List(_) if first == "object" => "take the `- ` away: there is only one".to_owned(),
            _ => String::new(),
        };
        self.error(node.at, path, format!("found {}, expected {expected}", found(node)), cure);
    }

    fn constant(&mut self, value: bool, node: &Node, schema: &Value, path: &str) -> Option<Value> {
        if schema.get("const").is_some_and(|only| *only != Value::Bool(value)) {
            let message = format!("found `{value}`, where only `{}` makes sense", !value);
            self.error(node.at, path, message, "leave the field out");
            return None;
        }
        Some(Value::Bool(value))
    }

    fn choice(&mut self, node: &Node, choices: &[&Value], path: &str) -> Option<Value> {
        let text = node.text();
        let same = |choice: &&&Value| match choice {
            Value::String(choice) => text == Some(choice),
            Value::Number(choice) => text.and_then(integer).is_some_and(|n| choice.as_i64() == Some(n)),
            _ => false,
        };
        if let Some(choice) = choices.iter().find(same) {
            return Some((*choice).clone());
        }
        let names: Vec<String> =
            choices.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
        let expected = match names.as_slice() {
            [only] => format!("`{only}`"),
            several => format!("one of {}", quoted(several)),
        };
        let cure =
            text.map_or_else(String::new, |text| super::suggest(text, names.iter().map(String::as_str)));
        self.error(node.at, path, format!("found {}, expected {expected}", found(node)), cure);
        None
    }

    fn object(&mut self, node: &Node, schema: &'a Value, path: &str) -> Option<Value> {
        let NodeValue::Map(entries) = &node.value else { return None };
        let properties = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        let mut object = Map::new();
        let mut usable = true;
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for entry in entries {
            let field_path = join(path, &entry.key);
            let at = match entry.value.value {
                NodeValue::Scalar { .. } if !entry.value.is_null() => entry.value.at,
                _ => entry.key_at,
            };
            self.positions.insert(field_path.as_str().into(), at);
            let property = properties.and_then(|p| p.get(&*entry.key));
            let Some(property) = property.or_else(|| others.filter(|o| o.is_object())) else {
                self.unknown(entry.key_at, &entry.key, &field_path, schema, entries.iter().map(|e| &*e.key));
                continue;
            };
            if entry.value.is_null() && properties.is_some() {
                // As Kubernetes has it: a field without a value is a field that is not there.
                continue;
            }
            match self.value(&entry.value, property, &field_path) {
                Some(Value::Null) => {}
                Some(value) => {
                    object.insert(entry.key.to_string(), value);
                }
                None => usable &= !required.contains(&&*entry.key) && properties.is_some(),
            }
        }
        for name in required {
            let written = entries.iter().find(|e| &*e.key == name);
            if written.is_some_and(|e| !e.value.is_null()) {
                continue;
            }
            usable = false;
            let property = properties.and_then(|p| p.get(name)).unwrap_or(&Value::Null);
            let cure = match example(property) {
                Some(example) => format!("add it, for example `{name}: {example}`"),
                None => format!("add `{name}:`, {}", expected(self.resolve(property))),
            };
            match written {
                Some(entry) => {
                    let message = format!("the field `{name}` has no value");
                    self.error(entry.key_at, &join(path, name), message, cure);
                }
                None => {
                    self.error(node.at, &join(path, name), format!("the field `{name}` is missing"), cure)
                }
            }
        }
        self.sizes(object.len(), entries.len(), "Properties", "fields", node.at, schema, path);
        self.exactly_one(
            node.at,
            entries.iter().filter(|e| !e.value.is_null()).map(|e| &*e.key),
            schema,
            path,
        );
        usable.then_some(Value::Object(object))
    }

    fn exactly_one<'e>(
        &mut self,
        at: Position,
        keys: impl Iterator<Item = &'e str>,
        schema: &Value,
        path: &str,
    ) {
        let Some(names) = schema.get("exactlyOne").and_then(Value::as_array) else { return };
        let names: Vec<String> = names.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let given: Vec<String> = keys.filter(|k| names.iter().any(|n| n == k)).map(str::to_owned).collect();
        match given.as_slice() {
            [_] => {}
            [] => self.error(
                at,
                path,
                format!("none of {} is there", quoted(&names)),
                "write exactly one of them",
            ),
            several => self.error(
                at,
                path,
                format!("found {} together", quoted(several)),
                "keep exactly one of them",
            ),
        }
    }

    fn unknown<'e>(
        &mut self,
        at: Position,
        key: &str,
        path: &str,
        schema: &'a Value,
        present: impl Iterator<Item = &'e str>,
    ) {
        let present: Vec<&str> = present.collect();
        let known: Vec<&str> = schema
            .get("properties")
            .and_then(Value::as_object)
            .map(|p| p.keys().map(String::as_str).collect())
            .unwrap_or_default();
        // What is there already is not what was meant.
        let free = known.iter().copied().filter(|name| !present.contains(name));
        let mut cure = super::suggest(key, free);
        if schema.get("additionalProperties").is_none() {
            if !cure.is_empty() {
                let message = format!("the field `{}` is not read", short(key));
                self.problem(Severity::Warning, at, path, message, cure);
            }
            return;
        }
        if known.contains(&"credentials") && matches!(key, "password" | "username" | "user") {
            cure = "name a secret in `credentials`: passwords do not belong into policy".to_owned();
        }
        if cure.is_empty()
            && let Some(inner) = self.elsewhere(key, schema)
        {
            cure = format!("it belongs into `{inner}`");
        }
        if cure.is_empty() {
            let known: Vec<String> = known.iter().map(|k| (*k).to_owned()).collect();
            cure = if known.is_empty() {
                "no field is known here".to_owned()
            } else {
                format!("known here are {}", quoted(&known))
            };
        }
        self.error(at, path, format!("unknown field `{}`", short(key)), cure);
    }

    /// The field of `schema` within which a field of this name is known.
    fn elsewhere(&self, key: &str, schema: &'a Value) -> Option<&'a str> {
        schema.get("properties").and_then(Value::as_object)?.iter().find_map(|(name, property)| {
            let inner = self.resolve(property);
            let inner = inner.get("items").map_or(inner, |items| self.resolve(items));
            inner.get("properties")?.get(key).map(|_| name.as_str())
        })
    }

    fn list(&mut self, items: &[Node], at: Position, schema: &'a Value, path: &str) -> Option<Value> {
        self.sizes(items.len(), items.len(), "Items", "items", at, schema, path);
        let inner = schema.get("items").unwrap_or(&Value::Null);
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let item_path = format!("{path}[{index}]");
            self.positions.insert(item_path.as_str().into(), item.at);
            if item.is_null() && !inner.is_null() {
                let message = format!("found an empty item, expected {}", expected(self.resolve(inner)));
                self.error(item.at, &item_path, message, "fill it in or take it away");
            } else if let Some(value) = self.value(item, inner, &item_path) {
                list.push(value);
            }
        }
        // An item less would shift the places of those behind it.
        (list.len() == items.len()).then_some(Value::Array(list))
    }

    fn text(&mut self, text: &str, at: Position, schema: &Value, path: &str) -> bool {
        if let Some(only) = schema.get("const").and_then(Value::as_str)
            && only != text
        {
            let message = format!("found `{}`, expected `{only}`", short(text));
            self.error(at, path, message, format!("write `{only}`"));
            return false;
        }
        let before = self.problems.len();
        let length = text.chars().count();
        let bound = |name: &str| {
            schema.get(name).and_then(Value::as_u64).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        };
        if bound("minLength").is_some_and(|least| length < least) {
            self.error(at, path, format!("found an empty text, expected {}", expected(schema)), "fill it in");
        } else if let Some(most) = bound("maxLength").filter(|most| length > *most) {
            let message = format!("found a text of {length} characters, expected at most {most}");
            self.error(at, path, message, "shorten it");
        } else if let Some(name) = schema.get("format").and_then(Value::as_str)
            && let Err(unfit) = format::check(name, text)
        {
            let found = match format::is_private(name, text) {
                true => "something that is not shown here".to_owned(),
                false => format!("`{}`", short(text)),
            };
            let message = format!("found {found}, expected {}", unfit.expected);
            self.error(at, path, message, unfit.cure);
        } else if let Ok(size) = text.parse::<crate::document::size::ByteSize>()
            && schema.get("format").is_some_and(|f| f == "byte-size")
        {
            self.in_byte_range(size.0, text, at, schema, path);
        }
        self.problems.len() == before
    }

    fn in_range(&mut self, number: f64, node: &Node, schema: &Value, path: &str) -> bool {
        let before = self.problems.len();
        let (least, most) = (bound(schema, "minimum"), bound(schema, "maximum"));
        let most = most.or_else(|| (schema.get("format")? == "uint32").then_some(f64::from(u32::MAX)));
        if least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most) {
            let range = match (least, most) {
                (Some(least), Some(most)) => format!("a number from {least} to {most}"),
                (Some(least), None) => format!("a number of at least {least}"),
                (None, Some(most)) => format!("a number of at most {most}"),
                (None, None) => "another number".to_owned(),
            };
            self.error(node.at, path, format!("found `{}`, expected {range}", found_text(node)), "");
        } else if schema.get("format").is_some_and(|f| f == "byte-size") && number >= 0.0 {
            self.in_byte_range(number as u64, &found_text(node), node.at, schema, path);
        }
        self.problems.len() == before
    }

    fn in_byte_range(&mut self, size: u64, written: &str, at: Position, schema: &Value, path: &str) {
        use crate::document::size::ByteSize;
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
        if let Some(least) = bound("minimumBytes").filter(|least| size < *least) {
            let message = format!("found `{}`, expected at least {}", short(written), ByteSize(least));
            self.error(at, path, message, "");
        }
        if let Some(most) = bound("maximumBytes").filter(|most| size > *most) {
            let message = format!("found `{}`, expected at most {}", short(written), ByteSize(most));
            self.error(at, path, message, "");
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn sizes(
        &mut self,
        usable: usize,
        written: usize,
        what: &str,
        things: &str,
        at: Position,
        schema: &Value,
        path: &str,
    ) {
        let bound = |name: String| schema.get(name).and_then(Value::as_u64);
        if let Some(least) = bound(format!("min{what}")).filter(|least| (written.max(usable) as u64) < *least)
        {
            let message = format!("found {written} {things}, expected at least {least}");
            self.error(at, path, message, "fill it in or leave the field out");
        }
        if let Some(most) = bound(format!("max{what}")).filter(|most| written as u64 > *most) {
            let message = format!("found {written} {things}, expected at most {most}");
            self.error(at, path, message, "split it into several documents");
        }
    }
}

fn bound(schema: &Value, name: &str) -> Option<f64> {
    schema.get(name).and_then(Value::as_f64)
}

fn json_integer(number: i64) -> Value {
    u64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// The values that a schema allows, if it lists them.
pub(crate) fn choices(schema: &Value) -> Option<Vec<&Value>> {
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Some(list.iter().collect());
    }
    let list = schema.get("oneOf").and_then(Value::as_array)?;
    let mut found = Vec::new();
    for choice in list {
        match (choice.get("const"), choice.get("enum").and_then(Value::as_array)) {
            (Some(value), _) => found.push(value),
            (None, Some(several)) => found.extend(several),
            (None, None) => return None,
        }
    }
    Some(found)
}

/// The example in a field's description.
fn example(property: &Value) -> Option<&str> {
    let (_, rest) = property.get("description")?.as_str()?.split_once("Example: `")?;
    rest.split_once('`').map(|(example, _)| example)
}

fn first_type(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(only)) => only,
        Some(Value::Array(several)) => several.first().and_then(Value::as_str).unwrap_or(""),
        _ => "",
    }
}

/// What a schema wants, in words.
fn expected(schema: &Value) -> String {
    if let Some(choices) = choices(schema) {
        let names: Vec<String> =
            choices.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
        return format!("one of {}", quoted(&names));
    }
    let word = |name: &str| match (name, schema.get("format").and_then(Value::as_str)) {
        ("string", Some("duration-gep2257")) => "a duration such as `10s`".to_owned(),
        ("string", Some("byte-size")) => "a size such as `64KiB`".to_owned(),
        ("integer", Some("byte-size")) => "a number of bytes".to_owned(),
        ("string", _) => "a text".to_owned(),
        ("integer", _) => "a whole number".to_owned(),
        ("number", _) => "a number".to_owned(),
        ("boolean", _) => "`true` or `false`".to_owned(),
        ("array", _) => "a list".to_owned(),
        ("object", _) => "a map of fields".to_owned(),
        (other, _) => other.to_owned(),
    };
    match schema.get("type") {
        Some(Value::String(only)) => word(only),
        Some(Value::Array(several)) => {
            several.iter().filter_map(Value::as_str).map(word).collect::<Vec<_>>().join(" or ")
        }
        _ => "another value".to_owned(),
    }
}

fn found(node: &Node) -> String {
    match &node.value {
        _ if node.is_null() => "nothing".to_owned(),
        NodeValue::Scalar { text, plain: true } if real(text).is_some() => {
            format!("the number `{}`", short(text))
        }
        NodeValue::Scalar { text, plain: true } if boolean(text).is_some() => format!("`{}`", short(text)),
        NodeValue::Scalar { text, .. } => format!("the text `{}`", short(text)),
        NodeValue::List(_) => "a list".to_owned(),
        NodeValue::Map(_) => "a map of fields".to_owned(),
    }
}

fn found_text(node: &Node) -> String {
    node.text().map_or_else(String::new, short)
}

/// Names in backquotes, at most a dozen.
fn quoted(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(16).map(|name| format!("`{name}`")).collect();
    if names.len() > 16 {
        shown.push(format!("and {} more", names.len() - 16));
    }
    shown.join(", ")
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn integer(text: &str) -> Option<i64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return i64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with(['+', '-']));
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return i64::from_str_radix(digits, 8).ok().filter(|_| !digits.starts_with(['+', '-']));
    }
    text.parse().ok()
}

fn real(text: &str) -> Option<f64> {
    if let Some(number) = integer(text) {
        return Some(number as f64);
    }
    // Rust reads words such as `inf` and `nan` as numbers; YAML does not.
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
        && text.bytes().any(|b| b.is_ascii_digit());
    text.parse::<f64>().ok().filter(|number| numeric && number.is_finite())
}
