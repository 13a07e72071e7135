//! What a route asks of a request, as plain data, and the Gateway API's order among such matches.

use super::value::ValueMatch;
use http::{HeaderName, Method};
use std::{cmp::Reverse, fmt, str::FromStr, sync::Arc};

/// One match of one rule of one route.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// What the rule is called in metrics and answers: `<namespace>/<route>#<rule>`.
    pub route: Arc<str>,
    /// Index into the rules of the port.
    pub target: usize,
    /// Whose it is, for ties.
    pub origin: Origin,
    /// What the path must be.
    pub path: PathSpec,
    /// The method, if it matters.
    pub method: Option<Method>,
    /// Header conditions; of several with one name only the first counts.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Conditions on who calls, which have been decided already. For precedence they are header conditions.
    pub caller: Vec<(HeaderName, ValueMatch)>,
    /// Why this caller does not meet one of them: then the match stands in the table but no request takes it.
    pub unmet: Option<Arc<str>>,
    /// Query conditions; of several with one name only the first counts.
    pub query: Vec<(String, ValueMatch)>,
}

/// Where a match comes from: what decides when matches are equally specific.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When the route was created. The older route wins; one that has no time, as all that come from plain files,
    /// counts as younger than any that has.
    pub created: Option<Timestamp>,
    /// The route's namespace.
    pub namespace: Arc<str>,
    /// The route's name.
    pub name: Arc<str>,
    /// The rule's place in the route.
    pub rule: usize,
    /// The match's place in the rule.
    pub matched: usize,
}

/// What the path must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathSpec {
    /// This very path (in normal form).
    Exact(String),
    /// This path and everything below it, by whole segments; a slash at the end does not matter.
    Prefix(String),
    /// An expression that must match the whole path.
    Regex(String),
    /// A gRPC call, `/<service>/<method>`.
    Grpc {
        /// The service with its package; `None` for any.
        service: Option<ValueMatch>,
        /// The method; `None` for any.
        method: Option<ValueMatch>,
    },
}

impl fmt::Display for PathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |value: &Option<ValueMatch>| match value {
            None => "*".to_owned(),
            Some(ValueMatch::Exact(text)) => text.clone(),
            Some(ValueMatch::Regex(pattern)) => format!("~{pattern}"),
        };
        match self {
            Self::Exact(path) => write!(f, "path = {path}"),
            Self::Prefix(path) => write!(f, "path under {path}"),
            Self::Regex(pattern) => write!(f, "path ~ {pattern}"),
            Self::Grpc { service, method } => write!(f, "gRPC {}/{}", part(service), part(method)),
        }
    }
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &ValueMatch| match value {
            ValueMatch::Exact(text) => format!("= {text}"),
            ValueMatch::Regex(pattern) => format!("~ {pattern}"),
        };
        write!(f, "{}", self.path)?;
        if let Some(method) = &self.method {
            write!(f, ", method {method}")?;
        }
        for (name, wanted) in &self.headers {
            write!(f, ", header {name} {}", value(wanted))?;
        }
        for (name, wanted) in &self.caller {
            write!(f, ", {name} {}", value(wanted))?;
        }
        for (name, wanted) in &self.query {
            write!(f, ", query {name} {}", value(wanted))?;
        }
        Ok(())
    }
}

