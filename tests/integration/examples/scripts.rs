//! The examples that are scripts, run against a real etcd with stand-ins for the reader's programs.
//! It must not know how examples are found.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use super::How::{By, Picture, Prints};
use super::Runner;
use super::documents::Block;
use crate::support::{Dlock, Etcd, dlock_program, hold, hold_open, search_path, unique};

pub(super) const RUNNERS: &[Runner] = &[
    ("README.md", "$ make demo", By(targets)),
    ("README.md", "make dist ", By(ways_to_install)),
    ("README.md", "dlock run --local backup", By(begun)),
    ("README.md", "$ dlock run -n backup", By(shown_while_busy)),
    (
        "README.md",
        "h=$(dlock hold",
        Prints(&["step-one", "step-two"]),
    ),
    (
        "README.md",
        "dlock run report -c 'ssh storage",
        Prints(&["write-report"]),
    ),
    (
        "dlock.1",
        "dlock run deploy",
        Prints(&["deploy.sh production"]),
    ),
    ("dlock.1", "dlock run --local backup", By(begun)),
    ("dlock.1", "dlock ls\n", Prints(&["NAME"])),
    (
        "dlock-capacity.7",
        "requests per second",
        Picture("a formula, which load.rs tests"),
    ),
    (
        "dlock-capacity.7",
        "number=$(printf",
        By(one_of_several_clusters),
    ),
    (
        "dlock-events.7",
        "dlock --log-format json",
        Prints(&["job"]),
    ),
    ("dlock-events.7", "DLOCK_LOG=", Prints(&["job"])),
    ("dlock-json.5", "dlock run --report", Prints(&["job"])),
    ("dlock-local.7", "dlock run --local -n", By(begun)),
    ("dlock-local.7", "install -d -m 2770", By(shared_by_a_group)),
    (
        "dlock-report.5",
        "dlock run --report",
        Prints(&["completed"]),
    ),
    ("dlock-report.5", "metrics=", Prints(&["backup"])),
    (
        "dlock-break.1",
        "dlock status deploy\ndlock break",
        By(sent_away),
    ),
    ("dlock-check.1", "dlock check && ", By(checked)),
    ("dlock-completions.1", "directory=", By(completions)),
    (
        "dlock-completions.1",
        "dlock completions zsh",
        By(completions),
    ),
    (
        "dlock-completions.1",
        "dlock completions fish",
        By(completions),
    ),
    ("dlock-doctor.1", "dlock doctor && echo fine", By(examined)),
    ("dlock-doctor.1", "dlock doctor --ttl 10s", By(examined)),
    (
        "dlock-fence.1",
        "dlock run NAME -- dlock fence FILE",
        Prints(&[]),
    ),
    (
        "dlock-fence.1",
        "dlock run report -- dlock fence",
        Prints(&["write-report"]),
    ),
    (
        "dlock-fence.1",
        "dlock run report -c 'ssh storage",
        Prints(&["write-report"]),
    ),
    ("dlock-hold.1", "h=$(dlock hold", By(held_by_eval)),
    ("dlock-hold.1", "set h (dlock hold", By(held_in_fish)),
    ("dlock-hold.1", "coproc dlock hold", By(held_by_coprocess)),
    ("dlock-ls.1", "dlock ls\n", Prints(&["NAME"])),
    ("dlock-ls.1", "dlock ls --json", By(names_only)),
    ("dlock-release.1", "dlock release\n", By(released)),
    ("dlock-release.1", "dlock release &&", By(released)),
    (
        "dlock-release.1",
        "dlock release; and",
        By(released_in_fish),
    ),
    (
        "dlock-run.1",
        "dlock run report -- dlock fence",
        Prints(&["write-state"]),
    ),
    (
        "dlock-run.1",
        "dlock run deploy -- ./deploy.sh",
        Prints(&["deploy.sh production"]),
    ),
    (
        "dlock-run.1",
        "dlock run --also database deploy",
        Prints(&["deploy.sh production"]),
    ),
    ("dlock-run.1", "case \" $DLOCK_HELD \" in", By(runs_itself)),
    ("dlock-run.1", "dlock run --local backup", By(begun)),
    ("dlock-run.1", "dlock run --report", Prints(&["job"])),
    ("dlock-fencing.7", "", By(recipe)),
    (
        "dlock-run.1",
        "dlock run -v -w 30m",
        Prints(&["make deploy"]),
    ),
    ("dlock-run.1", "dlock run db-dump", By(piped)),
    (
        "dlock-history.1",
        "dlock history --since",
        By(asked_what_happened),
    ),
    (
        "dlock-history.1",
        "dlock history --json",
        By(asked_what_failed),
    ),
    (
        "dlock-status.1",
        "dlock status --held deploy",
        By(asked_whether_held),
    ),
    (
        "dlock-migration.7",
        "dlock run --local -n",
        Prints(&["backup"]),
    ),
    ("dlock-migration.7", "dlock run -n", Prints(&["backup"])),
    (
        "dlock-examples.7",
        "#!/bin/bash\ncase",
        Prints(&["rotating with token "]),
    ),
    (
        "dlock-examples.7",
        "#!/bin/bash\nset -eu",
        Prints(&["publishing news"]),
    ),
    (
        "dlock-examples.7",
        "#!/bin/bash\nh=$(dlock hold",
        Prints(&["step one\nstep two\n"]),
    ),
    (
        "dlock-examples.7",
        "#!/bin/sh\ndlock run -n import",
        By(reports_a_busy_lock),
    ),
];

