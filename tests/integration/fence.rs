//! `dlock fence`, the store's side: which token is accepted, one command at a time, and the command's environment.
//! It must not know what happens when it is killed or its disk fails; `fence/crashes.rs` does.

mod crashes;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use crate::support::{
    Dlock, Etcd, LIMIT, Outcome, Running, Scratch, Signal, alive, dlock_program, eventually, unique,
};

/// A fence's file in a directory of its own.
struct Fence {
    directory: Scratch,
    file: String,
}

impl Fence {
    fn new() -> Self {
        let directory = Scratch::new();
        let file = directory.file("fence");
        Self { directory, file }
    }

    fn with(text: &str) -> Self {
        let fence = Self::new();
        fs::write(&fence.file, text).expect("the directory takes a file");
        fence
    }

    /// A dlock with this token of the lock `job`.
    fn token(&self, token: u32) -> Dlock {
        self.dlock(&["--name=job", &format!("--token={token}")])
    }

    fn dlock(&self, words: &[&str]) -> Dlock {
        Dlock::nowhere().args(["fence", &self.file]).args(words)
    }

    /// The highest token of `job` in the file.
    #[track_caller]
    fn highest(&self) -> u32 {
        let outcome = self.dlock(&["--peek", "--name=job"]).finish();
        let outcome = outcome.expect_code(0).expect_silent();
        outcome.stdout.trim_end().parse().expect("a number")
    }

    fn text(&self) -> String {
        self.directory.read("fence")
    }

    /// All names in the directory.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).expect("our own directory");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).into_string().expect("a plain name"))
            .collect();
        names.sort();
        names
    }
}

/// It is refused as stale: the message names both tokens.
#[track_caller]
fn is_late(outcome: Outcome, token: u32, seen: u32) {
    let (token, seen) = (format!("token {token} "), format!("token {seen}\n"));
    outcome
        .expect_code(121)
        .expect_stdout("")
        .expect_stderr(&["dlock: ", "'job'", &token, &seen, "hint: "]);
}

/// "If the token is lower than that of its lock, dlock refuses it: the exit status is 121, the message names both
/// tokens, and nothing changes. Otherwise dlock records the token and runs COMMAND" (dlock-fence(1))
#[test]
fn a_lower_token_is_refused_and_any_other_is_accepted() {
    let fence = Fence::new();
    for token in [33, 34, 34, 1207] {
        fence
            .token(token)
            .args(["--", "echo", "written"])
            .finish()
            .expect_code(0)
            .expect_silent()
            .expect_stdout("written\n");
    }
    let before = fence.text();
    is_late(fence.token(1206).args(["echo", "x"]).finish(), 1206, 1207);
    is_late(fence.token(34).finish(), 34, 1207);
    assert_eq!(fence.text(), before);
    assert_eq!(before, "dlock-fence 1\njob 1207\nend\n");
}

/// "FILE contains the highest token seen of each lock" (dlock-fence(1)): each has its own.
#[test]
fn every_lock_has_its_own_token() {
    let fence = Fence::new();
    fence.token(9).finish().expect_code(0);
    for name in ["job/nightly", "näme", "a b", "-x", "end", "100%"] {
        let name = format!("--name={name}");
        fence
            .dlock(&[&name, "--token=5"])
            .finish()
            .expect_code(0)
            .expect_silent();
        let late = fence.dlock(&[&name, "--token=4"]).finish();
        late.expect_code(121);
    }
    let all = fence.dlock(&["--peek"]).finish().expect_code(0);
    assert_eq!(
        all.stdout,
        "-x 5\n100%25 5\na%20b 5\nend 5\njob 9\njob%2Fnightly 5\nn%C3%A4me 5\n"
    );
}

/// "Without COMMAND dlock checks and records the token, and the exit status is 0" (dlock-fence(1))
#[test]
fn without_a_command_the_token_is_recorded() {
    let fence = Fence::new();
    let outcome = fence.token(7).finish();
    outcome.expect_code(0).expect_silent().expect_stdout("");
    assert_eq!(fence.highest(), 7);
}

