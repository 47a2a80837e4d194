//! The standard output of the sub-commands that print an answer.
//! It must not know the answer.

use std::io::{self, Write as _};

/// Prints `text`. Returns whether it is read: a reader that closed the pipe has read enough, which is no error.
pub(crate) fn print(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}
