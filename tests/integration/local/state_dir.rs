//! The state directory: its owner, its kind, and the files in it.
//! It must not know what the files are for.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

use super::State;
use crate::doctor::Diagnosis;
use crate::support::{Dlock, Outcome, as_root, as_user, may_trace};

/// A user without any privileges.
const NOBODY: u32 = 65534;

fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn mode(path: &str, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own");
}

fn mode_of(path: &str) -> u32 {
    fs::symlink_metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o7777
}

/// The words that start a dlock of a user that is not root.
fn nobody() -> Option<Vec<String>> {
    if am_root() {
        as_user(NOBODY, NOBODY)
    } else {
        Some(Vec::new())
    }
}

#[track_caller]
fn is_refused(state: &State, words: &[&str]) {
    let run = |words: &[&str]| state.dlock().args(words).finish();
    run(&["run", "job", "echo", "never"])
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(
            &[
                &["dlock: cannot use the state directory '", "hint: "],
                words,
            ]
            .concat(),
        );
    run(&["ls"]).expect_code(125).expect_stdout("");
}

/// "The directory must belong to root or to the user, must not be writable for everybody" (dlock-local(7))
#[test]
fn a_directory_that_others_can_change_is_refused() {
    let state = State::new();
    fs::create_dir(&state.path).expect("a new directory");
    for bits in [0o777, 0o1777, 0o702] {
        mode(&state.path, bits);
        is_refused(&state, &["every user may write to it", "chmod o-w"]);
    }
    mode(&state.path, 0o755);
    state.next_token();
    if as_root().is_none() {
        return;
    }
    chown(&state.path, Some(NOBODY), None).expect("root may");
    is_refused(
        &state,
        &[
            "it belongs to another user (uid 65534, we are 0)",
            "install -d",
        ],
    );
}

/// "Each directory above the state directory, and above each symbolic link that leads there, must belong to root or to the
/// user" (dlock-local(7)): a user that may rename one of them replaces all locks.
#[test]
fn a_directory_below_one_that_others_can_change_is_refused() {
    let mut state = State::new();
    let above = state.directory.file("above");
    fs::create_dir_all(format!("{above}/between")).expect("a new directory");
    state.path = format!("{above}/between/state");
    let because = |directory: &str| format!("other users can replace it, because of '{directory}'");
    let refused = |state: &State| is_refused(state, &[&because(&above)]);
    // Before the directory is made, and then.
    for _ in 0..2 {
        for bits in [0o777, 0o757] {
            mode(&above, bits);
            refused(&state);
        }
        mode(&above, 0o1777);
        state.run(&["job", "true"]).finish().expect_code(0);
    }
    mode(&above, 0o755);
    // A link that this user has made leads on, to directories that count like the others.
    let link = state.directory.file("link");
    symlink(&above, &link).expect("a link");
    let direct = std::mem::replace(&mut state.path, format!("{link}/../link/between/state"));
    state.run(&["job", "true"]).finish().expect_code(0);
    mode(&above, 0o777);
    refused(&state);
    mode(&above, 0o755);
    if as_root().is_none() {
        return;
    }
    // In a directory like /tmp, its owner can make the link lead elsewhere.
    lchown(&link, Some(NOBODY), None).expect("root may");
    state.run(&["job", "true"]).finish().expect_code(0);
    mode(
        state.directory.path().to_str().expect("a plain path"),
        0o1777,
    );
    is_refused(&state, &[&because(&link), "it belongs to user 65534"]);
    state.path = direct;
    state.run(&["job", "true"]).finish().expect_code(0);
    // A group may write there if it shares the locks.
    chown(&above, None, Some(4242)).expect("root may");
    mode(&above, 0o775);
    refused(&state);
    chown(&state.path, None, Some(4242)).expect("root may");
    mode(&state.path, 0o2770);
    state.run(&["other", "true"]).finish().expect_code(0);
    chown(&above, Some(NOBODY), None).expect("root may");
    refused(&state);
}