/// A stand-in that prints its arguments.
const STAND_IN: &str = "#!/bin/sh\necho \"${0##*/} $* under token ${DLOCK_FENCING_TOKEN-none}\"\n";
/// In the reader's directory.
const OWN: [&str; 12] = [
    "job",
    "backup.sh",
    "nightly",
    "migrate",
    "deploy.sh",
    "step-one",
    "step-two",
    "point-of-no-return",
    "write-report",
    "write-state",
    "report.sh",
    "import.sh",
];
/// In PATH.
const INSTALLED: [&str; 9] = [
    "nightly-report",
    "sync-feeds",
    "backup",
    "make",
    "pg_dump",
    "mail-importer",
    "migrate",
    "report",
    "scheduler",
];
/// On this machine, and for files of it.
const SSH: &str = "#!/bin/sh\nshift\nexec sh -c \"$*\"\n";
const SCP: &str = "#!/bin/sh\ncp \"$2\" \"${3#*:}\"\n";

/// Puts stand-ins for the programs of the examples into a directory.
pub(super) fn furnish(home: &Path) {
    let directory = |name: &str| {
        let directory = home.join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        directory
    };
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).expect("a program");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, mode).expect("our own file");
    };
    let bin = directory("bin");
    directory("srv");
    directory("backup");
    symlink(dlock_program(), bin.join("dlock")).expect("a link");
    for name in OWN {
        write(&home.join(name), STAND_IN);
    }
    for name in INSTALLED {
        write(&bin.join(name), STAND_IN);
    }
    write(&bin.join("ssh"), SSH);
    write(&bin.join("scp"), SCP);
    write(&home.join("report"), "a report\n");
}

