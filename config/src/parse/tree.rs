//! YAML as a tree in which every value knows its line and column; all that YAML has and policy does not is refused here.

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Lists and maps within each other; deeper is refused.
pub(super) const MAX_DEPTH: usize = 64;

/// Values in one document, those repeated by aliases counted each time; more are refused.
pub(super) const MAX_NODES: usize = 250_000;

/// Bytes of text that aliases may repeat in one document.
pub(super) const MAX_REPEATED_BYTES: usize = 4 << 20;

/// Line and column, both from 1.
pub(super) type Position = (u32, u32);

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: NodeValue,
    pub(super) at: Position,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum NodeValue {
    /// A scalar; `plain` if it is written without quotes and so may be a number, a boolean or nothing.
    Scalar { text: Box<str>, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A map, in the order written.
    Map(Vec<Entry>),
}

/// One field of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    pub(super) key_at: Position,
    pub(super) value: Node,
}

impl Node {
    /// True if nothing is written there.
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            NodeValue::Scalar { text, plain: true } => matches!(&**text, "" | "~" | "null" | "Null" | "NULL"),
            _ => false,
        }
    }

    /// The value of a field, if this is a map that has it.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        match &self.value {
            NodeValue::Map(entries) => entries.iter().find(|e| &*e.key == name).map(|e| &e.value),
            _ => None,
        }
    }

    /// The text, if this is a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            NodeValue::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// Something wrong with the YAML itself.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) at: Position,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) cure: String,
}

/// What could be read of a text.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The documents that could be read to their end.
    pub(super) roots: Vec<Node>,
    /// Everything wrong with them.
    pub(super) flaws: Vec<Flaw>,
}

enum Frame {
    List { items: Vec<Node>, at: Position, anchor: usize },
    Map { entries: Vec<Entry>, seen: HashSet<Box<str>>, key: Option<Key>, at: Position, anchor: usize },
}

struct Key {
    text: Box<str>,
    at: Position,
    /// False for a key that was reported and whose value is dropped.
    wanted: bool,
}

struct Anchored {
    node: Node,
    measure: Measure,
}

/// How large a value is, with everything in it.
#[derive(Clone, Copy, Default)]
struct Measure {
    nodes: usize,
    bytes: usize,
    height: usize,
}

/// Reads a text whose first line is line `first_line` of its file.
pub(super) fn read(text: &str, first_line: u32) -> Tree {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut reader = Reader { first_line, ..Reader::default() };
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => reader.event(event, span),
            Err(error) => {
                let marker = error.marker();
                let at = reader.position(marker.line(), marker.col());
                Err(syntax_flaw(text, marker.line(), at, &error.info()))
            }
        };
        if let Err(flaw) = step {
            reader.tree.flaws.push(flaw);
            break;
        }
    }
    reader.tree
}

/// What the parser says, with the cure for the mistakes that people make most.
fn syntax_flaw(text: &str, line: usize, at: Position, info: &str) -> Flaw {
    let written = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let indent_has_tab = written.trim_start_matches(' ').starts_with('\t');
    let (message, cure) = if indent_has_tab || info.contains("tab") {
        ("found a tab, where YAML takes only spaces".to_owned(), "indent with spaces".to_owned())
    } else if info.contains("nesting") || info.contains("recursion") {
        (format!("lists and maps are nested deeper than {MAX_DEPTH}"), "write it flatter".to_owned())
    } else if written.trim_start().starts_with(['@', '`', '%']) || info.contains("unexpected character") {
        (
            format!("this is not YAML: {info}"),
            "put a value that begins with a special character in quotes".to_owned(),
        )
    } else {
        (
            format!("this is not YAML: {info}"),
            "check the indentation, quotes and colons here and in the line above".to_owned(),
        )
    };
    Flaw { at, path: String::new(), message, cure }
}

#[derive(Default)]
struct Reader {
    first_line: u32,
    tree: Tree,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    repeated_bytes: usize,
}

