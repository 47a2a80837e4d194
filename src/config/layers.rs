//! The layers that a setting's text comes from: flag, `DLOCK_` variable, `ETCDCTL_` variable, file, in this order.
//! It must not know what any setting means.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::file::File;
use crate::output::exit::{Failure, OrFail};

/// Variables that users of etcdctl may have set already.
const ETCDCTL_VARIABLES: [(&str, &str); 5] = [
    ("endpoints", "ETCDCTL_ENDPOINTS"),
    ("cacert", "ETCDCTL_CACERT"),
    ("cert", "ETCDCTL_CERT"),
    ("key", "ETCDCTL_KEY"),
    ("user", "ETCDCTL_USER"),
];

/// The variable of a long option. A command gets `DLOCK_KEY`, so a nested dlock must not take that for its private key:
/// the variables of the client certificate contain CLIENT.
pub(crate) fn variable(option: &str) -> String {
    match option {
        "cert" => "DLOCK_CLIENT_CERT".to_owned(),
        "key" => "DLOCK_CLIENT_KEY".to_owned(),
        _ => format!("DLOCK_{}", option.to_ascii_uppercase().replace('-', "_")),
    }
}

/// etcdctl's variable, the fallback for the option's own.
pub(crate) fn fall_back(option: &str) -> Option<&'static str> {
    let known = ETCDCTL_VARIABLES.iter().find(|(known, _)| *known == option);
    known.map(|(_, name)| *name)
}

/// The variables and the file under the flags.
pub(crate) struct Layers<'a> {
    variables: &'a dyn Fn(&str) -> Option<OsString>,
    file: File,
}

/// A setting's text and where it was found.
#[derive(Debug)]
pub(crate) struct SettingValue {
    /// The long option.
    pub(crate) option: &'static str,
    pub(crate) text: OsString,
    pub(crate) source: Source,
}

/// The strongest first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Variable(String),
    File { path: PathBuf, line: usize },
}

impl<'a> Layers<'a> {
    pub(crate) fn new(variables: &'a dyn Fn(&str) -> Option<OsString>, file: File) -> Self {
        Self { variables, file }
    }

    /// The value of a variable, if it is not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<OsString> {
        (self.variables)(name).filter(|value| !value.is_empty())
    }

    /// The strongest text for an option.
    pub(crate) fn find(&self, flag: Option<&OsStr>, option: &'static str) -> Option<SettingValue> {
        self.find_set(flag, option)
            .or_else(|| self.find_in_file(option))
    }

    /// The strongest text for this run: from a flag or a variable.
    pub(crate) fn find_set(
        &self,
        flag: Option<&OsStr>,
        option: &'static str,
    ) -> Option<SettingValue> {
        Some(SettingValue::of(option, self.locate_set(flag, option)?))
    }

    /// The file's text for an option.
    pub(crate) fn find_in_file(&self, option: &'static str) -> Option<SettingValue> {
        Some(SettingValue::of(option, self.locate_in_file(option)?))
    }

    /// The strongest text for any option, and its source.
    pub(crate) fn locate(&self, flag: Option<&OsStr>, option: &str) -> Option<(OsString, Source)> {
        self.locate_set(flag, option)
            .or_else(|| self.locate_in_file(option))
    }

    fn locate_set(&self, flag: Option<&OsStr>, option: &str) -> Option<(OsString, Source)> {
        let from_variable = |name: String| {
            let text = self.variable(&name)?;
            Some((text, Source::Variable(name)))
        };
        flag.map(|text| (text.to_owned(), Source::Flag))
            .or_else(|| from_variable(variable(option)))
            .or_else(|| from_variable(fall_back(option)?.to_owned()))
    }

    fn locate_in_file(&self, option: &str) -> Option<(OsString, Source)> {
        let entry = self.file.entry(option)?;
        let source = Source::File {
            path: self.file.path.clone(),
            line: entry.line,
        };
        Some((entry.text.clone().into(), source))
    }

    /// The path of the file; empty if there is none.
    pub(crate) fn file(&self) -> &Path {
        &self.file.path
    }

    /// A switch that is on; a layer that turns it off hides the layers below.
    pub(crate) fn find_switch(
        &self,
        flag: bool,
        option: &'static str,
    ) -> Result<Option<SettingValue>, Failure> {
        let flag = flag.then_some(OsStr::new("true"));
        let Some(found) = self.find(flag, option) else {
            return Ok(None);
        };
        let on = found
            .parse(|text| parse_switch(text).ok_or_else(|| "expected true or false".to_owned()))?;
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

impl SettingValue {
    fn of(option: &'static str, (text, source): (OsString, Source)) -> Self {
        Self {
            option,
            text,
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
    ) -> Result<Option<Self>, Failure> {
        let rank = |found: &Self| match found.source {
            Source::Flag => 0,
            Source::Variable(_) => 1,
            Source::File { .. } => 2,
        };
        match (one, other) {
            (Some(one), Some(other)) if rank(&one) == rank(&other) => Err(anyhow!(
                "cannot use {} together with {}",
                one.origin_text(),
                other.origin_text()
            ))
            .or_hint("the two contradict each other: choose one"),
            (Some(one), Some(other)) if rank(&other) < rank(&one) => Ok(Some(other)),
            (Some(found), _) | (None, Some(found)) => Ok(Some(found)),
            (None, None) => Ok(None),
        }
    }

    /// The source without the text, which may be a secret.
    pub(crate) fn origin_text(&self) -> String {
        place_of(self.option, &self.source)
    }
}

/// The source of an option's text, for people.
pub(crate) fn place_of(option: &str, source: &Source) -> String {
    match source {
        Source::Flag => format!("--{option}"),
        Source::Variable(name) => name.clone(),
        Source::File { path, line } => {
            format!("{option} in line {line} of '{}'", path.display())
        }
    }
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.to_string_lossy();
        match &self.source {
            Source::Flag => write!(f, "--{} '{text}'", self.option),
            Source::Variable(name) => write!(f, "{name} '{text}'"),
            Source::File { path, line } => write!(
                f,
                "{} '{text}' in line {line} of '{}'",
                self.option,
                path.display()
            ),
        }
    }
}
