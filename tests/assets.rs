//! The man pages and the README's exit table agree with the definitions.
//! `SNAPSHOTS=overwrite cargo test --test assets` writes them anew.

#[path = "assets/markdown.rs"]
mod markdown;
#[path = "assets/schemas.rs"]
mod schemas;
#[path = "assets/timeline.rs"]
mod timeline;

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap_mangen::Man;
use dlock::cli;
use dlock::core::doctor::version;
use dlock::core::run_stats::Outcome;
use dlock::output::{events, exit, metrics};
use serde_json::{Value, json};

/// Date of the hand-written parts; change it with them.
const DATE: &str = "2026-11-25";

/// Compares a checked-in file with its expected content, or writes it.
fn check(path: &str, wanted: &str) {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("SNAPSHOTS").is_some_and(|value| value == "overwrite") {
        fs::write(&place, wanted).unwrap();
        return;
    }
    let found = fs::read_to_string(&place).unwrap_or_default();
    let lines = found.lines().zip(wanted.lines());
    let differs = 1 + lines.take_while(|(found, wanted)| found == wanted).count();
    assert!(
        found == wanted,
        "{path} is stale, from line {differs} on: run SNAPSHOTS=overwrite cargo test --test assets, and commit it"
    );
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The page that the notes of this name become.
fn page(name: &str, notes: &str) -> String {
    let root = cli::command();
    let command = match name.split_once('-') {
        // The options that all of them have are in dlock(1).
        Some((_, sub)) => root.find_subcommand(sub).cloned().map(|sub| {
            sub.mut_args(|arg| {
                let hidden = arg.is_hide_set() || arg.is_global_set();
                // Pages have no short form.
                arg.hide(hidden).hide_short_help(false)
            })
        }),
        None => Some(root),
    };
    with_recipes(notes)
        .replace("@DATE@", DATE)
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@OPTIONS@\n", &command.map(options).unwrap_or_default())
        .replace("@KEYS@\n", &keys())
        .replace("@FAULTS@\n", &faults())
        .replace("@CONFIG@\n", &block(&read("man/notes/config.toml")))
        .replace("@EXIT@\n", &exit_status())
        .replace("@SETTINGS@\n", &settings())
        .replace("@TIMELINE@\n", &timeline())
        .replace("@EVENTS@\n", &events_table())
        .replace("@OUTCOMES@\n", &outcomes())
        .replace("@METRICS@\n", &metrics_table())
}

fn options(command: clap::Command) -> String {
    let mut section = Vec::new();
    Man::new(command)
        .render_options_section(&mut section)
        .unwrap();
    let section = String::from_utf8(section).unwrap();
    // Help marks words with backticks, a page has bold for that.
    let mut marks = ["\\fB", "\\fR"].iter().cycle();
    let mut parts = section.split('`');
    let first = parts.next().unwrap_or_default().to_owned();
    let section = parts.fold(first, |text, part| text + marks.next().unwrap() + part);
    // The groups of options are parts of one section.
    let lines = section.lines().map(|line| match line.strip_prefix(".SH ") {
        Some(heading) if heading != "OPTIONS" => {
            let (first, rest) = heading.trim_matches('"').split_at(1);
            format!(".SS \"{first}{}\"\n", rest.to_lowercase())
        }
        _ => format!("{line}\n"),
    });
    lines.collect()
}

fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Plain text, also for readers who copy it from a terminal: roff replaces some characters.
fn verbatim(text: &str) -> String {
    let mut escaped = String::new();
    for line in text.lines() {
        if line.starts_with('.') {
            escaped += "\\&";
        }
        for character in line.chars() {
            match character {
                '\\' => escaped += "\\e",
                '-' => escaped += "\\-",
                '\'' => escaped += "\\(aq",
                '`' => escaped += "\\(ga",
                '^' => escaped += "\\(ha",
                '~' => escaped += "\\(ti",
                _ => escaped.push(character),
            }
        }
        escaped.push('\n');
    }
    escaped
}

/// Every file below `man/recipes`, as `DIRECTORY/FILE`.
fn recipes() -> Vec<String> {
    let names = |path: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap())
    };
    names("man/recipes")
        .flat_map(|recipe| {
            names(&format!("man/recipes/{recipe}")).map(move |file| format!("{recipe}/{file}"))
        })
        .collect()
}

