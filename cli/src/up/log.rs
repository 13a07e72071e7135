//! One aligned log of everything that runs: a name column, a colour for each workload, one writer.

use super::lines::{sanitised, without_time};
use crate::terminal::{self, Palette, Style};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;

/// Who says a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `weft up` itself.
    Weft,
    /// The control plane.
    ControlPlane,
    /// The sidecar of a workload instance; the number chooses the colour.
    Sidecar(Arc<str>, usize),
    /// The application of a workload instance; the number chooses the colour.
    Application(Arc<str>, usize),
}

impl Source {
    /// What stands in the name column.
    fn name(&self) -> &str {
        match self {
            Self::Weft => "weft",
            Self::ControlPlane => "control-plane",
            Self::Sidecar(name, _) | Self::Application(name, _) => name,
        }
    }

    fn style(&self) -> Style {
        match self {
            Self::Weft => Style::Bold,
            Self::ControlPlane => Style::Dim,
            Self::Sidecar(_, colour) | Self::Application(_, colour) => Style::Source(*colour),
        }
    }
}

/// The widest name column; a longer name is cut in its middle, so that `-v1-0` at its end stays readable.
const WIDEST: usize = 28;

/// How lines are laid out.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    width: usize,
    palette: Palette,
    timestamps: bool,
}

impl Layout {
    /// A layout with room for these names.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>, palette: Palette, timestamps: bool) -> Self {
        let longest = names.map(|n| n.chars().count()).max().unwrap_or(0);
        Self { width: longest.max("control-plane".len()).min(WIDEST), palette, timestamps }
    }

    /// One line of the log, with its line break.
    fn line(&self, source: &Source, text: &str, now: SystemTime) -> String {
        let name = shortened(source.name(), self.width);
        let pad = " ".repeat(self.width - name.chars().count());
        let time = if self.timestamps {
            format!("{} ", self.palette.paint(Style::Dim, &time_of_day(now)))
        } else {
            String::new()
        };
        let name = self.palette.paint(source.style(), &format!("{name}{pad} |"));
        let text = match source {
            Source::Application(..) | Source::Weft => sanitised(text, self.palette.enabled()),
            Source::ControlPlane => sanitised(without_time(text), self.palette.enabled()),
            Source::Sidecar(..) => {
                let readable = access_line(text);
                let text = readable.as_deref().unwrap_or_else(|| without_time(text));
                let text = sanitised(text, self.palette.enabled());
                format!("{} {text}", self.palette.paint(Style::Dim, "sidecar:"))
            }
        };
        format!("{time}{name} {text}").trim_end().to_owned() + "\n"
    }
}

/// A line of the JSON access log as people read it; `None` for every other line.
fn access_line(line: &str) -> Option<String> {
    if !line.starts_with('{') {
        return None;
    }
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| entry.get(field).and_then(|value| value.as_str());
    let (direction, method) = (text("direction")?, text("method")?);
    let status = entry.get("status")?.as_u64()?;
    let mut readable =
        format!("{direction} {method} {}{} {status}", text("host").unwrap_or("-"), text("path")?);
    if let Some(error) = text("error") {
        readable.push_str(&format!(" {error}"));
    }
    if let Some(duration) = entry.get("duration_ms").and_then(|value| value.as_f64()) {
        readable.push_str(&format!(" after {duration:.0} ms"));
    }
    for (field, name) in [("cache", "cache"), ("route", "route"), ("trace_id", "trace")] {
        if let Some(value) = text(field) {
            readable.push_str(&format!(", {name} {value}"));
        }
    }
    Some(readable)
}

fn shortened(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let tail = width / 2;
    let head = width - tail - 1;
    let start: String = name.chars().take(head).collect();
    let end: String = name.chars().skip(length - tail).collect();
    format!("{start}…{end}")
}

