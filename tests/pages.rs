//! The manual pages are sound: in their form, and in their references.
//! It reads them as text, calls mandoc(1), and knows the command line's definitions only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dlock::cli;

fn pages() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let pages: Vec<_> = paths.filter(|path| path.is_file()).collect();
    assert!(pages.len() > 10);
    pages
}

fn name(page: &Path) -> &str {
    page.file_name().unwrap().to_str().unwrap()
}

/// The sentences without a noun as their subject: they begin with Who, Whoever or What, and are no questions.
fn headless(text: &str) -> Vec<String> {
    let ends = |c: char| matches!(c, '.' | '!' | '?' | ':' | ';');
    text.split_inclusive(ends)
        .filter(|sentence| {
            let words = |c: char| !c.is_alphanumeric();
            let first = sentence.split(words).find(|word| !word.is_empty());
            matches!(first, Some("Who" | "Whoever" | "What")) && !sentence.ends_with('?')
        })
        .map(|sentence| sentence.trim().to_owned())
        .collect()
}

#[test]
fn a_sentence_without_a_subject_is_found() {
    let text = "It waits. Who comes later waits: what else? \"What is here\" is\na title. Whoever. Who waits?";
    let found = [
        "Who comes later waits:",
        "\"What is here\" is\na title.",
        "Whoever.",
    ];
    assert_eq!(headless(text), found);
}

#[test]
fn every_sentence_of_the_help_has_a_subject() {
    fn collect(command: &clap::Command, found: &mut Vec<String>) {
        let about = [command.get_about(), command.get_after_help()];
        let texts = command
            .get_arguments()
            .flat_map(|arg| [arg.get_help(), arg.get_long_help()]);
        found.extend(
            about
                .into_iter()
                .chain(texts)
                .flatten()
                .map(ToString::to_string),
        );
        command
            .get_subcommands()
            .for_each(|sub| collect(sub, found));
    }
    let mut texts = Vec::new();
    collect(&cli::command(), &mut texts);
    assert!(texts.len() > 200, "{}", texts.len());
    for text in texts {
        assert_eq!(headless(&text), [""; 0]);
    }
}

/// The texts in Markdown that people read.
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benches/README.md",
];

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_sentence_of_the_documents_has_a_subject() {
    for path in DOCUMENTS {
        // An item and a cell begin a sentence, and end the one before without a point.
        let text = document(path).replace("\n- ", "\n\n").replace('|', "\n\n");
        for paragraph in text.split("\n\n") {
            assert_eq!(headless(paragraph), [""; 0], "{path}");
        }
    }
}

#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let mut count = 0;
    for path in DOCUMENTS {
        for rest in document(path).split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap();
            if target.starts_with("https:") || target.is_empty() {
                continue;
            }
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let file = directory.parent().unwrap().join(target);
            assert!(file.is_file(), "{path} links to {target}");
            count += 1;
        }
    }
    assert!(count > 10, "only {count} links are found");
}

#[test]
fn the_readme_has_at_most_200_lines() {
    assert!(document("README.md").lines().count() <= 200);
}

/// A merge by union keeps both versions of a line that two branches changed.
#[test]
fn the_changelog_has_no_line_twice() {
    let text = document("CHANGELOG.md");
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| line.len() > 40) {
        assert!(seen.insert(line), "{line}");
    }
}

/// A page of a forge shows them without scripts and without anything from elsewhere.
#[test]
fn the_pictures_need_nothing_else() {
    for path in ["pictures/run.svg", "pictures/loss.svg"] {
        let text = document(path);
        for forbidden in ["<script", "href", "url(", "@import", "<foreignObject"] {
            assert!(!text.contains(forbidden), "{path} has {forbidden}");
        }
        assert!(text.contains("<title>"), "{path} has no description");
    }
}

#[test]
fn every_path_in_the_map_exists() {
    let text = document("CONTRIBUTING.md");
    let map = text
        .split("\n## ")
        .find(|part| part.starts_with("Map"))
        .unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells: Vec<&str> = rows.map(|row| row.split(" |").next().unwrap()).collect();
    assert!(cells.len() > 10, "{cells:?}");
    for path in cells.iter().flat_map(|cell| cell.split("`, `")) {
        let path = path.trim_end_matches('`');
        let exists = Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
        assert!(exists, "CONTRIBUTING.md names {path}");
    }
}