/// "No directory of a lock may be writable for everybody" (dlock-local(7)), nor belong to another user, unless a group
/// shares the state directory.
#[test]
fn a_lock_directory_that_others_can_change_is_refused() {
    let state = State::new();
    state.next_token();
    let lock = format!("{}/job", state.path);
    let because = format!("'{lock}' is not safe: ");
    for bits in [0o777, 0o1777, 0o702] {
        mode(&lock, bits);
        is_refused(&state, &[&because, "every user may write to it"]);
        assert_eq!(mode_of(&lock), bits);
    }
    // One that a process has left before it could set the mode.
    mode(&lock, 0o500);
    state.next_token();
    assert_eq!(mode_of(&lock), 0o700);
    if as_root().is_none() {
        return;
    }
    chown(&lock, Some(NOBODY), None).expect("root may");
    is_refused(&state, &[&because, "it belongs to user 65534"]);
    chown(&state.path, None, Some(4242)).expect("root may");
    mode(&state.path, 0o2770);
    state.run(&["job", "true"]).finish().expect_code(0);
    // It is no member of that group that may write there.
    chown(&lock, None, Some(4343)).expect("root may");
    mode(&lock, 0o770);
    is_refused(&state, &[&because, "group 4343 may write to it"]);
}

/// "neither it nor anything in it may be a symbolic link" (dlock-local(7))
#[test]
fn a_link_is_not_followed() {
    let state = State::new();
    let target = state.directory.file("target");
    fs::create_dir(&target).expect("a new directory");
    symlink(&target, &state.path).expect("a new link");
    is_refused(
        &state,
        &[
            "it is a symbolic link",
            "name the directory that it points to",
        ],
    );
    let slash = Dlock::nowhere().run([&format!("--local={}/", state.path), "job", "echo", "never"]);
    slash.finish().expect_code(125).expect_stdout("");
    fs::remove_file(&state.path).expect("our own link");
    fs::create_dir(&state.path).expect("a new directory");
    symlink(&target, format!("{}/job", state.path)).expect("a new link");
    let run = || state.run(&["job", "echo", "never"]).finish();
    run()
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(&["/job': it is a symbolic link"]);
    fs::remove_file(format!("{}/job", state.path)).expect("our own link");
    fs::create_dir(format!("{}/job", state.path)).expect("a new directory");
    let precious = state.directory.write("precious", "data");
    for file in ["token.lock", "token", "7", "7.2"] {
        let link = format!("{}/job/{file}", state.path);
        symlink(&precious, &link).expect("a new link");
        run()
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&[&link]);
        fs::remove_file(&link).expect("our own link");
    }
    // A link in place of a new file is removed, not followed.
    symlink(&precious, format!("{}/job/token.new", state.path)).expect("a new link");
    assert_eq!(state.next_token(), 1);
    assert_eq!(fs::read_to_string(precious).expect("still there"), "data");
    assert_eq!(fs::read_dir(target).expect("still there").count(), 0);
}

/// "A directory that cannot be written": reported, with a hint.
#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let Some(nobody) = nobody() else { return };
    let state = State::new();
    fs::create_dir(&state.path).expect("a new directory");
    mode(&state.path, 0o755);
    if !am_root() {
        mode(&state.path, 0o555);
    }
    let denied = |outcome: Outcome| {
        let words = [
            "dlock: cannot ",
            &*state.path,
            "Permission denied",
            "hint: --local=DIR names another directory",
        ];
        outcome
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&words);
    };
    denied(state.run(&["job", "echo", "never"]).under(&nobody).finish());
    let inside = format!("--local={}/new", state.path);
    denied(
        Dlock::nowhere()
            .run([&*inside, "job", "echo", "never"])
            .under(&nobody)
            .finish(),
    );
    mode(&state.path, 0o755);
    state.next_token();
    mode(&state.path, 0o700);
    if am_root() {
        denied(state.run(&["job", "echo", "never"]).under(&nobody).finish());
        state
            .dlock()
            .args(["ls"])
            .under(&nobody)
            .finish()
            .expect_code(125);
    }
    for path in ["/proc/nowhere", "/dev/null"] {
        let outcome = Dlock::nowhere()
            .run([&format!("--local={path}"), "job", "echo", "never"])
            .finish();
        outcome
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&[path]);
    }
}