fn block(text: &str) -> String {
    format!(".RS 4\n.nf\n{}.fi\n.RE\n", verbatim(text))
}

/// The notes with each tested recipe inserted.
fn with_recipes(notes: &str) -> String {
    recipes().iter().fold(notes.to_owned(), |notes, recipe| {
        let text = read(&format!("man/recipes/{recipe}"));
        notes.replace(&format!("@RECIPE {recipe}@\n"), &block(&text))
    })
}

#[test]
fn the_page_has_every_recipe_once() {
    let notes = read("man/notes/dlock-fencing.roff");
    for recipe in recipes() {
        let place = format!("@RECIPE {recipe}@\n");
        assert_eq!(notes.matches(&place).count(), 1, "{place}");
    }
    assert!(
        !with_recipes(&notes).contains("@RECIPE"),
        "a recipe is missing"
    );
}

fn exit_status() -> String {
    let mut section = ".SH EXIT STATUS\n".to_owned();
    for (code, meaning) in exit::TABLE {
        writeln!(section, ".TP\n.B {code}\n{}", roff(meaning)).unwrap();
    }
    section
}

fn settings() -> String {
    let mut table = ".TS\nl l l.\n\\fBoption\\fR\t\\fBvariable\\fR\t\\fBelse\\fR\n".to_owned();
    for (long, variable, fall_back) in cli::settings() {
        let row = format!("--{long}\t{variable}\t{}", fall_back.unwrap_or_default());
        writeln!(table, "{}", roff(&row)).unwrap();
    }
    table + ".TE\n"
}

fn events_table() -> String {
    let mut list = String::new();
    for event in events::TABLE {
        let fields = event.fields.join(", ");
        let fields = if fields.is_empty() {
            String::new()
        } else {
            format!("; {fields}")
        };
        writeln!(
            list,
            ".TP\n.B {}\n{}{fields}",
            roff(event.name),
            roff(event.meaning)
        )
        .unwrap();
    }
    list
}

fn outcomes() -> String {
    let mut list = String::new();
    for outcome in Outcome::ALL {
        let (name, meaning) = (outcome.word(), outcome.meaning());
        writeln!(list, ".TP\n.B {}\n{}", roff(name), roff(meaning)).unwrap();
    }
    list
}

fn metrics_table() -> String {
    let mut list = String::new();
    for (sample, help) in metrics::table() {
        writeln!(list, ".TP\n.B {sample}\n{}", roff(help)).unwrap();
    }
    list
}

/// The keys of the configuration file: every long option that it may contain, as on the command line.
fn keys() -> String {
    fn collect(command: &clap::Command, found: &mut Vec<clap::Arg>) {
        found.extend(command.get_arguments().cloned());
        command
            .get_subcommands()
            .for_each(|sub| collect(sub, found));
    }
    let mut arguments = Vec::new();
    collect(&cli::command(), &mut arguments);
    let mut section = String::new();
    for (long, ..) in cli::settings() {
        // The file cannot contain its own path.
        if long == "config" {
            continue;
        }
        let argument = arguments
            .iter()
            .find(|argument| argument.get_long() == Some(long))
            .unwrap();
        let switch = !argument.get_action().takes_values();
        let value = match (long, argument.get_value_names()) {
            ("verbose", _) => "0 | 1 | 2".to_owned(),
            ("endpoints", _) => "[\"HOST:PORT\", ...]".to_owned(),
            ("conflict-exit-code" | "slots", Some(names)) => names[0].to_string(),
            (_, Some(names)) if !switch => format!("\"{}\"", names[0]),
            _ => "true | false".to_owned(),
        };
        let help = argument.get_help().unwrap().to_string();
        writeln!(
            section,
            ".TP\n.BR {} \" = {}\"\n{}",
            roff(long),
            value.replace('"', "\\(dq"),
            roff(&help)
        )
        .unwrap();
    }
    section
}

