//! Finds the command and starts it as if dlock were not there.
//! It must not know how long the command may run.
#![expect(unsafe_code, reason = "fork and exec")]

use std::borrow::Cow;
use std::env;
use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;

use rustix::fs::{Access, CWD, FileType, Mode, OFlags, open, stat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use super::Command;
use crate::core::secrets::without_password;
use crate::sys::access::check_access;
use crate::sys::environment;
use crate::sys::inherited;
use crate::sys::process::fork;

/// Search path without PATH: glibc's `confstr(_CS_PATH)`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// The interpreter of a script without `#!`, as with `execvp(3)`.
const SHELL: &CStr = c"/bin/sh";

/// Variables in which systemd(1) names the process that it started, for the watchdog (`sd_watchdog_enabled(3)`) and for sockets
/// (`sd_listen_fds(3)`). A process ignores what is meant for another one.
const ADDRESSED: [&[u8]; 2] = [b"WATCHDOG_PID=", b"LISTEN_PID="];
/// The same process by the inode of its pidfd, beside `LISTEN_PID`.
const ADDRESSED_INODE: &[u8] = b"LISTEN_PIDFDID=";
/// Length of the longest process id, with the zero byte at its end.
const PID_LENGTH: usize = "2147483647\0".len();

/// Length of the beginning of a script that the kernel reads, `BINPRM_BUF_SIZE`.
const SCRIPT_BYTES: usize = 256;

/// The reason why a command cannot be run.
#[derive(Debug)]
pub(crate) enum Lookup {
    NotFound,
    NotExecutable(io::Error),
    /// The file is a script, and its interpreter cannot be run.
    BadInterpreter(OsString, io::Error),
}

/// The file that `execvp(3)` would run for `program`.
pub(crate) fn lookup(program: &OsStr) -> Result<PathBuf, Lookup> {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let found = lookup_in(program, &path)?;
    if let Some(interpreter) = interpreter(&found)
        && let Err(error) = executable(Path::new(&interpreter))
    {
        return Err(Lookup::BadInterpreter(interpreter, error.into()));
    }
    Ok(found)
}

/// The interpreter of a script, as execve(2) reads it from the first line.
fn interpreter(path: &Path) -> Option<OsString> {
    let mut begin = [0; SCRIPT_BYTES];
    // A pipe must not block.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).ok()?;
    let length = rustix::io::read(file, &mut begin).ok()?;
    let line = begin.get(..length)?.strip_prefix(b"#!")?;
    let line = line.split(|&byte| byte == b'\n').next()?;
    let is_blank = |byte: &u8| [b' ', b'\t', 0].contains(byte);
    let mut words = line.split(is_blank).filter(|word| !word.is_empty());
    words.next().map(|word| OsStr::from_bytes(word).to_owned())
}

fn lookup_in(program: &OsStr, path: &OsStr) -> Result<PathBuf, Lookup> {
    if program.is_empty() {
        return Err(Lookup::NotFound);
    }
    if program.as_bytes().contains(&b'/') {
        let path = PathBuf::from(program);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT) => Err(Lookup::NotFound),
            Err(error) => Err(Lookup::NotExecutable(error.into())),
        };
    }
    let mut failure = Lookup::NotFound;
    for directory in env::split_paths(path) {
        // An empty entry is the working directory; joined to it, the name stays bare, as exec expects it.
        let path = directory.join(program);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(error @ (Errno::ACCESS | Errno::ISDIR)) => {
                failure = Lookup::NotExecutable(error.into());
            }
            Err(_) => {}
        }
    }
    Err(failure)
}

fn executable(path: &Path) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(stat(path)?.st_mode);
    match check_access(CWD, path, Access::EXEC_OK) {
        Ok(()) if kind == FileType::Directory => Err(Errno::ISDIR),
        // The kernel refuses to tell: execve(2) will.
        Err(Errno::PERM | Errno::NOSYS) => Ok(()),
        checked => checked,
    }
}

/// A command in the form that exec takes.
pub(super) struct Program {
    path: CString,
    argv: Vec<CString>,
    /// Variables that the command does not get.
    cleared: Vec<String>,
    /// The process that the caller has started: dlock.
    addressee: Pid,
}

