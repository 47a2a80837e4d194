//! The layers that a setting's text comes from: flag, `DLOCK_` variable, `ETCDCTL_` variable, file, in this order.
//! It must not know what any setting means.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::anyhow;
use zeroize::Zeroizing;

use super::file::File;
use super::secret::Secret;
use super::setting::Setting;
use crate::output::exit::{Failure, OrFail};

/// The flags on the command line with their texts; a switch has the text `true`.
pub(crate) type Flags = BTreeMap<Setting, OsString>;

/// The flags, the variables and the file.
pub(crate) struct Layers<'a> {
    flags: Flags,
    variables: &'a dyn Fn(&str) -> Option<OsString>,
    file: File,
}

/// A setting's text and where it was found.
#[derive(Debug)]
pub(crate) struct SettingValue {
    /// Never a password.
    pub(crate) text: OsString,
    /// The password behind the colon of a user; every other setting has none.
    pub(crate) secret: Option<Secret<Vec<u8>>>,
    pub(crate) source: Source,
}

/// The source of a text, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The long option.
    Flag(&'static str),
    Variable(String),
    File {
        key: Setting,
        path: PathBuf,
        line: usize,
    },
}

impl<'a> Layers<'a> {
    /// Reads the file that the flags or the variables choose.
    pub(crate) fn load(
        flags: Flags,
        variables: &'a dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let mut layers = Self {
            flags,
            variables,
            file: File::default(),
        };
        let chosen = layers.find(Setting::Config).map(|found| found.path());
        layers.file = File::load(chosen, variables)?;
        Ok(layers)
    }

    /// The value of a variable, if it is not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<OsString> {
        (self.variables)(name).filter(|value| !value.is_empty())
    }

    /// The path of the file; empty if there is none.
    pub(crate) fn file(&self) -> &Path {
        &self.file.path
    }

    /// The settings that have a flag, in the order of the pages.
    pub(crate) fn flags(&self) -> impl Iterator<Item = &Setting> {
        self.flags.keys()
    }

    /// The strongest text of a setting.
    pub(crate) fn find(&self, setting: Setting) -> Option<SettingValue> {
        self.find_set(setting)
            .or_else(|| self.find_in_file(setting))
    }

    /// The strongest text for this run: from a flag or a variable.
    pub(crate) fn find_set(&self, setting: Setting) -> Option<SettingValue> {
        self.find_flag(setting)
            .or_else(|| self.find_setting_variable(setting, setting.variable()))
            .or_else(|| {
                let name = setting.etcdctl_variable()?.to_owned();
                self.find_setting_variable(setting, name)
            })
    }

    pub(crate) fn find_flag(&self, setting: Setting) -> Option<SettingValue> {
        let text = self.flags.get(&setting)?;
        let source = Source::Flag(setting.name());
        Some(SettingValue::of(setting, text, source))
    }

    /// A variable that contains no secret.
    pub(crate) fn find_variable(&self, name: String) -> Option<SettingValue> {
        let text = self.variable(&name)?;
        Some(SettingValue::plain(text, Source::Variable(name)))
    }

    fn find_setting_variable(&self, setting: Setting, name: String) -> Option<SettingValue> {
        // It may contain a password.
        let text = Zeroizing::new(self.variable(&name)?.into_vec());
        let text = OsStr::from_bytes(&text);
        Some(SettingValue::of(setting, text, Source::Variable(name)))
    }

    pub(crate) fn find_in_file(&self, setting: Setting) -> Option<SettingValue> {
        let entry = self.file.entry(setting)?;
        let source = Source::File {
            key: setting,
            path: self.file.path.clone(),
            line: entry.line,
        };
        Some(SettingValue::of(setting, entry.text.as_ref(), source))
    }

    /// The value of a setting, if it is set.
    pub(crate) fn parse<T>(
        &self,
        setting: Setting,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        self.find(setting)
            .map(|found| found.parse(parse))
            .transpose()
    }

    /// A switch that is on; a layer that turns it off hides the layers below.
    pub(crate) fn find_switch(&self, setting: Setting) -> Result<Option<SettingValue>, Failure> {
        let Some(found) = self.find(setting) else {
            return Ok(None);
        };
        let expected = || "expected true or false".to_owned();
        let on = found.parse(|text| parse_switch(text).ok_or_else(expected))?;
        Ok(on.then_some(found))
    }
}

/// The value of a switch; `None` if `text` is neither true nor false.
pub(crate) fn parse_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A number in digits alone, without a sign.
pub(crate) fn parse_digits<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

impl SettingValue {
    /// The text of a flag.
    pub(crate) fn flag(option: &'static str, text: OsString) -> Self {
        Self::plain(text, Source::Flag(option))
    }

    fn plain(text: OsString, source: Source) -> Self {
        Self {
            text,
            secret: None,
            source,
        }
    }

    /// The text of a setting. The part behind the colon of a user is separated here, so that no message can contain it.
    fn of(setting: Setting, text: &OsStr, source: Source) -> Self {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let Some(colon) = colon.filter(|_| setting == Setting::User) else {
            return Self::plain(text.to_owned(), source);
        };
        Self {
            text: OsStr::from_bytes(&bytes[..colon]).to_owned(),
            secret: Some(Secret::new(&bytes[colon + 1..])),
            source,
        }
    }

    /// The value; the error names the source of the text.
    pub(crate) fn parse<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Failure> {
        let text = self.text.to_str();
        let value = text
            .ok_or_else(|| "not UTF-8 text".to_owned())
            .and_then(parse);
        Ok(value.map_err(|error| anyhow!("cannot use {self}: {error}"))?)
    }

    /// The text as a path. A path in the file is relative to the file, since the working directory of a cron job is unclear.
    pub(crate) fn path(&self) -> PathBuf {
        match &self.source {
            Source::File { path, .. } => path
                .parent()
                .map_or_else(PathBuf::new, PathBuf::from)
                .join(&self.text),
            _ => PathBuf::from(&self.text),
        }
    }

    /// The setting from the stronger layer, if both are set; two in one layer are an error.
    pub(crate) fn stronger(
        one: Option<Self>,
        other: Option<Self>,
    ) -> Result<(Option<Self>, Option<Self>), Failure> {
        let rank = |found: &Self| match found.source {
            Source::Flag(_) => 0,
            Source::Variable(_) => 1,
            Source::File { .. } => 2,
        };
        let (Some(first), Some(second)) = (&one, &other) else {
            return Ok((one, other));
        };
        match rank(first).cmp(&rank(second)) {
            Ordering::Less => Ok((one, None)),
            Ordering::Greater => Ok((None, other)),
            Ordering::Equal => Err(anyhow!(
                "cannot use {} together with {}",
                first.source,
                second.source
            ))
            .or_hint("the two contradict each other: choose one"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(option) => write!(f, "--{option}"),
            Self::Variable(name) => f.write_str(name),
            Self::File { key, path, line } => {
                write!(f, "{key} in line {line} of '{}'", path.display())
            }
        }
    }
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.to_string_lossy();
        match &self.source {
            Source::File { key, path, line } => {
                write!(f, "{key} '{text}' in line {line} of '{}'", path.display())
            }
            source => write!(f, "{source} '{text}'"),
        }
    }
}