/// The example's text with the paths and endpoints of the test.
pub(super) fn adapted(text: &str, home: &Path, endpoints: &str) -> String {
    let home = home.to_str().expect("a plain path");
    let bin = &format!("{home}/bin/");
    [
        (
            "https://etcd1:2379,https://etcd2:2379,https://etcd3:2379",
            endpoints,
        ),
        ("https://etcd.example.com:2379", endpoints),
        ("https://etcd.example.org:2379", endpoints),
        ("/usr/local/bin/", bin),
        ("/usr/bin/dlock", &format!("{bin}dlock")),
        ("/usr/bin/mail-importer", &format!("{bin}mail-importer")),
        ("/usr/bin/nightly-report", &format!("{bin}nightly-report")),
        ("/usr/bin/scheduler", &format!("{bin}scheduler")),
        ("/srv/", &format!("{home}/srv/")),
        (
            "/var/lib/prometheus/node-exporter/",
            &format!("{home}/srv/"),
        ),
        ("/backup/", &format!("{home}/backup/")),
        (
            "/usr/share/dlock/",
            concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/"),
        ),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The script of an example, in a directory with all that it names.
pub(super) fn script(etcd: &Etcd, text: &str) -> Dlock {
    let dlock = Dlock::program(["bash", "-c", "cd \"$HOME\" && exec ./example"])
        .env("DLOCK_ENDPOINTS", etcd.endpoint())
        .env("ETCDCTL_ENDPOINTS", etcd.endpoint())
        .env("ETCDCTL_API", "3");
    let home = dlock.home().path().to_owned();
    furnish(&home);
    let text = adapted(text, &home, &etcd.endpoint());
    let shebang = if text.starts_with("#!") {
        ""
    } else {
        "#!/bin/bash\nset -e\n"
    };
    let path = dlock.home().write("example", &format!("{shebang}{text}"));
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    dlock.env("PATH", format!("{}/bin:{}", home.display(), search_path()))
}

const MAKEFILE: &str = include_str!("../../../Makefile");

/// `make TARGET` of the README: the target exists.
fn targets(block: &Block) {
    for line in block.text.lines() {
        let target = line.trim_start_matches("$ make ").split(' ').next();
        assert!(
            MAKEFILE.contains(&format!("\n{}:", target.expect("a target"))),
            "{line}"
        );
    }
}

/// `make dist-test` runs each of them, which takes too long for here.
fn ways_to_install(block: &Block) {
    let (install, dist) = (
        include_str!("../../install.sh"),
        include_str!("../../dist.sh"),
    );
    let tested = MAKEFILE.split("\ndist-test: ").nth(1).expect("the target");
    let tested = tested.split("\n\n").next().expect("its commands");
    for line in block.text.lines() {
        let command = line.split('#').next().unwrap_or_default();
        let mut words = command.split_whitespace();
        let found = match (words.next(), words.next()) {
            (Some("make"), Some("install")) => install.contains("make --silent install"),
            (Some("make"), Some(first)) => [first].into_iter().chain(words).all(|target| {
                MAKEFILE.contains(&format!("\n{target}: "))
                    && tested.contains(&format!("{target} "))
            }),
            (Some("cargo"), Some("install")) => {
                install.contains("install --quiet --locked --path .")
            }
            (Some("tar"), _) => {
                dist.contains("target/dist/dlock-") && dist.contains("--strip-components 1")
            }
            _ => false,
        };
        assert!(found, "{line}");
    }
}

/// In a directory of the test, not the machine's.
fn begun(block: &Block) {
    let directory = "--local=\"$HOME/locks\" ";
    let text = block.text.replace("$ ", "").replace("--local ", directory);
    let outcome = script(Etcd::shared(), &text).finish().expect_code(0);
    let count = block.text.matches("./backup.sh").count();
    assert_eq!(outcome.stdout.matches("backup.sh").count(), count);
}

/// The output of a busy lock and of `dlock ls`: the words, not the numbers, names and columns of this machine.
fn shown_while_busy(block: &Block) {
    let lines = block.text.lines();
    let commands: Vec<&str> = lines.filter_map(|line| line.strip_prefix("$ ")).collect();
    let commands = commands.join("\n");
    let text = format!(
        "printf '#!/bin/sh\\necho begun; read -r line <end\\n' >backup.sh\nmkfifo begun end\n\
         dlock run backup -- ./backup.sh >begun &\nread -r line <begun\n\
         exec 2>&1\nset +e\n{commands}\nset -e\necho >end\nwait\n"
    );
    let outcome = script(&Etcd::start(), &text).finish().expect_code(0);
    let words = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("$ "));
        let words = lines.flat_map(str::split_whitespace);
        // A number, a time, or a user and host.
        let special =
            |word: &&str| word.contains(['@']) || word.contains(|c: char| c.is_ascii_digit());
        words
            .filter(|word| !special(word))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(words(&outcome.stdout), words(&block.text), "{outcome:?}");
}

/// All clients of a lock agree on its cluster; here it is always the same one.
fn one_of_several_clusters(block: &Block) {
    let text = block
        .text
        .replace("etcd$((number % 3)).example.com", "$DLOCK_ENDPOINTS");
    let text = format!("name=nightly\n{text}echo $((number % 3))\n");
    let outcome = script(Etcd::shared(), &text).finish().expect_code(0);
    assert!(outcome.stdout.starts_with("job "), "{outcome:?}");
    assert!(outcome.stdout.trim_end().ends_with(['0', '1', '2']));
}

/// fencing.rs tests the recipes of `man/recipes`; beside them the page has only the calls of them, and the restore of
/// dlock-etcd(7).
fn recipe(block: &Block) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/recipes");
    let files = |directory: &Path| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(directory).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    };
    let is_recipe = files(&directory)
        .iter()
        .flat_map(|recipe| files(recipe))
        .any(|file| std::fs::read_to_string(file).expect("a text") == block.text);
    let around = ["dlock run report -- ./publish", "etcdutl snapshot restore"];
    assert!(
        is_recipe || around.iter().any(|begins| block.text.starts_with(begins)),
        "{block:?}"
    );
}

