//! Tries what a local lock needs of its state directory, and leaves nothing behind.
//! It must not know what makes a finding bad.

use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{Access, CWD};

use super::dir_util::OTHER_DIR_HINT;
use super::state_dir::StateDir;
use crate::core::doctor::state_dir::{StateDirFacts, StateDirState};
use crate::output::exit::{Failure, OrFail as _};
use crate::sys::access::check_access;

/// The facts about this state directory, which is not made if it does not exist.
pub(crate) fn examine(path: &Path) -> StateDirFacts {
    let cause_and_hint = |failure: Failure| (format!("{:#}", failure.error), failure.hint);
    StateDirFacts {
        path: path.display().to_string(),
        state: state(path).map_err(cause_and_hint),
    }
}

fn state(path: &Path) -> Result<StateDirState, Failure> {
    let Some(directory) = StateDir::find(path)? else {
        check_creatable(path)?;
        return Ok(StateDirState::Missing);
    };
    Ok(StateDirState::Usable {
        locks: directory.names()?.len(),
        recorded_in: directory.try_record()?,
        in_memory: directory.is_in_memory()?,
    })
}

/// Checks that the directory, and those above it, can be made.
fn check_creatable(path: &Path) -> Result<(), Failure> {
    let path = std::path::absolute(path).context("cannot make the path absolute")?;
    let mut above = path.ancestors().skip(1);
    // The root always exists.
    let Some(above) = above.find(|above| above.exists()) else {
        return Ok(());
    };
    check_access(CWD, above, Access::WRITE_OK | Access::EXEC_OK)
        .with_context(|| format!("cannot make a directory in '{}'", above.display()))
        .or_hint(OTHER_DIR_HINT)
}
