//! The one line on the terminal that changes while something takes its time.
//! It must not know what it says, nor when that changes.

use std::env;
use std::io::{self, IsTerminal as _};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use rustix::stdio::stderr;
use rustix::termios::{tcgetpgrp, tcgetwinsize};

use crate::output::log::{self, ERASE};
use crate::sys::groups::group_of;

/// For a terminal that does not say how wide it is.
const DEFAULT_WIDTH: u16 = 80;

/// What stands behind stderr, of what matters for a line that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stderr {
    /// A terminal that can erase a line, and whose user looks at us.
    Screen,
    /// A terminal of before the screen, or what calls itself one (`TERM=dumb`).
    Paper,
    /// No terminal, or one in whose background we are: its user types something else.
    Elsewhere,
}

/// What stands behind stderr at this moment: a shell moves a job to the background and back.
pub(crate) fn behind_stderr() -> Stderr {
    if !io::stderr().is_terminal() {
        return Stderr::Elsewhere;
    }
    match tcgetpgrp(stderr()) {
        Ok(foreground) if group_of(None).is_ok_and(|own| own != foreground.as_raw_pid()) => {
            Stderr::Elsewhere
        }
        // One that is not our session's own has no jobs.
        _ if is_dumb(env::var("TERM").ok().as_deref()) => Stderr::Paper,
        _ => Stderr::Screen,
    }
}

fn is_dumb(term: Option<&str>) -> bool {
    matches!(term, None | Some("" | "dumb" | "unknown"))
}

/// The line; it is erased when it is dropped.
pub(crate) struct LiveLine(ProgressBar);

impl LiveLine {
    pub(crate) fn new() -> Self {
        // Drawn when we say so: no steady tick, which would be a thread, and no limit on the rate.
        let target = ProgressDrawTarget::term_like(Box::new(Line::default()));
        let style = ProgressStyle::with_template("dlock: {wide_msg}");
        // Only a template that is none would be refused.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style);
        Self(bar)
    }

    /// Draws `text` in the place of what stood there, cut to the width of the terminal. Never blocks.
    pub(crate) fn show(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What indicatif takes for the terminal. Its own one writes until all is written, and so blocks on a terminal that takes
/// nothing (Ctrl-S); here a drawing becomes one write that does not, and is dropped if it cannot be done at once.
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
    /// One less than there are: a cursor behind the last column waits on the next line on some terminals.
    fn width(&self) -> u16 {
        let columns = tcgetwinsize(stderr()).map_or(0, |size| size.ws_col);
        if columns < 2 {
            DEFAULT_WIDTH
        } else {
            columns - 1
        }
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
        // Blanks up to the margin would become lines of their own when the window gets narrower.
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
    fn only_a_terminal_that_says_what_it_is_can_erase() {
        assert!(is_dumb(None) && is_dumb(Some("")) && is_dumb(Some("dumb")));
        assert!(!is_dumb(Some("xterm")) && !is_dumb(Some("linux")));
    }
}