/// "The defaults of --token and --name; dlock-run(1) sets them for its command" (dlock-fence(1))
#[test]
fn inside_dlock_run_fence_uses_its_token() {
    let (fence, etcd, name) = (Fence::new(), Etcd::shared(), unique("fenced"));
    let script = "echo $DLOCK_FENCING_TOKEN $DLOCK_NAME";
    let line = [dlock_program(), "fence", &fence.file, "sh", "-c", script];
    let run = || Dlock::on(etcd).run([&name, "--"]).args(line).finish();
    let (first, second) = (run(), run());
    for outcome in [&first, &second] {
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        assert_eq!(outcome.stderr, "");
    }
    assert!(first.stdout.ends_with(&format!(" {name}\n")), "{first:?}");
    // The flags take precedence, and the command gets the accepted values.
    let outcome = fence
        .dlock(&["--name=a b", "--token=5", "sh", "-c", script])
        .env("DLOCK_NAME", "other")
        .env("DLOCK_FENCING_TOKEN", "99")
        .finish();
    outcome.expect_code(0).expect_stdout("5 a b\n");
    let seen = fence.dlock(&["--peek"]).finish().stdout;
    assert_eq!(
        seen,
        format!(
            "a%20b 5\n{name} {}\n",
            second.stdout.split(' ').next().unwrap()
        )
    );
}

/// "125: dlock itself failed: usage"; "127: the command was not found; nothing was recorded".
#[test]
fn nonsense_arguments_are_refused_and_nothing_is_recorded() {
    let fence = Fence::new();
    for (words, code, named) in [
        (&["--name=job"][..], 125, "DLOCK_FENCING_TOKEN"),
        (&["--token=5"], 125, "DLOCK_NAME"),
        (&["--name=job", "--token=0"], 125, "'0'"),
        (&["--name=job", "--token=-5"], 125, "'-5'"),
        (&["--name=job", "--token=07"], 125, "'07'"),
        (
            &["--name=job", "--token=9223372036854775808"],
            125,
            "9223372036854775808",
        ),
        (&["--name=", "--token=5"], 125, "empty"),
        (&["--name=job", "--reset=-1"], 125, "'-1'"),
        (&["--reset=3"], 125, "DLOCK_NAME"),
        (&["--peek", "--reset=3"], 125, "--reset"),
        (&["--peek", "--token=3"], 125, "--token"),
        (&["--peek", "true"], 125, "COMMAND"),
        (&["--reset=3", "true"], 125, "COMMAND"),
        (
            &["--name=job", "--token=5", "no-such-program"],
            127,
            "no-such-program",
        ),
        (&["--name=job", "--token=5", "/dev/null"], 126, "/dev/null"),
        (&["--name=job", "--token=5", ""], 127, "''"),
    ] {
        let outcome = fence.dlock(words).finish();
        assert_eq!(outcome.code(), Some(code), "{words:?}: {outcome:?}");
        outcome.expect_stderr(&["dlock: ", named]).expect_stdout("");
        assert!(fence.files().is_empty(), "{words:?}: {:?}", fence.files());
    }
}

/// "dlock ... becomes the command: same process, same signals, and the command's exit status is its own"
/// (dlock-fence(1))
#[test]
fn the_command_replaces_dlock() {
    let fence = Fence::new();
    let shell = |script: &str| fence.token(1).args(["sh", "-c", script]);
    shell("exit 7").finish().expect_code(7);
    shell("kill -9 $$").finish().expect_signal(Signal::KILL);
    let script = fence.directory.write("script", "echo \"$0 $1\"\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our own file");
    let outcome = fence.token(1).args([&script, "one"]).finish();
    outcome
        .expect_code(0)
        .expect_stdout(&format!("{script} one\n"));

    let mut running =
        shell("trap 'echo told; exit 3' TERM; echo on $$; while :; do sleep 0.05; done").start();
    running.says(&format!("on {}\n", running.process().0));
    running.signal(Signal::TERM);
    let outcome = running.wait().expect_code(3);
    assert!(outcome.stdout.ends_with("told\n"), "{outcome:?}");

    let mut cat = fence.token(1).args(["cat"]).stdin(Stdio::piped()).start();
    cat.type_in("one\n");
    drop(cat.take_stdin());
    cat.wait().expect_code(0).expect_stdout("one\n");
}

