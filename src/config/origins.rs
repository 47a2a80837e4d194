//! The effective settings and their sources.
//! It must not know what they mean; it never sees a password.

use serde::Serialize;

use super::layers::Layers;
use super::setting::Setting;

/// One effective setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    /// The long option.
    pub(crate) option: &'static str,
    pub(crate) value: String,
    /// The flag, the variable, the file's line, or `default`.
    pub(crate) source: String,
}

/// The setting, if it is set. `shown` replaces a text that must not be shown, and is the default if there is no text.
pub(crate) fn origin(layers: &Layers, setting: Setting, shown: Option<String>) -> Option<Origin> {
    let found = layers.find(setting);
    let default = || "default".to_owned();
    let source = found
        .as_ref()
        .map_or_else(default, |found| found.source.to_string());
    let text = || Some(found?.text.to_string_lossy().into_owned());
    Some(Origin {
        option: setting.name(),
        value: shown.or_else(text)?,
        source,
    })
}
