//! The process's own log: lines on standard error, with a filter that can be changed while it runs.

use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Longest filter that is accepted.
const LONGEST: usize = 1024;

/// The running log's filter.
#[derive(Clone)]
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

/// Starts the log for the whole process. `filter` is a level (`info`) or a list such as `info,weft_sidecar::tls=debug`.
///
/// # Errors
/// If the filter is not understood, or the process has a log already.
pub(crate) fn init(filter: &str, json: bool) -> Result<Level, String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    // The cache's disk may fail at every write; it is told once a minute by whoever uses it.
    let lines = lines.with_filter(filter_fn(|metadata| !metadata.target().starts_with("foyer")));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| format!("the log cannot be started: {error}"))?;
    Ok(Level(handle))
}

impl Level {
    /// The filter in force.
    pub(crate) fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_else(|error| format!("unknown: {error}"))
    }

    /// Puts another filter in force, or says why not.
    pub(crate) fn set(&self, filter: &str) -> Result<(), String> {
        let filter = parse(filter)?;
        self.0.reload(filter).map_err(|error| format!("the filter cannot be changed: {error}"))
    }
}

fn parse(text: &str) -> Result<EnvFilter, String> {
    const FORM: &str = "write a level (off, error, warn, info, debug, trace) or a list such as \
                        info,weft_sidecar::tls=debug";
    let text = text.trim();
    if text.is_empty() || text.len() > LONGEST {
        return Err(format!("a filter has 1 to {LONGEST} characters; {FORM}"));
    }
    // A bare word would be taken for a module at its most talkative, so that a misspelt level turns everything off
    // but itself.
    for part in text.split(',').map(str::trim) {
        let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if !is_level && !part.contains(['=', '[', ']', '{', '}']) {
            return Err(format!("`{}` is not a level; {FORM}", part.escape_default()));
        }
    }
    EnvFilter::builder().parse(text).map_err(|error| format!("`{}`: {error}; {FORM}", text.escape_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_are_understood() {
        for filter in
            ["info", " DEBUG ", "off", "info,weft_sidecar::tls=debug", "warn,h2=off,weft_sidecar[span]=trace"]
        {
            assert!(parse(filter).is_ok(), "{filter}: {:?}", parse(filter).err());
        }
    }

    #[test]
    fn a_misspelt_level_is_refused_with_the_cure() {
        for filter in
            ["", "  ", "debgu", "info,debgu", "info,,debug", "weft=louder", "\u{1b}[31m", &"a".repeat(2000)]
        {
            let error = parse(filter).map(|_| ()).expect_err(filter);
            assert!(error.contains("info,weft_sidecar::tls=debug"), "{error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
    }

    #[test]
    fn the_filter_changes_while_the_log_runs() {
        let (_layer, handle) = reload::Layer::<EnvFilter, Registry>::new(parse("info").expect("a level"));
        let level = Level(handle);
        assert_eq!(level.get(), "info");
        level.set("weft_sidecar=debug,warn").expect("a list");
        assert_eq!(level.get(), "weft_sidecar=debug,warn");
        assert!(level.set("louder").is_err());
        assert_eq!(level.get(), "weft_sidecar=debug,warn", "a refused filter changes nothing");
    }
}
