//! The word for locks of this machine alone, and which words make no sense beside it.
//! It must not know how such locks work.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::Resolver;
use super::connection::Connection;
use crate::config::layers::SettingValue;
use crate::config::site::{self, BackendConfig};
use crate::output::exit::{Failure, OrFail as _};

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct LocalArgs {
    /// Use the locks of this machine alone, in files instead of etcd
    ///
    /// In DIR, else in /var/lib/dlock for root and in ~/.local/state/dlock for others. Without it an etcd that cannot be
    /// reached is an error.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_hint = ValueHint::DirPath)]
    local: Option<OsString>,
}

impl LocalArgs {
    /// Where the locks are, by all that is said about it.
    pub(super) fn resolve(&self, asked: &mut Resolver) -> Result<BackendConfig, Failure> {
        match chosen(asked, self.local.as_deref())? {
            Some((found, directory)) => {
                no_connection(&found, asked.connection)?;
                Ok(BackendConfig::Local(directory))
            }
            None => asked.settings().map(BackendConfig::Etcd),
        }
    }
}

/// What says that the locks are those of this machine, and in which folder; `None` when they are in etcd.
fn chosen(
    asked: &Resolver,
    flag: Option<&OsStr>,
) -> Result<Option<(SettingValue, PathBuf)>, Failure> {
    let Some(found) = asked.layers.find(flag, "local") else {
        return Ok(None);
    };
    let directory = site::state_dir(&asked.layers, &found)?;
    Ok(directory.map(|directory| (found, directory)))
}

/// Refuses what only etcd can do, `tried`, when the locks are those of this machine.
pub(super) fn refuse(
    asked: &Resolver,
    flag: Option<&OsStr>,
    tried: &str,
    hint: &str,
) -> Result<(), Failure> {
    match chosen(asked, flag)? {
        Some((found, _)) => {
            Err(anyhow!("cannot {tried} with {}", found.origin_text())).or_hint(hint)
        }
        None => Ok(()),
    }
}

/// What says how etcd is reached was meant for a lock in etcd. Variables and the file are there for all locks.
fn no_connection(local: &SettingValue, flags: &Connection) -> Result<(), Failure> {
    let given = [
        ("endpoints", !flags.endpoints.is_empty()),
        ("cacert", flags.cacert.is_some()),
        ("cert", flags.cert.is_some()),
        ("key", flags.key.is_some()),
        ("user", flags.user.is_some()),
        ("password-file", flags.password_file.is_some()),
        ("prefix", flags.prefix.is_some()),
        ("cluster-id", flags.cluster_id.is_some()),
        ("connect-timeout", flags.connect_timeout.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(anyhow!(
            "cannot use --{option} together with {}: a local lock has no etcd",
            local.origin_text()
        ))
        .or_hint("--local=false takes the lock in etcd"),
        None => Ok(()),
    }
}