#[test]
fn mandoc_finds_no_fault() {
    for page in pages() {
        let linted = Command::new("mandoc")
            .args(["-T", "lint", "-W", "style"])
            .arg(&page)
            .output();
        let linted = linted.expect("mandoc is installed: apt-get install mandoc");
        let said = String::from_utf8(linted.stdout).unwrap();
        // The sources may have long lines.
        let bad = said
            .lines()
            .filter(|line| !line.contains("longer than 80 bytes"));
        let bad: Vec<&str> = bad.collect();
        assert!(bad.is_empty(), "{}", bad.join("\n"));
    }
}

/// The page as a terminal with so many columns shows it.
fn rendered(page: &Path, columns: u32) -> String {
    let shown = Command::new("mandoc")
        .args(["-T", "utf8", "-O", &format!("width={columns}")])
        .arg(page)
        .output();
    let text = String::from_utf8(shown.expect("mandoc is installed").stdout).unwrap();
    // Bold and italic characters are printed twice.
    let mut kept = String::new();
    for c in text.chars() {
        if c == '\u{8}' {
            kept.pop();
        } else {
            kept.push(c);
        }
    }
    kept
}

/// Examples and tables too: no line is broken where it has no end.
#[test]
fn every_page_fits_80_columns() {
    for page in pages() {
        let text = rendered(&page, 80);
        // The first and the last line are as wide as the page.
        let wide: Vec<&str> = text
            .lines()
            .filter(|line| line.chars().count() > 80)
            .collect();
        assert!(wide.is_empty(), "{}:\n{}", name(&page), wide.join("\n"));
    }
}

#[test]
fn no_page_has_backticks() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let line = text.lines().find(|line| line.contains('`'));
        assert_eq!(line, None, "{}", name(&page));
    }
}

#[test]
fn every_sentence_of_the_pages_has_a_subject() {
    for page in pages() {
        // Tags of lists, and columns of tables, are apart by blanks.
        for paragraph in rendered(&page, 80).split("\n\n") {
            let lines = paragraph.lines().map(str::trim_start);
            let pieces: Vec<&str> = lines.flat_map(|line| line.split("   ")).collect();
            let text = pieces.join("\n");
            assert_eq!(headless(&text), [""; 0], "{}", name(&page));
            for piece in pieces {
                let first = piece.trim_start().split(' ').next().unwrap_or_default();
                assert!(
                    !matches!(first, "Who" | "Whoever" | "What"),
                    "{}: {piece}",
                    name(&page)
                );
            }
        }
    }
}

/// The headings of a page, in order.
fn sections(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = text.lines().filter_map(|line| line.strip_prefix(".SH "));
    headings
        .map(|heading| heading.trim_matches('"').to_owned())
        .collect()
}

/// The pages that a page has under SEE ALSO, as `(SECTION, NAME)`.
fn see_also(page: &Path) -> Vec<(String, String)> {
    let text = plain(page);
    let (_, list) = text.split_once(".SH SEE ALSO\n").unwrap();
    list.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix(".BR ")?.split_once(" (")?;
            let (section, _) = rest.split_once(')')?;
            Some((section.to_owned(), name.to_owned()))
        })
        .collect()
}

#[test]
fn every_page_has_examples_and_ends_with_references() {
    for page in pages() {
        let sections = sections(&page);
        assert!(
            sections.iter().any(|section| section == "EXAMPLES"),
            "{}",
            name(&page)
        );
        assert_eq!(sections.last().unwrap(), "SEE ALSO", "{}", name(&page));
        let references = see_also(&page);
        assert!(
            references.is_sorted(),
            "SEE ALSO in {} is not in the order of sections and names, as man-pages(7) wants it: {references:?}",
            name(&page)
        );
    }
}

