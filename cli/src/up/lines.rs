//! Cuts what a program prints into lines fit for the log: bounded, valid text, nothing that moves the cursor.

/// A longer line is cut into pieces of this many bytes.
const LONGEST: usize = 8 * 1024;

/// Collects bytes until a line is whole.
#[derive(Default)]
pub(super) struct LineCutter {
    pending: Vec<u8>,
}

impl LineCutter {
    /// Takes more output and hands every line that is now whole to `line`.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(String)) {
        while !bytes.is_empty() {
            match bytes.iter().position(|b| *b == b'\n') {
                Some(end) if self.pending.len() + end <= LONGEST => {
                    self.pending.extend_from_slice(&bytes[..end]);
                    line(text(&self.pending));
                    self.pending.clear();
                    bytes = &bytes[end + 1..];
                }
                _ => {
                    let room = LONGEST.saturating_sub(self.pending.len());
                    let taken = room.min(bytes.len());
                    self.pending.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if self.pending.len() >= LONGEST {
                        let cut = whole_characters(&self.pending);
                        line(text(&self.pending[..cut]));
                        self.pending.drain(..cut);
                    }
                }
            }
        }
    }

    /// What is left when the output ends without a line break.
    pub(super) fn finish(&mut self) -> Option<String> {
        if self.pending.is_empty() {
            return None;
        }
        Some(text(&std::mem::take(&mut self.pending)))
    }
}

/// The length up to which `bytes` ends with a whole UTF-8 character.
fn whole_characters(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(4);
    let last = bytes[from..].iter().rposition(|b| !matches!(b, 0x80..=0xbf)).map_or(from, |i| from + i);
    match std::str::from_utf8(&bytes[last..]) {
        Ok(_) => bytes.len(),
        // An incomplete character at the very end waits for its rest; anything else is no UTF-8 and goes as it is.
        Err(error) if error.error_len().is_none() && last > 0 => last,
        Err(_) => bytes.len(),
    }
}

/// One line as text. Of a line that overwrites itself with carriage returns, the last state counts.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|b| *b != b'\r').map_or(0, |i| i + 1);
    let bytes = &bytes[..end];
    let start = bytes.iter().rposition(|b| *b == b'\r').map_or(0, |i| i + 1);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// The line without control characters. Colour sequences stay if `colour`; every other escape sequence goes.
pub(super) fn sanitised(line: &str, colour: bool) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut coloured = false;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => match rest.next() {
                Some('[') => {
                    let mut parameters = String::new();
                    let mut last = None;
                    for c in rest.by_ref() {
                        if ('\u{40}'..='\u{7e}').contains(&c) {
                            last = Some(c);
                            break;
                        }
                        parameters.push(c);
                    }
                    let numbers = parameters.chars().all(|c| c.is_ascii_digit() || matches!(c, ';' | ':'));
                    if last == Some('m') && colour && numbers {
                        clean.push_str(&format!("\x1b[{parameters}m"));
                        coloured = true;
                    }
                }
                // A title or a link: all of it up to BEL or ESC \.
                Some(']') => {
                    while let Some(c) = rest.next() {
                        if c == '\u{7}' {
                            break;
                        }
                        if c == '\u{1b}' {
                            rest.next_if_eq(&'\\');
                            break;
                        }
                    }
                }
                _ => {}
            },
            '\t' => clean.push('\t'),
            c if c.is_control() => {}
            c => clean.push(c),
        }
    }
    if coloured {
        clean.push_str("\x1b[0m");
    }
    clean
}

/// The line without a leading RFC 3339 time: our own programs print one, and the log has its own.
pub(super) fn without_time(line: &str) -> &str {
    let Some((first, rest)) = line.split_once(' ') else { return line };
    let bytes = first.as_bytes();
    let dated = bytes.len() >= 20
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && bytes[10] == b'T'
        && bytes.ends_with(b"Z");
    if dated { rest.trim_start() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let mut cutter = LineCutter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            cutter.push(piece, |l| lines.push(l));
        }
        lines.extend(cutter.finish());
        lines
    }

    #[test]
    fn lines_come_whole_however_the_bytes_arrive() {
        assert_eq!(cut(&[b"one\ntw", b"o\n\nthr", b"ee"]), ["one", "two", "", "three"]);
        assert_eq!(cut(&[b"windows\r\nunix\n"]), ["windows", "unix"]);
    }

    #[test]
    fn a_progress_line_shows_its_last_state() {
        assert_eq!(cut(&[b" 10%\r 50%\r100%\n"]), ["100%"]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_keeps_its_characters() {
        let long = "é".repeat(LONGEST);
        let lines = cut(&[b"x", long.as_bytes()]);
        assert!(lines.len() >= 2);
        assert!(lines.iter().all(|l| l.len() <= LONGEST && !l.contains('\u{fffd}')));
        assert_eq!(lines.concat(), format!("x{long}"));
    }

    #[test]
    fn bytes_that_are_no_text_cannot_stop_the_log() {
        let garbage = vec![0x80u8; 3 * LONGEST];
        assert_eq!(cut(&[&garbage]).len(), 3);
        assert_eq!(cut(&[b"\xff\xfe ok\n"]), ["\u{fffd}\u{fffd} ok"]);
    }

    #[test]
    fn only_colours_pass_and_only_where_colours_are_wanted() {
        let line = "\u{1b}[2J\u{1b}[31mred\u{1b}[0m\u{7} \u{1b}]0;title\u{7}done";
        assert_eq!(sanitised(line, false), "red done");
        assert_eq!(sanitised(line, true), "\u{1b}[31mred\u{1b}[0m done\u{1b}[0m");
        assert_eq!(sanitised("a\tb", false), "a\tb");
        assert_eq!(sanitised("cut short \u{1b}[", true), "cut short ");
    }

    #[test]
    fn our_programs_time_is_not_shown_twice() {
        assert_eq!(without_time("2026-01-02T03:04:05.678901Z  WARN weft: hello"), "WARN weft: hello");
        assert_eq!(without_time("2026-01-02 is a date"), "2026-01-02 is a date");
        assert_eq!(without_time("plain"), "plain");
    }
}