impl Reader {
    fn position(&self, line: usize, column: usize) -> Position {
        let line = u32::try_from(line.max(1)).unwrap_or(u32::MAX);
        let column = u32::try_from(column).unwrap_or(u32::MAX);
        (line.saturating_sub(1).saturating_add(self.first_line), column.saturating_add(1))
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Flaw> {
        let at = self.position(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(..) => {
                self.stack.clear();
                self.anchors.clear();
                self.nodes = 0;
                self.repeated_bytes = 0;
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, at)?;
                let plain = style == ScalarStyle::Plain && !self.tagged(tag, at)?;
                let node = Node { value: NodeValue::Scalar { text: text.into(), plain }, at };
                self.finish(node, anchor);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.open(at)?;
                self.tagged(tag, at)?;
                self.stack.push(Frame::List { items: Vec::new(), at, anchor });
            }
            Event::MappingStart(_, anchor, tag) => {
                self.open(at)?;
                self.tagged(tag, at)?;
                let (entries, seen) = (Vec::new(), HashSet::new());
                self.stack.push(Frame::Map { entries, seen, key: None, at, anchor });
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Frame::List { items, at, anchor }) => {
                    self.finish(Node { value: NodeValue::List(items), at }, anchor);
                }
                Some(Frame::Map { entries, at, anchor, .. }) => {
                    self.finish(Node { value: NodeValue::Map(entries), at }, anchor);
                }
                None => {}
            },
            Event::Alias(anchor) => {
                let Some(found) = self.anchors.get(&anchor) else {
                    return Err(self.flaw(
                        at,
                        "found an alias within what it stands for".into(),
                        "write the value out",
                    ));
                };
                let (measure, node) = (found.measure, found.node.clone());
                self.count(measure.nodes, at)?;
                self.repeated_bytes += measure.bytes;
                if self.repeated_bytes > MAX_REPEATED_BYTES {
                    let message = format!("aliases repeat more than {MAX_REPEATED_BYTES} bytes");
                    return Err(self.flaw(at, message, "write less of it"));
                }
                if self.stack.len() + measure.height > MAX_DEPTH {
                    return Err(self.too_deep(at));
                }
                self.finish(node, 0);
            }
            _ => {}
        }
        Ok(())
    }

    /// True for the tag `!!str`, which takes away a plain scalar's other meanings.
    fn tagged(&self, tag: Option<Cow<'_, Tag>>, at: Position) -> Result<bool, Flaw> {
        let Some(tag) = tag else { return Ok(false) };
        match tag.core_suffix() {
            Some("str") => Ok(true),
            Some("int" | "float" | "bool" | "null" | "map" | "seq") => Ok(false),
            _ => Err(self.flaw(
                at,
                format!("found the tag `{}`, which policy does not know", short(&tag.original())),
                "take the tag away",
            )),
        }
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Flaw> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(self.flaw(
                at,
                format!("the document has more than {MAX_NODES} values, aliases counted each time"),
                "split it into several documents",
            ));
        }
        Ok(())
    }

    fn open(&mut self, at: Position) -> Result<(), Flaw> {
        self.count(1, at)?;
        if self.stack.len() >= MAX_DEPTH { Err(self.too_deep(at)) } else { Ok(()) }
    }

    fn too_deep(&self, at: Position) -> Flaw {
        self.flaw(at, format!("lists and maps are nested deeper than {MAX_DEPTH}"), "write it flatter")
    }

    fn flaw(&self, at: Position, message: String, cure: &str) -> Flaw {
        Flaw { at, path: self.path(), message, cure: cure.to_owned() }
    }

    /// Puts a finished value where it belongs: into the list or map around it, as a key, or as a whole document.
    fn finish(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, Anchored { measure: measure(&node), node: node.clone() });
        }
        let path = match self.stack.last() {
            Some(Frame::Map { key: None, .. }) => self.path(),
            _ => String::new(),
        };
        match self.stack.last_mut() {
            None => self.tree.roots.push(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, key: pending, .. }) if pending.is_some() => {
                if let Some(key) = pending.take().filter(|key| key.wanted) {
                    entries.push(Entry { key: key.text, key_at: key.at, value: node });
                }
            }
            Some(Frame::Map { seen, key, .. }) => {
                let at = node.at;
                let (text, flaw) = match node.value {
                    NodeValue::Scalar { text, plain } if plain && &*text == "<<" => (
                        text,
                        Some((
                            "found a merge key `<<`, which policy does not know".to_owned(),
                            "write its fields out",
                        )),
                    ),
                    NodeValue::Scalar { text, .. } if seen.insert(text.clone()) => (text, None),
                    NodeValue::Scalar { text, .. } => {
                        let message = format!("the field `{}` is there twice", short(&text));
                        (text, Some((message, "keep one of the two")))
                    }
                    _ => (
                        "".into(),
                        Some((
                            "found a list or map as the name of a field".to_owned(),
                            "name the field with a text",
                        )),
                    ),
                };
                let wanted = flaw.is_none();
                if let Some((message, cure)) = flaw {
                    let path = join(&path, &text);
                    self.tree.flaws.push(Flaw { at, path, message, cure: cure.to_owned() });
                }
                *key = Some(Key { text, at, wanted });
            }
        }
    }

    /// The path of the list or map that is being read.
    fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.stack {
            match frame {
                // The last frame's own place is the value in it that comes next.
                Frame::List { items, .. } => path.push_str(&format!("[{}]", items.len())),
                Frame::Map { key: Some(key), .. } => path = join(&path, &key.text),
                Frame::Map { key: None, .. } => {}
            }
        }
        path
    }
}

fn measure(node: &Node) -> Measure {
    let mut sum = Measure { nodes: 1, ..Measure::default() };
    let mut add = |bytes: usize, child: &Node| {
        let child = measure(child);
        sum.nodes += child.nodes;
        sum.bytes += bytes + child.bytes;
        sum.height = sum.height.max(child.height);
    };
    match &node.value {
        NodeValue::Scalar { text, .. } => return Measure { nodes: 1, bytes: text.len(), height: 0 },
        NodeValue::List(items) => items.iter().for_each(|item| add(0, item)),
        NodeValue::Map(entries) => entries.iter().for_each(|entry| add(entry.key.len(), &entry.value)),
    }
    sum.height += 1;
    sum
}

/// A path and the field within it.
pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// At most the first 60 characters of a text, on one line, to be shown in a message.
pub(super) fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}
