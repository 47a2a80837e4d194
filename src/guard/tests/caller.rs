//! What the command and the caller's other processes notice of dlock: nothing.
//! It must not know how the tree ends.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::*;

/// Everything about itself that a command could notice.
const MIRROR: &str = r#"
    exec > "$OUT"
    # Of the shell itself: what it starts may find the mask cleared.
    while read -r line; do
        case $line in Sig[PBIC]*|ShdPnd*|NoNewPrivs*) echo "$line" ;; esac
    done < /proc/$$/status
    ls /proc/self/fd
    readlink /proc/self/cwd
    cut -d ' ' -f 5 /proc/self/stat
    env -u OUT
    umask
    ulimit -a
    nice
"#;

#[test]
fn the_command_finds_everything_as_it_would_without_dlock() {
    /// An odd caller.
    fn odd(command: &mut std::process::Command) {
        let arrange = || {
            for signal in [libc::SIGHUP, libc::SIGPIPE, libc::SIGCHLD, libc::SIGTTOU] {
                signals::set_ignored(signal, true);
            }
            signals::set_mask(signals::set_of(libc::SIGUSR2) | signals::set_of(50));
            // SAFETY: this process is about to exec; 0 is closed for the command, 9 is passed on.
            unsafe {
                libc::dup2(2, 9);
                libc::close(0);
                libc::umask(0o27);
            }
            Ok(())
        };
        // SAFETY: everything in it is async-signal-safe.
        unsafe { command.pre_exec(arrange) };
        command.env("LAST", "caller");
    }
    alone_after(
        |again| {
            let scratch = again
                .get_envs()
                .find(|(name, _)| *name == ALONE)
                .unwrap()
                .1
                .unwrap()
                .to_owned();
            let mut plain = std::process::Command::new("/bin/sh");
            plain
                .args(["-c", MIRROR])
                .env(ALONE, &scratch)
                .env("OUT", PathBuf::from(&scratch).join("plain"));
            odd(&mut plain);
            assert!(plain.status().unwrap().success());
            odd(again);
        },
        |scratch| {
            assert!(
                inherited::ignored_at_start(libc::SIGHUP)
                    && !inherited::ignored_at_start(libc::SIGINT)
            );
            let mut guard = launch(shell(MIRROR), PATIENT).unwrap();
            let out = scratch.0.join("guarded").to_str().unwrap().to_owned();
            guard.start(&[("OUT".to_owned(), out)], far()).unwrap();
            assert_eq!(next(&mut guard), Report::Started);
            assert_eq!(next(&mut guard), ended(Status::Exited(0), Cause::Command));
            let [plain, guarded] =
                ["plain", "guarded"].map(|file| fs::read_to_string(scratch.0.join(file)).unwrap());
            assert!(plain.lines().count() > 30, "{plain}");
            assert_eq!(plain, guarded);
        },
    );
}

#[test]
fn who_reads_from_the_command_sees_the_end_when_the_command_is_done() {
    alone(|scratch| {
        let fifo = scratch.0.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        // Two descriptors that the caller passes on; this one is not.
        let writer = fs::File::options()
            .read(true)
            .write(true)
            .open(&fifo)
            .unwrap();
        dup2_stdout(&writer).unwrap();
        // SAFETY: nothing of this process uses number 9.
        unsafe { libc::dup2(writer.as_raw_fd(), 9) };
        drop(writer);
        let _guard = scratch.start(r#"exec >&- 9>&-; echo > "$DIR/up"; sleep 1000"#, PATIENT);
        scratch.line("up");
        let reader =
            rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        eventually(|| rustix::io::read(&reader, &mut [0]) == Ok(0));
    });
}

#[test]
fn a_script_that_names_no_interpreter_is_run_by_the_shell() {
    alone(|scratch| {
        let path = scratch.0.join("script");
        fs::write(&path, "echo \"$# $1 $DIR\" > \"$2\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let argv = vec![
            "as typed".into(),
            "a b".into(),
            scratch.0.join("said").into(),
        ];
        let mut guard = launch(Command { path, argv }, PATIENT).unwrap();
        guard
            .start(&[("DIR".to_owned(), "ours".to_owned())], far())
            .unwrap();
        assert_eq!(next(&mut guard), Report::Started);
        assert_eq!(next(&mut guard), ended(Status::Exited(0), Cause::Command));
        assert_eq!(scratch.line("said"), "2 a b ours");
    });
}