fn sent_away(block: &Block) {
    let etcd = Etcd::start();
    let mut holder = hold(Dlock::on(&etcd), &[], "deploy");
    let token = etcd.queue("deploy")[0].create_revision.to_string();
    assert!(block.text.contains("--token 4711"));
    // A user at a terminal is asked; here there is none.
    let text = block
        .text
        .replace("4711", &token)
        .replace("break deploy", "break --yes deploy");
    let outcome = script(&etcd, &text).finish().expect_code(0);
    assert!(outcome.stdout.contains(&token), "{outcome:?}");
    holder
        .wait()
        .expect_code(121)
        .expect_stderr(&["release freeze"]);
}

fn checked(block: &Block) {
    let text = format!("dlock run {} -c '{}'", unique("checked"), block.text.trim());
    let outcome = script(Etcd::shared(), &text).finish().expect_code(0);
    assert!(outcome.stdout.contains("point-of-no-return"), "{outcome:?}");
    let text = format!(
        "DLOCK_NAME=nobodys DLOCK_FENCING_TOKEN=1\nexport DLOCK_NAME DLOCK_FENCING_TOKEN\n{}",
        block.text
    );
    script(Etcd::shared(), &text)
        .finish()
        .expect_code(121)
        .expect_stdout("");
}

fn completions(block: &Block) {
    let text = format!(
        "mkdir -p ~/.local/share/bash-completion/completions ~/.zfunc ~/.config/fish/completions\n{}test -s {}",
        block.text,
        block.text.rsplit('>').next().expect("a file")
    );
    script(Etcd::shared(), &text)
        .finish()
        .expect_code(0)
        .expect_silent();
}