/// A command that has been forked.
pub(super) struct Launched {
    pub(super) pid: Pid,
    /// At its end once the command runs; [`failure`] reads from it.
    pub(super) outcome: OwnedFd,
}

impl Program {
    pub(super) fn new(command: Command, cleared: &[String]) -> io::Result<Self> {
        let path = CString::new(command.path.into_os_string().into_vec())?;
        let argv = command
            .argv
            .into_iter()
            .map(|argument| CString::new(argument.into_vec()));
        Ok(Self {
            path,
            argv: argv.collect::<Result<_, _>>()?,
            cleared: cleared.to_vec(),
            addressee: getpid(),
        })
    }

    /// Forks and execs in the child, which stays in this process group, dies with this process, and else finds everything
    /// as the caller had it. Must be called in a process with one thread, with whose end the child dies.
    pub(super) fn start(&self, variables: &[(String, String)]) -> io::Result<Launched> {
        // Everything that allocates happens before the fork.
        let mut environment = environment(variables, &self.cleared)?;
        let mut addresses = readdressed(&mut environment, self.addressee);
        let image = self.image(&environment, &mut addresses);
        let (outcome, report) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let parent = getpid();
        // SAFETY: the child calls only functions that are async-signal-safe, and never returns.
        let Some(pid) = (unsafe { fork() })? else {
            let error = image.setup_and_exec(parent);
            // If the parent is gone, no other process reads this.
            let _ = rustix::io::write(&report, &error.raw_os_error().to_ne_bytes());
            // SAFETY: ends the process, and runs nothing of the parent's.
            unsafe { libc::_exit(127) }
        };
        Ok(Launched { pid, outcome })
    }

    fn image<'a>(
        &'a self,
        environment: &'a [Cow<'static, CStr>],
        addresses: &'a mut [Address],
    ) -> ExecImage<'a> {
        let arguments = self.argv.iter().map(CString::as_c_str);
        let script = [SHELL, &self.path]
            .into_iter()
            .chain(arguments.clone().skip(1));
        let addresses: Vec<_> = addresses.iter_mut().map(Address::pointer).collect();
        ExecImage {
            path: &self.path,
            argv: pointers(arguments),
            script: pointers(script),
            environment: environment
                .iter()
                .map(|entry| entry.as_ptr())
                .chain(addresses.iter().map(|(entry, _)| entry.cast_const().cast()))
                .chain(iter::once(ptr::null()))
                .collect(),
            addresses,
        }
    }
}

/// A variable with the process id of the command, which only the command's own process knows.
struct Address {
    /// `NAME=`, and room for the number.
    entry: Vec<u8>,
}

impl Address {
    fn new(name: &[u8]) -> Self {
        let mut entry = name.to_vec();
        entry.resize(name.len() + PID_LENGTH, 0);
        Self { entry }
    }

    /// The entry, and the offset of its number.
    fn pointer(&mut self) -> (*mut u8, usize) {
        let offset = self.entry.len() - PID_LENGTH;
        (self.entry.as_mut_ptr(), offset)
    }
}

/// Takes the variables out of `environment` in which systemd addresses `addressee`; the command gets them with its own process id.
fn readdressed(environment: &mut Vec<Cow<'static, CStr>>, addressee: Pid) -> Vec<Address> {
    let own = addressee.as_raw_nonzero().to_string();
    let mut found: Vec<&[u8]> = Vec::new();
    environment.retain(|entry| {
        let names = |name: &&&[u8]| entry.to_bytes().strip_prefix(**name) == Some(own.as_bytes());
        let name = ADDRESSED.iter().find(names);
        found.extend(name);
        name.is_none()
    });
    if found.contains(&ADDRESSED[1]) {
        environment.retain(|entry| !entry.to_bytes().starts_with(ADDRESSED_INODE));
    }
    found.into_iter().map(Address::new).collect()
}

/// Replaces this process by the command, as the caller had it, with `variables` added and `cleared` removed. Returns only
/// on an error. The command gets every open descriptor that is not close-on-exec. Must be called in a process with one
/// thread.
pub(crate) fn become_command(
    command: Command,
    variables: &[(String, String)],
    cleared: &[String],
) -> io::Error {
    let prepared = Program::new(command, cleared).and_then(|program| {
        let environment = environment(variables, &program.cleared)?;
        Ok((program, environment))
    });
    match prepared {
        Ok((program, environment)) => {
            let image = program.image(&environment, &mut []);
            inherited::restore();
            image.exec().into()
        }
        Err(error) => error,
    }
}

