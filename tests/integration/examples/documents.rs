//! Extracts the examples from the README and the manual pages, as a reader would copy them.
//! It must not know what is done with them.

use std::fs;
use std::path::Path;

/// One example.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The file's name.
    pub(super) document: String,
    /// Line number, from 1.
    pub(super) line: usize,
    pub(super) text: String,
}

/// All of them: fenced blocks of the README, blocks without filling and one-liners under EXAMPLES of the pages.
pub(super) fn blocks() -> Vec<Block> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| fs::read_to_string(path).expect("a text");
    let mut found = fenced(&read(&root.join("README.md")));
    let mut pages: Vec<_> = fs::read_dir(root.join("man"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    pages.sort();
    for page in pages {
        let name = page.file_name().and_then(|name| name.to_str());
        found.extend(manual(name.expect("a plain name"), &read(&page)));
    }
    found
}

fn fenced(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with("```") {
            inside = !inside;
            if inside {
                found.push(block("README.md", number));
            }
        } else if inside {
            push(&mut found, line);
        }
    }
    found
}

fn manual(document: &str, text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let (mut section, mut inside, mut tagged) = ("", false, 0);
    for (number, line) in (1..).zip(text.lines()) {
        tagged += 1;
        match line {
            ".nf" => {
                inside = true;
                found.push(block(document, number));
            }
            ".fi" => inside = false,
            ".TP" => tagged = 0,
            line if inside => push(&mut found, &plain(line)),
            line => {
                if let Some(name) = line.strip_prefix(".SH ") {
                    section = name;
                }
                // .TP, a description, and one line in bold.
                if let Some(line) = line.strip_prefix(".B ").filter(|_| tagged == 2)
                    && section.contains("EXAMPLES")
                {
                    found.push(block(document, number));
                    let line = line
                        .strip_prefix('"')
                        .and_then(|line| line.strip_suffix('"'))
                        .unwrap_or(line);
                    push(&mut found, &plain(line));
                }
            }
        }
    }
    assert!(!inside, "{document} has a .nf without .fi");
    found
}

fn block(document: &str, line: usize) -> Block {
    let (document, text) = (document.to_owned(), String::new());
    Block {
        document,
        line,
        text,
    }
}

fn push(found: &mut [Block], line: &str) {
    let block = found.last_mut().expect("a block has begun");
    block.text.push_str(line);
    block.text.push('\n');
}

/// The text that a line of roff shows.
fn plain(line: &str) -> String {
    [
        ("\\fI", ""),
        ("\\fB", ""),
        ("\\fR", ""),
        ("\\-", "-"),
        ("\\(aq", "'"),
        ("\\(dq", "\""),
        ("\\&", ""),
        ("\\e", "\\"),
    ]
    .iter()
    .fold(line.to_owned(), |line, (from, to)| line.replace(from, to))
}
