//! User and password for etcd, from every layer that may contain them.
//! It must not know how etcd checks them.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use zeroize::Zeroizing;

use super::exposure::{SettingWarning, TrustFile, password_in_arguments};
use super::layers::{Layers, SettingValue, Source};
use super::secret::Secret;
use super::setting::Setting;
use crate::core::secrets::PASSWORD_VARIABLES;
use crate::output::exit::{Failure, OrFail};

const MAX_PASSWORD_BYTES: u64 = 64 * 1024;
const USUAL_PASSWORD_BYTES: usize = 1024;

/// The file of a systemd credential with the password, in `$CREDENTIALS_DIRECTORY`.
const SYSTEMD_CREDENTIAL: &str = "dlock-password";

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// The name for messages: the part before a colon, since the rest may be a password.
    pub(crate) user: String,
    /// The name for the login.
    pub(crate) name: Secret,
    pub(crate) password: Secret,
    /// The source of the password, for people.
    pub(crate) source: String,
    /// The file of the password, if it can be read more than once.
    file: Option<PathBuf>,
}

impl Credentials {
    /// The password that the file has now; `None` if it does not come from a file, or from a pipe.
    pub(crate) fn read_again(&self) -> Option<anyhow::Result<Secret>> {
        let path = self.file.as_ref()?;
        // The warnings were given at the start.
        let read = read(path, &mut Vec::new());
        Some(read.with_context(|| format!("cannot read the password file '{}'", path.display())))
    }

    #[cfg(test)]
    pub(crate) fn of(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            name: Secret::new(user),
            password: Secret::new(password),
            source: String::new(),
            file: None,
        }
    }
}

/// The source of a password.
enum PasswordSource {
    File(SettingValue),
    Variable(&'static str, Secret<Vec<u8>>),
    Systemd(PathBuf),
}

impl PasswordSource {
    /// The file, unless it is a pipe, which is empty after it was read.
    fn file(&self) -> Option<PathBuf> {
        let path = match self {
            Self::File(found) => found.path(),
            Self::Systemd(path) => path.clone(),
            Self::Variable(..) => return None,
        };
        path.is_file().then_some(path)
    }
}

impl fmt::Display for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(found) => found.source.fmt(f),
            Self::Variable(name, _) => f.write_str(name),
            Self::Systemd(path) => write!(f, "the systemd credential '{}'", path.display()),
        }
    }
}

