//! The effective settings and their sources.
//! It must not know what they mean; it never sees a password.

use std::ffi::OsStr;

use serde::Serialize;

use super::layers::{Layers, place_of};

/// One effective setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    /// The long option.
    pub(crate) option: String,
    pub(crate) value: String,
    /// The flag, the variable, the file's line, or `default`.
    pub(crate) source: String,
}

/// The setting, if it is set. `shown` replaces a text that must not be shown, and is the default if there is no text.
pub(crate) fn origin(
    layers: &Layers,
    flag: Option<&OsStr>,
    option: &str,
    shown: Option<String>,
) -> Option<Origin> {
    let found = layers.locate(flag, option);
    let source = found.as_ref().map_or_else(
        || "default".to_owned(),
        |(_, source)| place_of(option, source),
    );
    let text = || Some(found?.0.to_string_lossy().into_owned());
    Some(Origin {
        option: option.to_owned(),
        value: shown.or_else(text)?,
        source,
    })
}
