//! Warnings that a setting exposes a secret, or lets another user choose which etcd is trusted.
//! It must not know what the files contain, nor where the warnings are shown.

use std::fs::{self, Metadata};
use std::path::Path;

use super::setting::Setting;
use crate::sys::trust::{foreign_writer, is_public};

/// A setting that works and is not safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SettingWarning {
    pub(crate) setting: Setting,
    pub(crate) says: String,
}

/// The kind of a file on which the trust in etcd, or etcd's trust in us, depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrustFile {
    Cacert,
    Cert,
    Key,
    PasswordFile,
    /// The configuration file, when it contains a password.
    Config,
}

impl TrustFile {
    const fn setting(self) -> Setting {
        match self {
            Self::Cacert => Setting::Cacert,
            Self::Cert => Setting::Cert,
            Self::Key => Setting::Key,
            Self::PasswordFile => Setting::PasswordFile,
            Self::Config => Setting::Config,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Cacert => "CA file",
            Self::Cert => "client certificate",
            Self::Key => "private key",
            Self::PasswordFile => "password file",
            Self::Config => "configuration file with a password",
        }
    }

    const fn is_secret(self) -> bool {
        matches!(self, Self::Key | Self::PasswordFile | Self::Config)
    }

    /// The warnings about this file. A pipe or a device has no content that others could read or replace.
    pub(super) fn check(self, path: &Path, file: &Metadata, warnings: &mut Vec<SettingWarning>) {
        if !file.is_file() {
            return;
        }
        let (name, path) = (self.name(), path.display());
        if self.is_secret() && is_public(file) {
            warnings.push(self.warning(format!(
                "every user can read the {name} '{path}': use chmod o-r"
            )));
        }
        if let Some(why) = foreign_writer(file) {
            warnings.push(self.warning(format!(
                "other users can change the {name} '{path}', because {why}: use chown and chmod go-w"
            )));
        }
    }

    /// The same for a file that is not open.
    pub(super) fn check_path(self, path: &Path, warnings: &mut Vec<SettingWarning>) {
        // Reading it reports the error.
        if let Ok(file) = fs::metadata(path) {
            self.check(path, &file, warnings);
        }
    }

    fn warning(self, says: String) -> SettingWarning {
        SettingWarning {
            setting: self.setting(),
            says,
        }
    }
}

/// A password on the command line.
pub(super) fn password_in_arguments() -> SettingWarning {
    SettingWarning {
        setting: Setting::User,
        says: "every user can read the password of --user in the process list: use --password-file"
            .to_owned(),
    }
}
