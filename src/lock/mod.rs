//! The part that every kind of lock has in common: the traits of a backend and of a reader, and the errors.
//! It must not know which backends there are, nor exit statuses.

pub(crate) mod backend;
pub(crate) mod error;
pub(crate) mod reader;
