//! The recipes of dlock-fencing(7), as the page prints them, each on its store: a holder whose whole machine is paused
//! beyond its lease continues with a late write.
//! It must not know how the stores are started; `fencing/stores.rs` does.

mod stores;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use crate::support::{Dlock, Etcd, LIMIT, Outcome, Running, Scratch, Signal, eventually};
use stores::{Database, EtcdItself, Redis, Storage, Store};

/// A recipe of the page.
struct Recipe {
    /// Its directory in `man/recipes`.
    name: &'static str,
    /// The file with the check, the check, and its replacement without one.
    check: (&'static str, &'static str, &'static str),
    /// The message for a late writer.
    refusal: &'static str,
}

const POSTGRESQL_STATEMENT: Recipe = Recipe {
    name: "postgresql-statement",
    check: ("write.sql", "WHERE d.token <= excluded.token", ""),
    refusal: "a later holder of the lock has been here",
};
const POSTGRESQL_TRIGGER: Recipe = Recipe {
    name: "postgresql-trigger",
    check: ("table.sql", "IF NOT FOUND THEN", "IF false THEN"),
    refusal: "a later holder of the lock report has been here",
};
const ETCD: Recipe = Recipe {
    name: "etcd",
    check: ("publish", r#") = "%s"\n\n"#, r#") > "-%s"\n\n"#),
    refusal: "the lock has gone to somebody else",
};
const SSH: Recipe = Recipe {
    name: "ssh",
    check: (
        "publish",
        "dlock fence report.fence \\\n    --name report --token \"$DLOCK_FENCING_TOKEN\" -- \\\n",
        "\\\n",
    ),
    refusal: "'report.fence' has seen token",
};
const REDIS: Recipe = Recipe {
    name: "redis",
    check: (
        "write.lua",
        "if tonumber(ARGV[1]) < tonumber(seen) then",
        "if false then",
    ),
    refusal: "is refused",
};

/// A machine that follows a recipe: its directory has the recipe's files, and the report to be published.
struct Machine {
    directory: Scratch,
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    fn new(recipe: &Recipe, store: &dyn Store, checked: bool) -> Self {
        let directory = Scratch::new();
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/recipes");
        for entry in fs::read_dir(recipes.join(recipe.name)).expect("the recipe's directory") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a plain name");
            let mut text = fs::read_to_string(entry.path()).expect("a text");
            let (file, check, instead) = recipe.check;
            if name == file && !checked {
                assert_eq!(text.matches(check).count(), 1, "{check:?} in {text}");
                text = text.replace(check, instead);
            }
            let mode = entry.metadata().expect("it is there").permissions().mode();
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(directory.write(&name, &text), permissions).expect("our own file");
        }
        let variables = store.variables();
        Self {
            directory,
            variables,
        }
    }

    /// A program that starts in the machine's directory and finds the store.
    fn at_home(&self, program: Dlock) -> Dlock {
        let home = format!("cd {}", self.directory.path().display());
        let variables = self.variables.iter();
        variables.fold(program.after(&home), |program, (name, value)| {
            program.env(name, value)
        })
    }

    /// A script of the recipe, with a token that no lock gave out.
    fn script(&self, script: &str, token: u64) -> Dlock {
        self.at_home(Dlock::program(["sh", script]))
            .env("DLOCK_NAME", "report")
            .env("DLOCK_FENCING_TOKEN", token.to_string())
    }

    fn publish(&self, body: &str, token: u64) -> Outcome {
        self.directory.write("report", body);
        self.script("publish", token).finish()
    }
}

/// A holder that has its report and is about to publish it when its whole machine is paused.
#[track_caller]
fn paused_holder(etcd: &Etcd, machine: &Machine) -> Running {
    machine.directory.write("report", "older");
    let script = "echo on; read -r go; ./publish; echo $? >status";
    let holder = Dlock::on(etcd).run(["--ttl=5", "report", "--", "sh", "-c", script]);
    let mut holder = machine.at_home(holder).stdin(Stdio::piped()).start();
    holder.says("on\n");
    let processes = holder.everything();
    for process in &processes {
        process.signal(Signal::STOP);
    }
    eventually(LIMIT, "all of it stands still", || {
        processes.iter().all(|process| process.state() == 'T')
    });
    holder
}

/// The next holder publishes its report.
#[track_caller]
fn next_holder(etcd: &Etcd, machine: &Machine) {
    machine.directory.write("report", "newer");
    let next = Dlock::on(etcd).run(["report", "--", "./publish"]);
    let mut next = machine.at_home(next).start();
    next.wait_within(LIMIT * 2).expect_code(0);
}

/// The paused machine continues, and the kernel runs the command first. Returns the status of its write, and the holder's
/// end.
#[track_caller]
fn late_write(mut holder: Running, machine: &Machine) -> (String, Outcome) {
    let paused = holder.everything();
    let command = holder.tree();
    holder.type_in("go\n");
    for process in command {
        process.signal(Signal::CONT);
    }
    let status = eventually(LIMIT, "the late write is over", || {
        Some(machine.directory.read("status")).filter(|status| status.ends_with('\n'))
    });
    for process in paused {
        process.signal(Signal::CONT);
    }
    (status.trim_end().to_owned(), holder.wait())
}

/// A holder is paused beyond its lease, the next one writes, the first one continues: returns the status of its write,
/// its end, and the content of the store after that.
fn overtaken(
    recipe: &Recipe,
    etcd: &Etcd,
    store: &dyn Store,
    checked: bool,
) -> (String, Outcome, String) {
    let machine = || Machine::new(recipe, store, checked);
    let (older, newer) = (machine(), machine());
    store.prepare(&older.directory);
    let holder = paused_holder(etcd, &older);
    next_holder(etcd, &newer);
    assert_eq!(store.report(), "newer");
    let (status, ended) = late_write(holder, &older);
    (status, ended, store.report())
}

/// "If its write is late, it reports that and fails, and the store has the data of the later holder"
/// (dlock-fencing(7)); without the check, the update is lost.
#[track_caller]
fn a_late_write_is_refused<S: Store>(recipe: &Recipe, store: impl Fn(&Etcd) -> S + Sync) {
    let scenario = |checked| {
        let etcd = Etcd::start();
        overtaken(recipe, &etcd, &store(&etcd), checked)
    };
    thread::scope(|scope| {
        let unchecked = scope.spawn(|| scenario(false));
        let (status, ended, report) = scenario(true);
        assert_ne!(status, "0", "{ended:?}");
        ended.expect_code(121).expect_stderr(&[recipe.refusal]);
        assert_eq!(report, "newer");
        let (status, ended, report) = unchecked.join().expect("it names the cause");
        assert_eq!((&*status, &*report), ("0", "older"), "{ended:?}");
        ended.expect_code(121);
    });
}

/// "`PostgreSQL`, one statement ... returns a row only if it has written" (dlock-fencing(7))
#[test]
fn postgresql_refuses_a_late_statement() {
    if Database::may_run().is_none() {
        return;
    }
    a_late_write_is_refused(&POSTGRESQL_STATEMENT, |_| Database::new("documents"));
}

/// "`PostgreSQL`, a trigger ... the tables themselves can require a token" (dlock-fencing(7))
#[test]
fn postgresql_refuses_a_late_writer_by_a_trigger() {
    if Database::may_run().is_none() {
        return;
    }
    a_late_write_is_refused(&POSTGRESQL_TRIGGER, |_| Database::new("reports"));
}

/// "etcd itself ... one transaction compares it and writes" (dlock-fencing(7))
#[test]
fn etcd_refuses_a_late_transaction() {
    a_late_write_is_refused(&ETCD, EtcdItself::new);
}

/// "A file on another machine ... under the fence it is only renamed" (dlock-fencing(7)); "The exit status of a late
/// writer is ... 121" (dlock-fencing(7))
#[test]
fn a_file_behind_ssh_refuses_a_late_writer() {
    a_late_write_is_refused(&SSH, |_| Storage::new());
}

/// "Redis: a script runs alone: nobody comes between its check and its write"
#[test]
fn redis_refuses_a_late_script() {
    a_late_write_is_refused(&REDIS, |_| Redis::start());
}

/// Text that a shell, a database or etcdctl could interpret.
const AWKWARD: &str = "it's \"10 %\" of\t$HOME \\n, ;)\n`two` 'lines";

/// "It accepts the same token" (dlock-fencing(7)); "reset the number of the lock in every store" (dlock-fencing(7)):
/// each recipe has its reset.
#[track_caller]
fn lower_tokens_come_in_after_a_reset_only(recipe: &Recipe, store: &dyn Store) {
    let machine = Machine::new(recipe, store, true);
    store.prepare(&machine.directory);
    let is_late = |token| {
        let outcome = machine.publish("late", token);
        assert_ne!(outcome.code(), Some(0), "{outcome:?}");
        outcome.expect_stderr(&[recipe.refusal]);
    };
    let is_in = |body: &str, token| {
        machine.publish(body, token).expect_code(0);
        assert_eq!(store.report(), body);
    };
    is_in("first", 9);
    is_in("second", 120);
    is_in(AWKWARD, 120);
    is_late(14);
    assert_eq!(store.report(), AWKWARD);
    machine.script("reset", 0).finish().expect_code(0);
    is_in("restored", 14);
    is_late(13);
    assert_eq!(store.report(), "restored");
}

#[test]
fn every_recipe_shows_how_to_reset_the_token() {
    if Database::may_run().is_none() {
        return;
    }
    lower_tokens_come_in_after_a_reset_only(&POSTGRESQL_STATEMENT, &Database::new("documents"));
    lower_tokens_come_in_after_a_reset_only(&POSTGRESQL_TRIGGER, &Database::new("reports"));
    lower_tokens_come_in_after_a_reset_only(&SSH, &Storage::new());
    lower_tokens_come_in_after_a_reset_only(&REDIS, &Redis::start());
}

/// "The tokens of all holders are then lower than those that the stores have seen, and are refused" (dlock-fencing(7)),
/// until the store is reset; "etcd itself needs no reset" (dlock-fencing(7)).
#[test]
fn after_a_restore_of_etcd_the_stores_must_be_reset() {
    let (etcd, storage) = (Etcd::start(), Storage::new());
    let itself = EtcdItself::new(&etcd);
    let beside = Machine::new(&SSH, &storage, true);
    let inside = Machine::new(&ETCD, &itself, true);
    let publish = |machine: &Machine, body| {
        machine.directory.write("report", body);
        let run = Dlock::on(&etcd).run(["report", "--", "./publish"]);
        machine.at_home(run).finish()
    };
    let backup = beside.directory.file("backup");
    etcd.ctl(&["snapshot", "save", &backup]);
    for machine in [&inside, &beside, &beside] {
        publish(machine, "before").expect_code(0);
    }
    etcd.restore(&backup);
    publish(&inside, "after").expect_code(0);
    assert_eq!(itself.report(), "after");
    let late = publish(&beside, "after").expect_code(121);
    late.expect_stderr(&[SSH.refusal, "--reset in dlock-fence(1)"]);
    assert_eq!(storage.report(), "before");
    beside.script("reset", 0).finish().expect_code(0);
    publish(&beside, "after").expect_code(0);
    assert_eq!(storage.report(), "after");
}

/// etcd keeps no number: the lock's own key is the check, and any text can be written.
#[test]
fn etcd_takes_what_its_holder_writes() {
    let etcd = Etcd::start();
    let store = EtcdItself::new(&etcd);
    let machine = Machine::new(&ETCD, &store, true);
    machine.directory.write("report", AWKWARD);
    let run = Dlock::on(&etcd).run(["report", "--", "./publish"]);
    machine.at_home(run).finish().expect_code(0);
    assert_eq!(store.report(), AWKWARD);
}

/// "The check and the write are one operation" (dlock-fencing(7)): a writer that arrives while the transaction of a
/// newer one is not committed yet is not accepted by the old content; a still newer one waits, and sees all that was
/// written then.
#[track_caller]
fn they_do_not_meet_half_way(recipe: &Recipe, database: &Database) {
    let machine = || Machine::new(recipe, database, true);
    let (inside, older, newer) = (machine(), machine(), machine());
    database.prepare(&inside.directory);
    inside.publish("by 1", 1).expect_code(0);
    let write = inside.directory.read("write.sql");
    let write = write.replace("BEGIN;", "").replace("COMMIT;", "");
    let mut session = inside
        .at_home(Dlock::program(["psql", "-Xq", "-v", "ON_ERROR_STOP=1"]))
        .env("PGOPTIONS", "-c dlock.token=34")
        .stdin(Stdio::piped())
        .start();
    session.type_in("\\set lock report\n\\set token 34\n\\set body 'by 34'\n");
    session.type_in(&format!("BEGIN;\n{write}\n\\echo in\n"));
    session.says("in\n");
    let publish = |machine: &Machine, body, token| {
        machine.directory.write("report", body);
        machine.script("publish", token).start()
    };
    let mut older = publish(&older, "by 33", 33);
    let mut newer = publish(&newer, "by 35", 35);
    database.they_wait(2);
    session.type_in("COMMIT;\n");
    drop(session.take_stdin());
    session.wait().expect_code(0);
    let outcome = older.wait();
    assert_ne!(outcome.code(), Some(0), "{outcome:?}");
    outcome.expect_stderr(&[recipe.refusal]);
    newer.wait().expect_code(0);
    assert_eq!(database.report(), "by 35");
}

/// "A statement that finds its row locked by an open transaction waits for it and then reads the row again"
/// (dlock-fencing(7)); "an older writer that was accepted ends first" (dlock-fencing(7))
#[test]
fn in_postgresql_an_open_transaction_counts() {
    if Database::may_run().is_none() {
        return;
    }
    they_do_not_meet_half_way(&POSTGRESQL_STATEMENT, &Database::new("documents"));
    they_do_not_meet_half_way(&POSTGRESQL_TRIGGER, &Database::new("reports"));
}

/// "A write without a token is refused as well" (dlock-fencing(7)): by the trigger, for any program and any statement.
#[test]
fn the_trigger_refuses_a_writer_without_a_token() {
    if Database::may_run().is_none() {
        return;
    }
    let database = Database::new("reports");
    let machine = Machine::new(&POSTGRESQL_TRIGGER, &database, true);
    database.prepare(&machine.directory);
    machine.publish("mine", 7).expect_code(0);
    for options in [
        "",
        "-c dlock.token=",
        "-c dlock.token=6",
        "-c dlock.token=seven",
    ] {
        for write in [
            "INSERT INTO reports VALUES ('theirs')",
            "UPDATE reports SET body = 'theirs'",
            "DELETE FROM reports",
            "TRUNCATE reports",
        ] {
            let psql = machine.at_home(Dlock::program(["psql", "-Xc", write]));
            let outcome = psql.env("PGOPTIONS", options).finish();
            assert_eq!(outcome.code(), Some(1), "{options:?} {write}: {outcome:?}");
        }
    }
    assert_eq!(database.report(), "mine");
}
