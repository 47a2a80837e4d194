//! The command that a user names: its look-up, its variables, and the error if it does not start.
//! It must not know under which lock it runs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::anyhow;

use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::guard::{self, Lookup};
use crate::output::exit::{Exit, Failure, OrFail as _};

/// Finds the command, before dlock enters the queue.
pub(super) fn find(argv: &[OsString]) -> Result<guard::Command, Failure> {
    let program = argv.first().map_or(OsStr::new(""), OsString::as_os_str);
    match guard::lookup(program) {
        Ok(path) => Ok(guard::Command {
            path,
            argv: argv.to_vec(),
        }),
        Err(Lookup::NotFound) => Err(Failure {
            exit: Exit::NotFound,
            hint: is_shell_string(program).then(|| {
                "dlock takes it for the name of a program: dlock run NAME -c STRING runs a shell command"
                    .to_owned()
            }),
            error: anyhow!("cannot run '{}': command not found", program.display()),
        }),
        Err(Lookup::NotExecutable(error)) => {
            Err(anyhow!("cannot run '{}': {error}", program.display())).or_exit(Exit::NotExecutable)
        }
        Err(Lookup::BadInterpreter(interpreter, error)) => {
            Err(bad_interpreter(program, &interpreter, &error))
        }
    }
}

/// Whether a word is more than the name of a program.
fn is_shell_string(word: &OsStr) -> bool {
    let special = b" \t\n;|&<>$`";
    word.as_bytes().iter().any(|byte| special.contains(byte))
}

fn bad_interpreter(program: &OsStr, interpreter: &OsStr, error: &io::Error) -> Failure {
    let (program, shown) = (program.display(), interpreter.display());
    let windows = interpreter.as_bytes().ends_with(b"\r");
    Failure {
        exit: Exit::NotExecutable,
        error: anyhow!("cannot run '{program}': its interpreter '{shown}': {error}"),
        hint: windows.then(|| {
            format!(
                "the lines of the file end as on Windows (CR LF): sed -i 's/\\r$//' '{program}'"
            )
        }),
    }
}

/// The failure of a command that was found but did not start.
pub(super) fn not_started(program: &OsStr, error: &io::Error) -> Failure {
    let kind = error.kind();
    // The kernel counts arguments and variables together (execve(2)).
    let too_long = kind == io::ErrorKind::ArgumentListTooLong;
    Failure {
        exit: match kind {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::NotExecutable,
        },
        error: anyhow!("cannot run '{}': {error}", program.display()),
        hint: too_long.then(|| {
            "the variables that dlock sets take some hundred bytes of the space for arguments: give the command fewer arguments".to_owned()
        }),
    }
}

/// The variables of a command under the lock `name`, with `more` of them.
pub(super) fn lock_variables(
    name: &LockName,
    token: FencingToken,
    more: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<(String, String)> {
    let always = [
        ("DLOCK_FENCING_TOKEN", token.to_string()),
        ("DLOCK_NAME", name.to_string()),
    ];
    let all = always.into_iter().chain(more);
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}
