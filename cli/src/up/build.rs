//! The build step before anything starts: progress while it runs, everything it said if it fails.

use super::{
    lines::{LineCutter, sanitised},
    orphans::Orphans,
    plan::Program,
    process_group,
    supervise::describe,
};
use crate::{
    exit::Failure,
    terminal::{self, Palette, Style},
};
use anyhow::{Context, anyhow};
use rustix::process::Signal;
use std::{
    collections::VecDeque,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::mpsc,
};

/// How many lines of a failed build are shown; earlier ones scroll away anyway.
const SHOWN: usize = 2000;
/// What a stopped build gets before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// How the build is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Display {
    /// Colours of standard error.
    pub(super) palette: Palette,
    /// Whether one line can be rewritten in place.
    pub(super) terminal: bool,
    /// Every line as it comes.
    pub(super) verbose: bool,
}

/// Runs the build step. Ends early, with everything it started, when `interrupted` does.
pub(super) async fn run(
    program: &Program,
    display: Display,
    orphans: &Orphans,
    interrupted: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let title = program.arguments.join(" ");
    let began = Instant::now();
    let heading = display.palette.paint(Style::Bold, "building");
    terminal::err(&format!("{heading} {title}\n"));
    let (first, rest) = program.arguments.split_first().context("the build step is empty")?;
    let mut child = Command::new(first)
        .args(rest)
        .current_dir(&program.workdir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| {
            format!("the build step `{title}` cannot be started in {}", program.workdir.display())
        })?;
    let group = child.id().unwrap_or(0);
    orphans.add(group);
    let (lines, mut said) = mpsc::channel::<String>(256);
    if let Some(out) = child.stdout.take() {
        tokio::task::spawn_local(collect(out, lines.clone()));
    }
    if let Some(err) = child.stderr.take() {
        tokio::task::spawn_local(collect(err, lines));
    }

    let mut output = VecDeque::new();
    let mut interrupted = std::pin::pin!(interrupted);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let status = loop {
        tokio::select! {
            line = said.recv() => match line {
                Some(line) => {
                    if display.verbose {
                        terminal::err(&format!("{}\n", sanitised(&line, display.palette.enabled())));
                    }
                    if output.len() == SHOWN {
                        output.pop_front();
                    }
                    output.push_back(line);
                }
                // Both ends are closed: the program is about to end.
                None => break child.wait().await,
            },
            _ = tick.tick() => {
                if display.terminal && !display.verbose {
                    let last = output.back().map_or("", String::as_str);
                    terminal::err(&progress(began.elapsed(), last, display.palette));
                }
                // Something it left behind may keep the output open.
                if let Ok(Some(status)) = child.try_wait() {
                    break Ok(status);
                }
            }
            () = &mut interrupted => {
                process_group::signal(group, Signal::TERM);
                let _ = tokio::time::timeout(GRACE, child.wait()).await;
                process_group::signal(group, Signal::KILL);
                orphans.remove(group);
                clear(display);
                return Err(Failure::Other(anyhow!("interrupted while building")));
            }
        }
    };
    let rest = async {
        while let Some(line) = said.recv().await {
            output.push_back(line);
            if output.len() > SHOWN {
                output.pop_front();
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(300), rest).await;
    orphans.remove(group);
    clear(display);
    let status = status.context("the build step cannot be waited for")?;
    let took = format!("{:.1} s", began.elapsed().as_secs_f64());
    if status.success() {
        terminal::err(&format!("{} in {took}\n", display.palette.paint(Style::Good, "built")));
        return Ok(());
    }
    if !display.verbose {
        for line in &output {
            terminal::err(&format!("{}\n", sanitised(line, display.palette.enabled())));
        }
    }
    Err(Failure::Other(anyhow!("the build step `{title}` failed after {took} ({})", describe(status))))
}

fn clear(display: Display) {
    if display.terminal && !display.verbose {
        terminal::err("\r\x1b[K");
    }
}

/// One line that is rewritten in place.
fn progress(elapsed: Duration, last: &str, palette: Palette) -> String {
    let seconds = elapsed.as_secs();
    let last: String = sanitised(last.trim(), false).chars().take(60).collect();
    let time = palette.paint(Style::Dim, &format!("{}:{:02}", seconds / 60, seconds % 60));
    format!("\r\x1b[K  {time} {last}")
}

async fn collect(mut pipe: impl AsyncRead + Unpin, lines: mpsc::Sender<String>) {
    let mut cutter = LineCutter::default();
    let mut buffer = vec![0u8; 16 * 1024];
    let mut whole = Vec::new();
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => cutter.push(&buffer[..length], |line| whole.push(line)),
        }
        for line in whole.drain(..) {
            if lines.send(line).await.is_err() {
                return;
            }
        }
    }
    if let Some(line) = cutter.finish() {
        let _ = lines.send(line).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_one_short_line() {
        let text =
            progress(Duration::from_secs(75), &format!("Compiling {}", "x".repeat(500)), Palette::plain());
        assert!(text.starts_with("\r\u{1b}[K  1:15 Compiling xx"), "{text:?}");
        assert!(text.chars().count() < 80 && !text.contains('\n'));
    }
}
