//! Where the locks are: in etcd, or on this machine alone.
//! It must not know how either kind works.

use std::path::PathBuf;

use anyhow::anyhow;

use super::Settings;
use super::layers::{Layers, SettingValue};
use crate::core::name::Scope;
use crate::output::exit::{Failure, OrFail as _};

/// The state folder of the machine, for root.
const SYSTEM_STATE_DIR: &str = "/var/lib/dlock";

/// Where the locks are.
pub(crate) enum BackendConfig {
    Etcd(Settings),
    /// In files in this folder.
    Local(PathBuf),
}

impl BackendConfig {
    /// The range in which a name stands for one lock there.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Etcd(settings) => Scope::Prefix(settings.prefix.clone()),
            Self::Local(_) => Scope::Machine,
        }
    }
}

/// The folder that `--local` asks for; `None` when it does not.
pub(crate) fn state_dir(layers: &Layers, found: &SettingValue) -> Result<Option<PathBuf>, Failure> {
    let on = found.parse(|text| match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(Some(true)),
        "0" | "false" | "no" | "off" => Ok(Some(false)),
        // Else a slip of the pen would be a folder.
        _ if !text.contains('/') => Err(format!(
            "expected true, false or a folder with a slash in it: ./{text}"
        )),
        _ => Ok(None),
    })?;
    match on {
        Some(false) => Ok(None),
        Some(true) => default_dir(layers).map(Some),
        None => Ok(Some(found.path())),
    }
}

/// Root's is the machine's, everybody else has his own.
fn default_dir(layers: &Layers) -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(SYSTEM_STATE_DIR.into());
    }
    // The base directory specification: a relative path there is to be ignored.
    let absolute = |name| {
        let path = layers.variable(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let state = state.ok_or_else(|| anyhow!("no folder for local locks: HOME is not set"));
    Ok(state.or_hint("--local=DIR names one")?.join("dlock"))
}