/// The command has the signals ignored and blocked, the descriptors and the limits that it would have without dlock.
#[test]
fn the_command_gets_what_the_caller_had() {
    let fence = Fence::new();
    let look = "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; \
        for fd in 0 1 2; do [ -e /proc/self/fd/$fd ] && echo $fd; done; ulimit -a; umask; pwd";
    for setup in [
        "trap '' PIPE HUP",
        "trap - PIPE; exec <&-",
        "trap '' INT; ulimit -n 77; umask 027",
    ] {
        let bare = Dlock::program(["sh", "-c", look]).after(setup).finish();
        let under = fence
            .token(1)
            .args(["sh", "-c", look])
            .after(setup)
            .finish();
        assert!(bare.stdout.contains("SigIgn"), "{bare:?}");
        assert_eq!(under.stdout, bare.stdout, "{setup}");
    }
    let pipe = fence
        .token(1)
        .args(["sh", "-c", "kill -PIPE $$; echo lived"]);
    pipe.after("trap '' PIPE")
        .finish()
        .expect_code(0)
        .expect_stdout("lived\n");
    let pipe = fence
        .token(1)
        .args(["sh", "-c", "kill -PIPE $$; echo lived"]);
    pipe.finish().expect_signal(Signal::PIPE);
}

/// A command that is accepted with `token`, reports that, and stays until it is ordered to end.
fn visitor(fence: &Fence, token: u32) -> Running {
    let script = "echo in; echo $DLOCK_FENCING_TOKEN >>visits; read -r go; echo $DLOCK_FENCING_TOKEN out >>visits";
    let setup = format!("cd {}", fence.directory.path().display());
    let visitor = fence.token(token).args(["sh", "-c", script]);
    visitor.after(&setup).stdin(Stdio::piped()).start()
}

/// Waits until the process waits for a lock.
#[track_caller]
fn waits(running: &mut Running) {
    let process = running.process().0.to_string();
    eventually(LIMIT, "it waits for the lock", || {
        assert!(!running.is_over(), "it did not wait: {}", running.stderr());
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's list");
        locks.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.len() > 5 && words[1..3] == ["->", "FLOCK"] && words[5] == process
        })
    });
}

/// "A caller whose token is not lower waits until the command has ended, so an older writer that was admitted ends
/// before a newer one starts" (dlock-fence(1)); "A lower token is refused at once, even during that time"
/// (dlock-fence(1))
#[test]
fn an_older_writer_that_has_the_lock_ends_first() {
    let fence = Fence::new();
    let mut older = visitor(&fence, 33);
    older.says("in\n");
    let mut newer = visitor(&fence, 34);
    waits(&mut newer);
    is_late(fence.token(32).finish(), 32, 33);
    assert_eq!(fence.highest(), 33);
    older.type_in("go\n");
    newer.says("in\n");
    is_late(fence.token(33).finish(), 33, 34);
    newer.type_in("go\n");
    older.wait().expect_code(0);
    newer.wait().expect_code(0);
    assert_eq!(fence.directory.read("visits"), "33\n33 out\n34\n34 out\n");
}

