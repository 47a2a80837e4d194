//! A text that no message can contain.
//! It must not know what it protects.

use std::fmt;

/// A secret text. Only [`Secret::expose`] gives it away.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret<T = String>(T);

impl<T> Secret<T> {
    pub(crate) fn new(text: impl Into<T>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}