/// `20:51:22.123Z`.
fn time_of_day(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

enum Entry {
    Line(Source, String),
    Block(String),
}

/// Where lines go. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log {
    entries: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

/// Lines that wait for a slow terminal; beyond that, programs wait as they would on the terminal itself.
const WAITING: usize = 4096;

/// The writer, on a thread of its own: a stopped terminal must stop neither supervision nor Ctrl-C.
pub(super) struct Writer(std::thread::JoinHandle<()>);

impl Log {
    /// Starts the writer.
    pub(super) fn start(layout: Layout) -> std::io::Result<(Self, Writer)> {
        let (entries, mut waiting) = mpsc::channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || {
            while let Some(entry) = waiting.blocking_recv() {
                match entry {
                    Entry::Line(source, text) => {
                        terminal::out(&layout.line(&source, &text, SystemTime::now()));
                    }
                    Entry::Block(text) => terminal::out(&text),
                }
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let text = format!("{lost} messages were dropped: the terminal did not take them");
                    terminal::out(&layout.line(&Source::Weft, &text, SystemTime::now()));
                }
            }
        })?;
        Ok((Self { entries, dropped }, Writer(thread)))
    }

    /// A line that a program printed; waits while the terminal is behind.
    pub(super) async fn line(&self, source: &Source, text: String) {
        // Fails only when the writer is gone, and then there is nowhere to say so.
        let _ = self.entries.send(Entry::Line(source.clone(), text)).await;
    }

    /// A message of `weft up` itself; never waits.
    pub(super) fn say(&self, text: impl Into<String>) {
        self.offer(Entry::Line(Source::Weft, text.into()));
    }

    /// Text of several lines that is not part of the columns; never waits.
    pub(super) fn block(&self, text: String) {
        self.offer(Entry::Block(text));
    }

    fn offer(&self, entry: Entry) {
        if self.entries.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What was said in a log that nobody writes out.
#[cfg(test)]
pub(super) struct Recording(mpsc::Receiver<Entry>);

#[cfg(test)]
impl Log {
    /// A log that nobody writes out.
    pub(super) fn recording() -> (Self, Recording) {
        let (entries, waiting) = mpsc::channel(WAITING);
        (Self { entries, dropped: Arc::default() }, Recording(waiting))
    }
}

#[cfg(test)]
impl Recording {
    /// Everything since the last call.
    pub(super) fn text(&mut self) -> String {
        let mut all = String::new();
        while let Ok(Entry::Line(_, text) | Entry::Block(text)) = self.0.try_recv() {
            all.push_str(&text);
            all.push('\n');
        }
        all
    }
}

impl Writer {
    /// Waits a little until everything is written. Every [`Log`] must be gone by then.
    pub(super) fn finish(self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while !self.0.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if self.0.is_finished() {
            let _ = self.0.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn layout(palette: Palette, timestamps: bool) -> Layout {
        Layout::new(["product-v1-0", "cart"].into_iter(), palette, timestamps)
    }

    #[test]
    fn names_line_up() {
        let layout = layout(Palette::plain(), false);
        let cart = layout.line(&Source::Application("cart".into(), 0), "ready", NOW);
        let plane = layout.line(&Source::ControlPlane, "2026-01-02T03:04:05Z WARN trouble", NOW);
        let sidecar = layout.line(&Source::Sidecar("product-v1-0".into(), 1), "hello", NOW);
        assert_eq!(cart, "cart          | ready\n");
        assert_eq!(plane, "control-plane | WARN trouble\n");
        assert_eq!(sidecar, "product-v1-0  | sidecar: hello\n");
    }

    #[test]
    fn a_workload_and_its_sidecar_share_a_colour() {
        let layout = layout(Palette::colourful(), false);
        let app = layout.line(&Source::Application("cart".into(), 3), "x", NOW);
        let sidecar = layout.line(&Source::Sidecar("cart".into(), 3), "x", NOW);
        let other = layout.line(&Source::Application("cart".into(), 4), "x", NOW);
        let colour = |line: &str| line.split('m').next().map(str::to_owned);
        assert_eq!(colour(&app), colour(&sidecar));
        assert_ne!(colour(&app), colour(&other));
    }

    #[test]
    fn without_colour_there_is_no_escape() {
        let line = layout(Palette::plain(), true).line(&Source::Weft, "\u{1b}[31mred\u{1b}[0m", NOW);
        assert_eq!(line, "00:00:00.000Z weft          | red\n");
    }

    #[test]
    fn the_access_log_is_made_readable_and_other_json_is_left_alone() {
        let line = r#"{"time":"t","direction":"outbound","method":"GET","path":"/a","host":"b:80","route":"shop/b#0",
            "cache":"miss","status":504,"error":"timeout","duration_ms":501.7,"trace_id":"4d0b"}"#
            .replace('\n', "");
        let readable = "outbound GET b:80/a 504 timeout after 502 ms, cache miss, route shop/b#0, trace 4d0b";
        assert_eq!(access_line(&line).as_deref(), Some(readable));
        assert_eq!(access_line(r#"{"level":"WARN","message":"no"}"#), None);
        assert_eq!(access_line("{ not json"), None);
    }

    #[test]
    fn a_long_name_keeps_its_ends() {
        let name = shortened("a-very-long-workload-name-indeed-v2-11", WIDEST);
        assert_eq!(name.chars().count(), WIDEST);
        assert!(name.starts_with("a-very-long") && name.ends_with("-v2-11"), "{name}");
    }
}