/// The token of a writer that waited is checked again.
#[test]
fn a_writer_that_waited_too_long_is_refused() {
    let fence = Fence::new();
    let mut first = visitor(&fence, 1);
    first.says("in\n");
    let mut late = visitor(&fence, 2);
    waits(&mut late);
    // Writes the file directly, as if another writer had been faster.
    fence
        .directory
        .write("fence", "dlock-fence 1\njob 3\nend\n");
    first.type_in("go\n");
    is_late(late.wait(), 2, 3);
}

/// "It says what it waits for on a terminal or with -v"
#[test]
fn a_wait_is_reported() {
    let fence = Fence::new();
    let mut first = visitor(&fence, 1);
    first.says("in\n");
    let mut second = fence.token(2).args(["-v", "true"]).start();
    eventually(LIMIT, "it says so", || {
        second.stderr().contains("waiting for")
    });
    first.type_in("go\n");
    second.wait().expect_code(0).expect_stderr(&[&fence.file]);
}

/// "It lasts until the last process that has the descriptor ends, including processes that the command leaves in the
/// background" (dlock-fence(1))
#[test]
fn a_killed_command_keeps_the_lock_as_long_as_its_child_lives() {
    let fence = Fence::new();
    // Descriptors of its own do not close the lock's.
    let script = "exec 3>&1 4>&1 9>&1; exec 3>&- 4>&- 9>&-; sleep 600 & echo in; wait";
    let mut first = fence.token(1).args(["sh", "-c", script]).start();
    first.says("in\n");
    let child = first.process().children()[0];
    first.signal(Signal::KILL);
    first.wait().expect_signal(Signal::KILL);
    let mut second = fence.token(2).args(["true"]).start();
    waits(&mut second);
    assert!(alive(child));
    child.signal(Signal::KILL);
    second.wait().expect_code(0);
}

/// A signal ends dlock while it waits, and the other waiters still get the lock.
#[test]
fn a_waiter_can_be_ended() {
    let fence = Fence::new();
    let mut first = visitor(&fence, 1);
    first.says("in\n");
    let (mut second, mut third) = (visitor(&fence, 2), visitor(&fence, 3));
    waits(&mut second);
    waits(&mut third);
    second.signal(Signal::STOP);
    second.signal(Signal::CONT);
    waits(&mut second);
    second.signal(Signal::TERM);
    second.wait().expect_signal(Signal::TERM);
    first.type_in("go\n");
    third.says("in\n");
    assert_eq!(fence.highest(), 3);
}

/// If the lock's file is removed, two waiters for it still do not get in at once.
#[test]
fn a_removed_lock_file_is_noticed_by_waiters() {
    let fence = Fence::new();
    let mut first = visitor(&fence, 1);
    first.says("in\n");
    let mut second = visitor(&fence, 2);
    waits(&mut second);
    fs::remove_file(fence.directory.file("fence.lock")).expect("it is there");
    let mut third = visitor(&fence, 3);
    third.says("in\n");
    first.type_in("go\n");
    first.wait().expect_code(0);
    waits(&mut second);
    third.type_in("go\n");
    is_late(second.wait(), 2, 3);
}

