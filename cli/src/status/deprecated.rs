//! `weft status --deprecated`: who still calls what is going away.

use super::span;
use crate::terminal::{Palette, Style, table};
use weft_control_plane::status::{Deprecated, DeprecatedCaller, Status};

/// The whole page.
pub(super) fn text(status: &Status, running: bool, palette: Palette) -> String {
    let mut text = String::new();
    if !running {
        text.push_str("not running as far as can be seen from here; nobody knows who calls\n\n");
    }
    if status.deprecated.is_empty() {
        text.push_str("nothing is going away: no TrafficPolicy in force has `deprecation`\n");
        return text;
    }
    let heading = ["DEPRECATED", "SINCE", "SUNSET", "CALLER", "WORKLOAD", "CALLS", "LAST CALL"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for deprecated in &status.deprecated {
        let what = vec![deprecated.of.clone(), written(&deprecated.since), written(&deprecated.sunset)];
        if deprecated.callers.is_empty() {
            let nobody = if running { "nobody in the last 7 days" } else { "-" };
            rows.push([what.clone(), vec![nobody.to_owned()]].concat());
        }
        for (index, caller) in deprecated.callers.iter().enumerate() {
            let what = if index == 0 { what.clone() } else { vec![String::new(); 3] };
            rows.push([what, row(caller, status.control_plane.now)].concat());
        }
    }
    text.push_str(&table(&rows, palette));
    for deprecated in status.deprecated.iter().filter(|deprecated| is_over(deprecated)) {
        text.push_str(&format!(
            "\n{} the sunset of {} was {}, and it is still called\n",
            palette.paint(Style::Warning, "warning:"),
            deprecated.of,
            deprecated.sunset
        ));
    }
    text
}

fn row(caller: &DeprecatedCaller, now: u64) -> Vec<String> {
    let processes = match caller.processes {
        0 | 1 => String::new(),
        several => format!(" ({several} processes)"),
    };
    vec![
        caller.identity.clone(),
        format!("{}/{}{processes}", caller.namespace, caller.workload),
        caller.calls.to_string(),
        format!("{} ago", span(now.saturating_sub(caller.last_call))),
    ]
}

fn written(date: &str) -> String {
    if date.is_empty() { "-".into() } else { date.into() }
}

/// Whether somebody called it after its sunset.
fn is_over(deprecated: &Deprecated) -> bool {
    let last = deprecated.callers.iter().map(|caller| caller.last_call).max();
    // Times that are written from the year down to the second compare as text; a date is before every time on it.
    last.is_some_and(|last| !deprecated.sunset.is_empty() && *deprecated.sunset <= *utc(last))
}

/// Seconds of Unix time as `2026-12-31T23:59:59Z`.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that a leap day is the last of its year; 400 of them have 146,097 days.
    let since = days + 719_468;
    let (era, day) = (since / 146_097, since % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (day * 5 + 2) / 153;
    let day = day - (month * 153 + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let year = era * 400 + year + next;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_plane::status::ControlPlane;

    const NOW: u64 = 1_798_761_600; // 2027-01-01

    fn caller(workload: &str, calls: u64, processes: u64, ago: u64) -> DeprecatedCaller {
        DeprecatedCaller {
            identity: format!("spiffe://weft.local/ns/shop/sa/{workload}"),
            namespace: "shop".into(),
            workload: workload.into(),
            processes,
            calls,
            last_call: NOW - ago,
        }
    }

    fn status(deprecated: Vec<Deprecated>) -> Status {
        let control_plane = ControlPlane { now: NOW, ..ControlPlane::default() };
        Status { deprecated, control_plane, ..Status::default() }
    }

    #[test]
    fn callers_are_named_with_what_they_call_and_how_much_time_they_have() {
        let products = Deprecated {
            of: "HTTPRoute shop/products#v1".into(),
            since: "2026-01-31".into(),
            sunset: "2027-12-31".into(),
            callers: vec![caller("storefront", 120, 3, 10), caller("cart", 4, 1, 7200)],
            ..Deprecated::default()
        };
        let unused =
            Deprecated { of: "Service shop/old".into(), since: "2026-06-01".into(), ..Deprecated::default() };
        let page = text(&status(vec![products, unused]), true, Palette::plain());
        let rows: Vec<Vec<&str>> = page
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        let storefront = "spiffe://weft.local/ns/shop/sa/storefront";
        assert_eq!(rows[0], ["DEPRECATED", "SINCE", "SUNSET", "CALLER", "WORKLOAD", "CALLS", "LAST CALL"]);
        let products = ["HTTPRoute shop/products#v1", "2026-01-31", "2027-12-31"];
        let calls = [storefront, "shop/storefront (3 processes)", "120", "10 s ago"];
        assert_eq!(rows[1], [&products[..], &calls[..]].concat());
        assert_eq!(rows[2], ["spiffe://weft.local/ns/shop/sa/cart", "shop/cart", "4", "2 h ago"]);
        assert_eq!(rows[3], ["Service shop/old", "2026-06-01", "-", "nobody in the last 7 days"]);
        assert_eq!(rows.len(), 4, "{page}");
    }

    #[test]
    fn calls_after_the_sunset_are_a_warning() {
        let until = |sunset: &str, ago| {
            let of = Deprecated {
                of: "Service shop/old".into(),
                sunset: sunset.into(),
                callers: vec![caller("cart", 1, 1, ago)],
                ..Deprecated::default()
            };
            text(&status(vec![of]), true, Palette::plain())
                .contains("warning: the sunset of Service shop/old was")
        };
        assert!(until("2027-01-01", 0));
        assert!(!until("2027-01-01", 1), "it was called, but before");
        assert!(until("2026-12-31T23:59:59Z", 1));
        assert!(!until("2026-12-31T23:59:59Z", 2));
        assert!(!until("2027-01-02", 0) && !until("", 0));
    }

    #[test]
    fn what_nothing_is_known_of_is_said() {
        let page = text(&status(vec![]), true, Palette::plain());
        assert!(page.contains("no TrafficPolicy in force has `deprecation`"), "{page}");
        let of =
            Deprecated { of: "Service shop/old".into(), since: "2026-06-01".into(), ..Deprecated::default() };
        let page = text(&status(vec![of]), false, Palette::plain());
        assert!(page.contains("not running") && page.contains("Service shop/old"), "{page}");
        assert!(!page.contains("nobody in"), "{page}");
    }

    #[test]
    fn seconds_become_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (784_111_777, "1994-11-06T08:49:37Z"),
            (951_825_600, "2000-02-29T12:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }
}