#[test]
fn every_page_is_named_under_see_also_of_another() {
    let all = pages();
    for page in &all {
        let (title, section) = name(page).rsplit_once('.').unwrap();
        let reference = (section.to_owned(), title.to_owned());
        let others = all.iter().filter(|other| *other != page);
        let named = others.filter(|other| see_also(other).contains(&reference));
        assert!(named.count() > 0, "no page refers to {}", name(page));
    }
}

/// `make html`: the index has every page, and each link leads to a page.
#[test]
fn the_pages_in_html_have_an_index_and_links() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("html");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/html.sh");
    let made = Command::new(script).arg(&directory).output().unwrap();
    assert!(made.status.success() && made.stderr.is_empty(), "{made:?}");
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
    let index = read("index.html");
    for page in pages() {
        let file = format!("{}.html", name(&page));
        assert!(index.contains(&format!("href=\"{file}\"")), "no {file}");
        let text = read(&file);
        let links: Vec<&str> = text
            .split("href=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .filter(|link| !link.starts_with('#'))
            .collect();
        for link in &links {
            assert!(
                directory.join(link).is_file(),
                "{file} has a link to {link}"
            );
        }
        // The index and the style are linked everywhere.
        assert!(links.len() >= 2 + see_also(&page).len().min(1), "{file}");
    }
}

/// Words in lower case, without backticks.
fn words_of(text: &str) -> String {
    let text = text.to_lowercase().replace('`', "");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sources below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// A comment above a test quotes the sentence that it tests, as `"SENTENCE" (PAGE(SECTION))`.
#[test]
fn every_quoted_sentence_is_in_its_page() {
    let shown: Vec<(String, String)> = pages()
        .iter()
        .map(|page| {
            let (title, section) = name(page).rsplit_once('.').unwrap();
            // As wide as mandoc can: few lines break at a hyphen.
            (
                format!("{title}({section})"),
                words_of(&rendered(page, 1000)),
            )
        })
        .collect();
    let mut files = Vec::new();
    for directory in ["src", "tests"] {
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(directory),
            &mut files,
        );
    }
    let (mut count, mut missing) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let comments: Vec<&str> = text
            .lines()
            .map(|line| line.trim_start().strip_prefix("//").unwrap_or("\n"))
            .map(|line| line.trim_start_matches(['/', '!']))
            .collect();
        let comments = comments.concat();
        for (page, wanted) in &shown {
            let mark = format!("\" ({page})");
            for (end, _) in comments.match_indices(&mark) {
                let before = &comments[..end];
                let quote = &before[before.rfind('"').unwrap() + 1..];
                count += 1;
                for part in quote.split("...") {
                    let part = words_of(part);
                    let part = part.trim_matches([' ', '.', ',', ';', ':']);
                    if !wanted.contains(part) {
                        missing.push(format!("{}: {page} has no {part:?}", file.display()));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(count > 100, "{count}");
}

/// The text without roff's macros.
fn plain(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap();
    let marks = ["\\fB", "\\fI", "\\fR", "\\fP"];
    let text = marks.iter().fold(text, |text, mark| text.replace(mark, ""));
    text.replace("\\-", "-")
        .replace("\\(dq", "\"")
        .replace("\\(aq", "'")
}

#[test]
fn every_referenced_page_exists() {
    let all = pages();
    let names: BTreeSet<&str> = all.iter().map(|page| name(page)).collect();
    for page in &all {
        let text = plain(page);
        for (start, _) in text.match_indices("dlock") {
            let rest = &text[start..];
            let word = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.');
            let end = rest.find(word).unwrap_or(rest.len());
            // `.BR dlock-run (1)` and `dlock-run (1)`
            let section = rest[end..].trim_start_matches([' ', '"']).strip_prefix('(');
            let Some(section) = section
                .and_then(|rest| rest.split_once(')'))
                .map(|(it, _)| it)
            else {
                continue;
            };
            if section.len() == 1 && section.bytes().all(|byte| byte.is_ascii_digit()) {
                let target = format!("{}.{section}", &rest[..end]);
                assert!(
                    names.contains(&*target),
                    "{} refers to {target}",
                    name(page)
                );
            }
        }
    }
}

#[test]
fn every_page_can_be_reached_from_the_first() {
    let all = pages();
    let first = all.iter().find(|page| name(page) == "dlock.1").unwrap();
    let text = plain(first);
    for page in &all {
        let (title, section) = name(page).rsplit_once('.').unwrap();
        let reference = text.contains(&format!("{title} ({section})"))
            || text.contains(&format!("{title}({section})"))
            || text.contains(&format!("{title} \"({section})"))
            || text.contains(&format!("{title} \" ({section})"));
        assert!(
            name(page) == "dlock.1" || reference,
            "dlock.1 does not know {}",
            name(page)
        );
    }
}

/// All options of dlock, with their dashes.
fn options() -> BTreeSet<String> {
    fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
        for argument in command.get_arguments() {
            found.extend(argument.get_long().map(|long| format!("--{long}")));
            found.extend(argument.get_short().map(|short| format!("-{short}")));
        }
        command
            .get_subcommands()
            .for_each(|sub| collect(sub, found));
    }
    // clap adds these two by itself.
    let mut found = BTreeSet::from(["--help", "-h", "--version", "-V"].map(str::to_owned));
    collect(&cli::command(), &mut found);
    found
}

/// The words of a text that are options.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    text.split(word).filter(|word| {
        let name = word.trim_start_matches('-');
        let dashes = word.len() - name.len();
        (dashes == 1 && name.len() == 1) || (dashes == 2 && !name.is_empty())
    })
}

