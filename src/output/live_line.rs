//! The line on the terminal that is redrawn during a wait.
//! It must not know its text, nor when that changes.

use std::env;
use std::io::{self, IsTerminal as _};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use rustix::stdio::stderr;
use rustix::termios::{tcgetpgrp, tcgetwinsize};

use crate::output::log::{self, ERASE};
use crate::sys::groups::group_of;

/// Width of a terminal that reports none.
const DEFAULT_WIDTH: u16 = 80;

/// The kind of stderr, as far as a redrawn line depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stderr {
    /// A terminal that can erase a line, with this process in its foreground.
    Screen,
    /// A terminal that cannot erase a line, or is called so (`TERM=dumb`).
    Paper,
    /// No terminal, or one with this process in its background, where its user types something else.
    Elsewhere,
}

/// The current kind of stderr: a shell moves a job to the background and back.
pub(crate) fn behind_stderr() -> Stderr {
    if !io::stderr().is_terminal() {
        return Stderr::Elsewhere;
    }
    match tcgetpgrp(stderr()) {
        Ok(foreground) if group_of(None).is_ok_and(|own| own != foreground.as_raw_pid()) => {
            Stderr::Elsewhere
        }
        // A terminal that does not control our session has no jobs.
        _ if is_dumb(env::var("TERM").ok().as_deref()) => Stderr::Paper,
        _ => Stderr::Screen,
    }
}

fn is_dumb(term: Option<&str>) -> bool {
    matches!(term, None | Some("" | "dumb" | "unknown"))
}

const PREFIX: &str = "dlock: ";

/// Columns at the right that stay free. On some terminals a cursor behind the last column moves to the next line, and a
/// window that gets a little narrower would wrap the line.
const SPARE_COLUMNS: u16 = 2;

/// The columns that the text of a line may have.
pub(crate) fn columns() -> usize {
    usize::from(width()).saturating_sub(PREFIX.len())
}

fn width() -> u16 {
    let columns = tcgetwinsize(stderr()).map_or(0, |size| size.ws_col);
    let known = if columns > SPARE_COLUMNS {
        columns
    } else {
        DEFAULT_WIDTH
    };
    known - SPARE_COLUMNS
}

/// The line; dropping it erases it.
pub(crate) struct LiveLine(ProgressBar);

impl LiveLine {
    pub(crate) fn new() -> Self {
        // Drawn on call only: no steady tick, which would be a thread, and no limit on the rate.
        let target = ProgressDrawTarget::term_like(Box::new(Line::default()));
        let style = ProgressStyle::with_template(&format!("{PREFIX}{{wide_msg}}"));
        // Only an invalid template would be refused.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style);
        Self(bar)
    }

    /// Replaces the line with `text`, cut to the width of the terminal. Never blocks.
    pub(crate) fn show(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The terminal that indicatif draws on. Its own one writes until all is written, and so blocks on a stopped terminal
/// (Ctrl-S); here a drawing is one write that does not block, and is dropped if it is not possible at once.
#[derive(Debug, Default)]
struct Line(Mutex<String>);

impl Line {
    fn add(&self, text: &str) {
        if let Ok(mut drawing) = self.0.lock() {
            drawing.push_str(text);
        }
    }
}

impl TermLike for Line {
    fn width(&self) -> u16 {
        width()
    }

    // There is one line, so the cursor never leaves it.
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        // Trailing blanks would become lines of their own when the window gets narrower.
        self.add(text.trim_end());
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add(ERASE);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let drawing = self
            .0
            .lock()
            .map(|mut drawing| std::mem::take(&mut *drawing));
        if let Ok(drawing) = drawing
            && !drawing.is_empty()
            && behind_stderr() == Stderr::Screen
        {
            log::draw(&drawing);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_of_a_known_type_can_erase() {
        assert!(is_dumb(None) && is_dumb(Some("")) && is_dumb(Some("dumb")));
        assert!(!is_dumb(Some("xterm")) && !is_dumb(Some("linux")));
    }
}
