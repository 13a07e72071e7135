//! The compiled form of a route table: matches in order of precedence, and the ways to find the few that can fit.

use super::spec::{PathSpec, RouteSpec, precedence};
use super::value::{HeaderCondition, QueryCondition, Value, ValueMatch, whole_value_regex};
use super::{InvalidMatch, Match, MatchPart, RequestView, normalize_path};
use http::{HeaderMap, HeaderName, Method};
use regex::bytes::Regex;
use regex_syntax::hir::{Hir, HirKind};
use std::collections::HashMap;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Position in the order of precedence; the lower one wins.
type Rank = u32;
/// No match found yet.
const NONE: Rank = Rank::MAX;
/// Candidates at one place from which on a header that tells them apart is worth a look-up.
const MANY: usize = 8;

#[derive(Debug)]
pub(crate) struct Index {
    /// In order of precedence, as are `entries`.
    pub(crate) specs: Vec<RouteSpec>,
    pub(crate) entries: Vec<Entry>,
    exact: Map<Box<str>, Bucket>,
    /// Candidates by gRPC method, for matches that name no service.
    grpc_methods: Map<Box<str>, Bucket>,
    /// The trie of path segments; the root is the first.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: Map<Box<str>, usize>,
    parent: usize,
    bucket: Bucket,
}

/// One compiled match.
#[derive(Debug)]
pub(crate) struct Entry {
    target: usize,
    /// Bytes that a prefix takes; `None` for the whole path.
    prefix_len: Option<usize>,
    pub(crate) path: PathCheck,
    pub(crate) method: Option<Method>,
    pub(crate) headers: Box<[HeaderCondition]>,
    pub(crate) query: Box<[QueryCondition]>,
}

/// What is left to test of the path once the index has led to an entry.
#[derive(Debug)]
pub(crate) enum PathCheck {
    /// Nothing.
    Done,
    /// The whole path against an expression.
    Regex(Regex),
    /// The two parts of a gRPC path.
    Grpc { service: Option<Value>, method: Option<Value> },
}

impl PathCheck {
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Done => true,
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Grpc { service, method } => grpc_parts(path).is_some_and(|(called, called_method)| {
                service.as_ref().is_none_or(|wanted| wanted.matches(called.as_bytes()))
                    && method.as_ref().is_none_or(|wanted| wanted.matches(called_method.as_bytes()))
            }),
        }
    }
}

/// Service and method of a gRPC path.
pub(crate) fn grpc_parts(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

impl Entry {
    fn matches(&self, request: &RequestView<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.path.matches(request.path)
            && self.headers.iter().all(|condition| condition.matches(request.headers))
            && self.query.iter().all(|condition| condition.matches(request.query))
    }
}

/// Candidates at one place, in order of precedence.
#[derive(Debug, Default)]
struct Bucket {
    all: Vec<Rank>,
    by_header: Option<Box<ByHeader>>,
}

/// The same candidates by the exact value that they ask of one header.
#[derive(Debug)]
struct ByHeader {
    name: HeaderName,
    values: Map<Box<[u8]>, Vec<Rank>>,
    /// Those that don't ask for an exact value of it.
    others: Vec<Rank>,
}

impl Bucket {
    /// Sorts the candidates by a header if that saves looking at most of them.
    fn finish(&mut self, entries: &[Entry]) {
        if self.all.len() < MANY {
            return;
        }
        let mut uses: Map<&HeaderName, usize> = Map::default();
        let exact = |condition: &HeaderCondition| matches!(condition.value, Value::Exact(_));
        for rank in &self.all {
            for condition in entries[*rank as usize].headers.iter().filter(|c| exact(c)) {
                *uses.entry(&condition.name).or_default() += 1;
            }
        }
        let Some((name, count)) = uses.into_iter().max_by_key(|(name, count)| (*count, name.as_str())) else {
            return;
        };
        if count < MANY {
            return;
        }
        let mut by_header = ByHeader { name: name.clone(), values: Map::default(), others: Vec::new() };
        for rank in &self.all {
            let value =
                entries[*rank as usize].headers.iter().find(|c| c.name == by_header.name).map(|c| &c.value);
            match value {
                Some(Value::Exact(text)) => {
                    by_header.values.entry(text.as_bytes().into()).or_default().push(*rank);
                }
                _ => by_header.others.push(*rank),
            }
        }
        self.by_header = Some(Box::new(by_header));
    }

    /// The best of these candidates that fits and is better than `best`.
    fn find(&self, index: &Index, request: &RequestView<'_>, best: Rank) -> Rank {
        match &self.by_header {
            Some(by_header) => match single(request.headers, &by_header.name) {
                Single::Absent => index.first(&by_header.others, request, best),
                Single::Value(value) => {
                    let fitting = by_header.values.get(value).map_or(&[][..], Vec::as_slice);
                    let best = index.first(fitting, request, best);
                    index.first(&by_header.others, request, best)
                }
                Single::Several => index.first(&self.all, request, best),
            },
            None => index.first(&self.all, request, best),
        }
    }
}

enum Single<'a> {
    Absent,
    Value(&'a [u8]),
    Several,
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Single<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Single::Absent,
        (Some(value), None) => Single::Value(value.as_bytes()),
        (Some(_), Some(_)) => Single::Several,
    }
}