/// "Files in it are for their owner, and for the group if the group may write to the directory" (dlock-local(7)), for
/// any umask: a process that can open a file could put a flock on it, and block everybody.
#[test]
fn new_files_are_for_users_that_may_write_to_the_directory() {
    for (bits, directory, file) in [
        (None, 0o700, 0o600),
        (Some(0o700), 0o700, 0o600),
        (Some(0o2770), 0o2770, 0o660),
        (Some(0o775), 0o770, 0o660),
        (Some(0o755), 0o700, 0o600),
    ] {
        for umask in ["000", "077"] {
            let state = State::new();
            if let Some(bits) = bits {
                fs::create_dir(&state.path).expect("a new directory");
                mode(&state.path, bits);
            }
            let look = "stat -c %a $DLOCK_LOCAL $DLOCK_LOCAL/job $DLOCK_LOCAL/job/1 $DLOCK_LOCAL/job/1.cooling.ready";
            let run = state
                .run(&["--min-hold=0.001", "job", "-c", look])
                .after(&format!("umask {umask}"));
            let outcome = run.finish().expect_code(0);
            let top = bits.unwrap_or(0o700);
            assert_eq!(
                outcome.stdout,
                format!("{top:o}\n{directory:o}\n{file:o}\n{file:o}\n"),
                "{bits:?} {umask}"
            );
            for name in ["token", "token.lock"] {
                assert_eq!(
                    mode_of(&format!("{}/job/{name}", state.path)),
                    file,
                    "{name} {bits:?} {umask}"
                );
            }
        }
    }
}

/// "Make a state directory that the users of a group share" (dlock-local(7)): the members of a group lock each other
/// out.
#[test]
fn a_group_shares_its_locks() {
    let (Some(()), Some(first), Some(second), Some(nobody)) = (
        as_root(),
        as_user(1001, 4242),
        as_user(1002, 4242),
        nobody(),
    ) else {
        return;
    };
    let state = State::new();
    mode(
        state.directory.path().to_str().expect("a plain path"),
        0o755,
    );
    fs::create_dir(&state.path).expect("a new directory");
    chown(&state.path, None, Some(4242)).expect("root may");
    mode(&state.path, 0o2770);
    let member = |uid: u32, words: &[&str]| {
        let member = if uid == 1001 { &first } else { &second };
        state.run(words).under(member)
    };
    let token = ["job", "printenv", "DLOCK_FENCING_TOKEN"];
    for (number, uid) in [1001, 1002, 1001, 1002].into_iter().enumerate() {
        let outcome = member(uid, &token).finish().expect_code(0).expect_silent();
        assert_eq!(outcome.stdout, format!("{}\n", number + 1));
    }
    let mut holder = member(1001, &["job", "-c", "echo on; exec sleep 600"]).start();
    holder.says("on");
    member(1002, &["-n", "job", "echo", "never"])
        .finish()
        .expect_code(75)
        .expect_stdout("");
    let mut waiter = member(1002, &token).start();
    state.queue_of(2);
    holder.signal(crate::support::Signal::TERM);
    waiter.wait().expect_code(0).expect_stdout("6\n");
    let stranger = state.run(&["job", "echo", "never"]).under(&nobody);
    stranger.finish().expect_code(125).expect_stdout("");
}