/// Many at once: each is accepted alone, no number falls, and a reader always reads a whole file.
#[test]
fn concurrent_callers_run_one_at_a_time_and_the_number_never_falls() {
    let fence = Fence::new();
    let log = fence.directory.file("log");
    let script = format!(
        "echo in $DLOCK_FENCING_TOKEN >>{log}; sleep 0.01; echo out $DLOCK_FENCING_TOKEN >>{log}"
    );
    // Every token twice, in a scattered order.
    let tokens: Vec<u32> = (0..30).map(|number| 1 + number * 7 % 15).collect();
    let mut callers: Vec<Running> = tokens
        .iter()
        .map(|token| fence.token(*token).args(["sh", "-c", &script]).start())
        .collect();
    let mut before = 0;
    while callers.iter_mut().any(|caller| !caller.is_over()) {
        let text = fence.text();
        if !text.is_empty() {
            let line = text.strip_prefix("dlock-fence 1\njob ").expect(&text);
            let token: u32 = line
                .strip_suffix("\nend\n")
                .expect(&text)
                .parse()
                .expect(&text);
            assert!(before <= token, "{before} became {token}");
            before = token;
        }
    }
    let codes: Vec<Option<i32>> = callers
        .iter_mut()
        .map(|caller| caller.wait().code())
        .collect();
    assert!(
        codes.iter().all(|code| [Some(0), Some(121)].contains(code)),
        "{codes:?}"
    );
    let log = fs::read_to_string(log).expect("a log");
    let lines: Vec<&str> = log.lines().collect();
    let let_in: Vec<u32> = lines
        .chunks(2)
        .map(|pair| {
            let token = pair[0].strip_prefix("in ").expect(&log);
            assert_eq!(pair[1], format!("out {token}"), "{log}");
            token.parse().expect(&log)
        })
        .collect();
    assert!(let_in.is_sorted(), "{let_in:?}");
    assert_eq!(
        let_in.len(),
        codes.iter().filter(|code| **code == Some(0)).count()
    );
    assert_eq!((let_in.last(), fence.highest()), (Some(&15), 15));
    assert_eq!(fence.files(), ["fence", "fence.lock", "log"]);
}

/// "--peek: print the highest token seen, and change nothing"
#[test]
fn peek_prints_and_changes_nothing() {
    let fence = Fence::new();
    assert_eq!(fence.highest(), 0);
    fence
        .dlock(&["--peek"])
        .finish()
        .expect_code(0)
        .expect_stdout("");
    assert!(fence.files().is_empty());
    fence.token(12).finish().expect_code(0);
    let mut inside = visitor(&fence, 13);
    inside.says("in\n");
    // Without waiting.
    assert_eq!(fence.highest(), 13);
    let inner = fence.dlock(&["--peek"]).env("DLOCK_NAME", "other").finish();
    inner.expect_code(0).expect_stdout("0\n");
    let full = fs::File::create("/dev/full").expect("a device");
    let outcome = fence.dlock(&["--peek"]).stdout(full).finish();
    outcome.expect_code(125).expect_stderr(&["cannot print"]);
}

/// "--reset sets the number of one lock lower" (dlock-fence(1)), and says what that means.
#[test]
fn a_reset_allows_lower_tokens_again() {
    let fence = Fence::new();
    fence.token(120).finish().expect_code(0);
    fence
        .dlock(&["--name=other", "--token=5"])
        .finish()
        .expect_code(0);
    is_late(fence.token(14).finish(), 14, 120);
    let reset = |number: &str| fence.dlock(&["--name=job", "--reset", number]).finish();
    reset("7")
        .expect_code(0)
        .expect_stderr(&["'job'", " 7 ", " 120: ", "restored"]);
    is_late(fence.token(6).finish(), 6, 7);
    fence.token(14).finish().expect_code(0);
    reset("20").expect_code(0).expect_silent();
    is_late(fence.token(19).finish(), 19, 20);
    reset("0").expect_code(0);
    assert_eq!(fence.text(), "dlock-fence 1\njob 0\nother 5\nend\n");
    // It waits for the command that holds the lock.
    let mut inside = visitor(&fence, 3);
    inside.says("in\n");
    let mut waiting = fence.dlock(&["--name=job", "--reset=1"]).start();
    waits(&mut waiting);
    inside.type_in("go\n");
    waiting.wait().expect_code(0);
    assert_eq!(fence.highest(), 1);
}