/// The table of known faults of etcd's versions.
fn faults() -> String {
    let mut table =
        ".na\n.TS\ntab(|);\nlb lb lb\nlw(24n) lx l.\nversions|what they break|see\n".to_owned();
    for fault in version::known() {
        let [versions, breaks] = [&*fault.versions, fault.breaks].map(roff);
        let reference = roff(fault.reference);
        writeln!(
            table,
            "T{{\n{versions}\nT}}|T{{\n{breaks}\nT}}|T{{\n{reference}\nT}}"
        )
        .unwrap();
    }
    table + ".TE\n.ad\n"
}

/// The times of a loss, by the formulas of `core::time`, for three TTLs in seconds.
fn timeline() -> String {
    let ttls = [10.0_f64, 30.0, 60.0];
    let grace = |ttl: f64| (ttl / 5.0).min(5.0);
    let kill_at = |ttl: f64| 0.9 * ttl - 0.5;
    let mut table = ".TS\nl r r r.\n".to_owned();
    let mut row = |label: &str, value: &dyn Fn(f64) -> f64| {
        let values = ttls.map(|ttl| format!("{}", (value(ttl) * 100.0).round() / 100.0));
        writeln!(table, "{label}\t{}", values.join("\t")).unwrap();
    };
    row("TTL", &|ttl| ttl);
    row("renewals leave every", &|ttl| ttl / 5.0);
    row("one is given up after", &|ttl| (ttl / 8.0).clamp(0.5, 2.0));
    row("the command is told to end at", &|ttl| {
        kill_at(ttl) - grace(ttl)
    });
    row("it has been killed at", &kill_at);
    row("etcd may free the lock at", &|ttl| 0.9 * ttl);
    table + ".TE\n"
}

/// Every page, as `NAME.SECTION`, and its text, in the order of the names.
fn all_pages() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/notes");
    let paths = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let roff = paths.filter(|path| path.extension().is_some_and(|it| it == "roff"));
    let mut pages: Vec<_> = roff
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let notes = fs::read_to_string(&path).unwrap();
            let section = notes
                .lines()
                .find_map(|line| line.strip_prefix(".TH ")?.split(' ').nth(1))
                .unwrap_or_else(|| panic!("{name} has no line .TH NAME SECTION"));
            (format!("{name}.{section}"), page(name, &notes))
        })
        .collect();
    pages.sort();
    pages
}

#[test]
fn man_pages() {
    let pages = all_pages();
    for (name, text) in &pages {
        check(&format!("man/{name}"), text);
    }
    for command in cli::command().get_subcommands() {
        let name = format!("dlock-{}.1", command.get_name());
        let exists = pages.iter().any(|(page, _)| *page == name);
        assert!(exists, "no page {name}");
    }
}

/// The same pages for readers on the web.
#[test]
fn pages_in_markdown() {
    let pages = all_pages();
    let names: BTreeSet<String> = pages.iter().map(|(name, _)| name.clone()).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man");
    for entry in fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let page = file.strip_suffix(".md").unwrap();
        let is_known = page == "README" || names.contains(page);
        assert!(is_known, "docs/man/{file} is of no page");
    }
    for (name, text) in &pages {
        check(
            &format!("docs/man/{name}.md"),
            &markdown::convert(text, &names),
        );
    }
    check("docs/man/README.md", &markdown::index(&pages));
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&read(&format!("contrib/schemas/{name}.schema.json"))).unwrap()
}

/// Every event is in the schema, with its fields.
#[test]
fn schema_of_the_events() {
    check("contrib/schemas/event.schema.json", &schemas::event());
}

