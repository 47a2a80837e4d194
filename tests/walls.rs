//! The rooms of the house keep to themselves: who may name what, and how long a file may be.
//! It reads the sources as text and knows nothing of what they do.

use std::fs;
use std::path::{Path, PathBuf};

/// In lines, without the tests; about 400 are the aim.
const LONGEST: usize = 600;

/// Names that only some rooms may use: the names, who may, and why nobody else.
const WALLS: &[(&[&str], &[&str], &str)] = &[
    (
        &[
            "etcd_client",
            "tonic",
            "tokio_rustls",
            "rustls_native_certs",
            "x509_cert",
        ],
        &["etcd/"],
        "only etcd/ talks to etcd",
    ),
    (
        &["indicatif"],
        &["terminal.rs"],
        "only terminal.rs draws, and never blocks",
    ),
    (
        &["prometheus_client"],
        &["metrics.rs"],
        "only metrics.rs knows what Prometheus reads",
    ),
    (
        &["unsafe"],
        &["guard/"],
        "only guard/ has to do with what needs it",
    ),
];

/// Names that a room must not use: the room, the names, and why.
const ROOMS: &[(&str, &[&str], &str)] = &[
    (
        "core/",
        &[
            "tokio",
            "etcd_client",
            "tonic",
            "rustix",
            "libc",
            "signal_hook",
            "tracing",
            "clap",
            "anyhow",
            "SystemTime",
            "time::Instant",
            "std::env",
            "std::fs",
            "std::io",
            "std::net",
            "std::os",
            "std::process",
            "std::thread",
        ],
        "core/ decides, without any clock, input or output",
    ),
    (
        "cli/",
        &["tokio", "etcd_client", "tonic"],
        "cli/ knows words only",
    ),
    (
        "config/",
        &["tokio", "etcd_client", "tonic"],
        "config/ knows words only",
    ),
    (
        "config.rs",
        &["tokio", "etcd_client", "tonic"],
        "config.rs knows words only",
    ),
    (
        "guard/",
        &["tokio", "etcd_client", "tonic", "crate::etcd"],
        "the guard must work when nothing else does",
    ),
    (
        "etcd/",
        &["crate::guard", "crate::exit", "crate::cli"],
        "etcd/ knows no command",
    ),
    (
        "local/",
        &[
            "crate::guard",
            "crate::cli",
            "crate::commands",
            "crate::etcd",
            "std::process",
        ],
        "local/ knows no command, nor the other kind of lock",
    ),
    (
        "contest.rs",
        &["crate::etcd", "crate::local", "tokio", "rustix"],
        "what every kind of lock has in common is none of them",
    ),
];

struct Source {
    /// Below `src`.
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    assert!(!paths.is_empty());
    let source = |path: PathBuf| Source {
        path: path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(source).collect()
}

/// The code with comments and the insides of texts blanked out; lines stay lines.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    let mut last = ' ';
    while let Some(character) = rest.next() {
        match character {
            '/' if rest.peek() == Some(&'/') => {
                while rest.next_if(|next| *next != '\n').is_some() {}
            }
            // A raw text of the form r#"..."#; the sources have none with more hashes.
            '#' if last == 'r' && rest.peek() == Some(&'"') => {
                rest.next();
                let mut before = ' ';
                for next in rest.by_ref() {
                    if before == '"' && next == '#' {
                        break;
                    }
                    code.extend((next == '\n').then_some('\n'));
                    before = next;
                }
            }
            '"' if last == 'r' => {
                for next in rest.by_ref().take_while(|next| *next != '"') {
                    code.extend((next == '\n').then_some('\n'));
                }
            }
            '"' => {
                while let Some(next) = rest.next().filter(|next| *next != '"') {
                    let skipped = if next == '\\' {
                        rest.next()
                    } else {
                        Some(next)
                    };
                    code.extend((skipped == Some('\n')).then_some('\n'));
                }
            }
            // '"' and '\'' would else begin a text.
            '\'' if rest.peek() == Some(&'"') => {
                rest.next();
            }
            '\'' if rest.peek() == Some(&'\\') => {
                rest.next();
                rest.next();
            }
            _ => code.push(character),
        }
        last = character;
    }
    code
}

/// Whether `code` uses `name` as a whole word or path; `use std::{fs, io}` counts as `std::fs` and `std::io`.
fn uses(code: &str, name: &str) -> bool {
    let word = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let whole = code.match_indices(name).any(|(start, _)| {
        !word(code[..start].chars().next_back()) && !word(code[start + name.len()..].chars().next())
    });
    let grouped = name.rsplit_once("::").is_some_and(|(parent, child)| {
        code.split(&format!("{parent}::{{"))
            .skip(1)
            .filter_map(|rest| rest.split(';').next())
            .any(|group| uses(group, child))
    });
    whole || grouped
}

#[test]
fn every_room_keeps_to_itself() {
    let mut broken = Vec::new();
    for Source { path, text } in sources() {
        let code = code(&text);
        for (names, allowed, why) in WALLS {
            let may = allowed.iter().any(|room| path.starts_with(room));
            for name in names.iter().filter(|name| !may && uses(&code, name)) {
                broken.push(format!("src/{path} uses {name}: {why}"));
            }
        }
        for (room, names, why) in ROOMS {
            for name in names
                .iter()
                .filter(|name| path.starts_with(room) && uses(&code, name))
            {
                broken.push(format!("src/{path} uses {name}: {why}"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for Source { path, text } in sources() {
        assert!(text.starts_with("//! "), "src/{path} must open with //!");
    }
}

#[test]
fn no_file_is_long() {
    for Source { path, text } in sources() {
        if path.ends_with("tests.rs") {
            continue;
        }
        let lines = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap()
            .lines()
            .count();
        assert!(
            lines <= LONGEST,
            "src/{path} has {lines} lines: it wants to be two files"
        );
    }
}

#[test]
fn the_walls_see_through_comments_and_texts() {
    let code = code(
        "// tokio\n/// \"unsafe\n let a = \"tonic \\\" tokio\"; let b = r#\"unsafe \" x\"#; let c = '\"'; libc::kill();\n",
    );
    assert!(
        uses(&code, "libc")
            && !uses(&code, "tokio")
            && !uses(&code, "unsafe")
            && !uses(&code, "tonic")
    );
    assert!(uses("use std::{fs, io};", "std::fs"));
    assert!(uses("use std::time::{Duration, Instant};", "time::Instant"));
    assert!(!uses(
        "use std::time::Duration; struct Instant;",
        "time::Instant"
    ));
    assert!(!uses("unsafe_code", "unsafe"));
    assert_eq!(code.lines().count(), 3);
}