/// "Network file systems (NFS, SMB, AFS, Ceph, Lustre) are refused: a lock can vanish there while its command runs ...
/// and no process would notice" (dlock-local(7))
#[test]
fn a_network_file_system_is_refused() {
    if may_trace().is_none() {
        return;
    }
    let state = State::new();
    fs::create_dir(&state.path).expect("a new directory");
    for (number, name) in [("6969000000000000", "NFS"), ("424d53fe00000000", "SMB")] {
        let poke = format!("inject=fstatfs:poke_exit=@arg2={number}");
        let strace = [
            "strace",
            "-qqq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fstatfs",
            "-e",
            &poke,
        ];
        let run = state.run(&["job", "echo", "never"]).under(strace);
        run.finish().expect_code(125).expect_stdout("").expect_stderr(&[
            &format!("it is on {name}, where a lock can vanish unnoticed while its command runs"),
            "hint: --local=DIR names a directory on a disk of this machine; locks between machines are in etcd",
        ]);
    }
}

/// "dlock makes the state directory with permissions for its user alone" (dlock-local(7)), in `XDG_STATE_HOME` or
/// `~/.local/state`.
#[test]
fn every_user_has_a_state_directory() {
    let Some(nobody) = nobody() else { return };
    for (variable, directory) in [
        ("HOME", "home/.local/state/dlock"),
        ("XDG_STATE_HOME", "home/dlock"),
    ] {
        let state = State::new();
        let home = state.directory.file("home");
        fs::create_dir(&home).expect("a new directory");
        if am_root() {
            mode(
                state.directory.path().to_str().expect("a plain path"),
                0o755,
            );
            chown(&home, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        let run = Dlock::nowhere()
            .env(variable, &home)
            .run(["--local", "job", "echo", "in"]);
        run.under(&nobody)
            .finish()
            .expect_code(0)
            .expect_silent()
            .expect_stdout("in\n");
        let made = state.directory.file(directory);
        assert_eq!(mode_of(&made), 0o700);
        assert_eq!(mode_of(&format!("{made}/job/token")), 0o600);
    }
}

/// "dlock checks the locks of this machine ... the state directory" (dlock-doctor(1)): with the option or its variable,
/// and leaves nothing behind.
#[test]
fn the_doctor_checks_the_directory() {
    let state = State::new();
    let of = |dlock: Dlock| Diagnosis::of(dlock, &["--kill-after=1h"]);
    of(state.dlock()).says("state", &state.path, "ok", &["does not exist yet"]);
    assert!(fs::metadata(&state.path).is_err());
    state.run(&["job", "true"]).finish().expect_code(0);
    let option = format!("--local={}", state.path);
    let diagnosis = Diagnosis::of(Dlock::nowhere().env("DLOCK_TTL", "30"), &[&option]);
    diagnosis.says(
        "state",
        &state.path,
        "ok",
        &["1 lock so far", "on the disk after"],
    );
    diagnosis.is_fine(&["guard"]);
    assert_eq!(diagnosis.setting("local"), Some((&*state.path, "--local")));
    for check in ["endpoint", "clock", "scheduling"] {
        assert!(diagnosis.findings(check).is_empty(), "{check}");
    }
    assert_eq!(fs::read_dir(&state.path).expect("it").count(), 1);
    mode(&state.path, 0o777);
    let diagnosis = of(state.dlock());
    diagnosis.says(
        "state",
        &state.path,
        "unusable",
        &["every user may write to it"],
    );
    diagnosis.is_unusable();
    if am_root() {
        mode(&state.path, 0o700);
        let below = format!("{}/below", state.path);
        let Some(nobody) = nobody() else { return };
        let other = Dlock::nowhere().env("DLOCK_LOCAL", &below).under(&nobody);
        of(other).says("state", &below, "unusable", &["Permission denied"]);
    }
    state
        .dlock()
        .args(["doctor", "--ttl=10"])
        .finish()
        .expect_code(125)
        .expect_stderr(&["cannot use --ttl '10' for a local lock"]);
}
