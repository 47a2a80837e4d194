//! The man pages and the README's exit table are what the definitions say.
//! `SNAPSHOTS=overwrite cargo test --test assets` writes them anew.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap_mangen::Man;
use dlock::core::doctor::version;
use dlock::{cli, exit};

/// Of the hand-written parts; change it with them.
const DATE: &str = "2026-11-25";

/// Compares a checked-in file with what it should be, or writes it.
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

/// The page that the notes of this name become.
fn page(name: &str, notes: &str) -> String {
    let root = cli::command();
    let command = match name.split_once('-') {
        Some((_, sub)) => root.find_subcommand(sub).cloned(),
        None => Some(root),
    };
    notes
        .replace("@DATE@", DATE)
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@OPTIONS@\n", &command.map(options).unwrap_or_default())
        .replace("@KEYS@\n", &keys())
        .replace("@FAULTS@\n", &faults())
        .replace(
            "@CONFIG@\n",
            &verbatim(include_str!("../man/notes/config.toml")),
        )
        .replace("@EXIT@\n", &exit_status())
        .replace("@SETTINGS@\n", &settings())
        .replace("@TIMELINE@\n", &timeline())
}

fn options(command: clap::Command) -> String {
    let mut section = Vec::new();
    Man::new(command)
        .render_options_section(&mut section)
        .unwrap();
    String::from_utf8(section).unwrap()
}

fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn exit_status() -> String {
    let mut section = ".SH EXIT STATUS\n".to_owned();
    for row in exit::TABLE {
        writeln!(section, ".TP\n.B {}\n{}", row.code, roff(row.meaning)).unwrap();
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

/// The keys of the configuration file: every long option that can stand there, as the command line has it.
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
        // The file's own place cannot stand in the file.
        if long == "config" {
            continue;
        }
        let argument = arguments
            .iter()
            .find(|argument| argument.get_long() == Some(&long))
            .unwrap();
        let switch = !argument.get_action().takes_values();
        let value = match (&*long, argument.get_value_names()) {
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
            roff(&long),
            value.replace('"', "\\(dq"),
            roff(&help)
        )
        .unwrap();
    }
    section
}

/// Versions of etcd that are known to break something.
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

fn verbatim(text: &str) -> String {
    format!(".RS\n.nf\n{}.fi\n.RE\n", roff(text))
}

/// The moments of a loss, by the formulas of `core::lease`, for three TTLs in seconds.
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

#[test]
fn man_pages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/notes");
    let mut written = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "roff") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let notes = fs::read_to_string(&path).unwrap();
        let section = notes
            .lines()
            .find_map(|line| line.strip_prefix(".TH ")?.split(' ').nth(1))
            .unwrap_or_else(|| panic!("{name} has no line .TH NAME SECTION"));
        check(&format!("man/{name}.{section}"), &page(name, &notes));
        written.push(name.to_owned());
    }
    for command in cli::command().get_subcommands() {
        let name = format!("dlock-{}", command.get_name());
        assert!(written.contains(&name), "no man/notes/{name}.roff");
    }
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
    for row in exit::TABLE {
        writeln!(table, "| {} | {} |", row.code, row.meaning).unwrap();
    }
    check("README.md", &format!("{before}{BEGIN}{table}{END}{after}"));
}

/// The page's own words for the numbers that people plan with.
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
