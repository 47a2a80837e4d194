//! A terminal with an interactive shell in it, typed into by the test.
//! It must not know dlock.

use std::process::Stdio;

use super::{Dlock, LIMIT, Process, Running, eventually};

const PROMPT: &str = "your-turn: ";

/// bash with job control on a pseudo-terminal that script(1) provides.
pub(crate) struct Terminal(Running);

impl Terminal {
    /// A shell that runs programs in the environment of `dlock`, whose own command line is not started.
    pub(crate) fn open(endpoint: &str) -> Self {
        Self::of_kind(endpoint, "dumb")
    }

    /// The same on a terminal of the kind that `TERM` names.
    pub(crate) fn of_kind(endpoint: &str, kind: &str) -> Self {
        let shell = "bash --norc --noprofile -i";
        let running = Dlock::program(["script", "-qfec", shell, "/dev/null"])
            .env("DLOCK_ENDPOINTS", endpoint)
            .env("SHELL", "/bin/sh")
            .env("TERM", kind)
            .env("PS1", PROMPT)
            .stdin(Stdio::piped())
            .start();
        let mut terminal = Self(running);
        // The shell is ready once it answers; the sum distinguishes the answer from the echo of the input.
        terminal.line("stty -echo; bind 'set enable-bracketed-paste off'; echo ready-$((40+2))");
        terminal.await_text("ready-42");
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
    pub(crate) fn await_text(&mut self, text: &str) {
        self.0.says(text);
    }

    /// Waits until the shell prompts; input before it sets up the terminal may get lost.
    #[track_caller]
    pub(crate) fn prompts(&mut self) {
        eventually(LIMIT, "the shell asks for a line", || {
            self.0.stdout().ends_with(PROMPT)
        });
    }

    /// The process of this name that runs in the terminal.
    #[track_caller]
    pub(crate) fn process(&self, name: &str) -> Process {
        let all = self.0.everything();
        let found = all.into_iter().find(|process| process.name() == name);
        found.expect("it runs")
    }

    /// All output to the terminal.
    pub(crate) fn everything(&self) -> String {
        self.0.stdout()
    }

    /// The lines that a user has seen, after returns and erasures.
    pub(crate) fn screen(&self) -> Vec<String> {
        screen(&self.everything())
    }

    /// A file that a command wrote into its `$HOME`.
    pub(crate) fn written(&self, name: &str) -> String {
        self.0.written(name)
    }
}

/// The screen after `text`: a return moves to the beginning of the line, and `ESC [ K` erases from there on.
fn screen(text: &str) -> Vec<String> {
    let mut lines = vec![Vec::new()];
    let mut column = 0;
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        let line = lines.last_mut().expect("there is a line");
        match character {
            '\r' => column = 0,
            '\n' => lines.push(Vec::new()),
            '\u{1b}' => {
                // Other sequences are the shell's own, and move nothing.
                let end = rest
                    .find(|c: char| c.is_ascii_alphabetic())
                    .expect("an end");
                if &rest[..=end] == "[K" {
                    line.truncate(column);
                }
                rest = &rest[end + 1..];
            }
            character => {
                line.resize(line.len().max(column + 1), ' ');
                line[column] = character;
                column += 1;
            }
        }
    }
    lines.into_iter().map(String::from_iter).collect()
}

#[test]
fn a_screen_forgets_what_was_erased() {
    assert_eq!(
        screen("ab\r\ncd\rx\r\n1234\r\u{1b}[K5\u{1b}[?2004h6"),
        ["ab", "xd", "56"]
    );
}
