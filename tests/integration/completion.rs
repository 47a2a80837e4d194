//! The completions of real shells at TAB, by the scripts of `dlock completions`.
//! It must not know how dlock finds them.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{Dlock, Etcd, Link, Outcome, boot_clock, dlock_program, hold, since, unique};

/// A shell with dlock in its PATH and its completion script, which completes `line`.
fn shell(etcd: &Etcd, words: &[&str], script: &str) -> Dlock {
    let program = std::path::Path::new(dlock_program());
    let path = std::env::var("PATH").expect("a PATH");
    let dlock = Dlock::program(words)
        .env("DLOCK_ENDPOINTS", etcd.endpoint())
        .env(
            "PATH",
            format!(
                "{}:{path}",
                program.parent().expect("a directory").display()
            ),
        );
    dlock.home().write("script", script);
    dlock
}

#[track_caller]
fn lines(outcome: Outcome) -> Vec<String> {
    let outcome = outcome.expect_code(0);
    assert_eq!(outcome.stderr, "", "{outcome:?}");
    let lines = outcome
        .stdout
        .lines()
        .map(|line| line.trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// bash, with or without the package bash-completion: the content of COMPREPLY for a line that is being typed.
fn bash(etcd: &Etcd, line: &str, before: &str) -> Vec<String> {
    // As readline does it: words end at blanks and at COMP_WORDBREAKS, whose characters are words of their own.
    let script = format!(
        r#"{before}
source <(dlock completions bash)
COMP_LINE=$1 COMP_POINT=${{#1}}
rest=$1 COMP_WORDS=()
while [[ $rest =~ ^[[:space:]]*([=:]+|[^[:space:]=:]+) ]]; do
    COMP_WORDS+=("${{BASH_REMATCH[1]}}")
    rest=${{rest#"${{BASH_REMATCH[0]}}"}}
done
[[ $1 != *[[:space:]] ]] || COMP_WORDS+=("")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
current=${{COMP_WORDS[COMP_CWORD]}}
[[ $current != [=:]* ]] || current=
compopt() {{ :; }}
_dlock dlock "$current" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\n' "${{COMPREPLY[@]}}"
"#
    );
    lines(
        shell(
            etcd,
            &["bash", "-c", "cd && . ./script", "bash", line],
            &script,
        )
        .finish(),
    )
}

fn zsh(etcd: &Etcd, line: &str) -> Vec<String> {
    // A real line editor on a terminal; the completion itself writes its list to a file.
    let script = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; unsetopt zle_bracketed_paste; fpath=($HOME $fpath); autoload -Uz compinit; compinit -u -D'
zpty -w shell 'compadd() { local at=${@[(i)-a]}; print -l -- ${(P)@[at+1]} >>$HOME/offered }'
zpty -w shell 'echo rea""dy'
zpty -r -m shell line '*ready*'
zpty -w -n shell "$1"$'\t'
repeat 100; do
    sleep 0.1
    [[ -s $HOME/offered ]] && break
done
zpty -d shell
cat $HOME/offered 2>/dev/null
true
"#;
    let words = [
        "zsh",
        "-f",
        "-c",
        "cd && dlock completions zsh >_dlock && . ./script",
        "zsh",
        line,
    ];
    lines(shell(etcd, &words, script).finish())
}

fn fish(etcd: &Etcd, line: &str) -> Vec<String> {
    let words = [
        "fish",
        "-c",
        "cd; dlock completions fish | source; complete --do-complete $argv[1]",
        line,
    ];
    let found = lines(shell(etcd, &words, "").env("TERM", "dumb").finish());
    let values = found
        .iter()
        .map(|line| line.split('\t').next().unwrap_or_default());
    values.map(str::to_owned).collect()
}

/// "names of locks: those that somebody has or waits for at the moment"
#[test]
fn names_of_locks_are_offered_by_every_shell() {
    let etcd = Etcd::start();
    let names = ["deploy/production", "deploy:staging", "nightly"];
    let _holders = names.map(|name| hold(Dlock::on(&etcd), &[], name));
    assert_eq!(
        bash(&etcd, "dlock run dep", ""),
        ["deploy/production", "deploy:staging"]
    );
    assert_eq!(bash(&etcd, "dlock status nig", ""), ["nightly"]);
    // readline's word begins after the colon.
    assert_eq!(bash(&etcd, "dlock status deploy:st", ""), ["staging"]);
    assert_eq!(
        zsh(&etcd, "dlock run dep"),
        ["deploy/production", "deploy:staging"]
    );
    assert_eq!(
        fish(&etcd, "dlock break dep"),
        ["deploy/production", "deploy:staging"]
    );
    // By the words of the line, not by the variables.
    let other = Etcd::start();
    let line = format!("dlock --endpoints={} ls nig", etcd.endpoint());
    assert_eq!(bash(&other, &line, ""), ["nightly"]);
}

/// "signals, files, values"; "times: the units behind a number"
#[test]
fn signals_files_and_units_are_offered_by_every_shell() {
    let etcd = Etcd::shared();
    let units = ["30s", "30m", "30h", "30d", "30ms"];
    assert_eq!(bash(etcd, "dlock run --ttl 30", ""), units);
    assert_eq!(zsh(etcd, "dlock run --ttl 30"), units);
    assert_eq!(fish(etcd, "dlock run --ttl 30"), units);
    assert_eq!(bash(etcd, "dlock run --signal US", ""), ["USR1", "USR2"]);
    assert_eq!(bash(etcd, "dlock run --signal=US", ""), ["USR1", "USR2"]);
    assert_eq!(bash(etcd, "dlock run --leftovers=w", ""), ["wait"]);
    assert_eq!(zsh(etcd, "dlock run --signal T"), ["TERM"]);
    assert_eq!(fish(etcd, "dlock run --signal T"), ["TERM"]);
    assert_eq!(bash(etcd, "dlock --cacert scr", ""), ["script"]);
    assert_eq!(fish(etcd, "dlock --cacert scr"), ["script"]);
    // Completions that only the shell knows.
    assert!(fish(etcd, "dlock --cacert ~/scr")[0].ends_with("script"));
    assert_eq!(bash(etcd, "dlock doc", ""), ["doctor"]);
    assert_eq!(
        bash(etcd, "dlock run --conflict", ""),
        ["--conflict-exit-code"]
    );
}

/// "the command: as the shell does it without dlock"
#[test]
fn the_command_is_completed_as_without_dlock() {
    let etcd = Etcd::shared();
    // Replaces the function of the package bash-completion.
    let package = "_command_offset() { COMPREPLY=(\"offset $1\"); }";
    assert_eq!(
        bash(etcd, "dlock run job -- git che", package),
        ["offset 4"]
    );
    assert_eq!(
        bash(etcd, "dlock run -w 5m a:b git che", package),
        ["offset 7"]
    );
    assert!(bash(etcd, "dlock run job -- ech", package).contains(&"echo".to_owned()));
    assert!(
        bash(etcd, "dlock run job cat scr", "").is_empty(),
        "files are bash's own matter"
    );
    assert_eq!(fish(etcd, "dlock run job -- cat scr"), ["script"]);
}

/// "Names that have not arrived within 300 ms are left out" (dlock-completions(1))
#[test]
fn an_etcd_that_does_not_answer_delays_no_completion() {
    let link = Link::silent();
    let complete = |endpoint: &str| {
        let started_at = boot_clock();
        let dlock = Dlock::at(endpoint).args(["__complete", "2", "run", "job"]);
        let outcome = dlock.stdin(Stdio::null()).finish();
        outcome.expect_code(0).expect_silent().expect_stdout("");
        since(started_at)
    };
    for endpoint in [&*link.endpoint(), "http://127.0.0.1:1"] {
        // The same without a wait; an attempt to connect would take two seconds, and ten where nothing answers.
        let plain = complete("nonsense://");
        let took = complete(endpoint);
        assert!(
            took < plain * 3 + Duration::from_millis(1300),
            "{took:?}, not {plain:?}"
        );
    }
}

/// For any content of a name, a shell reads it as one word.
#[test]
fn a_name_with_blanks_is_quoted() {
    let etcd = Etcd::start();
    let name = format!("{} with; a $blank", unique("name"));
    let _holder = hold(Dlock::on(&etcd), &[], &name);
    let offered = bash(&etcd, "dlock run name", "");
    let typed = format!("printf %s {}", offered[0]);
    Dlock::program(["bash", "-c", &typed])
        .finish()
        .expect_stdout(&name);
}

/// "No variable keeps a command from running": nor a word of the completion scripts.
#[test]
fn a_call_that_is_not_from_a_shell_gets_no_completions() {
    for position in ["", "bash", "-1", "1", "3"] {
        Dlock::on(Etcd::shared())
            .env("DLOCK_COMPLETE", position)
            .run([&unique("complete"), "echo", "ran"])
            .finish()
            .expect_code(0)
            .expect_stdout("ran\n");
    }
    Dlock::on(Etcd::shared())
        .run(["__complete", "echo", "3"])
        .finish()
        .expect_code(0)
        .expect_stdout("3\n");
    for words in [&["__complete"][..], &["__complete", "x", "run"]] {
        Dlock::on(Etcd::shared())
            .args(words)
            .finish()
            .expect_code(125);
    }
}