impl Index {
    pub(crate) fn build(mut specs: Vec<RouteSpec>) -> Result<Self, Vec<InvalidMatch>> {
        let mut errors = Vec::new();
        let mut compiled = Vec::with_capacity(specs.len());
        for spec in &mut specs {
            if let Some(entry) = compile(spec, &mut errors) {
                compiled.push(entry);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut both: Vec<(RouteSpec, Entry)> = specs.into_iter().zip(compiled).collect();
        both.sort_by_cached_key(|(spec, _)| precedence(spec));
        let (specs, entries): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        let mut index = Self {
            specs: Vec::new(),
            entries: Vec::new(),
            exact: Map::default(),
            grpc_methods: Map::default(),
            nodes: vec![Node::default()],
        };
        for (rank, spec) in specs.iter().enumerate().filter(|(_, spec)| spec.unmet.is_none()) {
            index.place(spec, rank as Rank);
        }
        let buckets = index.exact.values_mut().chain(index.grpc_methods.values_mut());
        for bucket in buckets.chain(index.nodes.iter_mut().map(|node| &mut node.bucket)) {
            bucket.finish(&entries);
        }
        Ok(Self { specs, entries, ..index })
    }

    /// Hangs a match where requests that could fit it come past.
    fn place(&mut self, spec: &RouteSpec, rank: Rank) {
        let bucket = match &spec.path {
            PathSpec::Exact(path) => self.exact.entry(path.as_str().into()).or_default(),
            PathSpec::Prefix(path) => self.node(path.trim_matches('/')),
            PathSpec::Regex(pattern) => self.node(literal_segments(pattern).trim_matches('/')),
            PathSpec::Grpc {
                service: Some(ValueMatch::Exact(service)),
                method: Some(ValueMatch::Exact(method)),
            } => self.exact.entry(format!("/{service}/{method}").into()).or_default(),
            PathSpec::Grpc { service: Some(ValueMatch::Exact(service)), .. } => self.node(service),
            PathSpec::Grpc { service: None, method: Some(ValueMatch::Exact(method)) } => {
                self.grpc_methods.entry(method.as_str().into()).or_default()
            }
            PathSpec::Grpc { .. } => self.node(""),
        };
        bucket.all.push(rank);
    }

    /// The bucket of the trie node of this path (without slashes at its ends), made where it does not exist.
    fn node(&mut self, path: &str) -> &mut Bucket {
        let mut at = 0;
        for segment in path.split('/').filter(|_| !path.is_empty()) {
            at = match self.nodes[at].children.get(segment) {
                Some(child) => *child,
                None => {
                    let child = self.nodes.len();
                    self.nodes[at].children.insert(segment.into(), child);
                    self.nodes.push(Node { parent: at, ..Node::default() });
                    child
                }
            };
        }
        &mut self.nodes[at].bucket
    }

    /// The best candidate of a list that fits and is better than `best`; the list is in order of precedence.
    fn first(&self, candidates: &[Rank], request: &RequestView<'_>, best: Rank) -> Rank {
        let fitting = candidates
            .iter()
            .copied()
            .take_while(|rank| *rank < best)
            .find(|rank| self.entries[*rank as usize].matches(request));
        fitting.unwrap_or(best)
    }

    pub(crate) fn find(&self, request: &RequestView<'_>) -> Option<Match> {
        let rank = self.find_rank(request)?;
        let entry = &self.entries[rank];
        Some(Match { rule: entry.target, matched_len: entry.prefix_len.unwrap_or(request.path.len()) })
    }

    /// The position of the match that is taken.
    pub(crate) fn find_rank(&self, request: &RequestView<'_>) -> Option<usize> {
        let mut best = NONE;
        if let Some(bucket) = self.exact.get(request.path) {
            best = bucket.find(self, request, best);
            // Nothing comes before an exact path.
            if best != NONE {
                return Some(best as usize);
            }
        }
        if !self.grpc_methods.is_empty()
            && let Some((_, method)) = grpc_parts(request.path)
            && let Some(bucket) = self.grpc_methods.get(method)
        {
            best = bucket.find(self, request, best);
        }
        // The deepest node first: with a match from there most of what hangs above need not be looked at.
        let mut at = self.deepest(request.path);
        loop {
            let node = &self.nodes[at];
            best = node.bucket.find(self, request, best);
            if at == 0 {
                break;
            }
            at = node.parent;
        }
        (best != NONE).then_some(best as usize)
    }

    /// The last node on the way that the path's segments lead.
    fn deepest(&self, path: &str) -> usize {
        let mut at = 0;
        let mut rest = Some(path.strip_prefix('/').unwrap_or_default());
        while let Some(text) = rest {
            let children = &self.nodes[at].children;
            if children.is_empty() {
                break;
            }
            let (segment, tail) = match text.split_once('/') {
                Some((segment, tail)) => (segment, Some(tail)),
                None => (text, None),
            };
            let Some(child) = children.get(segment) else { break };
            at = *child;
            rest = tail;
        }
        at
    }
}

/// Compiles one match and brings its path into normal form.
fn compile(spec: &mut RouteSpec, errors: &mut Vec<InvalidMatch>) -> Option<Entry> {
    let before = errors.len();
    let origin = spec.origin.clone();
    let mut failed = |part, message| errors.push(InvalidMatch { origin: origin.clone(), part, message });
    let mut prefix_len = None;
    let path = match &mut spec.path {
        PathSpec::Exact(path) | PathSpec::Prefix(path) => {
            match normalize_path(path) {
                Ok(normal) => *path = normal.into_owned(),
                Err(error) => {
                    failed(MatchPart::Path, format!("`{path}` is not a path that can be matched: {error}"))
                }
            }
            PathCheck::Done
        }
        PathSpec::Regex(pattern) => match whole_value_regex(pattern) {
            Ok(regex) => PathCheck::Regex(regex),
            Err(message) => {
                failed(MatchPart::Path, message);
                PathCheck::Done
            }
        },
        PathSpec::Grpc { service, method } => {
            let mut part = |value: &Option<ValueMatch>, part| match value.as_ref().map(Value::compile) {
                Some(Err(message)) => {
                    failed(part, message);
                    None
                }
                other => other.and_then(Result::ok),
            };
            PathCheck::Grpc {
                service: part(service, MatchPart::GrpcService),
                method: part(method, MatchPart::GrpcMethod),
            }
        }
    };
    if let PathSpec::Prefix(path) = &spec.path {
        prefix_len = Some(path.trim_end_matches('/').len());
    }
    let mut headers: Vec<HeaderCondition> = Vec::with_capacity(spec.headers.len());
    for (at, (name, value)) in spec.headers.iter().enumerate() {
        match Value::compile(value) {
            Ok(value) if headers.iter().all(|c| c.name != name) => {
                headers.push(HeaderCondition { name: name.clone(), value });
            }
            Ok(_) => {}
            Err(message) => failed(MatchPart::Header(at), message),
        }
    }
    let mut query: Vec<QueryCondition> = Vec::with_capacity(spec.query.len());
    for (at, (name, value)) in spec.query.iter().enumerate() {
        match Value::compile(value) {
            Ok(value) if query.iter().all(|c| *c.name != **name) => {
                query.push(QueryCondition { name: name.as_str().into(), value });
            }
            Ok(_) => {}
            Err(message) => failed(MatchPart::Query(at), message),
        }
    }
    if errors.len() > before {
        return None;
    }
    // Precedence counts only the conditions that count.
    let mut seen = Vec::new();
    spec.headers.retain(|(name, _)| first_of(&mut seen, name.clone()));
    let mut seen = Vec::new();
    spec.query.retain(|(name, _)| first_of(&mut seen, name.clone()));
    Some(Entry {
        target: spec.target,
        prefix_len,
        path,
        method: spec.method.clone(),
        headers: headers.into(),
        query: query.into(),
    })
}

fn first_of<T: PartialEq>(seen: &mut Vec<T>, name: T) -> bool {
    let first = !seen.contains(&name);
    if first {
        seen.push(name);
    }
    first
}

/// The whole segments that every path matched by this (valid) expression begins with.
fn literal_segments(pattern: &str) -> String {
    fn collect(hir: &Hir, text: &mut Vec<u8>) -> bool {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => true,
            HirKind::Literal(literal) => {
                text.extend_from_slice(&literal.0);
                true
            }
            HirKind::Capture(capture) => collect(&capture.sub, text),
            HirKind::Concat(parts) => parts.iter().all(|part| collect(part, text)),
            HirKind::Class(_) | HirKind::Repetition(_) | HirKind::Alternation(_) => false,
        }
    }
    let mut literal = Vec::new();
    if let Ok(hir) = regex_syntax::ParserBuilder::new().utf8(false).build().parse(pattern) {
        collect(&hir, &mut literal);
    }
    let whole = literal.iter().rposition(|b| *b == b'/').map_or(&[][..], |end| &literal[..end]);
    match std::str::from_utf8(whole) {
        Ok(text) if text.starts_with('/') => text.to_owned(),
        _ => String::new(),
    }
}
