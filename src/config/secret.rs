//! A text that no message can contain, and that is erased from memory when it is not needed any more.
//! It must not know what it protects.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A secret text. Only [`Secret::expose`] gives it away; each copy is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret<T: Zeroize = String>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    pub(crate) fn new(text: impl Into<T>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    pub(crate) fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}
