//! The limits of the rooms and files: which names each may use, what it may import, and how long it may be.
//! It reads the sources as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a file, without its tests.
const MAX_LINES: usize = 600;

/// Names that only some rooms may use: the names, the rooms, and the reason.
const WALLS: &[(&[&str], &[&str], &str)] = &[
    (
        &[
            "etcd_client",
            "tonic",
            "tokio_rustls",
            "rustls_native_certs",
            "x509_cert",
            "p521",
        ],
        &["etcd/"],
        "only etcd/ talks to etcd",
    ),
    (
        &["tracing"],
        &["commands/", "etcd/", "lib.rs", "output/log.rs"],
        "DLOCK_LOG names the rooms that log",
    ),
    (
        &["tracing_subscriber"],
        &["output/log.rs"],
        "only output/log.rs writes the log",
    ),
    (
        &["indicatif"],
        &["output/live_line.rs"],
        "only output/live_line.rs draws, and never blocks",
    ),
    (
        &["prometheus_client"],
        &["output/metrics.rs"],
        "only output/metrics.rs knows what Prometheus reads",
    ),
    (
        &["unsafe"],
        &["guard/", "sys/"],
        "only guard/ and sys/ talk to the kernel past the libraries",
    ),
];

/// Names that a room must not use: the room, the names, and the reason.
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
            "std::time::Instant",
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
        "cli/ reads settings, and sends nothing",
    ),
    (
        "config/",
        &["tokio", "etcd_client", "tonic"],
        "config/ reads settings, and sends nothing",
    ),
    (
        "config.rs",
        &["tokio", "etcd_client", "tonic"],
        "config.rs reads settings, and sends nothing",
    ),
    (
        "guard/",
        &["tokio", "etcd_client", "tonic", "crate::etcd"],
        "the guard must work when nothing else does",
    ),
    (
        "etcd/",
        &["crate::guard", "crate::output::exit", "crate::cli"],
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
        "lock/",
        &["crate::etcd", "crate::local", "tokio", "rustix", "Exit"],
        "lock/ is common to all kinds of locks: it knows none of them, and no exit status",
    ),
    (
        "sys/",
        &[
            "crate::guard",
            "crate::output",
            "crate::lock",
            "crate::etcd",
            "crate::local",
        ],
        "sys/ knows the operating system, and no lock",
    ),
];

/// The floors from the lowest up: a file imports from its own room and from lower floors only.
const FLOORS: &[&[&str]] = &[
    &["core"],
    &["sys"],
    &["guard"],
    &["output"],
    &["host", "lock"],
    &["config"],
    &["etcd", "local"],
    &["cli"],
    &["commands"],
];

struct Source {
    /// Below `src`.
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    sources_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

fn sources_in(root: &Path) -> Vec<Source> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    collect(root, &mut paths);
    assert!(!paths.is_empty());
    let source = |path: PathBuf| Source {
        path: path
            .strip_prefix(root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(source).collect()
}

/// The code without comments and without the contents of strings; lines stay lines.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    let mut last = ' ';
    while let Some(character) = rest.next() {
        match character {
            '/' if rest.peek() == Some(&'/') => {
                while rest.next_if(|next| *next != '\n').is_some() {}
            }
            // A raw string of the form r#"..."#; the sources have none with more hashes.
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
            // '"' and '\'' would else begin a string.
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

/// One file as a module, with the files of the modules that it imports from.
struct Module {
    path: String,
    imports: Vec<String>,
}

/// The modules below `root`, the directory of a crate's sources, each with its imports. A room's `mod.rs` only re-exports, so
/// imports from it do not count, nor do those of a file's own tests. A file imports the child modules that it uses.
fn modules(root: &Path) -> Vec<Module> {
    let sources = sources_in(root);
    let name_of = |path: &str| {
        let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
        path.replace('/', "::")
    };
    let names: BTreeMap<String, String> = sources
        .iter()
        .map(|source| (name_of(&source.path), source.path.clone()))
        .collect();
    let module = |source: &Source| {
        let own = name_of(&source.path);
        let code = code(&source.text);
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut imports: Vec<String> = paths_in(code)
            .into_iter()
            .chain(children_in(code))
            .filter_map(|path| absolute(&path, &own))
            .filter_map(|path| nearest(&path, &names))
            .filter(|path| *path != source.path && !path.ends_with("mod.rs"))
            .collect();
        imports.sort();
        imports.dedup();
        Module {
            path: source.path.clone(),
            imports,
        }
    };
    sources.iter().map(module).collect()
}

/// The paths of the child modules that `code` declares and uses by their bare names.
fn children_in(code: &str) -> Vec<String> {
    let child = |line: &str| {
        let name = line.rsplit_once("mod ")?.1.strip_suffix(';')?;
        let bare =
            |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
        let start = format!("{name}::");
        let mut uses = code.match_indices(&start);
        uses.any(|(at, _)| bare(at))
            .then(|| format!("self::{name}"))
    };
    code.lines().filter_map(child).collect()
}

/// Every path in `code` that begins with `crate`, `super` or `self`; groups in braces are expanded.
fn paths_in(code: &str) -> Vec<String> {
    fn expand(prefix: &str, rest: &str, found: &mut Vec<String>) -> usize {
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .unwrap_or(rest.len());
        let path = format!("{prefix}{}", &rest[..end]);
        if !(path.ends_with("::") && rest[end..].starts_with('{')) {
            found.push(path.trim_end_matches(':').to_owned());
            return end;
        }
        let mut at = end + 1;
        while at < rest.len() {
            let next = rest[at..].chars().next().unwrap();
            match next {
                '}' => return at + 1,
                _ if next.is_alphabetic() || next == '_' => {
                    at += expand(&path, &rest[at..], found);
                }
                _ => at += next.len_utf8(),
            }
        }
        at
    }
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == ':')) {
                expand("", &code[at..], &mut found);
            }
        }
    }
    found
}