/// The version of etcd here may cause a warning: status 1, and no "fine".
fn examined(block: &Block) {
    let outcome = script(Etcd::shared(), &block.text).finish();
    assert!(matches!(outcome.code(), Some(0 | 1)), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
    assert!(!outcome.stdout.contains("null"), "{outcome:?}");
}

fn held_by_eval(block: &Block) {
    holds_lock(&format!("{}{HAS_LOCK}", block.text));
}

fn held_in_fish(block: &Block) {
    holds_lock(&format!("fish <<'END'\n{}{HAS_LOCK}END\n", block.text));
}

/// Prints the name of the lock, and fails if it is not held.
const HAS_LOCK: &str = "echo \"has $DLOCK_NAME\"\ndlock status --held db\n";

fn holds_lock(text: &str) {
    script(&Etcd::start(), text)
        .finish()
        .expect_code(0)
        .expect_stdout("has db\n");
}

fn held_by_coprocess(block: &Block) {
    let text = format!(
        "{}read -r line <&\"${{COPROC[0]}}\"\necho \"$line\"\ndlock status --held db\n\
         pid=$COPROC_PID\neval \"exec ${{COPROC[1]}}>&-\"\nwait \"$pid\"\n",
        block.text
    );
    let outcome = script(&Etcd::start(), &text).finish().expect_code(0);
    let said: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(said["name"], "db");
}

fn names_only(block: &Block) {
    let etcd = Etcd::start();
    let _holder = hold(Dlock::on(&etcd), &[], "one of them");
    script(&etcd, &block.text)
        .finish()
        .expect_code(0)
        .expect_stdout("one of them\n");
}

fn released(block: &Block) {
    leaves_no_entry(&format!(
        "h=$(dlock hold --background --pid $$ job) || exit\neval \"$h\"\n{}",
        block.text
    ));
}

fn released_in_fish(block: &Block) {
    leaves_no_entry(&format!(
        "fish <<'END'\nset h (dlock hold --background --pid $fish_pid job); or exit; eval $h\n{}END\n",
        block.text
    ));
}

fn leaves_no_entry(text: &str) {
    let etcd = Etcd::start();
    script(&etcd, text).finish().expect_code(0).expect_silent();
    assert!(etcd.queue("job").is_empty());
}

/// The group is the test's own.
fn shared_by_a_group(block: &Block) {
    let text = block.text.replace("-g staff", "-g \"$(id -g)\"");
    let outcome = script(Etcd::shared(), &text).finish().expect_code(0);
    assert!(outcome.stdout.contains("backup.sh"), "{outcome:?}");
}

fn runs_itself(block: &Block) {
    let text = format!("{}echo \"under $DLOCK_NAME\"\n", block.text);
    let outcome = script(&Etcd::start(), &text).finish().expect_code(0);
    assert_eq!(outcome.stdout, "under backup\n");
}

fn piped(block: &Block) {
    let text = format!("{}zcat /backup/shop.gz", block.text);
    let outcome = script(Etcd::shared(), &text).finish().expect_code(0);
    assert!(outcome.stdout.contains("pg_dump shop"), "{outcome:?}");
}

fn asked_what_happened(block: &Block) {
    let etcd = Etcd::start();
    let run = Dlock::on(&etcd).run(["backup", "sh", "-c", "exit 3"]);
    run.finish().expect_code(3);
    let listed = script(&etcd, &block.text).finish().expect_code(0);
    assert!(listed.stdout.contains("  exit 3  "), "{listed:?}");
}

fn asked_what_failed(block: &Block) {
    let etcd = Etcd::start();
    for status in ["0", "3"] {
        let command = ["-c", &format!("exit {status}")];
        Dlock::on(&etcd).run(["backup"]).args(command).finish();
    }
    let listed = script(&etcd, &block.text).finish().expect_code(0);
    assert_eq!(listed.stdout.lines().count(), 1, "{listed:?}");
    assert!(listed.stdout.contains(r#""result":"exit 3""#), "{listed:?}");
}

fn asked_whether_held(block: &Block) {
    let etcd = Etcd::start();
    let free = script(&etcd, &block.text).finish();
    assert_eq!((free.code(), &*free.stdout), (Some(1), ""));
    let _holder = hold(Dlock::on(&etcd), &[], "deploy");
    script(&etcd, &block.text)
        .finish()
        .expect_code(0)
        .expect_stdout("yes\n");
}

fn reports_a_busy_lock(block: &Block) {
    let etcd = Etcd::start();
    let outcome = script(&etcd, &block.text).finish().expect_code(0);
    assert!(outcome.stdout.ends_with("imported\n"), "{outcome:?}");
    let mut holder = hold_open(Dlock::on(&etcd), &[], "import");
    script(&etcd, &block.text)
        .finish()
        .expect_code(0)
        .expect_stdout("another host imports\n");
    holder.let_go();
}
