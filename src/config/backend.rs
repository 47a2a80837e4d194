//! The backend of the locks: etcd, or this machine alone.
//! It must not know how either backend works.

use std::path::PathBuf;

use anyhow::anyhow;

use super::Settings;
use super::layers::{Layers, SettingValue, parse_switch};
use super::setting::Setting;
use crate::core::name::Scope;
use crate::output::exit::{Failure, OrFail as _};

/// The state directory of root.
const SYSTEM_STATE_DIR: &str = "/var/lib/dlock";

/// The backend with its settings.
pub(crate) enum BackendConfig {
    Etcd(Settings),
    /// Files in this directory.
    Local(PathBuf),
}

impl BackendConfig {
    /// Where the endpoints were set, for people; `None` without etcd.
    pub(crate) fn endpoints_source(&self) -> Option<&str> {
        match self {
            Self::Etcd(settings) => {
                let source = settings.endpoints_source.as_deref();
                Some(source.unwrap_or("built-in default"))
            }
            Self::Local(_) => None,
        }
    }
}

/// The kind of backend, without its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendKind {
    Etcd,
    Local,
}

impl BackendKind {
    /// The kind whose options apply; etcd where the settings have an error, since an error in the options is reported first.
    pub(crate) fn of(backend: &Result<BackendConfig, Failure>) -> Self {
        match backend {
            Ok(BackendConfig::Local(_)) => Self::Local,
            Ok(BackendConfig::Etcd(_)) | Err(_) => Self::Etcd,
        }
    }
}

impl BackendConfig {
    /// The scope in which a name means one lock.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Etcd(settings) => Scope::Prefix(settings.prefix.clone()),
            Self::Local(_) => Scope::Machine,
        }
    }
}

/// The setting that chooses local locks, and their directory; `None` if the locks are in etcd.
pub(crate) fn local(layers: &Layers) -> Result<Option<(SettingValue, PathBuf)>, Failure> {
    let Some(found) = layers.find(Setting::Local) else {
        return Ok(None);
    };
    let on = found.parse(|text| match parse_switch(text) {
        Some(on) => Ok(Some(on)),
        // A typing error must not become a directory.
        None if !text.contains('/') => Err(format!(
            "expected true, false or a directory with a slash in it: ./{text}"
        )),
        None => Ok(None),
    })?;
    let directory = match on {
        Some(false) => return Ok(None),
        Some(true) => default_dir(layers)?,
        None => found.path(),
    };
    Ok(Some((found, directory)))
}

/// Root has the directory of the machine, every other user has one of their own.
fn default_dir(layers: &Layers) -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(SYSTEM_STATE_DIR.into());
    }
    // The base directory specification ignores a relative path there.
    let absolute = |name| {
        let path = layers.variable(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let state = state.ok_or_else(|| anyhow!("no directory for local locks: HOME is not set"));
    Ok(state.or_hint("give one with --local=DIR")?.join("dlock"))
}
