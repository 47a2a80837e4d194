//! The word for locks of this machine alone, and which words make no sense beside it.
//! It must not know how such locks work.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::Asked;
use super::connection::Connection;
use crate::config::layers::Found;
use crate::config::site::{self, Site};
use crate::exit::{Failure, OrFail as _};

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct Words {
    /// Use the locks of this machine alone, in files instead of etcd
    ///
    /// In DIR, else in /var/lib/dlock for root and in ~/.local/state/dlock for others. Without it an etcd that cannot be
    /// reached is an error.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_hint = ValueHint::DirPath)]
    local: Option<OsString>,
}

impl Words {
    /// Where the locks are, by all that is said about it.
    pub(super) fn resolve(&self, asked: &mut Asked) -> Result<Site, Failure> {
        match chosen(asked, self.local.as_deref())? {
            Some((found, folder)) => {
                no_connection(&found, asked.connection)?;
                Ok(Site::Local(folder))
            }
            None => asked.settings().map(Site::Etcd),
        }
    }
}

/// What says that the locks are those of this machine, and in which folder; `None` when they are in etcd.
fn chosen(asked: &Asked, flag: Option<&OsStr>) -> Result<Option<(Found, PathBuf)>, Failure> {
    let Some(found) = asked.layers.find(flag, "local") else {
        return Ok(None);
    };
    let folder = site::folder(&asked.layers, &found)?;
    Ok(folder.map(|folder| (found, folder)))
}

/// Refuses what only etcd can do, `tried`, when the locks are those of this machine.
pub(super) fn refuse(
    asked: &Asked,
    flag: Option<&OsStr>,
    tried: &str,
    hint: &str,
) -> Result<(), Failure> {
    match chosen(asked, flag)? {
        Some((found, _)) => Err(anyhow!("cannot {tried} with {}", found.place())).or_hint(hint),
        None => Ok(()),
    }
}

/// What says how etcd is reached was meant for a lock in etcd. Variables and the file are there for all locks.
fn no_connection(local: &Found, flags: &Connection) -> Result<(), Failure> {
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
            local.place()
        ))
        .or_hint("--local=false takes the lock in etcd"),
        None => Ok(()),
    }
}
