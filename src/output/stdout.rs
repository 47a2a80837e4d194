//! The standard output of the sub-commands that print an answer.
//! It must not know the answer.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::stdio::stdout;
use rustix::termios::tcgetwinsize;

/// Whether text may be coloured: on a terminal that can, unless the user does not want it (no-color.org).
pub(crate) fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !dumb && !is_set("NO_COLOR")
}

/// The columns of the terminal; `None` if there is none, or if it does not say.
pub(crate) fn columns() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let columns = tcgetwinsize(stdout()).ok()?.ws_col;
    (columns > 0).then(|| columns.into())
}

/// Prints `text`. Returns whether it is read: a reader that closed the pipe has read enough, which is no error.
pub(crate) fn print(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}