/// "A file that dlock did not write, or whose content it does not understand, is refused with status 125 and left as it
/// is" (dlock-fence(1))
#[test]
fn a_foreign_or_damaged_file_is_refused_and_left_as_it_is() {
    for (text, named) in [
        ("", "not a file of dlock fence"),
        ("precious\n", "not a file of dlock fence"),
        ("dlock-fence 2\nend\n", "version 2"),
        ("dlock-fence 1\njob 5\n", "cut"),
        ("dlock-fence 1\njob 5\nother 1", "cut"),
        ("dlock-fence 1\njob 5\nother x\nend\n", "line 3"),
        ("dlock-fence 1\njob 5\njob 6\nend\n", "line 3"),
    ] {
        let fence = Fence::with(text);
        for words in [
            &["--name=job", "--token=9", "echo", "x"][..],
            &["--peek"],
            &["--name=job", "--reset=3"],
        ] {
            let outcome = fence.dlock(words).finish();
            outcome.expect_code(125).expect_stdout("").expect_stderr(&[
                &fence.file,
                named,
                "hint: ",
            ]);
        }
        assert_eq!(fence.text(), text);
        assert_eq!(fence.files(), ["fence"]);
    }
}

/// "A symbolic link is refused as well" (dlock-fence(1)), and anything else that is no plain file.
#[test]
fn a_path_that_is_no_plain_file_is_refused() {
    let fence = Fence::new();
    let directory = &fence.directory;
    fence.token(33).finish().expect_code(0);
    symlink(&fence.file, directory.file("link")).expect("a link");
    symlink(directory.file("nothing"), directory.file("dangling")).expect("a link");
    fs::create_dir(directory.file("directory")).expect("a directory");
    Dlock::program(["mkfifo", &directory.file("pipe")])
        .finish()
        .expect_code(0);
    let before = fence.files();
    for (name, named) in [
        (directory.file("link"), "symbolic link"),
        (directory.file("dangling"), "symbolic link"),
        (directory.file("directory"), "directory"),
        (directory.file("pipe"), "not a plain file"),
        ("/dev/null".to_owned(), "not a plain file"),
        ("/".to_owned(), "names no file"),
        ("..".to_owned(), "names no file"),
        (directory.file("no/such/file"), "no/such"),
        (directory.file("fence/below"), "fence"),
        (directory.file(&"x".repeat(300)), "too long"),
    ] {
        let line = ["fence", &name, "--name=job", "--token=40", "echo", "x"];
        let outcome = Dlock::nowhere().args(line).finish();
        outcome
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&["dlock: ", named]);
    }
    assert_eq!(fence.files(), before);
    assert_eq!(fence.highest(), 33);
}

/// A path may be relative, and lead through links; the file may have any name.
#[test]
fn the_file_may_be_named_in_any_way() {
    let fence = Fence::new();
    symlink(fence.directory.path(), fence.directory.file("way")).expect("a link");
    let setup = format!("cd {}", fence.directory.path().display());
    for name in [
        "plain",
        "./here",
        "way/there",
        "-dash",
        "with blank",
        "tail/",
    ] {
        let outcome = Dlock::nowhere()
            .args(["fence", "--name=job", "--token=3", "--", name])
            .after(&setup)
            .finish();
        outcome.expect_code(0).expect_silent();
    }
    for name in ["plain", "here", "there", "-dash", "with blank", "tail"] {
        assert_eq!(
            fence.directory.read(name),
            "dlock-fence 1\njob 3\nend\n",
            "{name}"
        );
    }
}

/// "dlock makes these files with the permissions that the umask leaves, and a replaced FILE keeps its own ... Only
/// users who may write FILE may open FILE.lock" (dlock-fence(1))
#[test]
fn the_permissions_of_the_file_stay() {
    let fence = Fence::new();
    let mode = |name: &str| {
        let status = fs::metadata(fence.directory.file(name)).expect("it is there");
        status.permissions().mode() & 0o7777
    };
    fence.token(1).after("umask 027").finish().expect_code(0);
    assert_eq!((mode("fence"), mode("fence.lock")), (0o640, 0o600));
    fs::set_permissions(&fence.file, fs::Permissions::from_mode(0o664)).expect("our own file");
    fence.token(2).after("umask 077").finish().expect_code(0);
    assert_eq!((mode("fence"), fence.highest()), (0o664, 2));
    assert_eq!(mode("fence.lock"), 0o660);
}
