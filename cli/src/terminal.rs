//! How text reaches the terminal: colour only where it is wanted, and a closed pipe is no error.

use std::io::{self, IsTerminal, Write};

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum ColourChoice {
    /// On a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a piece of text is, which decides how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A heading or a name.
    Bold,
    /// Less important.
    Dim,
    /// An error.
    Error,
    /// A warning.
    Warning,
    /// All is well.
    Good,
    /// A file name, a caret.
    Place,
    /// One of the colours by which log sources are told apart.
    Source(usize),
}

/// Colours of log sources: readable on dark and on light, without the red and yellow that mean trouble.
const SOURCES: [&str; 8] = ["36", "35", "34", "32", "96", "95", "94", "92"];

/// Paints text, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Palette {
    enabled: bool,
}

impl Palette {
    /// The palette for standard output.
    pub(crate) fn stdout(choice: ColourChoice) -> Self {
        Self { enabled: wanted(choice, io::stdout().is_terminal(), &|name| std::env::var(name).ok()) }
    }

    /// The palette for standard error.
    pub(crate) fn stderr(choice: ColourChoice) -> Self {
        Self { enabled: wanted(choice, io::stderr().is_terminal(), &|name| std::env::var(name).ok()) }
    }

    /// Never any colour.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { enabled: false }
    }

    /// Always colour.
    #[cfg(test)]
    pub(crate) const fn colourful() -> Self {
        Self { enabled: true }
    }

    /// True if escape sequences are written.
    pub(crate) const fn enabled(self) -> bool {
        self.enabled
    }

    /// The text in this style.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if !self.enabled || text.is_empty() {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Error => "1;31",
            Style::Warning => "1;33",
            Style::Good => "32",
            Style::Place => "1;34",
            Style::Source(index) => SOURCES[index % SOURCES.len()],
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

fn wanted(choice: ColourChoice, terminal: bool, env: &dyn Fn(&str) -> Option<String>) -> bool {
    match choice {
        ColourChoice::Always => true,
        ColourChoice::Never => false,
        ColourChoice::Auto => {
            let no_color = env("NO_COLOR").is_some_and(|v| !v.is_empty());
            let dumb = env("TERM").is_some_and(|v| v == "dumb");
            terminal && !no_color && !dumb
        }
    }
}

/// Writes to standard output. A reader that has gone away (`weft status | head`) is not an error.
pub(crate) fn out(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Writes to standard error.
pub(crate) fn err(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Rows as aligned columns, two spaces between them. The first row is the heading.
pub(crate) fn table(rows: &[Vec<String>], palette: Palette) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let pad = widths[column].saturating_sub(cell.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', pad));
            }
        }
        let line = line.trim_end();
        if index == 0 {
            text.push_str(&palette.paint(Style::Bold, line));
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn colour_needs_a_terminal_and_respects_no_color() {
        assert!(wanted(ColourChoice::Auto, true, &env(&[])));
        assert!(!wanted(ColourChoice::Auto, false, &env(&[])));
        assert!(!wanted(ColourChoice::Auto, true, &env(&[("NO_COLOR", "1")])));
        assert!(
            wanted(ColourChoice::Auto, true, &env(&[("NO_COLOR", "")])),
            "an empty NO_COLOR counts as unset"
        );
        assert!(!wanted(ColourChoice::Auto, true, &env(&[("TERM", "dumb")])));
    }

    #[test]
    fn a_choice_beats_the_environment() {
        assert!(wanted(ColourChoice::Always, false, &env(&[("NO_COLOR", "1")])));
        assert!(!wanted(ColourChoice::Never, true, &env(&[])));
    }

    #[test]
    fn columns_line_up_without_trailing_space() {
        let rows = [
            vec!["NAME".into(), "PORT".into()],
            vec!["product-v1".into(), "8080".into()],
            vec!["a".into(), String::new()],
        ];
        assert_eq!(table(&rows, Palette::plain()), "NAME        PORT\nproduct-v1  8080\na\n");
    }
}