/// The credentials, if any are set; those that work and are not safe go to `warnings`.
pub(crate) fn resolve(
    layers: &Layers,
    warnings: &mut Vec<SettingWarning>,
) -> Result<Option<Credentials>, Failure> {
    let user = layers.find(Setting::User);
    let user_set_for_this_run = layers.find_set(Setting::User).is_some();
    let file = layers.find_set(Setting::PasswordFile);
    let variable = || {
        let mut set = PASSWORD_VARIABLES.into_iter().filter_map(|name| {
            let text = layers.variable(name)?;
            let text = Secret::new(text.into_vec());
            Some(PasswordSource::Variable(name, text))
        });
        set.next()
    };
    let given = file
        .map(PasswordSource::File)
        .or_else(variable)
        .or_else(|| systemd_credential(layers));
    let in_file = || {
        let found = layers.find_in_file(Setting::PasswordFile);
        found.map(PasswordSource::File)
    };
    let Some(user) = user else {
        let Some(source) = given.or_else(in_file) else {
            return Ok(None);
        };
        return Err(anyhow!(
            "cannot use the password of {source}: no user is given"
        ))
        .or_hint("name the user with --user or DLOCK_USER");
    };
    let name = user
        .text
        .to_str()
        .ok_or_else(|| anyhow!("cannot use {}: not UTF-8 text", user.source))?;
    // A name may contain a colon if the password is elsewhere, as with etcdctl. The file's own
    // password-file is weaker than a NAME:PASSWORD that was set for this run.
    let inline = user.secret.clone();
    let given = match given {
        None if user_set_for_this_run && inline.is_some() => None,
        None => in_file(),
        given => given,
    };
    let source = given
        .as_ref()
        .map_or_else(|| user.source.to_string(), PasswordSource::to_string);
    let file = given.as_ref().and_then(PasswordSource::file);
    let inline = inline.as_ref().map(|inline| text(inline, &user.source));
    let inline = inline.transpose()?;
    let (full_name, password): (Secret, Secret) = match (given, inline) {
        (Some(given), None) => (Secret::new(name), password(given, warnings)?),
        (Some(given), Some(rest)) => (
            Secret::new(format!("{name}:{}", rest.expose())),
            password(given, warnings)?,
        ),
        (None, Some(password)) => {
            match &user.source {
                Source::Flag(_) => warnings.push(password_in_arguments()),
                Source::File { path, .. } => TrustFile::Config.check_path(path, warnings),
                Source::Variable(_) => {}
            }
            (Secret::new(name), password)
        }
        (None, None) => {
            return Err(anyhow!(
                "cannot use the user '{name}' of {}: no password is given",
                user.source
            ))
            .or_hint(match layers.variable("DLOCK_HELD") {
                None => "give it with --password-file or DLOCK_PASSWORD",
                Some(_) => "give it with --password-file or DLOCK_PASSWORD_FILE: dlock removes passwords from the environment of its command",
            });
        }
    };
    if full_name.expose().is_empty() || password.expose().is_empty() {
        let what = if full_name.expose().is_empty() {
            "user"
        } else {
            "password"
        };
        return Err(anyhow!("cannot use {}: the {what} is empty", user.source).into());
    }
    Ok(Some(Credentials {
        user: name.to_owned(),
        name: full_name,
        password,
        source,
        file,
    }))
}

/// The credential that systemd passed to this unit, `systemd.exec(5)`, if there is one.
fn systemd_credential(layers: &Layers) -> Option<PasswordSource> {
    let directory = PathBuf::from(layers.variable("CREDENTIALS_DIRECTORY")?);
    let path = directory.join(SYSTEMD_CREDENTIAL);
    // Any other error is reported when the file is read.
    let missing = fs::metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    (!missing).then_some(PasswordSource::Systemd(path))
}

/// The text of a secret from `source`.
fn text(secret: &Secret<Vec<u8>>, source: impl fmt::Display) -> Result<Secret, Failure> {
    let text = str::from_utf8(secret.expose());
    Ok(text
        .map(Secret::new)
        .map_err(|_| anyhow!("cannot use {source}: not UTF-8 text"))?)
}

fn password(given: PasswordSource, warnings: &mut Vec<SettingWarning>) -> Result<Secret, Failure> {
    match given {
        PasswordSource::Variable(name, secret) => text(&secret, name),
        PasswordSource::File(found) => read_file(&found.path(), warnings),
        PasswordSource::Systemd(path) => read_file(&path, warnings),
    }
}

fn read_file(path: &Path, warnings: &mut Vec<SettingWarning>) -> Result<Secret, Failure> {
    let read = read(path, warnings);
    Ok(read.with_context(|| format!("cannot read the password file '{}'", path.display()))?)
}

fn read(path: &Path, warnings: &mut Vec<SettingWarning>) -> anyhow::Result<Secret> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    // A longer text is moved as it grows, and leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(USUAL_PASSWORD_BYTES));
    file.take(MAX_PASSWORD_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_PASSWORD_BYTES {
        return Err(anyhow!("it is longer than 64 KiB"));
    }
    let text = str::from_utf8(&text)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    // An editor that writes CRLF must not change the password.
    let password = line.strip_suffix('\r').unwrap_or(line);
    if password.is_empty() {
        return Err(anyhow!("it is empty"));
    }
    TrustFile::PasswordFile.check(path, &metadata, warnings);
    Ok(Secret::new(password))
}
