//! `dlock fence`: admit or refuse a token, record it, and become the command while the fence's lock is held.
//! It must not know how a file is locked or replaced, nor how a process becomes another.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use tracing::{info, warn};

use super::program::{find, lock_variables, not_started};
use super::progress::report_fence_wait;
use crate::cli::fence::{Options, Task};
use crate::core::fence::{HighestTokens, StaleToken};
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::guard;
use crate::local::token_file::{Locked, TokenFile};
use crate::output::exit::{Exit, Failure};
use crate::output::{events, stdout};

/// Hint: the other cause of a low token.
const RESTORED: &str = "a later holder of the lock has used this file; if etcd was restored from a backup and its tokens went back, see --reset in dlock-fence(1)";

/// Executes the task.
pub(super) fn fence(options: &Options) -> Result<Exit, Failure> {
    let file = &options.file;
    match &options.task {
        Task::Enter {
            name,
            token,
            command,
        } => enter(file, name, *token, command),
        Task::Peek(name) => peek(file, name.as_ref()),
        Task::Reset { name, token } => reset(file, name, *token),
    }
}

fn enter(
    file: &Path,
    name: &LockName,
    token: FencingToken,
    argv: &[OsString],
) -> Result<Exit, Failure> {
    let found = (!argv.is_empty()).then(|| find(argv)).transpose()?;
    let fence = TokenFile::open(file)?;
    let admit = |seen: &mut HighestTokens| {
        seen.admit(name, token)
            .map_err(|refused| late(file, name, token, refused))
    };
    // A stale token is refused without waiting for the newer command, and a foreign file gets no lock file.
    admit(&mut fence.read()?)?;
    let locked = lock(&fence, file)?;
    let mut seen = fence.read()?;
    if admit(&mut seen)? {
        locked.record(&seen)?;
    } else {
        locked.settle()?;
    }
    info!(
        event = events::ADMITTED,
        lock = %name,
        token = token.0,
        file = %file.display(),
        "token {token} of '{name}' is accepted by '{}'",
        file.display()
    );
    let Some(command) = found else {
        return Ok(Exit::Done);
    };
    let variables = lock_variables(name, token, []);
    let program = command.argv[0].clone();
    // The same process runs the command: there is no signal to forward, and no other process whose death would free the lock.
    let error = guard::become_command(command, &variables, &[]);
    Err(not_started(&program, &error))
}

fn lock<'a>(fence: &'a TokenFile, file: &Path) -> Result<Locked<'a>, Failure> {
    fence.lock(|| report_fence_wait(file))
}

fn late(
    file: &Path,
    name: &LockName,
    token: FencingToken,
    StaleToken(highest): StaleToken,
) -> Failure {
    Failure {
        exit: Exit::Lost,
        hint: Some(RESTORED.to_owned()),
        ..anyhow!(
            "refused token {token} of '{name}': '{}' has seen token {highest}",
            file.display()
        )
        .into()
    }
}

fn peek(file: &Path, name: Option<&LockName>) -> Result<Exit, Failure> {
    let seen = TokenFile::open(file)?.read()?;
    let text = match name {
        Some(name) => format!("{}\n", seen.highest(name).unwrap_or(FencingToken(0))),
        None => seen.lines(),
    };
    stdout::print(&text).context("cannot print the token")?;
    Ok(Exit::Done)
}

fn reset(file: &Path, name: &LockName, token: FencingToken) -> Result<Exit, Failure> {
    let fence = TokenFile::open(file)?;
    fence.read()?;
    let locked = lock(&fence, file)?;
    let mut seen = fence.read()?;
    let before = seen.highest(name);
    seen.set(name, token);
    locked.record(&seen)?;
    let file = file.display();
    if let Some(before) = before.filter(|before| token < *before) {
        warn!(
            event = events::FENCE_RESET,
            lock = %name,
            token = token.0,
            %file,
            "'{file}' now accepts tokens of '{name}' from {token} on, instead of {before}: that is right only after etcd was restored and its tokens went back"
        );
    } else {
        info!(
            event = events::FENCE_RESET,
            lock = %name,
            token = token.0,
            %file,
            "'{file}' now accepts tokens of '{name}' from {token} on"
        );
    }
    Ok(Exit::Done)
}