/// "The tables list the options of each tool, the matching options of dlock" (dlock-migration(7)): the second column of
/// every table has options of dlock.
#[test]
fn the_migration_names_existing_options() {
    let page = pages()
        .into_iter()
        .find(|page| name(page) == "dlock-migration.7")
        .unwrap();
    let text = plain(&page);
    let options = options();
    let mut rows = 0;
    for table in text.split(".TS\n").skip(1) {
        let table = table.split(".TE").next().unwrap();
        for row in table.split("\nT{\n").skip(1) {
            // dlock's options are between the first bar and the second.
            let Some(ours) = row.split("T}|T{\n").nth(1) else {
                continue;
            };
            let ours = ours.split("\nT}").next().unwrap();
            for option in named(ours) {
                assert!(options.contains(option), "no {option} in dlock: {ours}");
            }
            for words in ours.split("dlock ").skip(1) {
                let sub = words.split([' ', ',', '\n']).next().unwrap();
                let known = cli::command().find_subcommand(sub).is_some();
                assert!(known, "no dlock {sub}: {ours}");
            }
            rows += 1;
        }
    }
    assert!(rows > 40, "only {rows} rows are read");
}

/// Options of other programs that the pages mention.
const FOREIGN: &[&str] = &[
    "--from",
    "--interactive",
    "--auto-tls",
    "--auto-compaction-retention",
    "--initial-cluster",
    "--initial-advertise-peer-urls",
    "--data-dir",
    "--bump-revision",
    "--mark-compacted",
    "--nonblock",
    "--exclusive",
    "--close",
    "--no-block",
    "--no-fork",
    "--password",
    "--dial-timeout",
    "--command-timeout",
    "--locked",
    "--path",
    "--fence",
    "--test",
    "--package",
    "--strip-components",
    "--offline",
    "--eval",
];

/// A typing error in the middle of a sentence, where no example is run.
#[test]
fn every_named_option_exists() {
    let known = options();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    for page in pages().into_iter().chain([readme]) {
        let text = plain(&page);
        for option in named(&text).filter(|option| option.starts_with("--")) {
            assert!(
                known.contains(option) || FOREIGN.contains(&option),
                "{} names {option}, which is no option of dlock, nor one of others in FOREIGN",
                name(&page)
            );
        }
    }
}

/// "The keys are the long options" (dlock.toml(5)): each of them has a line.
#[test]
fn the_page_of_the_file_has_every_key() {
    let page = pages()
        .into_iter()
        .find(|page| name(page) == "dlock.toml.5")
        .unwrap();
    let text = plain(&page);
    for (long, ..) in cli::settings() {
        assert!(
            long == "config" || text.contains(&format!(".BR {long} ")),
            "no {long}"
        );
    }
}