/// The full path of `path` in the module `own`, from the crate's root on.
fn absolute(path: &str, own: &str) -> Option<String> {
    let mut base: Vec<&str> = own.split("::").collect();
    let mut steps = path.split("::").peekable();
    match steps.next()? {
        "crate" => base.clear(),
        "super" => {
            base.pop();
            while steps.next_if_eq(&"super").is_some() {
                base.pop();
            }
        }
        _ => {}
    }
    base.extend(steps);
    Some(base.join("::"))
}

/// The file of the module in which `path` ends.
fn nearest(path: &str, names: &BTreeMap<String, String>) -> Option<String> {
    let mut path = path;
    loop {
        if let Some(file) = names.get(path) {
            return Some(file.clone());
        }
        path = path.rsplit_once("::")?.0;
    }
}

#[test]
fn every_room_uses_only_the_names_that_it_may_use() {
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
fn every_file_begins_with_its_purpose() {
    for Source { path, text } in sources() {
        assert!(text.starts_with("//! "), "src/{path} must open with //!");
    }
}

#[test]
fn no_file_is_too_long() {
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
            lines <= MAX_LINES,
            "src/{path} has {lines} lines, more than {MAX_LINES}: split it"
        );
    }
}

#[test]
fn no_import_runs_upwards() {
    let room = |path: &str| path.split(['/', '.']).next().unwrap().to_owned();
    let floor = |path: &str| {
        FLOORS
            .iter()
            .position(|rooms| rooms.contains(&&*room(path)))
    };
    let mut broken = Vec::new();
    for module in modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        // `lib.rs` and `main.rs` are above all floors.
        let Some(own) = floor(&module.path) else {
            continue;
        };
        // The guard's tests show what dlock does when it panics.
        if module.path.contains("/tests") {
            continue;
        }
        for import in &module.imports {
            let Some(other) = floor(import) else {
                broken.push(format!("src/{} imports src/{import}", module.path));
                continue;
            };
            let beside = other == own && room(import) != room(&module.path);
            if other > own || beside {
                broken.push(format!("src/{} imports src/{import}", module.path));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for root in ["src", "benches/faults", "benches/speed"] {
        let modules = modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root));
        let mut left: BTreeMap<&str, BTreeSet<&str>> = modules
            .iter()
            .map(|module| {
                let imports = module.imports.iter().map(String::as_str).collect();
                (module.path.as_str(), imports)
            })
            .collect();
        // A file that imports none of the files left is on no circle, nor is one that none of them imports.
        loop {
            let imported: BTreeSet<&str> = left.values().flatten().copied().collect();
            let files: BTreeSet<&str> = left.keys().copied().collect();
            left.retain(|path, imports| {
                imports.retain(|import| files.contains(import));
                !imports.is_empty() && imported.contains(path)
            });
            if left.len() == files.len() {
                break;
            }
        }
        assert!(left.is_empty(), "circles in {root}: {left:#?}");
    }
}

#[test]
fn imports_are_found_in_every_notation() {
    let code = "use crate::core::{lease::{self, Terms}, name::LockName};\nfn f() { super::super::clock::now(); }\n";
    let mut paths = paths_in(code);
    paths.sort();
    assert_eq!(
        paths,
        [
            "crate::core::lease::Terms",
            "crate::core::lease::self",
            "crate::core::name::LockName",
            "super::super::clock::now",
        ]
    );
    assert_eq!(
        children_in("mod used;\npub(crate) mod unused;\nfn f() { used::g(); a::unused::g(); }\n"),
        ["self::used"]
    );
    assert_eq!(
        absolute("super::super::clock::now", "a::b::c").unwrap(),
        "a::clock::now"
    );
}

#[test]
fn comments_and_strings_do_not_count_as_uses() {
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
    assert!(uses(
        "use std::time::{Duration, Instant};",
        "std::time::Instant"
    ));
    assert!(!uses(
        "use std::time::Duration; struct Instant;",
        "std::time::Instant"
    ));
    assert!(!uses("unsafe_code", "unsafe"));
    assert_eq!(code.lines().count(), 3);
}