/// The errno with which the command of this `outcome` was not started; `Ok(None)` if it was. `WouldBlock`: not known yet.
pub(super) fn failure(outcome: &OwnedFd) -> Result<Option<i32>, Errno> {
    let mut errno = [0; size_of::<i32>()];
    let length = rustix::io::read(outcome, &mut errno)?;
    Ok((length > 0).then_some(i32::from_ne_bytes(errno)))
}

/// The arguments of exec.
struct ExecImage<'a> {
    path: &'a CStr,
    argv: Vec<*const c_char>,
    script: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// Entries that get the process id in the child, and the offset of it.
    addresses: Vec<(*mut u8, usize)>,
}

impl ExecImage<'_> {
    /// Replaces this process by the command, or returns the error. Async-signal-safe.
    fn setup_and_exec(&self, parent: Pid) -> Errno {
        let digits = digits(getpid());
        for &(entry, offset) in &self.addresses {
            // SAFETY: the entry has room for a process id from the offset on, and nothing else uses it in this process.
            unsafe { ptr::copy_nonoverlapping(digits.as_ptr(), entry.add(offset), PID_LENGTH) };
        }
        match prepare(parent) {
            Ok(()) => self.exec(),
            Err(error) => error,
        }
    }

    /// `execvp(3)` without the search. Async-signal-safe.
    fn exec(&self) -> Errno {
        let error = self.execve(self.path, &self.argv);
        if error == Errno::NOEXEC {
            self.execve(SHELL, &self.script)
        } else {
            error
        }
    }

    fn execve(&self, path: &CStr, argv: &[*const c_char]) -> Errno {
        // SAFETY: both lists are of pointers to strings that outlive this call, and end with a null pointer.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), self.environment.as_ptr()) };
        Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
    }
}

/// Prepares the child between fork and exec. Async-signal-safe.
fn prepare(parent: Pid) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        // The parent died before the signal of its death was set up.
        return Err(Errno::SRCH);
    }
    inherited::restore();
    Ok(())
}

/// The decimal digits of a process id, then zero bytes. Async-signal-safe.
fn digits(pid: Pid) -> [u8; PID_LENGTH] {
    let (mut digits, mut rest) = ([0; PID_LENGTH], pid.as_raw_nonzero().get().unsigned_abs());
    let count = rest.ilog10() as usize + 1;
    for digit in digits.iter_mut().take(count).rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    strings
        .map(CStr::as_ptr)
        .chain(iter::once(ptr::null()))
        .collect()
}