/// Sorts matches so that of all that fit a request the first is the one to take.
///
/// HTTPRoute, as the Gateway API demands: exact path, then longest prefix in characters, then a method match, then the
/// most header matches, then the most query matches; then the oldest route, then `namespace/name` in alphabetical
/// order, then the first rule in the route. Where expressions stand is left to implementations: here after exact paths
/// and before prefixes, because who adds one beside a catch-all prefix wants it to count; among themselves expressions
/// tie and the next criterion decides.
///
/// GRPCRoute: most characters of the service, then of the method, then the most header matches, then the same
/// ties. An expression has no characters of its own: it comes after every exact name and before no name at all.
///
/// The `hostnames` of routes attached to a Service are no part of it: GEP-1426 tells meshes to infer nothing from them.
pub(crate) fn precedence(spec: &RouteSpec) -> impl Ord + use<> {
    let count = |n: usize| Reverse(u32::try_from(n).unwrap_or(u32::MAX));
    let characters = |text: &str| text.chars().count();
    let name = |value: &Option<ValueMatch>| match value {
        Some(ValueMatch::Exact(text)) => (count(characters(text)), count(0)),
        Some(ValueMatch::Regex(_)) => (count(0), count(1)),
        None => (count(0), count(0)),
    };
    let path = match &spec.path {
        // One table holds routes of one type; should it ever hold both, gRPC is the more specific type.
        PathSpec::Grpc { service, method } => (0, name(service), name(method)),
        PathSpec::Exact(path) => (1, (count(characters(path)), count(0)), (count(0), count(0))),
        PathSpec::Regex(_) => (2, (count(0), count(0)), (count(0), count(0))),
        PathSpec::Prefix(path) => {
            (3, (count(characters(path.trim_end_matches('/'))), count(0)), (count(0), count(0)))
        }
    };
    let origin = &spec.origin;
    (
        path,
        spec.method.is_none(),
        count(spec.headers.len() + spec.caller.len()),
        count(spec.query.len()),
        (origin.created.is_none(), origin.created),
        // Compared as the one text that the Gateway API speaks of.
        format!("{}/{}", origin.namespace, origin.name),
        (origin.rule, origin.matched),
    )
}

/// A point in time, as a document's `metadata.creationTimestamp` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

/// Why a text is not a point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time of the form 2006-01-02T15:04:05Z (RFC 3339)")]
pub struct InvalidTimestamp(pub String);

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_timestamp(text).ok_or_else(|| InvalidTimestamp(text.chars().take(64).collect()))
    }
}

fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let number = |text: &str| {
        (!text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse::<i64>().ok())
            .flatten()
    };
    let pair = |text: &str| (text.len() == 2).then(|| number(text)).flatten();
    if !text.is_ascii() {
        return None;
    }
    let (date, rest) = text.split_once(['T', 't'])?;
    let (year, month_day) = date.split_once('-')?;
    let (month, day) = month_day.split_once('-')?;
    let (year, month, day) = ((year.len() == 4).then(|| number(year)).flatten()?, pair(month)?, pair(day)?);
    let at = rest.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = rest.split_at(at);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let (hour, minute_second) = time.split_once(':')?;
    let (minute, second) = minute_second.split_once(':')?;
    let (hour, minute, second) = (pair(hour)?, pair(minute)?, pair(second)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > month_days || hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let nanoseconds = u32::try_from(number(&format!("{fraction:0<9}"))?).ok()?;
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let (hours, minutes) = (pair(hours)?, pair(minutes)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if zone.starts_with('-') { -60 } else { 60 }
        }
    };
    // Days since 1970-01-01, counting years from March so that the leap day is the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (m * 153 + 2) / 5 + day
        - 1
        - 719_468;
    Some(Timestamp { seconds: days * 86_400 + hour * 3600 + minute * 60 + second - offset, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("1970-01-01T00:00:00Z", 0)]
    #[case("2000-02-29T00:00:00Z", 951_782_400)]
    #[case("2024-03-01T12:34:56Z", 1_709_296_496)]
    #[case("2024-03-01T13:34:56+01:00", 1_709_296_496)]
    #[case("2024-03-01T11:04:56.5-01:30", 1_709_296_496)]
    fn rfc_3339_times_are_read(#[case] text: &str, #[case] seconds: i64) {
        assert_eq!(text.parse::<Timestamp>().map(|t| t.seconds), Ok(seconds));
    }

    #[rstest]
    #[case("")]
    #[case("yesterday")]
    #[case("2024-02-30T00:00:00Z")]
    #[case("2023-02-29T00:00:00Z")]
    #[case("2024-13-01T00:00:00Z")]
    #[case("2024-03-01T24:00:00Z")]
    #[case("2024-03-01T00:00:00")]
    #[case("2024-03-01")]
    #[case("2024-03-01T00:00:00+1:00")]
    #[case("2024-03-01T00:00:00.1234567890Z")]
    fn other_texts_are_not_times(#[case] text: &str) {
        assert!(text.parse::<Timestamp>().is_err());
    }

    #[test]
    fn fractions_count() {
        let time = |text: &str| text.parse::<Timestamp>().expect("valid");
        assert!(time("2024-03-01T12:34:56.1Z") > time("2024-03-01T12:34:56.09Z"));
        assert!(time("2024-03-01T12:34:56Z") < time("2024-03-01T12:34:56.000000001Z"));
    }
}
