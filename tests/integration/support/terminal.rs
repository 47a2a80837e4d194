//! A terminal with an interactive shell in it, typed into by the test.
//! It must not know dlock.

use std::process::Stdio;

use super::{Dlock, LIMIT, Running, eventually};

const PROMPT: &str = "your-turn: ";

/// bash with job control on a pseudo-terminal that script(1) provides.
pub(crate) struct Terminal(Running);

impl Terminal {
    /// A shell that runs programs in the environment of `dlock`, whose own command line is not started.
    pub(crate) fn open(endpoint: &str) -> Self {
        let shell = "bash --norc --noprofile -i";
        let running = Dlock::program(["script", "-qfec", shell, "/dev/null"])
            .env("DLOCK_ENDPOINTS", endpoint)
            .env("SHELL", "/bin/sh")
            .env("TERM", "dumb")
            .env("PS1", PROMPT)
            .stdin(Stdio::piped())
            .start();
        let mut terminal = Self(running);
        // The shell is ready once it answers; the sum keeps the echo of our own typing from looking like the answer.
        terminal.line("stty -echo; bind 'set enable-bracketed-paste off'; echo ready-$((40+2))");
        terminal.shows("ready-42");
        terminal.prompts();
        terminal
    }

    /// Types one line.
    pub(crate) fn line(&mut self, line: &str) {
        self.0.type_in(&format!("{line}\n"));
    }

    /// Presses one key with Ctrl, such as `C`.
    pub(crate) fn ctrl(&mut self, key: char) {
        let code = char::from_u32(u32::from(key) & 0x1f).expect("a control character");
        self.0.type_in(&code.to_string());
    }

    /// Waits until the screen has shown `text`.
    #[track_caller]
    pub(crate) fn shows(&mut self, text: &str) {
        self.0.says(text);
    }

    /// Waits until the shell asks for the next line; what is typed before it sets up the terminal may get lost.
    #[track_caller]
    pub(crate) fn prompts(&mut self) {
        eventually(LIMIT, "the shell asks for a line", || {
            self.0.stdout().ends_with(PROMPT)
        });
    }

    /// A file that a command wrote into its `$HOME`.
    pub(crate) fn written(&self, name: &str) -> String {
        self.0.written(name)
    }
}