/// The environment of this process with `variables` in place of those of the same name, and without `cleared` and the
/// password of etcd. Everything else stays, even entries that `std::env` would drop.
fn environment(
    variables: &[(String, String)],
    cleared: &[String],
) -> io::Result<Vec<Cow<'static, CStr>>> {
    let own = variables
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")));
    let names = variables.iter().map(|(name, _)| name.as_str());
    let replaced: Vec<&str> = names.chain(cleared.iter().map(String::as_str)).collect();
    let is_replaced = |entry: &CStr| {
        replaced.iter().any(|name| {
            let rest = entry.to_bytes().strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| rest.starts_with(b"="))
        })
    };
    let mut environment: Vec<Cow<CStr>> = environment::entries()
        .into_iter()
        .filter(|entry| !is_replaced(entry))
        .filter_map(|entry| {
            let whole = entry.to_bytes();
            let kept = without_password(whole)?;
            if kept.len() == whole.len() {
                return Some(Cow::Borrowed(entry));
            }
            CString::new(kept).ok().map(Cow::Owned)
        })
        .collect();
    for variable in own {
        environment.push(Cow::Owned(variable?));
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with these files, removed when the value is dropped.
    struct Files(PathBuf);

    impl Files {
        fn new(test: &str, files: &[(&str, u32)]) -> Self {
            let directory = env::temp_dir().join(format!("dlock-{test}-{}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            for (name, mode) in files {
                let path = directory.join(name);
                fs::write(&path, "").unwrap();
                fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
            }
            Self(directory)
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn kind(found: Result<PathBuf, Lookup>) -> io::ErrorKind {
        match found {
            Err(Lookup::NotExecutable(error) | Lookup::BadInterpreter(_, error)) => error.kind(),
            Err(Lookup::NotFound) => io::ErrorKind::NotFound,
            Ok(path) => panic!("found {}", path.display()),
        }
    }

    #[test]
    fn searches_the_path_past_files_that_cannot_be_run() {
        let first = Files::new("first", &[("plain", 0o644), ("shadowed", 0o644)]);
        let second = Files::new("second", &[("shadowed", 0o755)]);
        fs::create_dir(first.0.join("directory")).unwrap();
        let path = env::join_paths([&first.0, &PathBuf::from("/nonexistent"), &second.0]).unwrap();
        let look = |program: &str| lookup_in(program.as_ref(), &path);

        assert_eq!(look("shadowed").unwrap(), second.0.join("shadowed"));
        assert_eq!(kind(look("plain")), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(look("directory")), io::ErrorKind::IsADirectory);
        assert_eq!(kind(look("missing")), io::ErrorKind::NotFound);
        assert_eq!(kind(look("")), io::ErrorKind::NotFound);
    }

    #[test]
    fn takes_a_program_with_a_slash_as_it_is() {
        let files = Files::new("slash", &[("plain", 0o644), ("program", 0o755)]);
        let look = |name: &str| lookup_in(files.0.join(name).as_os_str(), "".as_ref());

        assert_eq!(look("program").unwrap(), files.0.join("program"));
        assert_eq!(kind(look("plain")), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(look(".")), io::ErrorKind::IsADirectory);
        assert_eq!(kind(look("missing")), io::ErrorKind::NotFound);
        assert_eq!(kind(look("program/below")), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn an_empty_element_of_the_path_is_the_working_directory() {
        let found = lookup_in("Cargo.toml".as_ref(), ":/nonexistent".as_ref());
        assert_eq!(kind(found), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn own_variables_come_last_and_alone() {
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let merged = environment(&[own("PATH", "ours"), own("PAT", "x=y")], &[]).unwrap();
        let named = |name: &[u8]| {
            merged
                .iter()
                .filter(|entry| entry.to_bytes().starts_with(name))
                .count()
        };
        assert_eq!((named(b"PATH="), named(b"PAT=")), (1, 1));
        assert!(merged.ends_with(&[c"PATH=ours".into(), c"PAT=x=y".into()]));
        assert_eq!(merged.len(), environment::entries().len() + 1);
        assert!(environment(&[own("A", "\0")], &[]).is_err());
        let fewer = environment(&[], &["PATH", "PAT"].map(str::to_owned)).unwrap();
        assert_eq!(fewer.len(), environment::entries().len() - 1);
    }

    #[test]
    fn a_variable_of_systemd_for_dlock_names_the_command_and_one_for_another_process_stays() {
        let own = getpid().as_raw_nonzero();
        let text = |line: String| Cow::Owned(CString::new(line).unwrap());
        let mut environment = vec![
            text(format!("WATCHDOG_PID={own}")),
            text(format!("LISTEN_PID={own}1")),
            text("LISTEN_PIDFDID=7".to_owned()),
            text(format!("MY_WATCHDOG_PID={own}")),
        ];
        let found = readdressed(&mut environment, getpid());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].entry, b"WATCHDOG_PID=\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(environment.len(), 3);
        // The inode goes only with the process id that it belongs to.
        environment.push(text(format!("LISTEN_PID={own}")));
        assert_eq!(readdressed(&mut environment, getpid()).len(), 1);
        let left = format!("LISTEN_PID={own}1 MY_WATCHDOG_PID={own}");
        let entries: Vec<&str> = environment.iter().map(|it| it.to_str().unwrap()).collect();
        assert_eq!(entries.join(" "), left);
    }

    #[test]
    fn a_process_id_is_written_in_decimal_digits() {
        for number in [1, 9, 10, 4_194_304, i32::MAX] {
            let text = digits(Pid::from_raw(number).unwrap());
            let end = CStr::from_bytes_until_nul(&text).unwrap();
            assert_eq!(end.to_str().unwrap(), number.to_string());
        }
    }
}
