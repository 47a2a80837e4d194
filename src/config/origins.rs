//! Which settings count at this moment, and where each came from.
//! It must not know what they mean; a password never gets here.

use std::ffi::OsStr;

use serde::Serialize;

use super::layers::{Layers, place_of};

/// One setting as it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    /// The long option.
    pub(crate) option: String,
    pub(crate) value: String,
    /// The flag, the variable, the file's line, or `default`.
    pub(crate) source: String,
}

/// The setting, if it is set. `shown` is its value where the text itself is not fit to be shown, and the
/// default where there is no text.
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
