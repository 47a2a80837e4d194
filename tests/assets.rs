//! The man pages and the README's exit table are what the definitions say.
//! `SNAPSHOTS=overwrite cargo test --test assets` writes them anew.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap_mangen::Man;
use dlock::{cli, exit};

/// Of the hand-written parts; change it with them.
const DATE: &str = "2026-11-23";

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

fn page(name: &str) -> String {
    let root = cli::command();
    let command = match name.split_once('-') {
        Some((_, sub)) => root.find_subcommand(sub).unwrap().clone(),
        None => root,
    };
    let notes = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("man/notes/{name}.roff"));
    fs::read_to_string(notes)
        .unwrap()
        .replace("@DATE@", DATE)
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@OPTIONS@\n", &options(command))
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
    check("man/dlock.1", &page("dlock"));
    for command in cli::command().get_subcommands() {
        let name = format!("dlock-{}", command.get_name());
        check(&format!("man/{name}.1"), &page(&name));
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
