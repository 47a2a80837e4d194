//! User and password for etcd, from every layer that may contain them.
//! It must not know how etcd checks them.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::layers::{Layers, SettingValue};
use super::setting::Setting;
use crate::output::exit::{Failure, OrFail};

const MAX_PASSWORD_BYTES: u64 = 64 * 1024;

/// A user of etcd. There is no Debug: a log must not contain the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
    /// The source of the password, for people.
    pub(crate) source: String,
    /// The file of the password, if it can be read more than once.
    file: Option<PathBuf>,
}

impl Credentials {
    /// The password that the file has now; `None` if it does not come from a file, or from a pipe.
    pub(crate) fn read_again(&self) -> Option<anyhow::Result<String>> {
        let path = self.file.as_ref()?;
        // The warnings were given at the start.
        let read = read(path, &mut Vec::new());
        Some(read.with_context(|| format!("cannot read the password file '{}'", path.display())))
    }

    #[cfg(test)]
    pub(crate) fn of(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            source: String::new(),
            file: None,
        }
    }
}

/// The source of a password.
enum PasswordSource {
    File(SettingValue),
    Variable(SettingValue),
}

impl PasswordSource {
    /// The file, unless it is a pipe, which is empty after it was read.
    fn file(&self) -> Option<PathBuf> {
        let Self::File(found) = self else { return None };
        let path = found.path();
        path.is_file().then_some(path)
    }
}

impl fmt::Display for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::File(found) | Self::Variable(found)) = self;
        found.source.fmt(f)
    }
}

/// The credentials, if any are set; oddities that work go to `warnings`.
pub(crate) fn resolve(
    layers: &Layers,
    warnings: &mut Vec<String>,
) -> Result<Option<Credentials>, Failure> {
    let user = layers.find(Setting::User);
    let user_set_for_this_run = layers.find_set(Setting::User).is_some();
    let file = layers.find_set(Setting::PasswordFile);
    let variable = || {
        let names = ["DLOCK_PASSWORD", "ETCDCTL_PASSWORD"].into_iter();
        let mut set = names.filter_map(|name| layers.find_variable(name.to_owned()));
        set.next().map(PasswordSource::Variable)
    };
    let given = file.map(PasswordSource::File).or_else(variable);
    let in_file = || {
        let found = layers.find_in_file(Setting::PasswordFile);
        found.map(PasswordSource::File)
    };
    let Some(user) = user else {
        let Some(source) = given.or_else(in_file) else {
            return Ok(None);
        };
        return Err(anyhow!(
            "cannot use the password of {source}: there is no user to it"
        ))
        .or_hint("name the user with --user or DLOCK_USER");
    };
    let name = user
        .text
        .to_str()
        .ok_or_else(|| anyhow!("cannot use {}: not UTF-8 text", user.source))?;
    // A name may contain a colon if the password is elsewhere, as with etcdctl. The file's own
    // password-file is weaker than a NAME:PASSWORD that was set for this run.
    let split = name.split_once(':');
    let given = match given {
        None if user_set_for_this_run && split.is_some() => None,
        None => in_file(),
        given => given,
    };
    let source = given
        .as_ref()
        .map_or_else(|| user.source.to_string(), PasswordSource::to_string);
    let file = given.as_ref().and_then(PasswordSource::file);
    let (name, password) = match (given, split) {
        (Some(given), _) => (name, password(given, warnings)?),
        (None, Some((name, password))) => (name, password.to_owned()),
        (None, None) => {
            return Err(anyhow!(
                "cannot use the user '{name}' of {}: there is no password",
                user.source
            ))
            .or_hint("give it by --password-file or DLOCK_PASSWORD");
        }
    };
    if name.is_empty() || password.is_empty() {
        let what = if name.is_empty() { "user" } else { "password" };
        return Err(anyhow!("cannot use {}: the {what} is empty", user.source).into());
    }
    Ok(Some(Credentials {
        user: name.to_owned(),
        password,
        source,
        file,
    }))
}

fn password(given: PasswordSource, warnings: &mut Vec<String>) -> Result<String, Failure> {
    match given {
        PasswordSource::Variable(SettingValue { text, source }) => {
            let text = text.into_string();
            Ok(text.map_err(|_| anyhow!("cannot use {source}: not UTF-8 text"))?)
        }
        PasswordSource::File(found) => {
            let path = found.path();
            let read = read(&path, warnings);
            Ok(read
                .with_context(|| format!("cannot read the password file '{}'", path.display()))?)
        }
    }
}

fn read(path: &Path, warnings: &mut Vec<String>) -> anyhow::Result<String> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let mut text = Vec::new();
    file.take(MAX_PASSWORD_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_PASSWORD_BYTES {
        return Err(anyhow!("it is longer than 64 KiB"));
    }
    let text = String::from_utf8(text)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    // An editor that writes CRLF must not change the password.
    let password = line.strip_suffix('\r').unwrap_or(line);
    if password.is_empty() {
        return Err(anyhow!("it is empty"));
    }
    if metadata.is_file() && metadata.permissions().mode() & 0o044 != 0 {
        warnings.push(format!(
            "others can read the password file '{}'; chmod 600 keeps it to its owner",
            path.display()
        ));
    }
    Ok(password.to_owned())
}