/// The schemas that are written by hand have the words that dlock prints.
#[test]
fn words_in_the_schemas() {
    let outcomes: Vec<&str> = Outcome::ALL.into_iter().map(Outcome::word).collect();
    assert_eq!(
        schema("report")["properties"]["outcome"]["enum"],
        json!(outcomes)
    );
    let page = read("man/notes/dlock-doctor.roff");
    let (_, findings) = page.split_once(".SH FINDINGS\n").unwrap();
    let (findings, _) = findings.split_once("\n.SH ").unwrap();
    let checks: Vec<&str> = findings
        .split(".TP\n.B ")
        .skip(1)
        .filter_map(|it| it.lines().next())
        .collect();
    let finding = &schema("doctor")["properties"]["findings"]["items"]["properties"];
    assert_eq!(finding["check"]["enum"], json!(checks));
    assert_eq!(schema("ls")["$defs"], schema("status")["$defs"]);
}

#[test]
fn picture_of_a_loss() {
    check("pictures/loss.svg", &timeline::svg());
}

#[test]
fn exit_table_in_the_readme() {
    const BEGIN: &str = "<!-- exit-status -->\n";
    const END: &str = "<!-- /exit-status -->";
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(place).expect("README.md must be there");
    let parts = readme
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.expect("README.md needs the lines <!-- exit-status --> and <!-- /exit-status -->");
    let mut table = "| code | meaning |\n|---|---|\n".to_owned();
    for (code, meaning) in exit::TABLE {
        writeln!(table, "| {code} | {meaning} |").unwrap();
    }
    check("README.md", &format!("{before}{BEGIN}{table}{END}{after}"));
}

/// The page's own text on the numbers that users plan with.
#[test]
fn the_timeline_has_the_numbers_of_the_design() {
    let table = timeline();
    for row in [
        "renewals leave every\t2\t6\t12",
        "one is given up after\t1.25\t2\t2",
        "the command is told to end at\t6.5\t21.5\t48.5",
        "it has been killed at\t8.5\t26.5\t53.5",
        "etcd may free the lock at\t9\t27\t54",
    ] {
        assert!(table.contains(row), "{row}\n{table}");
    }
}

/// "Names of events and fields stay what they are" (dlock-events(7)): every message of the code has a name that is in
/// the page, and every name and field in the page is one of the code.
#[test]
fn every_event_is_in_the_page_and_in_the_code() {
    let source = source_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let page = page("dlock-events", &read("man/notes/dlock-events.roff"));
    let mut said = Vec::new();
    for call in ["info!(", "warn!(", "error!(", "tell!("] {
        for (at, _) in source.match_indices(call) {
            let what: String = source[at + call.len()..].split(';').next().unwrap().into();
            let what = what.strip_prefix("target: log::KEPT, ").unwrap_or(&what);
            let words: String = what.split('"').next().unwrap().split_whitespace().collect();
            if words.starts_with("$(") {
                continue;
            }
            assert!(
                words.starts_with("event"),
                "a message without an event: {call}{what}"
            );
            let named = words.split_once("events::").map(|(_, rest)| rest);
            said.extend(named.map(|rest| rest.split(',').next().unwrap().to_owned()));
        }
    }
    assert!(said.len() > 20, "{said:?}");
    for event in events::TABLE {
        let constant = event.name.to_uppercase().replace('-', "_");
        let uses = source.matches(&format!("events::{constant}")).count();
        assert!(uses > 0, "nobody says {}", event.name);
        let entry = format!(".B {}\n", roff(event.name));
        assert_eq!(page.matches(&entry).count(), 1, "{}", event.name);
        for field in event.fields {
            let written = [
                format!("{field} = "),
                format!("%{field},"),
                format!("{field},\n"),
            ]
            .iter()
            .chain(&[format!(", {field},"), format!("\"{field}\"")])
            .any(|form| source.contains(form.as_str()));
            assert!(written, "nobody writes {field} of {}", event.name);
        }
    }
    for name in said {
        let known = events::TABLE
            .iter()
            .any(|event| event.name.to_uppercase().replace('-', "_") == name);
        assert!(known, "{name} is not in the page");
    }
}

/// All compiled code except the table of events itself, without its tests.
fn source_of(directory: &Path) -> String {
    let mut source = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source += &source_of(&path);
        } else if !path.ends_with("output/events.rs") {
            let text = fs::read_to_string(&path).unwrap();
            source += text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        }
    }
    source
}
